"""Every message, a frozen dataclass each; PROTOCOL.md lists them. Their annotations are the schema.

`decode` is strict: an unknown field, a missing one, a wrong type or a value past its bound raises ProtocolError. A
field with a default may be left out, and `encode` does so. It trusts its caller.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar, cast

from ml_dash import wire
from ml_dash.errors import Code, ProtocolError, error
from ml_dash.messages.inbox import FindHanded
from ml_dash.messages.nodes import NODES, ListNodes, NodeRecord, Nodes
from ml_dash.messages.parts import (
    INLINE_BYTES,
    KIB,
    MANY,
    PRIORITIES,
    Described,
    Message,
    Origin,
    Place,
    Ranges,
    Record,
    Refusal,
    Share,
)
from ml_dash.messages.reconcile import FINDINGS, Finding, Reconcile, Reconciled
from ml_dash.messages.replies import (
    Accepted,
    AcceptedMany,
    Branched,
    Check,
    Count,
    Deleted,
    Done,
    Drained,
    Examined,
    Failed,
    Fetched,
    Limits,
    Page,
    Progress,
    Pruned,
    Retried,
    SlotGranted,
    StatusReport,
    Verified,
    Waited,
    Welcome,
)
from ml_dash.messages.requests import (
    Branch,
    CommitSlot,
    Content,
    Delete,
    Drain,
    Duplicate,
    Examine,
    Fetch,
    Get,
    GrowSlot,
    Hello,
    List,
    Prune,
    Put,
    PutMany,
    ReleaseSlot,
    RequestSlot,
    Retry,
    Status,
    Update,
    Upload,
    Verify,
    Wait,
)
from ml_dash.messages.runs import (
    METRICS,
    NAME_CHARACTERS,
    PARAMS_BYTES,
    ROW_CHARACTERS,
    ROWS,
    BringExperiment,
    BringRows,
    Brought,
    BroughtRow,
    EndRun,
    ExperimentRecord,
    Experiments,
    ListExperiments,
    LogRows,
    Metric,
    NewRow,
    OpenExperiment,
    ReadRows,
    Row,
    Rows,
    SetParams,
)
from ml_dash.messages.sets import SETS, DropSet, EndShare, ListSets, OpenSet, SetFiles, SetRecord, Sets
from ml_dash.schema import broken, plain, reader

__all__ = [
    "DESCRIBED_BYTES",
    "FINDINGS",
    "INLINE_BYTES",
    "KIB",
    "MANY",
    "METRICS",
    "NAME_CHARACTERS",
    "NODES",
    "PARAMS_BYTES",
    "PRIORITIES",
    "REPLIES",
    "REPLY_LIMITS",
    "REQUESTS",
    "REQUEST_LIMITS",
    "ROWS",
    "ROW_CHARACTERS",
    "SETS",
    "Accepted",
    "AcceptedMany",
    "Branch",
    "Branched",
    "BringExperiment",
    "BringRows",
    "Brought",
    "BroughtRow",
    "Check",
    "CommitSlot",
    "Content",
    "Count",
    "Delete",
    "Deleted",
    "Described",
    "Done",
    "Drain",
    "Drained",
    "DropSet",
    "Duplicate",
    "EndRun",
    "EndShare",
    "Examine",
    "Examined",
    "ExperimentRecord",
    "Experiments",
    "Failed",
    "Fetch",
    "Fetched",
    "FindHanded",
    "Finding",
    "Get",
    "GrowSlot",
    "Hello",
    "Limits",
    "List",
    "ListExperiments",
    "ListNodes",
    "ListSets",
    "LogRows",
    "Message",
    "Metric",
    "NewRow",
    "NodeRecord",
    "Nodes",
    "OpenExperiment",
    "OpenSet",
    "Origin",
    "Page",
    "Place",
    "Progress",
    "Prune",
    "Pruned",
    "Put",
    "PutMany",
    "Ranges",
    "ReadRows",
    "Reconcile",
    "Reconciled",
    "Record",
    "Refusal",
    "ReleaseSlot",
    "RequestSlot",
    "Retried",
    "Retry",
    "Row",
    "Rows",
    "SetFiles",
    "SetParams",
    "SetRecord",
    "Sets",
    "Share",
    "SlotGranted",
    "Status",
    "StatusReport",
    "Update",
    "Upload",
    "Verified",
    "Verify",
    "Wait",
    "Waited",
    "Welcome",
    "check",
    "check_update",
    "checked",
    "decode",
    "encode",
]

M = TypeVar("M", bound=Message)

SHORT = 128
"""No bound is less: what is shorter in all needs no closer look."""
DESCRIBED_BYTES = 512 * KIB
"""All that is said of a file: texts are bounded in characters, frames in bytes."""

REQUESTS: dict[int, type[Message]] = {
    message.kind: message
    for message in (
        Hello, OpenExperiment, Upload, Put, RequestSlot, CommitSlot, ReleaseSlot, List, Get, Wait, Delete, Fetch,
        Status, Drain, PutMany, Branch, Examine, Update, Duplicate, Prune, Retry, Verify, EndRun, SetParams, LogRows,
        ListExperiments, ReadRows, GrowSlot, BringExperiment, BringRows, ListNodes, FindHanded, OpenSet, EndShare,
        ListSets, SetFiles, DropSet, Reconcile,
    )
}  # fmt: skip
REPLIES: dict[int, type[Message]] = {
    message.kind: message
    for message in (
        Welcome, Done, Failed, Accepted, SlotGranted, Page, Waited, Deleted, Progress, Fetched, StatusReport,
        Drained, AcceptedMany, Branched, Examined, Pruned, Retried, Verified, Experiments, Rows, Brought, Nodes, Sets,
        Reconciled,
    )
}  # fmt: skip
REQUEST_LIMITS = {kind: message.limit for kind, message in REQUESTS.items()}
REPLY_LIMITS = {kind: message.limit for kind, message in REPLIES.items()}


def encode(message: Message, descriptors: int = 0) -> bytes:
    """The frame of a message; send its descriptors with the first byte."""
    return wire.encode(message.kind, plain(message), descriptors)


def decode(frame: wire.Frame, kinds: Mapping[int, type[Message]]) -> Message:
    """The message that a frame holds; its descriptors stay the caller's. Raises ProtocolError."""
    schema = kinds[frame.kind]
    if len(frame.descriptors) not in schema.descriptors:
        raise broken(f"{schema.__name__} came with {len(frame.descriptors)} descriptors")
    message: Message = reader(cast("Hashable", schema))(frame.fields, schema.__name__)
    return message


