"""`Experiment(prefix=...)`: where files belong, and the run during which they are saved."""

from __future__ import annotations

import os
import shlex
import sys
from enum import StrEnum
from types import TracebackType

from ml_dash import messages as m
from ml_dash import wording
from ml_dash.connection import Connection, now_ms
from ml_dash.errors import Code, MLDashError, error
from ml_dash.files import Files
from ml_dash.reach import default_prefix, find_endpoint
from ml_dash.result import failure_of

EXIT_WAIT_S = 10.0
"""How long leaving a run waits for an embedded daemon, which may end with its container."""
QUIET_S = 1.0
"""After this long a line says that it waits."""


class RunState(StrEnum):
    """What became of a run."""

    CREATED = "CREATED"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class Experiment:
    """An experiment: `prefix` is "namespace/project/experiment", the last of them any number of segments.

    `dash_root` is the folder of a local tree, served by a daemon that is started on demand; `socket` is a daemon's
    socket. With neither, the daemon is found as the README says. `wait` says whether leaving the run waits until every
    file is stored: True, False, or None for a short wait where the daemon is embedded. `durability="disk"` makes every
    hand-off wait for stable storage. `on_full` says what a save does while the daemon's spool has no room for it: wait
    and say so ("warn"), wait in silence ("wait"), or raise RETRY_LATER ("raise").
    """

    def __init__(
        self,
        prefix: str | None = None,
        *,
        dash_root: str | os.PathLike[str] | None = None,
        socket: str | os.PathLike[str] | None = None,
        wait: bool | None = None,
        exit_wait: float = EXIT_WAIT_S,
        durability: str = "",
        on_full: str = "warn",
    ) -> None:
        self.prefix = prefix or default_prefix() or ""
        self._place = _place(self.prefix)
        self._connection = Connection(find_endpoint(socket, dash_root), on_full)
        self._wait = wait
        self._exit_wait = exit_wait
        self._run = Run(self)
        self._files = Files(self._connection, self._place, durability, self._run.opened)

    @property
    def run(self) -> Run:
        """The run: `with experiment.run as exp:`, or `run.start()` and `run.complete()`."""
        return self._run

    @property
    def files(self) -> Files:
        """The experiment's files. Raises RuntimeError outside the run."""
        if self._run.state is not RunState.RUNNING:
            raise error(Code.RUN_NOT_OPEN, f"the run of {self.prefix} is not open")
        return self._files

    def _open(self) -> None:
        """Reaches the daemon, starting it if need be, and has the prefix checked."""
        self._connection.call(m.Done, lambda number: m.OpenExperiment(request=number, place=self._place))

    def _leave(self) -> None:
        """Waits as `wait` says, then says what is left, and with whom."""
        embedded = self._connection.embedded
        if self._wait is False or (self._wait is None and not embedded):
            return
        patience = None if self._wait else self._exit_wait
        first = QUIET_S if patience is None else min(QUIET_S, patience)
        waited = self._files.wait_all(first)
        if waited.pending and patience != first:
            try:
                _say(f"waiting for {wording.files(waited.pending)} to be stored")
                waited = self._files.wait_all(None if patience is None else patience - first)
            except KeyboardInterrupt:  # whoever waits may go: the files do not need them
                self._say_what_remains(self._files.wait_all(0).pending)
                raise
        if waited.pending:
            self._say_what_remains(waited.pending)
        if failed := self._files.failed_in_run(waited):
            count, root = wording.files(len(failed)), self._cli_root()
            _say(f"{count} failed: {failure_of(failed[0])}. To see all: ml-dash status{root}")

    def _say_what_remains(self, pending: int) -> None:
        if pending:
            root = self._cli_root()
            _say(f"{wording.files(pending)} not stored yet; the daemon goes on. To wait for it: ml-dash wait{root}")

    def _cli_root(self) -> str:
        root = self._connection.endpoint.root
        return f" --root {shlex.quote(str(root))}" if root is not None else ""


class Run:
    """The time during which an experiment's files are saved. Starting and ending are idempotent."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self.state = RunState.CREATED
        self.started_ms = 0

    def start(self) -> Experiment:
        """Opens the run; one that has ended is opened again."""
        if self.state is not RunState.RUNNING:
            self._experiment._open()  # noqa: SLF001
            self.started_ms = now_ms()
            self.state = RunState.RUNNING
        return self._experiment

    def opened(self) -> int:
        """When it was last started: milliseconds since 1970, UTC."""
        return self.started_ms

    def complete(self) -> None:
        """Ends the run well."""
        self._end(RunState.COMPLETED)

    def fail(self) -> None:
        """Ends the run as failed; its files are kept."""
        self._end(RunState.FAILED)

    def cancel(self) -> None:
        """Ends the run as cancelled; its files are kept."""
        self._end(RunState.CANCELLED)

    def __enter__(self) -> Experiment:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.complete()
            return
        try:
            self.fail()
        except MLDashError as failure:  # the script's own exception goes first
            _say(str(failure))

    def _end(self, state: RunState) -> None:
        if self.state is RunState.RUNNING:
            try:
                self._experiment._leave()  # noqa: SLF001
            finally:
                self.state = state


def files_at(prefix: str, connection: Connection, durability: str = "") -> Files:
    """An experiment's files without a run: what the `ml-dash` command works with."""
    return Files(connection, _place(prefix), durability, lambda: 0)


def _place(prefix: str) -> m.Place:
    """The three parts of a prefix; the daemon checks their names."""
    parts = prefix.split("/", 2)
    if len(parts) < 3:  # noqa: PLR2004 namespace, project, experiment
        raise error(Code.INVALID_PREFIX, f"the prefix {prefix!r} has fewer than three segments")
    return m.Place(namespace=parts[0], project=parts[1], experiment=parts[2])


def _say(text: str) -> None:
    print(f"ml-dash: {text}", file=sys.stderr)  # noqa: T201 a word to whoever started the script
