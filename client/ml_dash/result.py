"""What `upload` and `save_*` return: a file's record, at once. Only its checksum may have to be waited for."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, BinaryIO, NamedTuple, TypeVar

from ml_dash import wording
from ml_dash.arguments import seconds_of
from ml_dash.connection import Connection
from ml_dash.errors import Code, MLDashError, error, parse_code
from ml_dash.messages import Get, ListSets, Message, Page, Record, Wait, Waited
from ml_dash.request import numbered

M = TypeVar("M", bound=Message)

WAIT_MS = 30_000
"""One request's wait; longer waits ask again."""
IDS_AT_ONCE = 1000
"""The most that a request takes."""


class Progress(NamedTuple):
    """How far a file has come: bytes the store has, of how many, and the state."""

    done_bytes: int
    total_bytes: int
    state: str


class FileResult(dict[str, Any]):
    """A file's record. Everything is there at once but `checksum`, which reading waits for where it is not known yet.

    It resolves alike through `[]`, `get`, `items`, `values`, `**`, `copy`, `json.dumps` and `pickle`; `repr` and `==`
    never wait, and compare and show it as None until it is known.
    """

    def __init__(self, record: Record, connection: Connection | None) -> None:
        super().__init__()
        self._connection = connection
        self._take_over(record)

    @property
    def id(self) -> str:
        """The same as `["id"]`."""
        return str(self["id"])

    @property
    def acknowledged(self) -> bool:
        """Whether the daemon has it; only that of a save in the background may not be yet."""
        return True

    # ---- the file's way

    @property
    def state(self) -> str:
        """Where the file is now: QUEUED, SENDING, COMPLETING, VERIFIED, DONE, FAILED or CANCELLED. Asks the daemon."""
        return str(self.refresh()["state"])

    def wait(self, timeout: float | None = None) -> FileResult:
        """Returns once the file is stored and listed; `timeout` in seconds, None for as long as it takes.

        Raises the error that ended it (SUPERSEDED for one that gave way to a newer version, whose id it names), or
        TIMEOUT, after which the work goes on. Idempotent.
        """
        began = time.monotonic()
        self._identify(seconds_of(timeout, "timeout"))
        left = None if timeout is None else max(0.0, timeout - (time.monotonic() - began))
        _wait([self], "stored", left)
        return self.refresh()

    def progress(self) -> Progress:
        """How far it has come, now."""
        self.refresh()
        return Progress(self._record.sent_bytes, self._record.size_bytes, self._record.state)

    def refresh(self) -> FileResult:
        """Brings every field up to date, in place."""
        if self._connection is not None and self._is_identified():
            (record,) = records_of(self._connection, [self._record.id])
            self._take_over(record)
        return self

    def _take_over(self, record: Record) -> None:
        self._record = record
        super().update(to_dict(record))

    # ---- its id: a file that was left in an inbox has none yet (inbox.py)

    def _identify(self, timeout: float | None = None) -> None:
        """Returns once it has an id; raises TIMEOUT, or what it was refused for."""

    def _is_identified(self) -> bool:
        """Whether it has one, as far as the daemon can be asked."""
        return True

    # ---- the checksum that may have to be waited for

    def __getitem__(self, key: str) -> Any:
        if key == "id":
            self._identify()
        elif key == "checksum":
            self._resolve()
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default  # noqa: SIM401 dict.get would go past __getitem__

    def __iter__(self) -> Iterator[str]:
        # Overridden so that dict(result) and **result take the values through __getitem__.
        return super().__iter__()

    def items(self) -> Any:
        self._resolve()
        return super().items()

    def values(self) -> Any:
        self._resolve()
        return super().values()

    def copy(self) -> dict[str, Any]:
        return dict(self.items())

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return copy.deepcopy(self.copy(), memo)

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (self.copy(),)

    def _resolve(self) -> None:
        self._identify()
        if super().__getitem__("checksum") is None:
            _wait([self], "hashed", None)
            self.refresh()


class Written:
    """A file that is being written: `out` takes its bytes, `file` is its record once it is handed over."""

    def __init__(self, out: BinaryIO, *, seal: bool) -> None:
        self.out = out
        self.seal = seal
        """Whether the daemon puts an archive's checksums right; it does not for one that lies in an inbox."""
        self.file: FileResult


