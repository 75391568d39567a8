"""Sets: which rank a share is of, what is missing, which attempts mix, and which sets are too many."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ml_dash.errors import Code, MLDashError
from ml_dashd.core.sets import (
    MAX_WORLD,
    NAMED,
    SetKey,
    SetRecord,
    SetState,
    Share,
    called,
    check,
    mismatch,
    overlap,
    set_id,
    surplus,
)

KEY = SetKey(7, "alice", "cv", "resnet", "ckpt/step_1", "a")
SHARE = Share("0" * 32, "ckpt/step_1", "a", 0, 4)
OPEN = SetRecord("id", KEY, 1, 1, 4, SetState.OPEN, 0, 0, ranks=(1, 3))


@pytest.mark.parametrize(
    ("rank", "world_size", "named"),
    [(0, 0, "world_size=0"), (0, MAX_WORLD + 1, "world_size"), (1, 1, "rank=1"), (4, 4, "rank=4")],
)
def test_a_share_that_there_can_not_be(rank: int, world_size: int, named: str) -> None:
    with pytest.raises(ValueError, match=named) as refused:
        check(replace(SHARE, rank=rank, world_size=world_size))
    assert refused.value.code is Code.INVALID_ARGUMENT


def test_shares_that_there_can_be() -> None:
    check(SHARE)
    check(replace(SHARE, rank=MAX_WORLD - 1, world_size=MAX_WORLD))


def test_a_mismatch_names_the_set_and_both_counts() -> None:
    failure = mismatch(KEY, SHARE, 8)
    assert isinstance(failure, MLDashError)
    assert failure.code is Code.SET_MISMATCH
    assert called(KEY) in failure.message
    assert "world_size=4" in failure.message
    assert "with 8" in failure.message


def test_which_ranks_are_missing() -> None:
    assert (OPEN.delivered, OPEN.missing) == (2, (0, 2))
    many = replace(OPEN, world_size=1000, ranks=(0,))
    assert many.missing == tuple(range(1, NAMED + 1))
    complete = replace(OPEN, state=SetState.COMPLETE, ranks=())
    assert (complete.delivered, complete.missing) == (4, ())


@pytest.mark.parametrize(
    ("state", "world_size", "over"),
    [
        (SetState.OPEN, 4, False),
        (SetState.OPEN, 5, False),
        (SetState.COMPLETE, 4, True),
        (SetState.COMPLETE, 5, False),
        (SetState.OVERTAKEN, 4, True),
        (SetState.DROPPED, 4, True),
        (SetState.DROPPED, 5, True),
    ],
)
def test_when_a_share_begins_the_next_round(state: SetState, world_size: int, over: bool) -> None:
    """Not where the ranks count differently: of a set that is complete that is an error, too."""
    assert replace(OPEN, state=state, world_size=world_size).is_over_for(SHARE) is over


def test_a_round_has_the_same_id_on_every_node() -> None:
    rounds = {
        set_id(KEY, 1),
        set_id(KEY, 2),
        set_id(replace(KEY, attempt="b"), 1),
        set_id(replace(KEY, owner_uid=8), 1),
    }
    assert len(rounds) == 4
    assert set_id(replace(KEY), 1) in rounds
    assert all(len(one) == 32 for one in rounds)


@pytest.mark.parametrize(
    ("older", "newer", "mixes"),
    [
        ((1, 5), (6, 9), False),
        ((1, 7), (6, 9), True),
        ((8, 12), (6, 9), True),
        ((), (6, 9), False),
        ((1, 5), (), False),
    ],
)
def test_attempts_that_were_saved_at_the_same_time(older: tuple[int, ...], newer: tuple[int, ...], mixes: bool) -> None:
    assert overlap(older, newer) is mixes


def test_which_sets_are_too_many() -> None:
    """Of each owner and name by themselves."""
    other, foreign = replace(KEY, name="ckpt/step_2"), replace(KEY, owner_uid=8)
    sets = [replace(OPEN, number=9 - at, key=key) for at, key in enumerate([KEY, other, KEY, foreign, KEY, other])]
    assert [each.number for each in surplus(sets, 1)] == [7, 5, 4]
    assert [each.number for each in surplus(sets, 2)] == [5]
    assert surplus([], 1) == []
