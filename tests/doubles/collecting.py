"""ml-dashd that collects its garbage as soon as Python would: what is left of memory then is a leak."""

from __future__ import annotations

import sys

from ml_dashd.__main__ import main
from ml_dashd.edge import system

COLLECT_AFTER = 700
"""Python's own; the daemon's is so much rarer that its memory goes up and down by a tenth."""

if __name__ == "__main__":
    system.COLLECT_AFTER = COLLECT_AFTER
    sys.exit(main())
