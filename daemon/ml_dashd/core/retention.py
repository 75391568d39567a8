"""Which versions of a path are kept: the newest, and those that somebody has tagged to stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ml_dashd.core.model import FileRecord


@dataclass(frozen=True, slots=True)
class Rule:
    """Of each path the `keep_last` newest versions of each owner stay, and all that have one of `keep_tags`."""

    keep_last: int
    keep_tags: frozenset[str] = frozenset()


class Sieve:
    """Takes stored versions in the order of (path, newest first), and says of each whether it is one too many.

    A version that is on its way is none of them: what may still fail must not push out what is stored. A tagged one
    counts as one of the newest where it is. Nobody's versions push out another's.
    """

    def __init__(self, rule: Rule, path: str = "", kept: Mapping[int, int] | None = None) -> None:
        self._rule = rule
        self._path = path
        self.kept = dict(kept or {})
        """Versions of the present path that are among the newest, by their owner."""

    def is_surplus(self, record: FileRecord) -> bool:
        if record.path != self._path:
            self._path, self.kept = record.path, {}
        kept = self.kept.get(record.owner_uid, 0)
        if kept < self._rule.keep_last:
            self.kept[record.owner_uid] = kept + 1
            return False
        return self._rule.keep_tags.isdisjoint(record.tags)
