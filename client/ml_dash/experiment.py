"""`Experiment(prefix=...)`: where files belong, and the run during which they are saved."""

from __future__ import annotations

import functools
import inspect
import os
import shlex
import socket as sockets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from ml_dash import messages as m
from ml_dash import serialize, wording
from ml_dash.arguments import durability_of, seconds_of, texts, words
from ml_dash.connection import Connection
from ml_dash.errors import Code, MLDashError, error
from ml_dash.files import Files
from ml_dash.inbox import inbox_after
from ml_dash.metrics import Metrics
from ml_dash.params import Params
from ml_dash.prefix import place_of, prefix_of, user_name
from ml_dash.reach import find_endpoint, find_service
from ml_dash.request import numbered
from ml_dash.result import failure_of
from ml_dash.run import Run, RunState
from ml_dash.wording import say

R = TypeVar("R")

EXIT_WAIT_S = 10.0
"""How long leaving a run waits for an embedded daemon, which may end with its container."""
QUIET_S = 1.0
"""After this long a line says that it waits."""


class Experiment:
    """An experiment: `prefix` is "namespace/project/experiment", the last of them any number of segments.

    Without one it is that of ML_DASH_PREFIX or DASH_PREFIX. `{user}` and `{now:%Y-%m-%d}` in it are filled in once,
    here. `readme`, `tags`, `bindrs` and `metadata` describe the experiment; what is left out stays as it was.

    `dash_root` is the folder of a local tree, served by a daemon that is started on demand; `socket` is a daemon's
    socket; `dash_url`, whatever it names, asks for a service, whose settings say where files go. With none of them,
    the daemon is found as the README says. `wait` says whether leaving the run waits until every file is stored: True,
    False, or None for a short wait where the daemon is embedded. `durability="disk"` makes every hand-off, and every
    row that is logged, wait for stable storage. `on_full` says what a save does while the daemon's spool has no room
    for it: wait and say so ("warn"), wait in silence ("wait"), or raise RETRY_LATER ("raise").
    """

    def __init__(
        self,
        prefix: str | None = None,
        *,
        readme: str | None = None,
        tags: Sequence[str] | None = None,
        bindrs: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        dash_url: str | bool | None = None,
        dash_root: str | os.PathLike[str] | None = None,
        socket: str | os.PathLike[str] | None = None,
        wait: bool | None = None,
        exit_wait: float = EXIT_WAIT_S,
        durability: str = "",
        on_full: str = "warn",
    ) -> None:
        self.prefix = prefix_of(prefix)
        self._place = place_of(self.prefix)
        self._said = m.checked(
            m.OpenExperiment(
                request=0,
                place=self._place,
                readme=None if readme is None else words(readme, "readme"),
                tags=None if tags is None else texts(tags, "tags"),
                bindrs=None if bindrs is None else texts(bindrs, "bindrs"),
                metadata=serialize.metadata_text(metadata),
                host=sockets.gethostname(),
                user=user_name(),
            )
        )
        endpoint = find_service(socket) if dash_url else find_endpoint(socket, dash_root)
        self._connection = Connection(endpoint, on_full)
        self._wait = _wait_of(wait)
        self._exit_wait = seconds_of(exit_wait, "exit_wait") or 0.0
        self._only_reads = False
        self._run = Run(self)
        self._files = Files(self._connection, self._place, durability, self._run.opened)
        self._params = Params(self._connection, self._place)
        self._metrics = Metrics(self._connection, self._place, durability_of(durability))

    @property
    def run(self) -> Run:
        """The run: `with experiment.run as exp:`, or `run.start()` and `run.complete()`."""
        return self._run

    @property
    def files(self) -> Files:
        """The experiment's files. Raises RuntimeError outside the run."""
        self._check_open()
        return self._files

    @property
    def params(self) -> Params:
        """What it is run with. Raises RuntimeError outside the run."""
        self._check_open()
        return self._params

    @property
    def metrics(self) -> Metrics:
        """Rows of numbers as it goes on. Raises RuntimeError outside the run."""
        self._check_open()
        return self._metrics

    def flush(self, timeout: float | None = None) -> None:
        """Returns once every row is on stable storage and every file is stored; `timeout`, in seconds, is the files'.

        Raises TIMEOUT, after which the work goes on, or the error of a file that failed since the run was opened.
        """
        timeout = seconds_of(timeout, "timeout")
        self.metrics.flush()
        self.files.flush(timeout)

    def __repr__(self) -> str:
        return f"<Experiment {self.prefix} {self._run.state}>"

    def _check_open(self) -> None:
        if self._run.state is not RunState.RUNNING:
            raise error(Code.RUN_NOT_OPEN, f"the run of {self.prefix} is not open")

    def _open(self) -> None:
        """Reaches the daemon, starting it if need be, has the prefix checked, and the run noted.

        Who is served, and may not write there, reads: no run is noted, and each save is refused by the daemon.
        """
        connection = self._connection
        self._only_reads = False
        try:
            connection.call(m.Done, numbered(self._said), lost_s=connection.lost_s)
        except MLDashError as failure:
            self._only_reads = failure.code is Code.ACCESS_DENIED and connection.welcome is not None
            if not self._only_reads:
                inbox_after(failure, connection)
            say(f"it is not noted that {self.prefix} is RUNNING: {failure}")

    def _note_end(self, state: RunState, failure: str | None) -> None:
        """Has the end of the run noted. A daemon that is away, or says nothing, is waited for at most `exit_wait`."""
        if self._only_reads:
            return
        self._connection.call(
            m.Done,
            lambda number: m.EndRun(request=number, place=self._place, status=state, error=failure),
            silent_s=max(QUIET_S, self._exit_wait),
            lost_s=self._exit_wait,
        )

    def _hand_over(self) -> list[BaseException]:
        """Waits until all that is saved in the background is handed over; returns what went wrong and nobody knows."""
        background = self._connection.background
        if left := background.join(QUIET_S):
            say(f"waiting for {wording.files(left)} to be handed over")
            background.join()
        return [*background.untold()]

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
                say(f"waiting for {wording.files(waited.pending)} to be stored")
                waited = self._files.wait_all(None if patience is None else patience - first)
            except KeyboardInterrupt:  # whoever waits may go: the files do not need them
                self._say_what_remains(self._files.wait_all(0).pending)
                raise
        if waited.pending:
            self._say_what_remains(waited.pending)
        if failed := self._files.failed_in_run(waited):
            count, root = wording.files(len(failed)), self._cli_root()
            say(f"{count} failed: {failure_of(failed[0])}. To see all: ml-dash status{root}")

    def _say_what_remains(self, pending: int) -> None:
        if pending:
            root = self._cli_root()
            say(f"{wording.files(pending)} not stored yet; the daemon goes on. To wait for it: ml-dash wait{root}")

    def _cli_root(self) -> str:
        root = self._connection.endpoint.root
        return f" --root {shlex.quote(str(root))}" if root is not None else ""


