"""`put -r` and `get -r`: folders as a whole. What is at the other end already is skipped, so that both go on."""

from __future__ import annotations

import os
import unicodedata
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ml_dash import messages as m
from ml_dash import wording
from ml_dash.arguments import distinct
from ml_dash.cli import parser, reaching, show, waiting
from ml_dash.cli.bars import Bars
from ml_dash.cli.trees import LeftOut, Local, Unfit, Wanted, alone, identity_of, is_same, own_name, walk
from ml_dash.connection import Connection
from ml_dash.download import Downloads, way_out
from ml_dash.errors import TABLE, Code, MLDashError, error
from ml_dash.files import Files, FileSet
from ml_dash.result import FileResult, records_of, to_dict


def refuse_options(options: Namespace) -> None:
    """What is meant for folders alone. Raises UsageError."""
    for name in ("include", "exclude", "dry_run"):
        if getattr(options, name, None):
            raise parser.wrong(options.command, f"--{name.replace('_', '-')} goes with -r")


class Outcome:
    """What came of a folder: a line a file as they come, or all of it at the end, for programs."""

    def __init__(self, done: str, *, as_json: bool, dry_run: bool) -> None:
        self._done = done
        self._as_json = as_json
        self._dry_run = dry_run
        self.files: list[dict[str, Any]] = []
        self.skipped = 0
        self.failed: list[dict[str, Any]] = []
        self._left_out: list[dict[str, str]] = []
        self._said: set[str] = set()

    def add(self, line: str, facts: dict[str, Any]) -> None:
        """A file was taken."""
        self.files.append(facts if self._as_json else {})
        if not self._as_json:
            print(line)

    def ended(self, done: str, files: list[dict[str, Any]]) -> None:
        """What was said of the files before is over: they were waited for."""
        if self._as_json:
            self.files = files
        else:
            self._done = done

    def leave_out(self, folder: LeftOut) -> None:
        """A folder is not meant, though nobody has said so."""
        self._left_out.append({"path": folder.path, "message": folder.what})
        if not self._as_json:
            show.trouble(f"{folder.path} is left out: {folder.what}", None)

    def refuse(self, name: str, failure: MLDashError) -> None:
        """A file was not; the rest goes on."""
        self.failed.append({"path": name, "code": failure.code, "message": failure.message, "hint": failure.hint})
        if not self._as_json and failure.message not in self._said:
            self._said.add(failure.message)  # what holds up many files is said once
            show.trouble(failure.message, failure.hint)

    def tell(self) -> int:
        """Says how it ended; returns the exit status."""
        if self._as_json:
            said = {self._done: self.files, "skipped": self.skipped, "failed": self.failed}
            said |= {"leftOut": self._left_out} if self._left_out else {}
            show.one(said | ({"dryRun": True} if self._dry_run else {}))
        else:
            would = "would be " if self._dry_run else ""
            parts = [f"{wording.files(len(self.files))} {would}{self._done}"]
            parts += [f"{self.skipped} skipped, there already"] if self.skipped else []
            parts += [f"{len(self.failed)} failed"] if self.failed else []
            print(", ".join(parts))
        return 1 if self.failed else 0


# ---- there


def put(options: Namespace) -> int:
    """Hands several files over, or folders."""
    outcome = Outcome("handed over" if not options.json else "uploaded", as_json=options.json, dry_run=options.dry_run)
    distinct((own_name(path), path) for path in options.files)
    with (reaching.looking if options.dry_run else reaching.connected)(options) as connection:
        files = reaching.files(options, connection)((options.to or "").strip("/"))
        store = _store_of(connection) if options.recursive else None
        found = _fit(_meant(options, store), outcome)
        try:
            handed = _hand_over(options, files, found, outcome)
        except KeyboardInterrupt:
            count = wording.files(len(outcome.files))
            what = f"{count} handed over so far, they go on by themselves"
            raise show.Interrupted(what, "the same command goes on") from None
        if options.wait and handed:
            ids = [int(file["id"]) for file in handed]
            waiting.show_until_stored(waiting.at_ids(connection, ids), None, "bytes", wording.files(len(ids)))
            outcome.ended("stored", [to_dict(record) for record in records_of(connection, ids)])
    return outcome.tell()


