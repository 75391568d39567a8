"""Which versions give way: none that outlives the newer one, none that is stored, none that is tagged to stay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ml_dash.errors import Code
from ml_dashd.core.model import FileRecord, Job, Pin, PinKind, Trouble
from ml_dashd.core.sets import Share
from ml_dashd.core.states import State
from ml_dashd.core.supersede import Rule, newest_of_each_path, trouble_of


def job(number: int, path: str = "models/last.pt", *, owner: int = 7, tags: tuple[str, ...] = (), **of: Any) -> Job:
    prefix, _, filename = path.rpartition("/")
    record = FileRecord(number, owner, "alice", "cv", "resnet", prefix, filename, 5, "", 0, 0, tags=tags)
    return Job(record, of.pop("pin", Pin(PinKind.SLOT)), **of)


@pytest.mark.parametrize(
    ("patterns", "path", "asks"),
    [
        ((), "last.pt", False),
        (("last.pt",), "last.pt", True),
        (("last.pt",), "models/last.pt", False),
        (("best.pt", "**/last.pt"), "models/last.pt", True),
    ],
)
def test_which_paths_ask_by_themselves(patterns: tuple[str, ...], path: str, asks: bool) -> None:
    assert Rule(patterns).asks(job(1, path).record) is asks


@pytest.mark.parametrize("state", State)
def test_only_what_is_not_stored_gives_way(state: State) -> None:
    expected = state in (State.QUEUED, State.SENDING, State.COMPLETING)
    assert Rule().gives_way(job(1, state=state), job(2)) is expected


def test_what_is_deleted_already_does_not() -> None:
    assert not Rule().gives_way(job(1, cancel_requested=True), job(2))


def test_what_a_set_protects_does_not() -> None:
    older = job(1)
    share = Share("0" * 32, "models", "a", 0, 2)
    assert not Rule().gives_way(replace(older, record=replace(older.record, share=share)), job(2))


def test_what_is_tagged_to_stay_does_not() -> None:
    rule = Rule(keep_tags=frozenset({"best"}))
    assert not rule.gives_way(job(1, tags=("x", "best")), job(2))
    assert rule.gives_way(job(1, tags=("x",)), job(2, tags=("best",)))


HELD = {"pin": Pin(PinKind.FD)}
KEPT = {"pin": Pin(PinKind.LINK)}
ON_DISK = {"pin": Pin(PinKind.LINK), "on_disk": True}


@pytest.mark.parametrize("older", range(3))
@pytest.mark.parametrize("newer", range(3))
def test_it_gives_way_to_what_outlives_at_least_as_much(older: int, newer: int) -> None:
    levels = (HELD, KEPT, ON_DISK)
    assert Rule().gives_way(job(1, **levels[older]), job(2, **levels[newer])) is (newer >= older)


def test_the_newest_of_each_path_and_owner() -> None:
    asking = [
        job(3, supersedes=True),
        job(1, supersedes=True),
        job(4),
        job(2, owner=8, supersedes=True),
        job(5, "other", supersedes=True),
    ]
    assert [one.id for one in newest_of_each_path(asking)] == [3, 2, 5]


def test_what_is_said_of_it() -> None:
    away = Trouble(Code.STORE_UNAVAILABLE, "away", "wait")
    assert trouble_of(job(1, trouble=away)) == away
    said = trouble_of(job(1, trouble=away, superseded_by=23))
    assert said is not None
    assert said.code is Code.SUPERSEDED
    assert "file 23" in said.message
