"""The disk refuses one call of the daemon's, or all from one on, wherever it takes room or syncs.

Each time: what was acknowledged arrives whole, what was refused says why and can be saved again, nobody crashes, and
all goes on by itself once the disk works. The calls are found by looking, so that a new one is refused, too.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path

import pytest

from ml_dash import Experiment, MLDashError
from ml_dash.errors import Code
from ml_dash.result import FileResult
from tests.doubles.refusals import SYNCS, Refusals, reaches_sqlite, recorded
from tests.harness import DaemonProcess, Folder, assert_whole, eventually, make_file

KIB, MIB = 1 << 10, 1 << 20
PART = 5 * MIB

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not reaches_sqlite(), reason="this Python hides its SQLite"),
]


@dataclass
class Ground:
    """A daemon whose calls can be refused, and what it was given so far."""

    daemon: DaemonProcess
    refusals: Refusals
    exp: Experiment
    sources: dict[str, tuple[Path, str]]
    expected: dict[str, str] = field(default_factory=dict)
    rounds: int = 0

    def save(self, kind: str, to: str) -> FileResult:
        path, _ = self.sources[kind]
        calls: dict[str, Callable[[], FileResult]] = {
            "inline": lambda: self.exp.files.save_blob(path.read_bytes(), to=to),
            "many": lambda: self.exp.files.upload_many({to: path})[0],
            "slot": lambda: self.exp.files.save_blob(path.read_bytes(), to=to),
            "synced": lambda: self.exp.files.save_blob(path.read_bytes(), to=to, durability="disk"),
            "linked": lambda: self.exp.files.upload(path, to=to),
            "copied": lambda: self.exp.files.upload(path, to=to, snapshot="copy"),
            "parts": lambda: self.exp.files.upload(path, to=to),
        }
        return calls[kind]()

    def round(self) -> Round:
        """Hands over one of each kind."""
        self.rounds += 1
        taken, refused = {}, {}
        for kind in self.sources:
            to = f"{self.rounds}/{kind}"
            try:
                taken[to] = self.save(kind, to)
            except MLDashError as refusal:
                refused[to] = refusal
        return Round(taken, refused)

    def start_again(self, *, kill: bool = False) -> None:
        if kill:
            self.daemon.kill()
        else:
            assert self.daemon.stop() == 0
        self.daemon.start()

    def given_up(self, seen: Round) -> list[str]:
        """Waits for what was acknowledged; what the disk could not keep is deleted, and named."""
        lost = []
        for name, result in seen.taken.items():
            try:
                result.wait(60)
            except MLDashError as failure:
                assert failure.code is Code.DISK_FAILED, failure  # noqa: PT017
                self.exp.files(file_id=result["id"]).delete()
                lost.append(name)
        return lost

    def names(self) -> set[str]:
        return {f"{each['path'].strip('/')}/{each['filename']}" for each in self.exp.files().list()}

    def expect(self, names: Iterable[str]) -> None:
        self.expected |= {name: self.sources[name.partition("/")[2]][1] for name in names}

    def save_again(self, names: Iterable[str]) -> None:
        """What was refused; nothing refuses it now."""
        for name in names:
            self.save(name.partition("/")[2], name)
            self.expect([name])


@dataclass
class Round:
    """What was acknowledged, and what was refused."""

    taken: dict[str, FileResult]
    refused: dict[str, MLDashError]

    def ended(self) -> bool:
        return all(result.refresh()["state"] in ("DONE", "FAILED") for result in self.taken.values())


@contextmanager
def ground(tmp_path: Path) -> Iterator[Ground]:
    refusals = Refusals(tmp_path / "refusals")
    daemon = DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store"), settings=f"part_size = {PART}\n")
    daemon.daemon_settings = "drain_timeout = 1"
    daemon.module = ["tests.doubles.refusals", str(refusals.path)]
    daemon.environment["ML_DASHD_FAULT_LOG"] = ""  # else its lines were calls, too
    sizes = {
        "inline": 60 * KIB,
        "many": 5,
        "linked": 100 * KIB,
        "slot": 2 * MIB,
        "synced": 2 * MIB,
        "copied": 300 * KIB,
    }
    sources = {}
    for seed, (kind, size) in enumerate((sizes | {"parts": PART + 1}).items()):
        path = tmp_path / f"{kind}.bin"
        sources[kind] = path, make_file(path, size, seed)
    with daemon, daemon.experiment(on_full="raise", wait=False).run as exp:
        yield Ground(daemon, refusals, exp, sources)


@dataclass(frozen=True)
class Calls:
    """The calls that are made while one of each kind goes its way, and nothing is refused."""

    at_first: frozenset[str]
    """By a daemon that was just started."""
    always: frozenset[str]

    def of(self, *, syncs: bool) -> list[str]:
        made = self.at_first | self.always
        return sorted(site for site in made if (site.rpartition(" ")[2] in SYNCS) == syncs and not is_late(site))


def is_late(site: str) -> bool:
    """What an experiment's rows and folder take is written in a moment of its own: a round may end before it.

    tests/scenario/test_tree.py and test_runs.py refuse it; while everything is refused it is, too.
    """
    return site.startswith(("catalog-runs.", "tree."))


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Calls:
    folder = tmp_path_factory.mktemp("calls")
    (folder / "refusals.calls").touch()
    with ground(folder) as here:
        seen = [recorded(here.refusals.path)]
        for _ in range(2):
            here.expect(here.round().taken)
            here.exp.files.flush(timeout=60)
            assert_whole(here.daemon, here.exp, here.expected)
            seen.append(recorded(here.refusals.path))
    return Calls(frozenset(seen[1] - seen[0]), frozenset(seen[2] - seen[1]))


def asked(calls: Calls, *, syncs: bool, full_size: bool, stride: int = 1) -> Iterator[tuple[int, str]]:
    """Which call of which site is refused: the first of each; at full size each call there is, whosever it is.

    `stride`: at the short size, SQLite's and so many of the others are enough.
    """
    sites = calls.of(syncs=syncs)
    assert len(sites) > 5
    if not full_size:
        yield from ((1, site) for at, site in enumerate(sites) if "sqlite" in site or at % stride == 0)
        return
    yield from ((1, site) for site in sites if site not in calls.always)
    yield from ((number, "") for number in count(1))


def asked_of_journal() -> Iterator[tuple[int, str]]:
    """The hand-offs' own syncs: kill -9 follows each second of them, and the journal is read as the disk has it."""
    yield from ((number, "journal.sqlite-wal xSync") for number in range(2, 6))


