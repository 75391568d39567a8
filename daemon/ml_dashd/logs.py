"""One line an event, for people or, as JSON, for programs.

A call gives the event's name, which never changes between releases, and its fields:

    log.info("file_stored", extra={"id": job.id, "path": job.record.path})

Whatever a peer has named is quoted and cut: it can neither forge a line nor fill the disk with one. Credentials are
taken out of every text (core/redact.py).
"""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

from ml_dashd.core.redact import redact

OURS = "ml_dashd"
"""The loggers whose messages are event names; what libraries say is the event `library_message`."""
LONGEST = 4096
"""Characters of one field."""
log = logging.getLogger(OURS)

_STANDARD = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"})
_NEEDS_QUOTES = frozenset(" \"'=\\")
_INDENT = "    "
_NAMES: dict[str, Callable[[], str]] = {}

EVENTS = {
    "accept_failed": "a connection could not be taken; the next is, after a pause",
    "bytes_reclaimed": "the store has the bytes of files that were deleted longer ago than store.delete_grace no more",
    "capabilities_found": "what the S3 server does with the bucket was found out, and which checksum follows",
    "capabilities_not_renewed": "what the S3 server does could not be found out anew; what is known holds",
    "catalog_away": "MongoDB, or the disk of the catalog, takes nothing: stored files wait to be listed",
    "catalog_back": "the catalog answers again",
    "catalog_not_exported": "the catalog could not be written into a root on a network file system; it is tried again",
    "catalog_not_merged": "the catalog that came with a root could not be read; what it lists is not shown",
    "check_failed": "a defect in a check of readiness",
    "circuit_closed": "the store has answered, or nobody waits any more: files go on",
    "circuit_opened": "files wait, and one asks the store now and then: of all, or of one experiment",
    "circuit_stumbled": "the journal could not be told which files wait for the store, or asked for one; it is again",
    "clean_postponed": "what the store has of a failed file could not be removed now; it is tried again",
    "connection_lost": "a client went away in the middle of something",
    "connection_refused": "a uid that may not connect, or too many connections",
    "copy_failed": "a defect in a copy in the background; the file goes on from its source",
    "copy_postponed": "a copy of a source can't be made now, for want of room, say; it is tried again",
    "crashed": "a defect ended the daemon, or one of its threads",
    "descriptor_not_kept": "systemd keeps as many descriptors as it can: this and the next ones end with the daemon",
    "disk_full": "a database lives on its reserve, and hand-offs are refused",
    "disk_has_room": "hand-offs are taken again",
    "drain_cancelled": "the client that had asked for a drain has gone",
    "drain_made_up": "everything that the list of a drain names is stored; the list is removed",
    "drain_started": "the most valuable files go first, for so long",
    "drain_stumbled": "the journal or the disk kept a drain from something; it goes on without",
    "drained": "a drain, or a stop, has ended: what is left, and the file that lists it",
    "examination_stumbled": "a call that the daemon does without could not be tried",
    "failed_once_answered": "a hand-off was acknowledged, and what follows it failed: the file is in the journal, and "
    "goes on",
    "file_blocked": "files wait until an operator has mended something (one line a cause)",
    "file_cancelled": "deleted, or superseded, before it was stored: nothing of it is left",
    "file_adopted": "a local store has taken a source itself, or its blocks: nothing is copied",
    "file_copied": "a linked or held source has a copy in the spool: its owner may overwrite it",
    "file_failed": "given up; its owner is told why",
    "file_held_back": "the journal can't be written now; the file goes on later",
    "file_retry": "it goes on later, by itself",
    "file_tried_again": "failed before, and back in the queue because somebody asked",
    "file_stored": "stored, verified and listed",
    "file_stumbled": "it goes on later, after a defect or an error of the disk",
    "file_superseded": "a newer version of its path is taken in: it is dropped",
    "files_stored": "small files that were stored, verified and listed together",
    "holder_not_renewed": "on a network file system, the note of who holds the root could not be written",
    "http_failed": "a defect in an answer over HTTP",
    "idle_end": "an embedded daemon has had nothing to do for `idle_timeout`",
    "inbox_adopted": "a file that was left in the inbox is taken in",
    "inbox_not_read": "the inbox can't be looked at now, or no id can be made; it is tried again",
    "inbox_not_tidied": "what is no hand-off could not be removed from the inbox; it is tried again",
    "inbox_refused": "a file in the inbox is not taken in, for good; its bytes stay there for a week",
    "inbox_stumbled": "a defect while a file was taken in from the inbox; it is tried again",
    "inbox_tidied": "old files that are no hand-offs, or were refused, were removed from the inbox",
    "inbox_waits": "a file in the inbox can't be taken in now; it is tried again",
    "lane_stumbled": "the journal could not be asked what to send; it is asked again",
    "lease_given_up": "a writer could not be kept waiting until its file was copied: what it changes fails that file",
    "lease_not_taken": '`protect="lease"` was asked for, and could not be had: the rules of the file\'s pin hold',
    "library_message": "a warning of a library, in its own words",
    "log_not_folded": "at the end a database's log could not be folded back; the next start reads it",
    "mismatch": "an object without a record, say, and what became of it; a line each, up to a hundred of a round",
    "mount_stumbled": "a defect, or the journal, kept the folder of the store from being looked at; it is again",
    "node_number": "this daemon has a node number now, or another one",
    "node_number_failed": "a defect while the node number was renewed; it is tried again",
    "node_number_not_renewed": "the catalog did not renew the node number; it is tried again, and lasts for a week",
    "node_number_overtaken": "another daemon, made of a copy of this state folder, has the number: a new one is taken",
    "not_followed": "a defect behind a commit, which stands",
    "not_sealed": "what was saved as an archive is none whose checksums could be put right: it is stored as it is",
    "not_on_disk": "a source could not be brought to the disk now: its `ack` stays `memory`, and it is tried again",
    "notice_not_left": "the note that says who serves the state folder could not be written",
    "notify_failed": "systemd does not take messages; one line until it does again",
    "object_left": "an object of a failed file may not be removed",
    "orphan_aborted": "a multipart upload that a crash had left was removed",
    "outbox_drained": "files that waited for the catalog are listed",
    "outbox_stumbled": "what waits for the catalog could not be looked at; it is tried again",
    "password_exposed": "every user of the machine may read the file with the password of `catalog.url`",
    "protocol_error": "a peer broke the protocol, was too slow, or sent too many descriptors; it is hung up on",
    "read_only": "the disk refused a sync: nothing is taken in until the daemon is started again",
    "ready": "the daemon serves; of a fleet's catalog the hosts and the database are shown",
    "reclaim_failed": "a defect while bytes of deleted files were removed; it is tried again",
    "reclaim_postponed": "store or catalog did not do their part in removing what was deleted; it is tried again",
    "reconcile_failed": "a defect while store and catalog were compared; it goes on from there in an hour",
    "reconcile_postponed": "store or catalog did not answer while they were compared; it goes on from there in an hour",
    "reconciled": "store and catalog were compared: what was seen, left alone as too young, and found, by kind",
    "recovered": "at start: files in the queue, strays removed from the spool",
    "request_failed": "a defect in the answer to a request",
    "retention_failed": "the versions that [retention] does not keep could not be deleted; they are in an hour",
    "root_gone": "the root of an embedded daemon, or its journal or spool, was removed, which ends it",
    "root_lost": "another host holds the root of this embedded daemon, which ends it",
    "root_moved": "the root of an embedded daemon is at another path",
    "rows_adopted": "a root had rows of a metric that its catalog had not: another host's, an earlier release's",
    "rows_not_synced": "rows of metrics are not on stable storage: the disk is full, or has failed",
    "runs_refused": "the fleet's catalog has other metrics or parameters already, and this node's would be too many",
    "runs_wait": "records and rows of experiments wait for MongoDB; they are brought to it later",
    "scratch_left": "what was made to see what the store does could not be removed now; it is tried again",
    "set_complete": "every rank's share of a set is there: its files are listed, together",
    "set_dropped": "nothing came to an incomplete set for [retention] incomplete_sets: it is given up",
    "set_files_deleted": "files of sets that were given up, or overtaken, were deleted",
    "set_incomplete": "ranks of a set are missing, and nothing came for a quarter of an hour; one line a set",
    "set_overtaken": "a set is complete, and not listed: a newer attempt was saved at the same time",
    "set_pruned": "a set beyond those that are kept was deleted, on request or by [retention]",
    "sets_not_cleaned": "the catalog could not be asked for incomplete sets; it is again",
    "sets_stumbled": "a defect while incomplete sets were looked for; it is tried again",
    "share_postponed": "the catalog can't take a rank's share now; it is brought again",
    "share_refused": "a rank's share is in no set: a file of it was deleted, or its world_size is another",
    "share_stuck": "a rank's share waits for a file that has failed",
    "share_stumbled": "a defect while shares were brought to the catalog; they are again",
    "slot_not_prepared": "the next save's file could not be made ready: that save gets fresh pages, and takes longer",
    "state_adopted": "a root came from a disk to a network file system: its journal lies on this machine now",
    "stopped": "the daemon has ended in order",
    "stopping": "SIGTERM or SIGINT came, or an embedded daemon was idle",
    "store_mounted": "the folder of the store is what it was: files go on",
    "store_not_mounted": "another folder, or none, is in the place of the store's: files wait",
    "store_mended": "what blocked files is mended",
    "supersede_stumbled": "the journal refused to drop what newer versions replace: it is sent, too",
    "sweep_failed": "a defect while old rows were removed; they stay a while longer",
    "sweep_postponed": "the store did not answer while old rows were removed; they stay a while longer",
    "sync_failed": "the disk refused to sync a source: the file is given up, because its bytes can't be trusted",
    "touch_not_noted": "new times of files that were touched could not be journaled; the next daemon may refuse them",
    "tree_not_written": "what the catalog has of an experiment could not be shown in the root; it is tried again",
    "tree_waits": "the catalog can't be asked at the start what the root is to show; it is tried again",
    "upload_ended": "a server that was cut off had kept the upload of an object beside it; it was completed once more",
    "upload_left": "the store keeps the upload of an object beside it, and does not take its completion again",
    "versions_pruned": "versions beyond those that are kept were deleted, on request or by [retention]",
}
"""Every event, and when it comes; docs/logs.md is made from this table and the calls."""


