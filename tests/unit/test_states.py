"""The table is the design's, and closed."""

from __future__ import annotations

from itertools import pairwise, product

import pytest

from ml_dashd.core.states import TRANSITIONS, UNFINISHED, State, allows, diagram

MOVES = {(old, new) for old, row in TRANSITIONS.items() for new in row}


def test_every_state_has_a_row():
    assert set(TRANSITIONS) == set(State)


def test_every_move_leads_to_a_state_and_has_a_reason():
    for row in TRANSITIONS.values():
        for new, why in row.items():
            assert isinstance(new, State)
            assert why


def test_the_way_of_a_file():
    way = [State.QUEUED, State.SENDING, State.COMPLETING, State.VERIFIED, State.DONE]
    assert all(allows(old, new) for old, new in pairwise(way))


def test_what_is_over_stays_over():
    assert {state for state, row in TRANSITIONS.items() if not row} == {State.DONE, State.CANCELLED}


def test_only_verified_is_done():
    assert {old for old, new in MOVES if new is State.DONE} == {State.VERIFIED}


def test_no_verified_object_is_sent_again():
    """One fails only where another file has its id."""
    assert set(TRANSITIONS[State.VERIFIED]) == {State.DONE, State.CANCELLED, State.FAILED}


def test_only_a_retry_leaves_failed_for_the_queue():
    assert {old for old, new in MOVES if new is State.QUEUED} == {State.SENDING, State.COMPLETING, State.FAILED}


def test_unfinished_is_what_can_still_be_done_by_itself():
    assert set(State) - {State.DONE, State.FAILED, State.CANCELLED} == UNFINISHED


def test_every_state_can_be_reached():
    assert {new for _, new in MOVES} == set(State)


@pytest.mark.parametrize(("old", "new"), list(product(State, State)))
def test_allows_says_what_the_table_has(old: State, new: State):
    assert allows(old, new) is ((old, new) in MOVES)


def test_no_state_moves_to_itself():
    assert not any(allows(state, state) for state in State)


def test_the_diagram_has_every_move_and_no_other():
    first, second, *moves = diagram().splitlines()
    assert (first, second) == ("stateDiagram-v2", "    [*] --> QUEUED: acknowledged")
    assert len(moves) == len(MOVES)
    for old, row in TRANSITIONS.items():
        for new, why in row.items():
            assert f"    {old.value} --> {new.value}: {why}" in moves
