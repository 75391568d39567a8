"""A trainer that adds files to artifacts of wandb's, offline, and says how long that took.

Calls are lines of JSON on stdin, answers on stdout, as of blocking_worker.py.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

FOLDER = Path(sys.argv[1])
for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
    os.environ[name] = str(FOLDER / name.lower())

import wandb  # noqa: E402


def source(size: int) -> str:
    """A file that is settled."""
    path = FOLDER / f"{size}.bin"
    if not path.exists():
        path.write_bytes(os.urandom(1024) * (size // 1024))
        os.sync()
    return str(path)


def main() -> None:
    for number, line in enumerate(sys.stdin):
        path = source(json.loads(line)["size_bytes"])
        artifact = wandb.Artifact(f"number-{number}", "model")
        begun = time.perf_counter()
        artifact.add_file(path)
        print(json.dumps({"seconds": time.perf_counter() - begun}), flush=True)
        del artifact
        for staged in (FOLDER / "wandb_data_dir").rglob("*"):
            if staged.is_file():
                staged.unlink()


if __name__ == "__main__":
    main()
