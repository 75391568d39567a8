"""`torch.distributed.checkpoint` to the daemon and back: `dcp.save(state, storage_writer=MLDashWriter(files))`.

torch's own writer and reader, over files that are the daemon's: each rank writes its file straight into a slot, and the
coordinator hands over `.metadata` last, once every rank's file is the daemon's. The ids of those files go with it, so
that versions of several saves at one place are never mixed. A folder that is downloaded is in torch's own format.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ml_dash.arguments import of_kind
from ml_dash.errors import Code, MLDashError, error
from ml_dash.files import FileSet, file_by_id
from ml_dash.result import FileResult, records_of
from ml_dash.savers import Savers

try:
    from torch.distributed.checkpoint.filesystem import FileSystemBase, FileSystemReader, FileSystemWriter
except ImportError as failure:
    what = f"ml_dash.dcp needs torch.distributed.checkpoint, which can't be imported: {failure}"
    raise error(Code.MISSING_LIBRARY, what, "pip install torch") from failure

FILES = "dcp_files"
"""In the metadata of `.metadata`: the ids of the checkpoint's other files, by name."""
UNFINISHED = ".tmp"
"""How torch's writer ends the name of its metadata before it renames it."""
HERE = "."
"""The place of the files, to which torch's names are relative."""


class _Files(FileSystemBase):  # type: ignore[misc]
    """What torch's writer and reader need of a file system. A written file is handed over where its block ends well."""

    def __init__(self, files: Savers) -> None:
        self._files = files
        self._unfinished: dict[str, bytes] = {}
        self.ids: dict[str, str] = {}
        """Of the files that were written, or that are to be read, by name."""

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[Any, None, None]:
        name = os.path.normpath(path)
        if mode == "rb":
            with self._reading(name) as stream:
                yield stream
        elif name.endswith(UNFINISHED):
            content = io.BytesIO()
            yield content
            self._unfinished[name] = content.getvalue()
        else:
            with self._files.writing(name, supersede=False) as written:
                yield written.out
            self.ids[name] = written.file["id"]

    @contextmanager
    def _reading(self, name: str) -> Generator[Any, None, None]:
        """A file, every byte verified; on disk it has no name any more."""
        with tempfile.TemporaryDirectory(prefix="ml-dash-") as folder:
            one = file_by_id(self._files._connection, self.ids[name])  # noqa: SLF001
            stream = Path(one.download(to=f"{folder}/{os.path.basename(name)}")).open("rb")  # noqa: PTH119, SIM115
        with stream:
            yield stream

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        """Hands over what says that the checkpoint is whole, and of which files it is made."""
        content, name = self._unfinished.pop(os.path.normpath(path)), os.path.normpath(new_path)
        said = {**(self._files._defaults.metadata or {}), FILES: self.ids}  # noqa: SLF001
        self._files.save_blob(content, to=name, metadata=said, supersede=False)

    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> str:
        return f"{os.fspath(path)}/{suffix}"

    def init_path(self, path: str | os.PathLike[str]) -> str:
        return os.fspath(path)

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        """There are no folders."""

    def exists(self, path: str | os.PathLike[str]) -> bool:
        return False  # a save is a new version: nothing is in its way

    def rm_file(self, path: str | os.PathLike[str]) -> None:
        """Nothing is overwritten."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:  # noqa: ARG003
        return True


class MLDashWriter(FileSystemWriter):  # type: ignore[misc]
    """The storage_writer of `dcp.save` and `dcp.async_save`: `MLDashWriter(exp.files("ckpt/step_100"))`.

    The options are those of torch's FileSystemWriter. The call returns once every file is the daemon's, as by
    `save_torch`. Each save is a new version; a save that breaks off leaves no `.metadata`, and is no checkpoint.
    `supersede` does not apply: it knows of single files, and a checkpoint is several. In a block of
    `files.checkpoint(…) as ck`, `MLDashWriter(ck)` has all ranks' files seen together.
    """

    def __init__(self, files: Savers, **options: Any) -> None:
        of_kind(files, Savers, "files", 'pass exp.files("ckpt/step_100"), or a block of exp.files(…).checkpoint(…)')
        super().__init__(HERE, sync_files=False, **options)
        self.fs = _Files(files)

    def write_data(self, plan: Any, planner: Any) -> Any:
        """Writes this rank's files, and tells the coordinator their ids beside what torch tells it."""
        done = super().write_data(plan, planner)

        def with_ids(written: Any) -> list[Any]:
            return [replace(one, storage_data=(one.storage_data, self._id_of(one))) for one in written.value()]

        return done.then(with_ids)

    def finish(self, metadata: Any, results: list[list[Any]]) -> None:
        """Hands over `.metadata`: from here on the checkpoint is one."""
        plain = []
        self.fs.ids = {}
        for of_rank in results:
            self.fs.ids |= {info.relative_path: file_id for info, file_id in (one.storage_data for one in of_rank)}
            plain.append([replace(one, storage_data=one.storage_data[0]) for one in of_rank])
        super().finish(metadata, plain)

    def _id_of(self, one: Any) -> str:
        return self.fs.ids[os.path.normpath(self.fs.concat_path(self.path, one.storage_data.relative_path))]


class MLDashReader(FileSystemReader):  # type: ignore[misc]
    """The storage_reader of `dcp.load`: `MLDashReader(exp.files("ckpt"))`.

    It reads the newest whole checkpoint at or below that place, stored or on its way; one of which a file is deleted,
    failed or missing is passed over. Every file is verified, through the folder for temporary files. Raises NO_MATCH
    where there is none. No other save should be under way meanwhile: each rank looks by itself.
    """

    def __init__(self, files: FileSet) -> None:
        of_kind(files, FileSet, "files", 'pass exp.files("ckpt")')
        super().__init__(HERE)
        self._files = files
        self.fs = _Files(files)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
        """Torch's metadata of the newest whole checkpoint, which is the one that is read from here on."""
        path = os.path.normpath(self._get_metadata_path(kwargs.get("rank")))
        folder, name = os.path.split(path)
        found = self._files.list("/".join(part for part in (folder, "**", name) if part))
        for record in sorted(found, key=lambda one: -int(one["id"])):
            ids = (record["metadata"] or {}).get(FILES)
            if ids is not None and self._is_whole([record["id"], *ids.values()]):
                self.fs.ids = self._named(record, ids, path)
                return super().read_metadata(*args, **kwargs)
        place = self._files.place
        where = f"{place.namespace}/{place.project}/{place.experiment}: {place.prefix or 'the root'}"
        raise error(Code.NO_MATCH, f"there is no whole checkpoint of torch.distributed at {where}")

    def _named(self, record: FileResult, ids: Mapping[str, str], path: str) -> dict[str, str]:
        """The ids by the names that torch asks for."""
        others = {os.path.normpath(self.fs.concat_path(self.path, name)): file_id for name, file_id in ids.items()}
        return {path: record["id"], **others}

    def _is_whole(self, ids: list[str]) -> bool:
        try:
            files = [*records_of(self._files._connection, [int(one) for one in ids])]  # noqa: SLF001
        except MLDashError as missing:
            if missing.code is not Code.UNKNOWN_FILE:
                raise
            return False
        return all(file.deleted_ms is None and file.state not in ("FAILED", "CANCELLED") for file in files)
