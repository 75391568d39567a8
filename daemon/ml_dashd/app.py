"""Wires the daemon together, runs it, and takes it down in order."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
from collections.abc import Callable, Coroutine
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from ml_dash.errors import TABLE, Code, error
from ml_dash.messages import Limits
from ml_dashd.config import HOME, Config, fault_plan, of_systemd
from ml_dashd.core.access import Policy
from ml_dashd.core.ids import IdSource
from ml_dashd.core.listen import parse_listen
from ml_dashd.core.model import Algorithm, Job, Trouble
from ml_dashd.core.overwrite import CopySpeed, longest_wait_s
from ml_dashd.core.retention import Rule
from ml_dashd.core.schedule import lane
from ml_dashd.core.supersede import Rule as SupersedeRule
from ml_dashd.edge import disk, listening, notice
from ml_dashd.edge.bandwidth import Throttle
from ml_dashd.edge.catalog_sqlite import SqliteCatalog
from ml_dashd.edge.descriptors import DescriptorBudget
from ml_dashd.edge.host import Host
from ml_dashd.edge.inbox import InboxFolder
from ml_dashd.edge.journal import SqliteJournal
from ml_dashd.edge.leases import break_time_s
from ml_dashd.edge.local_store import LocalStore
from ml_dashd.edge.manifest import ManifestFile
from ml_dashd.edge.pin import SpoolPins
from ml_dashd.edge.place import Here
from ml_dashd.edge.politeness import Politeness
from ml_dashd.edge.room import Room
from ml_dashd.edge.runs_sqlite import SqliteRuns
from ml_dashd.edge.slots import SlotFiles
from ml_dashd.edge.socket_server import Access, SocketServer
from ml_dashd.edge.system import (
    BufferPool,
    NoFaults,
    NoMeter,
    Pool,
    SystemClock,
    TestFaults,
    ignore_lease_signals,
    raise_descriptor_limit,
)
from ml_dashd.edge.systemd import Systemd
from ml_dashd.edge.tree import FolderTree
from ml_dashd.embedded import Embedded, EmbeddedService
from ml_dashd.flow.accept import Accept
from ml_dashd.flow.again import Again
from ml_dashd.flow.amend import Amend
from ml_dashd.flow.arrivals import Arrivals
from ml_dashd.flow.audit import Audit
from ml_dashd.flow.batch import Batch
from ml_dashd.flow.bell import Bell
from ml_dashd.flow.browse import Browse
from ml_dashd.flow.checksums import Checksums
from ml_dashd.flow.circuit import Breaker
from ml_dashd.flow.copies import Copies
from ml_dashd.flow.copying import Copier
from ml_dashd.flow.deliver import Deliver
from ml_dashd.flow.doctor import Doctor
from ml_dashd.flow.drain import Drain
from ml_dashd.flow.duplicate import Duplicate
from ml_dashd.flow.fetch import Fetch
from ml_dashd.flow.finish import Finish
from ml_dashd.flow.forward import Forward
from ml_dashd.flow.health import Health
from ml_dashd.flow.heartbeat import Heartbeat
from ml_dashd.flow.inbox import Adoption, InboxFirst
from ml_dashd.flow.lease import NodeNumber
from ml_dashd.flow.mirror import Mirror
from ml_dashd.flow.nodes import Nodes
from ml_dashd.flow.outbox import Outbox
from ml_dashd.flow.overwrites import Overwrites
from ml_dashd.flow.pace import FairBuffers, Pace
from ml_dashd.flow.prune import Prune
from ml_dashd.flow.reclaim import Reclaim
from ml_dashd.flow.recover import Recovered, recover
from ml_dashd.flow.runs import Experiments
from ml_dashd.flow.scratch import Scratch
from ml_dashd.flow.serve import Identity, Serve
from ml_dashd.flow.sets import FileSets, Show
from ml_dashd.flow.settle import Settle
from ml_dashd.flow.single import Single
from ml_dashd.flow.supersede import Supersede
from ml_dashd.flow.sweep import Sweep
from ml_dashd.flow.upload import Uploader
from ml_dashd.flow.verify import Verify
from ml_dashd.flow.warm import Warm
from ml_dashd.flow.worker import Worker
from ml_dashd.observe import Observer, Shared, catalog_check, disks_of, journal_check, spool_check, store_check
from ml_dashd.ports import Catalog, Examiner, Faults, Ids, Leases, Meter, Prober, Runs, Service, Store

if TYPE_CHECKING:
    from ml_dashd.edge.http import HttpServer

log = logging.getLogger("ml_dashd")

EMBEDDED_NODE = 0
"""The node number of a daemon that shares its catalog with nobody."""
IDLE_LOOK_S = 5.0
QUICK_THREADS = 4
"""For pins and slots: a hand-off waits behind no read, hash or fsync."""
CLOSING_S = 60.0
"""A stop takes at most drain_timeout for what is sent and synced, and this for the rest: a journal that another program
has locked is waited for."""
DISK_THREADS = 4
"""For fsyncs, copies and removals, which may take seconds each."""
LEASE_THREADS = 2
"""For copies that a writer waits for, behind nobody else's."""
WATCH_THREADS = 3
"""For metrics: of a disk that hangs, the spool's size and its free bytes hold one each, and one is left to answer."""
STARTING = Trouble(Code.RETRY_LATER, "the daemon is starting: journal and spool are being compared", "wait for it")
STOPPING = Trouble(Code.SHUTTING_DOWN, "the daemon is being stopped", TABLE[Code.SHUTTING_DOWN].hint)


