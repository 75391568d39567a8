"""What `upload` and `save_*` return: complete at once, but for the checksum of large content."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import re
import secrets
import socket
from collections import ChainMap
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from ml_dash import Experiment, FileResult, MLDashError, StorageError
from ml_dash.errors import Code
from tests.harness import DaemonProcess, StoreUnderTest, make_file
from tests.scenario.conftest import Held, path_in_store

pytestmark = pytest.mark.slow

MIB = 1 << 20
LARGE = 100_000
"""More than travels inside a message (64 KiB): its checksum is not known at once."""
FIELDS: dict[str, type | tuple[type, ...]] = {
    "id": str, "experimentId": str, "path": str, "filename": str, "description": str, "tags": list, "bindrs": list,
    "contentType": str, "sizeBytes": int, "checksum": str, "metadata": dict, "createdAt": str, "uploadedAt": str,
    "updatedAt": str, "deletedAt": type(None), "state": str, "ack": str, "pin": str,
}  # fmt: skip
TIMES = ("createdAt", "uploadedAt", "updatedAt")


@pytest.fixture(scope="module")
def away(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """A daemon whose S3 endpoint takes connections and never answers: nothing is stored while the tests run."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = StoreUnderTest()
        store.url, store.endpoint = "s3://bucket/there", f"http://127.0.0.1:{silent.getsockname()[1]}"
        store.credentials = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
        with DaemonProcess(tmp_path_factory.mktemp("away"), store) as daemon:
            yield daemon


@pytest.fixture
def exp_away(away: DaemonProcess) -> Iterator[Experiment]:
    with away.experiment(f"alice/cv/{secrets.token_hex(4)}").run as run:
        yield run


def shown(result: FileResult) -> str | None:
    """The checksum as `repr` shows it, which asks nobody."""
    found = re.search(r"'checksum': (?:None|'([0-9a-f]{64})')", repr(result))
    assert found
    return found[1]


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """What a call returns or raises; fails where it takes longer, as a call that waits for the network does."""
    ended: list[Callable[[], Any]] = []

    def run() -> None:
        try:
            value = call()
        except Exception as failure:  # noqa: BLE001 raised again where it is waited for
            ended.append(partial(_raise, failure))
        else:
            ended.append(lambda: value)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert ended, f"it took more than {seconds} s"
    return ended[0]()


def _raise(failure: Exception) -> None:
    raise failure


# ---- the fields


