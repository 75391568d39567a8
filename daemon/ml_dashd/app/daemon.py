"""A daemon's life: it is built, recovers, serves, and is taken down in order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import uvloop

from ml_dash.errors import TABLE, Code
from ml_dash.release import release
from ml_dashd.app.answers import Answers, build_answers, printable
from ml_dashd.app.base import Base
from ml_dashd.app.parts import build
from ml_dashd.app.tasks import Tasks
from ml_dashd.app.watching import Watching
from ml_dashd.config import HOME, Config, of_systemd
from ml_dashd.core.access import Policy
from ml_dashd.core.model import Trouble
from ml_dashd.core.retention import Rule
from ml_dashd.edge import listening, lock, notice
from ml_dashd.edge.socket_server import Access, SocketServer
from ml_dashd.edge.system import SystemClock, collect_rarely, ignore_lease_signals, raise_descriptor_limit
from ml_dashd.edge.systemd import Systemd
from ml_dashd.embedded import Embedded, EmbeddedService
from ml_dashd.flow.heartbeat import Heartbeat
from ml_dashd.flow.inbox import InboxFirst
from ml_dashd.flow.recover import Recovered, hold_again, recover
from ml_dashd.ports import Service

log = logging.getLogger("ml_dashd")

IDLE_LOOK_S = 5.0
CLOSING_S = 60.0
"""A stop takes at most drain_timeout for what is sent and synced, and this for the rest: a journal that another program
has locked is waited for."""
STARTING = Trouble(Code.RETRY_LATER, "the daemon is starting: journal and spool are being compared", "wait for it")
STOPPING = Trouble(Code.SHUTTING_DOWN, "the daemon is being stopped", TABLE[Code.SHUTTING_DOWN].hint)


class Daemon:
    """Everything that runs."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._clock = SystemClock()
        self._embedded: Embedded | None = None
        said = of_systemd()
        # What an embedded daemon finds in its environment was meant for the trainer that started it.
        self._systemd = Systemd({} if config.embedded else said)
        self._passed = self._systemd.listener()
        self._socket = config.daemon.socket if self._passed is None else str(self._passed.getsockname())
        self._chores = Tasks()
        """End as soon as the daemon is to stop."""
        self._lasting = Tasks()
        """End once what can be sent is sent."""
        self._watching = Watching()
        self._phase: Trouble | None = STARTING
        self._asked_to_stop = asyncio.Event()

    async def run(self, ready: Callable[[Recovered], None]) -> None:
        """Serves until SIGTERM or SIGINT, or, embedded, until there has been nothing to do for a while."""
        held = await lock.take(self._config.state_dir, self._config.daemon.state_dir)
        if self._config.embedded is not None:
            self._embedded = Embedded(self._config, self._config.embedded, self._clock, held)
            self._embedded.enter()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop.set)
        try:
            left = await self._start()
        except BaseException:
            await self._watching.stop()
            raise
        await self._tell(ready, left)
        self._start_chores()
        await self._asked_to_stop.wait()
        self._phase = STOPPING
        self._systemd.stopping(self._config.daemon.drain_timeout + CLOSING_S)
        log.info("stopping", extra={"drain_timeout": self._config.daemon.drain_timeout})
        await self._chores.end()
        await self._stop()
        log.info("stopped")

    # ---- it begins

    async def _start(self) -> Recovered:
        """Builds it, recovers, and lets clients in."""
        if self._passed is None:
            listening.make_room(self._config.socket, "daemon.socket")  # before anything is begun beside another daemon
            # Before http.listen makes it for its own socket, which has another mode.
            listening.make_folder(self._config.socket.parent, int(self._config.access.socket_mode, 8))
        self._parts = parts = await build(Base(self._config, self._clock), self._systemd, self._embedded, self._chores)
        if self._config.http.listen:
            await self._watching.start(parts, lambda: self._phase, self._connected, self._chores)
        left = await self._recover()
        policy = _policy(self._config)
        self._answers = await self._make_answers(policy)
        service = await self._wrapped(self._answers)
        access = Access(
            policy,
            int(self._config.access.socket_mode, 8),
            self._config.daemon.max_connections,
            self._config.daemon.peer_timeout,
        )
        self._server = SocketServer(
            self._config.socket, service, self._clock, access, self._passed, parts.storage.descriptors
        )
        self._server.start()
        return left

    async def _recover(self) -> Recovered:
        """Compares journal and spool, and goes on with what was under way."""
        parts = self._parts
        asyncio.get_running_loop().add_signal_handler(signal.SIGIO, parts.sources.give_way)  # it takes leases at once
        left = await recover(parts.storage.journal, parts.storage.pins, parts.base.threads)
        for job in left.jobs:
            parts.sources.copies.add(job)
        await parts.sources.supersede.run(left.jobs)
        await parts.upkeep.drain.resume()
        self._lasting.start(parts.storage.mount.run(), "mount")
        await parts.storage.mount.looked()
        parts.sending.worker.start()
        self._lasting.start(parts.sources.copies.run(), "copies")
        self._lasting.start(parts.sources.touched.run(), "touched")
        held = hold_again(left.jobs, parts.storage.journal, parts.storage.pins, parts.base.disk)
        self._chores.start(held, "held sources")
        self._lasting.start(parts.upkeep.mirror.run(), "mirror")
        return left

    async def _make_answers(self, policy: Policy) -> Answers:
        parts = self._parts
        ids = await parts.storage.of_catalog.ids(parts.storage.journal)
        if (number := parts.storage.of_catalog.number) is not None:
            self._chores.start(number.run(), "node number")
        answers = build_answers(parts, ids, policy, self._asked_to_stop.set)
        self._lasting.start(answers.experiments.keep(), "rows")  # a drain takes rows, too
        await parts.upkeep.deliver.load()
        self._lasting.start(parts.upkeep.deliver.run(), "sets")
        return answers

    async def _wrapped(self, answers: Answers) -> Service:
        if self._embedded is not None:
            return EmbeddedService(answers.serve, self._embedded)
        if answers.adoption is None:
            return answers.serve
        await answers.adoption.look_or_tell()  # what was handed over before comes first
        self._chores.start(answers.adoption.run(), "inbox")
        return InboxFirst(answers.serve, answers.adoption)

    async def _tell(self, ready: Callable[[Recovered], None], left: Recovered) -> None:
        """Whoever waits for it, and whoever looks for it."""
        socket, store = self._socket, self._parts.storage.store.url
        await notice.leave(self._config.state_dir, pid=os.getpid(), version=release(), socket=socket, store=store)
        self._phase = None
        ready(left)
        self._systemd.ready()
        http, catalog = self._config.http.listen, self._config.catalog_place
        event = {"pid": os.getpid(), "socket": socket, "http": http, "store": store, "catalog": catalog}
        log.info("ready", extra=event)

    def _start_chores(self) -> None:
        config, parts, upkeep = self._config, self._parts, self._parts.upkeep
        self._heartbeat = asyncio.create_task(self._beat(), name="heartbeat")  # until the very end
        self._chores.start(upkeep.sweep.run(), "sweep")
        self._chores.start(upkeep.warm.prepare(), "warm")
        self._chores.start(upkeep.warm.watch(), "memory")
        self._chores.start(upkeep.reclaim.run(), "reclaim")
        self._chores.start(upkeep.reconcile.run(), "reconcile")
        if config.retention.keep_last:
            rule = Rule(config.retention.keep_last, frozenset(config.retention.keep_tags))
            self._chores.start(self._answers.prune.retain(rule, config.retention.pattern), "retention")
        self._chores.start(upkeep.drain.tidy(), "manifest")
        self._chores.start(parts.sending.scratch.run(), "scratch")
        self._chores.start(parts.sending.checksums.run(), "checksums")
        if self._embedded is not None:
            self._chores.start(self._end_when_idle(), "idle")
            watch = self._embedded.watch(self._asked_to_stop, parts.base.disk, self._rename)
            self._chores.start(watch, "root")

    # ---- while it runs

    def _connected(self) -> int:
        return 0 if self._phase is STARTING else self._server.connections

    def _rename(self, root: Path) -> None:
        """The root is at another path now, and with it what is not kept outside of it."""
        state_dir = self._config.daemon.state_dir if self._config.outside else str(root / HOME)
        identity = self._answers.identity
        identity.store, identity.state_dir = root.as_uri(), printable(state_dir)

    async def _beat(self) -> None:
        if self._systemd.present:
            parts = self._parts
            await Heartbeat(parts.storage.journal, parts.sources.health, self._systemd, self._clock).run()

    async def _end_when_idle(self) -> None:
        """An embedded daemon ends when nobody is connected and nothing is on its way for `idle_timeout`."""
        last_busy, timeout = self._clock.monotonic(), self._config.daemon.idle_timeout
        while self._clock.monotonic() - last_busy < timeout:
            await self._clock.sleep(min(IDLE_LOOK_S, timeout / 4))
            if self._server.connections or await self._parts.storage.journal.due_count():
                last_busy = self._clock.monotonic()
        log.info("idle_end")
        self._asked_to_stop.set()

    # ---- it ends

    async def _stop(self) -> None:
        """Sends what it can in its time, hand-offs taken meanwhile included; then takes nothing more, and closes."""
        parts, answers, timeout = self._parts, self._answers, self._config.daemon.drain_timeout
        end = self._clock.monotonic() + timeout
        await parts.upkeep.drain.before_stop(timeout)
        await self._server.stop()
        if answers.adoption is not None and answers.inbox is not None:
            await answers.adoption.close()
            answers.inbox.close()
        await parts.sources.overwrites.close()
        answers.accept.close()
        await parts.sources.write_back.close(max(0.0, end - self._clock.monotonic()))
        await self._lasting.end()
        await parts.upkeep.mirror.close()
        await parts.sending.worker.stop()
        await parts.sources.touched.last_look()
        await parts.upkeep.drain.after_stop()
        await self._watching.stop()
        await self._close()

    async def _close(self) -> None:
        """Nothing runs any more."""
        storage = self._parts.storage
        await storage.store.close()
        storage.slots.close()
        storage.pins.close()
        self._heartbeat.cancel()
        await asyncio.gather(self._heartbeat, return_exceptions=True)
        await notice.remove(self._config.state_dir)
        if self._embedded is not None:
            await self._embedded.carry()
            self._embedded.leave()
        await storage.of_catalog.close()
        storage.journal.close()
        self._parts.base.close()


def _policy(config: Config) -> Policy:
    """Who may do what: the table [access], and the user that this process runs as."""
    access = config.access
    readers = {namespace: frozenset(uids) for namespace, uids in access.read.items()}
    writers = {namespace: frozenset(uids) for namespace, uids in access.write.items()}
    return Policy(os.geteuid(), frozenset(access.uids), frozenset(access.admins), readers, writers)


def run(config: Config, ready: Callable[[Recovered], None]) -> None:
    """Runs a daemon in this process until it ends."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # a trainer that blocks SIGTERM hands that down
    raise_descriptor_limit()
    ignore_lease_signals()
    collect_rarely()
    run_loop(Daemon(config).run(ready))


def run_loop(main: Coroutine[Any, Any, None]) -> None:
    """On uvloop's event loop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)
