"""What a daemon that runs writes to its log: every line one event, whatever its peers say, and never a credential."""

from __future__ import annotations

import json
import re
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ml_dash import Experiment, MLDashError
from ml_dash.errors import Code
from ml_dashd.logs import EVENTS
from tests.doubles.http_client import HttpClient
from tests.doubles.raw_client import RawClient
from tests.harness import DaemonProcess, Folder, StoreUnderTest, eventually, make_file

pytestmark = pytest.mark.slow

MIB = 1 << 20
LINKED = "[spool]\ncopy_below = 0"
"""Sources get no copies, so that what is overwritten fails."""
HEAD = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR|CRITICAL) [\w.]+ (\w+)( |$)")
FORGED = "2026-01-01T00:00:00.000Z INFO ml_dashd.flow file_stored id=1 bytes=1 path=never"
NAMES = [
    'a" id=2 path="b.txt',
    "a id=2 path=b.txt",
    f"x\u2028{FORGED}",
    "\u202etxt.exe",
    "größe 模型.txt",
    "back\\slash \\n",
    "{}[]%s%(id)d.txt",
]


def lines_of(daemon: DaemonProcess) -> list[bytes]:
    return (daemon.folder / "log").read_bytes().splitlines()


def events_of(daemon: DaemonProcess) -> list[dict[str, Any]]:
    """Every line of a JSON log; each has what a collector relies on."""
    found = [json.loads(line) for line in lines_of(daemon)]
    assert all({"time", "level", "logger", "event"} <= each.keys() for each in found)
    assert {each["event"] for each in found} <= set(EVENTS)
    return found


def store_and_fail(daemon: DaemonProcess, folder: Path) -> None:
    """Files with every hostile name are stored, and one fails with a message that holds its hostile path."""
    assert isinstance(daemon.store, Folder)
    with daemon.experiment().run as exp:
        for name in NAMES:
            exp.files.save_text("x", to=name).wait(30)  # those that go together share a line
    source = folder / f"evil\n{FORGED}\r\x1b[2J.bin"
    make_file(source, MIB)
    (daemon.store.root / "held").touch()
    with daemon.experiment("held/cv/x").run as exp:
        result = exp.files.upload(source, to="plain.bin")
        eventually(lambda: daemon.status().blocked)
        with source.open("r+b") as file:
            file.write(b"another")
        (daemon.store.root / "held").unlink()
        with pytest.raises(MLDashError) as failed:
            result.wait(30)
        assert failed.value.code is Code.SOURCE_CHANGED


def break_the_protocol(daemon: DaemonProcess) -> None:
    with RawClient(daemon.socket) as client:
        client.send(b"\xff" * 100)
        client.replies()
    eventually(lambda: "protocol_error" in daemon.log())


def test_json_has_an_object_a_line_whatever_names_hold(tmp_path: Path) -> None:
    settings = 'log_format = "json"\nlog_level = "debug"'
    with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store"), LINKED, settings) as daemon:
        store_and_fail(daemon, tmp_path)
        break_the_protocol(daemon)
        rows = daemon.rows("SELECT id, size_bytes, path FROM files WHERE state = 'DONE'")
        assert daemon.stop() == 0
    events = events_of(daemon)
    assert [events[0]["event"], events[-1]["event"]] == ["ready", "stopped"]
    stored = {(each["id"], each["bytes"], each["path"]) for each in events if each["event"] == "file_stored"}
    assert stored == set(rows)
    assert {path for _, _, path in rows} == set(NAMES)
    (failed,) = [each for each in events if each["event"] == "file_failed"]
    assert failed["code"] == "SOURCE_CHANGED"
    assert f"evil\n{FORGED}\r\x1b[2J.bin" in failed["error"]
    (broken,) = [each for each in events if each["event"] == "protocol_error"]
    assert (broken["level"], type(broken["pid"])) == ("warning", int)