def set_up(level: str, form: str, handler: logging.StreamHandler[TextIO] | None = None) -> None:
    """Sends every log line to `handler` (stderr) in that form: "human" or "json".

    The level is the daemon's own; libraries speak from "warning" on, because what they trace holds signed headers.
    """
    handler = handler or logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else HumanFormatter())
    lowest = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(level=max(lowest, logging.WARNING), handlers=[handler], force=True)
    log.setLevel(lowest)
    logging.captureWarnings(capture=True)
    sys.excepthook = _crashed
    threading.excepthook = lambda ended: _crashed(ended.exc_type, ended.exc_value, ended.exc_traceback)


def call_by_name(path: str, name: Callable[[], str]) -> None:
    """Whatever the log would say of a path, it says of what `name` returns then."""
    _NAMES[path] = name


class HumanFormatter(logging.Formatter):
    """`time LEVEL logger event key=value …`; a traceback follows, indented, so that none of it looks like an event."""

    def format(self, record: logging.LogRecord) -> str:
        event, fields = _parts(record)
        said = [_time(record), record.levelname, _quoted(record.name), _quoted(event)]
        said += [f"{name}={_quoted(value)}" for name, value in fields.items()]
        lines = _traceback(self, record).splitlines()
        return "\n".join([" ".join(said), *(_INDENT + _visible(line) for line in lines)])


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, event, the fields, and the traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        event, fields = _parts(record)
        said: dict[str, Any] = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name}
        said |= {"event": event} | fields
        if traceback := _traceback(self, record):
            said["traceback"] = traceback
        return json.dumps(said)


