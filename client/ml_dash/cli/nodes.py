"""The nodes of a fleet, for people and for programs."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from ml_dash import messages as m
from ml_dash.cli import reaching, show
from ml_dash.connection import Connection
from ml_dash.pages import pages
from ml_dash.result import iso_time


def nodes(options: Namespace) -> int:
    """Lists the daemons that share this one's catalog."""
    with reaching.running(options) as connection:
        found = _pages(connection, everything=options.all)
        if options.json:
            show.array(_as_object(node) for page in found for node in page.nodes)
        else:
            show.lines(_lines(found))
    return 0


def _pages(connection: Connection, *, everything: bool) -> Iterator[m.Nodes]:
    return pages(
        lambda cursor: connection.call(
            m.Nodes, lambda number: m.ListNodes(request=number, cursor=cursor, everything=everything)
        )
    )


def _lines(found: Iterator[m.Nodes]) -> Iterator[str]:
    first = True
    for page in found:
        if not page.shared:
            host = page.nodes[0].host
            yield f"the daemon on {host} has its catalog for itself: no other node shares it, and its number is 0"
            return
        if first:
            yield f"{'NUMBER':>6}  {'LAST SEEN':<19}  {'LEASE ENDS':<19}  HOST"
            first = False
        for node in page.nodes:
            times = (f"{show.moment_of(ms):<19}" for ms in (node.seen_ms, node.until_ms))
            words = (" (this daemon)" if node.mine else "") + ("" if node.held else " (its lease is over)")
            yield f"{node.number:>6}  {'  '.join(times)}  {node.host}{words}"


def _as_object(node: m.NodeRecord) -> dict[str, Any]:
    return {
        "number": node.number,
        "host": node.host,
        "leaseEndsAt": iso_time(node.until_ms),
        "lastSeenAt": iso_time(node.seen_ms),
        "held": node.held,
        "thisDaemon": node.mine,
    }
