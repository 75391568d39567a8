"""Wires the daemon together, runs it, and takes it down in order.

`run` is what the command calls; daemon.py has the order of a life, and the other modules build what it is made of.
"""

from ml_dashd.app.daemon import CLOSING_S, run, run_loop

__all__ = ["CLOSING_S", "run", "run_loop"]
