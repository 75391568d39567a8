"""A program for a Python that has torch: checks that save_torch is torch.save. tests/scenario/test_torch.py runs it.

Each check gets an open run; what fails is printed with its traceback, and the program goes on with the next.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import pickle
import sys
import threading
import traceback
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import api_page_checks
import torch
from torch import nn

from ml_dash import Experiment, MLDashError
from ml_dash.slot_writer import SlotWriter

BIG = 40_000
"""Elements of a tensor that does not fit into a message."""


def back(result: Any, weights_only: bool = True) -> Any:
    """What a file holds, as torch reads it; its checksums are right, and its SHA-256 is the recorded one."""
    exp, folder = result_of[result["id"]], Path(sys.argv[-1])
    path = Path(exp.files(file_id=result["id"]).download(to=folder / f"{result['id']}.pt"))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None, "a checksum is wrong"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == result["checksum"]
    assert path.stat().st_size == result["sizeBytes"]
    return torch.load(path, weights_only=weights_only)


result_of: dict[str, Any] = {}


def save(exp: Any, value: Any, to: str = "a.pt", **described: Any) -> Any:
    result = exp.files("here").save_torch(value, to=to, **described)
    result_of[result["id"]] = exp
    return result


def by_torch(value: Any, weights_only: bool = True) -> Any:
    out = io.BytesIO()
    torch.save(value, out)
    out.seek(0)
    return torch.load(out, weights_only=weights_only)


def same_tensor(one: torch.Tensor, other: torch.Tensor) -> bool:
    if (one.dtype, one.shape, one.layout) != (other.dtype, other.shape, other.layout):
        return False
    if one.layout is torch.sparse_coo:
        return same((one._values(), one._indices()), (other._values(), other._indices()))
    if one.layout is not torch.strided:
        return same((one.values(), one.crow_indices()), (other.values(), other.crow_indices()))
    return one.stride() == other.stride() and content_of(one) == content_of(other)


def content_of(tensor: torch.Tensor) -> bytes:
    """The bytes of the whole storage behind it."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).numpy().tobytes()


def same(one: Any, other: Any) -> bool:
    """Bit by bit, and of the same shape, layout, dtype, strides."""
    if isinstance(one, torch.Tensor):
        return same_tensor(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def model() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(300, 400), nn.BatchNorm1d(400), nn.ReLU(), nn.Linear(400, 3))


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    made = model()
    optimizer = torch.optim.AdamW(made.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        made(torch.randn(8, 300)).sum().backward()
        optimizer.step()
    return made, optimizer


def check_every_kind_of_tensor(exp: Any) -> None:
    dtypes = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.int64,
              torch.uint8, torch.bool, torch.complex64]  # fmt: skip
    values: dict[str, Any] = {
        f"{dtype}-{size}": torch.randint(0, 2, (size,)).to(dtype) for dtype in dtypes for size in (0, 1, 7, BIG)
    }
    values |= {
        "0-d": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "not contiguous": torch.arange(BIG).reshape(200, -1).t(),
        "a view": torch.arange(BIG)[5:9],
        "nan": torch.tensor([float("nan"), -0.0, float("inf")]),
        "grad": torch.ones(3, requires_grad=True),
        "coo": torch.eye(300).to_sparse(),
        "coo, not coalesced": torch.sparse_coo_tensor(torch.tensor([[0, 0]]), torch.tensor([1.0, 2.0]), (3,)),
        "csr": torch.eye(300).to_sparse_csr(),
        "parameter": nn.Parameter(torch.ones(4)),
    }
    with torch.no_grad():
        loaded, expected = back(save(exp, values)), by_torch(values)
        assert [name for name in values if not same(loaded[name], expected[name])] == []
        for name in ("0-d", "empty", "coo", "csr", "not contiguous", "torch.bfloat16-40000", "torch.bfloat16-7"):
            assert same(back(save(exp, values[name])), by_torch(values[name])), name


def check_state_dicts_and_modules(exp: Any) -> None:
    made, optimizer = trained()
    state = {"model": made.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "rng": torch.get_rng_state()}
    assert same(back(save(exp, state)), by_torch(state))
    again = back(save(exp, made), weights_only=False)
    assert same(again.state_dict(), made.state_dict())
    x = torch.randn(4, 300)
    assert torch.equal(again.eval()(x), made.eval()(x))
    assert same(back(save(exp, optimizer), weights_only=False).state_dict(), optimizer.state_dict())


