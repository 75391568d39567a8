"""What only the daemon of a root does: it holds the root, goes with it where it is moved, and ends when it is gone."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from ml_dashd.config import HOME, WORKING, Config
from ml_dashd.edge.catalog_sqlite import SqliteCatalog
from ml_dashd.edge.holder import RENEW_S, Holder
from ml_dashd.edge.root import RootFolder, Whereabouts, adopt
from ml_dashd.ports import Clock, Threads

log = logging.getLogger("ml_dashd")

LOOK_S = 2.0
"""Between looks at the root: two calls of stat."""
CARRY_S = 60.0
"""Between copies of the catalog into a root whose state lies elsewhere: each costs as much as the catalog is long."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Embedded:
    """A root and its daemon. Made once the state folder's lock is held; the process works in the root."""

    def __init__(self, config: Config, root: Path, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._home = WORKING / HOME
        self._carried = self._home / "catalog.sqlite"
        facts = {
            "host": socket.gethostname(),
            "boot": BOOT_ID.read_text().strip(),
            "pid": os.getpid(),
            "version": version("ml-dash"),
            "state_dir": config.daemon.state_dir,
        }
        self._holder = Holder(self._home, config.state_dir, facts, root)
        self._lost = False
        mark = "identity" if config.outside else "lock"
        self._root = RootFolder(root, f"{HOME}/{mark}", inode=not config.outside)

    def enter(self) -> None:
        """Takes the root, and what it brought along from another disk. Raises ROOT_HELD. Blocks."""
        self._holder.take()
        if self._config.outside and adopt(self._home, self._config.state_dir):
            log.info("state_adopted", extra={"root": self._config.embedded, "state_dir": self._config.daemon.state_dir})

    async def merge(self, catalog: SqliteCatalog) -> None:
        """Takes in what daemons on other hosts have listed."""
        if self._config.outside:
            await catalog.merge(self._carried)

    async def watch(
        self, stop: asyncio.Event, threads: Threads, catalog: SqliteCatalog, moved: Callable[[Path], None]
    ) -> None:
        """Looks after the root until it is gone or another's. `moved` is told where it is now."""
        renewed = carried = self._clock.monotonic()
        where = Path(self._config.embedded or "")
        while True:
            await self._clock.sleep(LOOK_S)
            whereabouts = await threads.run(self._root.look)
            if whereabouts is Whereabouts.GONE:
                self._vanish()
            if whereabouts is Whereabouts.MOVED and (now := self._root.where()) != where:
                log.info("root_moved", extra={"from": where, "to": now})
                moved(where := now)
            if self._clock.monotonic() - renewed >= RENEW_S:
                renewed = self._clock.monotonic()
                await self._renew(stop, threads)
            if self._clock.monotonic() - carried >= CARRY_S:
                carried = self._clock.monotonic()
                await self.carry(catalog)

    async def carry(self, catalog: SqliteCatalog) -> None:
        """Leaves the catalog in the root, for daemons on other hosts. Nothing where it has not changed."""
        if self._config.outside and not self._lost:
            await catalog.export(self._carried)

    def leave(self) -> None:
        """Lets the root go. Blocks. Idempotent."""
        try:
            self._holder.release()
        except OSError as failure:
            log.warning("holder_not_renewed", extra={"error": failure})

    async def _renew(self, stop: asyncio.Event, threads: Threads) -> None:
        try:
            lost = await threads.run(self._holder.renew)
        except OSError as failure:
            log.warning("holder_not_renewed", extra={"error": failure})
            return
        if lost is not None:
            log.error("root_lost", extra={"error": lost.message})
            self._lost = True
            stop.set()

    def _vanish(self) -> None:
        """The root was removed: there is nothing left to keep, and its path may be another daemon's by now."""
        log.warning("root_gone", extra={"root": self._config.embedded})
        logging.shutdown()
        os._exit(0)
