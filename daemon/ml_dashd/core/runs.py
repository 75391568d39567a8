"""What is known of an experiment beside its files: how its run fares, its parameters, the rows of its metrics."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from ml_dash.errors import Code, MLDashError, error
from ml_dashd.core import names

MAX_NAME_BYTES = 1024
"""Of a metric or a parameter: what a path may take in a store."""
MAX_PARAMS = 10_000
UNNAMED = "None"
"""The folder of the unnamed metric, as earlier releases had it; as a name it is the same metric."""
DATA = "data.jsonl"
"""A metric's rows in its folder: no metric's name may have a part like this."""


class RunStatus(StrEnum):
    """How an experiment's run fares. One whose trainer was killed stays RUNNING: nobody has said anything else."""

    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True, order=True)
class RunKey:
    """Whose experiment: each user has a record, parameters and metrics of their own, as with files."""

    namespace: str
    project: str
    experiment: str
    owner_uid: int

    @property
    def prefix(self) -> str:
        return f"{self.namespace}/{self.project}/{self.experiment}"


@dataclass(frozen=True, slots=True)
class Opened:
    """What is said when a run begins. What is None is left as it was; `metadata` is JSON text."""

    at_ms: int
    host: str = ""
    user: str = ""
    readme: str | None = None
    tags: tuple[str, ...] | None = None
    bindrs: tuple[str, ...] | None = None
    metadata: str | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """An experiment's record. Times are ms since 1970, UTC; `metadata` is JSON text."""

    key: RunKey
    status: RunStatus
    host: str
    user: str
    created_ms: int
    started_ms: int
    updated_ms: int
    ended_ms: int | None = None
    error: str | None = None
    readme: str | None = None
    tags: tuple[str, ...] = ()
    bindrs: tuple[str, ...] = ()
    metadata: str | None = None
    shown_ms: int = 0
    """Up to which of its changes the tree of a local store is known to show it."""


@dataclass(frozen=True, slots=True)
class NewRow:
    """A row that is to be appended to a metric. `data` is JSON text."""

    metric: str
    data: str


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a metric; its position is its place in the order. `data` is JSON text.

    Writer and number tell it from every other row of its metric, wherever it is brought.
    """

    created_ms: int
    data: str
    writer: int
    number: int


@dataclass(frozen=True, slots=True)
class BroughtRow:
    """A row that was logged elsewhere before."""

    metric: str
    row: Row


@dataclass(frozen=True, slots=True)
class MetricLength:
    """A metric, how many rows it has, and how many of them the tree of a local store is known to show."""

    name: str
    rows: int
    shown: int = 0


def metric_name(text: str) -> str:
    """A metric's name, checked by the rule for paths; "" is the unnamed one."""
    if text in ("", UNNAMED):
        return ""
    segments = names.clean(text, "the metric")
    if DATA in segments:
        raise error(Code.INVALID_PATH, f"the metric {text!r} has a part named {DATA}", "give it another name")
    name = "/".join(segments)
    if len(name.encode()) > MAX_NAME_BYTES:
        raise error(Code.INVALID_PATH, f"the metric {text[:80]!r}… takes over {MAX_NAME_BYTES} bytes")
    return name


def row_text(text: str) -> str:
    """A row, checked to be a JSON object, in the one way in which rows are written: on a line, in UTF-8."""
    return json_text(_object(text, "the row"))


def new_params(text: str) -> dict[str, str]:
    """Parameters as they came: their dotted names, and each value as JSON text."""
    values = _object(text, "the parameters")
    for name in values:
        size = len(name.encode(errors="surrogatepass"))
        if not name or size > MAX_NAME_BYTES or not name.isprintable():
            what = f"the parameter {name[:80]!r}"
            raise error(Code.INVALID_ARGUMENT, what, f"use a printable name of 1 to {MAX_NAME_BYTES} bytes")
    if pair := _conflict(values):
        what = f"the parameters {pair[0]!r} and {pair[1]!r} are given together"
        raise error(Code.INVALID_ARGUMENT, what, f"{pair[0]!r} is either a value or a group")
    return {name: json_text(value) for name, value in values.items()}


def replaced_by(new: Iterable[str], old: Collection[str]) -> list[str]:
    """The old parameters that can't stand beside new ones: a group that is a value now, a value that is a group now."""
    taken = set(old)
    gone = {above for name in new for above in groups_of(name) if above in taken}
    fresh = set(new)
    gone.update(name for name in taken if any(above in fresh for above in groups_of(name)))
    return sorted(gone)


def laid_over(new: Mapping[str, str], old: Mapping[str, str]) -> dict[str, str]:
    """Parameters with new ones among them, in the place of those that can't stand beside them."""
    gone = set(replaced_by(new, old.keys()))
    return {**{name: value for name, value in old.items() if name not in gone}, **new}