def _parts(record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
    """The event's name and its fields, fit to be shown."""
    said = _clean(record.getMessage())
    if record.name.partition(".")[0] != OURS:
        return "library_message", {"message": said}
    return said, {name: _plain(value) for name, value in vars(record).items() if name not in _STANDARD}


def _plain(value: Any) -> Any:
    """What JSON can hold: numbers, truth and null as they are, anything else in words."""
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return _clean(str(value))


def _clean(text: str) -> str:
    """Without credentials, by the names that people know, no longer than LONGEST, in characters that UTF-8 has."""
    for path, name in _NAMES.items():
        if path in text:
            text = text.replace(path, name())
    text = redact(text).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _quoted(value: Any) -> str:
    """Bare where it is one plain word, else in JSON's quotes, with nothing in it that moves the cursor."""
    text = value if isinstance(value, str) else json.dumps(value)
    if text and text.isprintable() and _NEEDS_QUOTES.isdisjoint(text):
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _visible(line: str) -> str:
    return line if line.isprintable() else line.encode("unicode_escape").decode()


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """The whole traceback, without credentials; "" where there is none."""
    if not record.exc_info:
        return ""
    return redact(formatter.formatException(record.exc_info)).encode("utf-8", "backslashreplace").decode()


def _time(record: logging.LogRecord) -> str:
    """In UTC, to the millisecond: nodes of one fleet are compared."""
    at = datetime.fromtimestamp(record.created, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _crashed(kind: type[BaseException], failure: BaseException | None, at: TracebackType | None) -> None:
    log.critical("crashed", exc_info=(kind, failure or kind(), at))