CASES = [
    pytest.param(errno.ENOSPC, False, 1, id="no space, once"),
    pytest.param(errno.ENOSPC, True, 2, id="no space from then on"),
    pytest.param(errno.EDQUOT, False, 4, id="quota, once"),
    pytest.param(errno.EDQUOT, True, 4, id="quota from then on"),
]


@pytest.mark.parametrize(("error", "lasting", "stride"), CASES)
def test_a_call_that_finds_no_room(
    tmp_path: Path, calls: Calls, error: int, lasting: bool, stride: int, full_size: bool
) -> None:
    with ground(tmp_path) as here:
        for number, site in asked(calls, syncs=False, full_size=full_size, stride=stride):
            if site and site not in calls.always:
                here.start_again()
            here.refusals.ask(number, error, site, lasting=lasting)
            seen = here.round()
            eventually(lambda: here.refusals.met or seen.ended(), timeout=60)  # noqa: B023
            met = here.refusals.met
            here.refusals.mend()
            for refusal in seen.refused.values():
                assert refusal.code in (Code.DISK_FULL, Code.RETRY_LATER), (met, refusal)
                assert refusal.hint
            here.expect(seen.taken)
            here.save_again(seen.refused)
            here.exp.files.flush(timeout=60)
            if not (site or met):
                break
            assert met.endswith(site)
        here.exp.files.flush(timeout=60)
        assert_whole(here.daemon, here.exp, here.expected)
        assert "Traceback" not in here.daemon.log()


