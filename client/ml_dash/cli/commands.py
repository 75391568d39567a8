"""The commands, a function each: options in, exit status out. Each raises what failed."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ml_dash import messages as m
from ml_dash.cli import completion, doctoring, draining, fetching, parser, report, show, waiting
from ml_dash.connection import Connection
from ml_dash.errors import Code, MLDashError, error
from ml_dash.experiment import files_at
from ml_dash.files import Files, FileSet, file_by_id
from ml_dash.reach import Endpoint, default_prefix, endpoint_of, which
from ml_dash.result import FileResult
from ml_dash.silence import SilentError


def status(options: Namespace) -> int:
    """How it is doing."""
    with _running(options) as connection:
        answer = connection.call(m.StatusReport, lambda number: m.Status(request=number))
        socket = connection.endpoint.socket
    if options.json:
        show.one(report.as_object(answer, socket))
    else:
        for line in report.as_lines(answer, socket):
            print(line)
    return 0


def put(options: Namespace) -> int:
    """Hands a file over."""
    with _connected(options) as connection:
        result = _files(options, connection).upload(
            options.file,
            to=options.to,
            description=options.description,
            tags=options.tags,
            metadata=options.metadata,
            durability=options.durability,
            snapshot=options.snapshot,
            priority=options.priority,
        )
        if options.wait:
            _wait(waiting.at_ids(connection, [int(result["id"])]), None, "bytes", show.path(result))
            result.refresh()
    if options.json:
        show.one(show.plain(result))
    else:
        print(f"{result['id']}  {show.path(result)}  {show.plain(result)['state']}")
    return 0


def ls(options: Namespace) -> int:
    """Lists files as they come, page by page."""
    with _connected(options) as connection:
        found = _listed(_files(options, connection), options.pattern, latest=options.latest)
        if options.json:
            show.array(map(show.plain, found))
        else:
            report.table(found)
    return 0


def get(options: Namespace) -> int:
    """Downloads files."""
    written = []
    with _connected(options) as connection, fetching.Watch(quiet=options.json) as watch:
        for fetched in _chosen(options, connection).fetch(options.path, to=options.output, watch=watch):
            watch.pause()
            if options.json:
                written.append(show.plain(fetched.file) | {"localPath": str(Path(fetched.path).absolute())})
            else:
                print(fetched.path)
    if options.json:
        show.array(written)
    return 0


def rm(options: Namespace) -> int:
    """Deletes files."""
    gone = []
    with _connected(options) as connection:
        for file, receipt in _chosen(options, connection).discard(options.path):
            count = len(receipt["ids"])
            gone.append(receipt | {key: file[key] for key in ("experimentId", "path", "filename")})
            if not options.json:
                print(f"deleted {show.path(file)} ({count} version{'s' if count > 1 else ''})")
    if options.json:
        show.array(gone)
    return 0


def prune(options: Namespace) -> int:
    """Deletes versions that are not kept; a dry run names them."""
    with _connected(options) as connection:
        files, pattern = _below(_files(options, connection), options.pattern)
        pruned = files.each_pruned(
            pattern, keep_last=options.keep_last, keep_tags=options.keep_tags, dry_run=options.dry_run
        )
        if options.json:
            show.array(map(show.plain, pruned))
        else:
            report.pruned(pruned, dry_run=options.dry_run)
    return 0


def wait(options: Namespace) -> int:
    """Waits until files are stored."""
    if options.ids and options.prefix:
        raise error(Code.INVALID_ARGUMENT, "ids and --prefix are given", "give one of them")
    with _connected(options) as connection:
        if options.ids:
            ids = list(dict.fromkeys(options.ids))
            _wait(waiting.at_ids(connection, ids), options.timeout, "bytes", f"{len(ids)} files")
            count = len(ids)
        elif options.prefix:
            place = files_at(options.prefix, connection).place
            count = _wait(waiting.at_experiment(connection, place), options.timeout, "files", options.prefix).total
        else:
            count = _wait(waiting.at_everything(connection), options.timeout, "files", "everything").total
    if options.json:
        show.one({"waitedFor": count})
    else:
        print(f"{count} file{'' if count == 1 else 's'} stored" if count else "nothing is on its way")
    return 0


def drain(options: Namespace) -> int:
    """Has a daemon that runs send what it can before the deadline; 1 where files are left."""
    with _running(options) as connection, draining.Watch(quiet=options.json) as watch:
        drained = draining.drain(connection, options.deadline, watch, stop=options.stop)
    if options.json:
        show.one(draining.as_object(drained))
    else:
        for line in draining.as_lines(drained):
            print(line)
    return 1 if drained.left_files or drained.failed_files else 0


def doctor(options: Namespace) -> int:
    """Looks for all that may be wrong; 1 where something is, 3 where no daemon answers."""
    endpoint, why = _which(options)
    checks = doctoring.Checks(show_as_they_come=not options.json)
    status = doctoring.examine(checks, endpoint, why, lambda: _running(options))
    if options.json:
        show.one(checks.as_object(endpoint))
    return status


def complete(options: Namespace) -> int:
    """Prints a completion script."""
    print(completion.script(options.shell, parser.build()), end="")
    return 0


COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "status": status,
    "put": put,
    "ls": ls,
    "get": get,
    "rm": rm,
    "prune": prune,
    "wait": wait,
    "drain": drain,
    "doctor": doctor,
    "completion": complete,
}


# ---- the pieces


def _endpoint(options: Namespace) -> Endpoint:
    """What is typed goes before what the environment says."""
    return _which(options)[0]


def _which(options: Namespace) -> tuple[Endpoint, str]:
    return (endpoint_of(options.root), "its root is named") if options.root else which(options.socket, None)


@contextmanager
def _connected(options: Namespace) -> Iterator[Connection]:
    connection = Connection(_endpoint(options))
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def _running(options: Namespace) -> Iterator[Connection]:
    """A daemon that runs; none is started."""
    endpoint = _endpoint(options)
    connection = Connection(replace(endpoint, root=None))
    try:
        yield connection
    except SilentError:
        raise
    except MLDashError as failure:
        if endpoint.root is None or failure.code is not Code.DAEMON_UNAVAILABLE:
            raise
        message, hint = f"no daemon runs for {endpoint.root}", "it is started with the next file that is handed over"
        raise error(Code.DAEMON_UNAVAILABLE, message, hint) from None
    finally:
        connection.close()


def _files(options: Namespace, connection: Connection) -> Files:
    prefix = options.prefix or default_prefix()
    if not prefix:
        hint = "pass --prefix namespace/project/experiment, or set ML_DASH_PREFIX"
        raise error(Code.INVALID_PREFIX, "no experiment is named", hint)
    return files_at(prefix, connection)


def _chosen(options: Namespace, connection: Connection) -> FileSet:
    return _files(options, connection) if options.id is None else file_by_id(connection, options.id)


def _listed(files: Files, pattern: str | None, *, latest: bool) -> Iterator[FileResult]:
    there, glob = _below(files, pattern)
    return there.each(glob, latest=latest)


def _below(files: Files, pattern: str | None) -> tuple[FileSet, str | None]:
    """A glob is for what fits it; a plain name for what is at it and below."""
    if pattern is None or any(mark in pattern for mark in "*?["):
        return files, pattern
    return files(pattern), None


def _wait(look: waiting.Look, timeout_s: float | None, unit: str, title: str) -> waiting.Seen:
    with show.Bar(unit) as bar:
        return waiting.until_stored(look, timeout_s, lambda done, total: bar.update(title, done, total))
