"""`push`: what a root holds goes to a service, with its ids. What is there already is skipped, so that it goes on."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ml_dash import messages as m
from ml_dash import wording
from ml_dash.arguments import open_source, printable
from ml_dash.cli import reaching, show, waiting
from ml_dash.cli.pushing_runs import runs
from ml_dash.cli.pushing_sets import PushedSets
from ml_dash.cli.trees import covers
from ml_dash.connection import Connection, new_key
from ml_dash.errors import Code, MLDashError, error
from ml_dash.home import HOME
from ml_dash.many import OF_ONE_FILE
from ml_dash.pages import pages
from ml_dash.reach import Endpoint, default_root, endpoint_of
from ml_dash.result import failure_of, records_of

PLACE_SEGMENTS = 2
"""Of `--target`: namespace and project, at least."""
OF_A_FILE = OF_ONE_FILE | {Code.ID_TAKEN}


@dataclass
class Pushed:
    """What came of it. `sent` are those that go, or went, into the service's store, with their SHA-256 in the root."""

    sent: dict[int, str] = field(default_factory=dict)
    there: int = 0
    deleted: int = 0
    failed: list[dict[str, Any]] = field(default_factory=list)
    experiments: list[str] = field(default_factory=list)
    """Those of which something is new there."""
    rows: int = 0

    def refuse(self, record: m.Record, failure: MLDashError, *, quiet: bool) -> None:
        """A file was not taken, or not stored; the rest goes on."""
        name = _name(record)
        self.failed.append({"id": str(record.id), "path": name, "code": failure.code, "message": failure.message})
        if not quiet:
            show.trouble(f"{name} (file {record.id}): {failure.message}", failure.hint)

    def refuse_experiment(self, prefix: str, failure: MLDashError, *, quiet: bool) -> None:
        """What there is of an experiment beside its files was not taken; the rest goes on."""
        self.failed.append({"experimentId": prefix, "code": failure.code, "message": failure.message})
        if not quiet:
            show.trouble(f"{prefix}: {failure.message}", failure.hint)