def brought_together(here: Run, there: Run) -> Run:
    """An experiment's record that is known here already, and comes from elsewhere: what was changed last stays.

    What only one of them says is kept. It is `here` itself where nothing of it changes.
    """
    newer, older = (there, here) if there.updated_ms > here.updated_ms else (here, there)
    return replace(
        newer,
        key=here.key,
        created_ms=min(here.created_ms, there.created_ms),
        readme=older.readme if newer.readme is None else newer.readme,
        tags=newer.tags or older.tags,
        bindrs=newer.bindrs or older.bindrs,
        metadata=older.metadata if newer.metadata is None else newer.metadata,
        shown_ms=here.shown_ms,
    )


def joined_with(
    here: Run, values: Mapping[str, str], there: Run, params: Mapping[str, str]
) -> tuple[Run, dict[str, str]] | None:
    """`brought_together`, with the parameters of both, and its time moved on; None where nothing changes."""
    kept = brought_together(here, there)
    is_newer = there.updated_ms > here.updated_ms
    merged = dict(laid_over(params, values) if is_newer else laid_over(values, params))
    if kept == here and merged == values:
        return None
    return replace(kept, updated_ms=max(kept.updated_ms, here.updated_ms + 1)), merged


def too_many_metrics(name: str, most: int) -> MLDashError:
    """The refusal of a metric beyond as many as an experiment may have."""
    what = f"the metric {name!r} would be one too many: an experiment has at most {most}"
    return error(Code.INVALID_ARGUMENT, what, "log several values in a row of one metric")


def check_params(values: Mapping[str, str], most_bytes: int) -> None:
    """Refuses more parameters than an experiment may have; `values` are all of them, as JSON text."""
    size = len(params_text(values).encode())
    if len(values) > MAX_PARAMS or size > most_bytes:
        what = f"{len(values)} parameters of {size} bytes, at most {MAX_PARAMS} and {most_bytes}"
        raise error(Code.INVALID_ARGUMENT, what, "save what is large as a file: files().save_json()")


def params_text(values: Mapping[str, str]) -> str:
    """Parameters as one JSON object, by name."""
    pairs = (f"{json.dumps(name, ensure_ascii=False)}: {values[name]}" for name in sorted(values))
    return f"{{{', '.join(pairs)}}}"


def run_status(text: str) -> RunStatus:
    """How a run has ended; it does not end by running."""
    if text in {*RunStatus} - {RunStatus.RUNNING}:
        return RunStatus(text)
    raise error(Code.INVALID_ARGUMENT, f"a run ends as {text!r}", "use COMPLETED, FAILED or CANCELLED")


def known_status(text: str) -> RunStatus:
    """How a run fares, as it was told elsewhere."""
    if text == RunStatus.RUNNING:
        return RunStatus.RUNNING
    return run_status(text)


def listed_below(prefix: str) -> tuple[str, ...]:
    """The parts of a prefix, or of the beginning of one: up to namespace, project, experiment."""
    segments = names.clean(prefix.rstrip("/"), "the prefix", Code.INVALID_PREFIX)
    return (*segments[:2], "/".join(segments[2:])) if len(segments) > 2 else segments  # noqa: PLR2004


def is_of_a_file(folder: str) -> bool:
    """Whether a folder may be that of a stored file, {namespace}/{project}/{experiment}/files/{prefix}/{id}.

    Whoever chooses a prefix or the name of a metric may choose one; nothing of an experiment is written there.
    """
    *above, last = folder.split("/")
    return last.isascii() and last.isdigit() and "files" in above[3:]


def has_folder(prefix: str, metric: str) -> bool:
    """Whether the rows of a metric, "" being the unnamed one, have a file in a folder, and it is no other's.

    Below {prefix}/metrics/ may be another experiment, with metrics of its own: a file in them is theirs.
    """
    return "metrics" not in metric.split("/")[:-1] and not is_of_a_file(f"{prefix}/metrics/{metric or UNNAMED}")


def groups_of(name: str) -> Iterable[str]:
    """The groups that a dotted name is in."""
    at = name.find(".")
    while at >= 0:
        yield name[:at]
        at = name.find(".", at + 1)


def _conflict(values: Collection[str]) -> tuple[str, str] | None:
    for name in values:
        for above in groups_of(name):
            if above in values:
                return above, name
    return None


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as bad:
        raise error(Code.INVALID_METADATA, f"{what}: not JSON: {bad}") from None
    if not isinstance(value, dict):
        raise error(Code.INVALID_METADATA, f"{what}: {type(value).__name__}, not an object")
    return value


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON that can be written as UTF-8: half of a surrogate pair is JSON, and no UTF-8."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return text if is_utf_8(text) else json.dumps(value, indent=indent)


def is_utf_8(text: str) -> bool:
    """Whether a text has no half of a surrogate pair."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)
