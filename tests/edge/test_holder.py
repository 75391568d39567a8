"""The note in a root that says which host's daemon holds it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from ml_dash.errors import Code, MLDashError
from ml_dashd.edge.holder import NAME, STALE_S, Holder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root" / ".ml-dashd").mkdir(parents=True)
    return tmp_path / "root"


@pytest.fixture
def holder(root: Path, tmp_path: Path) -> Callable[[str], Holder]:
    """The claim of a host's daemon; the same host's next daemon has the same state folder."""

    def on(host: str) -> Holder:
        state = tmp_path / host
        state.mkdir(exist_ok=True)
        return Holder(root / ".ml-dashd", state, {"host": host, "pid": 7}, root)

    return on


def note(root: Path) -> Path:
    return root / ".ml-dashd" / NAME


def grow_old(root: Path, seconds: float) -> None:
    past = note(root).stat().st_mtime_ns - int(seconds * 1e9)
    os.utime(note(root), ns=(past, past))


def refusal(holder: Holder) -> str:
    with pytest.raises(MLDashError) as caught:
        holder.take()
    assert caught.value.code is Code.ROOT_HELD
    return caught.value.message


def test_one_holds_it_until_it_lets_go(root: Path, holder: Callable[[str], Holder]) -> None:
    one, two = holder("one"), holder("two")
    one.take()
    assert json.loads(note(root).read_text())["host"] == "one"
    assert refusal(two) == f"{root} is held by the daemon on one (pid 7, last heard of 0 s ago)"
    one.release()
    one.release()
    assert list((root / ".ml-dashd").iterdir()) == []
    two.take()
    refusal(one)


def test_the_next_daemon_of_the_same_host(root: Path, holder: Callable[[str], Holder]) -> None:
    """Its state folder's lock is free, so the one before it is dead."""
    holder("one").take()
    holder("one").take()
    refusal(holder("two"))


def test_a_stale_note_is_replaced_and_a_fresh_one_is_not(root: Path, holder: Callable[[str], Holder]) -> None:
    holder("one").take()
    grow_old(root, STALE_S - 20)
    assert "last heard of 28" in refusal(holder("two"))
    grow_old(root, 30)
    holder("two").take()
    assert json.loads(note(root).read_text())["host"] == "two"
    assert [path.name for path in (root / ".ml-dashd").iterdir()] == [NAME]


def test_renewing_keeps_it_fresh(root: Path, holder: Callable[[str], Holder]) -> None:
    one = holder("one")
    one.take()
    grow_old(root, STALE_S + 1)
    assert one.renew() is None
    refusal(holder("two"))


def test_one_that_stood_still_learns_that_it_has_lost(root: Path, holder: Callable[[str], Holder]) -> None:
    one, two = holder("one"), holder("two")
    one.take()
    grow_old(root, STALE_S + 1)
    two.take()
    lost = one.renew()
    assert lost is not None
    assert lost.code is Code.ROOT_HELD
    assert "on two" in lost.message
    one.release()  # what is not its own stays
    assert two.renew() is None
    assert json.loads(note(root).read_text())["host"] == "two"


def test_a_note_that_was_removed_is_made_again(root: Path, holder: Callable[[str], Holder]) -> None:
    one = holder("one")
    one.take()
    note(root).unlink()
    assert one.renew() is None
    refusal(holder("two"))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"'])
def test_a_note_that_is_still_being_written(root: Path, holder: Callable[[str], Holder], text: str) -> None:
    """Is somebody's; nobody can say whose. It grows old like any other."""
    note(root).write_text(text)
    assert "the daemon on another host" in refusal(holder("one"))
    grow_old(root, STALE_S + 1)
    holder("one").take()


def test_clocks_of_hosts_need_not_agree(
    root: Path, holder: Callable[[str], Holder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ages are told by the times that the file server writes."""
    holder("one").take()
    monkeypatch.setattr("time.time", lambda: 0.0)
    monkeypatch.setattr("time.time_ns", lambda: 0)
    refusal(holder("two"))


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_at_once_one_gets_it(root: Path, holder: Callable[[str], Holder], stale: bool) -> None:
    for attempt in range(20):
        if stale:
            holder("dead").take()
            grow_old(root, STALE_S + 1)
        hosts = [holder(f"host{number}") for number in range(8)]
        start = Barrier(len(hosts))

        def take(host: Holder, start: Barrier = start) -> bool:
            start.wait()
            try:
                host.take()
            except MLDashError as refused:
                return refused.code is not Code.ROOT_HELD
            return True

        with ThreadPoolExecutor(len(hosts)) as pool:
            took = list(pool.map(take, hosts))
        winners = [host for host, took_it in zip(hosts, took, strict=True) if took_it and host.renew() is None]
        assert len(winners) == 1, attempt
        winners[0].release()
        assert [path.name for path in (root / ".ml-dashd").iterdir()] == []
