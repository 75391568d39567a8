"""Who is stored first, and what becomes of the queue while the store is slow, sheds load, refuses, or is away."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_dash.errors import Code
from ml_dashd.core.circuit import OF_AN_EXPERIMENT, OF_THE_STORE
from ml_dashd.core.pace import START
from ml_dashd.core.retry import Fault
from ml_dashd.core.schedule import WIDTH, Lane
from tests.doubles.http_client import HttpClient
from tests.doubles.moody_store import MoodyStore, content
from tests.harness import DaemonProcess, eventually, make_file

MIB = 1 << 20
QUEUED = 1000

pytestmark = pytest.mark.slow


@pytest.fixture
def store() -> Iterator[MoodyStore]:
    with MoodyStore() as made:
        yield made


def capped(tmp_path: Path, store: MoodyStore, bandwidth: int) -> DaemonProcess:
    return DaemonProcess(tmp_path / "daemon", store, f"[limits]\nbandwidth = {bandwidth}")


def metrics(daemon: DaemonProcess) -> dict[str, float]:
    return HttpClient(daemon.folder / "http.sock").metrics()


def sparse(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        os.truncate(file.fileno(), size)
    return path


# ---- fairness


def test_a_hundred_small_files_are_stored_while_a_large_one_is_on_its_way(tmp_path: Path, store: MoodyStore) -> None:
    with capped(tmp_path, store, 20_000_000) as daemon, daemon.experiment("a/b/large").run as exp:
        large = exp.files.upload(sparse(tmp_path / "large.bin", 1_000_000_000), to="large.bin")
        eventually(lambda: store.received_of("large"))
        for number in range(100):
            exp.files.save_text("x" * 4000, to=f"small/{number}.txt")
        eventually(lambda: len(store.stored) == 100, timeout=60)
        assert all("/small/" in key for key in store.stored)
        assert large.state == "SENDING"
        assert store.received_of("large") < 500_000_000
        assert metrics(daemon)["ml_dashd_requests[large]"] > 0
        exp.files("large.bin").delete()


def test_a_single_small_file_does_not_wait_for_all_of_another_experiments(tmp_path: Path, store: MoodyStore) -> None:
    with (
        capped(tmp_path, store, 2_000_000) as daemon,
        daemon.experiment("a/b/many").run as many,
        daemon.experiment("a/b/single").run as single,
    ):
        for number in range(1000):
            many.files.save_blob(os.urandom(20_000), to=f"{number}.bin")
        eventually(lambda: store.stored_of("many"))
        before = store.stored_of("many")
        single.files.save_blob(os.urandom(50_000), to="one.bin").wait(60)
        at = next(at for at, key in enumerate(store.stored) if "/single/" in key)
        assert at - before <= 2 * WIDTH[Lane.INLINE]
        many.files.flush(timeout=120)
        assert store.stored_of("many") == 1000


def test_large_files_of_two_experiments_share_the_line(tmp_path: Path, store: MoodyStore) -> None:
    """Three files of one against one of the other: each experiment gets half of it, not each file a quarter."""
    with (
        capped(tmp_path, store, 60_000_000) as daemon,
        daemon.experiment("a/b/three").run as three,
        daemon.experiment("a/b/one").run as one,
    ):
        for number in range(3):
            three.files.upload(sparse(tmp_path / f"{number}.bin", 400 * MIB), to=f"{number}.bin")
        eventually(lambda: store.received_of("three") > 16 * MIB)
        one.files.upload(sparse(tmp_path / "one.bin", 160 * MIB), to="one.bin")
        eventually(lambda: store.received_of("one"), timeout=60)
        before = store.received_of("three")
        eventually(lambda: store.received_of("one") == 160 * MIB, timeout=120)
        assert 80 * MIB <= store.received_of("three") - before <= 300 * MIB


# ---- a store that sheds load


@pytest.mark.parametrize("said", [(503, "SlowDown"), (429, "Busy"), (503, "Reduce")])
def test_slow_down_for_every_second_request_is_borne(tmp_path: Path, store: MoodyStore, said: tuple[int, str]) -> None:
    """Everything is stored, with fewer requests at once."""
    store.mood = lambda count, request: said if request.method == "PUT" and count % 2 else None
    with DaemonProcess(tmp_path / "daemon", store) as daemon, daemon.experiment().run as exp:
        lowest = START
        make_file(tmp_path / "large.bin", 100 * MIB)
        exp.files.upload(tmp_path / "large.bin", to="large.bin")
        results = [exp.files.save_text("x", to=f"{number}.txt") for number in range(60)]

        def all_stored() -> bool:
            nonlocal lowest
            lowest = min(lowest, int(metrics(daemon)["ml_dashd_requests_limit"]))
            return len(store.stored) == len(results) + 1

        eventually(all_stored, timeout=120)
        exp.files.flush(timeout=60)
        assert lowest <= START // 4
        assert metrics(daemon)["ml_dashd_retries_total[throttled]"] > 10
        assert sorted(store.stored) == sorted(set(store.stored))


# ---- a store that is away, or refuses


def queue(daemon: DaemonProcess, prefix: str = "a/b/waiting", count: int = QUEUED) -> None:
    with daemon.experiment(prefix, wait=False).run as exp:
        for number in range(count):
            exp.files.save_text("x", to=f"{number}.txt")


def blocked_files(daemon: DaemonProcess, code: Code) -> float:
    return metrics(daemon).get(f"ml_dashd_blocked_files[{code}]", 0)


def test_behind_a_store_that_is_away_files_wait_and_go_on_when_it_is_back(tmp_path: Path, store: MoodyStore) -> None:
    with DaemonProcess(tmp_path / "daemon", store) as daemon:
        store.go_away()
        queue(daemon)
        eventually(lambda: blocked_files(daemon, Code.STORE_UNREACHABLE) == QUEUED)
        seen = metrics(daemon)
        assert (seen["ml_dashd_circuits_open[store]"], seen["ml_dashd_check_ok[store]"]) == (1, 0)
        assert HttpClient(daemon.folder / "http.sock").reasons()["store"]["code"] == Code.STORE_UNREACHABLE
        said = daemon.status().blocked
        assert len(said) == 16
        assert {record.state for record in said} <= {"QUEUED", "SENDING"}
        assert all(record.error_code == Code.STORE_UNREACHABLE and record.error_hint for record in said)
        store.come_back()
        eventually(lambda: len(store.stored) == QUEUED, timeout=60)
        eventually(lambda: daemon.rows("SELECT count(*) FROM files WHERE state <> 'DONE'") == [(0,)])
        assert daemon.rows("SELECT max(attempt) FROM files")[0][0] <= OF_THE_STORE[Fault.UNREACHABLE]
        eventually(lambda: metrics(daemon)["ml_dashd_check_ok[store]"])  # a page of metrics holds for a moment
        assert metrics(daemon)["ml_dashd_circuits_open[store]"] == 0
        assert blocked_files(daemon, Code.STORE_UNREACHABLE) == 0


def test_with_refused_credentials_one_file_asks_for_all(tmp_path: Path, store: MoodyStore) -> None:
    """A thousand files wait; the store hears of those that were under way, and of one probe at a time."""
    with DaemonProcess(tmp_path / "daemon", store) as daemon:
        with daemon.experiment().run as exp:
            exp.files.save_text("x", to="before.txt").wait(60)
        store.mood = lambda _, __: (403, "InvalidAccessKeyId")
        queue(daemon)
        eventually(lambda: blocked_files(daemon, Code.STORE_CREDENTIALS) == QUEUED)
        asked = store.puts
        assert asked <= WIDTH[Lane.INLINE] + 2 * WIDTH[Lane.SMALL]
        eventually(lambda: store.puts >= asked + 3)
        attempts = "SELECT sum(attempt) FROM files"
        before = daemon.rows(attempts)
        eventually(lambda: store.puts >= asked + 6, timeout=60)
        assert daemon.rows(attempts) == before  # probes are no attempts of the files
        store.mood = content
        eventually(lambda: store.stored_of("waiting") == QUEUED, timeout=60)
        assert len(set(store.stored)) == len(store.stored) == QUEUED + 1


def test_an_experiment_that_is_denied_holds_up_itself_alone(tmp_path: Path, store: MoodyStore) -> None:
    store.mood = lambda _, request: (403, "AccessDenied") if "/secret/" in request.key else None
    with DaemonProcess(tmp_path / "daemon", store) as daemon:
        least = OF_AN_EXPERIMENT[Fault.DENIED]
        queue(daemon, "a/b/secret", least)
        eventually(lambda: metrics(daemon)["ml_dashd_circuits_open[experiment]"] == 1)
        queue(daemon, "a/b/secret", 100 - least)
        with daemon.experiment("a/b/open").run as exp:
            for number in range(20):
                exp.files.save_text("x", to=f"{number}.txt")
            exp.files.flush(timeout=60)
        assert store.stored_of("open") == 20
        assert metrics(daemon)["ml_dashd_circuits_open[store]"] == 0
        eventually(lambda: blocked_files(daemon, Code.STORE_DENIED) == 100)
        assert len(daemon.rows("SELECT id FROM files WHERE attempt > 0")) < least + 2
        store.mood = content
        eventually(lambda: store.stored_of("secret") == 100, timeout=60)


def test_what_waits_behind_a_circuit_can_be_taken_back_and_outlives_the_daemon(
    tmp_path: Path, store: MoodyStore
) -> None:
    with DaemonProcess(tmp_path / "daemon", store) as daemon:
        store.go_away()
        queue(daemon, count=50)
        eventually(lambda: blocked_files(daemon, Code.STORE_UNREACHABLE) == 50)
        with daemon.experiment("a/b/waiting", wait=False).run as exp:
            untouched = daemon.rows("SELECT filename FROM files WHERE key IS NULL LIMIT 1")[0][0]
            exp.files(untouched).delete()
            eventually(lambda: daemon.rows("SELECT count(*) FROM files WHERE state = 'CANCELLED'") == [(1,)])
        daemon.kill()
        store.come_back()
        daemon.start()
        eventually(lambda: daemon.rows("SELECT count(*) FROM files WHERE state = 'DONE'") == [(49,)], timeout=60)


def test_a_stop_does_not_wait_for_a_store_that_is_away(tmp_path: Path, store: MoodyStore) -> None:
    """It is tried once more; then there is nothing to wait for."""
    daemon = DaemonProcess(tmp_path / "daemon", store, daemon_settings="drain_timeout = 3000")
    with daemon:
        store.go_away()
        queue(daemon, count=300)
        eventually(lambda: blocked_files(daemon, Code.STORE_UNREACHABLE) == 300)
        assert daemon.stop() == 0
        assert daemon.rows("SELECT count(*) FROM files WHERE state <> 'DONE'") == [(300,)]
