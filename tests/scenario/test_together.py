"""Small files go to the store many at a time, in one commit: what becomes of one is its own affair."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_dash.errors import Code, MLDashError
from tests.doubles.moody_store import MoodyStore
from tests.harness import DaemonProcess, eventually, make_file

KIB = 1 << 10
SIZE = 300 * KIB
"""More than the journal holds, and little enough to go with others."""
MANY = 60
NO_COPIES = "[spool]\ncopy_below = 0\n"
"""Of a copied file the source may change as it likes."""

pytestmark = pytest.mark.slow


@pytest.fixture
def store() -> Iterator[MoodyStore]:
    with MoodyStore() as made:
        yield made


def states(daemon: DaemonProcess) -> dict[str, int]:
    return dict(daemon.rows("SELECT state, count(*) FROM files GROUP BY state"))


def test_of_many_small_files_the_one_that_was_changed_fails_alone(tmp_path: Path, store: MoodyStore) -> None:
    sources = [tmp_path / f"{number}.bin" for number in range(MANY)]
    for number, source in enumerate(sources):
        make_file(source, SIZE, seed=number)
    with DaemonProcess(tmp_path / "daemon", store, NO_COPIES) as daemon, daemon.experiment().run as exp:
        store.go_away()
        results = [exp.files.upload(source, to=source.name) for source in sources]
        make_file(sources[0], SIZE, seed=MANY)
        sources[1].unlink()
        make_file(sources[2].with_suffix(".new"), SIZE, seed=MANY + 1)
        sources[2].with_suffix(".new").rename(sources[2])
        with pytest.raises(MLDashError) as changed:  # told while nobody can be asked
            results[0].wait(150)  # at its turn to try the store, which is an early one: the first wait longest
        assert changed.value.code is Code.SOURCE_CHANGED
        assert "0.bin" in str(changed.value)
        store.come_back()
        for number in set(range(MANY)) - {0}:
            results[number].wait(60)
        assert states(daemon) == {"DONE": MANY - 1, "FAILED": 1}
        assert len(store.stored) == MANY - 1
        assert "0.bin" not in {record["filename"] for record in exp.files().list() if record["state"] == "DONE"}


def test_a_deletion_in_the_middle_of_many_takes_back_its_own_file_alone(tmp_path: Path, store: MoodyStore) -> None:
    source = tmp_path / "source.bin"
    make_file(source, SIZE)
    with (
        DaemonProcess(tmp_path / "daemon", store, f"{NO_COPIES}[limits]\nbandwidth = 6_000_000\n") as daemon,
        daemon.experiment().run as exp,
    ):
        for number in range(MANY):
            exp.files.upload(source, to=f"{number}.bin")
        eventually(lambda: store.stored)
        exp.files(f"{MANY - 1}.bin").delete()
        exp.files.flush(timeout=120)
        eventually(lambda: states(daemon) == {"DONE": MANY - 1, "CANCELLED": 1}, timeout=60)
        assert sorted(record["filename"] for record in exp.files().list()) == sorted(
            f"{n}.bin" for n in range(MANY - 1)
        )


def test_many_files_share_their_commits(tmp_path: Path, store: MoodyStore) -> None:
    """What is stored in the same moment is listed in the same moment: a commit of the disk serves many."""
    source = tmp_path / "source.bin"
    make_file(source, SIZE)
    with DaemonProcess(tmp_path / "daemon", store, NO_COPIES) as daemon, daemon.experiment().run as exp:
        store.go_away()
        for number in range(MANY):
            exp.files.upload(source, to=f"{number}.bin")
        eventually(lambda: daemon.rows("SELECT count(*) FROM files WHERE blocked") == [(MANY,)])
        store.come_back()
        exp.files.flush(timeout=60)
        moments = daemon.rows("SELECT count(DISTINCT at_ms) FROM events WHERE to_state = 'DONE'")[0][0]
        assert moments <= MANY / 4
