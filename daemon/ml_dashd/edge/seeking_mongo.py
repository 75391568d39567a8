"""Which files a list has, found by their keys alone: what can't be in it is passed over by a seek, and not read.

Of a glob `core/narrow.py` says where the next path may be that fits it: behind a folder of which nothing does, say.
Older versions are passed over where the newest of each path are asked for.
"""

from __future__ import annotations

from itertools import pairwise, takewhile
from typing import TYPE_CHECKING, Any

from ml_dashd.core import names, narrow
from ml_dashd.core.model import Selection
from ml_dashd.core.spans import Span, spans
from ml_dashd.edge.mongo import Document
from ml_dashd.edge.mongo_records import ORDER, index, is_of_keys, question

if TYPE_CHECKING:
    from pymongo.asynchronous.client_session import AsyncClientSession
    from pymongo.asynchronous.collection import AsyncCollection

LEAST, MOST = 64, 4096
"""Keys of a page behind a seek, which costs as much as reading some hundred; and where seeks pass over nothing."""
FEW = 8
"""Keys that are read to see which path comes next, where each has many versions."""


class Seeker:
    """Answers one Selection from the files as they are in one session."""

    def __init__(
        self, files: AsyncCollection[Document], session: AsyncClientSession, selection: Selection, *, pending: bool
    ) -> None:
        self._files = files
        self._session = session
        self._selection = selection
        self._pending = pending
        self._index = index(selection, pending=pending)
        self._base = f"{selection.prefix}/" if selection.prefix else ""

    async def ids(self) -> list[int]:
        """The ids of a page, in its order."""
        found: list[int] = []
        for span in spans(self._selection):
            left = self._selection.limit - len(found)
            found += await (self._of_path(span, left) if span.only else self._of_span(span, left))
            if len(found) >= self._selection.limit:
                break
        return found

    async def _of_path(self, span: Span, limit: int) -> list[int]:
        return [key["_id"] for key in await self._keys(span, 1 if self._selection.latest else limit)]

    async def _of_span(self, span: Span, limit: int) -> list[int]:
        """Pages of keys, from wherever the next one may fit. Older versions are skipped once most are that."""
        ids: list[int] = []
        low, most, keys_of = self._onward(span.low), limit, self._keys
        while low is not None:
            keys = await keys_of(Span(low, span.high), most)
            there = self._newest(keys) if self._selection.latest else keys
            fitting = [key["_id"] for key in there if self._fits(key["path"])]
            ids += fitting[: limit - len(ids)]
            if len(keys) < most or len(ids) >= limit:
                break
            last = keys[-1]
            if not self._selection.latest and self._fits(last["path"]):
                ids += await self._of_path(Span(last["path"], only=True, id=last["_id"]), limit - len(ids))
            low = self._onward(last["path"])
            keys_of = self._keys
            if low != last["path"] or len(there) * FEW >= len(keys):
                most = self._next_size(most, keys, low)
            elif is_of_keys(self._selection, pending=self._pending):
                keys_of, most = self._firsts, max(limit, LEAST)
            else:
                most = max(FEW, most // FEW)
        return ids

    def _next_size(self, most: int, keys: list[Document], low: str | None) -> int:
        """Fewer keys where most of these lie in what is passed over now; else more, as a seek saves little."""
        passed = sum(1 for _ in takewhile(lambda key: self._onward(key["path"]) == low, reversed(keys)))
        is_far = low != keys[-1]["path"] and passed * 2 > len(keys)
        return LEAST if is_far else min(most * 2, MOST)

    def _onward(self, path: str) -> str | None:
        """Where to read on behind a path."""
        pattern = self._selection.pattern
        if not pattern:
            return path
        low = narrow.leap(pattern, path.removeprefix(self._base))
        return None if low is None else self._base + low

    def _fits(self, path: str) -> bool:
        return not self._selection.pattern or names.matches(path, self._selection.prefix, self._selection.pattern)

    def _newest(self, keys: list[Document]) -> list[Document]:
        first: dict[str, Document] = {}
        for key in keys:
            first.setdefault(key["path"], key)
        return list(first.values())

    async def _keys(self, span: Span, limit: int) -> list[Document]:
        """The next keys. Of a glob that seeks can't follow MongoDB leaves out what does not fit."""
        glob = not narrow.may_leap(self._selection.pattern)
        asked = question(self._selection, span, pending=self._pending, glob=glob)
        found = self._files.find(asked, {"path": 1}, sort=ORDER, limit=limit, hint=self._index, session=self._session)
        return await found.to_list()

    async def _firsts(self, span: Span, limit: int) -> list[Document]:
        """The newest keys of the next paths: MongoDB seeks each, for these very stages (its DISTINCT_SCAN).

        It reads ahead some megabytes of them, so that this is for where it has to skip much. In shards the paths would
        come in no order: then the keys themselves are read.
        """
        asked = question(self._selection, span, pending=self._pending, glob=False)
        stages: list[dict[str, Any]] = [
            {"$match": asked},
            {"$sort": dict(ORDER)},
            {"$group": {"_id": "$path", "id": {"$first": "$_id"}}},
            {"$limit": limit},
        ]
        found = await self._files.aggregate(stages, hint=self._index, session=self._session)
        firsts = [{"path": each["_id"], "_id": each["id"]} for each in await found.to_list()]
        in_order = all(one["path"] < other["path"] for one, other in pairwise(firsts))
        return firsts if in_order else await self._keys(span, limit)
