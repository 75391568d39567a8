"""Who may do what, by real users: every verb, by a file's owner, by others, by who may read, by admins, by root."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from ml_dash import messages as m
from ml_dash.errors import Code
from tests.doubles.users import PLACE, User, ask_on_a_branch, put, read_in_a_run
from tests.harness import DaemonProcess, Folder, eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users"),
]

DAEMON, OWNER, OTHER, READER, ADMIN, ROOT, STRANGER, WRITER = 64000, 64001, 64002, 64003, 64004, 0, 64009, 64005
SETTINGS = f"""
[access]
uids = [{OWNER}, {OTHER}, {ROOT}]
admins = [{ADMIN}]
socket_mode = "0666"
[access.read]
vision = [{READER}, {STRANGER + 1}]
held = [{READER}]
guarded = [{READER}]
speech = []
[access.write]
guarded = [{OTHER}, {WRITER}]
"""
NOTHING, READS, ALL = "nothing", "reads", "all"
ROLES = {
    "its owner": (OWNER, ALL),
    "another": (OTHER, NOTHING),
    "who may read the namespace": (READER, READS),
    "an admin": (ADMIN, ALL),
    "root in a container": (ROOT, NOTHING),
    "the daemon's own user": (DAEMON, ALL),
}


@pytest.fixture(scope="module")
def open_folder() -> Iterator[Path]:
    """A folder that every user gets to: pytest's own are root's."""
    folder = Path(tempfile.mkdtemp(prefix="ml-dash-access-"))
    folder.chmod(0o755)
    (folder / "everybody").mkdir()
    (folder / "everybody").chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def daemon(open_folder: Path) -> Iterator[DaemonProcess]:
    """A daemon of a user that is nobody else's."""
    process = DaemonProcess(open_folder / "daemon", Folder(open_folder / "store"), SETTINGS)
    process.module = ["tests.doubles.users", str(DAEMON)]
    for folder in ("daemon", "store"):
        (open_folder / folder).mkdir(exist_ok=True)
        os.chown(open_folder / folder, DAEMON, DAEMON)
    (open_folder / "store" / "held").touch()  # where the folder of that namespace would be: its files wait
    with process:
        yield process
        assert "Traceback" not in process.log()


@pytest.fixture(scope="module")
def users(daemon: DaemonProcess) -> Iterator[Callable[[int], User]]:
    known: dict[int, User] = {}
    with ExitStack() as ended:

        def user(uid: int) -> User:
            if uid not in known:
                known[uid] = User(uid, daemon.socket)
                ended.callback(known[uid].close)
            return known[uid]

        yield user


@pytest.fixture
def place() -> m.Place:
    """An experiment that no other test uses, in a namespace that the reader may read."""
    return replace(PLACE, experiment=secrets.token_hex(4))


def stored(user: User, record: m.Record) -> None:
    waited = user.expect(m.Waited, m.Wait(request=4, until="stored", timeout_ms=30_000, ids=(record.id,)))
    assert (waited.reached, waited.pending) == (1, 0)


def ids(page: m.Page) -> list[int]:
    return [record.id for record in page.records]


def listed(user: User, place: m.Place, **how: object) -> list[int]:
    return ids(user.expect(m.Page, m.List(request=4, place=place, **how)))  # type: ignore[arg-type]


