"""Experiments, parameters and metrics of a fleet: MongoDB, a document an experiment, a metric, and a row.

A change of an experiment is a compare-and-set on its time of change, which only rises. Rows are appended in a
transaction, because those of a call belong to several metrics: all are there, or none. Every write can be repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from ml_dash.messages import METRICS as MOST_METRICS
from ml_dashd.core import names
from ml_dashd.core.model import Scope, Trouble
from ml_dashd.core.runs import (
    BroughtRow,
    MetricLength,
    NewRow,
    Opened,
    Row,
    Run,
    RunKey,
    RunStatus,
    check_params,
    joined_with,
    laid_over,
    too_many_metrics,
)
from ml_dashd.edge.mongo import Document, Mongo
from ml_dashd.edge.mongo_records import in_scope
from ml_dashd.edge.mongo_schema import EXPERIMENTS, METRICS, ROWS

if TYPE_CHECKING:
    from pymongo.asynchronous.client_session import AsyncClientSession

T = TypeVar("T")

TRANSACTION_S = 30.0
"""How long a transaction is tried: of writers of one metric one goes first, and the others try again."""
ORDER = [("namespace", 1), ("project", 1), ("experiment", 1), ("owner_uid", 1)]
_PLAIN = (
    "host", "user", "created_ms", "started_ms", "updated_ms", "ended_ms", "error", "readme", "metadata", "shown_ms",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _State:
    """An experiment's record, and its parameters with the time at which each was changed."""

    run: Run
    params: Mapping[str, tuple[str, int]]

    @property
    def values(self) -> dict[str, str]:
        return {name: value for name, (value, _) in self.params.items()}

    def with_params(self, values: Mapping[str, str], at_ms: int) -> _State:
        """With these in the place of all; those that are as they were keep their time."""
        old = self.params
        return replace(
            self,
            params={
                name: old[name] if name in old and old[name][0] == value else (value, at_ms)
                for name, value in values.items()
            },
        )

    def touched(self, at_ms: int, **changes: Any) -> _State:
        """Changed: its time rises even where the clock does not."""
        return replace(self, run=replace(self.run, updated_ms=max(at_ms, self.run.updated_ms + 1), **changes))


