"""A program for a Python that has torch and safetensors: what the real library reads is what was saved.

tests/scenario/test_safetensors.py runs it, with a folder to work in.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import load_file as load_numpys
from safetensors.torch import load_file, save_file
from torch_checks import run_checks, same

from ml_dash import MLDashError
from ml_dash.errors import Code

LARGE = 100_000


def path_of(exp: Any, result: Any) -> Path:
    return Path(exp.files(file_id=result["id"]).download(to=Path(sys.argv[-1]) / f"{result['id']}.safetensors"))


def save(exp: Any, value: Any, **described: Any) -> Any:
    return exp.files("models").save_safetensors(value, to="model.safetensors", **described)


def check_every_kind_of_tensor(exp: Any) -> None:
    types = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
             torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64,
             torch.float8_e4m3fn, torch.float8_e5m2]  # fmt: skip
    base = torch.arange(LARGE, dtype=torch.float32)
    state = {f"{one}-{size}": torch.arange(size).to(one) for one in types for size in (0, 1, 7, LARGE)}
    state |= {"0-d": torch.tensor(3.5), "parameter": torch.nn.Parameter(torch.ones(3)), "ü": torch.ones(2, 0, 3),
              "first": base[:10], "second": base[10:]}  # fmt: skip
    result = save(exp, state, metadata={"epoch": 3, "name": "best", "nested": {"a": [1]}}, tags=["x"])
    assert result["metadata"] == {"epoch": 3, "name": "best", "nested": {"a": [1]}}
    assert (result["tags"], result["pin"]) == (["x"], "slot")
    path = path_of(exp, result)
    loaded = load_file(path)
    assert loaded.keys() == state.keys()
    with torch.no_grad():
        assert [name for name, one in state.items() if not same(loaded[name], one.detach().clone())] == []
    with safe_open(path, "pt") as opened:
        assert opened.metadata() == {"format": "pt", "epoch": "3", "name": "best", "nested": '{"a": [1]}'}
    save_file(state, by_library := path.with_suffix(".library"))
    assert result["sizeBytes"] - by_library.stat().st_size < 200, "they lie as the library lays them"


def check_what_lies_otherwise_comes_back_by_its_values(exp: Any) -> None:
    value = {"transposed": torch.randn(300, 200).t(), "every second": torch.randn(LARGE)[::2],
             "conjugate": torch.randn(50, dtype=torch.complex64).conj()}  # fmt: skip
    loaded = load_file(path_of(exp, save(exp, value)))
    assert all(torch.equal(loaded[name], value[name].resolve_conj()) for name in value)


def check_arrays_of_numpy(exp: Any) -> None:
    value = {"a": np.arange(LARGE), "big-endian": np.arange(7, dtype=">i4"), "scattered": np.arange(20.0)[::2],
             "Fortran's": np.asfortranarray(np.arange(6).reshape(2, 3)), "0-d": np.float32(2),
             "b": np.zeros(3, bool)}  # fmt: skip
    path = path_of(exp, save(exp, value))
    loaded = load_numpys(path)
    assert {name: (one.tolist(), one.dtype) for name, one in loaded.items()} == {
        name: (one.tolist(), np.asarray(one).dtype.newbyteorder("=")) for name, one in value.items()
    }
    with safe_open(path, "np") as opened:
        assert opened.metadata() == {"format": "np"}
    exp.files("models", metadata={"of": "all"}).save_safetensors({}, to="none.safetensors")
    path = path_of(exp, exp.files("models/none.safetensors").list()[0])
    with safe_open(path, "np") as opened:
        assert (opened.metadata()["of"], [*opened.keys()]) == ("all", [])


def check_what_is_refused(exp: Any) -> None:
    one = torch.ones(10)
    quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    refusals = {
        "a and b share memory": {"a": one, "b": one[5:]},
        "tied and transposed share memory": {"tied": torch.ones(3, 4).requires_grad_(), "transposed": None},
        "a is sparse_coo": {"a": one.to_sparse()},
        "a is quantized": {"a": quantized},
        "a is on meta": {"a": torch.ones(3, device="meta")},
        "a is of complex128": {"a": torch.ones(3, dtype=torch.complex128)},
        "a is int": {"a": 3},
        "not Tensor": one,
    }
    tied = refusals["tied and transposed share memory"]
    tied["transposed"] = tied["tied"].t()
    for said, value in refusals.items():
        failure = refusal(exp, value)
        assert failure.code is Code.UNSUPPORTED_TYPE, said
        assert said in str(failure)
        assert isinstance(failure, ValueError)
    for value, said in (({3: one}, "the name 3 is int"), ({"__metadata__": one}, "__metadata__")):
        assert said in str(refusal(exp, value))
    assert refusal(exp, {"a": one}, metadata={"a": object()}).code is Code.INVALID_METADATA
    assert refusal(exp, {"a": one}, metadata=3).code is Code.INVALID_METADATA
    assert exp.files().list() == []


def refusal(exp: Any, value: Any, **described: Any) -> MLDashError:
    try:
        save(exp, value, **described)
    except MLDashError as failure:
        return failure
    raise AssertionError(f"{value} was saved")


if __name__ == "__main__":
    run_checks(globals(), "safetensors")