def check_what_is_shared_stays_shared_and_is_saved_once(exp: Any) -> None:
    base = torch.arange(BIG, dtype=torch.float32)
    value = {"base": base, "view": base[100:], "again": base, "square": base.reshape(200, -1)}
    result = save(exp, value)
    loaded = back(result)
    assert same(loaded, value)
    assert len({one.untyped_storage().data_ptr() for one in loaded.values()}) == 1
    assert result["sizeBytes"] < base.nbytes + 5000
    loaded["base"][150] = -1
    assert loaded["view"][50] == -1


def check_what_changes_after_the_call_is_saved_as_it_was(exp: Any) -> None:
    tensors = [torch.full((1 << 20,), float(number)) for number in range(4)]
    results = []
    for tensor in tensors:
        results.append(save(exp, tensor))
        tensor.zero_()
    for number, result in enumerate(results):
        assert torch.equal(back(result), torch.full((1 << 20,), float(number)))


def check_slots_grow_for_what_could_not_be_foreseen(exp: Any) -> None:
    class Hidden:
        def __init__(self) -> None:
            self.__dict__ = {}

        def __reduce__(self) -> Any:
            return torch.cat, ([torch.ones(1 << 20), torch.zeros(1 << 20)],)

    loaded = back(save(exp, [torch.ones(BIG), Hidden()]), weights_only=False)
    assert torch.equal(loaded[1], torch.cat([torch.ones(1 << 20), torch.zeros(1 << 20)]))
    loaded = back(save(exp, Hidden()), weights_only=False)
    assert loaded.shape == (2 << 20,)
    text = {f"{number:01000}": number for number in range(3000)}
    assert back(save(exp, text)) == text


def check_metadata(exp: Any) -> None:
    result = exp.files("models").save_torch(
        model().state_dict(), to="best_model.pt", description="Best model from epoch 50", tags=["checkpoint", "best"],
        metadata={"epoch": 50, "val_accuracy": torch.tensor(0.5).item()},
    )  # fmt: skip
    assert result["description"] == "Best model from epoch 50"
    assert result["tags"] == ["checkpoint", "best"]
    assert result["metadata"] == {"epoch": 50, "val_accuracy": 0.5}
    assert (result["path"], result["filename"]) == ("/models", "best_model.pt")
    assert int(result["id"]) > 0
    result_of[result["id"]] = exp
    assert same(back(result), model().state_dict())


def check_what_fails_leaves_nothing(exp: Any) -> None:
    one = torch.ones(1 << 20)
    for value in ({"a": one, "b": lambda: 0}, [one, threading.Lock()], (one, (x for x in "abc"))):
        said = ""
        try:
            save(exp, value)
        except ValueError as refused:
            said = str(refused)
        assert f"builtins.{type(value).__name__}" in said
        assert "UNSUPPORTED_TYPE" in said

    class OursError(Exception):
        pass

    class Fails:
        def __reduce__(self) -> Any:
            raise OursError

    for _ in range(20):  # more often than a connection may have slots
        try:
            save(exp, [one, Fails()])
        except OursError:
            continue
        raise AssertionError("it was saved")
    assert exp.files().list() == []
    assert torch.equal(back(save(exp, one)), one)


def check_ctrl_c_in_the_middle(exp: Any) -> None:
    """It comes in the writer, mostly: torch's C++ makes a RuntimeError of it, we do not."""
    original = SlotWriter._put
    for moment in range(8):
        writes = itertools.count()

        def put(self: Any, view: memoryview, writes: Any = writes, moment: int = moment) -> None:
            if next(writes) == moment:
                raise KeyboardInterrupt
            original(self, view)

        SlotWriter._put = put  # type: ignore[method-assign]
        try:
            save(exp, {"a": torch.ones(BIG), "b": torch.ones(BIG)})
        except KeyboardInterrupt:
            continue
        finally:
            SlotWriter._put = original  # type: ignore[method-assign]
        assert next(writes) <= moment + 1, "it was not heard"
    assert all(each["sizeBytes"] > 8 * BIG for each in exp.files().list())
    assert torch.equal(back(save(exp, torch.ones(BIG))), torch.ones(BIG))


def pinned_memory() -> bool:
    return torch.utils.serialization.config.save.use_pinned_memory_for_d2h


class Looks:
    """What it sees of torch's options while it is saved: a GPU's tensors come through page-locked memory."""

    def __init__(self) -> None:
        self.seen: list[bool] = []

    def __reduce__(self) -> tuple[type, tuple[()]]:
        self.seen.append(pinned_memory())
        return dict, ()


