"""The daemon that a command talks to, and the files that it is about."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace

from ml_dash import messages as m
from ml_dash.arguments import is_glob
from ml_dash.cli.nobody import Nobody
from ml_dash.connection import Connection
from ml_dash.errors import Code, MLDashError, error
from ml_dash.experiment import files_at
from ml_dash.files import Files, FileSet, file_by_id
from ml_dash.pages import pages
from ml_dash.reach import Endpoint, default_prefix, endpoint_of, is_there, which
from ml_dash.result import FileResult
from ml_dash.silence import SilentError

HERE = (".", "./")
"""As a shell's user names the folder that an experiment stands for."""


def endpoint(options: Namespace) -> Endpoint:
    """What is typed goes before what the environment says."""
    return endpoint_and_why(options)[0]


def endpoint_and_why(options: Namespace) -> tuple[Endpoint, str]:
    """The daemon's place, and why that one."""
    return (endpoint_of(options.root), "its root is named") if options.root else which(options.socket, None)


def connected(options: Namespace) -> closing[Connection]:
    """A connection; the daemon of a root is started if need be."""
    return closing(Connection(endpoint(options)))


def looking(options: Namespace) -> closing[Connection]:
    """As `connected`, for what only looks, or removes: where no root is, none is made, and nothing is found."""
    place = endpoint(options)
    return closing(Connection(place) if is_there(place) else Nobody(place))


@contextmanager
def running(options: Namespace) -> Iterator[Connection]:
    """A daemon that runs; none is started."""
    place = endpoint(options)
    connection = Connection(replace(place, root=None))
    try:
        yield connection
    except SilentError:
        raise
    except MLDashError as failure:
        if place.root is None or failure.code is not Code.DAEMON_UNAVAILABLE:
            raise
        message, hint = f"no daemon runs for {place.root}", "it is started with the next file that is handed over"
        raise error(Code.DAEMON_UNAVAILABLE, message, hint) from None
    finally:
        connection.close()


def files(options: Namespace, connection: Connection) -> Files:
    """The experiment's files. Raises INVALID_PREFIX where none is named."""
    prefix = options.prefix or default_prefix()
    if not prefix:
        hint = "pass --prefix namespace/project/experiment, or set ML_DASH_PREFIX"
        raise error(Code.INVALID_PREFIX, "no experiment is named", hint)
    return files_at(prefix, connection)


def chosen(options: Namespace, connection: Connection) -> FileSet:
    """The experiment's files, or the one of an id."""
    return files(options, connection) if options.id is None else file_by_id(connection, options.id)


def everywhere(connection: Connection) -> Iterator[FileResult]:
    """What is stored of every experiment, the oldest first, as far as this user may read it."""
    nowhere = m.Place(namespace="", project="", experiment="")
    asked = m.List(request=0, place=nowhere, everywhere=True)
    for page in pages(
        lambda after: connection.call(m.Page, lambda number: replace(asked, request=number, cursor=after))
    ):
        yield from (FileResult(record, connection) for record in page.records)


def listed(
    found: Files, pattern: str | None, *, latest: bool, pending: bool = False, tags: Sequence[str] = ()
) -> Iterator[FileResult]:
    """A glob lists what fits it; a plain name what is at it and below, and "." all of the experiment."""
    there, glob = below(found, None if pattern in HERE else pattern)
    return there.each(glob, latest=latest, pending=pending, tags=tags)


def below(found: Files, pattern: str | None) -> tuple[FileSet, str | None]:
    """A glob is for what fits it; a plain name for what is at it and below."""
    if pattern is None or is_glob(pattern):
        return found, pattern
    return found(pattern), None
