"""The HTTP server by itself: what a client may cost, and what it may not learn."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ml_dash.address import reachable
from ml_dash.errors import Code, MLDashError
from ml_dashd.core.figures import Figures, Sending
from ml_dashd.core.listen import Listen
from ml_dashd.core.model import Trouble
from ml_dashd.core.overview import Running, overview
from ml_dashd.edge import http
from ml_dashd.edge.http import MAX_CONNECTIONS, MAX_REQUEST_BYTES, HttpServer

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Said:
    """A daemon that answers what it was told to."""

    def __init__(self) -> None:
        self.troubles: dict[str, Trouble] = {}
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = asyncio.Event()

    async def health(self) -> Mapping[str, Trouble]:
        self.asked.set()
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return self.troubles

    async def ready(self) -> Mapping[str, Trouble]:
        return self.troubles

    async def metrics(self) -> bytes:
        return b"up 1\n"

    async def status(self) -> Mapping[str, Any]:
        sending = Sending({}, 1, 0.0)
        figures = Figures(None, None, None, [], 0, {}, sending, {})
        return overview(Running("1", 0, 0), figures, self.troubles, None, {"retries": {}, "failures": {}}, 0)


class Wire:
    """A client that sends what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, request: bytes) -> bytes:
        self.writer.write(request)
        return await self.rest()

    async def rest(self) -> bytes:
        """All that comes until the server closes; nothing where it cuts the connection."""
        try:
            async with asyncio.timeout(20):
                return await self.reader.read()
        except ConnectionError:
            return b""


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "http.sock"


@pytest.fixture
async def server(said: Said, path: Path) -> AsyncIterator[HttpServer]:
    made = HttpServer(Listen(path=str(path)), 0o660, said)
    await made.start()
    yield made
    said.gate.set()
    await made.stop()
    await made.stop()
    assert not path.exists()


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[Wire]:
    with reachable(path) as address:
        reader, writer = await asyncio.open_unix_connection(address)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


async def asked(path: Path, request: bytes = GET) -> bytes:
    async with connected(path) as wire:
        return await wire.ask(request)