class Daemon:
    """Everything that runs, built in `start` and taken down in `stop`."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._polite = Politeness(config.limits.nice, config.limits.io_class)
        self._clock = SystemClock()
        plan = fault_plan()
        self._faults: Faults = NoFaults() if plan is None else TestFaults(*plan)
        self._lock = -1
        self._embedded: Embedded | None = None
        said = of_systemd()
        # What an embedded daemon finds in its environment was meant for the trainer that started it.
        self._systemd = Systemd({} if config.embedded else said)
        self._passed = self._systemd.listener()
        self._socket = config.daemon.socket if self._passed is None else str(self._passed.getsockname())
        self._chores: list[asyncio.Task[None]] = []
        self._phase: Trouble | None = STARTING
        self._leases: Leases | None = None
        self._number: NodeNumber | None = None
        self._highest = 0
        """The largest id in this machine's own catalog; of a fleet's, only what the journal has accepted counts."""
        self._meter: Meter = NoMeter()
        self._http: HttpServer | None = None
        self._adoption: Adoption | None = None
        self._prober: Prober | None = None
        self._examiner: Examiner | None = None
        self._asked_to_stop = asyncio.Event()

    async def run(self, ready: Callable[[Recovered], None]) -> None:
        """Serves until SIGTERM or SIGINT, or, embedded, until there has been nothing to do for a while."""
        await self._take_lock()
        if self._config.embedded is not None:
            self._embedded = Embedded(self._config, self._config.embedded, self._clock, self._lock)
            self._embedded.enter()
        stop = self._asked_to_stop
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        try:
            left = await self._start()
        except BaseException:
            await self._stop_watching()
            raise
        await notice.leave(
            self._config.state_dir,
            pid=os.getpid(),
            version=version("ml-dash"),
            socket=self._socket,
            store=self._store.url,
        )
        self._phase = None
        ready(left)
        self._systemd.ready()
        event = {"pid": os.getpid(), "socket": self._socket, "http": self._config.http.listen, "store": self._store.url}
        log.info("ready", extra=event)
        self._heartbeat = asyncio.create_task(self._beat(), name="heartbeat")
        self._chores.append(asyncio.create_task(self._sweep.run()))
        self._chores.append(asyncio.create_task(self._warm.prepare()))
        self._chores.append(asyncio.create_task(self._warm.watch()))
        self._chores.append(asyncio.create_task(self._reclaim.run()))
        if self._config.retention.keep_last:
            rule = Rule(self._config.retention.keep_last, frozenset(self._config.retention.keep_tags))
            self._chores.append(asyncio.create_task(self._prune.retain(rule, self._config.retention.pattern)))
        self._chores.append(asyncio.create_task(self._drain.tidy()))
        self._chores.append(asyncio.create_task(self._checksums.run()))
        if self._embedded is not None:
            self._chores.append(asyncio.create_task(self._end_when_idle(stop)))
            self._chores.append(asyncio.create_task(self._embedded.watch(stop, self._disk, self._rename)))
        await stop.wait()
        self._phase = STOPPING
        self._systemd.stopping(self._config.daemon.drain_timeout + CLOSING_S)
        log.info("stopping", extra={"drain_timeout": self._config.daemon.drain_timeout})
        for chore in self._chores:
            chore.cancel()
        await asyncio.gather(*self._chores, return_exceptions=True)
        await self._stop()
        log.info("stopped")

    async def _take_lock(self) -> None:
        """One daemon for a state folder: the lock lives as long as the process."""
        folder = self._config.state_dir
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = await notice.read(folder)
            who = f" (pid {other['pid']}, socket {other['socket']})" if {"pid", "socket"} <= other.keys() else ""
            raise error(
                Code.CONFIG,
                f"another ml-dashd serves {self._config.daemon.state_dir}{who}",
                "use that one, or give this one its own state_dir",
            ) from None

    async def _start(self) -> Recovered:
        config, clock, faults = self._config, self._clock, self._faults
        if self._passed is None:
            listening.make_room(config.socket, "daemon.socket")  # before anything is begun beside another daemon
        if config.http.listen:
            from ml_dashd.edge.metrics import PrometheusMeter  # noqa: PLC0415 an embedded daemon does without

            meter = PrometheusMeter(version("ml-dash"))
            self._meter, self._render = meter, meter.render
        self._threads = Pool(config.limits.threads, "work", self._polite)
        self._quick = Pool(QUICK_THREADS, "quick")
        self._disk = Pool(DISK_THREADS, "disk", self._polite)
        self._warming = Pool(1, "warm", self._polite)
        self._bell = Bell()
        self._store = self._make_store()
        single_bytes = self._store.single_bytes
        self._journal = SqliteJournal(
            config.state_dir / "journal.sqlite",
            clock,
            faults,
            lambda kind, size: lane(kind, size, single_bytes),
            self._meter.committing,
        )
        await self._journal.open()
        self._here = Here(config.state_dir)
        await self._open_catalog()
        spool = config.state_dir / "spool"
        room, budget = Room(config.spool.quota), DescriptorBudget()
        self._slots = SlotFiles(spool, room, budget, config.spool.warm_bytes)
        self._pins = SpoolPins(
            [spool, *config.pool_folders],
            self._slots,
            faults,
            room,
            self._systemd,
            budget,
            uncached_from=config.limits.uncached_from,
        )
        self._wire_flow()
        if config.http.listen:
            await self._start_watching([spool, *config.pool_folders])
        left = await recover(self._journal, self._pins, self._threads)
        for job in left.jobs:
            self._copies.add(job)
        await self._supersede.run(left.jobs)
        await self._drain.resume()
        self._worker.start()
        self._copying = asyncio.create_task(self._copies.run(), name="copies")
        self._mirroring = asyncio.create_task(self._mirror.run(), name="mirror")
        policy = _policy(config)
        access = Access(
            policy,
            int(config.access.socket_mode, 8),
            config.daemon.max_connections,
            config.daemon.peer_timeout,
        )
        self._service = await self._make_service(policy)
        service = await self._wrapped(self._service)
        self._server = SocketServer(config.socket, service, clock, access, self._passed, budget)
        self._server.start()
        return left

    async def _open_catalog(self) -> None:
        """SQLite's, or a fleet's: that one is asked when it is needed, and may be away now."""
        config = self._config
        here = SqliteRuns(config.runs_path, self._faults)
        if config.fleet:
            from ml_dashd.edge.catalog_mongo import MongoCatalog  # noqa: PLC0415 an extra
            from ml_dashd.edge.leases_mongo import MongoLeases  # noqa: PLC0415
            from ml_dashd.edge.mongo import Mongo  # noqa: PLC0415
            from ml_dashd.edge.mongo_schema import prepare  # noqa: PLC0415
            from ml_dashd.edge.runs_mongo import MongoRuns  # noqa: PLC0415

            mongo = Mongo(config.catalog.url, prepare)
            self._catalog: Catalog = MongoCatalog(mongo)
            self._leases = MongoLeases(mongo)
            forward = Forward(here=here, fleet=MongoRuns(mongo), clock=self._clock)
            self._runs: Runs = forward
            self._chores.append(asyncio.create_task(forward.run(), name="forward"))
            return
        mine = SqliteCatalog(config.catalog_path, self._faults)
        self._catalog, self._runs = mine, here
        if self._embedded is not None:
            await self._embedded.keep(mine)
        self._highest = await mine.highest()

    async def _wrapped(self, service: Service) -> Service:
        if self._embedded is not None:
            return EmbeddedService(service, self._embedded)
        if self._adoption is None:
            return service
        await self._adoption.look_or_tell()  # what was handed over before comes first
        self._chores.append(asyncio.create_task(self._adoption.run(), name="inbox"))
        return InboxFirst(service, self._adoption)

    def _sync_later(self, job: Job) -> None:
        self._accept.sync_later(job)

    def _rename(self, root: Path) -> None:
        """The root is at another path now, and with it what is not kept outside of it."""
        state_dir = self._config.daemon.state_dir if self._config.outside else str(root / HOME)
        self._service.rename(root.as_uri(), _printable(state_dir))

    def _make_store(self) -> Store:
        config = self._config
        throttle = Throttle(config.limits.bandwidth, self._clock)
        if not config.bucket:
            root = config.store_root
            root.mkdir(parents=True, exist_ok=True)
            return LocalStore(
                root,
                self._threads,
                self._faults,
                int(config.store.mode, 8),
                config.store.url,
                config.store.part_size,
                throttle=throttle,
            )
        from ml_dashd.edge.s3 import S3Store  # noqa: PLC0415 its import takes half a second
        from ml_dashd.edge.s3_client import Placement, S3Settings  # noqa: PLC0415

        settings = S3Settings(
            bucket=config.bucket,
            key_prefix=config.key_prefix,
            endpoint_url=config.store.endpoint_url or None,
            region=config.store.region or None,
            checksum=None if config.store.checksum == "auto" else Algorithm(config.store.checksum),
            ca_bundle=config.store.ca_bundle or None,
            connections=config.limits.connections,
            part_bytes=config.store.part_size,
            addressing=config.store.addressing,
            profile=config.store.profile or None,
            credentials_file=config.store.credentials_file or None,
            proxy=config.store.proxy or None,
            placement=Placement(
                config.store.sse or None, config.store.sse_kms_key_id or None, config.store.storage_class or None
            ),
        )
        store = S3Store(settings, throttle)
        if settings.checksum is None:
            self._prober = store.prober
        self._examiner = store.examiner
        return store

    def _wire_flow(self) -> None:
        config, clock, faults = self._config, self._clock, self._faults
        limits, part_size = config.limits, config.store.part_size
        self._buffers = buffers = BufferPool(limits.memory, part_size)
        self._breaker = Breaker(self._journal, clock)
        outbox = Outbox(self._journal, self._catalog, clock)
        self._pace = Pace(clock, limits.connections, limits.bandwidth, self._breaker.answered)
        common: dict[str, Any] = {
            "journal": self._journal,
            "store": self._store,
            "pins": self._pins,
            "bell": self._bell,
            "clock": clock,
            "faults": faults,
            "meter": self._meter,
        }
        self._finish = finish = Finish(catalog=self._catalog, threads=self._disk, outbox=outbox, **common)
        self._scratch = Scratch(self._journal, self._store, clock)
        self._checksums = Checksums(self._journal, self._store, self._scratch, clock, self._prober)
        shared: dict[str, Any] = {
            "finish": finish,
            "checksums": self._checksums,
        }
        sending: dict[str, Any] = {
            "buffers": FairBuffers(buffers, limits.memory, part_size),
            "threads": self._threads,
            "verify": Verify(self._store, self._threads, buffers, clock),
            "pace": self._pace,
        }
        single = Single(
            journal=self._journal, store=self._store, pins=self._pins, faults=faults, meter=self._meter, **sending
        )
        uploader = Uploader(
            copier=Copier(
                journal=self._journal,
                store=self._store,
                faults=faults,
                verify=sending["verify"],
                pace=self._pace,
                **shared,
            ),
            single=single,
            part_bytes=part_size,
            **sending,
            **shared,
            **common,
        )
        batch = Batch(journal=self._journal, store=self._store, single=single, faults=faults, **shared)
        self._worker = Worker(
            self._journal, uploader, batch, finish, clock, self._meter, breaker=self._breaker, outbox=outbox
        )
        self._health = Health(self._journal, self._catalog, self._runs, self._number_trouble)
        self._settle = Settle(self._pins, self._disk, self._health, faults)
        self._supersede = Supersede(
            journal=self._journal,
            rule=SupersedeRule(config.spool.supersede, frozenset(config.retention.keep_tags)),
            bell=self._bell,
            faults=faults,
            cancel=self._worker.cancel,
        )
        speed, self._leasing = CopySpeed(), Pool(LEASE_THREADS, "lease")
        self._overwrites = Overwrites(
            journal=self._journal,
            pins=self._pins,
            threads=self._leasing,
            disk=self._disk,
            bell=self._bell,
            clock=clock,
            faults=faults,
            speed=speed,
            longest_wait_s=longest_wait_s(config.spool.lease_max_delay, break_time_s()),
            sync=self._sync_later,
        )
        self._copies = Copies(
            journal=self._journal,
            pins=self._pins,
            settle=self._settle,
            disk=self._disk,
            bell=self._bell,
            clock=clock,
            faults=faults,
            below_bytes=config.spool.copy_below,
            after_s=config.spool.copy_after,
            sending=self._worker.sending,
            kept=self._supersede.run,
            speed=speed,
        )
        self._drain = Drain(
            journal=self._journal,
            worker=self._worker,
            manifest=ManifestFile(config.state_dir),
            threads=self._disk,
            bell=self._bell,
            clock=clock,
        )
        tree = None if config.bucket or config.fleet else FolderTree(config.store_root, int(config.store.mode, 8))
        self._mirror = Mirror(runs=self._runs, tree=tree, threads=self._disk, clock=clock)
        self._sweep = Sweep(self._journal, finish, clock)
        self._deliver = Deliver(
            journal=self._journal,
            catalog=self._catalog,
            bell=self._bell,
            clock=clock,
            faults=faults,
            keep_s=config.retention.incomplete_sets,
        )
        self._warm = Warm(self._slots, self._warming, clock)
        self._reclaim = Reclaim(
            catalog=self._catalog,
            journal=self._journal,
            store=self._store,
            clock=clock,
            faults=faults,
            grace_s=config.store.delete_grace,
        )

    async def _make_ids(self) -> Ids:
        """By the number 0, or by one that is leased."""
        high_water = max(await self._journal.high_water(), self._highest)
        if self._leases is None:
            return IdSource(EMBEDDED_NODE, high_water)
        self._number = NodeNumber(self._leases, self._journal, self._here, self._clock, high_water)
        await self._number.start()
        self._chores.append(asyncio.create_task(self._number.run(), name="node number"))
        return self._number

    def _number_trouble(self) -> Trouble | None:
        return None if self._number is None else self._number.trouble()

    async def _make_service(self, policy: Policy) -> Serve:
        config = self._config
        ids = await self._make_ids()
        self._accept = Accept(
            journal=self._journal,
            pins=self._pins,
            slots=self._slots,
            warm=self._warm,
            threads=self._quick,
            disk=self._disk,
            meter=self._meter,
            ids=ids,
            bell=self._bell,
            clock=self._clock,
            faults=self._faults,
            settle=self._settle,
            health=self._health,
            copies=self._copies,
            overwrites=self._overwrites,
            supersede=self._supersede,
            arrivals=Arrivals(self._journal, self._catalog, ids, self._clock),
            policy=policy,
            key_prefix=config.key_prefix,
            durability=config.spool.durability,
            wake=self._worker.wake,
            give_up=self._worker.give_up,
        )
        self._make_inbox(ids, policy)
        asyncio.get_running_loop().add_signal_handler(signal.SIGIO, self._overwrites.look)
        browse = Browse(
            journal=self._journal,
            catalog=self._catalog,
            pins=self._pins,
            threads=self._threads,
            worker=self._worker,
            bell=self._bell,
            clock=self._clock,
            policy=policy,
        )
        fetch = Fetch(
            browse=browse,
            journal=self._journal,
            store=self._store,
            pins=self._pins,
            threads=self._threads,
            buffers=self._buffers,
            clock=self._clock,
            part_bytes=config.store.part_size,
        )
        experiments = Experiments(runs=self._runs, mirror=self._mirror, policy=policy, clock=self._clock)
        self._keeping = asyncio.create_task(experiments.keep(), name="rows")  # no chore: a drain takes rows, too
        await self._deliver.load()
        self._delivering = asyncio.create_task(self._deliver.run(), name="sets")  # no chore either
        self._prune = Prune(
            browse=browse,
            journal=self._journal,
            catalog=self._catalog,
            policy=policy,
            clock=self._clock,
            faults=self._faults,
        )
        identity = Identity(
            version=version("ml-dash"),
            pid=os.getpid(),
            embedded=config.embedded is not None,
            store=config.store.url,
            state_dir=_printable(config.daemon.state_dir),
            started_ms=self._clock.now_ms(),
            inbox=_printable(config.daemon.inbox),
        )
        return Serve(
            identity=identity,
            accept=self._accept,
            browse=browse,
            amend=Amend(
                browse=browse, journal=self._journal, catalog=self._catalog, bell=self._bell, clock=self._clock
            ),
            duplicate=Duplicate(browse=browse, accept=self._accept, journal=self._journal, worker=self._worker),
            prune=self._prune,
            fetch=fetch,
            drain=self._drain,
            doctor=self._make_doctor(),
            audit=Audit(
                browse=browse, store=self._store, threads=self._threads, buffers=self._buffers, clock=self._clock
            ),
            again=Again(
                browse=browse,
                journal=self._journal,
                pins=self._pins,
                threads=self._quick,
                finish=self._finish,
                worker=self._worker,
                policy=policy,
            ),
            sending=self._pace.sending,
            limits=Limits(
                threads=config.limits.threads,
                nice=config.limits.nice,
                io_class=config.limits.io_class,
                uncached_from=config.limits.uncached_from,
                bandwidth=config.limits.bandwidth,
            ),
            experiments=experiments,
            inbox=self._adoption,
            nodes=Nodes(number=self._number, leases=self._leases, here=self._here, policy=policy, clock=self._clock),
            sets=self._make_sets(policy),
            stop=self._asked_to_stop.set,
            journal=self._journal,
            pins=self._pins,
            slots=self._slots,
            warm=self._warm,
            threads=self._quick,
            bell=self._bell,
            health=self._health,
            policy=policy,
        )

    def _make_inbox(self, ids: Ids, policy: Policy) -> None:
        if not self._config.daemon.inbox:
            return
        mode = int(self._config.access.socket_mode, 8)
        self._inbox = InboxFolder(Path(self._config.daemon.inbox), mode, self._clock)
        self._adoption = Adoption(
            folder=self._inbox,
            accept=self._accept,
            journal=self._journal,
            catalog=self._catalog,
            ids=ids,
            policy=policy,
            threads=self._disk,
            clock=self._clock,
            faults=self._faults,
        )

    def _make_sets(self, policy: Policy) -> Callable[[Show], FileSets]:
        """What answers for sets, once it is told how files are shown."""
        return partial(
            FileSets,
            journal=self._journal,
            catalog=self._catalog,
            deliver=self._deliver,
            bell=self._bell,
            clock=self._clock,
            faults=self._faults,
            policy=policy,
        )

    def _make_doctor(self) -> Doctor:
        config = self._config
        kind = "service" if config.embedded is None else "embedded"
        spools = [config.state_dir / "spool", *config.pool_folders]
        return Doctor(
            store=self._store,
            examiner=self._examiner,
            checksums=self._checksums,
            scratch=self._scratch,
            journal=self._journal,
            catalog=self._catalog,
            pins=self._pins,
            machine=Host(config.state_dir, spools, kind, config.limits.memory),
            threads=self._disk,
            health=self._health,
            clock=self._clock,
            number=self._number,
            quota_bytes=config.spool.quota,
            named=config.store.checksum != "auto",
        )

    async def _start_watching(self, folders: list[Path]) -> None:
        """Health, readiness and metrics. They come before recovery, which may take long: alive, and not ready."""
        from ml_dashd.edge.http import HttpServer  # noqa: PLC0415 an embedded daemon saves the third of a second

        http, clock, journal = self._config.http, self._clock, self._journal
        self._watchers = Pool(WATCH_THREADS, "watch", self._polite)
        backlog = Shared(journal.backlog, clock)
        disks = disks_of(folders, disk.look, self._watchers, clock)
        observer = Observer(
            journal=journal,
            backlog=backlog,
            pins=self._pins,
            threads=self._watchers,
            disks=disks.ask,
            connections=self._connected,
            sending=self._pace.sending,
            circuits=self._breaker.count,
            checks={
                "daemon": self._check_phase,
                "journal": journal_check(journal),
                "node": catalog_check(self._number_trouble),
                "catalog": catalog_check(self._catalog.trouble),
                "experiments": catalog_check(self._runs.trouble),
                "store": store_check(backlog),
                "spool": spool_check(self._health.spool_trouble, disks.ask),
            },
            clock=clock,
            meter=self._meter,
            render=self._render,
        )
        self._http = HttpServer(parse_listen(http.listen), int(http.socket_mode, 8), observer)
        await self._http.start()
        self._chores.append(asyncio.create_task(observer.watch_lag()))

    async def _stop_watching(self) -> None:
        if self._http is not None:
            await self._http.stop()
            self._watchers.close()

    async def _check_phase(self) -> Trouble | None:
        return self._phase

    def _connected(self) -> int:
        return 0 if self._phase is STARTING else self._server.connections

    async def _stop(self) -> None:
        """Sends what it can in its time, hand-offs taken meanwhile included; then takes nothing more, and closes."""
        end = self._clock.monotonic() + self._config.daemon.drain_timeout
        await self._drain.before_stop(self._config.daemon.drain_timeout)
        await self._server.stop()
        if self._adoption is not None:
            await self._adoption.close()
            self._inbox.close()
        await self._overwrites.close()
        await self._accept.close(max(0.0, end - self._clock.monotonic()))
        ending = (self._copying, self._mirroring, self._keeping, self._delivering)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        await self._mirror.close()
        await self._worker.stop()
        await self._drain.after_stop()
        await self._stop_watching()
        await self._store.close()
        self._slots.close()
        self._pins.close()
        self._heartbeat.cancel()
        await asyncio.gather(self._heartbeat, return_exceptions=True)
        await notice.remove(self._config.state_dir)
        if self._embedded is not None:
            await self._embedded.carry()
            self._embedded.leave()
        await self._runs.close()
        await self._catalog.close()
        self._journal.close()
        for pool in (self._threads, self._quick, self._disk, self._warming, self._leasing):
            pool.close()

    async def _beat(self) -> None:
        if self._systemd.present:
            await Heartbeat(self._journal, self._health, self._systemd, self._clock).run()

    async def _end_when_idle(self, stop: asyncio.Event) -> None:
        """An embedded daemon ends when nobody is connected and nothing is on its way for `idle_timeout`."""
        last_busy = self._clock.monotonic()
        while self._clock.monotonic() - last_busy < self._config.daemon.idle_timeout:
            await self._clock.sleep(min(IDLE_LOOK_S, self._config.daemon.idle_timeout / 4))
            if self._server.connections or await self._journal.due_count():
                last_busy = self._clock.monotonic()
        log.info("idle_end")
        stop.set()


def _printable(path: str) -> str:
    """A path for messages: what is not UTF-8 in it is escaped."""
    return os.fsencode(path).decode(errors="backslashreplace")


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
    _run_loop(Daemon(config).run(ready))


def _run_loop(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)
