"""The daemon at a glance, for whoever looks after it: counts, ids, codes and hints, and no name of a file or a user."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml_dashd.core.figures import Figures, Summary
from ml_dashd.core.model import Job, Trouble
from ml_dashd.core.redact import redact

NEWEST = 8
"""Files that failed which are shown."""


@dataclass(frozen=True, slots=True)
class Running:
    """What does not change while the daemon runs. `quota_bytes` is the spool's, 0 for none."""

    version: str
    started_ms: int
    quota_bytes: int


def overview(
    running: Running,
    figures: Figures,
    troubles: Mapping[str, Trouble],
    summary: Summary | None,
    counted: Mapping[str, Mapping[str, int]],
    now_ms: int,
) -> dict[str, Any]:
    """What `/status.json` says. What could not be had in time is null.

    `counted` are retries by fault and failures by code, since the start. The message of a file's trouble may name the
    file, so of those only code and hint are told.
    """
    backlog = figures.backlog
    files, size_bytes = backlog.on_their_way() if backlog else (None, None)
    return {
        "version": running.version,
        "uptimeSeconds": max(0, now_ms - running.started_ms) // 1000,
        "ready": not troubles,
        "reasons": reasons(troubles),
        "checks": dict(figures.checks),
        "files": None if summary is None else _by_state(summary),
        "queue": {"files": files, "bytes": size_bytes, "oldestSeconds": figures.queue_age_s},
        "sending": {
            "bytesPerSecond": int(figures.sending.bytes_per_second),
            "requests": dict(figures.sending.requests),
            "requestsLimit": figures.sending.places,
            "circuitsOpen": dict(figures.circuits),
        },
        "retries": dict(counted["retries"]),
        "failures": dict(counted["failures"]),
        "blocked": None
        if backlog is None
        else [{"files": each.files, **_said(each.trouble)} for each in backlog.blocked],
        "failed": None if summary is None else [_failed(job, now_ms) for job in summary.failed[:NEWEST]],
        "spool": {
            "bytes": figures.spool_bytes,
            "quotaBytes": running.quota_bytes or None,
            "freeBytes": [disk.free_bytes for disk in figures.disks],
        },
        "connections": figures.connections,
    }


def reasons(troubles: Mapping[str, Trouble]) -> list[dict[str, str]]:
    """Why the daemon is not well, or not ready, by the check that says so."""
    return [{"check": name, "message": redact(trouble.message), **_said(trouble)} for name, trouble in troubles.items()]


def _said(trouble: Trouble) -> dict[str, str]:
    return {"code": trouble.code, "hint": redact(trouble.hint)}


def _by_state(summary: Summary) -> dict[str, dict[str, int]]:
    return {each.state: {"files": each.files, "bytes": each.size_bytes} for each in summary.counts}


def _failed(job: Job, now_ms: int) -> dict[str, Any]:
    said = _said(job.trouble) if job.trouble else {"code": "", "hint": ""}
    return {"id": str(job.id), "secondsAgo": max(0, now_ms - job.record.updated_ms) // 1000, **said}