@pytest.mark.usefixtures("server")
async def test_a_verdict_names_its_reasons_without_credentials(said: Said, path: Path) -> None:
    said.troubles = {"store": Trouble(Code.STORE_DENIED, "https://ann:hunter2@host", "ask\nX-Amz-Signature=hunter2")}
    for route in (b"/healthz", b"/readyz"):
        head, _, body = (await asked(path, GET.replace(b"/healthz", route))).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"Connection: close" in head
        assert b"aiohttp" not in head
        assert json.loads(body) == {
            "ok": False,
            "reasons": [
                {
                    "check": "store",
                    "code": "STORE_DENIED",
                    "message": "https://***@host",
                    "hint": "ask\nX-Amz-Signature=***",
                }
            ],
        }
    said.troubles = {}
    head, _, body = (await asked(path)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert json.loads(body) == {"ok": True, "reasons": []}


@pytest.mark.usefixtures("server")
async def test_only_get_is_answered_and_only_what_there_is(path: Path) -> None:
    for method in (b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH"):
        assert (await asked(path, GET.replace(b"GET", method))).startswith(b"HTTP/1.1 405 ")
    for route in (b"/status", b"/metrics/", b"/healthz/x", b"//healthz", b"/../etc/passwd"):
        assert (await asked(path, GET.replace(b"/healthz", route))).startswith(b"HTTP/1.1 404 ")


@pytest.mark.usefixtures("server")
async def test_the_page_of_status_runs_and_loads_nothing(said: Said, path: Path) -> None:
    said.troubles = {"store": Trouble(Code.STORE_DENIED, "<script>alert(1)</script>", "ask the operator")}
    head, _, page = (await asked(path, GET.replace(b"/healthz", b"/"))).decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 ")
    assert "Content-Type: text/html" in head
    (policy,) = [line for line in head.splitlines() if line.startswith("Content-Security-Policy: ")]
    assert "default-src 'none'" in policy
    style = page.partition("<style>")[2].partition("</style>")[0]
    assert base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() in policy, "its own style alone"
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    said.troubles = {}
    _, _, body = (await asked(path, GET.replace(b"/healthz", b"/status.json"))).partition(b"\r\n\r\n")
    assert json.loads(body)["ready"] is True


@pytest.mark.usefixtures("server")
async def test_a_connection_has_one_request(said: Said, path: Path) -> None:
    answer = await asked(path, GET * 20)
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    "request_",
    [
        b"GET /" + b"a" * 2 * MAX_REQUEST_BYTES,
        b"GET /healthz HTTP/1.1\r\n" + b"X: y\r\n" * MAX_REQUEST_BYTES,
        b"POST /healthz HTTP/1.1\r\nHost: h\r\nContent-Length: 9999999\r\n\r\n" + b"a" * 2 * MAX_REQUEST_BYTES,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 10,
        b"\x00" * 1000 + b"\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\n\r\n",
        b"GET  HTTP/1.1\r\n\r\n",
        b"\r\n" * 1000,
    ],
    ids=["long line", "many headers", "body", "TLS", "NUL", "version", "no path", "empty lines"],
)
async def test_garbage_ends_its_connection_and_nothing_else(
    request_: bytes, path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "DEADLINE_S", 1.0)
    with caplog.at_level(logging.WARNING):
        answer = await asked(path, request_)
        assert answer == b"" or answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 405 ", b"HTTP/1.0 400 "))
        assert (await asked(path)).startswith(b"HTTP/1.1 200 ")
    assert caplog.messages == []


@pytest.mark.usefixtures("server")
async def test_who_says_too_much_is_cut_off_while_an_answer_is_waited_for(
    said: Said, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "DEADLINE_S", 900.0)
    said.gate.clear()
    assert await asked(path, GET * (MAX_REQUEST_BYTES // len(GET) + 1)) == b""


@pytest.mark.usefixtures("server")
async def test_a_client_that_says_nothing_is_cut_off(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "DEADLINE_S", 0.2)
    for begun in (b"", GET[:-2]):
        async with connected(path) as wire:
            assert await wire.ask(begun) == b""


async def test_an_answer_that_does_not_come_is_cut_off(
    server: HttpServer, said: Said, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "DEADLINE_S", 0.2)
    said.gate.clear()
    assert await asked(path) == b""
    said.gate.set()
    assert (await asked(path)).startswith(b"HTTP/1.1 200 ")
    assert not server._open


@pytest.mark.usefixtures("server")
async def test_one_connection_too_many_is_told_so_and_the_others_go_on(said: Said, path: Path) -> None:
    """While all are being answered; each has its answer."""
    said.gate.clear()
    async with AsyncExitStack() as opened:
        wires = [await opened.enter_async_context(connected(path)) for _ in range(MAX_CONNECTIONS)]
        for wire in wires:
            said.asked.clear()
            wire.writer.write(GET)
            await said.asked.wait()
        async with connected(path) as refused:
            assert (await refused.rest()).startswith(b"HTTP/1.1 503 ")
        said.gate.set()
        assert [(await wire.rest())[:13] for wire in wires] == [b"HTTP/1.1 200 "] * MAX_CONNECTIONS
    assert (await asked(path)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.usefixtures("server")
async def test_who_does_not_finish_a_request_makes_room(said: Said, path: Path) -> None:
    """The oldest first; whoever asks is answered however many hold connections, and so is who was asking."""
    async with AsyncExitStack() as opened:
        said.gate.clear()
        busy = await opened.enter_async_context(connected(path))
        busy.writer.write(GET)
        await said.asked.wait()
        wires = [await opened.enter_async_context(connected(path)) for _ in range(MAX_CONNECTIONS - 1)]
        for wire in wires:
            wire.writer.write(GET[:10])
        said.gate.set()
        assert (await asked(path)).startswith(b"HTTP/1.1 200 ")
        said.gate.clear()
        for _ in range(3 * MAX_CONNECTIONS):
            wires.append(await opened.enter_async_context(connected(path)))
            wires[-1].writer.write(GET[:10])
        said.gate.set()
        assert (await asked(path)).startswith(b"HTTP/1.1 200 ")
        assert (await busy.rest()).startswith(b"HTTP/1.1 200 ")
        assert (await wires[-1].ask(GET[10:])).startswith(b"HTTP/1.1 200 ")
        assert await wires[0].rest() == b""


@pytest.mark.usefixtures("server")
async def test_a_defect_is_an_answer_too(said: Said, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    said.failure = RuntimeError("hunter2")
    answer = await asked(path)
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"hunter2" not in answer
    assert caplog.messages == ["http_failed"]


async def test_a_stop_waits_for_the_answer_in_hand_and_for_no_idle_client(
    server: HttpServer, said: Said, path: Path
) -> None:
    said.gate.clear()
    async with connected(path) as idle, connected(path) as busy:
        answer = asyncio.create_task(busy.ask(GET))
        await said.asked.wait()
        stop = asyncio.create_task(server.stop())
        await asyncio.sleep(0)
        said.gate.set()
        await stop
        assert (await answer).startswith(b"HTTP/1.1 200 ")
        assert await idle.rest() == b""


# ---- what answers is loaded for the first who asks


def test_a_daemon_that_nobody_asks_has_not_loaded_what_answers() -> None:
    loaded = "import ml_dashd.app, sys; print('aiohttp' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", loaded], text=True) == "False\n"


@pytest.mark.usefixtures("server")
async def test_where_it_can_not_be_loaded_nobody_is_left_waiting(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise ImportError("no module named aiohttp")

    monkeypatch.setattr(http, "_load", missing)
    assert await asked(path) == b""
    assert caplog.messages == ["http_failed"]
    assert not path.exists()


async def test_a_stop_comes_while_it_is_loaded(server: HttpServer, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, gate, load = asyncio.Event(), threading.Event(), http._load
    loop = asyncio.get_running_loop()

    def slowly() -> object:
        loop.call_soon_threadsafe(begun.set)
        gate.wait()
        return load()

    monkeypatch.setattr(http, "_load", slowly)
    async with connected(path) as first:
        await begun.wait()
        stop = asyncio.create_task(server.stop())
        await asyncio.sleep(0)
        gate.set()
        await stop
        assert await first.rest() in (b"", http.BUSY)
    assert not path.exists()


# ---- where it listens


@pytest.mark.usefixtures("server")
async def test_the_socket_is_of_the_mode_and_its_folder_lets_the_same_through(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o710


@pytest.mark.usefixtures("server")
async def test_a_living_socket_is_left_alone(said: Said, path: Path) -> None:
    with pytest.raises(MLDashError, match="another daemon listens at") as refused:
        await start(HttpServer(Listen(path=str(path)), 0o600, said))
    assert (refused.value.code, refused.value.hint) == (Code.CONFIG, "give http.listen another path")
    assert (await asked(path)).startswith(b"HTTP/1.1 200 ")


async def test_another_file_is_left_alone(said: Said, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(MLDashError, match="is there already and is no socket"):
        await start(HttpServer(Listen(path=str(tmp_path / "notes")), 0o600, said))
    assert (tmp_path / "notes").read_text() == "mine"


async def test_a_dead_socket_is_replaced_at_a_path_of_any_length(said: Said, tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 30)
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as dead, reachable(folder / "http.sock") as address:
        dead.bind(address)
    server = HttpServer(Listen(path=str(folder / "http.sock")), 0o600, said)
    await server.start()
    assert (await asked(folder / "http.sock")).startswith(b"HTTP/1.1 200 ")
    await server.stop()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_port_answers_whom_asks_this_machine_by_its_name(said: Said, host: str) -> None:
    """A page that has bound its own name to 127.0.0.1 asks in that name, and is refused."""
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MLDashError, match=f"{host} port {port} can't be listened on: ") as refused:
            await start(HttpServer(Listen(host=host, port=port), 0o600, said))
        assert refused.value.code is Code.CONFIG
    server = HttpServer(Listen(host=host, port=port), 0o600, said)
    await server.start()
    for name, status in ((b"localhost", b"200"), (b"127.0.0.1:%d" % port, b"200"), (b"evil.example", b"421")):
        reader, writer = await asyncio.open_connection(host, port)
        answer = await Wire(reader, writer).ask(GET.replace(b"localhost", name))
        assert answer.startswith(b"HTTP/1.1 %s " % status)
        writer.close()
        await writer.wait_closed()
    await server.stop()


async def start(server: HttpServer) -> None:
    try:
        await server.start()
    finally:
        await server.stop()