def check(described: Described) -> None:
    """Raises INVALID_ARGUMENT where the caller's words are past a bound: the daemon would hang up for it."""
    place, tags = described.place, (*described.tags, *described.bindrs)
    texts = (described.to, described.description or "", described.metadata or "", *tags)
    share = () if described.share is None else (described.share.name, described.share.attempt)
    names = (place.namespace, place.project, place.experiment, place.prefix, *share)
    if sum(map(len, texts + names)) + len(tags) <= SHORT:
        return
    _check_bounds(described, texts)


def check_update(update: Update) -> None:
    """As `check`, of what is to be said of a file from now on."""
    tags = (*(update.tags or ()), *(update.bindrs or ()))
    _check_bounds(update, (update.description or "", update.metadata or "", *tags))


def _check_bounds(words: Described | Update, texts: Iterable[str]) -> None:
    try:
        reader(cast("Hashable", type(words)))(plain(words), "")
    except ProtocolError as bad:
        raise error(Code.INVALID_ARGUMENT, bad.message.lstrip("."), "shorten it") from None
    size = sum(len(text.encode(errors="surrogatepass")) for text in texts)
    if size > DESCRIBED_BYTES:
        what = f"name, description, tags, bindrs and metadata take {size} bytes, at most {DESCRIBED_BYTES}"
        raise error(Code.INVALID_ARGUMENT, what, "shorten them")


def checked(message: M) -> M:
    """The message. Raises INVALID_ARGUMENT where its caller's words are past a bound: the daemon would hang up."""
    fields = plain(message)
    try:
        reader(cast("Hashable", type(message)))(fields, "")
    except ProtocolError as bad:
        raise error(Code.INVALID_ARGUMENT, bad.message.lstrip("."), "shorten it") from None
    size = len(wire.encode(message.kind, fields))
    if size > message.limit:
        what = f"what is said takes {size} bytes, at most {message.limit}"
        raise error(Code.INVALID_ARGUMENT, what, "shorten it, or save what is large as a file")
    return message
