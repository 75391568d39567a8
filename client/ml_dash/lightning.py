"""Lightning's checkpoints straight to the daemon: `Trainer(plugins=[MLDashCheckpointIO(exp.files("checkpoints"))])`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_dash.arguments import of_kind
from ml_dash.errors import Code, MLDashError, error
from ml_dash.files import FileSet

try:
    import torch
    from lightning.pytorch.plugins import CheckpointIO
except ImportError as failure:
    what = f"ml_dash.lightning needs lightning, which can't be imported: {failure}"
    raise error(Code.MISSING_LIBRARY, what, "pip install lightning") from failure


class MLDashCheckpointIO(CheckpointIO):  # type: ignore[misc]
    """Saves, loads and removes what Lightning calls a checkpoint's path; no file is written here.

    A path is a name below the place of `files`: relative to `root` (default: the working directory) where it lies in
    it, else the whole path. `trainer.save_checkpoint(path, storage_options={"tags": ["best"]})` says more of a file, in
    the words of `save_torch`. Unless metadata is given, it is the checkpoint's epoch and global_step.
    """

    def __init__(self, files: FileSet, root: str | os.PathLike[str] | None = None) -> None:
        of_kind(files, FileSet, "files", 'pass exp.files("checkpoints")')
        self._files = files
        self._root = os.path.realpath(root or os.curdir)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Hands a checkpoint over, as `save_torch` does."""
        words: dict[str, Any] = dict(storage_options or {})
        if "metadata" not in words and self._files._defaults.metadata is None:  # noqa: SLF001
            words["metadata"] = {key: checkpoint[key] for key in ("epoch", "global_step") if key in checkpoint}
        self._files.save_torch(checkpoint, to=self._name(path), **words)

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any | None = None, weights_only: bool | None = None
    ) -> Mapping[str, Any]:
        """The newest version that was handed over, verified; where there is none, the file at that path.

        Raises ValueError (NO_MATCH) where there is neither. Without `weights_only` it is True: pickles of people whom
        one does not trust run any code.
        """
        safe = True if weights_only is None else weights_only
        with tempfile.TemporaryDirectory(prefix="ml-dash-") as folder:
            try:
                source = self._files.download(self._name(path), to=f"{folder}/checkpoint")
            except MLDashError as none:
                if none.code is not Code.NO_MATCH or not Path(path).is_file():
                    raise
                source = os.fspath(path)
            loaded: Mapping[str, Any] = torch.load(str(source), map_location=map_location, weights_only=safe)
            return loaded

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Deletes every version at that path, as Lightning does with what `save_top_k` leaves out. Idempotent."""
        try:
            self._files.delete(self._name(path))
        except MLDashError as none:
            if none.code is not Code.NO_MATCH:
                raise

    def _name(self, path: str | os.PathLike[str]) -> str:
        """A checkpoint's name below the place of the files."""
        absolute = os.path.join(self._root, os.fspath(path))  # noqa: PTH118
        absolute = os.path.normpath(absolute)
        inside = os.path.relpath(absolute, self._root)
        return absolute.lstrip("/") if inside.startswith("..") else inside