def fetch(user: User, file_id: int, folder: Path) -> tuple[m.Message | None, bytes]:
    """The daemon's answer, and what it wrote into a file that is the user's alone."""
    target = folder / "everybody" / secrets.token_hex(8)
    answer = user.ask(m.Fetch(request=5, id=file_id), target, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    assert (target.stat().st_uid, target.stat().st_mode & 0o777) == (user.uid, 0o600)
    return answer, target.read_bytes()


def assert_refused(answer: m.Message | None, code: Code, named: str) -> None:
    assert isinstance(answer, m.Failed), answer
    assert (answer.code, named in answer.message) == (code, True), answer
    assert answer.hint


@pytest.mark.parametrize("role", ROLES)
def test_what_may_be_done_with_a_stored_file(
    users: Callable[[int], User], open_folder: Path, place: m.Place, role: str
) -> None:
    owner, (uid, right) = users(OWNER), ROLES[role]
    record = owner.put("best.pt", place)
    stored(owner, record)
    somebody = users(uid)
    mine = [record.id] if right != NOTHING else []

    assert listed(somebody, place) == mine
    assert listed(somebody, place, pattern="**", latest=True) == mine
    assert ids(somebody.expect(m.Page, m.Get(request=4, ids=(record.id,)))) == mine
    wait = m.Wait(request=4, until="stored", timeout_ms=0, ids=(record.id,))
    answer, content = fetch(somebody, record.id, open_folder)
    if mine:
        assert somebody.expect(m.Waited, wait).reached == 1
        assert isinstance(answer, m.Fetched)
        assert content == b"weights"
    else:
        assert_refused(somebody.ask(wait), Code.UNKNOWN_FILE, str(record.id))
        assert_refused(answer, Code.UNKNOWN_FILE, str(record.id))
        assert content == b""
    everywhere = listed(somebody, place, everywhere=True, cursor=str(record.id - 1))
    assert (record.id in everywhere) == bool(mine)
    verified = somebody.ask(m.Verify(request=6, ids=(record.id,)))
    if mine:
        assert isinstance(verified, m.Verified)
        assert (verified.read_files, verified.damaged) == (1, ())
    else:
        assert_refused(verified, Code.UNKNOWN_FILE, str(record.id))
    retried = somebody.ask(m.Retry(request=6, ids=(record.id,)))
    if right == ALL:
        assert isinstance(retried, m.Retried)
        assert [each.code for each in retried.refused] == ["ALREADY_STORED"]
    else:
        assert_refused(retried, Code.ACCESS_DENIED if mine else Code.UNKNOWN_FILE, str(record.id))

    answer = somebody.ask(m.Delete(request=6, ids=(record.id,)))
    if right == ALL:
        assert isinstance(answer, m.Deleted)
        assert listed(owner, place) == []
        return
    if right == READS:
        assert_refused(answer, Code.ACCESS_DENIED, f"belongs to uid {OWNER}, not {uid}")
    else:
        assert_refused(answer, Code.UNKNOWN_FILE, str(record.id))
    assert listed(owner, place) == [record.id]


def test_a_branch_is_its_users(users: Callable[[int], User], place: m.Place) -> None:
    """The daemon has made both of its ends, and that is not who asks on it."""
    owner, other = users(OWNER), users(OTHER)
    described = m.Described(place=place, to="best.pt")
    accepted = owner.call(ask_on_a_branch, put(described, b"weights"))
    assert isinstance(accepted, m.Accepted)
    assert listed(owner, place) == [accepted.record.id]
    assert listed(other, place) == []
    delete = m.Delete(request=6, ids=(accepted.record.id,))
    assert_refused(other.call(ask_on_a_branch, delete), Code.UNKNOWN_FILE, str(accepted.record.id))
    assert isinstance(owner.call(ask_on_a_branch, delete), m.Deleted)


@pytest.mark.parametrize("role", ROLES)
def test_what_may_be_done_with_a_file_on_its_way(
    daemon: DaemonProcess, users: Callable[[int], User], open_folder: Path, role: str
) -> None:
    place = m.Place(namespace="held", project="cv", experiment=secrets.token_hex(4))
    owner, (uid, right) = users(OWNER), ROLES[role]
    record = owner.put("secret-name.pt", place)
    eventually(lambda: daemon.rows(f"SELECT 1 FROM files WHERE id = {record.id} AND blocked"))
    somebody = users(uid)
    mine = [record.id] if right != NOTHING else []

    assert listed(somebody, place) == mine
    assert ids(somebody.expect(m.Page, m.Get(request=4, ids=(record.id,)))) == mine
    assert somebody.expect(m.Waited, m.Wait(request=4, until="stored", timeout_ms=0, place=place)).pending == len(mine)
    hashed = somebody.ask(m.Wait(request=4, until="hashed", timeout_ms=0, ids=(record.id,)))
    assert isinstance(hashed, m.Waited if mine else m.Failed)
    report = somebody.expect(m.StatusReport, m.Status(request=4))
    assert (record.id in [each.id for each in report.blocked]) == bool(mine)
    assert sum(count.files for count in report.counts) >= 1  # how much there is to do is no secret
    _, content = fetch(somebody, record.id, open_folder)
    assert content == (b"weights" if mine else b"")
    retried = somebody.ask(m.Retry(request=6, ids=(record.id,)))
    assert isinstance(retried, m.Retried if right == ALL else m.Failed)
    if right == ALL:
        eventually(lambda: somebody.expect(m.Retried, m.Retry(request=6, everything=True)).tried_files > 0)
    else:
        assert somebody.expect(m.Retried, m.Retry(request=6, everything=True)).tried_files == 0

    answer = somebody.ask(m.Delete(request=6, ids=(record.id,), unless_stored=True))
    assert isinstance(answer, m.Deleted if right == ALL else m.Failed)
    assert listed(owner, place) == ([] if right == ALL else [record.id])


def test_an_id_from_elsewhere_takes_nobodys_place(
    users: Callable[[int], User], place: m.Place, open_folder: Path
) -> None:
    """Not even an admin's, not with the same bytes; whose it is, and what it is, is not told."""
    owner = users(OWNER)
    record = owner.put("secret-name.pt", place)
    stored(owner, record)
    source = open_folder / "everybody" / secrets.token_hex(8)
    source.write_bytes(b"weights")
    source.chmod(0o644)
    origin = m.Origin(id=record.id, created_ms=1, updated_ms=1, sha256=hashlib.sha256(b"weights").hexdigest())
    file = m.Described(place=place, to="secret-name.pt")
    for uid in (OTHER, READER, ADMIN):
        upload = m.Upload(request=6, key=secrets.token_bytes(16), file=file, source="there", origin=origin)
        answer = users(uid).ask(upload, source, os.O_RDONLY)
        assert_refused(answer, Code.ID_TAKEN, str(record.id))
        assert isinstance(answer, m.Failed)
        assert str(OWNER) not in answer.message
    mine = m.Upload(request=6, key=secrets.token_bytes(16), file=file, source="there", origin=origin)
    assert owner.expect(m.Accepted, mine, source, os.O_RDONLY).record.created_ms == record.created_ms
    assert listed(owner, place) == [record.id]


def test_a_lease_is_on_the_daemons_own_users_files_alone(
    users: Callable[[int], User], daemon: DaemonProcess, open_folder: Path
) -> None:
    """The kernel grants it to a file's owner. The pin says what holds, and the log why."""
    place = m.Place(namespace="held", project="cv", experiment=secrets.token_hex(4))
    pins = {}
    for uid in (DAEMON, OWNER):
        source = open_folder / "everybody" / secrets.token_hex(8)
        source.write_bytes(bytes(100_000))
        os.chown(source, uid, uid)
        file = m.Described(place=place, to="best.pt")
        upload = m.Upload(request=6, key=secrets.token_bytes(16), file=file, source=source.name, protect="lease")
        pins[uid] = users(uid).expect(m.Accepted, upload, source).record.pin
    assert pins.pop(DAEMON) == "lease"
    assert pins.pop(OWNER) in ("link", "fd")
    assert "it belongs to another user" in daemon.log()


def test_a_sample_is_of_the_callers_own_files_however_many_others_there_are(
    daemon: DaemonProcess, users: Callable[[int], User]
) -> None:
    place = m.Place(namespace="held", project="cv", experiment=secrets.token_hex(4))
    mine = users(OTHER).put("mine.pt", place)
    theirs = [users(OWNER).put(f"theirs-{number}.pt", place) for number in range(20)]
    experiment = f"experiment = '{place.experiment}'"
    eventually(lambda: not daemon.rows(f"SELECT 1 FROM files WHERE {experiment} AND NOT blocked"))
    report = users(OTHER).expect(m.StatusReport, m.Status(request=4))
    assert mine.id in [each.id for each in report.blocked]
    assert not {each.id for each in theirs} & {each.id for each in report.blocked}
    users(OTHER).expect(m.Deleted, m.Delete(request=6, ids=(mine.id,)))  # other tests count what it has on its way


def test_a_grant_is_for_its_namespace_alone(users: Callable[[int], User]) -> None:
    for namespace in ("speech", "visions", "vision2"):
        place = m.Place(namespace=namespace, project="cv", experiment=secrets.token_hex(4))
        record = users(OWNER).put("best.pt", place)
        assert listed(users(READER), place) == []
        assert ids(users(READER).expect(m.Page, m.Get(request=4, ids=(record.id,)))) == []


def test_everybody_who_is_named_hands_files_over_anywhere(
    users: Callable[[int], User], open_folder: Path, place: m.Place
) -> None:
    """A file that only its owner can open, by its descriptor: whose it is, the kernel says."""
    for uid in (OWNER, OTHER, READER, ADMIN, ROOT, DAEMON):
        user = users(uid)
        assert user.expect(m.Done, m.OpenExperiment(request=1, place=place)).request == 1
        source = open_folder / "everybody" / secrets.token_hex(8)
        source.write_bytes(os.urandom(100_000))
        source.chmod(0o400)
        os.chown(source, uid, uid)
        file = m.Described(place=place, to=f"of-{uid}.bin")
        message = m.Upload(request=2, key=secrets.token_bytes(16), file=file, source=str(source))
        record = user.expect(m.Accepted, message, source).record
        stored(user, record)
        answer, content = fetch(user, record.id, open_folder)
        assert isinstance(answer, m.Fetched)
        assert content == source.read_bytes()
    assert len(listed(users(ADMIN), place)) == 6
    assert len(listed(users(OTHER), place)) == 1


def test_who_is_not_named_is_refused(daemon: DaemonProcess, users: Callable[[int], User]) -> None:
    with pytest.raises(AssertionError, match=rf"uid {STRANGER} may not use this daemon.*\[access\]"):
        users(STRANGER).ask(m.Status(request=1))


def test_who_is_named_for_a_namespace_is_named(users: Callable[[int], User]) -> None:
    users(STRANGER + 1).expect(m.StatusReport, m.Status(request=1))


@pytest.mark.parametrize("role", ROLES)
def test_who_may_drain_and_examine(users: Callable[[int], User], role: str) -> None:
    """Without time, and without a stop: it only says what is left."""
    uid, _ = ROLES[role]
    answer = users(uid).ask(m.Drain(request=1, deadline_ms=0))
    if uid in (ADMIN, DAEMON):
        assert isinstance(answer, m.Drained)
    else:
        assert_refused(answer, Code.ACCESS_DENIED, f"uid {uid} may not drain")
    examined = users(uid).ask(m.Examine(request=2))
    nodes = users(uid).ask(m.ListNodes(request=3))
    if isinstance(answer, m.Drained):
        assert isinstance(examined, m.Examined)
        assert isinstance(nodes, m.Nodes)
    else:
        assert_refused(examined, Code.ACCESS_DENIED, f"uid {uid} may not examine")
        assert_refused(nodes, Code.ACCESS_DENIED, f"uid {uid} may not list the nodes")


def test_nothing_is_deleted_where_one_file_may_not_be(users: Callable[[int], User], place: m.Place) -> None:
    mine, theirs = users(READER).put("a.pt", place), users(OWNER).put("a.pt", place)
    for one in ((mine.id, theirs.id), (theirs.id, mine.id)):
        assert_refused(users(READER).ask(m.Delete(request=6, ids=one)), Code.ACCESS_DENIED, str(theirs.id))
    for one in ((mine.id, 5), (5, mine.id)):
        assert_refused(users(READER).ask(m.Delete(request=6, ids=one)), Code.UNKNOWN_FILE, "id 5")
    assert listed(users(READER), place) == [theirs.id, mine.id]


def test_anothers_newer_version_does_not_hide_mine(users: Callable[[int], User], place: m.Place) -> None:
    mine = users(OTHER).put("best.pt", place)
    theirs = users(OWNER).put("best.pt", place)
    for user, newest in ((users(OTHER), mine), (users(OWNER), theirs), (users(READER), theirs)):
        assert listed(user, place, latest=True) == [newest.id]


def test_pages_are_full_of_what_may_be_seen(users: Callable[[int], User], place: m.Place) -> None:
    mine = []
    for number in range(12):
        users(OWNER).put(f"{number:02}-theirs.pt", place)
        mine.append(users(OTHER).put(f"{number:02}.pt", place).id)
    seen, cursor = [], None
    for _ in range(3):
        page = users(OTHER).expect(m.Page, m.List(request=4, place=place, page_size=5, cursor=cursor))
        seen += ids(page)
        cursor = page.cursor
    assert (seen, cursor) == (mine, None)


def test_a_slot_is_its_connections(daemon: DaemonProcess, users: Callable[[int], User], place: m.Place) -> None:
    slot = users(OWNER).expect(m.SlotGranted, m.RequestSlot(request=1, size_bytes=100)).slot
    file = m.Described(place=place, to="stolen.pt")
    commit = m.CommitSlot(request=2, key=secrets.token_bytes(16), slot=slot, file=file, size_bytes=5)
    for uid in (OTHER, ADMIN, ROOT, DAEMON):
        assert_refused(users(uid).ask(commit), Code.INVALID_ARGUMENT, f"slot {slot} is not granted")
        assert_refused(users(uid).ask(m.ReleaseSlot(request=2, slot=slot)), Code.INVALID_ARGUMENT, str(slot))
    assert users(OWNER).expect(m.Accepted, commit).record.size_bytes == 5
    assert len(listed(users(ADMIN), place)) == 1


def test_a_key_is_its_owners(users: Callable[[int], User], place: m.Place) -> None:
    """Who guesses another's key gets a file of its own, and hears nothing of the other's."""
    key = secrets.token_bytes(16)
    first = users(OWNER).put("best.pt", place, b"mine", key)
    second = users(OTHER).put("other.pt", place, b"yours", key)
    assert first.id != second.id
    assert (second.filename, second.size_bytes) == ("other.pt", 5)
    again = users(OWNER).expect(m.Accepted, put(m.Described(place=place, to="best.pt"), b"mine", key)).record
    assert again.id == first.id


def test_root_is_an_admin_where_the_daemon_is_roots(open_folder: Path, tmp_path: Path) -> None:
    """It can read the daemon's state folder anyway."""
    settings = f'[access]\nuids = [{OWNER}]\nsocket_mode = "0666"\n'
    folder = open_folder / "of root"
    with DaemonProcess(folder, Folder(tmp_path / "store"), settings) as daemon, ExitStack() as ended:
        owner, root = User(OWNER, daemon.socket), User(ROOT, daemon.socket)
        ended.callback(owner.close)
        ended.callback(root.close)
        record = owner.put("best.pt")
        assert listed(root, PLACE) == [record.id]
        root.expect(m.Deleted, m.Delete(request=6, ids=(record.id,)))
        assert listed(owner, PLACE) == []


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("namespace", ["vision", "held"], ids=["stored", "on its way"])
def test_who_may_change_duplicate_and_prune(users: Callable[[int], User], role: str, namespace: str) -> None:
    owner, (uid, right) = users(OWNER), ROLES[role]
    place = m.Place(namespace=namespace, project="p", experiment=secrets.token_hex(4))
    records = [owner.put("best.pt", place) for _ in range(2)]
    if namespace == "vision":
        for record in records:
            stored(owner, record)
    somebody = users(uid)
    update = m.Update(request=7, id=records[0].id, tags=("theirs",))
    if right == ALL:
        assert somebody.expect(m.Accepted, update).record.tags == ("theirs",)
    elif right == READS:
        assert_refused(somebody.ask(update), Code.ACCESS_DENIED, f"belongs to uid {OWNER}, not {uid}")
    else:
        assert_refused(somebody.ask(update), Code.UNKNOWN_FILE, str(records[0].id))
    copied = m.Duplicate(
        request=8,
        key=secrets.token_bytes(16),
        source=records[0].id,
        file=m.Described(place=replace(place, project="copies"), to="copy.pt"),
    )
    if right == NOTHING:
        assert_refused(somebody.ask(copied), Code.UNKNOWN_FILE, str(records[0].id))
    else:
        first = somebody.expect(m.Accepted, copied).record
        assert somebody.expect(m.Accepted, copied).record.id == first.id, "the same key has the same answer"
        second = somebody.expect(m.Accepted, replace(copied, key=secrets.token_bytes(16))).record
        assert second.id != first.id
        deleted = somebody.expect(m.Deleted, m.Delete(request=9, ids=(first.id, second.id)))
        assert sorted(deleted.ids) == [first.id, second.id], "a duplicate is its maker's"
    pruned = somebody.expect(m.Pruned, m.Prune(request=9, place=place, keep_last=1, keep_tags=("theirs",)))
    assert pruned.records == (), "what is not one's own, what is on its way, and what is tagged stays"
    pruned = somebody.expect(m.Pruned, m.Prune(request=9, place=place, keep_last=1))
    gone = [records[0].id] if right == ALL and namespace == "vision" else []
    assert ids(pruned) == gone  # type: ignore[arg-type]
    assert listed(owner, place) == [record.id for record in records[::-1] if record.id not in gone]


def begun(user: User, place: m.Place, path: Path) -> dict[str, m.Message | None]:
    """The answers to every request that begins something new in a namespace."""
    file = m.Described(place=place, to="new.pt")
    source = user.put("source.pt", replace(place, namespace="free"))
    content = put(file, b"weights")
    slot = user.expect(m.SlotGranted, m.RequestSlot(request=1, size_bytes=7)).slot
    many = m.Content(key=secrets.token_bytes(16), file=file, content=content.content, sha256=content.sha256)
    rows = (m.NewRow(metric="train", data='{"loss": 1}'),)
    brought = m.BroughtRow(metric="train", writer=8, number=1, created_ms=1, data="{}")
    run = m.ExperimentRecord(
        namespace=place.namespace, project=place.project, experiment=place.experiment, owner_uid=0, status="RUNNING",
        host="", user="", created_ms=1, started_ms=1, updated_ms=1,
    )  # fmt: skip
    key = secrets.token_bytes(16)
    origin = m.Origin(id=source.id + 1, created_ms=1, updated_ms=1, sha256=hashlib.sha256(b"weights").hexdigest())
    asked: list[m.Message] = [
        content,
        m.PutMany(request=2, files=(many,)),
        m.Upload(request=2, key=key, file=file, source="there"),
        m.Upload(request=2, key=secrets.token_bytes(16), file=file, source="pushed", origin=origin),
        m.CommitSlot(request=2, key=secrets.token_bytes(16), slot=slot, file=file, size_bytes=7),
        m.Duplicate(request=2, key=secrets.token_bytes(16), source=source.id, file=file),
        m.OpenExperiment(request=2, place=place),
        m.SetParams(request=2, place=place, values='{"lr": 1}'),
        m.LogRows(request=2, place=place, writer=7, number=1, rows=rows),
        m.EndRun(request=2, place=place, status="COMPLETED"),
        m.BringExperiment(request=2, run=run),
        m.BringRows(request=2, place=place, rows=(brought,)),
    ]
    names = ("pushed" if getattr(each, "origin", None) else type(each).__name__ for each in asked)
    answers = (user.ask(each, path if isinstance(each, m.Upload) else None) for each in asked)
    return dict(zip(names, answers, strict=True))


@pytest.mark.parametrize(
    ("uid", "writes"), [(WRITER, True), (OTHER, True), (ADMIN, True), (DAEMON, True), (OWNER, False), (ROOT, False)]
)
def test_who_may_write_in_a_namespace(
    users: Callable[[int], User], open_folder: Path, place: m.Place, uid: int, writes: bool
) -> None:
    """What is refused leaves nothing behind, and says whom to ask."""
    guarded = replace(place, namespace="guarded")
    source = open_folder / "everybody" / secrets.token_hex(8)
    source.write_bytes(b"weights")
    source.chmod(0o644)
    for name, answer in begun(users(uid), guarded, source).items():
        if writes:
            assert not isinstance(answer, m.Failed), (name, answer)
        else:
            assert_refused(answer, Code.ACCESS_DENIED, f"uid {uid} may not write in the namespace guarded")
    assert len(listed(users(ADMIN), guarded)) == (6 if writes else 0)
    runs = users(ADMIN).expect(m.Experiments, m.ListExperiments(request=3, prefix=f"guarded/cv/{place.experiment}"))
    assert [each.owner_uid for each in runs.experiments] == ([uid] if writes else [])


def test_a_script_of_who_may_only_read_in_a_namespace_reads(users: Callable[[int], User], place: m.Place) -> None:
    guarded = replace(place, namespace="guarded")
    stored = users(WRITER).put("notes.txt", guarded)
    users(WRITER).expect(m.Waited, m.Wait(request=3, until="stored", timeout_ms=30_000, ids=(stored.id,)))
    prefix = f"guarded/cv/{place.experiment}"
    told, shown = users(READER).call(read_in_a_run, prefix, "notes.txt")
    denied = f"uid {READER} may not write in the namespace guarded"
    assert f"it is not noted that {prefix} is RUNNING: {denied}" in told
    assert shown[:2] == ["notes.txt", "weights"]
    assert denied in shown[2]
    assert "COMPLETED" not in told
