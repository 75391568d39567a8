"""The log of a root's daemon: two files of a bounded size, and no line lost between them."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ml_dashd.log_file import LOG_BYTES
from tests.harness import eventually
from tests.scenario.embedded import Root

pytestmark = pytest.mark.slow

EARLIER = b"2026-01-01T00:00:00.000Z INFO ml_dashd earlier\n"


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path / "root")


def test_a_long_log_is_turned_while_the_daemon_runs(root: Root) -> None:
    state = root.path / ".ml-dashd"
    state.mkdir(parents=True)
    (state / "log.1").write_bytes(b"the one before\n")
    (state / "log").write_bytes(EARLIER * (LOG_BYTES // len(EARLIER)))  # less than a line is missing
    with root.experiment().run as exp:
        for number in range(3):  # one after the other: those that are stored together have one line
            exp.files.save_blob(bytes(70_000), to=f"{number}.bin").wait(60)
        eventually(lambda: root.log().count("file_stored") == 3)
    last, log = (state / "log.1").read_bytes(), root.log()
    assert last.startswith(EARLIER)
    assert len(last) < LOG_BYTES + 4096
    assert len(log) < LOG_BYTES
    assert last.count(b" ready ") + log.count(" ready ") == 1
    root.end()
    assert root.log().count(" stopped") == 1, "its last words go where its first went"
    assert sorted(path.name for path in state.glob("log*")) == ["log", "log.1"]


def test_a_short_log_is_appended_to(root: Root) -> None:
    for _ in range(2):
        with root.experiment().run as exp:
            exp.files.save_text("x", to="a.txt").wait(60)
        root.end()
    assert root.log().count(" stopped") == 2
    assert not (root.state / "log.1").exists()


WRITERS = textwrap.dedent("""
    import logging, os, sys, threading
    from pathlib import Path
    from ml_dashd import logs
    from ml_dashd.log_file import BoundedLog

    path, limit = Path(sys.argv[1]), int(sys.argv[2])
    logs.set_up("info", "human", BoundedLog(path, limit))
    log = logging.getLogger("ml_dashd")

    def write(writer):
        for number in range(500):
            log.info("file_stored", extra={"writer": writer, "number": number})

    def write_past_it():
        for number in range(500):
            os.write(2, f"library {number}\\n".encode())

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    threads.append(threading.Thread(target=write_past_it))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
""")


def run_writers(path: Path, limit: int) -> None:
    with path.open("ab") as log:
        subprocess.run([sys.executable, "-c", WRITERS, str(path), str(limit)], stdout=log, stderr=log, check=True)


def test_no_line_is_lost_while_it_is_turned(tmp_path: Path) -> None:
    """Some 200 kB are written: it is turned once, and each line is whole in one of the two."""
    path = tmp_path / "log"
    run_writers(path, 110_000)
    first, second = (tmp_path / "log.1").read_text(), path.read_text()
    assert second
    said = (first + second).splitlines()
    events = [re.search(r"writer=(\d) number=(\d+)$", line) for line in said]
    assert sorted((int(each[1]), int(each[2])) for each in events if each) == [
        (writer, number) for writer in range(4) for number in range(500)
    ]
    assert [line for line in said if line.startswith("library")] == [f"library {number}" for number in range(500)]
    assert len(said) == 2500


def test_however_much_is_written_there_are_two(tmp_path: Path) -> None:
    path = tmp_path / "log"
    run_writers(path, 10_000)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["log", "log.1"]
    assert all(each.stat().st_size < 10_000 + 15_000 for each in tmp_path.iterdir())  # what went past it comes on top


def test_a_log_that_can_not_be_turned_goes_on(tmp_path: Path) -> None:
    """A folder stands where the last one would go."""
    path = tmp_path / "log"
    (tmp_path / "log.1").mkdir()
    run_writers(path, 10_000)
    assert len(path.read_text().splitlines()) == 2500
    assert list((tmp_path / "log.1").iterdir()) == []
