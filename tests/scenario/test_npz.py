"""save_npz: what numpy.load gives back is what was saved, of any type and layout; and what it would not is refused."""

from __future__ import annotations

import io
import sys
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_dash import Experiment
from ml_dash.errors import Code
from tests.harness import DaemonProcess
from tests.scenario.conftest import path_in_store
from tests.scenario.test_files import refused

pytestmark = pytest.mark.slow

LARGE = 100_000
"""Items of an array that does not fit into a message."""


def kinds(size: int) -> dict[str, np.ndarray[Any, Any]]:
    plain = np.arange(size * 4)
    return {
        "f8": plain.astype("f8"), "f2": (plain % 1000).astype("f2"), "bool": plain % 3 == 0, "c16": plain.astype("c16"),
        "big-endian": plain.astype(">i4"), "text": plain.astype("U8"), "bytes": plain.astype("S9"),
        "dates": plain.astype("M8[s]"), "void": plain.view("V8"),
        "fields": np.array([(1, 2.5)] * size, dtype=[("a", "i4"), ("b", "f8")]),
        "Fortran's": np.asfortranarray(plain.reshape(4, -1)), "scattered": plain.reshape(4, -1)[:, ::2],
        "reversed": plain[::-1], "0-d": np.array(3.5), "empty": np.empty((0, 3)), "none of none": np.empty((3, 0, 2)),
        "a/b": plain[:3], "ü": plain[:3], "read-only": np.broadcast_to(np.float32(1), (size, 2)),
    }  # fmt: skip


def by_numpy(path: Any) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(path) as archive:
        return dict(archive)


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert [*ours] == [*theirs]
    for name, array in theirs.items():
        assert (ours[name].dtype, ours[name].shape, ours[name].flags.f_contiguous) == (
            array.dtype, array.shape, array.flags.f_contiguous,
        ), name  # fmt: skip
        assert ours[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("size", [5, LARGE])
def test_what_numpy_loads_is_what_it_had_saved_itself(service: DaemonProcess, exp: Experiment, size: int) -> None:
    arrays = kinds(size)
    theirs = io.BytesIO()
    np.savez(theirs, **arrays)
    theirs.seek(0)
    result = exp.files("data").save_npz(arrays, to="a.npz", tags=["x"], metadata={"epoch": 3})
    assert (result["pin"], result["tags"], result["metadata"]) == (
        "inline" if size == 5 else "slot", ["x"], {"epoch": 3},
    )  # fmt: skip
    result.wait(30)
    stored = path_in_store(service, result)
    assert_same(by_numpy(stored), by_numpy(theirs))
    with zipfile.ZipFile(stored) as archive:
        assert archive.testzip() is None, "a checksum is wrong"
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_keywords_and_what_becomes_an_array(exp: Experiment, tmp_path: Path) -> None:
    files = exp.files("data")
    result = files.save_npz({"x": [1, 2]}, y=np.ones(3), z=4, to="a.npz", description="b")
    assert result["description"] == "b"
    loaded = by_numpy(files.download("a.npz", to=tmp_path / "a.npz"))
    assert_same(loaded, {"x": np.array([1, 2]), "y": np.ones(3), "z": np.array(4)})
    files.save_npz({}, to="none.npz")
    assert by_numpy(files.download("none.npz", to=tmp_path / "none.npz")) == {}


def test_it_is_copied_once(exp: Experiment) -> None:
    """Not even what lies scattered is brought together in memory."""
    arrays = {"a": np.ones(1 << 22), "b": np.ones((1 << 12, 1 << 11))[:, ::2]}
    exp.files.save_npz(arrays, to="a.npz")
    tracemalloc.start()
    try:
        exp.files.save_npz(arrays, to="a.npz")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < sum(array.nbytes for array in arrays.values()) / 2, peak


@pytest.mark.parametrize(
    ("arrays", "code", "said"),
    [
        ({"a": np.array([{}])}, Code.UNSUPPORTED_TYPE, "a is an array of Python objects"),
        ({"a": np.ma.masked_array([1], [True])}, Code.UNSUPPORTED_TYPE, "a is masked"),
        ({"a": [[1], [1, 2]]}, Code.UNSUPPORTED_TYPE, "a is no array"),
        ({"a": np.zeros(2, [("ü☃", "i4")])}, Code.UNSUPPORTED_TYPE, "rename them"),
        ({3: np.ones(1)}, Code.INVALID_ARGUMENT, "the name 3 is int"),
        ({"\ud800": np.ones(1)}, Code.INVALID_ARGUMENT, "surrogate"),
        ({"a\0": np.ones(1)}, Code.INVALID_ARGUMENT, "NUL"),
        (np.ones(3), Code.UNSUPPORTED_TYPE, "save_npz takes a dict of arrays, not ndarray"),
    ],
)
def test_what_is_refused(exp: Experiment, arrays: Any, code: Code, said: str) -> None:
    refused(lambda: exp.files.save_npz(arrays, to="a.npz"), code, ValueError, said)
    assert exp.files().list() == []


def test_wrong_words(exp: Experiment) -> None:
    with pytest.raises(TypeError, match="'descriptoin'; did you mean 'description'"):
        exp.files.save_npz(a=np.ones(3), descriptoin="x", to="a.npz")
    refused(lambda: exp.files.save_npz({"a": [1]}, a=[2], to="a.npz"), Code.INVALID_ARGUMENT, ValueError)
    with pytest.raises(ValueError, match=r"save_npz\(\) or save_pkl"):
        exp.files.save(np.ones(3), to="a.npy")


def test_without_numpy(exp: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    refused(lambda: exp.files.save_npz({"a": [1]}, to="a.npz"), Code.MISSING_LIBRARY, ImportError)