def _wait_of(wait: bool | None) -> bool | None:
    if wait is not None and not isinstance(wait, bool):
        raise error(Code.INVALID_ARGUMENT, f"wait={wait!r}", "pass True, False or None; exit_wait= takes seconds")
    return wait


def ml_dash_experiment(prefix: str | None = None, **options: Any) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """A decorator: each call of the function is a run of its own experiment, which it gets as `experiment=`.

    The arguments are those of `Experiment`; fields of the prefix are filled in with each call. The run is completed
    when the function returns, and failed when it raises.
    """
    if callable(prefix):
        what = "ml_dash_experiment was given a function, not a prefix"
        raise error(Code.INVALID_ARGUMENT, what, 'write @ml_dash_experiment(prefix="namespace/project/experiment")')

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        if inspect.iscoroutinefunction(function):

            async def run_async(*args: Any, **named: Any) -> Any:
                with Experiment(prefix, **options).run as experiment:
                    return await function(*args, experiment=experiment, **named)

            return cast("Callable[..., R]", functools.wraps(function)(run_async))

        @functools.wraps(function)
        def run(*args: Any, **named: Any) -> R:
            with Experiment(prefix, **options).run as experiment:
                return function(*args, experiment=experiment, **named)

        return run

    return decorate


def files_at(prefix: str | None, connection: Connection, durability: str = "") -> Files:
    """An experiment's files without a run: what the `ml-dash` command works with."""
    return Files(connection, place_of(prefix_of(prefix)), durability, lambda: 0)
