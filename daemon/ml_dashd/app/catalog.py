"""The catalog that the settings name, and what hangs on whether others share it: experiments, and the ids of files."""

from __future__ import annotations

from dataclasses import dataclass

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
from ml_dashd.ports import Catalog, Ids, Journal, Leases, Runs, ShownRuns

EMBEDDED_NODE = 0
"""The node number of a daemon that shares its catalog with nobody."""


@dataclass(frozen=True, slots=True)
class OpenCatalog:
    """The catalog, and who makes ids for it. `own_runs` are those on this machine, which a fleet's go by way of.

    `leases` and `number` are of a catalog that several share.
    """

    catalog: Catalog
    runs: Runs
    own_runs: ShownRuns
    ids: Ids
    here: Here
    leases: Leases | None = None
    number: NodeNumber | None = None

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
    high_water = await journal.high_water()
    here = Here(config.state_dir)
    if config.fleet:
        return _of_fleet(base, journal, runs, here, high_water, chores)
    catalog = SqliteCatalog(config.catalog_path, base.faults)
    if embedded is not None:
        await embedded.keep(catalog)
    ids = IdSource(EMBEDDED_NODE, max(high_water, await catalog.highest()))
    return OpenCatalog(catalog, runs, runs, ids, here)


def _of_fleet(
    base: Base, journal: Journal, runs: SqliteRuns, here: Here, high_water: int, chores: Tasks
) -> OpenCatalog:
    """Of the ids that it has, only those that this journal has accepted count: the others are other nodes'."""
    from ml_dashd.edge.catalog_mongo import MongoCatalog  # noqa: PLC0415 an extra
    from ml_dashd.edge.leases_mongo import MongoLeases  # noqa: PLC0415
    from ml_dashd.edge.mongo import Mongo  # noqa: PLC0415
    from ml_dashd.edge.mongo_schema import prepare  # noqa: PLC0415
    from ml_dashd.edge.runs_mongo import MongoRuns  # noqa: PLC0415

    mongo = Mongo(base.config.catalog.url, prepare)
    forward = Forward(here=runs, fleet=MongoRuns(mongo), clock=base.clock)
    chores.start(forward.run(), "forward")
    leases = MongoLeases(mongo)
    number = NodeNumber(leases, journal, here, base.clock, high_water)
    return OpenCatalog(MongoCatalog(mongo), forward, runs, number, here, leases, number)
