"""The status page: one document of HTML that asks for nothing else, made of what core/overview.py says."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

REFRESH_S = 5
STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1rem; margin: 1.5rem 0 .3rem; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .15rem 1.2rem .15rem 0; vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
.ok { color: #18794e; } .bad { color: #cd2b31; }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
"""Nothing is loaded, run or sent from this page, whatever it holds."""
UNKNOWN = "?"
"""What did not answer in time."""


def as_html(seen: Mapping[str, Any]) -> str:
    """The page, whole."""
    verdict = '<span class="ok">ready</span>' if seen["ready"] else '<span class="bad">not ready</span>'
    parts = [
        f"<h1>ml-dashd {escape(seen['version'])}: {verdict}</h1>",
        _table("Why", ("check", "code", "what", "hint"), _reasons(seen)),
        _table("Now", (), _now(seen)),
        _table("Files", ("state", "files", "bytes"), _files(seen["files"])),
        _table("Blocked, until somebody mends it", ("code", "files", "hint"), _blocked(seen["blocked"])),
        _table("Failed, newest first", ("id", "code", "ago", "hint"), _failed(seen["failed"])),
        _table("Tried again since the start", ("reason", "times"), list(seen["retries"].items())),
        _table("Given up since the start", ("code", "files"), list(seen["failures"].items())),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="refresh" content="{REFRESH_S}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>ml-dashd: {'ready' if seen['ready'] else 'not ready'}</title><style>{STYLE}</style></head><body>"
        f"{''.join(parts)}</body></html>\n"
    )


def _reasons(seen: Mapping[str, Any]) -> list[Sequence[Any]]:
    return [(each["check"], each["code"], each["message"], each["hint"]) for each in seen["reasons"]]


def _now(seen: Mapping[str, Any]) -> list[Sequence[Any]]:
    queue, sending, spool = seen["queue"], seen["sending"], seen["spool"]
    quota = f" of {size(spool['quotaBytes'])}" if spool["quotaBytes"] else ""
    free = ", ".join(size(each) for each in spool["freeBytes"]) or UNKNOWN
    requests = sum(sending["requests"].values())
    return [
        ("on their way", f"{_known(queue['files'])} files, {size(queue['bytes'])}"),
        ("the oldest waits for", duration(queue["oldestSeconds"])),
        ("sending", f"{size(sending['bytesPerSecond'])}/s, {requests} of {sending['requestsLimit']} requests"),
        ("checks that pass", ", ".join(name for name, passes in seen["checks"].items() if passes) or "none"),
        ("circuits open", sum(sending["circuitsOpen"].values())),
        ("spool", f"{size(spool['bytes'])}{quota}, {free} free on its disk"),
        ("clients", seen["connections"]),
        ("running for", duration(seen["uptimeSeconds"])),
    ]


def _files(by_state: Mapping[str, Mapping[str, int]] | None) -> list[Sequence[Any]]:
    if by_state is None:
        return [(UNKNOWN, "", "")]
    return [(state, count["files"], size(count["bytes"])) for state, count in by_state.items()]


def _blocked(blocked: Iterable[Mapping[str, Any]] | None) -> list[Sequence[Any]]:
    if blocked is None:
        return [(UNKNOWN, "", "")]
    return [(each["code"], each["files"], each["hint"]) for each in blocked]


def _failed(failed: Iterable[Mapping[str, Any]] | None) -> list[Sequence[Any]]:
    if failed is None:
        return [(UNKNOWN, "", "", "")]
    return [(each["id"], each["code"], duration(each["secondsAgo"]), each["hint"]) for each in failed]


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Nothing where there are no rows."""
    if not rows:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<h2>{escape(title)}</h2><table>{f'<tr>{head}</tr>' if head else ''}{body}</table>"


def _cell(value: Any) -> str:
    return f'<td class="n">{value}</td>' if isinstance(value, int) else f"<td>{escape(str(value))}</td>"


def _known(value: Any) -> str:
    return UNKNOWN if value is None else str(value)


def size(size_bytes: float | None) -> str:
    """Bytes in the largest unit of 1,024 of which there is one."""
    if size_bytes is None:
        return UNKNOWN
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:  # noqa: PLR2004 of each unit
            return f"{size_bytes:.0f} {unit}" if unit == "bytes" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def duration(seconds: float | None) -> str:
    """Seconds in two units at most."""
    if seconds is None:
        return UNKNOWN
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
