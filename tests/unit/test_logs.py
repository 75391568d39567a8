"""One line an event, in both forms, whatever a name or an error holds."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ml_dashd import logs
from ml_dashd.logs import HumanFormatter, JsonFormatter

HEAD = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR|CRITICAL) ml_dashd\.\w+ ")
FORGED = "a.pt\n2026-01-01T00:00:00.000Z INFO ml_dashd.flow file_stored id=1 bytes=1 path=never"
HOSTILE = [
    FORGED,
    FORGED.replace("\n", "\r"),
    FORGED.replace("\n", "\r\n"),
    FORGED.replace("\n", "\x85"),
    FORGED.replace("\n", "\u2028"),
    'a" id=2 bytes=3 path="b',
    "a id=2",
    "a=b",
    "",
    "\\",
    "\x1b[2Jcleared\x07",
    "\u202etxt.exe",
    "half of a pair \udcff",
    "größe 模型.pt",
]


def record(event: str, fields: dict[str, Any], name: str = "ml_dashd.flow", **more: Any) -> logging.LogRecord:
    made = logging.getLogger(name).makeRecord(name, logging.INFO, "file", 1, event, (), None, extra=fields)
    for attribute, value in more.items():
        setattr(made, attribute, value)
    return made


def read_human(line: str) -> dict[str, str]:
    """The fields of a line, read as its grammar says."""
    fields = {}
    rest = line.split(" ", 4)[4]
    while rest:
        name, rest = rest.split("=", 1)
        if rest.startswith('"'):
            fields[name], end = json.JSONDecoder().raw_decode(rest)
        else:
            end = (rest + " ").index(" ")
            fields[name] = rest[:end]
        rest = rest[end:].removeprefix(" ")
    return fields


@given(st.text())
def test_a_line_is_one_line_and_says_exactly_what_was_given(path: str) -> None:
    assert_said(path)


@pytest.mark.parametrize("path", HOSTILE)
def test_a_hostile_name(path: str) -> None:
    assert_said(path)


def assert_said(path: str) -> None:
    said = logs._clean(path)
    event = record("file_stored", {"id": 7, "path": path, "bytes": 12})
    line = HumanFormatter().format(event)
    assert line.isprintable()
    assert HEAD.match(line)
    assert read_human(line) == {"id": "7", "path": said, "bytes": "12"}
    as_json = JsonFormatter().format(event)
    assert as_json.isprintable()
    shown = json.loads(as_json)
    assert (shown["event"], shown["level"], shown["logger"]) == ("file_stored", "info", "ml_dashd.flow")
    assert (shown["id"], shown["path"], shown["bytes"]) == (7, said, 12)
    assert line.startswith(shown["time"])


def test_plain_words_stand_bare() -> None:
    line = HumanFormatter().format(
        record("file_stored", {"id": 7, "path": "models/größe-1.pt", "ok": True, "no": None})
    )
    assert line.endswith(" ml_dashd.flow file_stored id=7 path=models/größe-1.pt ok=true no=null")


@example(float("nan"))
@example(2**63 - 1)
@given(st.none() | st.booleans() | st.integers() | st.floats() | st.binary() | st.text())
def test_json_is_json_whatever_a_field_is(value: Any) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    shown = json.loads(JsonFormatter().format(record("event", {"value": value})), parse_constant=refuse)
    if isinstance(value, int | None):
        assert shown["value"] == value
        assert type(shown["value"]) is type(value)


def test_a_long_field_is_cut() -> None:
    for formatter in (HumanFormatter(), JsonFormatter()):
        assert len(formatter.format(record("file_failed", {"error": "x" * 10_000_000}))) < logs.LONGEST + 200


def raised(failure: BaseException) -> Any:
    """What sys.exc_info() says where it is caught."""
    with pytest.raises(type(failure)) as caught:
        raise failure
    return caught._excinfo


def test_a_traceback_belongs_to_its_event() -> None:
    event = record("lane_stumbled", {"lane": "small"}, exc_info=raised(ValueError(FORGED)))
    first, *rest = HumanFormatter().format(event).split("\n")
    assert first.endswith("lane_stumbled lane=small")
    assert rest[0] == "    Traceback (most recent call last):"
    assert all(line.startswith("    ") and line.isprintable() for line in rest)
    assert "file_stored" in "".join(rest)
    as_json = JsonFormatter().format(event)
    assert "\n" not in as_json
    assert json.loads(as_json)["traceback"].endswith(f"ValueError: {FORGED}")


@pytest.mark.parametrize("formatter", [HumanFormatter(), JsonFormatter()], ids=["human", "json"])
def test_credentials_are_left_out_of_names_errors_and_tracebacks(formatter: logging.Formatter) -> None:
    failure = OSError("https://ann:hunter2@host/x?X-Amz-Signature=hunter2")
    event = record(
        "file_failed",
        {"error": failure, "path": "aws_secret_access_key=hunter2", "url": "mongodb://ann:hunter2@db"},
        exc_info=raised(RuntimeError("Authorization: Basic hunter2")),
    )
    line = formatter.format(event)
    assert "hunter2" not in line
    assert "RuntimeError" in line
    assert "hunter2" not in formatter.format(record("Authorization: hunter2", {}, name="botocore"))


def test_what_a_library_says_is_an_event_of_its_own() -> None:
    said = record("file_stored id=1", {"id": 2}, name="aiohttp.server")
    assert json.loads(JsonFormatter().format(said)) | {"time": ""} == {
        "time": "", "level": "info", "logger": "aiohttp.server", "event": "library_message",
        "message": "file_stored id=1",
    }  # fmt: skip
    assert HumanFormatter().format(said).endswith('aiohttp.server library_message message="file_stored id=1"')


@pytest.fixture
def untouched() -> Iterator[None]:
    """`set_up` is for a whole process: what it changes is put back."""
    root, level, handlers = logging.getLogger(), logging.getLogger().level, logging.getLogger().handlers[:]
    hooks = sys.excepthook, threading.excepthook
    root.handlers = []  # pytest's own are not closed by `force`
    yield
    logging.captureWarnings(capture=False)
    root.handlers = handlers
    root.setLevel(level)
    logging.getLogger(logs.OURS).setLevel(logging.NOTSET)
    sys.excepthook, threading.excepthook = hooks


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_the_level_is_the_daemons_own(level: str) -> None:
    stream = io.StringIO()
    logs.set_up(level, "json", logging.StreamHandler(stream))
    names = ("debug", "info", "warning", "error")
    for name in names:
        getattr(logging.getLogger("ml_dashd.flow"), name)("file_stored")
        getattr(logging.getLogger("botocore"), name)("signed headers")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    ours = [line["level"] for line in lines if line["event"] == "file_stored"]
    theirs = [line["level"] for line in lines if line["event"] == "library_message"]
    assert ours == list(names[names.index(level) :])
    assert theirs == list(names[max(2, names.index(level)) :])


@pytest.mark.usefixtures("untouched")
def test_what_python_would_print_is_an_event_too() -> None:
    stream = io.StringIO()
    logs.set_up("info", "json", logging.StreamHandler(stream))
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    sys.excepthook(*raised(RuntimeError("the end")))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    in_thread, at_end, warned = (json.loads(line) for line in stream.getvalue().splitlines())
    assert [in_thread["event"], at_end["event"], warned["event"]] == ["crashed", "crashed", "library_message"]
    assert "ZeroDivisionError" in in_thread["traceback"]
    assert at_end["traceback"].endswith("RuntimeError: the end")
    assert "old" in warned["message"]
