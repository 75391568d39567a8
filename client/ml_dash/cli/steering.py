"""Commands about files that are somewhere already: their versions, what is said of them, whether they go on."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator

from ml_dash import messages as m
from ml_dash import wording
from ml_dash.arguments import escape, is_glob
from ml_dash.cli import parser, reaching, report, show
from ml_dash.cli.values import is_id
from ml_dash.connection import Connection
from ml_dash.errors import Code, error
from ml_dash.files import Files, file_by_id
from ml_dash.result import FileResult, records_of

ENDED = ("DONE", "CANCELLED")


def versions(options: Namespace) -> int:
    """Lists all versions of a path, newest first."""
    with reaching.looking(options) as connection:
        found = [*_versions(reaching.files(options, connection), options.path)]
        if not found:
            raise error(Code.NO_MATCH, f"there is no file {options.path!r}")
        if options.json:
            show.array(map(show.plain, found))
        else:
            report.versions(found)
    return 0


def update(options: Namespace) -> int:
    """Changes what is said of a file; what is not given stays as it is."""
    tags = options.tags or ([] if options.clear_tags else None)
    given = {"description": options.description, "tags": tags, "metadata": options.metadata}
    if all(value is None for value in given.values()):
        raise parser.wrong("update", "one of the arguments --description --tag --clear-tags --metadata is required")
    with reaching.looking(options) as connection:
        file_id = options.id
        if file_id is None:
            newest = next(_versions(reaching.files(options, connection), options.path), None)
            if newest is None:
                raise error(Code.NO_MATCH, f"there is no file {options.path!r}")
            file_id = newest["id"]
        result = file_by_id(connection, file_id).update(**given)
    if options.json:
        show.one(show.plain(result))
    else:
        print(f"{result['id']}  {show.path(show.plain(result))}")
    return 0


def cancel(options: Namespace) -> int:
    """Stops files on their way. One that is stored is an error, and then nothing is stopped."""
    gone = []
    with reaching.looking(options) as connection:
        records = {record.id: record for word in options.files for record in _on_their_way(options, connection, word)}
        ids = tuple(records)
        for start in range(0, len(ids), 1000):
            some = ids[start : start + 1000]
            answer = connection.call(
                m.Deleted,
                lambda number, some=some: m.Delete(request=number, ids=some, unless_stored=True),  # type: ignore[misc]
            )
            gone += [records[one] for one in answer.ids]
    facts = [{"id": str(record.id), "path": record.path, "filename": record.filename} for record in gone]
    if options.json:
        show.array(facts)
    else:
        for each in facts:
            print(f"cancelled {show.path(each)} (file {each['id']})")
    return 0


def retry(options: Namespace) -> int:
    """Tries files again; 1 where one of them can't be."""
    files, refused = 0, list[m.Refusal]()
    ids = list(dict.fromkeys(options.ids))
    with reaching.running(options) as connection:
        for start in range(0, len(ids) or 1, m.MANY):
            some = tuple(ids[start : start + m.MANY])
            answer = connection.call(
                m.Retried,
                lambda number, some=some: m.Retry(request=number, ids=some, everything=options.all),  # type: ignore[misc]
            )
            files, refused = files + answer.tried_files, [*refused, *answer.refused]
    if options.json:
        said = [
            {"id": str(each.id), "path": each.path, "code": each.code, "message": each.message, "hint": each.hint}
            for each in refused
        ]
        show.one({"files": files, "failed": said})
    else:
        for each in refused:
            show.trouble(f"{each.path} (file {each.id}) is not tried: {each.message}", each.hint)
        print(f"{wording.files(files)} tried again")
    return 1 if refused else 0


def _versions(files: Files, path: str) -> Iterator[FileResult]:
    """The versions of a file, not of what lies below a folder of that name. Raises INVALID_PATH where it names none."""
    folder, _, filename = path.rpartition("/")
    if not filename:
        raise error(Code.INVALID_PATH, f"{path!r} names no file")
    return files(folder).each(escape(filename))


def _on_their_way(options: Namespace, connection: Connection, word: str) -> Iterator[m.Record]:
    """The files that a word names, by id, path or glob. Raises where all of them are stored, or there are none."""
    if is_id(word):
        yield from records_of(connection, [int(word)])
        return
    files = reaching.files(options, connection)
    found = [*(files.each(word) if is_glob(word) else _versions(files, word))]
    if not found:
        raise error(Code.NO_MATCH, f"there is no file {word!r}")
    moving = [file._record for file in found if show.plain(file)["state"] not in ENDED]  # noqa: SLF001
    if not moving:
        raise error(Code.ALREADY_STORED, f"{word} is stored")
    yield from moving