def _store_of(connection: Connection) -> Path | None:
    """The folder that the daemon's files go to, where it is one of this machine."""
    report = connection.call(m.StatusReport, lambda number: m.Status(request=number))
    place = urlsplit(report.store)
    return Path(unquote(place.path)).resolve() if place.scheme == "file" else None


def _meant(options: Namespace, store: Path | None) -> Iterator[Local | Unfit | LeftOut]:
    """What is in the folders, and the files. Of several each has its own name; one folder is what is in it."""
    wanted = Wanted(tuple(options.include), tuple(options.exclude))
    known = None if store is None else identity_of(store)
    for path in options.files:
        if options.recursive and (len(options.files) == 1 or Path(path).is_dir()):
            _check_folder(path, store)
            below = "" if len(options.files) == 1 else f"{own_name(path)}/"
            for each in walk(path, wanted, known):
                yield each if isinstance(each, LeftOut) else each._replace(name=f"{below}{each.name}")
        else:
            yield alone(path)


def _check_folder(path: str, store: Path | None) -> None:
    """Raises where it is none, or a part of the store: it would grow by all that is in it."""
    if not path:  # which Path takes for the working folder
        raise error(Code.INVALID_ARGUMENT, "the path of the folder is empty", 'pass one, such as "runs/1"')
    if not Path(path).is_dir():
        there = os.path.lexists(path)
        code = Code.NOT_A_FILE if there else Code.FILE_NOT_FOUND
        what = f"{path} is no folder" if there else f"there is no folder {path}"
        raise error(code, what, "name a folder, or leave out -r")
    if store is not None and Path(path).resolve().is_relative_to(store):
        what = f"{path} is in the store that the files go to, {store}"
        raise error(Code.INVALID_ARGUMENT, what, "to have a file there under another name, see duplicate()")


def _fit(found: Iterator[Local | Unfit | LeftOut], outcome: Outcome) -> list[Local]:
    fit = dict[str, Local]()
    for each in found:
        if isinstance(each, LeftOut):
            outcome.leave_out(each)
        elif isinstance(each, Unfit):
            outcome.refuse(each.name, each.failure)
        elif (twin := fit.setdefault(unicodedata.normalize("NFC", each.name), each)) is not each:
            what = f"{each.path} and {twin.path} have one name here: they differ in how its accents are written"
            outcome.refuse(each.name, error(Code.INVALID_PATH, what, "rename one of them"))
    return [*fit.values()]


def _hand_over(options: Namespace, files: FileSet, found: Sequence[Local], outcome: Outcome) -> list[FileResult]:
    """Hands over what is not there; an id of what lies in an inbox would have to be waited for, so none is read."""
    there = _newest(files) if options.recursive else {}
    handed: list[FileResult] = []
    total = sum(each.size_bytes for each in found)
    title = options.files[0] if len(options.files) == 1 else wording.files(len(found))
    with Bars(title, total, quiet=options.json) as bars:

        def fresh() -> Iterator[tuple[str, str]]:
            for each in found:
                known = there.get(unicodedata.normalize("NFC", each.name))
                if known is not None and is_same(each.path, each.size_bytes, known):
                    outcome.skipped += 1
                else:
                    yield each.name, each.path
                bars.ended(each.name, each.size_bytes)

        if options.dry_run:
            for name, path in fresh():
                outcome.add(f"{path} → {_at(files, name)}", {"path": _at(files, name), "source": path})
            return handed
        described = {"description": options.description, "tags": options.tags, "metadata": options.metadata}
        for file in files.each_of(
            fresh(),
            outcome.refuse,
            durability=options.durability,
            snapshot=options.snapshot,
            protect=options.protect,
            priority=options.priority,
            supersede=options.supersede,
            **described,
        ):
            handed.append(file)
            bars.pause()
            record = show.plain(file)
            outcome.add(show.handed_over(record), record)
    return handed


