"""What answers clients."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ml_dash.messages import Limits
from ml_dash.release import release
from ml_dashd.app.parts import Parts
from ml_dashd.config import Config, LimitsConfig
from ml_dashd.core.access import Policy
from ml_dashd.edge.host import Host
from ml_dashd.edge.inbox import InboxFolder
from ml_dashd.flow.accept import Accept
from ml_dashd.flow.again import Again
from ml_dashd.flow.amend import Amend
from ml_dashd.flow.arrivals import Arrivals
from ml_dashd.flow.audit import Audit
from ml_dashd.flow.browse import Browse
from ml_dashd.flow.doctor import Doctor
from ml_dashd.flow.duplicate import Duplicate
from ml_dashd.flow.fetch import Fetch
from ml_dashd.flow.findings import Findings
from ml_dashd.flow.inbox import Adoption
from ml_dashd.flow.nodes import Nodes
from ml_dashd.flow.operations import Identity, Operations
from ml_dashd.flow.pinning import Pinning
from ml_dashd.flow.prune import Prune
from ml_dashd.flow.runs import Experiments
from ml_dashd.flow.serve import Serve
from ml_dashd.flow.sets import FileSets
from ml_dashd.flow.shown import Shown
from ml_dashd.ports import Ids


@dataclass(frozen=True, slots=True)
class Answers:
    """`serve` answers; `inbox` and `adoption` are of a daemon that has a folder for what is left while it is down."""

    serve: Serve
    identity: Identity
    accept: Accept
    experiments: Experiments
    prune: Prune
    inbox: InboxFolder | None
    adoption: Adoption | None


def build_answers(parts: Parts, ids: Ids, policy: Policy, stop: Callable[[], None]) -> Answers:
    """`stop` ends the daemon."""
    base, storage, sending, upkeep = parts.base, parts.storage, parts.sending, parts.upkeep
    journal, catalog, clock, of_catalog = storage.journal, storage.catalog, base.clock, storage.of_catalog
    identity, sessions, shown = _identity(base.config, clock.now_ms()), set[int](), Shown(storage.pins, base.bell)
    accept = _accept(parts, ids, policy)
    inbox, adoption = _inbox(parts, ids, policy, accept)
    browse = Browse(
        journal=journal,
        catalog=catalog,
        pins=storage.pins,
        threads=base.threads,
        worker=sending.worker,
        bell=base.bell,
        clock=clock,
        policy=policy,
    )
    experiments = Experiments(runs=storage.runs, mirror=upkeep.mirror, policy=policy, clock=clock)
    nodes = Nodes(number=of_catalog.number, leases=of_catalog.leases, here=of_catalog.here, policy=policy, clock=clock)
    sets = FileSets(
        shown=shown,
        journal=journal,
        catalog=catalog,
        deliver=upkeep.deliver,
        bell=base.bell,
        clock=clock,
        faults=base.faults,
        policy=policy,
    )
    operations = Operations(
        identity=identity,
        sessions=sessions,
        shown=shown,
        browse=browse,
        drain=upkeep.drain,
        doctor=_doctor(parts),
        audit=Audit(browse=browse, store=storage.store, threads=base.threads, buffers=sending.buffers, clock=clock),
        again=Again(
            browse=browse,
            journal=journal,
            pins=storage.pins,
            threads=base.quick,
            finish=sending.finish,
            worker=sending.worker,
            policy=policy,
        ),
        sets=sets,
        sending=sending.pace.sending,
        limits=_limits(base.limits),
        journal=journal,
        pins=storage.pins,
        threads=base.quick,
        health=parts.sources.health,
        policy=policy,
        stop=stop,
    )
    findings = Findings(reconcile=upkeep.reconcile, policy=policy, clock=clock)
    prune = Prune(
        browse=browse,
        journal=journal,
        catalog=catalog,
        policy=policy,
        clock=clock,
        faults=base.faults,
        rounds=storage.of_catalog.rounds("retention"),
        holder=storage.of_catalog.here.token(),
    )
    serve = Serve(
        identity=identity,
        sessions=sessions,
        shown=shown,
        accept=accept,
        browse=browse,
        amend=Amend(browse=browse, journal=journal, catalog=catalog, bell=base.bell, clock=clock),
        duplicate=Duplicate(browse=browse, accept=accept, journal=journal, worker=sending.worker),
        prune=prune,
        fetch=Fetch(
            browse=browse,
            journal=journal,
            store=storage.store,
            pins=storage.pins,
            threads=base.threads,
            buffers=sending.buffers,
            clock=clock,
            part_bytes=base.config.store.part_size,
        ),
        inbox=adoption,
        journal=journal,
        slots=storage.slots,
        warm=upkeep.warm,
        threads=base.quick,
        health=parts.sources.health,
        others={
            **operations.answers,
            **experiments.answers,
            **nodes.answers,
            **sets.answers,
            **findings.answers,
        },
    )
    return Answers(serve, identity, accept, experiments, prune, inbox, adoption)


def _accept(parts: Parts, ids: Ids, policy: Policy) -> Accept:
    base, storage, sources, worker = parts.base, parts.storage, parts.sources, parts.sending.worker
    return Accept(
        journal=storage.journal,
        pinning=Pinning(storage.pins, base.quick, base.disk),
        slots=storage.slots,
        warm=parts.upkeep.warm,
        meter=base.meter,
        ids=ids,
        clock=base.clock,
        faults=base.faults,
        settle=sources.settle,
        write_back=sources.write_back,
        health=sources.health,
        copies=sources.copies,
        overwrites=sources.overwrites,
        supersede=sources.supersede,
        arrivals=Arrivals(storage.journal, storage.catalog, ids, base.clock),
        policy=policy,
        key_prefix=base.config.key_prefix,
        durability=base.config.spool.durability,
        wake=worker.wake,
    )


def _inbox(parts: Parts, ids: Ids, policy: Policy, accept: Accept) -> tuple[InboxFolder | None, Adoption | None]:
    base, storage = parts.base, parts.storage
    if not base.config.daemon.inbox:
        return None, None
    mode = int(base.config.access.socket_mode, 8)
    folder = InboxFolder(Path(base.config.daemon.inbox), mode, base.clock)
    return folder, Adoption(
        folder=folder,
        accept=accept,
        journal=storage.journal,
        catalog=storage.catalog,
        ids=ids,
        policy=policy,
        threads=base.disk,
        clock=base.clock,
        faults=base.faults,
    )


def _doctor(parts: Parts) -> Doctor:
    base, storage, config = parts.base, parts.storage, parts.base.config
    kind = "service" if config.embedded is None else "embedded"
    return Doctor(
        store=storage.store,
        examiner=storage.of_store.examiner,
        checksums=parts.sending.checksums,
        scratch=parts.sending.scratch,
        journal=storage.journal,
        catalog=storage.catalog,
        place=config.catalog_place,
        pins=storage.pins,
        machine=Host(config.state_dir, storage.spools, kind, base.limits.memory),
        threads=base.disk,
        health=parts.sources.health,
        clock=base.clock,
        number=storage.of_catalog.number,
        quota_bytes=config.spool.quota,
        named=config.store.checksum != "auto",
    )


def _identity(config: Config, started_ms: int) -> Identity:
    return Identity(
        version=release(),
        pid=os.getpid(),
        embedded=config.embedded is not None,
        store=config.store.url,
        state_dir=printable(config.daemon.state_dir),
        started_ms=started_ms,
        inbox=printable(config.daemon.inbox),
    )


def _limits(limits: LimitsConfig) -> Limits:
    return Limits(
        threads=limits.threads,
        nice=limits.nice,
        io_class=limits.io_class,
        uncached_from=limits.uncached_from,
        bandwidth=limits.bandwidth,
    )


def printable(path: str) -> str:
    """A path for messages: what is not UTF-8 in it is escaped."""
    return os.fsencode(path).decode(errors="backslashreplace")
