"""The commands, a function each: options in, exit status out. Each raises what failed."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from ml_dash import messages as m
from ml_dash import wording
from ml_dash.arguments import distinct, is_glob, name_of
from ml_dash.cli import (
    checking,
    completion,
    doctoring,
    draining,
    fetching,
    folders,
    nodes,
    oldnames,
    parser,
    pushing,
    reaching,
    reconciling,
    report,
    runs,
    show,
    steering,
    top,
    waiting,
)
from ml_dash.cli.several import Several
from ml_dash.errors import Code, error
from ml_dash.experiment import files_at


def status(options: Namespace) -> int:
    """How it is doing."""
    with reaching.running(options) as connection:
        answer = connection.call(m.StatusReport, lambda number: m.Status(request=number))
        socket = connection.endpoint.socket
    if options.json:
        show.one(report.as_object(answer, socket))
    else:
        for line in report.as_lines(answer, socket):
            print(line)
    return 0


def put(options: Namespace) -> int:
    """Hands a file over, several, or folders."""
    if not options.recursive:
        folders.refuse_options(options)
    if options.recursive or len(options.files) > 1:
        return folders.put(options)
    (path,) = options.files
    in_folder = options.to is not None and options.to.endswith("/")
    with reaching.connected(options) as connection:
        result = reaching.files(options, connection).upload(
            path,
            to=f"{options.to}{name_of(path)}" if in_folder else options.to,
            description=options.description,
            tags=options.tags,
            metadata=options.metadata,
            durability=options.durability,
            snapshot=options.snapshot,
            protect=options.protect,
            priority=options.priority,
            supersede=options.supersede,
        )
        if options.wait:
            ids = [int(result["id"])]
            waiting.show_until_stored(waiting.at_ids(connection, ids), None, "bytes", show.path(result))
            result.refresh()
    if options.json:
        show.one(show.plain(result))
    else:
        print(show.handed_over(show.plain(result)))
    return 0


def ls(options: Namespace) -> int:
    """Lists files as they come, page by page."""
    if options.all and (options.prefix or options.pattern or options.latest or options.pending or options.tags):
        raise parser.wrong("ls", "--all lists what is stored of every experiment, and goes with none of the others")
    with reaching.looking(options) as connection:
        if options.all:
            found = reaching.everywhere(connection)
        else:
            files = reaching.files(options, connection)
            found = reaching.listed(
                files, options.pattern, latest=options.latest, pending=options.pending, tags=options.tags
            )
        if options.json:
            show.array(map(show.plain, found))
        else:
            report.table(found, experiments=options.all)
    return 0


def get(options: Namespace) -> int:
    """Downloads files."""
    if options.output == fetching.STDOUT:
        return _get_to_stdout(options)
    if options.recursive:
        return folders.get(options)
    folders.refuse_options(options)
    if not options.paths and options.id is None:
        raise parser.wrong("get", "one of the arguments PATH --id is required, or -r for all files")
    distinct((path.rpartition("/")[2], path) for path in options.paths if not is_glob(path))
    written = []
    several = Several(options.paths or [None], as_json=options.json)
    to = options.output if len(several.words) == 1 else f"{options.output or '.'}/"
    with reaching.looking(options) as connection, fetching.Watch(quiet=options.json) as watch:
        files = reaching.chosen(options, connection)
        for path in several.words:
            with several.one():
                for fetched in files.fetch(path, to=to, watch=watch):
                    watch.pause()
                    if options.json:
                        written.append(show.plain(fetched.file) | {"localPath": str(Path(fetched.path).absolute())})
                    else:
                        print(fetched.path)
    if options.json:
        show.array(written)
    return several.status


def _get_to_stdout(options: Namespace) -> int:
    """One file, for a pipe; how far it is stands on stderr."""
    named = options.paths if options.id is None else [None]
    if options.recursive or options.json or len(named) != 1 or is_glob(named[0] or ""):
        raise parser.wrong("get", "-o - takes one file, and neither -r nor --json")
    with reaching.looking(options) as connection, fetching.Watch(quiet=False) as watch:
        fetching.to_stdout(reaching.chosen(options, connection), named[0], watch)
    return 0


def rm(options: Namespace) -> int:
    """Deletes files."""
    gone = []
    several = Several(options.paths or [None], as_json=options.json)
    with reaching.looking(options) as connection:
        files = reaching.chosen(options, connection)
        for path in several.words:
            with several.one():
                for file, receipt in files.discard(path):
                    versions = wording.counted(len(receipt["ids"]), "version")
                    gone.append(receipt | {key: file[key] for key in ("experimentId", "path", "filename")})
                    if not options.json:
                        print(f"deleted {show.path(file)} ({versions})")
    if options.json:
        show.array(gone)
    return several.status


def prune(options: Namespace) -> int:
    """Deletes versions that are not kept; a dry run names them."""
    if options.pattern == "":  # as a shell makes it of a variable that is not set: it would be about everything
        raise error(Code.INVALID_ARGUMENT, "the pattern is empty", 'leave it out for all files, or pass "**"')
    with reaching.looking(options) as connection:
        files, pattern = reaching.below(reaching.files(options, connection), options.pattern)
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
    with reaching.looking(options) as connection:
        if options.ids:
            ids = list(dict.fromkeys(options.ids))
            waiting.show_until_stored(
                waiting.at_ids(connection, ids), options.timeout, "bytes", wording.files(len(ids))
            )
            count = len(ids)
        elif options.prefix:
            place = files_at(options.prefix, connection).place
            count = waiting.show_until_stored(
                waiting.at_experiment(connection, place), options.timeout, "files", options.prefix
            ).total
        else:
            count = waiting.show_until_stored(
                waiting.at_everything(connection), options.timeout, "files", "everything"
            ).total
    if options.json:
        show.one({"waitedFor": count})
    else:
        print(f"{wording.files(count)} stored" if count else "nothing is on its way")
    return 0


def drain(options: Namespace) -> int:
    """Has a daemon that runs send what it can before the deadline; 1 where files are left."""
    with reaching.running(options) as connection, draining.Watch(quiet=options.json) as watch:
        drained = draining.drain(connection, options.deadline, watch, stop=options.stop)
    if options.json:
        show.one(draining.as_object(drained))
    else:
        for line in draining.as_lines(drained):
            print(line)
    return 1 if drained.left_files or drained.failed_files else 0


def doctor(options: Namespace) -> int:
    """Looks for all that may be wrong; 1 where something is, 3 where no daemon answers."""
    if options.dry_run and not options.reconcile:
        raise parser.wrong("doctor", "argument --dry-run: not allowed without --reconcile")
    if options.reconcile:
        return reconciling.reconcile(options)
    endpoint, why = reaching.endpoint_and_why(options)
    checks = doctoring.Checks(show_as_they_come=not options.json)
    status = doctoring.examine(checks, endpoint, why, lambda: reaching.running(options))
    if options.json:
        show.one(checks.as_object(endpoint))
    return status


def experiments(options: Namespace) -> int:
    """Lists experiments."""
    with reaching.looking(options) as connection:
        found = runs.experiments(connection, options.below)
        if options.json:
            show.array(map(runs.as_object, found))
        else:
            show.lines(runs.experiment_lines(found))
    return 0


def params(options: Namespace) -> int:
    """Prints the parameters of an experiment."""
    with reaching.looking(options) as connection:
        found = runs.params(connection, reaching.files(options, connection).place)
    if options.json:
        show.one(found)
    else:
        show.lines(runs.param_lines(found))
    return 0


def metrics(options: Namespace) -> int:
    """Prints the rows of metrics."""
    with reaching.looking(options) as connection:
        place = reaching.files(options, connection).place
        found = runs.rows(connection, place, options.name, follow=options.follow)
        if not options.json:
            show.lines(runs.row_lines(found, at_once=1 if options.follow else runs.AT_ONCE))
        elif options.follow:
            for row in found:
                print(show.document(row), flush=True)
        else:
            show.array(found)
    return 0


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
    "nodes": nodes.nodes,
    "experiments": experiments,
    "params": params,
    "metrics": metrics,
    "completion": complete,
    "verify": checking.verify,
    "versions": steering.versions,
    "update": steering.update,
    "cancel": steering.cancel,
    "retry": steering.retry,
    "top": top.top,
    "push": pushing.push,
    "upload": oldnames.upload,
    "download": oldnames.download,
    "list": oldnames.list_files,
}
