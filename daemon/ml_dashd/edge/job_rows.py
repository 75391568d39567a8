"""Jobs as rows of the journal: records (rows.py) with their pin, their trouble and where the upload stands."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from operator import itemgetter
from typing import Any

from ml_dash.errors import Code
from ml_dashd.core.model import Algorithm, FileRecord, Fingerprint, Job, Pin, PinKind, Trouble
from ml_dashd.core.states import State
from ml_dashd.edge.due import OPEN
from ml_dashd.edge.rows import RECORD_COLUMNS, crc_blob, made, read_record, record_values

_PLAIN = ("state", "on_disk", "attempt", "not_before_ms", "cancel_requested", "blocked", "upload_id", "part_size",
          "algorithm", "proof", "priority", "seal", "supersedes", "superseded_by", "said_ms")  # fmt: skip
READ_COLUMNS = (*RECORD_COLUMNS, "pin_kind", "pin_name", "pin_source", "device", "inode", "mtime_ns", "ctime_ns",
                "error_code", "error_message", "error_hint", *_PLAIN)  # fmt: skip
"""What a job is read from."""

_OF_PLAIN = itemgetter(*_PLAIN)
_FLAGS = ("on_disk", "cancel_requested", "blocked", "seal", "supersedes")
_STATES = {str(state): state for state in State}
_KINDS = {str(kind): kind for kind in PinKind}
_ALGORITHMS = {str(algorithm): algorithm for algorithm in Algorithm}
"""An Enum that is called takes seven times as long as a dict that is asked."""
_OF_RECORD = frozenset(RECORD_COLUMNS)


def job_values(job: Job) -> dict[str, Any]:
    """A new job's columns."""
    plain = {name: getattr(job, name) for name in _PLAIN}
    plain |= {"state": str(job.state), "open": OPEN[job.state], "algorithm": str(job.algorithm)}
    return record_values(job.record) | plain | pin_columns(job.pin) | _trouble_columns(job.trouble)


def changed_columns(changes: dict[str, Any]) -> dict[str, Any]:
    """Changed columns, where `pin`, `trouble` and the CRC take several or another form."""
    values = dict(changes)
    if "pin" in values:
        values |= pin_columns(values.pop("pin"))
    if "trouble" in values:
        values |= _trouble_columns(values.pop("trouble"))
    if "crc64nvme" in values:
        values["crc64nvme"] = crc_blob(values["crc64nvme"])
    return values


def pin_columns(pin: Pin) -> dict[str, Any]:
    """A pin's columns, its fingerprint's included."""
    mark = pin.fingerprint
    return {
        "pin_kind": str(pin.kind),
        "pin_name": pin.name,
        "pin_source": pin.source,
        "device": mark and mark.device,
        "inode": mark and mark.inode,
        "mtime_ns": mark and mark.mtime_ns,
        "ctime_ns": mark and mark.ctime_ns,
    }


def _trouble_columns(trouble: Trouble | None) -> dict[str, Any]:
    return {
        "error_code": trouble and trouble.code,
        "error_message": trouble and trouble.message,
        "error_hint": trouble and trouble.hint,
    }


def read_job(row: sqlite3.Row) -> Job:
    """The job of a row that has READ_COLUMNS."""
    columns = dict(zip(row.keys(), row, strict=True))  # a Row looks each name up from the first on
    values = dict(zip(_PLAIN, _OF_PLAIN(columns), strict=True))
    for flag in _FLAGS:
        values[flag] = bool(values[flag])
    values["state"] = _STATES[values["state"]]
    values["algorithm"] = _ALGORITHMS[values["algorithm"]]
    values["record"] = read_record(columns)
    values["pin"] = _read_pin(columns)
    values["trouble"] = _read_trouble(columns)
    return made(Job, values)


def _read_pin(columns: Mapping[str, Any]) -> Pin:
    mark = None
    if columns["inode"] is not None:
        mark = Fingerprint(*(columns[name] for name in ("device", "inode", "size_bytes", "mtime_ns", "ctime_ns")))
    return Pin(_KINDS[columns["pin_kind"]], columns["pin_name"], columns["pin_source"], mark)


def _read_trouble(columns: Mapping[str, Any]) -> Trouble | None:
    code = columns["error_code"]
    return code and Trouble(Code(code), columns["error_message"], columns["error_hint"])


def changed_job(job: Job, changes: Mapping[str, Any]) -> Job:
    """`dataclasses.replace`, for a job and its record together, in a tenth of its time: a batch asks for thousands."""
    of_record = _OF_RECORD & changes.keys()
    record = made(FileRecord, vars(job.record) | {name: changes[name] for name in of_record})
    own = {name: changes[name] for name in changes.keys() - of_record}
    return made(Job, vars(job) | own | {"record": record})