def _newest(files: FileSet) -> dict[str, FileResult]:
    """The newest version of each path, by its path below these files' place."""
    prefix = f"{files.place.prefix}/" if files.place.prefix else ""
    return {show.path(show.plain(file)).removeprefix(prefix): file for file in files.each(latest=True)}


def _at(files: FileSet, name: str) -> str:
    return f"{files.place.prefix}/{name}" if files.place.prefix else name


# ---- back


def get(options: Namespace) -> int:
    """Downloads all that fits, folders kept."""
    if options.id is not None:
        raise parser.wrong("get", "--id and -r do not go together")
    outcome = Outcome("downloaded", as_json=options.json, dry_run=options.dry_run)
    root = Path(options.output or ".")
    with reaching.looking(options) as connection:
        files = reaching.files(options, connection)
        found = _listed(files, options.paths or [None], outcome)
        _check_output(root, _store_of(connection))
        try:
            _bring(
                options, connection, [(file, root / show.path(show.plain(file))) for file in found.values()], outcome
            )
        except KeyboardInterrupt:
            count = wording.files(len(outcome.files))
            what = f"{count} downloaded so far; nothing is left of the others"
            raise show.Interrupted(what, "the same command goes on") from None
    return outcome.tell()


def _listed(files: Files, paths: Sequence[str | None], outcome: Outcome) -> dict[int, FileResult]:
    """The newest version of all that fits. Of several words one that nothing fits is told, and the only one raised."""
    found = dict[int, FileResult]()
    for path in paths:
        listed = {int(file["id"]): file for file in reaching.listed(files, path, latest=True)}
        if not listed:
            failure = error(Code.NO_MATCH, f"no file fits {path or '**/*'!r}")
            if len(paths) == 1:
                raise failure
            outcome.refuse(str(path), failure)
        found |= listed
    return found


def _check_output(root: Path, store: Path | None) -> None:
    """Raises where it is a part of the store, whose tree would have files in it that nobody has listed."""
    if store is not None and root.resolve().is_relative_to(store):
        what = f"{root} is in the store that the files are in, {store}"
        raise error(Code.INVALID_ARGUMENT, what, "name another folder; files that are there need no download")


def _bring(
    options: Namespace, connection: Connection, found: Sequence[tuple[FileResult, Path]], outcome: Outcome
) -> None:
    root = Path(options.output or ".")
    total = sum(show.plain(file)["sizeBytes"] for file, _ in found)
    by_id: dict[int, FileResult] = {}
    with Bars(str(root), total, quiet=options.json) as bars:

        def missing() -> Iterator[tuple[m.Record, Path]]:
            for file, target in found:
                record = file._record  # noqa: SLF001
                if (failure := way_out(root, target)) is not None:
                    outcome.refuse(show.path(show.plain(file)), failure)
                elif target.is_file() and is_same(target, target.stat().st_size, file):
                    outcome.skipped += 1
                else:
                    by_id[record.id] = file
                    yield record, target
                    continue
                bars.ended(str(record.id), record.size_bytes)

        def failed(record: m.Record, failure: Exception) -> None:
            bars.ended(str(record.id), record.size_bytes)
            known = failure if isinstance(failure, MLDashError) else _known(failure)
            outcome.refuse(show.path(show.plain(by_id.pop(record.id))), known)

        def tell(record: m.Record, done: int, size: int) -> None:
            bars.moved(str(record.id), record.filename, done, size)

        if options.dry_run:
            for record, target in missing():
                outcome.add(str(target), show.plain(by_id[record.id]) | {"localPath": str(target.absolute())})
            return
        for got in Downloads(connection, tell, failed=failed).run(missing()):
            bars.ended(str(got.record.id), got.record.size_bytes)
            bars.pause()
            facts = show.plain(by_id.pop(got.record.id)) | {"checksum": got.sha256}
            outcome.add(str(got.target), facts | {"localPath": str(got.target.absolute())})


def _known(failure: Exception) -> MLDashError:
    code = Code.ACCESS_DENIED if isinstance(failure, PermissionError) else Code.NOT_A_FILE
    hint = "check the path, its owner and its mode" if isinstance(failure, OSError) else TABLE[code].hint
    return error(code, str(failure), hint)
