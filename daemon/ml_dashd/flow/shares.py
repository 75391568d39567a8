"""Shares of sets, as messages have them and as the core knows them."""

from __future__ import annotations

import hashlib

from ml_dash import messages as m
from ml_dash.errors import Code, error
from ml_dashd.core import names, sets
from ml_dashd.core.sets import Share

KEY_BYTES = 16


def key_of(uid: int, key: bytes) -> str:
    """The key by which a user's share is known: nobody can take another's, though its files may be read by many.

    Raises INVALID_ARGUMENT for one of the wrong length.
    """
    if len(key) != KEY_BYTES:
        raise error(Code.INVALID_ARGUMENT, f"the share's key has {len(key)} bytes", f"it has {KEY_BYTES}")
    return hashlib.sha256(b"%d " % uid + key).hexdigest()[: 2 * KEY_BYTES]


def share_of(place: m.Place, given: m.Share, uid: int) -> Share:
    """A share as the core knows it: its set's name is below the experiment, not below the place."""
    parts = names.clean(place.prefix, "the prefix") + names.clean(given.name, "the set's name")
    if not given.name:
        raise error(Code.INVALID_PATH, "the set has no name", 'pass one, such as "step_1000"')
    names.clean(given.attempt, "the attempt", Code.INVALID_ARGUMENT)
    if not given.attempt:
        raise error(Code.INVALID_ARGUMENT, "the attempt is empty", "leave it out, or pass the run's id")
    share = Share(key_of(uid, given.key), "/".join(parts), given.attempt, given.rank, given.world_size)
    sets.check(share)
    return share


def shown_share(share: Share | None) -> m.Share | None:
    """A share in a Record."""
    if share is None:
        return None
    return m.Share(
        key=bytes.fromhex(share.key),
        name=share.name,
        attempt=share.attempt,
        rank=share.rank,
        world_size=share.world_size,
    )
