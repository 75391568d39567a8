"""The daemon at a glance: all that an operator asks for, and no name of a file or a user."""

from __future__ import annotations

import json
import re

import pytest

from ml_dash.errors import Code
from ml_dashd.core.figures import Backlog, Blocked, Disk, Figures, Sending, StateCount, Summary
from ml_dashd.core.model import FileRecord, Job, Pin, PinKind, Trouble
from ml_dashd.core.overview import NEWEST, Running, overview
from ml_dashd.core.states import State
from ml_dashd.edge.status_page import STYLE, as_html, duration, size

NOW = 1_000_000_000
RUNNING = Running("1.2", NOW - 90_061_000, 10 << 30)
FULL = Trouble(Code.STORE_FULL, "put a/secret-name.pt: full", "free <space>")
COUNTED = {"retries": {"full": 3}, "failures": {"SOURCE_CHANGED": 1}}
GIB = 1 << 30


def figures(backlog: Backlog | None) -> Figures:
    disks = [Disk("/spool", 3 * GIB, read_only=False)] if backlog else []
    sending = Sending({"large": 2}, 8, 2.5e8)
    spool, age = (GIB, 75.5) if backlog else (None, None)
    return Figures(backlog, age, spool, disks, 4, {"store": False, "spool": True}, sending, {"store": 1})


def failed(number: int, trouble: Trouble | None = FULL) -> Job:
    record = FileRecord(number, 0, "ns", "cv", "x", "", "secret-name.pt", 10, "", NOW - 5000, NOW - 5000)
    return Job(record, Pin(PinKind.LINK, source="/home/alice/secret-name.pt"), State.FAILED, trouble=trouble)


BACKLOG = Backlog(
    (StateCount(State.QUEUED, 5, 5 * GIB), StateCount(State.FAILED, 1, 10)), NOW - 75_500, (Blocked(FULL, 5),)
)
SUMMARY = Summary(
    (StateCount(State.QUEUED, 5, 5 * GIB), StateCount(State.DONE, 7, 70)),
    None,
    failed=tuple(failed(number, None if number == 0 else FULL) for number in range(NEWEST + 1)),
)


def test_all_that_an_operator_asks_for() -> None:
    seen = overview(RUNNING, figures(BACKLOG), {"store": FULL}, SUMMARY, COUNTED, NOW)
    assert json.loads(json.dumps(seen)) == seen
    assert (seen["version"], seen["uptimeSeconds"], seen["ready"]) == ("1.2", 90_061, False)
    assert seen["reasons"] == [
        {"check": "store", "code": "STORE_FULL", "message": FULL.message, "hint": "free <space>"}
    ]
    assert seen["files"] == {"QUEUED": {"files": 5, "bytes": 5 * GIB}, "DONE": {"files": 7, "bytes": 70}}
    assert seen["queue"] == {"files": 5, "bytes": 5 * GIB, "oldestSeconds": 75.5}
    assert seen["blocked"] == [{"files": 5, "code": "STORE_FULL", "hint": "free <space>"}]
    assert len(seen["failed"]) == NEWEST
    assert seen["failed"][0] == {"id": "0", "secondsAgo": 5, "code": "", "hint": ""}
    assert seen["failed"][1] == {"id": "1", "secondsAgo": 5, "code": "STORE_FULL", "hint": "free <space>"}
    assert seen["spool"] == {"bytes": GIB, "quotaBytes": 10 * GIB, "freeBytes": [3 * GIB]}


def test_no_file_and_no_user_is_named() -> None:
    """What is said of a file may name it; a check's message never does."""
    seen = overview(RUNNING, figures(BACKLOG), {}, SUMMARY, COUNTED, NOW)
    for text in (json.dumps(seen), as_html(seen)):
        assert not re.search("secret-name|alice|/home", text)


def test_the_page_says_it_in_words_and_escapes_them() -> None:
    page = as_html(overview(RUNNING, figures(BACKLOG), {"store": FULL}, SUMMARY, COUNTED, NOW))
    for word in ("not ready", "STORE_FULL", "free &lt;space&gt;", "5.0 GiB", "1 min 15 s", "1 d 1 h", "of 10.0 GiB"):
        assert word in page
    assert "<space>" not in page
    assert not re.search(r"src=|href=|url\(|<script|@import", page), "it asks for nothing else"
    assert f"<style>{STYLE}</style>" in page


def test_what_did_not_answer_is_unknown() -> None:
    nothing = {"retries": {}, "failures": {}}
    seen = overview(Running("1", NOW, 0), figures(None), {}, None, nothing, NOW)
    assert seen["files"] is seen["blocked"] is seen["failed"] is seen["spool"]["bytes"] is None
    assert seen["queue"] == {"files": None, "bytes": None, "oldestSeconds": None}
    page = as_html(seen)
    assert "? files, ?" in page
    assert '<span class="ok">ready</span>' in page
    assert "Tried again" not in page, "what is empty is left out"


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1 << 20, "1.0 MiB"), (3 << 40, "3.0 TiB"), (None, "?")],
)
def test_sizes(size_bytes: int | None, text: str) -> None:
    assert size(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (61, "1 min 1 s"), (7260, "2 h 1 min"), (90_000, "1 d 1 h"), (None, "?")]
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