def records_of(connection: Connection, ids: Sequence[int]) -> Iterator[Record]:
    """The files of these ids, in their order. Raises UNKNOWN_FILE for one that is not known."""
    left = tuple(ids)
    while left:
        some = left[:IDS_AT_ONCE]
        page = connection.call(Page, lambda number, some=some: Get(request=number, ids=some))  # type: ignore[misc]
        known = {record.id for record in page.records}
        asked = some[: some.index(int(page.cursor))] if page.cursor else some
        if missing := [one for one in asked if one not in known]:
            raise error(Code.UNKNOWN_FILE, f"no file has the id {missing[0]}")
        yield from page.records
        left = left[len(asked) :]


def wait_for(connection: Connection, ids: Sequence[int], until: str, timeout: float | None) -> None:
    """Returns once every file has reached `until`; raises the error of one that never will, or TIMEOUT."""
    timeout, pending = seconds_of(timeout, "timeout"), 0
    for answer in answers(connection, Waited, Wait(request=0, until=until, timeout_ms=0, ids=tuple(ids)), timeout):
        if answer.failed:
            raise failure_of(answer.failed[0])
        if not answer.pending:
            return
        pending = answer.pending
    raise error(Code.TIMEOUT, f"{pending} of {wording.files(len(ids))} not {until} after {timeout:g} s")


def answers(connection: Connection, reply: type[M], asked: Wait | ListSets, timeout: float | None) -> Iterator[M]:
    """The answers to a request that waits, which is asked again and again; they end with the time, at least one."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        left_ms = WAIT_MS if deadline is None else max(0, min(WAIT_MS, int((deadline - time.monotonic()) * 1000)))
        silent_s = None if deadline is None else left_ms / 1000
        yield connection.call_aside(reply, numbered(replace(asked, timeout_ms=left_ms)), silent_s=silent_s)
        if deadline is not None and time.monotonic() >= deadline:
            return


def failure_of(record: Record) -> MLDashError:
    """The error of a file that failed or was cancelled."""
    path = f"{record.path.rstrip('/')}/{record.filename}"
    is_superseded = record.error_code == Code.SUPERSEDED
    if (record.state == "CANCELLED" and not is_superseded) or record.error_code is None:
        return error(Code.CANCELLED, f"{path} (file {record.id}) was cancelled")
    message = f"{path} (file {record.id}): {record.error_message}"
    return error(parse_code(record.error_code), message, record.error_hint)


def to_dict(record: Record) -> dict[str, Any]:
    """A record with the public names; the same from upload, save, list and update, on every store.

    A file of a set has `checkpoint`, too, which says of which, and whether that is `pending`.
    """
    return _of_set(record) | {
        "id": str(record.id),
        "experimentId": f"{record.namespace}/{record.project}/{record.experiment}",
        "path": record.path,
        "filename": record.filename,
        "description": record.description,
        "tags": list(record.tags),
        "bindrs": list(record.bindrs),
        "contentType": record.content_type,
        "sizeBytes": record.size_bytes,
        "checksum": record.sha256,
        "metadata": None if record.metadata is None else json.loads(record.metadata),
        "createdAt": iso_time(record.created_ms),
        "uploadedAt": iso_time(record.uploaded_ms),
        "updatedAt": iso_time(record.updated_ms),
        "deletedAt": iso_time(record.deleted_ms),
        "state": record.state,
        "ack": record.ack,
        "pin": record.pin,
    }


def _of_set(record: Record) -> dict[str, Any]:
    share = record.share
    if share is None:
        return {}
    said = {"name": share.name, "attempt": share.attempt, "rank": share.rank, "worldSize": share.world_size}
    return {"checkpoint": said | {"pending": record.pending}}


def _wait(results: Sequence[FileResult], until: str, timeout: float | None) -> None:
    connection = results[0]._connection  # noqa: SLF001
    if connection is not None:
        wait_for(connection, [result._record.id for result in results], until, timeout)  # noqa: SLF001


def iso_time(ms: int | None) -> str | None:
    """Milliseconds since 1970 as records have them: ISO 8601, UTC, to the millisecond."""
    if ms is None:
        return None
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