@pytest.mark.parametrize("size", [1, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("how", ["upload", "save_blob"])
def test_the_fields_of_a_stored_file(exp: Experiment, tmp_path: Path, how: str, size: int) -> None:
    """The same names, types and values from the call that saved it, from refresh and from list."""
    digest = make_file(tmp_path / "best.pt", size)
    said = {"description": "best", "tags": ["a", "b"], "bindrs": ["run"], "metadata": {"epoch": 3}}
    files = exp.files("models/checkpoints")
    if how == "upload":
        result = files.upload(tmp_path / "best.pt", **said)
    else:
        result = files.save_blob((tmp_path / "best.pt").read_bytes(), to="best.pt", **said)
    assert list(result) == list(FIELDS)
    assert result["uploadedAt"] is None or result["state"] == "DONE"
    assert result.wait(30) is result

    assert list(result) == list(FIELDS)
    assert {name: type(value) for name, value in result.items()} == FIELDS
    (listed,) = exp.files().list()
    assert type(listed) is FileResult
    assert listed == result
    assert result["id"].isdecimal()
    assert (result["experimentId"], result["path"], result["filename"]) == (
        exp.prefix,
        "/models/checkpoints",
        "best.pt",
    )
    assert {name: result[name] for name in said} == said
    assert (result["sizeBytes"], result["checksum"]) == (size, digest)
    assert (result["contentType"], result["state"], result["ack"], result["pin"]) == (
        "application/octet-stream", "DONE", "disk", "none",
    )  # fmt: skip
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", result[name]) for name in TIMES)
    assert result["createdAt"] <= result["uploadedAt"] <= result["updatedAt"]
    assert result["deletedAt"] is None


def test_the_fields_of_a_file_on_its_way(exp_away: Experiment, tmp_path: Path) -> None:
    make_file(tmp_path / "a.bin", LARGE)
    uploaded = exp_away.files.upload(tmp_path / "a.bin")
    small = exp_away.files.save_json({}, to="b.json")
    slot = exp_away.files.save_blob(b"x" * LARGE, to="c.bin")
    for result in (uploaded, small, slot):
        assert list(result) == list(FIELDS)
        assert (result["uploadedAt"], result["deletedAt"], result["state"]) == (None, None, "QUEUED")
        assert (result["path"], result["description"], result["metadata"]) == ("/", None, None)
        assert (result["tags"], result["bindrs"]) == ([], [])
    assert uploaded["pin"] in ("reflink", "link", "fd", "copy")
    assert (small["pin"], small["ack"], small["contentType"]) == ("inline", "disk", "application/json")
    assert (slot["pin"], slot["ack"]) == ("slot", "memory")
    assert [each["id"] for each in exp_away.files().list()] == [each["id"] for each in (uploaded, small, slot)]


# ---- the checksum


def keywords(**fields: Any) -> dict[str, Any]:
    return fields


def updated(result: FileResult) -> dict[str, Any]:
    fields: dict[str, Any] = {"checksum": "other"}
    fields.update(result)
    return fields


def matched(result: FileResult) -> Any:
    match result:
        case {"checksum": str(checksum)}:
            return checksum
    return None


READINGS: dict[str, Callable[[FileResult], Any]] = {
    "[]": lambda result: result["checksum"],
    "get": lambda result: result.get("checksum", "default"),
    "items": lambda result: dict(list(result.items()))["checksum"],
    "values": lambda result: dict(zip(result.keys(), result.values(), strict=True))["checksum"],
    "**": lambda result: keywords(**result)["checksum"],
    "{**}": lambda result: {**result}["checksum"],
    "dict()": lambda result: dict(result)["checksum"],
    "dict.update": lambda result: updated(result)["checksum"],
    "copy": lambda result: result.copy()["checksum"],
    "copy.copy": lambda result: copy.copy(result)["checksum"],
    "deepcopy": lambda result: copy.deepcopy({"within": [result]})["within"][0]["checksum"],
    "json.dumps": lambda result: json.loads(json.dumps([result]))[0]["checksum"],
    "json.dumps, indented": lambda result: json.loads(json.dumps(result, indent=2, sort_keys=True))["checksum"],
    "pickle": lambda result: pickle.loads(pickle.dumps({"within": result}))["within"]["checksum"],  # noqa: S301
    "| left": lambda result: (result | {"more": 1})["checksum"],
    "| right": lambda result: ({"checksum": "other"} | result)["checksum"],
    "format": lambda result: "{checksum}".format(**result),
    "format_map": "{checksum}".format_map,
    "ChainMap": lambda result: ChainMap({}, result)["checksum"],
    "match": matched,
}


@pytest.mark.parametrize("reading", READINGS)
def test_every_reading_waits_for_the_checksum(exp_away: Experiment, reading: str) -> None:
    """It takes a second pass over the bytes, and no network: the store never answers here."""
    content = reading.encode() * LARGE
    result = exp_away.files.save_blob(content, to="large.bin")
    assert shown(result) is None
    assert within(20, lambda: READINGS[reading](result)) == hashlib.sha256(content).hexdigest()
    assert result.state == "QUEUED"


def test_the_checksum_of_an_uploaded_and_of_a_listed_file(exp_away: Experiment, tmp_path: Path) -> None:
    digest = make_file(tmp_path / "a.bin", 20 * MIB)
    result = exp_away.files.upload(tmp_path / "a.bin")
    (tmp_path / "a.bin").unlink()
    (listed,) = exp_away.files().list()
    assert (shown(result), shown(listed)) == (None, None)
    assert within(20, lambda: listed["checksum"]) == digest
    assert shown(listed) == digest  # known from here on
    assert shown(result) is None
    assert shown(result.refresh()) == digest


@pytest.mark.parametrize("size", [0, 1, 64 * 1024])
def test_small_content_has_its_checksum_at_once(exp_away: Experiment, tmp_path: Path, size: int) -> None:
    digest = make_file(tmp_path / "a.bin", size)
    assert shown(exp_away.files.upload(tmp_path / "a.bin")) == digest
    assert shown(exp_away.files.save_blob((tmp_path / "a.bin").read_bytes(), to="a.bin")) == digest


def test_looking_at_a_result_asks_for_no_checksum(away: DaemonProcess, exp_away: Experiment) -> None:
    """repr, str, ==, in, len and the names never wait; nobody reads the file a second time for them."""
    result = exp_away.files.save_blob(b"x" * LARGE, to="large.bin")
    (listed,) = exp_away.files().list()
    assert repr(result) == str(result) == f"{result}"
    assert result == listed
    assert result != {}
    assert "checksum" in result
    assert (len(result), list(result), list(result.keys())) == (len(FIELDS), list(FIELDS), list(FIELDS))
    assert result["sizeBytes"] == LARGE
    assert result.get("nothing") is None
    assert (shown(result), shown(listed)) == (None, None)
    assert away.rows(f"SELECT sha256 FROM files WHERE id = {result['id']}") == [(None,)]


def test_what_is_copied_is_a_plain_dict(exp: Experiment) -> None:
    """It asks no daemon any more, so it can go anywhere."""
    result = exp.files.save_json({}, to="a.json", metadata={"list": [1]}).wait(30)
    copies = [result.copy(), copy.copy(result), copy.deepcopy(result), pickle.loads(pickle.dumps(result)), result | {}]  # noqa: S301
    for each in copies:
        assert type(each) is dict
        assert each == result
    copies[2]["metadata"]["list"].append(2)
    assert result["metadata"] == {"list": [1]}


# ---- its way


def test_wait_returns_once_it_is_stored(service: DaemonProcess, exp: Experiment) -> None:
    result = exp.files.save_blob(b"x" * LARGE, to="a.bin")
    result.wait()
    assert path_in_store(service, result).is_file()
    assert (result.state, result["uploadedAt"] is None) == ("DONE", False)
    assert result.wait(0) is result


def test_wait_ends_in_the_moment_in_which_the_file_does(exp: Experiment, tmp_path: Path) -> None:
    """However closely the two meet: here the source is overwritten while it is stored, and it fails or does not."""
    for number in range(40):
        make_file(tmp_path / "a.bin", LARGE)
        result = exp.files.upload(tmp_path / "a.bin")
        make_file(tmp_path / "a.bin", LARGE + 1)
        with suppress(StorageError):
            within(10, result.wait)
        assert result.state in ("DONE", "FAILED"), number


def test_wait_gives_up_at_its_time(held: Held) -> None:
    result = held.exp.files.save_text("x", to="sub/a.txt")
    for timeout in (0.2, 0, -1):
        with pytest.raises(TimeoutError) as caught:
            within(10, partial(result.wait, timeout))
        assert isinstance(caught.value, MLDashError)
        assert caught.value.code is Code.TIMEOUT
    held.let_go()
    assert result.wait(30)["state"] == "DONE"


def test_progress_and_state(held: Held, tmp_path: Path) -> None:
    """It counts what the store has, never backwards, up to the whole."""
    size = 80 * MIB
    make_file(tmp_path / "big.bin", size)
    result = held.exp.files.upload(tmp_path / "big.bin")
    assert result.progress().total_bytes == size
    assert result.state in ("QUEUED", "SENDING", "COMPLETING")
    held.let_go()
    seen = [result.progress()]
    while seen[-1].state != "DONE":
        seen.append(result.progress())
        assert seen[-1].state != "FAILED"
    done = [progress.done_bytes for progress in seen if progress.state in ("SENDING", "DONE")]
    assert done[-1] == size
    assert max(done) == size
    assert {progress.total_bytes for progress in seen} == {size}


def test_refresh_brings_every_field_up_to_date(exp: Experiment) -> None:
    """In place, and after it was stored too: it may have been deleted since."""
    result = exp.files.save_blob(b"x" * LARGE, to="a.bin")
    assert result.refresh() is result
    result.wait(30)
    assert result["deletedAt"] is None
    receipt = exp.files("a.bin").delete()
    assert result.refresh()["deletedAt"] == receipt["deletedAt"]


def test_a_failed_file_says_why(held: Held, tmp_path: Path) -> None:
    """Overwritten, against the rule, before it was stored."""
    source = tmp_path / "model.pt"
    make_file(source, LARGE)
    result = held.exp.files("sub").upload(source)
    make_file(source, LARGE + 1)
    with pytest.raises(StorageError) as caught:
        within(30, result.wait)
    failure = caught.value
    assert isinstance(failure, MLDashError)
    assert failure.code is Code.SOURCE_CHANGED
    assert f"/sub/model.pt (file {result['id']})" in str(failure)
    assert str(source) in str(failure)
    assert 'snapshot="copy"' in (failure.hint or "")
    assert result.state == "FAILED"
    for reading in ("[]", "dict()", "json.dumps"):  # no checksum was ever true of it
        with pytest.raises(StorageError):
            within(10, partial(READINGS[reading], result))
    assert shown(result) is None
    (listed,) = held.exp.files().list()
    assert (listed["id"], listed["state"]) == (result["id"], "FAILED")
    with pytest.raises(StorageError):
        listed.wait(10)


def test_the_checksum_of_a_source_that_was_changed(exp_away: Experiment, tmp_path: Path) -> None:
    """There is none to wait for, whether or not the network is there."""
    make_file(tmp_path / "a.bin", LARGE)
    result = exp_away.files.upload(tmp_path / "a.bin")
    make_file(tmp_path / "a.bin", LARGE + 1)
    with pytest.raises(StorageError) as caught:
        within(10, lambda: result["checksum"])
    assert isinstance(caught.value, MLDashError)
    assert caught.value.code is Code.SOURCE_CHANGED


def test_a_cancelled_file_says_so(exp_away: Experiment) -> None:
    result = exp_away.files("sub").save_blob(b"x" * LARGE, to="a.bin")
    exp_away.files("sub/a.bin").delete()
    with pytest.raises(RuntimeError) as caught:
        within(10, result.wait)
    assert isinstance(caught.value, MLDashError)
    assert caught.value.code is Code.CANCELLED
    assert f"/sub/a.bin (file {result['id']}) was cancelled" in str(caught.value)
    assert result.state == "CANCELLED"
    with pytest.raises(RuntimeError):
        within(10, lambda: result["checksum"])
