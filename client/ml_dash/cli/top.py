"""`top`: what is on its way, live. The daemon is asked once a second, and names no more files than a screen holds."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from ml_dash import messages as m
from ml_dash import wording
from ml_dash.cli import reaching, report, show
from ml_dash.connection import Connection
from ml_dash.result import to_dict

EVERY_S = 1.0
FEW = 5
"""Files that are blocked, or failed, and named on a screen."""
FRAME_LINES = 6
"""Lines of a screen around the files: what stands above them, and the titles."""
LEAST_ROWS = 3


class Moving(NamedTuple):
    """A file under way, and how many bytes of it a second the store takes."""

    record: m.Record
    bytes_per_second: int


class Look(NamedTuple):
    """What a look has found, and when."""

    report: m.StatusReport
    moving: Sequence[Moving]
    at_s: float


def look(connection: Connection, before: Look | None) -> Look:
    """Asks the daemon; rates are since the look before."""
    answer = connection.call(m.StatusReport, lambda number: m.Status(request=number))
    now = time.monotonic()
    sent = {each.record.id: each.record.sent_bytes for each in before.moving} if before else {}
    elapsed = now - before.at_s if before else 0.0

    def rate(record: m.Record) -> int:
        if elapsed <= 0 or record.id not in sent:
            return 0
        return max(0, int((record.sent_bytes - sent[record.id]) / elapsed))

    return Look(answer, [Moving(record, rate(record)) for record in answer.moving], now)


def top(options: Namespace) -> int:
    """Shows the queue until q is pressed; without a terminal, or for a program, once."""
    with reaching.running(options) as connection:
        if options.json or options.once or not (sys.stdout.isatty() and _has_rich()):
            first = look(connection, None)
            if first.moving:  # a rate takes two looks
                select.select([], [], [], EVERY_S)
                first = look(connection, first)
            if options.json:
                show.one(as_object(first))
            else:
                print("\n".join(as_lines(first)))
            return 0
        _watch(connection)
    return 0


def as_object(seen: Look) -> dict[str, Any]:
    """A look for programs."""
    counts = {count.state: {"files": count.files, "sizeBytes": count.size_bytes} for count in seen.report.counts}
    moving = [
        to_dict(each.record) | {"sentBytes": each.record.sent_bytes, "bytesPerSecond": each.bytes_per_second}
        for each in seen.moving
    ]
    return {
        "files": counts,
        "bytesPerSecond": seen.report.bytes_per_second,
        "moving": moving,
        "blocked": [report.troubled(record) for record in seen.report.blocked],
        "failed": [report.troubled(record) for record in seen.report.failed],
    }


def as_lines(seen: Look) -> Iterator[str]:
    """A look in plain lines."""
    yield _headline(seen)
    for each in seen.moving:
        record = each.record
        done = f"{wording.size(record.sent_bytes)} of {wording.size(record.size_bytes)}"
        yield f"  {record.id}  {_where(record)}  {record.state}  {done}  {wording.size(each.bytes_per_second)}/s"
    for title, records in (("blocked", seen.report.blocked), ("failed", seen.report.failed)):
        if records:
            yield f"{title}:"
        yield from report.troubles(records)


def _headline(seen: Look) -> str:
    counts = [f"{count.state} {count.files} ({wording.size(count.size_bytes)})" for count in seen.report.counts]
    return "   ".join([*(counts or ["nothing handed over yet"]), f"{wording.size(seen.report.bytes_per_second)}/s"])


def _where(record: m.Record) -> str:
    return f"{record.namespace}/{record.project}/{record.experiment}: {show.path(to_dict(record))}"


# ---- on a terminal


def _has_rich() -> bool:
    try:
        import rich.live  # noqa: F401, PLC0415 it is optional, and its import takes a while
    except ImportError:
        return False
    return True


def _watch(connection: Connection) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415

    console = Console()
    seen = look(connection, None)
    with _keys() as key, Live(console=console, screen=True, auto_refresh=False) as live:

        def draw() -> None:
            live.update(_screen(seen, console.size.height), refresh=True)

        draw()
        while not _quits(key, seen.at_s + EVERY_S, draw):
            seen = look(connection, seen)
            draw()


def _quits(key: Callable[[float], str | None], until_s: float, redraw: Callable[[], None]) -> bool:
    """Waits for the next look; whether it was q that came. A terminal of another size is drawn anew at once."""
    while (left := until_s - time.monotonic()) > 0:
        pressed = key(left)
        if pressed in ("q", "Q"):
            return True
        if pressed is not None:
            redraw()
    return False


@contextmanager
def _keys() -> Iterator[Callable[[float], str | None]]:
    """Reads keys as they are pressed: one of them, "" after a change of the terminal's size, None when time is up."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def resized(*_: object) -> None:
        with suppress(BlockingIOError):
            os.write(writing, b"\0")

    old_handler = signal.signal(signal.SIGWINCH, resized)
    keyboard = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
    old_mode = None if keyboard is None else termios.tcgetattr(keyboard)
    inputs = [reading] if keyboard is None else [reading, keyboard]

    def key(seconds: float) -> str | None:
        ready, _, _ = select.select(inputs, [], [], seconds)
        if reading in ready:
            os.read(reading, 64)
            return ""
        if not ready or keyboard is None:
            return None
        pressed = os.read(keyboard, 1).decode(errors="replace")
        if not pressed:  # the terminal has gone
            inputs.remove(keyboard)
        return pressed or None

    try:
        if keyboard is not None:
            tty.setcbreak(keyboard)
        yield key
    finally:
        if keyboard is not None and old_mode is not None:
            termios.tcsetattr(keyboard, termios.TCSADRAIN, old_mode)
        signal.signal(signal.SIGWINCH, old_handler)
        os.close(reading)
        os.close(writing)


