"""Daemons of a fleet: each with its own state folder and socket, on one store and one database."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from ml_dash import Experiment
from tests.harness import PREFIX, DaemonProcess, StoreUnderTest

PART = 5 << 20
"""As small as S3 allows."""
PATIENCE_S = 600.0
"""6,000 files take some minutes at full size on two cores."""
SOME, MANY = 2_500, 300_000
"""How often a file's words are repeated: tens of KiB, in the spool, or so many that it goes in parts."""


def node(folder: Path, store: StoreUnderTest, url: str) -> DaemonProcess:
    """A daemon that is not started yet."""
    catalog = f'[catalog]\nurl = "{url}"\n[http]\nlisten = "unix:{folder}/http"\n'
    return DaemonProcess(folder, store, settings=f"part_size = {PART}\n{catalog}", daemon_settings="drain_timeout = 1")


class Saving:
    """Files that every node hands over at the same time, each from a client of its own, in rounds of one size.

    The first round begins at once. Of a node's files some go in parts.
    """

    def __init__(self, nodes: Sequence[DaemonProcess], files: int, prefix: str = PREFIX, rounds: int = 1) -> None:
        self.expected: dict[str, str] = {}
        self._prefix = prefix
        self._nodes = nodes
        self._round = files // rounds
        self._files = self._round * rounds
        self._begun = [threading.Semaphore(1) for _ in nodes]
        self._saved = threading.Semaphore(0)
        self._ends = [self._begin(daemon, at) for at, daemon in enumerate(nodes)]

    def _begin(self, daemon: DaemonProcess, at: int) -> Future[None]:
        """In a thread that keeps no failed test from its end, though it may wait for a node for minutes."""
        end: Future[None] = Future()

        def save() -> None:
            try:
                end.set_result(self._save(daemon, at))
            except BaseException as failure:  # noqa: BLE001 whoever asks for the end gets it
                end.set_exception(failure)

        threading.Thread(target=save, daemon=True).start()
        return end

    def _save(self, daemon: DaemonProcess, at: int) -> None:
        with daemon.experiment(self._prefix, wait=False).run as exp:
            for number in range(self._files):
                if number % self._round == 0:
                    assert self._begun[at].acquire(timeout=PATIENCE_S)
                text = self._content(at, number)
                exp.files(f"node{at}").save_text(text, to=f"{number}.txt")
                self.expected[f"node{at}/{number}.txt"] = hashlib.sha256(text.encode()).hexdigest()
                self._saved.release()

    def _content(self, at: int, number: int) -> str:
        times = MANY if number % 500 == 1 else SOME if number % 10 == 0 else 1
        return f"{self._prefix} {at} {number} " * times

    def begin_round(self) -> None:
        for each in self._begun:
            each.release()

    def wait_for(self, files: int) -> None:
        """Returns once so many more are handed over."""
        for _ in range(files):
            assert self._saved.acquire(timeout=PATIENCE_S)

    def end(self) -> None:
        """Returns once all are listed."""
        for each in self._ends:
            each.result()
        for daemon in self._nodes:
            daemon.experiment(self._prefix).run.start().files.flush(timeout=PATIENCE_S)


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
    left = store.open_uploads()
    assert left == [], f"uploads are left open: {left}"
    return records
