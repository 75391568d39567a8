"""The list of what a drain has left, a JSON file in the state folder that only the daemon's user may read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_dashd.edge.system import sync_folder

NAME = "drain.json"


class ManifestFile:
    """The port `Manifest`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME

    def write(self, facts: Mapping[str, Any]) -> str:
        temporary = self._path.with_name(f".{NAME}")
        temporary.unlink(missing_ok=True)  # of a crash, and perhaps of another mode
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(facts, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(descriptor)
        temporary.rename(self._path)
        sync_folder(self._path.parent)
        return NAME

    def exists(self) -> bool:
        return self._path.exists()

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)