def test_a_sync_that_is_refused(tmp_path: Path, calls: Calls, full_size: bool) -> None:
    """A file that was acknowledged before is stored, or says that the disk could not keep it."""
    with ground(tmp_path) as here:
        for number, site in chain(asked_of_journal(), asked(calls, syncs=True, full_size=full_size)):
            here.refusals.ask(number, errno.EIO, site)
            seen = here.round()
            eventually(lambda: here.refusals.met or seen.ended(), timeout=60)  # noqa: B023
            met = here.refusals.met
            here.refusals.mend()
            assert {refusal.code for refusal in seen.refused.values()} <= {Code.DISK_FAILED}, met
            if here.daemon.status().error_code is not None:
                here.start_again(kill=bool(here.rounds % 2))
            lost = here.given_up(seen)
            # What was refused when a sync failed may have reached the disk all the same; then it is as good as any.
            kept = seen.refused.keys() & here.names()
            here.expect((seen.taken.keys() - lost) | kept)
            here.save_again([*(seen.refused.keys() - kept), *lost])
            here.exp.files.flush(timeout=60)
            if not (site or met):
                break
            assert met.endswith(site)
        assert_whole(here.daemon, here.exp, here.expected)
        assert "Traceback" not in here.daemon.log()


class Waiting:
    """Files that can't be stored yet, each in a place of its own: a plain file stands where its folder has to be."""

    def __init__(self, here: Ground, number: int) -> None:
        assert isinstance(here.daemon.store, Folder)
        self.here = here
        self.gate = here.daemon.store.root / f"held-{number}"
        self.gate.touch()
        self.exp = here.daemon.experiment(f"{self.gate.name}/cv/copied", wait=False).run.start()
        self.path, self.sha256 = here.sources["linked"]
        self.result = self.exp.files.upload(self.path, to="copied.bin")
        assert self.result["pin"] == "link"

    def let_go(self) -> None:
        """Once one is stored the other is not kept waiting."""
        self.gate.unlink()
        self.exp.files.save_text("x", to="first.txt")
        self.exp.files.flush(timeout=60)
        assert self.result["checksum"] == self.sha256
        assert self.here.daemon.store.sha256(self.here.daemon.store.key_of(self.result)) == self.sha256


def copied(waiting: Waiting) -> bool:
    return bool(waiting.result.refresh()["pin"] == "copy")


def test_a_copy_in_the_background_that_is_refused(tmp_path: Path, full_size: bool) -> None:
    """The file goes on as it is pinned; nothing else is told, and nothing of the copy stays."""
    (tmp_path / "refusals.calls").touch()
    with ground(tmp_path) as here:
        first = Waiting(here, 0)
        before = recorded(here.refusals.path)
        eventually(lambda: copied(first))
        made = recorded(here.refusals.path) - before
        # The store tries in vain meanwhile.
        calls = [site for site in made if not site.startswith("local_store.") and not is_late(site)]
        first.let_go()
        assert len(calls) > 5
        for number, site in enumerate(sorted(calls), start=1):
            syncs = site.rpartition(" ")[2] in SYNCS
            for error in (errno.EIO,) if syncs else (errno.ENOSPC, errno.EDQUOT) if full_size else (errno.ENOSPC,):
                waiting = Waiting(here, number * 1000 + error)
                # The source is synced first, by itself, and then what was copied of it.
                here.refusals.ask(2 if site.endswith(" fdatasync") else 1, error, site)
                eventually(lambda: here.refusals.met or copied(waiting))  # noqa: B023
                eventually(lambda: copied(waiting) or "copy_postponed" in here.daemon.log())  # noqa: B023
                assert here.refusals.met == site
                here.refusals.mend()
                if here.daemon.status().error_code is not None:
                    here.start_again()
                waiting.let_go()
        eventually(lambda: here.daemon.spool() == [])
        assert "Traceback" not in here.daemon.log()
