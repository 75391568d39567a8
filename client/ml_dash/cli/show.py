"""What is printed: times, records, errors, and progress on a terminal."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from ml_dash import wording
from ml_dash.errors import MLDashError
from ml_dash.result import FileResult, iso_time

LATELY_S = 120
"""Up to here a duration is shown in seconds; up to as many minutes in minutes, and so on."""


def duration(seconds: float) -> str:
    """A length of time for people: 95 s, 12 min, 5 h, 3 d."""
    for unit, length in (("s", 1), ("min", 60), ("h", 3600)):
        if seconds < LATELY_S * length:
            return f"{max(0, int(seconds / length))} {unit}"
    return f"{int(seconds / 86400)} d"


def moment(iso: str) -> str:
    """A record's time, on the clock of whoever reads it."""
    return datetime.fromisoformat(iso).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def moment_of(ms: int | None) -> str:
    """The same of milliseconds since 1970; nothing where there is none."""
    return "" if ms is None else moment(str(iso_time(ms)))


def path(record: Mapping[str, Any]) -> str:
    """A file's path in its experiment, as `get` and `rm` take it."""
    return f"{record['path']}/{record['filename']}".lstrip("/")


def plain(file: FileResult) -> dict[str, Any]:
    """The fields as they are known now; reading them through the result would wait for the checksum."""
    return dict(dict.items(file))


def handed_over(record: Mapping[str, Any]) -> str:
    """A file that was handed over, in a line. One that lies in an inbox has no id yet."""
    return f"{record['id'] or 'in the inbox'}  {path(record)}  {record['state']}"


def document(value: Any, indent: int | None = None) -> str:
    """JSON text. It has no NaN and no infinities: they are the texts "NaN", "Infinity" and "-Infinity".

    So has Protocol Buffers' JSON them; Python's float() and JavaScript's Number() read them back.
    """
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_with_finite_numbers(value), indent=indent)


def _with_finite_numbers(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)
    if isinstance(value, dict):
        return {key: _with_finite_numbers(inner) for key, inner in value.items()}
    return [*map(_with_finite_numbers, value)] if isinstance(value, list | tuple) else value


def one(value: Any) -> None:
    """Prints a JSON document."""
    print(document(value, indent=2))


def array(values: Iterable[Any]) -> None:
    """Prints a JSON array, a line an element, as they come: none is held. Nothing is printed before the first."""
    opening = "["
    for value in values:
        print(f"{opening}\n{document(value)}", end="")
        opening = ","
    print("[]" if opening == "[" else "\n]")


def failure(failed: MLDashError, *, as_json: bool) -> None:
    """Says on stderr what went wrong, and what to do about it."""
    with suppress(OSError):
        if as_json:
            said = {"code": failed.code.value, "message": failed.message, "hint": failed.hint}
            print(json.dumps({"error": said}), file=sys.stderr)
            return
    trouble(failed.message, failed.hint)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, and what becomes of the work."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__()
        self.message = message
        self.hint = hint


def trouble(message: str, hint: str | None) -> None:
    """Says on stderr what is wrong with one file of many; the command goes on."""
    with suppress(OSError):
        wording.say(message)
        if hint:
            print(f"hint: {hint}", file=sys.stderr)


# ---- progress

Update = Callable[[int, int], None]
"""Takes how much is done, of how much."""
Redraw = Callable[[str, int, int], None]
"""As Update, and what stands before the bar."""


class Bar:
    """A progress bar on stderr where that is a terminal, else nothing. Used as a context, it is gone with its block.

    `unit` is "bytes", or what is counted. rich draws it where it is installed.
    """

    def __init__(self, unit: str = "bytes") -> None:
        self._shown = sys.stderr is not None and sys.stderr.isatty()
        self._unit = unit
        self._title = ""
        self._drawn: _Drawn | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def update(self, title: str, done: int, total: int, *, same_bar: bool = False) -> None:
        """Draws it; another title ends the bar and begins the next, unless it is the `same_bar` under a new title.

        Where there is nothing to do, nothing is drawn.
        """
        if not self._shown or not total:
            return
        if self._drawn is not None and title != self._title and not same_bar:
            self.close()
        if self._drawn is None:
            self._title, self._drawn = title, _draw(title, self._unit, total)
        self._drawn.update(title, done, total)

    def close(self) -> None:
        """Ends the line, so that others may print."""
        if self._drawn is not None:
            self._drawn.close()
        self._drawn = None


class _Drawn:
    """A bar that is on the terminal now."""

    def __init__(self, update: Redraw, close: Callable[[], None]) -> None:
        self.update = update
        self.close = close


def _draw(title: str, unit: str, total: int) -> _Drawn:
    try:
        return _draw_with_rich(title, unit, total)
    except ImportError:
        return _draw_plainly(unit)


def _draw_with_rich(title: str, unit: str, total: int) -> _Drawn:
    progress = rich_progress(unit, redirect=False)
    task = progress.add_task(title, total=total)
    progress.start()
    return _Drawn(
        lambda title, done, total: progress.update(task, description=title, completed=done, total=total), progress.stop
    )


def rich_progress(unit: str, *, redirect: bool) -> Any:
    """The bars of rich, on stderr; with `redirect`, what is printed meanwhile goes above them. Raises ImportError."""
    from rich.console import Console  # noqa: PLC0415 it is optional, and its import takes a while
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    name = TextColumn("{task.description}", markup=False)
    amount = (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(), TextColumn(unit))
    console = Console(file=sys.stderr)
    return Progress(
        name,
        BarColumn(),
        *amount,
        TimeRemainingColumn(),
        console=console,
        redirect_stdout=redirect,
        redirect_stderr=redirect,
    )


def _draw_plainly(unit: str) -> _Drawn:
    def update(title: str, done: int, total: int) -> None:
        amount = f"{wording.size(done)} of {wording.size(total)}" if unit == "bytes" else f"{done} of {total} {unit}"
        print(f"\r{title}  {100 * done // total} %  {amount}\x1b[K", end="", file=sys.stderr, flush=True)

    return _Drawn(update, lambda: print(file=sys.stderr))


def lines(some: Iterable[str]) -> None:
    """A line at a time, as they come."""
    for line in some:
        print(line, flush=True)
