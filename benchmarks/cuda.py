"""How long save_torch blocks for tensors of a GPU, beside torch.save to the same disk and the bare copy to the host.

    PYTHONPATH=client:daemon python benchmarks/cuda.py [--quick] [--json] [--folder DIR]

For a machine with a GPU, and a Python that has torch and this package with its extra `daemon`. First a state of many
kinds of tensors goes there and back: it has to be the same, bit for bit, and what was shared is shared. Then each size
is saved in turns with its peers; a file is stored before the next is saved.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rig
import torch
from rig import GIB, MIB

from ml_dash import Experiment

SIZES, QUICK_SIZES = (64 * MIB, GIB), (MIB,)
ROUNDS = 6
TENSORS = 16
HEADINGS = (
    "MiB",
    "save_torch",
    "in the background",
    "the first",
    "of CPU tensors",
    "torch.save",
    "copied to page-locked",
    "to pageable",
)


def main() -> None:
    options = rig.parser("How long save_torch blocks for tensors of a GPU.").parse_args()
    with rig.workplace(options.folder) as folder, Experiment(rig.PREFIX, dash_root=folder / "root").run as exp:
        check(exp, folder)
        rows = [measured(exp, folder, size) for size in (QUICK_SIZES if options.quick else SIZES)]
        machine = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {rig.machine(folder)}"
    if options.json:
        print(json.dumps({"machine": machine, "milliseconds": [dict(zip(HEADINGS, row, strict=True)) for row in rows]}))
    else:
        rig.show(f"{machine}; milliseconds, medians", HEADINGS, rows)


def check(exp: Any, folder: Path) -> None:
    """A state of many kinds of tensors comes back as it was."""
    state = example()
    exp.files("there").save_torch(state, to="state.pt")
    back = torch.load(exp.files("there/state.pt").download(to=folder / "back.pt"), weights_only=True)
    for name, tensor in state.items():
        one, other = (each.to_dense() if each.is_sparse else each for each in (tensor, back[name]))
        assert (one.dtype, one.device, one.shape) == (other.dtype, other.device, other.shape), name
        assert (one.stride(), bits(one)) == (other.stride(), bits(other)), name
    assert back["view"].data_ptr() == back["whole"][10:].data_ptr(), "what was shared is not any more"
    rig.tell("every kind of tensor came back, bit for bit")


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())


def example() -> dict[str, torch.Tensor]:
    whole = torch.randn(1000, 1000, device="cuda")
    return {
        "whole": whole,
        "view": whole[10:20],
        "transposed": torch.randn(30, 40, device="cuda").t(),
        "bf16": torch.randn(513, 7, device="cuda", dtype=torch.bfloat16),
        "fp8": torch.randn(64, device="cuda").to(torch.float8_e4m3fn),
        "bool": torch.tensor([True, False], device="cuda"),
        "empty": torch.empty(0, device="cuda"),
        "0-d": torch.tensor(3.5, device="cuda"),
        "sparse": torch.eye(5, device="cuda").to_sparse(),
        "page-locked": torch.randn(5).pin_memory(),
    }


def measured(exp: Any, folder: Path, size: int) -> list[str]:
    state = {f"{number}": torch.randn(size // TENSORS // 4, device="cuda") for number in range(TENSORS)}
    pinned = {name: torch.empty_like(tensor, device="cpu", pin_memory=True) for name, tensor in state.items()}
    host = {name: torch.empty_like(tensor, device="cpu") for name, tensor in state.items()}

    def copy(into: dict[str, torch.Tensor]) -> None:
        for name, tensor in state.items():
            into[name].copy_(tensor, non_blocking=True)
        torch.cuda.synchronize()

    calls: dict[str, Callable[[], Any]] = {
        "save_torch": lambda: exp.files("there").save_torch(state, to="gpu.pt"),
        "in the background": lambda: exp.files("there").save_torch(state, to="gpu.pt", background=True),
        "of CPU tensors": lambda: exp.files("there").save_torch(host, to="cpu.pt"),
        "torch.save": lambda: torch.save(state, folder / "plain.pt"),
        "copied to page-locked": lambda: copy(pinned),
        "to pageable": lambda: copy(host),
    }
    took: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(ROUNDS):
        rig.tell(f"{rig.size_name(size)}, round {number + 1} of {ROUNDS}")
        for name, call in calls.items():
            took[name].append(milliseconds(call))
    for name in ("gpu.pt", "cpu.pt"):
        exp.files(f"there/{name}").delete()
    figures = {name: statistics.median(each[1:]) for name, each in took.items()} | {"the first": took["save_torch"][0]}
    return [f"{size // MIB}", *(f"{figures[name]:.1f}" for name in HEADINGS[1:])]


def milliseconds(call: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    begun = time.perf_counter()
    result = call()
    took = (time.perf_counter() - begun) * 1000
    if result is not None:
        result.wait(600)
    return took


if __name__ == "__main__":
    rig.run(main)
