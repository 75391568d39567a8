"""Daemons of a fleet: each with its own state folder and socket, on one store and one database."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from ml_dash import Experiment
from tests.harness import DaemonProcess, StoreUnderTest


def node(folder: Path, store: StoreUnderTest, url: str) -> DaemonProcess:
    """A daemon that is not started yet."""
    catalog = f'[catalog]\nurl = "{url}"\n[http]\nlisten = "unix:{folder}/http"\n'
    return DaemonProcess(folder, store, settings=catalog, daemon_settings="drain_timeout = 1")


def assert_one_each(experiment: Experiment, store: StoreUnderTest, expected: dict[str, str]) -> list[dict[str, Any]]:
    """Every file of `expected` (path → SHA-256) has one record, each record its object, and each object its record."""
    records = experiment.files().list()
    assert [one for one, times in Counter(record["id"] for record in records).items() if times > 1] == []
    found = {f"{record['path'].strip('/')}/{record['filename']}": record for record in records}
    assert len(records) == len(found), "a file is listed twice"
    assert {path: record["checksum"] for path, record in found.items()} == expected
    assert {record["state"] for record in records} == {"DONE"}
    objects = store.contents(f"{experiment.prefix}/")
    assert objects == {store.key_of(record): record["checksum"] for record in records}
    assert store.open_uploads() == []
    return records
