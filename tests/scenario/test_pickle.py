"""save_pkl: what pickle.load reads back, written straight into a slot; what can't be pickled is named."""

from __future__ import annotations

import pickle
import tracemalloc
from typing import Any

import numpy as np
import pytest

from ml_dash import Experiment, MLDashError
from ml_dash.errors import Code
from tests.harness import DaemonProcess
from tests.scenario.conftest import path_in_store

pytestmark = pytest.mark.slow

MIB = 1 << 20


class Point:
    """One that can be found again by its name."""

    def __init__(self, where: Any) -> None:
        self.where = where

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and np.array_equal(self.where, other.where)

    __hash__ = None  # type: ignore[assignment]


def loop() -> list[Any]:
    made: list[Any] = [1]
    made.append(made)
    return made


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"a": [1, 2.5, "ö"], "b": (b"x" * 70_000, {3})},
        Point(np.arange(100_000)),
        [np.zeros((300, 500), order="F"), np.float16(2)],
        {str(number): "x" * number for number in range(600)},
        [bytearray(b"y" * (5 * MIB)), memoryview(b"").tobytes()],
    ],
    ids=range(6),
)
def test_what_is_pickled_is_read_back(service: DaemonProcess, exp: Experiment, value: Any) -> None:
    result = exp.files("data").save_pkl(value, to="data.pkl", tags=["t"], metadata={"n": 1}, description="d")
    result.wait(30)
    assert (result["tags"], result["metadata"], result["description"]) == (["t"], {"n": 1}, "d")
    content = path_in_store(service, result).read_bytes()
    assert content[:2] == b"\x80\x05", "protocol 5"
    np.testing.assert_equal(pickle.loads(content), value)  # noqa: S301 our own


def test_what_holds_itself(service: DaemonProcess, exp: Experiment) -> None:
    result = exp.files("data").save_pkl(loop(), to="data.pkl")
    result.wait(30)
    loaded = pickle.loads(path_in_store(service, result).read_bytes())  # noqa: S301 our own
    assert loaded[1] is loaded


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (lambda: 0, "builtins.function"),
        ([1, (x for x in "abc")], "builtins.list"),
        ({"big": np.zeros(MIB), "lock": __import__("threading").Lock()}, "_thread.lock"),
        (type("Local", (), {})(), "Local"),
    ],
    ids=["a function", "a generator", "a lock behind a MiB", "a class that has no name"],
)
def test_what_can_not_be_pickled_is_named_and_leaves_nothing(exp: Experiment, value: Any, words: str) -> None:
    with pytest.raises(ValueError, match="save_pkl can't pickle") as raised:
        exp.files("data").save_pkl(value, to="data.pkl")
    assert isinstance(raised.value, MLDashError)
    assert raised.value.code is Code.UNSUPPORTED_TYPE
    assert words in str(raised.value)
    assert exp.files().list() == []


def test_a_large_buffer_is_never_in_memory_twice(service: DaemonProcess, exp: Experiment) -> None:
    value = {"a": np.arange(8 * MIB), "b": bytearray(32 * MIB), "c": b"z" * (32 * MIB)}
    tracemalloc.start()
    try:
        result = exp.files("data").save_pkl(value, to="data.pkl")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    result.wait(60)
    assert result["sizeBytes"] > 128 * MIB
    assert peak < 2 * MIB


def test_a_name_that_can_not_be_is_said_before_anything_is_pickled(exp: Experiment) -> None:
    class Never:
        def __reduce__(self) -> Any:
            raise AssertionError("it was pickled")

    with pytest.raises(TypeError, match="colour"):
        exp.files().save_pkl(Never(), to="a.pkl", colour="red")
    with pytest.raises(TypeError, match=r'metadata\["a"\] is an object'):
        exp.files().save_pkl(Never(), to="a.pkl", metadata={"a": object()})