class MongoRuns:
    """The port `Runs`. It needs a replica set: a server that is alone has no transactions."""

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._experiments = mongo.collection(EXPERIMENTS)
        self._metrics = mongo.collection(METRICS)
        self._rows = mongo.collection(ROWS)

    # ---- runs and parameters

    async def open(self, key: RunKey, opened: Opened) -> None:
        said = {"readme": opened.readme, "tags": opened.tags, "bindrs": opened.bindrs, "metadata": opened.metadata}

        def change(state: _State) -> _State:
            return state.touched(
                opened.at_ms, status=RunStatus.RUNNING, error=None, ended_ms=None, started_ms=opened.at_ms,
                host=opened.host, user=opened.user, **{name: word for name, word in said.items() if word is not None},
            )  # fmt: skip

        await self._change(key, opened.at_ms, change)

    async def end(self, key: RunKey, status: RunStatus, at_ms: int, error: str | None) -> None:
        def change(state: _State) -> _State:
            if state.run.status is not RunStatus.RUNNING:
                return state
            return state.touched(at_ms, status=status, ended_ms=at_ms, error=error)

        await self._change(key, at_ms, change)

    async def set_params(self, key: RunKey, values: Mapping[str, str], at_ms: int, most_bytes: int) -> None:
        def change(state: _State) -> _State:
            if (merged := laid_over(values, state.values)) == state.values:
                return state
            check_params(merged, most_bytes)
            touched = state.touched(at_ms)
            return touched.with_params(merged, touched.run.updated_ms)

        await self._change(key, at_ms, change)

    async def bring(self, run: Run, params: Mapping[str, str], most_bytes: int) -> bool:
        return await self._mongo.call(self._bring(run, params, most_bytes))

    async def get(self, namespace: str, project: str, experiment: str, scope: Scope) -> list[Run]:
        asked = {"namespace": namespace, "project": project, "experiment": experiment, **in_scope(scope)}
        return await self._mongo.call(self._find(asked, [("created_ms", 1), ("_id", 1)], 0))

    async def select(self, below: Sequence[str], scope: Scope, after: RunKey | None, limit: int) -> list[Run]:
        conditions: list[Document] = [
            {name: value} for name, value in zip(("namespace", "project"), below, strict=False)
        ]
        if len(below) > 2:  # noqa: PLR2004 namespace and project
            low, high = names.below(below[2])
            conditions.append({"$or": [{"experiment": below[2]}, {"experiment": {"$gt": low, "$lt": high}}]})
        if after is not None:
            conditions.append(_after(after))
        if within := in_scope(scope):
            conditions.append(within)
        return await self._mongo.call(self._find({"$and": conditions} if conditions else {}, ORDER, limit))

    async def params(self, key: RunKey, since_ms: int | None = None) -> dict[str, str]:
        found = await self._mongo.call(self._experiments.find_one(_place(key), {"params": 1}))
        entries = [] if found is None else found["params"]
        return {name: value for name, value, at_ms in entries if since_ms is None or at_ms > since_ms}

    # ---- metrics

    async def append(
        self, key: RunKey, writer: int, number: int, rows: Sequence[NewRow], at_ms: int, *, on_disk: bool = False
    ) -> None:
        brought = [BroughtRow(row.metric, Row(at_ms, row.data, writer, number)) for row in rows]
        if brought:  # every write here is on disks when it returns
            await self._mongo.call(self._append(key, brought))

    async def bring_rows(self, key: RunKey, rows: Sequence[BroughtRow]) -> int:
        return await self._mongo.call(self._append(key, rows)) if rows else 0

    async def sync(self) -> None:
        """Nothing is left to be done: every write is journaled by a majority when it returns."""

    async def metrics(self, key: RunKey) -> list[MetricLength]:
        return await self._mongo.call(self._lengths(key))

    async def rows(self, key: RunKey, metric: str, start: int, limit: int) -> list[Row]:
        return await self._mongo.call(self._read(key, metric, start, limit)) if limit else []

    def trouble(self) -> Trouble | None:
        return self._mongo.trouble()

    async def close(self) -> None:
        await self._mongo.close()

    # ---- an experiment's document

    async def _change(self, key: RunKey, at_ms: int, change: Callable[[_State], _State]) -> None:
        await self._mongo.call(self._change_state(key, at_ms, change))

    async def _change_state(self, key: RunKey, at_ms: int, change: Callable[[_State], _State]) -> None:
        """Compare and set, until nobody was faster; what `change` raises leaves all as it was."""
        while True:
            found = await self._ensure(key, at_ms)
            state = _read_state(found)
            new = change(state)
            if new is state or await self._put(found, new):
                return

    async def _put(self, found: Document, new: _State) -> bool:
        seen = {"_id": found["_id"], "updated_ms": found["updated_ms"]}
        return bool((await self._experiments.update_one(seen, {"$set": _written(new)})).matched_count)

    async def _ensure(self, key: RunKey, at_ms: int) -> Document:
        """The experiment's document; one that is not known is begun."""
        from pymongo.errors import DuplicateKeyError  # noqa: PLC0415 optional

        while (found := await self._experiments.find_one(_place(key))) is None:
            run = Run(key, RunStatus.RUNNING, "", "", created_ms=at_ms, started_ms=at_ms, updated_ms=at_ms)
            try:
                await self._experiments.insert_one({**_place(key), **_written(_State(run, {})), "metrics": 0})
            except DuplicateKeyError:
                continue  # somebody else has begun it in this moment
        return found

    async def _bring(self, run: Run, params: Mapping[str, str], most_bytes: int) -> bool:
        from pymongo.errors import DuplicateKeyError  # noqa: PLC0415 optional

        while True:
            found = await self._experiments.find_one(_place(run.key))
            if found is None:
                check_params(params, most_bytes)
                fresh = _State(replace(run, shown_ms=0), {}).with_params(params, run.updated_ms)
                try:
                    await self._experiments.insert_one({**_place(run.key), **_written(fresh), "metrics": 0})
                except DuplicateKeyError:
                    continue
                return True
            state = _read_state(found)
            joined = joined_with(state.run, state.values, run, params)
            if joined is None:
                return False
            kept, values = joined
            check_params(values, most_bytes)
            if await self._put(found, replace(state, run=kept).with_params(values, kept.updated_ms)):
                return True

    async def _find(self, asked: Document, order: list[tuple[str, int]], limit: int) -> list[Run]:
        found = self._experiments.find(asked, {"params": 0}, sort=order, limit=limit)
        return [_read_run(each) for each in await found.to_list()]

    async def _number(self, key: RunKey) -> Any:
        found = await self._experiments.find_one(_place(key), {"_id": 1})
        return None if found is None else found["_id"]

    # ---- rows

    async def _append(self, key: RunKey, rows: Sequence[BroughtRow]) -> int:
        import pymongo  # noqa: PLC0415 optional

        experiment = await self._number(key)  # the record itself holds all parameters
        if experiment is None:
            experiment = (await self._ensure(key, min(each.row.created_ms for each in rows)))["_id"]

        async def work(session: AsyncClientSession) -> int:
            added = 0
            for metric in dict.fromkeys(each.metric for each in rows):
                some = [each.row for each in rows if each.metric == metric]
                added += await self._append_to(session, experiment, metric, some)
            return added

        with pymongo.timeout(TRANSACTION_S):
            async with self._mongo.client.start_session() as session:
                return await session.with_transaction(work)

    async def _append_to(self, session: AsyncClientSession, experiment: Any, name: str, rows: Sequence[Row]) -> int:
        """How many are new. The metric's document is written first: of two who append, one waits for the other."""
        metric = await self._metrics.find_one_and_update(
            {"experiment": experiment, "name": name}, {"$inc": {"turn": 1}}, session=session
        )
        if metric is None:
            metric = await self._new_metric(session, experiment, name)
        known = await self._known(session, metric["_id"], rows)
        made: list[Document] = []
        for row in rows:
            if (row.writer, row.number) not in known:
                known.add((row.writer, row.number))
                made.append(_row(metric["_id"], metric["rows"] + len(made), row))
        if made:
            await self._rows.insert_many(made, session=session)
            await self._metrics.update_one({"_id": metric["_id"]}, {"$inc": {"rows": len(made)}}, session=session)
        return len(made)

    async def _new_metric(self, session: AsyncClientSession, experiment: Any, name: str) -> Document:
        room = {"_id": experiment, "metrics": {"$lt": MOST_METRICS}}
        if not (await self._experiments.update_one(room, {"$inc": {"metrics": 1}}, session=session)).matched_count:
            raise too_many_metrics(name, MOST_METRICS)
        made = {"experiment": experiment, "name": name, "rows": 0, "shown": 0, "turn": 0}
        await self._metrics.insert_one(made, session=session)
        return made  # with its _id

    async def _known(self, session: AsyncClientSession, metric: Any, rows: Sequence[Row]) -> set[tuple[int, int]]:
        """Which of these rows the metric has, by writer and number."""
        by_writer: dict[int, list[int]] = {}
        for row in rows:
            by_writer.setdefault(row.writer, []).append(row.number)
        found: set[tuple[int, int]] = set()
        for writer, numbers in by_writer.items():
            asked = {"metric": metric, "writer": writer, "number": {"$in": numbers}}
            for each in await self._rows.find(asked, {"number": 1}, session=session).to_list():
                found.add((writer, each["number"]))
        return found

    async def _lengths(self, key: RunKey) -> list[MetricLength]:
        experiment = await self._number(key)
        found = await self._metrics.find({"experiment": experiment}, sort=[("name", 1)]).to_list()
        return [MetricLength(each["name"], each["rows"], each["shown"]) for each in found]

    async def _read(self, key: RunKey, metric: str, start: int, limit: int) -> list[Row]:
        asked = {"experiment": await self._number(key), "name": metric}
        if (found := await self._metrics.find_one(asked, {"_id": 1})) is None:
            return []
        rows = self._rows.find({"metric": found["_id"], "position": {"$gte": start}}, sort=[("position", 1)])
        return [
            Row(each["created_ms"], each["data"], each["writer"], each["number"])
            for each in await rows.limit(limit).to_list()
        ]


