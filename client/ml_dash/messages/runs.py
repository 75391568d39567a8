"""Experiments as such: their runs, parameters and metrics. A caller's are the caller's own, as files are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from ml_dash.messages.parts import KIB, Json, Message, Name, Place, Tags, Text
from ml_dash.schema import Max

ROWS = 256
"""Metrics that one call writes to."""
ROW_CHARACTERS = 64 * KIB
PARAMS_BYTES = 1024 * KIB
"""Of all parameters of an experiment together, as JSON text."""
METRICS = 1000
"""Metrics of an experiment."""

NAME_CHARACTERS = 1024
Series = Annotated[str, Max(NAME_CHARACTERS)]
"""A metric's name; "" is the unnamed one."""
RowText = Annotated[str, Max(ROW_CHARACTERS)]
"""A JSON object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenExperiment(Message):
    """Begins a run, or opens an experiment again: checks the prefix and notes what is said. Idempotent.

    What is not said is left as it was. `metadata` is JSON text of an object.
    """

    kind: ClassVar[int] = 2
    limit: ClassVar[int] = 640 * KIB
    place: Place
    readme: Json | None = None
    tags: Tags | None = None
    bindrs: Tags | None = None
    metadata: Json | None = None
    host: Name = ""
    user: Name = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndRun(Message):
    """Notes how a run has ended: COMPLETED, FAILED or CANCELLED. Idempotent; the first end stays."""

    kind: ClassVar[int] = 23
    place: Place
    status: Name
    error: Text | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SetParams(Message):
    """Sets parameters; others stay. `values` is JSON text of an object with dotted names. Idempotent."""

    kind: ClassVar[int] = 24
    limit: ClassVar[int] = 640 * KIB
    place: Place
    values: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRow:
    """A row for a metric, in a LogRows."""

    metric: Series
    data: RowText


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRows(Message):
    """Appends a row to each of some metrics, all or none; what comes again with its writer and number is there already.

    It outlives the client and the daemon once it is answered; with `durability` "disk" a reboot, too, and so does all
    that was logged before it. `writer` is a random number of a process, `number` rises by one a call.
    """

    kind: ClassVar[int] = 25
    limit: ClassVar[int] = 640 * KIB
    place: Place
    writer: int
    number: int
    rows: Annotated[tuple[NewRow, ...], Max(ROWS)] = ()
    durability: Name = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListExperiments(Message):
    """Asks for a page of the experiments at and below a prefix, which may be a part of one; "" is all of them.

    With `details`, for the one of that very prefix, with its parameters and metrics. It is answered when the metrics
    have other than `seen_rows` rows together, the run has ended, or time is up; `timeout_ms` is at most 60,000.
    """

    kind: ClassVar[int] = 26
    prefix: Name = ""
    cursor: Name | None = None
    page_size: int = 100
    details: bool = False
    seen_rows: int = 0
    timeout_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRows(Message):
    """Asks for rows of a metric from a position on, in the order in which they came; with `origins`, whose each is."""

    kind: ClassVar[int] = 27
    place: Place
    metric: Series
    start: int = 0
    count: int = 1000
    origins: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BroughtRow:
    """A row that was logged elsewhere before, and keeps what it had there, in a BringRows."""

    metric: Series
    writer: int
    number: int
    created_ms: int
    data: RowText


@dataclass(frozen=True, slots=True, kw_only=True)
class BringRows(Message):
    """Appends rows that were logged elsewhere before, all or none, on stable storage once it is answered.

    Of those of the same writer and number that a metric has, none is appended again: it is idempotent.
    """

    kind: ClassVar[int] = 31
    limit: ClassVar[int] = 4096 * KIB
    place: Place
    rows: Annotated[tuple[BroughtRow, ...], Max(1000)]


# ---- what is answered


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A metric and how many rows it has."""

    name: Series
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentRecord:
    """An experiment as the daemon knows it. Times are ms since 1970, UTC."""

    namespace: Name
    project: Name
    experiment: Name
    owner_uid: int
    status: Name
    host: Name
    user: Name
    created_ms: int
    started_ms: int
    updated_ms: int
    ended_ms: int | None = None
    error: Text | None = None
    readme: Json | None = None
    tags: Tags = ()
    bindrs: Tags = ()
    metadata: Json | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BringExperiment(Message):
    """Keeps an experiment's record and parameters (JSON text of an object) as they were elsewhere; it is the caller's.

    Where there is one already, what was changed last stays, by `updated_ms`, and what only one of them has is kept.
    Idempotent.
    """

    kind: ClassVar[int] = 30
    limit: ClassVar[int] = 4096 * KIB
    run: ExperimentRecord
    params: Annotated[str, Max(PARAMS_BYTES)] = "{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Brought(Message):
    """How many of the rows that were brought are new here; of an experiment, 1 where something of it is."""

    kind: ClassVar[int] = 90
    new: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiments(Message):
    """Experiments in the order of their prefixes. `cursor` is None on the last page.

    The details are of the one that was asked for: `params` is JSON text of an object, metrics come by name.
    """

    kind: ClassVar[int] = 83
    limit: ClassVar[int] = 4096 * KIB
    experiments: Annotated[tuple[ExperimentRecord, ...], Max(100)]
    cursor: Name | None = None
    params: Annotated[str, Max(PARAMS_BYTES)] | None = None
    metrics: Annotated[tuple[Metric, ...], Max(METRICS)] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of a metric. `data` is JSON text of an object; writer and number are there where they were asked for."""

    created_ms: int
    data: RowText
    writer: int | None = None
    number: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows(Message):
    """Rows that follow each other, from `start` on; `total` is how many the metric has."""

    kind: ClassVar[int] = 84
    limit: ClassVar[int] = 4096 * KIB
    rows: Annotated[tuple[Row, ...], Max(1000)]
    start: int
    total: int
