"""Circuits: what opens them, whom they hold up, how often the store is asked meanwhile, and what closes them."""

from __future__ import annotations

import pytest

from ml_dash.errors import Code
from ml_dashd.core.circuit import (
    OF_AN_EXPERIMENT,
    OF_THE_STORE,
    PROBE_CAP_S,
    PROBE_FLOOR_S,
    STORE,
    Circuits,
    codes_of,
)
from ml_dashd.core.model import Trouble
from ml_dashd.core.retry import Fault, decide

A, B = ("alice", "cv", "a"), ("bob", "nlp", "b")
TROUBLE = Trouble(Code.STORE_UNREACHABLE, "refused", "check the address")


def fail(circuits: Circuits, times: int, fault: Fault = Fault.UNREACHABLE, experiment=A, now: float = 0.0) -> None:
    for _ in range(times):
        circuits.failed(experiment, fault, TROUBLE, now, 0.5)


@pytest.mark.parametrize(("fault", "least"), OF_THE_STORE.items())
def test_what_is_wrong_with_the_store_holds_everybody_up(fault: Fault, least: int):
    circuits = Circuits()
    fail(circuits, least - 1, fault)
    assert circuits.holds(A) is None
    fail(circuits, 1, fault, B)
    assert circuits.holds(A) == circuits.holds(("some", "other", "one")) == (STORE, TROUBLE)
    assert circuits.opened() == [STORE]


@pytest.mark.parametrize(("fault", "least"), OF_AN_EXPERIMENT.items())
def test_what_one_experiment_is_refused_holds_up_that_one(fault: Fault, least: int):
    circuits = Circuits()
    fail(circuits, least - 1, fault, A)
    fail(circuits, least - 1, fault, B)
    assert circuits.opened() == []
    fail(circuits, 1, fault, A)
    assert circuits.holds(A) == (A, TROUBLE)
    assert circuits.holds(B) is None


@pytest.mark.parametrize("fault", set(Fault) - set(OF_THE_STORE) - set(OF_AN_EXPERIMENT))
def test_what_is_wrong_with_a_file_holds_nobody_up(fault: Fault):
    circuits = Circuits()
    fail(circuits, 100, fault)
    assert circuits.opened() == []


def test_whoever_waits_is_let_go_by_the_code_of_its_trouble():
    """The journal finds them by it."""
    for fault in OF_THE_STORE:
        assert decide(fault, "", 1, 0.5).trouble.code in codes_of(STORE)
    for fault in OF_AN_EXPERIMENT:
        assert decide(fault, "", 1, 0.5).trouble.code in codes_of(A)


def test_failures_count_in_a_row_only():
    circuits = Circuits()
    for _ in range(10):
        fail(circuits, 2)
        assert circuits.answered(B) == []
    assert circuits.opened() == []


def test_a_success_closes_the_stores_and_the_experiments_own():
    circuits = Circuits()
    fail(circuits, 3, Fault.DENIED, A)
    fail(circuits, 3, Fault.DENIED, B)
    fail(circuits, 3)
    assert circuits.answered(A) == [STORE, A]
    assert circuits.holds(A) is None
    assert circuits.holds(B) == (B, TROUBLE)
    assert circuits.answered(A) == []


def test_a_refusal_is_an_answer_of_the_store():
    circuits = Circuits()
    fail(circuits, 3)
    assert circuits.failed(A, Fault.DENIED, TROUBLE, 0.0, 0.5) == [STORE]
    assert circuits.opened() == []
    fail(circuits, 3)
    assert circuits.failed(A, Fault.CORRUPT, TROUBLE, 0.0, 0.5) == [STORE]


def test_probes_come_with_full_jitter_and_seldom_and_never_stop():
    circuits = Circuits()
    assert circuits.next_s() is None
    assert circuits.ripe(0.0) is False
    fail(circuits, 3)
    pauses = []
    now = 0.0
    for probe in range(50):
        due = circuits.next_s()
        assert due is not None
        assert circuits.ripe(due - 0.001) is False
        assert circuits.ripe(due) is STORE
        pauses.append(due - now)
        now = due
        fail(circuits, 1, now=now)  # others that were on their way change nothing
        assert circuits.next_s() == due
        circuits.probed(STORE, now, jitter=(probe % 10) / 10)
    assert min(pauses) == pytest.approx(PROBE_FLOOR_S)
    assert max(pauses) <= PROBE_CAP_S
    assert len({round(pause, 3) for pause in pauses[-10:]}) > 5


def test_the_one_that_waits_longest_is_probed_first():
    circuits = Circuits()
    fail(circuits, 3, Fault.DENIED, A, now=1.0)
    fail(circuits, 3, Fault.DENIED, B, now=0.0)
    assert circuits.ripe(100.0) == B
    circuits.probed(B, 100.0, 0.5)
    assert circuits.ripe(100.0) == A
    circuits.hasten(50.0)
    assert circuits.next_s() == 50.0


def test_one_that_nobody_waits_behind_is_dropped():
    circuits = Circuits()
    fail(circuits, 3, Fault.DENIED, A)
    assert circuits.is_open(A)
    circuits.drop(A)
    circuits.drop(A)
    assert not circuits.is_open(A)
    circuits.probed(A, 1.0, 0.5)
    assert circuits.next_s() is None