def _screen(seen: Look, height: int) -> Any:
    """What stands on the screen, cut to its height."""
    from rich.console import Group  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    troubles = [*_troubles("blocked", seen.report.blocked, "yellow"), *_troubles("failed", seen.report.failed, "red")]
    rows = max(LEAST_ROWS, height - FRAME_LINES - len(troubles))
    parts: list[Any] = [Text(_headline(seen), style="bold", overflow="ellipsis", no_wrap=True), Text("")]
    if seen.moving:
        parts.append(_table(seen.moving[:rows]))
    else:
        parts.append(Text("nothing is under way", style="dim"))
    if len(seen.moving) > rows:
        parts.append(Text(f"  and {len(seen.moving) - rows} more", style="dim"))
    parts += troubles
    parts.append(Text("q quits; the files go on", style="dim"))
    return Group(*parts)


def _table(moving: Sequence[Moving]) -> Any:
    from rich.progress_bar import ProgressBar  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, expand=True, pad_edge=False)
    table.add_column("file", ratio=2, no_wrap=True, overflow="ellipsis")
    table.add_column("state", no_wrap=True)
    table.add_column("", ratio=1)
    for title in ("sent", "of", "rate"):
        table.add_column(title, justify="right", no_wrap=True)
    for record, rate in moving:
        table.add_row(
            Text(_where(record)),
            record.state,
            ProgressBar(total=record.size_bytes or 1, completed=record.sent_bytes),
            wording.size(record.sent_bytes),
            wording.size(record.size_bytes),
            f"{wording.size(rate)}/s",
        )
    return table


def _troubles(title: str, records: Sequence[m.Record], style: str) -> list[Any]:
    """What is held up, and why: files of one reason share its lines."""
    from rich.text import Text  # noqa: PLC0415

    lines: list[Any] = []
    reasons: dict[tuple[str | None, str | None, str | None], list[m.Record]] = {}
    for record in records:
        reasons.setdefault((record.error_code, record.error_message, record.error_hint), []).append(record)
    for (code, message, hint), some in [*reasons.items()][:FEW]:
        more = f" and {len(some) - 1} more" if len(some) > 1 else ""
        about = f"{title}: {_where(some[0])}{more}"
        lines.append(Text(about, style=style, no_wrap=True, overflow="ellipsis"))
        lines.append(Text(f"  {code}: {message}", no_wrap=True, overflow="ellipsis"))
        if hint:
            lines.append(Text(f"  hint: {hint}", style="dim", no_wrap=True, overflow="ellipsis"))
    return lines
