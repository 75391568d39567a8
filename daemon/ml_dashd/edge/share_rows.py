"""Shares of sets that ranks have ended, in the journal until the catalog has them."""

from __future__ import annotations

import json
import sqlite3

from ml_dashd.core.sets import Delivery, SetKey, Share
from ml_dashd.edge.rows import insert, read_share, share_text


def end_share(connection: sqlite3.Connection, delivery: Delivery) -> None:
    """Notes a share; one that comes again is there."""
    key = delivery.key
    values = {
        "key": delivery.share.key, "owner_uid": key.owner_uid, "namespace": key.namespace, "project": key.project,
        "experiment": key.experiment, "share": share_text(delivery.share), "ids": json.dumps(delivery.ids),
    }  # fmt: skip
    connection.execute(f"{insert('shares', values)} ON CONFLICT (key) DO NOTHING", tuple(values.values()))


def read_shares(connection: sqlite3.Connection) -> list[Delivery]:
    """All of them, in the order in which they were ended."""
    rows = connection.execute("SELECT * FROM shares ORDER BY number").fetchall()
    return [_read(row, read_share(row["share"])) for row in rows]


def _read(row: sqlite3.Row, share: Share) -> Delivery:
    place = (row["owner_uid"], row["namespace"], row["project"], row["experiment"])
    return Delivery(SetKey(*place, share.name, share.attempt), share, tuple(json.loads(row["ids"])))
