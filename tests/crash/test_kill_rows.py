"""kill -9 while rows are logged: none that was acknowledged is lost, and none is there twice."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path

import pytest

from tests.crash.test_kill_daemon import RUNS, revived
from tests.harness import DaemonProcess, Folder
from tests.scenario.embedded import trainer

pytestmark = pytest.mark.slow

LOGGING = """
    import sys
    from ml_dash import Experiment
    with Experiment("alice/cv/resnet", socket=sys.argv[1]).run as exp:
        for number in range(int(sys.argv[3])):
            exp.metrics.log(train={"who": sys.argv[2], "n": number})
            print(number, flush=True)  # acknowledged
"""


def daemon_in(folder: Path, faults: str = "") -> DaemonProcess:
    return DaemonProcess(folder / "daemon", Folder(folder / "store"), faults=faults)


def rows_of(daemon: DaemonProcess, who: str) -> list[int]:
    """In the catalog; the folder shows the same."""
    with daemon.experiment().run as exp:
        rows = [*exp.metrics("train")]
    assert isinstance(daemon.store, Folder)
    shown = (daemon.store.root / "alice/cv/resnet/metrics/train/data.jsonl").read_text().splitlines()
    assert [json.loads(line)["data"] for line in shown] == rows
    assert [json.loads(line)["index"] for line in shown] == [*range(len(rows))]
    return [row["n"] for row in rows if row["who"] == who]


@pytest.mark.parametrize("hit", [1, 3])
@pytest.mark.parametrize("point", RUNS)
def test_killed_at_a_commit_of_rows(point: str, hit: int, tmp_path: Path) -> None:
    """The first commits are those of the run and the parameters; then rows."""
    with daemon_in(tmp_path, f"{point}=kill@{hit}") as daemon:
        with revived(daemon), daemon.experiment().run as exp:
            exp.params.set(lr=1)
            for number in range(5):
                exp.metrics("train").log(who="a", n=number)
            assert exp.params.get() == {"lr": 1}
        assert point in daemon.faults_met()
        assert rows_of(daemon, "a") == [*range(5)]


def test_killed_anywhere_while_two_processes_log(tmp_path: Path, full_size: bool) -> None:
    kills, count = (40, 4000) if full_size else (5, 500)
    chance = random.Random(seed := random.randrange(1 << 32))
    print(f"seed {seed}")
    with daemon_in(tmp_path) as daemon:
        trainers = [trainer(LOGGING, str(daemon.socket), who, str(count)) for who in ("a", "b")]
        outs = [each.stdout for each in trainers if each.stdout is not None]
        assert [out.readline() for out in outs] == ["0\n", "0\n"]  # a daemon that was never there is not looked for
        for _ in range(kills):
            for _ in range(chance.randrange(5, count // kills - 5)):
                outs[0].readline()
            daemon.kill()
            daemon.start()
        for each in trainers:
            _, err = each.communicate(timeout=60)
            assert (each.returncode, err) == (0, "")
        assert rows_of(daemon, "a") == [*range(count)]
        assert rows_of(daemon, "b") == [*range(count)]


def test_what_was_acknowledged_outlives_trainer_and_daemon(tmp_path: Path) -> None:
    """Both are killed at the same moment."""
    with daemon_in(tmp_path) as daemon:
        for _ in range(3):
            process = trainer(LOGGING, str(daemon.socket), "a", "100000")
            assert process.stdout is not None
            for _ in range(50):
                process.stdout.readline()
            assert daemon.process is not None
            daemon.process.send_signal(signal.SIGKILL)
            process.kill()
            said = process.stdout.read()  # communicate would pass over what readline has buffered
            process.communicate()
            daemon.kill()
            whole = said.rpartition("\n")[0].splitlines()  # what it was writing may be cut
            last = int(whole[-1]) if whole else 49
            daemon.start()
            rows = rows_of(daemon, "a")
            began = len(rows) - 1 - rows[::-1].index(0)
            # The last of them may have been taken in, and its trainer not told.
            assert rows[began:] in ([*range(last + 1)], [*range(last + 2)])
