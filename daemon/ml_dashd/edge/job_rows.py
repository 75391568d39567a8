"""Jobs as rows of the journal: records (rows.py) with their pin, their trouble and where the upload stands."""

from __future__ import annotations

import sqlite3
from typing import Any

from ml_dash.errors import Code
from ml_dashd.core.model import Algorithm, FileRecord, Fingerprint, Job, Pin, PinKind, Trouble
from ml_dashd.core.states import State
from ml_dashd.edge.rows import crc_blob, read_record, record_values

_PLAIN = ("state", "on_disk", "attempt", "not_before_ms", "cancel_requested", "blocked", "upload_id", "part_size",
          "algorithm", "proof", "priority")  # fmt: skip
READ_COLUMNS = (*record_values(FileRecord(0, 0, "", "", "", "", "", 0, "", 0, 0)), "pin_kind", "pin_name",
                 "pin_source", "device", "inode", "mtime_ns", "ctime_ns", "error_code", "error_message", "error_hint",
                 *_PLAIN)  # fmt: skip
"""Every column but the content of an inline pin, which is read only when it is sent."""


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
    values = {name: row[name] for name in _PLAIN}
    for flag in ("on_disk", "cancel_requested", "blocked"):
        values[flag] = bool(values[flag])
    return Job(
        **values
        | {
            "record": read_record(row),
            "pin": _read_pin(row),
            "state": State(row["state"]),
            "algorithm": Algorithm(row["algorithm"]),
            "trouble": row["error_code"] and Trouble(Code(row["error_code"]), row["error_message"], row["error_hint"]),
        }
    )


def _read_pin(row: sqlite3.Row) -> Pin:
    mark = None
    if row["inode"] is not None:
        mark = Fingerprint(row["device"], row["inode"], row["size_bytes"], row["mtime_ns"], row["ctime_ns"])
    return Pin(PinKind(row["pin_kind"]), row["pin_name"], row["pin_source"], mark)
