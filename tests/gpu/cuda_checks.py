"""Saves of a real GPU's tensors, for a Python with torch and this package's extra `daemon`, on a machine with a GPU.

    PYTHONPATH=client:daemon python tests/gpu/cuda_checks.py

It ends with a line that says what held; the first thing that does not is a traceback. tests/gpu/test_cuda.py runs it.
"""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from ml_dash import Experiment, snapshot

LARGE = 1 << 20
WAIT_S = 60


def every_kind() -> dict[str, Any]:
    whole = torch.randn(1000, 1000, device="cuda")
    return {
        "whole": whole,
        "view": whole[10:20],
        "transposed": torch.randn(300, 4000, device="cuda").t(),
        "bf16": torch.randn(LARGE, device="cuda", dtype=torch.bfloat16),
        "fp8": torch.randn(LARGE, device="cuda").to(torch.float8_e4m3fn),
        "small": torch.tensor([True, False], device="cuda"),
        "empty": torch.empty(0, device="cuda"),
        "0-d": torch.tensor(3.5, device="cuda"),
        "parameter": torch.nn.Parameter(torch.randn(LARGE, device="cuda")),
        "sparse": torch.eye(1000, device="cuda").to_sparse(),
        "on the host": torch.randn(LARGE),
        "page-locked": torch.randn(LARGE).pin_memory(),
        "epoch": 3,
    }


def bits(tensor: torch.Tensor) -> bytes:
    dense = tensor.detach().to_dense() if tensor.is_sparse else tensor.detach()
    return bytes(dense.cpu().contiguous().flatten().view(torch.uint8).numpy())


def described(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return (value.dtype, value.device, value.shape, value.layout, value.requires_grad, bits(value))


def wipe(tensor: torch.Tensor) -> None:
    storage = (tensor._values() if tensor.is_sparse else tensor).untyped_storage()
    torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage).zero_()


def loaded(exp: Any, result: Any, folder: Path) -> Any:
    path = exp.files(file_id=result["id"]).download(to=folder / f"{result['id']}.pt")
    return torch.load(path, weights_only=True)


def check_it_is_as_it_was_at_the_call(exp: Any, folder: Path) -> None:
    for background in (False, True):
        state = every_kind()
        expected = {name: described(value) for name, value in state.items()}
        result = exp.files("here").save_torch(state, to="state.pt", background=background)
        for value in state.values():
            if isinstance(value, torch.Tensor):
                wipe(value)
        back = loaded(exp, result, folder)
        assert {name: described(value) for name, value in back.items()} == expected
        assert back["view"].data_ptr() == back["whole"][10:].data_ptr(), "what was shared is not any more"


def check_copies_run_behind_the_callers_stream(exp: Any, folder: Path) -> None:
    """On the default stream and on another: kernels that were begun before the call count, later ones do not."""
    for stream in (torch.cuda.default_stream(), torch.cuda.Stream()):
        with torch.cuda.stream(stream):
            one = torch.zeros(64 * LARGE, device="cuda")
            stream.synchronize()
            for _ in range(200):
                one.add_(1)
            result = exp.files("here").save_torch({"one": one}, to="one.pt", background=True)
            one.zero_()
        assert torch.equal(loaded(exp, result, folder)["one"], torch.full_like(one, 200))


def check_nothing_of_the_gpu_is_held_and_memory_is_bounded(exp: Any, folder: Path) -> None:
    go, third = threading.Event(), threading.Event()
    write_to = snapshot.Piece.write_to

    def write(piece: Any, slot: Any) -> None:
        assert go.wait(WAIT_S)
        assert piece.copied.is_pinned()
        write_to(piece, slot)

    def save_third() -> None:
        results.append(
            exp.files("here").save_torch(torch.full((LARGE,), 2.0, device="cuda"), to="2.pt", background=True)
        )
        third.set()

    torch.cuda.synchronize()
    used = torch.cuda.memory_allocated()
    with mock.patch.object(snapshot.Piece, "write_to", write):
        results = []
        for number in range(2):
            value = torch.full((LARGE,), float(number), device="cuda")
            results.append(exp.files("here").save_torch(value, to=f"{number}.pt", background=True))
            del value
        assert torch.cuda.memory_allocated() == used
        assert not any(one.acknowledged for one in results)
        thread = threading.Thread(target=save_third)
        thread.start()
        assert not third.wait(0.5)
        go.set()
        thread.join(WAIT_S)
        exp.flush(WAIT_S)
    for number, result in enumerate(results):
        assert torch.equal(loaded(exp, result, folder).cpu(), torch.full((LARGE,), float(number)))


def main() -> None:
    checks = [check for name, check in globals().items() if name.startswith("check_")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Experiment("tests/gpu/run", dash_root=folder / "root").run as exp:
            for check in checks:
                check(exp, folder)
    print(f"{len(checks)} checks held on {torch.cuda.get_device_name()}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
