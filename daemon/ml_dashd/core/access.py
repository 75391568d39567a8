"""Who may do what. The caller is a uid, stated by the kernel; a file belongs to the uid that handed it over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from ml_dash.errors import Code, error
from ml_dashd.core.model import EVERYBODY, Owned, Scope


class Right(StrEnum):
    """What somebody wants of a file."""

    READ = "read"
    """To list it, wait for it, download it."""
    CHANGE = "change"
    """To delete it; while it is on its way, to cancel it."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The table [access], and the daemon's own uid, which it serves always.

    Uid 0 is an admin only where it is named as one, or is the daemon's own: it is root in every container.
    """

    own_uid: int
    uids: frozenset[int] = frozenset()
    admins: frozenset[int] = frozenset()
    read: Mapping[str, frozenset[int]] = field(default_factory=dict)
    """Who may read everybody's files, by namespace."""
    write: Mapping[str, frozenset[int]] = field(default_factory=dict)
    """Who may hand files over, and have runs, in a namespace; in one that is not named, whoever is served."""

    @property
    def shared(self) -> bool:
        """Whether there is anybody to share with."""
        return bool((self.uids | self.admins).union(*self.read.values(), *self.write.values()) - {self.own_uid})

    def may_connect(self, uid: int) -> bool:
        """Whether this uid is served at all: it may hand files over, and then they are its own."""
        named = (*self.read.values(), *self.write.values())
        return uid in self.uids or self.is_admin(uid) or any(uid in each for each in named)

    def is_admin(self, uid: int) -> bool:
        """Whether it may do to anybody's files what it may do to its own, and drain the daemon."""
        return uid == self.own_uid or uid in self.admins

    def check_write(self, uid: int, namespace: str) -> None:
        """Raises ACCESS_DENIED where this uid may begin nothing new in that namespace."""
        if uid not in self.write.get(namespace, (uid,)) and not self.is_admin(uid):
            what = f"uid {uid} may not write in the namespace {namespace}"
            raise error(Code.ACCESS_DENIED, what, f"ask the operator to name it in access.write.{namespace}")

    def scope(self, uid: int) -> Scope:
        """The files that it may read, for those who look for many."""
        if self.is_admin(uid):
            return EVERYBODY
        return Scope(uid, frozenset(namespace for namespace, readers in self.read.items() if uid in readers))

    def may(self, right: Right, uid: int, record: Owned) -> bool:
        """Whether this uid may do that to this file, or set."""
        if right is Right.READ:
            return self.scope(uid).holds(record)
        return record.owner_uid == uid or self.is_admin(uid)


def has_room(mine: int, all_of_them: int, most: int, *, shared: bool) -> bool:
    """Whether a uid that has `mine` of `all_of_them` may have one more, where there are `most`.

    Nobody may have more than are left: one uid gets at most half, n uids get a share of 1/(n + 1) each, and there is
    always room for another. Who shares with nobody may have them all.
    """
    left = most - all_of_them
    return left > 0 and (mine < left or not shared)
