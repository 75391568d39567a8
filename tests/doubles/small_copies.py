"""ml-dashd on an S3 server that copies 16 MiB in one request, so that files of a test's size are copied in parts."""

from __future__ import annotations

import sys
from dataclasses import replace

from ml_dashd.__main__ import main as daemon
from ml_dashd.edge import s3
from ml_dashd.edge.s3_client import S3Settings

COPY_BYTES = 16 << 20


class SmallCopies(s3.S3Store):
    def __init__(self, settings: S3Settings, *more: object) -> None:
        super().__init__(replace(settings, copy_bytes=COPY_BYTES), *more)  # type: ignore[arg-type]


def main() -> int:
    s3.S3Store = SmallCopies  # type: ignore[misc]
    return daemon()


if __name__ == "__main__":
    sys.exit(main())
