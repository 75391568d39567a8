"""Kills server process groups once the process that started them is gone, however it ended.

Run as `guard.py PARENT GROUP...`. A separate process, and not PR_SET_PDEATHSIG: that signal comes when the
starting *thread* ends, so a server started from a worker thread would die with it, and it spares children.
"""

import contextlib
import os
import select
import signal
import sys


def main(parent: int, groups: list[int]) -> None:
    # No such process, or another parent by now: it died before we could watch it.
    with contextlib.suppress(ProcessLookupError):
        watched = os.pidfd_open(parent)
        if os.getppid() == parent:
            select.select([watched], [], [])
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]), [int(group) for group in sys.argv[2:]])
