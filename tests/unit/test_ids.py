"""Ids only ever grow, whatever the clock does and however often the daemon starts."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_dashd.core.ids import EPOCH_MS, MAX_NODE, IdSource, node_of, time_of

NOW_MS = 1_760_000_000_000
LAST_MS = EPOCH_MS + 2**41 - 2000
clocks = st.integers(0, LAST_MS) | st.integers(NOW_MS - 3, NOW_MS + 3)
nodes = st.integers(0, MAX_NODE)


def test_the_layout():
    assert IdSource(node=5).next(NOW_MS) == (NOW_MS - EPOCH_MS) << 22 | 5 << 8
    assert EPOCH_MS == 1_704_067_200_000
    assert MAX_NODE == 16_383


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(nodes, st.lists(clocks, min_size=1, max_size=60))
def test_ids_increase_under_any_clock(node: int, times: list[int]):
    source = IdSource(node)
    made = [source.next(now) for now in times]
    assert all(earlier < later for earlier, later in pairwise([0, *made]))
    assert all(node_of(one) == node for one in made)
    assert all(one < 2**63 for one in made)


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(nodes, nodes, st.lists(st.lists(clocks, max_size=10), min_size=1, max_size=6))
def test_ids_increase_across_restarts(node: int, other: int, lives: list[list[int]]):
    high_water = IdSource(other).next(NOW_MS)
    for times in lives:
        source = IdSource(node, high_water)
        for now in times:
            made = source.next(now)
            assert made >> 22 > high_water >> 22 or (made >> 22, made & 255) > (high_water >> 22, high_water & 255)
            assert node_of(made) == node
            high_water = made


@settings(deadline=None, max_examples=100)
@given(nodes, st.integers(EPOCH_MS, LAST_MS))
def test_a_fresh_id_has_the_clocks_time(node: int, now: int):
    assert time_of(IdSource(node).next(now)) == now


def test_a_full_millisecond_borrows_from_the_next():
    source = IdSource(3)
    made = [source.next(NOW_MS) for _ in range(1000)]
    assert len(set(made)) == 1000
    assert made == sorted(made)
    assert [time_of(one) - NOW_MS for one in (made[0], made[255], made[256], made[999])] == [0, 0, 1, 3]
    assert {node_of(one) for one in made} == {3}
    assert time_of(source.next(NOW_MS + 10)) == NOW_MS + 10


def test_the_last_id_of_the_layout_has_63_bits():
    source = IdSource(MAX_NODE)
    last = [source.next(EPOCH_MS + 2**41 - 1) for _ in range(256)][-1]
    assert last == 2**63 - 1


def test_a_clock_before_the_epoch():
    source = IdSource(0)
    assert [source.next(0), source.next(0)] == [1, 2]


@pytest.mark.parametrize("node", [-1, MAX_NODE + 1])
def test_a_node_that_has_no_place(node: int):
    with pytest.raises(ValueError, match=rf"node {node} is not in 0 to 16383"):
        IdSource(node)


@pytest.mark.parametrize("node", [0, MAX_NODE])
def test_the_outermost_nodes(node: int):
    assert IdSource(node).node == node
    assert node_of(IdSource(node).next(NOW_MS)) == node


@given(nodes, nodes, clocks, clocks)
def test_an_id_that_came_from_elsewhere_is_not_given_out_again(node: int, other: int, now: int, later: int):
    """Of another node it could not be; of this one, all that follow are above it, and nothing goes back."""
    source = IdSource(node)
    first = source.next(now)
    foreign = IdSource(other).next(later)
    source.pass_over(foreign)
    following = source.next(now)
    assert following > first
    assert following != foreign
    if other == node:
        assert following > foreign
    else:
        assert following == IdSource(node, first).next(now)
