"""Jobs as rows of the journal: records (rows.py) with their pin, their trouble and where the upload stands."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import fields
from operator import attrgetter
from typing import Any

from ml_dash.errors import Code
from ml_dashd.core.model import Algorithm, FileRecord, Fingerprint, Job, Pin, PinKind, Trouble
from ml_dashd.core.states import State
from ml_dashd.edge.rows import crc_blob, read_record, record_values

_PLAIN = ("state", "on_disk", "attempt", "not_before_ms", "cancel_requested", "blocked", "upload_id", "part_size",
          "algorithm", "proof", "priority", "seal", "supersedes", "superseded_by", "said_ms")  # fmt: skip
READ_COLUMNS = (*record_values(FileRecord(0, 0, "", "", "", "", "", 0, "", 0, 0)), "pin_kind", "pin_name",
                 "pin_source", "device", "inode", "mtime_ns", "ctime_ns", "error_code", "error_message", "error_hint",
                 *_PLAIN)  # fmt: skip
"""Every column but the content of an inline pin, which is read only when it is sent."""

_RECORD_AT = {field.name: at for at, field in enumerate(fields(FileRecord))}
_JOB_AT = {field.name: at for at, field in enumerate(fields(Job))}
_RECORD_OF, _JOB_OF = attrgetter(*_RECORD_AT), attrgetter(*_JOB_AT)


def job_values(job: Job) -> dict[str, Any]:
    """A new job's columns."""
    plain = {name: getattr(job, name) for name in _PLAIN}
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
        "pin_kind": pin.kind,
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
    values = {name: columns[name] for name in _PLAIN}
    for flag in ("on_disk", "cancel_requested", "blocked", "seal", "supersedes"):
        values[flag] = bool(values[flag])
    values["state"] = State(columns["state"])
    values["algorithm"] = Algorithm(columns["algorithm"])
    return Job(read_record(columns), _read_pin(columns), trouble=_read_trouble(columns), **values)


def _read_pin(columns: Mapping[str, Any]) -> Pin:
    mark = None
    if columns["inode"] is not None:
        mark = Fingerprint(*(columns[name] for name in ("device", "inode", "size_bytes", "mtime_ns", "ctime_ns")))
    return Pin(PinKind(columns["pin_kind"]), columns["pin_name"], columns["pin_source"], mark)


def _read_trouble(columns: Mapping[str, Any]) -> Trouble | None:
    code = columns["error_code"]
    return code and Trouble(Code(code), columns["error_message"], columns["error_hint"])


def changed_job(job: Job, changes: Mapping[str, Any]) -> Job:
    """`dataclasses.replace`, for a job and its record together, in half its time: a batch asks for thousands."""
    record, own = list(_RECORD_OF(job.record)), list(_JOB_OF(job))
    for name, value in changes.items():
        if (at := _RECORD_AT.get(name)) is not None:
            record[at] = value
        else:
            own[_JOB_AT[name]] = value
    own[_JOB_AT["record"]] = FileRecord(*record)
    return Job(*own)
