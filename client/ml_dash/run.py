"""The run of an experiment: how it begins and ends, and what is noted of that."""

from __future__ import annotations

import traceback
from enum import StrEnum
from types import TracebackType
from typing import TYPE_CHECKING

from ml_dash.arguments import text
from ml_dash.errors import MLDashError, NetworkError
from ml_dash.request import now_ms
from ml_dash.wording import say

if TYPE_CHECKING:
    from ml_dash.experiment import Experiment

ERROR_CHARACTERS = 16 * 1024
"""Of what ended a run, as it is noted; what the message takes."""


class RunState(StrEnum):
    """What became of a run."""

    CREATED = "CREATED"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class Run:
    """The time during which an experiment's files, parameters and metrics are saved.

    Starting and ending are idempotent, and noted durably. Of `with` blocks inside each other the outermost ends it.
    A script that is killed says nothing: its experiment stays RUNNING until it is opened and ended again. Of several
    processes, whoever ends last, or starts again, is noted.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self.state = RunState.CREATED
        self.started_ms = 0
        self._blocks = 0
        """`with` blocks that are open: a block inside another is a part of the same run."""

    def __repr__(self) -> str:
        return f"<Run of {self._experiment.prefix} {self.state}>"

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

    def fail(self, error: str | BaseException | None = None) -> None:
        """Ends the run as failed; its files are kept. `error`, an exception or text, says why.

        Of it, 16,384 characters are noted.
        """
        if isinstance(error, BaseException):
            error = _in_words(error)
        self._end(RunState.FAILED, None if error is None else text(error, "error"))

    def cancel(self) -> None:
        """Ends the run as cancelled; its files are kept."""
        self._end(RunState.CANCELLED)

    def __enter__(self) -> Experiment:
        experiment = self.start()
        self._blocks += 1
        return experiment

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._blocks -= 1
        if self._blocks:  # the outermost block ends it
            return
        if kind is None:
            self._end(RunState.COMPLETED, leaving=True)
            return
        try:
            if isinstance(raised, SystemExit) and not raised.code:  # sys.exit() ends a script well
                self._end(RunState.COMPLETED, leaving=True)
            else:
                self._end(RunState.FAILED, _in_words(raised), leaving=True)
        except MLDashError as failure:  # the script's own exception goes first
            say(str(failure))

    def _end(self, state: RunState, error: str | None = None, *, leaving: bool = False) -> None:
        """Waits for saves in the background, has it noted, then waits for files.

        Who leaves a block, its work done, is only told where it is not noted. A save that was lost fails the run.
        """
        if self.state is not RunState.RUNNING:
            return
        try:
            lost = self._experiment._hand_over()  # noqa: SLF001
        except KeyboardInterrupt:  # whoever waits may go: Python waits for the rest at the script's end
            self._note(state, error, leaving=leaving)
            raise
        if lost and state is RunState.COMPLETED:
            if leaving:
                self._note(RunState.FAILED, _in_words(lost[0]), leaving=True)
            for more in lost[1:]:
                say(f"a save in the background failed: {_in_words(more)}")
            raise lost[0]
        for each in lost:
            say(f"a save in the background failed: {_in_words(each)}")
        self._note(state, error, leaving=leaving)

    def _note(self, state: RunState, error: str | None, *, leaving: bool) -> None:
        ended = leaving
        try:
            try:
                self._experiment._note_end(state, error and error[:ERROR_CHARACTERS])  # noqa: SLF001
                ended = True
            except NetworkError as failure:
                if not leaving:
                    raise
                say(f"it is not noted that {self._experiment.prefix} is {state}: {failure}")
            self._experiment._leave()  # noqa: SLF001
        finally:
            if ended:  # else the call can be made again
                self.state = state


def _in_words(raised: BaseException | None) -> str:
    return "".join(traceback.format_exception_only(raised)).strip()
