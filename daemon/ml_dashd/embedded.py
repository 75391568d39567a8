"""What only the daemon of a root does: it holds the root, goes with it where it is moved, and ends when it is gone.

It reaches the root through its working folder; what it says names the root as its user knows it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ml_dash.errors import MLDashError, error
from ml_dash.messages import (
    CommitSlot,
    EndRun,
    LogRows,
    Message,
    OpenExperiment,
    Put,
    PutMany,
    Record,
    SetParams,
    Upload,
)
from ml_dash.release import release
from ml_dashd import logs
from ml_dashd.config import HOME, WORKING, Config
from ml_dashd.edge.catalog_sqlite import SqliteCatalog
from ml_dashd.edge.holder import RENEW_S, Holder
from ml_dashd.edge.place import BOOT
from ml_dashd.edge.root import RootFolder, StateFolder, Whereabouts, adopt
from ml_dashd.ports import Clock, Line, Service, Session, Threads

log = logging.getLogger("ml_dashd")

LOOK_S = 2.0
"""Between looks at the root: two calls of stat."""
REMOVING_S = 2.0
"""Who removes a root has this long to come to its end before the next daemon is let into it."""
CARRY_S = 60.0
"""Between copies of the catalog into a root whose state lies elsewhere: each costs as much as the catalog is long."""
HAND_OFFS = (Upload, Put, PutMany, CommitSlot, OpenExperiment, EndRun, SetParams, LogRows)


class Embedded:
    """A root and its daemon. Made once the state folder's `lock`, a descriptor, is held; it works in the root."""

    def __init__(self, config: Config, root: Path, clock: Clock, lock: int) -> None:
        self._config = config
        self._clock = clock
        self._home = WORKING / HOME
        self._carried = self._home / "catalog.sqlite"
        facts = {
            "host": socket.gethostname(),
            "boot": BOOT.read_text().strip(),
            "pid": os.getpid(),
            "version": release(),
            "state_dir": config.daemon.state_dir,
        }
        self._holder = Holder(self._home, config.state_dir, facts, root)
        self._lost = False
        mark = "identity" if config.outside else "lock"
        self._root = RootFolder(root, f"{HOME}/{mark}", inode=not config.outside)
        self._state = StateFolder(config.state_dir, lock)
        logs.call_by_name(str(WORKING), lambda: str(self._root.where()))

    def enter(self) -> None:
        """Takes the root, and what it brought along from another disk. Raises ROOT_HELD. Blocks."""
        self._holder.take()
        if self._config.outside and adopt(self._home, self._config.state_dir):
            log.info("state_adopted", extra={"root": self._config.embedded, "state_dir": self._config.daemon.state_dir})

    async def keep(self, catalog: SqliteCatalog) -> None:
        """The root's catalog: it takes in what daemons on other hosts have listed."""
        self._catalog = catalog
        if self._config.outside:
            await catalog.merge(self._carried)

    async def watch(self, stop: asyncio.Event, threads: Threads, moved: Callable[[Path], None]) -> None:
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
                await self.carry()

    async def carry(self) -> None:
        """Leaves the catalog in the root, for daemons on other hosts. Nothing where it has not changed."""
        if self._config.outside and not self._lost:
            await self._catalog.export(self._carried)

    def is_whole(self) -> bool:
        """Whether nothing of what the daemon keeps is being removed. Costs three calls of stat."""
        return self._state.is_whole()

    async def check(self) -> None:
        """Ends the daemon where what it keeps is being removed. What it says after this is not lost with that.

        Costs three calls of stat.
        """
        if self.is_whole():
            return
        patience = self._clock.monotonic() + REMOVING_S
        while not self._state.is_removed() and self._clock.monotonic() < patience:
            await self._clock.sleep(REMOVING_S / 40)
        self._vanish()

    def named(self, text: str) -> str:
        """The text with the root's path, as it is now, in place of the daemon's way to it."""
        return text.replace(str(WORKING), str(self._root.where())) if str(WORKING) in text else text

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


class _WhileWhole:
    """A client's line on which nothing is acknowledged early that may be lost already."""

    def __init__(self, line: Line, embedded: Embedded) -> None:
        self._line = line
        self._embedded = embedded

    async def report(self, message: Message) -> None:
        await self._line.report(message)

    def early(self, reply: Message) -> Callable[[], None]:
        send = self._line.early(reply)

        def send_while_whole() -> None:
            if self._embedded.is_whole():  # else it is said, or not, once that is looked at closer
                send()

        return send_while_whole


class EmbeddedService:
    """A service whose root may be removed under it: then it answers nobody, and who asked finds the next daemon."""

    def __init__(self, service: Service, embedded: Embedded) -> None:
        self._service = service
        self._embedded = embedded

    async def handle(
        self, session: Session, message: Message, descriptors: Sequence[int], line: Line
    ) -> tuple[Message, Sequence[int]]:
        if isinstance(message, HAND_OFFS):
            await self._embedded.check()
        try:
            reply, attached = await self._service.handle(
                session, message, descriptors, _WhileWhole(line, self._embedded)
            )
        except MLDashError as refused:
            await self._embedded.check()
            raise self._named(refused) from None
        except Exception:
            await self._embedded.check()
            raise
        if isinstance(message, HAND_OFFS):  # nothing is acknowledged that is lost already
            await self._embedded.check()
        return self._told(reply), attached

    def disconnected(self, session: Session) -> None:
        self._service.disconnected(session)

    def _named(self, refused: MLDashError) -> MLDashError:
        message = self._embedded.named(refused.message)
        return refused if message is refused.message else error(refused.code, message, refused.hint)

    def _told(self, reply: Message) -> Message:
        """The reply, its errors by the names that a user knows."""
        changes: dict[str, Any] = {}
        for field in ("records", "blocked", "failed", "moving", "files"):
            records = getattr(reply, field, ())
            if records and isinstance(records, tuple):  # a comparison's are a number
                changes[field] = tuple(self._told_of(record) for record in records)
        for field in ("refused", "damaged", "findings"):
            if refusals := getattr(reply, field, ()):
                changes[field] = tuple(replace(each, message=self._embedded.named(each.message)) for each in refusals)
        if message := getattr(reply, "error_message", None):
            changes["error_message"] = self._embedded.named(message)
        return replace(reply, **changes) if changes else reply

    def _told_of(self, record: Record) -> Record:
        if not record.error_message:
            return record
        return replace(record, error_message=self._embedded.named(record.error_message))
