"""What experiments, parameters and metrics may be called, and what they may hold."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ml_dash.errors import Code, MLDashError
from ml_dashd.core import runs
from ml_dashd.core.runs import MAX_PARAMS, RunKey, RunStatus


def refused(code: Code, call, *arguments) -> str:
    with pytest.raises(MLDashError) as caught:
        call(*arguments)
    assert caught.value.code is code
    assert caught.value.hint
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "name"), [("train", "train"), ("eval/small", "eval/small"), ("e\u0301", "é"), ("", ""), ("None", "")]
)
def test_a_metrics_name_is_a_path(text: str, name: str):
    assert runs.metric_name(text) == name


@pytest.mark.parametrize("text", ["/a", "a/", "a//b", "../a", ".ml-dash-x", "a\n", "a/data.jsonl", "a" * 256])
def test_a_metrics_name_that_can_be_no_folder(text: str):
    refused(Code.INVALID_PATH, runs.metric_name, text)


def test_a_metrics_name_that_is_too_long():
    assert len(runs.metric_name("/".join(["a" * 255] * 4))) == 1023
    assert "1024 bytes" in refused(Code.INVALID_PATH, runs.metric_name, "/".join(["a" * 255] * 5))


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ('{"a":1,\n"b": "größe"}', '{"a": 1, "b": "größe"}'),
        ('{"a": NaN, "b": -Infinity}', '{"a": NaN, "b": -Infinity}'),
        ('{"a": "\\ud800"}', '{"a": "\\ud800"}'),
    ],
)
def test_a_row_is_one_line_of_utf_8(text: str, written: str):
    assert runs.row_text(text) == written
    written.encode()


@pytest.mark.parametrize("text", ["", "[1]", "1", "{", "[" * 100_000, '{"a": ' + "1" * 5000 + "}"])
def test_what_is_no_row(text: str):
    refused(Code.INVALID_METADATA, runs.row_text, text)


def test_parameters_are_json_by_their_dotted_names():
    assert runs.new_params('{"lr": 0.1, "opt.name": "größe"}') == {"lr": "0.1", "opt.name": '"größe"'}


@pytest.mark.parametrize("name", ["", "a\nb", "a" * 1025, "\ud800"])
def test_a_parameters_name_can_be_printed(name: str):
    refused(Code.INVALID_ARGUMENT, runs.new_params, json.dumps({name: 1}))


@pytest.mark.parametrize("names", [("a", "a.b"), ("a.b.c", "a"), ("x", "a.b", "a.b.c.d")])
def test_a_value_that_is_a_group_in_one_call(names: tuple[str, ...]):
    assert "given together" in refused(Code.INVALID_ARGUMENT, runs.new_params, json.dumps(dict.fromkeys(names, 1)))


@pytest.mark.parametrize(
    ("new", "old", "gone"),
    [
        (["a"], ["a", "b"], []),
        (["a"], ["a.b", "a.c.d", "ab"], ["a.b", "a.c.d"]),
        (["a.b.c"], ["a", "b", "a.b"], ["a", "a.b"]),
        (["a.b"], ["a.b.c", "a.d"], ["a.b.c"]),
    ],
)
def test_the_newer_of_value_and_group_stays(new: list[str], old: list[str], gone: list[str]):
    assert runs.replaced_by(new, old) == gone


def test_parameters_have_bounds_together():
    runs.check_params({str(number): "1" for number in range(MAX_PARAMS)}, 1 << 20)
    refused(Code.INVALID_ARGUMENT, runs.check_params, {str(number): "1" for number in range(MAX_PARAMS + 1)}, 1 << 20)
    assert "at most 10000 and 100" in refused(Code.INVALID_ARGUMENT, runs.check_params, {"a": "1" * 100}, 100)


def test_parameters_as_one_object():
    assert runs.params_text({"b": "1", "größe": '"x"', "a": "null"}) == '{"a": null, "b": 1, "größe": "x"}'
    assert runs.params_text({}) == "{}"


def test_how_a_run_may_end():
    assert [runs.run_status(word) for word in ("COMPLETED", "FAILED", "CANCELLED")] == [
        RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED,
    ]  # fmt: skip
    for word in ("RUNNING", "done", ""):
        refused(Code.INVALID_ARGUMENT, runs.run_status, word)


@pytest.mark.parametrize(
    ("prefix", "parts"),
    [("", ()), ("a", ("a",)), ("a/", ("a",)), ("a/b", ("a", "b")), ("a/b/c/d", ("a", "b", "c/d"))],
)
def test_what_a_list_is_asked_below(prefix: str, parts: tuple[str, ...]):
    assert runs.listed_below(prefix) == parts


def test_a_list_below_what_is_no_prefix():
    refused(Code.INVALID_PREFIX, runs.listed_below, "a/../b")


def test_a_key_has_its_prefix():
    assert RunKey("a", "b", "c/d", 5).prefix == "a/b/c/d"


@pytest.mark.parametrize(
    ("folder", "is_it"),
    [
        ("a/b/c/files/12", True),
        ("a/b/c/d/files/p/q/12", True),
        ("a/b/c/metrics/files/12", True),
        ("a/b/c/files/12/x", False),
        ("a/b/c/metrics/12", False),
        ("a/b/files/12", False),
        ("a/b/c/files/x12", False),
        ("a/b/c/files/\u0661", False),
        ("a/b/c/files/", False),
    ],
)
def test_the_folder_of_a_stored_file(folder: str, is_it: bool):
    assert runs.is_of_a_file(folder) is is_it


@pytest.mark.parametrize(
    ("metric", "has_one"),
    [
        ("", True),
        ("train", True),
        ("metrics", True),
        ("a/metrics", True),
        ("metrics/a", False),
        ("x/metrics/c", False),
        ("files/12", False),
    ],
)
def test_the_folder_of_a_metric(metric: str, has_one: bool):
    assert runs.has_folder("a/b/c", metric) is has_one


def run(updated_ms: int, **said: object) -> runs.Run:
    given = {"status": RunStatus.RUNNING, "host": "", "user": "", "created_ms": updated_ms, "started_ms": 1} | said
    return runs.Run(RunKey("a", "b", "c", 1), updated_ms=updated_ms, **given)


def test_of_two_records_what_was_changed_last_stays():
    here, there = run(5, readme="here", tags=("h",)), run(6, metadata="{}", status=RunStatus.FAILED)
    both = run(6, created_ms=5, readme="here", tags=("h",), metadata="{}", status=RunStatus.FAILED)
    assert runs.brought_together(here, there) == both
    assert runs.brought_together(there, here) == both
    assert runs.brought_together(both, there) == both


def test_a_record_that_is_brought_moves_on_where_something_is_new():
    here, there = run(5, readme="here"), run(6, metadata="{}")
    kept, values = runs.joined_with(here, {"a": "1", "b": "2"}, there, {"a": "3"}) or (None, {})
    assert (kept, values) == (replace(runs.brought_together(here, there), updated_ms=6), {"a": "3", "b": "2"})
    assert runs.joined_with(kept, values, there, {"a": "3"}) is None
    older, values = runs.joined_with(there, {"a": "3"}, here, {"a": "1", "c": "4"}) or (None, {})
    assert (older.updated_ms, values) == (7, {"a": "3", "c": "4"}), "nobody who has the other misses this"
    assert "'loss' would be one too many" in str(runs.too_many_metrics("loss", 9))


def test_parameters_take_the_place_of_what_can_not_stand_beside_them():
    assert runs.laid_over({"opt": "1", "a": "2"}, {"opt.name": "3", "a": "4", "b": "5"}) == {
        "opt": "1",
        "a": "2",
        "b": "5",
    }


def test_how_a_run_fares_elsewhere():
    assert [runs.known_status(each) for each in RunStatus] == list(RunStatus)
    refused(Code.INVALID_ARGUMENT, runs.known_status, "PAUSED")
