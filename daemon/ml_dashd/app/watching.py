"""Health, readiness, metrics and status by HTTP. A reason for which the daemon is not ready is a check, named here."""

from __future__ import annotations

from collections.abc import Callable

from ml_dash.release import release
from ml_dashd.app.parts import Parts
from ml_dashd.app.tasks import Tasks
from ml_dashd.core.listen import parse_listen
from ml_dashd.core.model import Trouble
from ml_dashd.core.overview import Running
from ml_dashd.edge import disk
from ml_dashd.edge.http import HttpServer
from ml_dashd.edge.threads import Pool
from ml_dashd.observe import Observer, Shared, catalog_check, disks_of, journal_check, spool_check, store_check

WATCH_THREADS = 3
"""For metrics: of a disk that hangs, the spool's size and its free bytes hold one each, and one is left to answer."""


class Watching:
    """Who listens, where `http.listen` names an address; its threads are of its own."""

    def __init__(self) -> None:
        self._http: HttpServer | None = None

    async def start(
        self, parts: Parts, phase: Callable[[], Trouble | None], connections: Callable[[], int], chores: Tasks
    ) -> None:
        """They come before recovery, which may take long: alive, and not ready. `phase` says why it is not."""
        base, storage, sending, journal = parts.base, parts.storage, parts.sending, parts.storage.journal
        self._threads = Pool(WATCH_THREADS, "watch", base.polite)
        backlog = Shared(journal.backlog, base.clock)
        disks = disks_of(storage.spools, disk.look, self._threads, base.clock)

        async def check_phase() -> Trouble | None:
            return phase()

        observer = Observer(
            journal=journal,
            backlog=backlog,
            pins=storage.pins,
            threads=self._threads,
            disks=disks.ask,
            connections=connections,
            sending=sending.pace.sending,
            circuits=sending.breaker.count,
            checks={
                "daemon": check_phase,
                "journal": journal_check(journal),
                "node": catalog_check(storage.of_catalog.number_trouble),
                "catalog": catalog_check(storage.catalog.trouble),
                "experiments": catalog_check(storage.runs.trouble),
                "store": store_check(backlog, storage.mount.trouble),
                "spool": spool_check(parts.sources.health.spool_trouble, disks.ask),
            },
            clock=base.clock,
            meter=base.meter,
            render=base.render,
            counted=base.counted,
            running=Running(release(), base.clock.now_ms(), base.config.spool.quota),
        )
        http = base.config.http
        self._http = HttpServer(parse_listen(http.listen), int(http.socket_mode, 8), observer)
        await self._http.start()
        chores.start(observer.watch_lag(), "lag")

    async def stop(self) -> None:
        """Idempotent; nothing where nobody listens."""
        if self._http is not None:
            await self._http.stop()
            self._threads.close()
            self._http = None
