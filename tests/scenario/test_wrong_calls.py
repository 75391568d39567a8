"""What is passed by mistake is named, with what to pass instead, and nothing comes of it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import ml_dash
from ml_dash import Experiment, MLDashError
from ml_dash.errors import Code

pytestmark = pytest.mark.slow

WRONG: dict[str, tuple[Callable[[Any], Any], Code, str]] = {
    "a timeout of wait": (
        lambda exp: exp.files.save_text("a", to="a.txt").wait("x"), Code.INVALID_ARGUMENT, "timeout='x'",
    ),
    "a timeout in text": (lambda exp: exp.files.flush("5"), Code.INVALID_ARGUMENT, "timeout='5'"),
    "a timeout that is none": (lambda exp: exp.flush(float("nan")), Code.INVALID_ARGUMENT, "timeout=nan"),
    "wait": (lambda exp: type(exp)(exp.prefix, wait="x"), Code.INVALID_ARGUMENT, "wait='x'"),
    "exit_wait": (lambda exp: Experiment(exp.prefix, exit_wait="x"), Code.INVALID_ARGUMENT, "exit_wait='x'"),
    "one parameter": (lambda exp: exp.params.get("lr"), Code.INVALID_ARGUMENT, "get()['lr']"),
    "no path": (lambda exp: exp.files.upload(""), Code.INVALID_ARGUMENT, "the path of the file is empty"),
    "a folder": (lambda exp: exp.files.upload("/tmp"), Code.NOT_A_FILE, "/tmp is a folder (pass a regular file; for a"),
    "a number as a key": (
        lambda exp: exp.files.save_text("a", to="a.txt", metadata={1: 2}), Code.INVALID_METADATA, "key 1 is int",
    ),
    "keys that would be one": (
        lambda exp: exp.files.save_json({"a": {1: 2, "1": 3}}, to="a.json"),
        Code.INVALID_METADATA,
        "two keys that are '1'",
    ),
    "half a pair in a tag": (
        lambda exp: exp.files.save_text("a", to="a.txt", tags=["\ud800"]), Code.INVALID_ARGUMENT, "tags=",
    ),
    "half a pair in a description": (
        lambda exp: exp.files.save_text("a", to="a.txt", description="\ud800"), Code.INVALID_ARGUMENT, "description=",
    ),
    "the text of a pattern": (lambda exp: exp.files.read_text("*"), Code.NO_MATCH, "read_text() takes the name of one"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_argument_is_named(exp: Experiment, wrong: str) -> None:
    call, code, words = WRONG[wrong]
    with pytest.raises(MLDashError) as refused:
        call(exp)
    assert (refused.value.code, words in str(refused.value)) == (code, True), refused.value
    assert refused.value.hint


def test_numbers_as_nested_keys_become_text(exp: Experiment) -> None:
    saved = exp.files.save_json({"a": 1}, to="a.json", metadata={"by epoch": {2: 0.5, None: 0.6}})
    assert saved["metadata"] == {"by epoch": {"2": 0.5, "null": 0.6}}


def test_a_word_that_is_mistyped(exp: Experiment) -> None:
    with pytest.raises(TypeError, match="'tag'; did you mean 'tags'"):
        exp.files.save_text("a", to="a.txt", tag=["best"])
    assert exp.files().list() == []


def test_a_duplicate_of_what_is_deleted(exp: Experiment) -> None:
    saved = exp.files.save_text("a", to="a.txt").wait(30)
    exp.files("a.txt").delete()
    with pytest.raises(FileNotFoundError, match=f"no file has the id {saved['id']}"):
        exp.files.duplicate(saved, "b.txt")


def test_the_outermost_block_ends_the_run(exp: Experiment) -> None:
    experiment = Experiment(exp.prefix, socket=exp._connection.endpoint.socket)
    with experiment.run as outer:
        with experiment.run as inner:
            assert inner is outer
        outer.files.save_text("a", to="a.txt")
    with pytest.raises(RuntimeError, match="is not open"):
        _ = experiment.files


def test_an_update_clears_what_is_given_empty_and_keeps_the_rest(exp: Experiment) -> None:
    saved = exp.files.save_text("a", to="a.txt", description="of a", tags=["best"], metadata={"epoch": 1}).wait(30)
    file = exp.files(file_id=saved["id"])
    assert (file.update(tags=[])["tags"], file.update()["metadata"]) == ([], {"epoch": 1})
    assert (file.update(metadata={})["metadata"], file.update()["description"]) == ({}, "of a")
    assert file.update(description="")["description"] == ""
    (listed,) = exp.files.list("a.txt")
    assert (listed["tags"], listed["metadata"], listed["description"]) == ([], {}, "")


def test_what_is_shown_of_them(exp: Experiment, tmp_path: Path) -> None:
    assert repr(exp) == f"<Experiment {exp.prefix} RUNNING>"
    assert repr(exp.files("models")) == f"<FileSet {exp.prefix}/models>"
    assert repr(exp.files) == f"<Files {exp.prefix}>"
    assert repr(exp.metrics("train")) == "<Metric 'train'>"
    assert repr(Experiment("a/b/c", dash_root=tmp_path / "none")) == "<Experiment a/b/c CREATED>"
    assert not (tmp_path / "none").exists()
    assert ml_dash.__version__ == version("ml-dash")
    assert {"Experiment", "__version__"} <= {*dir(ml_dash)}
