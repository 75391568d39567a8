"""ml-dashd that gives a store's server up sooner: one that takes nothing, or no more, holds it up for seconds."""

from __future__ import annotations

import sys

from ml_dashd.__main__ import main as daemon
from ml_dashd.edge import s3_bulk, s3_client, s3_line, s3_send

USER_TIMEOUT_MS, STALL_S, READ_TIMEOUT_S, IDLE_S = 3_000, 6.0, 12, 2.0
"""A tenth or so of what they are: TCP_USER_TIMEOUT still comes first, and idle connections are closed in seconds."""


def main() -> int:
    s3_client.USER_TIMEOUT_MS = USER_TIMEOUT_MS
    s3_send.STALL_S = s3_bulk.STALL_S = STALL_S
    s3_line.DATA_READ_TIMEOUT_S = s3_bulk.DATA_READ_TIMEOUT_S = READ_TIMEOUT_S
    s3_line.IDLE_S = IDLE_S
    return daemon()


if __name__ == "__main__":
    sys.exit(main())
