"""What is there: files by path, by glob, by tag and by id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ml_dash import messages as m
from ml_dash.arguments import escape, flag, is_glob, sought, texts
from ml_dash.errors import Code, MLDashError, error
from ml_dash.pages import pages
from ml_dash.request import numbered
from ml_dash.result import FileResult, records_of
from ml_dash.tensors import Tensors


class Look(Tensors):
    """The calls that look for files, at a place of an experiment."""

    def list(
        self, pattern: str | None = None, *, tags: Sequence[str] = (), latest: bool = False, pending: bool = False
    ) -> list[FileResult]:
        """The files at and below the prefix, every version, newest first within a path; of `files(file_id=…)` that one.

        `pattern` is relative to the prefix: `*` stays inside a folder, `**` spans any number of them. `tags` leaves
        only files that have all of them, `latest` only the newest version of each path: with both, the newest that has
        the tags. Files that are still on their way are listed too; see `state`. Files of sets that are not complete
        are listed only with `pending`; see `checkpoint()`.
        """
        return [*self.each(pattern, tags=tags, latest=latest, pending=pending)]

    def each(
        self, pattern: str | None = None, *, tags: Sequence[str] = (), latest: bool = False, pending: bool = False
    ) -> Iterator[FileResult]:
        """`list`, a page at a time: for more files than one cares to hold."""
        wanted = texts(tags, "tags")
        if self._defaults.file_id is not None:
            return map(self._result, [one for one in [self._newest(None)] if {*wanted} <= {*one.tags}])
        found = self._records(self._place, pattern, tags=wanted, latest=latest, pending=flag(pending, "pending"))
        return map(self._result, found)

    def exists(self, name: str | None = None) -> bool:
        """Whether a version of the file is there, stored or on its way: the one of the prefix, or `name` below it.

        With a glob, whether any file fits; with `files(file_id=…)`, whether that version is there.
        """
        try:
            return next(self._found(name), None) is not None
        except MLDashError as failure:
            if failure.code in (Code.NO_MATCH, Code.UNKNOWN_FILE):
                return False
            raise

    # ---- the pieces

    def _found(self, name: str | None) -> Iterator[m.Record]:
        """Versions of one file, or all that fit a glob."""
        if self._defaults.file_id is not None:
            return iter([self._newest(None)])
        if name is not None and is_glob(name):
            return self._records(self._place, name, latest=True, page_size=1)
        return self._named(name, latest=True, page_size=1)

    def _records(
        self,
        place: m.Place,
        pattern: str | None,
        *,
        latest: bool = False,
        tags: tuple[str, ...] = (),
        pending: bool = False,
        page_size: int = 500,
    ) -> Iterator[m.Record]:
        wanted = None if pattern is None else sought(pattern, "pattern")

        def ask(after: str | None) -> m.Page:
            said = m.List(
                request=0,
                place=place,
                pattern=wanted,
                latest=latest,
                cursor=after,
                page_size=page_size,
                tags=tags,
                pending=pending,
            )
            return self._connection.call(m.Page, numbered(said))

        return (record for page in pages(ask) for record in page.records)

    def _versions(self, name: str | None, *, latest: bool = False) -> Sequence[m.Record]:
        """All versions of one file, newest first, or only that: the one of the prefix, or `name` below it."""
        found = [*self._named(name, latest=latest)]
        if not found:
            raise self._no_file(name)
        return found

    def _named(self, name: str | None, *, latest: bool = False, page_size: int = 500) -> Iterator[m.Record]:
        path = self._below(name)
        folder, _, filename = path.rpartition("/")
        if not filename:
            raise error(Code.NO_MATCH, "no file is named", 'say which, as in files("model.pt"), or pass a pattern')
        return self._records(replace(self._place, prefix=folder), escape(filename), latest=latest, page_size=page_size)

    def _newest(self, name: str | None) -> m.Record:
        if (file_id := self._defaults.file_id) is not None:
            return self._by_id(file_id)
        return self._versions(name, latest=True)[0]

    def _by_id(self, file_id: int) -> m.Record:
        (record,) = records_of(self._connection, [file_id])
        if record.deleted_ms is not None or record.state == "CANCELLED":
            raise error(Code.UNKNOWN_FILE, f"no file has the id {file_id}")
        return record

    def _no_file(self, name: str | None) -> Exception:
        """Nothing is called that, unless it is a folder."""
        where = self._below(name)
        if next(self._records(replace(self._place, prefix=where), None, page_size=1), None) is None:
            return self._no_match(name)
        hint = f'all that is in it fits the pattern "**"; from a shell it is "{where}/**", or get -r'
        return error(Code.NO_MATCH, f"{where!r} in {self._experiment()} is a folder, and no file", hint)

    def _no_match(self, pattern: str | None) -> Exception:
        where = self._below(pattern)
        hint = None
        if pattern is not None and "[" in pattern:
            hint = f'for a "[" that is part of a name, write "[[]": {pattern.replace("[", "[[]")!r}'
        return error(Code.NO_MATCH, f"no file fits {where!r} in {self._experiment()}", hint)

    def _below(self, name: str | None) -> str:
        """A name or a pattern at this place, as the experiment has it."""
        return "/".join(part for part in (self._place.prefix, sought(name or "", "name")) if part)

    def _experiment(self) -> str:
        return f"{self._place.namespace}/{self._place.project}/{self._place.experiment}"
