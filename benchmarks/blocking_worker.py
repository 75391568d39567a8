"""A trainer that saves what it is told to, and says how long that took: of this release, or of ml-dash 0.11.

Calls are lines of JSON on stdin, answers on stdout. Both releases have the same calls, so it is one program.
"""

from __future__ import annotations

import gc
import io
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp

from ml_dash import Experiment

FOLDER = Path(sys.argv[1])
OURS = "ML_DASH_SOCKET" in os.environ
TENSORS = 8
TEXT = "x" * (1 << 10)


def tensors(size: int) -> dict[str, Any]:
    each = max(1, size // 4 // TENSORS)
    return {f"layer.{number}": torch.full((each,), float(number)) for number in range(TENSORS)}


def source(size: int) -> str:
    """A file that is settled: what was written a moment ago is another benchmark's (handoff.py)."""
    path = FOLDER / f"{size}.bin"
    if not path.exists():
        path.write_bytes(os.urandom(1024) * (size // 1024))
        os.sync()
    return str(path)


MAKERS: dict[str, Callable[[int], Any]] = {
    "save_torch": tensors,
    "torch.save": tensors,
    "save_pkl": lambda size: {"pixels": np.ones(size, np.uint8)},
    "save_blob": lambda size: os.urandom(1024) * (size // 1024),
    "save_json": lambda size: {"lines": [TEXT] * (size // len(TEXT))},
    "upload": source,
    "memcpy": tensors,
    "save_safetensors": tensors,
    "async_save": tensors,
}


def by_torch(value: Any) -> None:
    path = FOLDER / "torch.pt"
    torch.save(value, path)


def copied(value: Any) -> Callable[[], Any]:
    """One copy of the same tensors into memory whose pages are mapped already."""
    pairs = [(tensor.clone(), tensor) for tensor in value.values()]
    return lambda: [into.copy_(tensor) for into, tensor in pairs]


def timed(exp: Any, what: str, value: Any, number: int) -> dict[str, float]:
    if what == "memcpy":
        call: Callable[[], Any] = copied(value)
    elif what == "torch.save":
        call = lambda: by_torch(value)  # noqa: E731
    elif what == "async_save":
        call = lambda: dcp.async_save(value, checkpoint_id=str(FOLDER / "dcp" / str(number)))  # noqa: E731
    else:
        saver = getattr(exp.files("x"), what)
        call = lambda: saver(value, to=f"{number}.bin")  # noqa: E731
    gc.collect()
    gc.disable()
    begun = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - begun
    if what == "async_save":
        result.result()
        gc.enable()
        return {"seconds": seconds, "with_flush": time.perf_counter() - begun}
    if OURS:
        gc.enable()
        if hasattr(result, "wait"):
            result.wait()
        (FOLDER / "torch.pt").unlink(missing_ok=True)
        return {"seconds": seconds}
    exp.flush()
    gc.enable()
    return {"seconds": seconds, "with_flush": time.perf_counter() - begun}


def main() -> None:
    answers = sys.stdout
    options = {} if OURS else {"dash_root": str(FOLDER / ".dash")}
    chatter = redirect_stdout(io.StringIO())  # ml-dash 0.11 tells all that it does
    with chatter, Experiment(prefix="bench/marks/run", **options).run as exp:
        for number, line in enumerate(sys.stdin):
            call = json.loads(line)
            value = MAKERS[call["what"]](call["size_bytes"])
            print(json.dumps(timed(exp, call["what"], value, number)), file=answers, flush=True)
            del value


if __name__ == "__main__":
    main()