def _row(metric: Any, position: int, row: Row) -> Document:
    return {
        "metric": metric,
        "position": position,
        "writer": row.writer,
        "number": row.number,
        "created_ms": row.created_ms,
        "data": row.data,
    }


def _place(key: RunKey) -> Document:
    return {
        "namespace": key.namespace,
        "project": key.project,
        "experiment": key.experiment,
        "owner_uid": key.owner_uid,
    }


def _key(found: Document) -> RunKey:
    return RunKey(found["namespace"], found["project"], found["experiment"], found["owner_uid"])


def _after(key: RunKey) -> Document:
    """The condition that a place comes later in the order."""
    place = list(_place(key).items())
    return {"$or": [{**dict(place[:at]), name: {"$gt": value}} for at, (name, value) in enumerate(place)]}


def _written(state: _State) -> Document:
    run = state.run
    plain = {name: getattr(run, name) for name in _PLAIN}
    params = [[name, value, at_ms] for name, (value, at_ms) in sorted(state.params.items())]
    return {
        **plain,
        "status": str(run.status),
        "tags": list(run.tags),
        "bindrs": list(run.bindrs),
        "params": params,
    }


def _read_run(found: Document) -> Run:
    plain = {name: found[name] for name in _PLAIN}
    tags, bindrs = tuple(found["tags"]), tuple(found["bindrs"])
    return Run(key=_key(found), status=RunStatus(found["status"]), tags=tags, bindrs=bindrs, **plain)


def _read_state(found: Document) -> _State:
    return _State(_read_run(found), {name: (value, at_ms) for name, value, at_ms in found["params"]})