def check_torchs_own_options_are_left_alone(exp: Any) -> None:
    options = torch.serialization
    one = torch.ones(1 << 20)
    for wanted in (True, False):
        options.set_crc32_options(wanted)
        save(exp, one)
        assert options.get_crc32_options() is wanted
        with contextlib.suppress(MLDashError):
            save(exp, [one, threading.Lock()])
        assert options.get_crc32_options() is wanted
    looks = Looks()
    save(exp, [one, looks])
    assert (looks.seen, pinned_memory()) == ([True], False)
    small = torch.ones(5)
    assert torch.equal(back(save(exp, small)), small), "what travels in a message has its checksums in any case"
    options.set_crc32_options(True)


def check_threads_and_torch_save_beside_them(exp: Any) -> None:
    stop = threading.Event()
    failed: list[BaseException] = []

    def saves(number: int) -> None:
        try:
            for step in range(5):
                value = torch.full((1 << 18,), float(number * 10 + step))
                assert torch.equal(back(save(exp, value, to=f"{number}-{step}.pt")), value)
        except BaseException as failure:  # noqa: BLE001 as above
            failed.append(failure)

    threads = [threading.Thread(target=saves, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        out = io.BytesIO()
        torch.save(torch.ones(1 << 16), out)
        with zipfile.ZipFile(out) as archive:
            assert archive.testzip() is None, "torch.save of another thread lacks its checksums"
    stop.set()
    assert not failed, failed
    assert torch.serialization.get_crc32_options() is True


def check_pickles_of_tensors(exp: Any) -> None:
    result = exp.files("data").save_pkl({"a": torch.ones(BIG), "b": [1, 2]}, to="data.pkl")
    path = exp.files("data/data.pkl").download(to=Path(sys.argv[-1]) / "data.pkl")
    loaded = pickle.loads(Path(path).read_bytes())  # noqa: S301 our own
    assert torch.equal(loaded["a"], torch.ones(BIG))
    assert loaded["b"] == [1, 2]
    assert result["pin"] == "slot"


def check_a_run_of_the_spec(exp: Any) -> None:
    """The end-to-end example, with a small model; params and metrics where this release has them."""
    if hasattr(exp, "params"):
        exp.params.set(model="small", epochs=4)
    made, best, kept = model(), 0.0, {}
    for epoch in range(4):
        accuracy = (epoch + 1) / 8
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.1)
        if hasattr(exp, "metrics"):
            exp.metrics.log(epoch=epoch, train={"loss": 1 - accuracy, "accuracy": accuracy})
        if (epoch + 1) % 2 == 0:
            exp.files("checkpoints").save_torch(
                made.state_dict(), to=f"epoch_{epoch + 1}.pt", tags=["checkpoint"],
                metadata={"epoch": epoch + 1, "accuracy": accuracy},
            )  # fmt: skip
        if accuracy > best:
            best = accuracy
            exp.files("models").save_torch(
                made.state_dict(), to="best.pt", description=f"Best model (acc={best:.4f})", tags=["best"],
                metadata={"epoch": epoch + 1, "accuracy": best},
            )  # fmt: skip
            kept = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    exp.files.flush(timeout=60)
    assert [each["filename"] for each in exp.files("checkpoints").list()] == ["epoch_2.pt", "epoch_4.pt"]
    versions = exp.files("models").list("best.pt")
    assert [each["description"] for each in versions] == [f"Best model (acc={n / 8:.4f})" for n in (4, 3, 2, 1)]
    assert all(len(each["checksum"]) == 64 for each in versions)
    path = exp.files("models/best.pt").download(to=Path(sys.argv[-1]) / "best.pt")
    assert same(dict(torch.load(path, weights_only=True)), kept)


def check_the_pages_of_its_calls(exp: Any) -> None:
    api_page_checks.check("files.save_torch")
    api_page_checks.check("BackgroundResult")


def run_checks(names: dict[str, Any], project: str) -> None:
    checks = {name.removeprefix("check_"): check for name, check in names.items() if name.startswith("check_")}
    said = {}
    for name, check in checks.items():
        try:
            with Experiment(prefix=f"alice/{project}/{name}", wait=False).run as exp:
                check(exp)
            said[name] = ""
        except BaseException:  # noqa: BLE001 it is told
            said[name] = traceback.format_exc()
    print(json.dumps(said))


if __name__ == "__main__":
    run_checks({**globals(), **vars(import_module("model_checks"))}, "torch")