@dataclass(frozen=True)
class Push:
    """From a root, by its own daemon's word, to a service."""

    root: Path
    source: Connection
    service: Connection
    options: Namespace
    outcome: Pushed = field(default_factory=Pushed)
    _passed_over: set[str] = field(default_factory=set)

    @cached_property
    def sets(self) -> PushedSets:
        """The sets to which its files belong."""
        return PushedSets(self.source, self.service, self.target)

    def files(self) -> None:
        """Hands over every stored file of the root that is not there; returns once they are stored there."""
        for page in self.pages():
            mine = [record for record in page.records if self.is_meant(_experiment(record))]
            there = self.known([record.id for record in mine])
            for record in mine:
                self._one(record, there.get(record.id))
        self._settle()
        if not self.options.dry_run:
            self.sets.end(self._refuse_set)

    def is_meant(self, prefix: str) -> bool:
        """Whether an experiment is to be pushed."""
        named = self.options.prefix is None or covers(self.options.prefix, prefix)
        return named and prefix not in self._passed_over

    def pass_over(self, prefix: str, why: MLDashError) -> None:
        """Leaves an experiment out, with its files."""
        self._passed_over.add(prefix)
        self.outcome.refuse_experiment(prefix, why, quiet=self.options.json)

    def target(self, place: m.Place) -> m.Place:
        """Where a place of the root is in the service: the same, or below --target."""
        names = [place.namespace, place.project, place.experiment]
        if self.options.target:
            names = f"{self.options.target.strip('/')}/{place.experiment}".split("/", 2)
        return m.Place(namespace=names[0], project=names[1], experiment=names[2], prefix=place.prefix)

    def pages(self, place: m.Place | None = None) -> Iterator[m.Page]:
        """The root's files: all that are stored, or those of one experiment."""
        nowhere = m.Place(namespace="", project="", experiment="")
        asked = m.List(request=0, place=place or nowhere, everywhere=place is None)
        return pages(
            lambda after: self.source.call(m.Page, lambda number: replace(asked, request=number, cursor=after))
        )

    def known(self, ids: Sequence[int]) -> dict[int, m.Record]:
        """Those of these ids that the service has, as far as this user may read them."""
        left, known = tuple(ids), dict[int, m.Record]()
        while left:
            page = self.service.call(m.Page, lambda number, some=left: m.Get(request=number, ids=some))  # type: ignore[misc]
            known |= {record.id: record for record in page.records}
            left = left[left.index(int(page.cursor)) :] if page.cursor else ()
        return known

    def _one(self, record: m.Record, there: m.Record | None) -> None:
        try:
            if there is not None and self._is_there(record, there):
                return
            self.sets.note_going(record)
            if self.options.dry_run:
                self.outcome.sent[record.id] = record.sha256 or ""
            else:
                accepted = self._hand_over(record)
                self.outcome.sent[accepted.id] = record.sha256 or ""
        except MLDashError as failure:
            if failure.code not in OF_A_FILE:
                raise
            self.outcome.refuse(record, failure, quiet=self.options.json)
            return
        if not self.options.json:
            print(f"{record.id}  {_name(record)}")

    def _is_there(self, record: m.Record, there: m.Record) -> bool:
        """Whether the service has this very file, or had it. Raises ID_TAKEN for another one."""
        place = self._place(record)
        same = (there.namespace, there.project, there.experiment, there.path, there.filename, there.sha256)
        if same != (place.namespace, place.project, place.experiment, record.path, record.filename, record.sha256):
            what = f"another file has this id there, {_name(there)}"
            raise error(Code.ID_TAKEN, what)
        if there.deleted_ms is not None or there.state == "CANCELLED":
            self.outcome.deleted += 1
        elif there.state == "DONE":
            self.outcome.there += 1
            if there.pending:
                self.sets.note_going(record)
        else:
            self.sets.note_going(record)
            self._go_on(there)
            self.outcome.sent[record.id] = record.sha256 or ""
        return True

    def _go_on(self, there: m.Record) -> None:
        """One that failed there is tried again."""
        if there.state == "FAILED" and not self.options.dry_run:
            answer = self.service.call(m.Retried, lambda number: m.Retry(request=number, ids=(there.id,)))
            for refused in answer.refused:
                raise error(Code.INVALID_ARGUMENT, f"it failed there: {refused.message}", refused.hint)

    def _hand_over(self, record: m.Record) -> m.Record:
        path, share = self._path(record), self.sets.share_of(record)
        place, to = self._place(record), record.filename
        if share is not None:  # the file lies below its set's name
            whole = f"{place.prefix}/{to}".lstrip("/")
            place, to = replace(place, prefix=""), whole.removeprefix(f"{share.name}/")
        described = m.Described(
            place=place,
            to=to,
            share=share,
            description=record.description,
            tags=record.tags,
            bindrs=record.bindrs,
            metadata=record.metadata,
        )
        origin = m.Origin(
            id=record.id,
            created_ms=record.created_ms,
            updated_ms=record.updated_ms,
            sha256=record.sha256 or "",
        )
        key = new_key()
        descriptor = open_source(str(path))
        try:
            return self.service.call(
                m.Accepted,
                lambda number: m.Upload(
                    request=number, key=key, file=described, source=printable(str(path)), origin=origin
                ),
                (descriptor,),
                silent_s=None,
            ).record
        finally:
            os.close(descriptor)

    def _place(self, record: m.Record) -> m.Place:
        """Where a file goes."""
        names = {name: getattr(record, name) for name in ("namespace", "project", "experiment")}
        return self.target(m.Place(**names, prefix=record.path.strip("/")))

    def _path(self, record: m.Record) -> Path:
        """Where a root keeps a file's bytes: its layout is the README's."""
        folder = self.root / record.namespace / record.project / record.experiment / "files"
        return folder / record.path.strip("/") / str(record.id) / record.filename

    def _refuse_set(self, record: m.SetRecord, failure: MLDashError) -> None:
        what = error(failure.code, f"the set {record.name} (attempt {record.attempt}): {failure.message}", failure.hint)
        self.outcome.refuse_experiment(_experiment(record), what, quiet=self.options.json)

    def _settle(self) -> None:
        """Waits until all are stored there; their SHA-256 is compared, as it was while they were sent."""
        if self.options.dry_run or not self.outcome.sent:
            return
        ids = list(self.outcome.sent)
        look = waiting.at_ids(self.service, ids)
        with show.Bar() as bar:
            title = wording.files(len(ids))
            waiting.until_ended(look, lambda done, total: bar.update(title, done, total))
        for record in records_of(self.service, ids):
            failure = self._failure(record)
            if failure is not None:
                del self.outcome.sent[record.id]
                self.outcome.refuse(record, failure, quiet=self.options.json)

    def _failure(self, record: m.Record) -> MLDashError | None:
        if record.state != "DONE":
            return failure_of(record)
        if record.sha256 != self.outcome.sent[record.id]:
            what = f"it is stored with the SHA-256 {record.sha256}, not {self.outcome.sent[record.id]}"
            return error(Code.CHECKSUM_MISMATCH, what)
        return None


