"""Who answers for a root that is not there: it has no files and no runs, and no daemon is started to say so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from ml_dash import messages as m
from ml_dash.connection import Connection
from ml_dash.errors import Code
from ml_dash.request import expect
from ml_dash.silence import ANSWER_S

M = TypeVar("M", bound=m.Message)


class Nobody(Connection):
    """A connection for commands that look, or remove, where nothing is. Anything else starts the root's daemon."""

    def call(
        self,
        reply: type[M],
        build: Callable[[int], m.Message],
        descriptors: Sequence[int] = (),
        silent_s: float | None = ANSWER_S,
        lost_s: float | None = None,
    ) -> M:
        """As `Connection.call`."""
        answer = self._answer(build(1))
        return super().call(reply, build, descriptors, silent_s, lost_s) if answer is None else expect(reply, answer)

    def _answer(self, said: m.Message) -> m.Message | None:
        answer: m.Message | None = None
        match said:
            case m.List() | m.Get():
                answer = m.Page(request=1, records=())
            case m.Prune():
                answer = m.Pruned(request=1, records=())
            case m.Wait():
                answer = m.Waited(request=1, reached=0, pending=0)
            case m.Update(id=file_id):
                answer = m.Failed(request=1, code=Code.UNKNOWN_FILE, message=f"no file has the id {file_id}")
            case m.ListExperiments(prefix=prefix, details=True):
                answer = m.Failed(request=1, code=Code.NO_MATCH, message=f"no run of {prefix} is known here")
            case m.ListExperiments():
                answer = m.Experiments(request=1, experiments=())
            case m.Status():
                answer = self._status()
        return answer

    def _status(self) -> m.StatusReport:
        root = self.endpoint.root
        return m.StatusReport(
            request=1,
            version="",
            pid=0,
            embedded=True,
            store="" if root is None else root.as_uri(),
            state_dir="",
            started_ms=0,
            connections=0,
            spool_bytes=0,
            counts=(),
        )