def test_no_name_forges_a_line_for_people(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store"), LINKED) as daemon:
        store_and_fail(daemon, tmp_path)
        break_the_protocol(daemon)
        assert daemon.stop() == 0
    lines = lines_of(daemon)
    assert all(HEAD.match(line) and line.decode().isprintable() for line in lines)
    stored = [line for line in lines if HEAD.match(line)[2] == b"file_stored"]
    assert len(stored) == len(NAMES)
    assert not any(b"id=1 " in line.partition(b' path="')[0] for line in stored)


def test_a_defect_is_one_event_with_its_traceback(tmp_path: Path) -> None:
    """The disk fails at a step for which there is no rule."""
    for form in ("json", "human"):
        store = Folder(tmp_path / form / "store")
        daemon = DaemonProcess(tmp_path / form, store, daemon_settings=f'log_format = "{form}"')
        daemon.start("finish.before_catalog=error")
        try:
            with daemon.experiment().run as exp:
                exp.files.save_text("x", to="a.txt").wait(30)
            assert daemon.stop() == 0
        finally:
            daemon.kill()
        if form == "json":
            (defect,) = [each for each in events_of(daemon) if each["event"] == "file_stumbled"]
            assert defect["traceback"].startswith("Traceback (most recent call last):\n")
            assert defect["path"] == "a.txt"
        else:
            assert all(HEAD.match(line) or line.startswith(b"    ") for line in lines_of(daemon))
            assert "\n    Traceback (most recent call last):\n" in daemon.log()


# ---- credentials


class Blabbing(StoreUnderTest):
    """An S3 server that refuses everything and repeats all that it was sent, signature and token included."""

    def __init__(self) -> None:
        self.key_id = "AKIA" + secrets.token_hex(8).upper()
        self.secret = secrets.token_hex(20)
        self.token = secrets.token_hex(30)
        self.said: list[str] = []
        self.url = "s3://bucket/x"
        self.credentials = {
            "AWS_ACCESS_KEY_ID": self.key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_SESSION_TOKEN": self.token,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    @contextmanager
    def serving(self) -> Iterator[int]:
        """Its port."""
        said = self.said

        class Handler(BaseHTTPRequestHandler):
            def refuse(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                repeated = "; ".join(f"{name}: {value}" for name, value in self.headers.items())
                said.append(repeated)
                token = self.headers["x-amz-security-token"]
                query = f"http://h{self.path}?X-Amz-Signature=0123abcd&amp;X-Amz-Security-Token={token}"
                body = f"<Error><Code>AccessDenied</Code><Message>{query} {repeated}</Message></Error>"
                self.send_response(403)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            do_PUT = do_POST = do_GET = do_HEAD = do_DELETE = refuse  # noqa: N815 the library's names

            def log_message(self, *_: object) -> None:
                return

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def everything_said(daemon: DaemonProcess, exp: Experiment) -> str:
    """All that anybody can read of what went wrong."""
    client = HttpClient(daemon.folder / "http.sock")
    (record,) = exp.files().list()
    rows = daemon.rows("SELECT error_message, error_hint FROM files")
    answers = [client.get(route) for route in ("/readyz", "/healthz", "/metrics")]
    return f"{daemon.log()} {record} {daemon.status()} {rows} {answers} {(daemon.state / 'daemon.json').read_text()}"


@pytest.mark.parametrize("form", ["human", "json"])
def test_credentials_that_a_server_repeats_are_in_no_log_and_no_answer(tmp_path: Path, form: str) -> None:
    store = Blabbing()
    settings = f'log_format = "{form}"\nlog_level = "debug"'
    daemon = DaemonProcess(tmp_path / "daemon", store, daemon_settings=settings)
    with store.serving() as port:
        store.endpoint = f"http://127.0.0.1:{port}"
        with daemon, daemon.experiment().run as exp:
            exp.files.save_text("x", to="a.txt")
            eventually(lambda: daemon.status().blocked)
            said = everything_said(daemon, exp)
    assert any(store.key_id in each and store.token in each for each in store.said), "it was sent none"
    assert "AccessDenied" in said
    for secret in (store.key_id, store.secret, store.token, "0123abcd"):
        assert secret not in said
    signatures = {found for each in store.said for found in re.findall(r"Signature=([0-9a-f]{64})", each)}
    assert signatures
    assert not any(signature in said for signature in signatures)


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_S3", "HTTP_PROXY"])
def test_a_password_in_the_environment_is_in_no_log_and_no_answer(tmp_path: Path, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    store = Blabbing()
    daemon = DaemonProcess(tmp_path / "daemon", store, daemon_settings='log_level = "debug"')
    daemon.environment = {name: f"http://ann:hunter2@127.0.0.1:{port}"}
    if name == "HTTP_PROXY":
        store.endpoint = "http://s3.example"
    with daemon, daemon.experiment().run as exp:
        exp.files.save_text("x", to="a.txt")
        eventually(lambda: daemon.rows("SELECT id FROM files WHERE error_message IS NOT NULL"))
        assert "hunter2" not in everything_said(daemon, exp)


def test_credentials_in_the_settings_are_refused_and_not_repeated(tmp_path: Path) -> None:
    store = Folder(tmp_path / "store")
    store.url = "s3://ann:hunter2@bucket"
    daemon = DaemonProcess(tmp_path / "daemon", store)
    with pytest.raises(RuntimeError, match=r"store\.url holds credentials") as refused:
        daemon.start()
    assert "hunter2" not in f"{refused.value}{daemon.log()}"
