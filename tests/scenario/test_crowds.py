"""Many connections and many descriptors: whoever takes all that it gets harms nobody else."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from resource import RLIMIT_NOFILE, prlimit

import pytest

from ml_dash import messages as m
from ml_dash.errors import Code
from tests.doubles import users as doubles
from tests.doubles.users import Crowd, User
from tests.harness import DaemonProcess, Folder, eventually, file_sha256, make_file

pytestmark = pytest.mark.slow

FIRST, SECOND, THIRD = 64001, 64002, 64003
SHARED = f'[access]\nuids = [{FIRST}, {SECOND}, {THIRD}]\nsocket_mode = "0666"\n'


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that every user gets to."""
    made = Path(tempfile.mkdtemp(prefix="ml-dash-crowds-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def join() -> Iterator[Callable[[int, DaemonProcess], User]]:
    with ExitStack() as ended:

        def user(uid: int, daemon: DaemonProcess) -> User:
            made = User(uid, daemon.socket)
            ended.callback(made.close)
            return made

        yield user


def test_ten_thousand_connections_of_one_user(folder: Path, join: Callable[[int, DaemonProcess], User]) -> None:
    """Those that are too many are told so at once; others' hand-offs go on, and others still get in."""
    with DaemonProcess(folder / "daemon", Folder(folder / "store"), SHARED) as daemon:
        first, second = join(FIRST, daemon), join(SECOND, daemon)
        second.put("before.pt")
        first.begin(doubles.crowd, 10_000)
        handed_over = [second.put(f"{number}.pt").id for number in range(200)]
        crowd: Crowd = first.end()
        assert crowd.admitted == 511  # of 1,024, with its own first one and the other user's: as many as are left
        assert crowd.refused == {Code.RETRY_LATER: 10_000 - crowd.admitted}
        assert join(THIRD, daemon).put("third.pt").id > handed_over[-1]
        assert daemon.status().connections >= 514
        first.call(doubles.disperse)
        eventually(lambda: daemon.status().connections < 10)
        assert first.call(doubles.crowd, 10) == (10, {})
        stored = second.expect(m.Waited, m.Wait(request=1, until="stored", timeout_ms=30_000, ids=tuple(handed_over)))
        assert (stored.reached, stored.pending) == (200, 0)
        assert daemon.log().count("connection_refused") < 20


def test_each_user_gets_a_share(folder: Path, join: Callable[[int, DaemonProcess], User]) -> None:
    with DaemonProcess(
        folder / "daemon", Folder(folder / "store"), SHARED, daemon_settings="max_connections = 40"
    ) as daemon:
        admitted = [join(uid, daemon).call(doubles.crowd, 100).admitted + 1 for uid in (FIRST, SECOND, THIRD)]
    assert admitted == [20, 10, 5]


LIMIT = 800
GIVEN_AWAY = LIMIT - 256


def test_descriptors_run_out_for_one_user_and_never_for_the_daemon(
    folder: Path, join: Callable[[int, DaemonProcess], User]
) -> None:
    """Sources that are held, slots, connections, what comes beside half a frame: none of it stops another's upload."""
    (folder / "store").mkdir()
    (folder / "store" / "held").touch()  # the files of this namespace wait
    no_copies = "[spool]\ncopy_below = 0\ncopy_after = 3600.0\n"
    daemon = DaemonProcess(folder / "daemon", Folder(folder / "store"), no_copies + SHARED)
    daemon.under = ["sh", "-c", f'ulimit -n {LIMIT} && exec "$@"', "sh"]
    elsewhere = Path(tempfile.mkdtemp(dir="/dev/shm"))
    elsewhere.chmod(0o755)
    with daemon, ExitStack() as ended:
        ended.callback(shutil.rmtree, elsewhere)
        greedy, modest = join(FIRST, daemon), join(SECOND, daemon)
        modest.put("before.pt")
        sha256 = make_file(elsewhere / "best.bin", 100_000)

        held = [upload(greedy, "held", elsewhere / "best.bin") for _ in range(GIVEN_AWAY)]
        pins = [record.pin for record in held]
        assert pins[0] == "fd"
        assert pins[-1] == "copy"
        assert GIVEN_AWAY // 2 - 8 <= pins.count("fd") <= GIVEN_AWAY // 2

        slots = greedy.call(doubles.grab, GIVEN_AWAY)
        assert GIVEN_AWAY // 4 - 30 <= slots <= GIVEN_AWAY // 4
        half = m.encode(message("alice", elsewhere / "best.bin"), 16)[:-1]
        crowd: Crowd = greedy.call(doubles.stuff, GIVEN_AWAY, half, elsewhere / "best.bin", 16)
        assert set(crowd.refused) == {Code.RETRY_LATER}

        joined = [
            upload(modest, "alice", elsewhere / "best.bin"),
            upload(join(THIRD, daemon), "alice", elsewhere / "best.bin"),
        ]
        for user, record in zip((modest, join(THIRD, daemon)), joined, strict=True):
            wait = m.Wait(request=1, until="stored", timeout_ms=60_000, ids=(record.id,))
            assert user.expect(m.Waited, wait).reached == 1
            assert file_sha256(next((folder / "store").rglob(f"{record.id}/*"))) == sha256
        (folder / "store" / "held").unlink()
        greedy.call(doubles.disperse)
        wait = m.Wait(request=1, until="stored", timeout_ms=60_000, ids=tuple(record.id for record in held))
        assert greedy.expect(m.Waited, wait).reached == GIVEN_AWAY
        for trouble in ("Too many open files", "Traceback", "stumbled"):
            assert trouble not in daemon.log()


def message(namespace: str, path: Path) -> m.Upload:
    file = m.Described(place=m.Place(namespace=namespace, project="cv", experiment="resnet"), to="best.pt")
    return m.Upload(request=3, key=secrets.token_bytes(16), file=file, source=str(path))


def upload(user: User, namespace: str, path: Path) -> m.Record:
    return user.expect(m.Accepted, message(namespace, path), path).record


def test_ten_thousand_who_are_let_in(folder: Path, join: Callable[[int, DaemonProcess], User]) -> None:
    """Each costs a descriptor and a few KiB; those who are busy do not notice them."""
    settings = "max_connections = 20000"
    with DaemonProcess(folder / "daemon", Folder(folder / "store"), SHARED, daemon_settings=settings) as daemon:
        hard = prlimit(daemon.process.pid, RLIMIT_NOFILE)[1]  # type: ignore[union-attr]
        if hard < 18_000:
            pytest.skip(f"the limit is {hard} descriptors a process")
        idle, crowd_of, busy = memory(daemon), join(FIRST, daemon), join(SECOND, daemon)
        crowd_of.begin(doubles.crowd, 8000)
        records = [busy.put(f"{number}.pt").id for number in range(200)]
        assert crowd_of.end().admitted + join(THIRD, daemon).call(doubles.crowd, 3000).admitted > 10_000
        assert memory(daemon) - idle < 10_000 * 32 * 1024
        records += [busy.put(f"{number}.pt").id for number in range(200)]
        wait = m.Wait(request=1, until="stored", timeout_ms=60_000, ids=tuple(records))
        assert busy.expect(m.Waited, wait).reached == 400


def memory(daemon: DaemonProcess) -> int:
    assert daemon.process is not None
    text = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) * 1024
