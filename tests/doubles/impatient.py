"""ml-dashd that gives a store's server up sooner: one that takes nothing, or no more, holds it up for seconds."""

from __future__ import annotations

import sys

from ml_dashd.__main__ import main
from ml_dashd.edge import s3_client, s3_send

USER_TIMEOUT_MS, STALL_S = 3_000, 6.0
"""A tenth of what they are: TCP_USER_TIMEOUT still comes first."""

if __name__ == "__main__":
    s3_client.USER_TIMEOUT_MS = USER_TIMEOUT_MS
    s3_send.STALL_S = STALL_S
    sys.exit(main())
