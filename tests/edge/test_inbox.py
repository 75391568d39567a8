"""The inbox as a folder: what is seen there, in which order, and what is removed when."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ml_dash import messages as m
from ml_dash.errors import Code, MLDashError
from ml_dashd.core.model import Trouble
from ml_dashd.edge import inbox
from ml_dashd.edge.inbox import KEEP_MS, STALE_MS, InboxFolder, make_for
from ml_dashd.edge.journal import SqliteJournal
from ml_dashd.edge.system import SystemClock
from tests.edge.journal_rig import clock, journal, path

__all__ = ["clock", "journal", "path"]

PLACE = m.Place(namespace="alice", project="cv", experiment="resnet")


@pytest.fixture
def folder(tmp_path: Path):
    made = InboxFolder(tmp_path / "inbox", 0o600, SystemClock())
    yield made
    made.close()


def leave(path: Path, number: int, content: bytes = b"content") -> bytes:
    key = number.to_bytes(16, "big")
    (path / f"{key.hex()}.data").write_bytes(content)
    message = m.Upload(request=0, key=key, file=m.Described(place=PLACE, to=f"{number}.txt"), source="x")
    (path / f".{key.hex()}.message").write_bytes(m.encode(message, 1))
    (path / f".{key.hex()}.message").rename(path / f"{key.hex()}.message")
    return key


def test_what_is_whole_is_seen_in_the_order_in_which_it_came(folder: InboxFolder, tmp_path: Path) -> None:
    path = tmp_path / "inbox"
    keys = [leave(path, number) for number in (9, 3, 5)]
    (path / f"{bytes(16).hex()}.data").touch()
    found = folder.look()
    assert [each.key for each in found] == keys
    assert {each.uid for each in found} == {os.geteuid()}
    os.utime(path / f"{keys[0].hex()}.message", (0, 0))  # its owner may say that it is older, and makes it newer
    assert [each.key for each in folder.look()] == [keys[1], keys[2], keys[0]]
    message, descriptor = folder.open(found[1])
    assert (message.file.to, os.read(descriptor, 100)) == ("3.txt", b"content")
    os.close(descriptor)
    folder.remove(found[1])
    folder.remove(found[1])
    assert {each.key for each in folder.look()} == {keys[0], keys[2]}


def test_a_look_is_not_repeated_while_nothing_comes(
    folder: InboxFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert folder.changed()
    monkeypatch.setattr(inbox, "TICK_MS", -1)
    folder.look()
    assert not folder.changed()
    leave(tmp_path / "inbox", 1)
    assert folder.changed()
    monkeypatch.setattr(inbox, "TICK_MS", 10**6)
    folder.look()
    assert folder.changed(), "something may come in the same tick of the folder's clock"


def test_what_is_refused_is_kept_for_a_week_and_told_to_its_owner_alone(folder: InboxFolder, tmp_path: Path) -> None:
    key = leave(tmp_path / "inbox", 1)
    (dropped,) = folder.look()
    folder.refuse(dropped, Trouble(Code.INVALID_PATH, "a path", "mend it"))
    folder.refuse(dropped, Trouble(Code.INVALID_PATH, "a path", "mend it"))
    assert folder.look() == []
    assert folder.refusal(dropped.uid, key) == Trouble(Code.INVALID_PATH, "a path", "mend it")
    assert folder.refusal(dropped.uid + 1, key) is None
    now_ms = SystemClock().now_ms()
    assert folder.tidy(now_ms + KEEP_MS - 60_000) == 0
    assert folder.tidy(now_ms + KEEP_MS + 60_000) == 3
    assert folder.refusal(dropped.uid, key) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users")
def test_nobody_else_can_have_a_file_refused(folder: InboxFolder, tmp_path: Path) -> None:
    key = leave(tmp_path / "inbox", 1)
    note = tmp_path / "inbox" / f"{key.hex()}.refused"
    note.write_text('{"uid": 0, "code": "INVALID_PATH", "message": "", "hint": ""}')
    os.chown(note, 64001, -1)
    assert [each.key for each in folder.look()] == [key]
    assert folder.refusal(os.geteuid(), key) is None


def test_what_is_no_hand_off_goes_after_a_day_and_what_is_one_stays(folder: InboxFolder, tmp_path: Path) -> None:
    path = tmp_path / "inbox"
    key = leave(path, 1)
    (path / f".{bytes(16).hex()}.data").touch()
    (path / f"{bytes(16).hex()}.data").touch()
    (path / "whatever").touch()
    (path / "folder").mkdir()
    (path / "link").symlink_to(tmp_path / "nowhere")
    os.mkfifo(path / f"{(2).to_bytes(16, 'big').hex()}.message")
    now_ms = SystemClock().now_ms()
    assert folder.tidy(now_ms + STALE_MS - 60_000) == 0
    assert folder.tidy(now_ms + STALE_MS + 60_000) == 6
    assert folder.tidy(now_ms + 100 * KEEP_MS) == 0
    assert [each.key for each in folder.look()] == [key]


@pytest.mark.parametrize(("socket_mode", "mode"), [(0o600, 0o1700), (0o660, 0o3730), (0o666, 0o3733)])
def test_whoever_may_connect_may_write_there_and_nobody_may_look(tmp_path: Path, socket_mode: int, mode: int) -> None:
    InboxFolder(tmp_path / "a" / "inbox", socket_mode, SystemClock()).close()
    assert stat.S_IMODE((tmp_path / "a" / "inbox").stat().st_mode) == mode


def test_a_folder_in_which_others_could_remove_files_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(MLDashError, match="no folder with the sticky bit") as refused:
        InboxFolder(tmp_path, 0o666, SystemClock())
    assert refused.value.code is Code.CONFIG
    assert "install -d -m 3733" in refused.value.hint
    (tmp_path / "file").touch()
    with pytest.raises(MLDashError) as refused:
        InboxFolder(tmp_path / "file" / "inbox", 0o666, SystemClock())
    assert refused.value.code is Code.CONFIG


@pytest.mark.parametrize(("socket_mode", "mode"), [(0o600, 0o1700), (0o660, 0o3730), (0o666, 0o3733)])
def test_root_makes_it_for_the_service_and_leaves_one_that_is_there(
    tmp_path: Path, socket_mode: int, mode: int
) -> None:
    """Whole or not at all: a name comes last."""
    path = tmp_path / "spool" / "ml-dash"
    for _ in range(2):
        make_for(path, socket_mode, os.geteuid(), os.getegid())
        assert stat.S_IMODE(path.stat().st_mode) == mode
        (path / "left").touch()
    path.chmod(0o700)
    make_for(path, socket_mode, os.geteuid(), os.getegid())
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert [one.name for one in path.parent.iterdir()] == ["ml-dash"]


async def test_an_id_that_was_given_is_kept_and_passed_over(journal: SqliteJournal) -> None:
    await journal.number({(1, b"a"): 10**15, (2, b"a"): 10**15 + 1})
    await journal.number({(1, b"a"): 5, (1, b"b"): 10**15 + 2})
    known = await journal.numbers([(1, b"a"), (2, b"a"), (1, b"b"), (3, b"a")])
    assert known == {(1, b"a"): 10**15, (2, b"a"): 10**15 + 1, (1, b"b"): 10**15 + 2}
    assert await journal.high_water() == 10**15 + 2
    await journal.forget_numbers(SystemClock().now_ms() + 10**9)
    assert await journal.numbers([(1, b"a")]) == {}