WHAT = (runs, Push.files)
"""What a root holds, in the order in which it is pushed."""


def push(options: Namespace) -> int:
    """Pushes a root; 1 where something of it could not be."""
    root = Path(options.folder or default_root()).absolute()
    if not (root / HOME).is_dir():
        raise error(Code.NOT_A_FILE, f"{root} is no root: it has no {HOME}", "name the folder that a run has saved to")
    if options.target and len(options.target.strip("/").split("/")) < PLACE_SEGMENTS:
        raise error(Code.INVALID_PREFIX, f"--target {options.target} has fewer than two segments", "name NS/PROJ")
    with closing(Connection(endpoint_of(root))) as source, closing(Connection(_service(options, root))) as service:
        service.call(m.StatusReport, lambda number: m.Status(request=number))  # before anything is waited for
        _wait_for(source, options)
        work = Push(root, source, service, options)
        try:
            for each in WHAT:
                each(work)
        except KeyboardInterrupt:
            hint = "keep the root until they are stored there; the same command goes on"
            what = f"{wording.files(len(work.outcome.sent))} handed over so far go on by themselves"
            raise show.Interrupted(what, hint) from None
        left, incomplete = _left_in(source)
    return _tell(work.outcome, left, incomplete, options)


def _service(options: Namespace, root: Path) -> Endpoint:
    """Where to. Raises DAEMON_UNAVAILABLE where there is none but the root's own."""
    endpoint = reaching.endpoint(options)
    typed = options.root is not None
    if endpoint.root is not None and (not typed or endpoint.root.resolve() == root.resolve()):
        raise error(
            Code.DAEMON_UNAVAILABLE, "no service runs here that could take it", "name one with --socket, or start it"
        )
    return endpoint


def _wait_for(source: Connection, options: Namespace) -> None:
    """What is on its way in the root is stored there first."""
    with show.Bar("files") as bar:
        waiting.until_ended(
            waiting.at_everything(source),
            lambda done, total: bar.update("storing in the root", done, 0 if options.json else total),
        )


def _left_in(source: Connection) -> tuple[int, int]:
    """Files that failed in the root, of which there is nothing to push; and sets that are not complete, which stay."""
    report = source.call(m.StatusReport, lambda number: m.Status(request=number))
    return sum(count.files for count in report.counts if count.state == "FAILED"), len(report.sets)


def _tell(outcome: Pushed, left: int, incomplete: int, options: Namespace) -> int:
    if options.json:
        said: dict[str, Any] = {
            "experiments": outcome.experiments,
            "rows": outcome.rows,
            "pushed": [str(one) for one in outcome.sent],
            "skipped": outcome.there,
            "deletedThere": outcome.deleted,
            "failedInRoot": left,
            "incompleteSetsInRoot": incomplete,
            "failed": outcome.failed,
        }
        show.one(said | ({"dryRun": True} if options.dry_run else {}))
    else:
        would = "would be pushed" if options.dry_run else "pushed"
        parts = [f"{wording.files(len(outcome.sent))} {would}"]
        if outcome.experiments:
            what = (
                f"{wording.counted(len(outcome.experiments), 'experiment')} with {wording.counted(outcome.rows, 'row')}"
            )
            parts = [f"{what}, {parts[0]}"]
        parts += [f"{outcome.there} there already"] if outcome.there else []
        parts += [f"{outcome.deleted} deleted there"] if outcome.deleted else []
        parts += [f"{left} failed in the root"] if left else []
        parts += [f"{wording.counted(incomplete, 'incomplete set')} left in the root"] if incomplete else []
        parts += [f"{len(outcome.failed)} failed"] if outcome.failed else []
        print(", ".join(parts))
    return 1 if outcome.failed or left else 0


def _experiment(record: m.Record | m.SetRecord) -> str:
    return f"{record.namespace}/{record.project}/{record.experiment}"


def _name(record: m.Record) -> str:
    return f"{_experiment(record)}: {record.path.strip('/')}/{record.filename}".replace(": /", ": ")
