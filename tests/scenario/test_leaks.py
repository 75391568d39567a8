"""A daemon that has seen everything often has as much open, and takes as much memory, as one that has seen it once."""

from __future__ import annotations

import gc
import hashlib
import os
import random
import secrets
import shutil
import statistics
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import pytest

from ml_dash import Experiment
from ml_dash import messages as m
from tests.doubles.raw_client import RawClient
from tests.doubles.users import PLACE
from tests.harness import DaemonProcess, Folder, eventually, make_file
from tests.measured import Measured, measured

pytestmark = pytest.mark.slow

MIB = 1 << 20
PART = 5 * MIB
COPIED = 150_000
"""The largest file that is copied in the background: what is to be overwritten must not be."""
SIZE = 20
"""Uploads of a round: 16 are stored, two of them in parts, two fail, two are taken back. And broken connections."""
WARM_UPS = 6
"""Rounds after which everything has been done: pools have their threads, statements are prepared, heaps are formed."""
PAGES = 1200
"""Files after which SQLite's page caches, 2 MB each, are full."""
GIVES_BACK = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""What is freed goes back to the kernel at once, so that what stays is what is held."""
PATIENCE = "peer_timeout = 1.0\n"
"""Some connections that break off are open until then: by default half a minute."""
SLOPE = 0.01
"""The growth over all that is measured that is no leak."""


class Round:
    """So many of everything that a client can do, well and badly."""

    def __init__(self, daemon: DaemonProcess, folder: Path, size: int, seed: int) -> None:
        self.daemon = daemon
        self.folder = folder
        self.size = size
        self.random = random.Random(seed)
        self.gate = folder / "store"
        """A plain file where the store has to make a folder: what belongs there waits while it is."""

    def run(self) -> None:
        with (
            self.daemon.experiment(f"alice/cv/{secrets.token_hex(4)}").run as exp,
            self.daemon.experiment(f"held/cv/{secrets.token_hex(4)}").run as held,
        ):
            self.gate = self.folder / "store" / held.prefix / "files"
            self.gate.parent.mkdir(parents=True, exist_ok=True)
            self.gate.touch()
            doomed = self.hand_over_doomed(held)
            self.store_many(exp)
            self.break_off()
            self.end_badly(held, doomed)
            exp.files.flush(timeout=120)
            for record in exp.files().list():
                exp.files(file_id=record["id"]).delete()

    def store_many(self, exp: Experiment) -> None:
        """Seven in ten by content, by slot and by path; one in ten in parts; each read back some way."""
        plain = self.folder / "plain.bin"
        make_file(plain, 100_000)
        parts = self.folder / "parts.bin"
        make_file(parts, PART + 1)
        for number in range(self.size // 10 * 7):
            if number % 3 == 0:
                exp.files("small").save_json({"number": number}, to=f"{number}.json")
            elif number % 3 == 1:
                exp.files("slots").save_blob(b"x" * 200_000, to=f"{number}.bin")
            else:
                exp.files("paths").upload(plain, to=f"{number}.bin", snapshot="copy" if number % 2 else None)
        for number in range(self.size // 10):
            exp.files("parts").upload(parts, to=f"{number}.bin")["checksum"]  # a hash pass, beside the upload
        for name in ("small/0.json", "slots/1.bin", "parts/0.bin"):
            exp.files.download(name, to=self.folder / "read-back")

    def hand_over_doomed(self, held: Experiment) -> list[str]:
        """Two in ten that wait: half will fail, their sources overwritten; half will be taken back, some in parts."""
        for number in range(self.size // 10):
            make_file(self.folder / f"changed-{number}.bin", COPIED + 1)
            held.files("changed").upload(self.folder / f"changed-{number}.bin")
            make_file(self.folder / "taken.bin", PART + 1 if number % 2 else 100_000)
            held.files("taken").upload(self.folder / "taken.bin", to=f"{number}.bin", snapshot="copy")
        doomed = f"experiment = '{held.prefix.rsplit('/')[-1]}'"
        eventually(lambda: not self.daemon.rows(f"SELECT 1 FROM files WHERE {doomed} AND NOT blocked"), timeout=120)
        return [record["id"] for record in held.files("taken").list()]

    def end_badly(self, held: Experiment, taken: list[str]) -> None:
        for number in range(self.size // 10):
            make_file(self.folder / f"changed-{number}.bin", COPIED + 2, seed=1)
        for file_id in taken:
            held.files(file_id=file_id).delete()
        self.gate.unlink()
        held.files.save_json({}, to="first.json")
        with RawClient(self.daemon.socket).greet() as client:  # in a drain nobody waits for a better time
            client.send(m.encode(m.Drain(request=1, deadline_ms=120_000)))
            while isinstance(answer := client.reply(), m.Progress):
                pass
            assert isinstance(answer, m.Drained)
        mine = f"experiment = '{held.prefix.rsplit('/')[-1]}'"
        moving = f"SELECT 1 FROM files WHERE {mine} AND state NOT IN ('CANCELLED', 'DONE', 'FAILED')"
        eventually(lambda: not self.daemon.rows(moving), timeout=120)
        ended = Counter(dict(self.daemon.rows(f"SELECT state, count(*) FROM files WHERE {mine} GROUP BY state")))
        each = self.size // 10
        read_in_time = ended["DONE"] - 1  # one that probes whether the store is back, just before its source changed
        assert ended == Counter(CANCELLED=each, DONE=1 + read_in_time, FAILED=each - read_in_time)
        assert read_in_time <= 1
        for record in held.files().list():
            held.files(file_id=record["id"]).delete()
        eventually(lambda: not self.daemon.rows(f"SELECT 1 FROM files WHERE {mine} AND state = 'FAILED'"))
        stored = sorted(path.name for path in self.gate.rglob("*") if path.is_file())
        assert stored[read_in_time:] == ["first.json"]
        shutil.rmtree(self.gate)

    def break_off(self) -> None:
        """Connections that end at any byte of what they have to say, descriptors beside it or not."""
        descriptor = os.open(self.folder / "plain.bin", os.O_RDONLY)
        hello = m.encode(m.Hello(request=1, min_version=1, max_version=1, client="test"))
        for _ in range(self.size):
            said = self.random.choice(self.sayings())
            data = hello + m.encode(said, said.descriptors.start)
            cut = self.random.randrange(len(data) + 1)
            with RawClient(self.daemon.socket) as client:
                client.send(hello[:cut])
                if cut > len(hello):
                    client.send(data[len(hello) : cut], [descriptor] * said.descriptors.start)
        os.close(descriptor)

    def sayings(self) -> list[m.Message]:
        place = m.Place(namespace="held", project="cv", experiment="broken-off")
        file = m.Described(place=place, to="x.bin", metadata='{"a": 1}')
        nothing = m.Described(place=m.Place(namespace="alice", project="", experiment=""), to="x")
        return [
            m.Upload(request=1, key=secrets.token_bytes(16), file=nothing, source="/x"),
            m.RequestSlot(request=1, size_bytes=300_000),
            m.CommitSlot(request=1, key=secrets.token_bytes(16), slot=5, file=file, size_bytes=5),
            m.Wait(request=1, until="stored", timeout_ms=60_000, place=place),
            m.Fetch(request=1, id=5),
            m.List(request=1, place=place),
            m.Status(request=1),
        ]


def test_nothing_is_left_open_and_memory_stays_flat(tmp_path: Path, full_size: bool) -> None:
    """At full size 1,000 uploads, of them 100 in parts, 100 that fail and 100 taken back, and 1,000 broken connections.

    After the warm-up every round counts, and the memory is a line through all of them.
    """
    rounds = 50 if full_size else 10
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    settings = f"part_size = {PART}\n[limits]\nmemory = {32 * MIB}\n[spool]\ncopy_below = {COPIED}\n"
    (tmp_path / "store").mkdir()
    daemon = DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store"), settings, PATIENCE)
    daemon.environment |= GIVES_BACK
    with daemon:
        idle = measured(daemon).descriptors
        warm_up(daemon, tmp_path)
        seen: list[Measured] = []

        def run(count: int) -> None:
            for number in range(count):
                Round(daemon, tmp_path, SIZE, seed + len(seen) + number).run()
                gc.collect()  # results keep their connection
                eventually(lambda: measured(daemon).descriptors == idle)
                seen.append(measured(daemon))
            print(f"RSS by round, KiB: {[each.rss_bytes >> 10 for each in seen]}")

        run(WARM_UPS + rounds)
        del seen[:WARM_UPS]
        if growth([each.rss_bytes for each in seen]) > SLOPE:
            del seen[:-1]
            run(rounds)  # what came once, or by chance, does not come again, and a leak does
        assert {each.threads for each in seen} == {seen[0].threads}
        assert growth([each.rss_bytes for each in seen]) <= SLOPE
        assert "Traceback" not in daemon.log()
        eventually(lambda: daemon.spool() == [])  # a source is let go in the step after the one that the journal has


def growth(sizes: Sequence[int]) -> float:
    """By which part of it the memory grows from the first to the last, by the median of the slopes between any two.

    What a peak has left in the heap is a step, after which it is flat again; a leak is never flat.
    """
    slopes = [(later - earlier) / (to - at) for (at, earlier), (to, later) in combinations(enumerate(sizes), 2)]
    return statistics.median(slopes) * (len(sizes) - 1) / statistics.median(sizes)


def small(number: int) -> m.Content:
    file = m.Described(place=PLACE, to=f"small/{number}", metadata='{"a": 1}')
    content = b"weights"
    return m.Content(key=secrets.token_bytes(16), file=file, content=content, sha256=hashlib.sha256(content).digest())


def warm_up(daemon: DaemonProcess, folder: Path) -> None:
    """Uses every buffer, which are mapped as they are needed and kept, and fills the page caches."""
    make_file(folder / "large.bin", 8 * PART)
    with daemon.experiment(f"{PLACE.namespace}/{PLACE.project}/{PLACE.experiment}").run as exp:
        for number in range(4):
            exp.files.upload(folder / "large.bin", to=f"{number}.bin")
        with RawClient(daemon.socket).greet() as client:
            for start in range(0, PAGES, m.MANY):
                files = tuple(small(number) for number in range(start, min(PAGES, start + m.MANY)))
                client.ask(m.AcceptedMany, m.PutMany(request=1, files=files))
        exp.files.flush(timeout=120)
        exp.files.delete("**")
