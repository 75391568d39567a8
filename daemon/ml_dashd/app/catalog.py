"""The catalog that the settings name, and what hangs on whether others share it: experiments, and the ids of files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ml_dashd.app.base import Base
from ml_dashd.app.tasks import Tasks
from ml_dashd.core.ids import IdSource
from ml_dashd.core.model import Trouble
from ml_dashd.edge.catalog_sqlite import SqliteCatalog
from ml_dashd.edge.place import Here
from ml_dashd.edge.runs_sqlite import SqliteRuns
from ml_dashd.embedded import Embedded
from ml_dashd.flow.forward import Forward
from ml_dashd.flow.lease import NodeNumber
from ml_dashd.flow.rounds import Alone
from ml_dashd.ports import Catalog, Ids, Journal, Leases, Rounds, Runs, ShownRuns

EMBEDDED_NODE = 0
"""The node number of a daemon that shares its catalog with nobody."""


@dataclass(frozen=True, slots=True)
class OpenCatalog:
    """The catalog. `own_runs` are those on this machine, which a fleet's go by way of.

    `highest` is the largest id in this machine's own; `leases` and `number` are of a catalog that several share.
    """

    catalog: Catalog
    runs: Runs
    own_runs: ShownRuns
    here: Here
    highest: int = 0
    leases: Leases | None = None
    number: NodeNumber | None = None
    rounds: Callable[[str], Rounds] = lambda _: Alone()
    """By the name of a chore, whose turn it is."""

    async def ids(self, journal: Journal) -> Ids:
        """Who makes ids from now on. The journal, which may be busy, is asked: health is to be answered before.

        Of a fleet's ids only those that this journal has accepted count: the others are other nodes'.
        """
        if self.number is None:
            return IdSource(EMBEDDED_NODE, max(await journal.high_water(), self.highest))
        await self.number.start()
        return self.number

    def number_trouble(self) -> Trouble | None:
        """Why no id can be made."""
        return None if self.number is None else self.number.trouble()

    async def close(self) -> None:
        """Lets go of files and connections."""
        await self.runs.close()
        await self.catalog.close()


async def open_catalog(base: Base, journal: Journal, embedded: Embedded | None, chores: Tasks) -> OpenCatalog:
    """SQLite's, or a fleet's: that one is asked when it is needed, and may be away now."""
    config = base.config
    runs = SqliteRuns(config.runs_path, base.faults)
    here = Here(config.state_dir)
    if config.fleet:
        return _of_fleet(base, journal, runs, here, chores)
    catalog = SqliteCatalog(config.catalog_path, base.faults)
    if embedded is not None:
        await embedded.keep(catalog)
    return OpenCatalog(catalog, runs, runs, here, await catalog.highest())


def _of_fleet(base: Base, journal: Journal, runs: SqliteRuns, here: Here, chores: Tasks) -> OpenCatalog:
    from ml_dashd.edge.catalog_mongo import MongoCatalog  # noqa: PLC0415 an extra
    from ml_dashd.edge.leases_mongo import MongoLeases  # noqa: PLC0415
    from ml_dashd.edge.mongo import Mongo  # noqa: PLC0415
    from ml_dashd.edge.mongo_schema import prepare  # noqa: PLC0415
    from ml_dashd.edge.rounds_mongo import MongoRounds  # noqa: PLC0415
    from ml_dashd.edge.runs_mongo import MongoRuns  # noqa: PLC0415

    mongo = Mongo(base.config.catalog.url, prepare)
    forward = Forward(here=runs, fleet=MongoRuns(mongo), clock=base.clock)
    chores.start(forward.run(), "forward")
    leases = MongoLeases(mongo)
    number = NodeNumber(leases, journal, here, base.clock)
    rounds = partial(MongoRounds, mongo)
    return OpenCatalog(MongoCatalog(mongo), forward, runs, here, leases=leases, number=number, rounds=rounds)
