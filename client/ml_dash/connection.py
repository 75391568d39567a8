"""The blocking client: which daemon, how to reach it, one request at a time, descriptors, reconnection.

This is the one place in the client that reads the environment.
"""

from __future__ import annotations

import array
import fcntl
import importlib.util
import mmap
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from ml_dash import messages, wire
from ml_dash.address import reachable
from ml_dash.errors import Code, MLDashError, error, parse_code
from ml_dash.messages import Failed, Hello, Message, Progress, Welcome
from ml_dash.patience import Patience, check_policy

M = TypeVar("M", bound=Message)

RECEIVE_BYTES = 64 * 1024
ANCILLARY_BYTES = socket.CMSG_SPACE(4 * wire.MAX_DESCRIPTORS)
START_TIMEOUT_S = 30.0
"""A daemon that has not come up by then will not."""
RECONNECT_S = 30.0
"""How long a lost daemon is looked for: a restart takes drain_timeout (10 s) and a few seconds."""
PASSING = (Code.CONNECTION_LOST, Code.DAEMON_UNAVAILABLE, Code.SHUTTING_DOWN, Code.RETRY_LATER)
"""Failures that end when the daemon is back, or has room again."""
LOOK_S = 0.05
KEEP_MAPPED = 4
"""Slots whose mapping is kept for the next save; the least recently granted goes first."""
HOME = ".ml-dashd"
"""The embedded daemon's folder in its root."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A daemon's socket; `root` is set where a daemon is started on demand for it."""

    socket: Path
    root: Path | None = None


def find_endpoint(socket_path: str | os.PathLike[str] | None, root: str | os.PathLike[str] | None) -> Endpoint:
    """The daemon to use: the one named, one for the root named, a service that runs, or one for the usual root."""
    named = socket_path or os.environ.get("ML_DASH_SOCKET")
    if named:
        return Endpoint(Path(named))
    if root is None:
        for service in _services():
            if _answers(service):
                return Endpoint(service)
    return endpoint_of(root or os.environ.get("ML_DASH_ROOT") or ".dash")


def endpoint_of(root: str | os.PathLike[str]) -> Endpoint:
    """The embedded daemon of a root."""
    folder = Path(root).absolute()
    return Endpoint(folder / HOME / "socket", folder)


def default_prefix() -> str | None:
    """The experiment's prefix that the environment gives."""
    return os.environ.get("ML_DASH_PREFIX") or os.environ.get("DASH_PREFIX")


_CONNECTIONS: weakref.WeakSet[Connection] = weakref.WeakSet()


def _forget_all() -> None:
    for connection in _CONNECTIONS:
        connection.forget()


os.register_at_fork(after_in_child=_forget_all)


class Connection:
    """Requests to one daemon. Safe among threads and after a fork; a lost daemon is found again.

    A request is sent again, with the same idempotency key, when the connection breaks before its answer.
    """

    def __init__(self, endpoint: Endpoint, on_full: str = "warn") -> None:
        self.endpoint = endpoint
        self.on_full = check_policy(on_full)
        self._writing = 0
        self.welcome: Welcome | None = None
        self._lock = threading.RLock()
        self._channel: _Channel | None = None
        self._slots: dict[int, mmap.mmap] = {}
        _CONNECTIONS.add(self)

    def forget(self) -> None:
        """In a forked child: the socket and the slots are the parent's, and a lock may be held by a thread of its."""
        self._lock = threading.RLock()
        self._channel = None
        self._slots = {}
        self._writing = 0

    @property
    def embedded(self) -> bool:
        """Whether this daemon was started for a root, and may end with its container."""
        return self.endpoint.root is not None

    def call(self, reply: type[M], build: Callable[[int], Message], descriptors: Sequence[int] = ()) -> M:
        """Sends what `build` makes of a request number and returns the answer. Raises what the daemon refused with."""
        patience = Patience(self.on_full)
        while True:
            try:
                with self._lock:
                    answer = self._persist(lambda: self._ask(lambda channel: channel.ask(build, descriptors)))
                    return _expect(reply, answer)
            except MLDashError as refused:
                patience.wait(refused)

    def call_aside(
        self,
        reply: type[M],
        build: Callable[[int], Message],
        descriptors: Sequence[int] = (),
        progress: Callable[[int, int], None] | None = None,
    ) -> M:
        """`call` on a connection of its own, for requests that take long: others are not held up."""

        def ask() -> Message:
            channel = self._open()
            try:
                return channel.ask(build, descriptors, progress)
            finally:
                channel.close()

        return _expect(reply, self._persist(ask))

    def save(self, data: memoryview, build: Callable[..., Message]) -> messages.Accepted:
        """Writes content into a slot and commits it; `build` takes the request's number and the slot's."""
        patience = Patience(self.on_full)
        while True:
            try:
                with self._lock:
                    slot, mapping = self._grant(len(data))
                    granted_by = self._channel
                    self._writing += 1
            except MLDashError as full:
                # Without the lock: others commit, and free what they hold.
                patience.wait(full, room_comes=self._writing > 0)
                continue
            try:
                if len(data):
                    mapping[: len(data)] = data
                with self._lock:
                    if self._channel is granted_by:
                        try:
                            answer = self._ask(lambda channel, slot=slot: channel.ask(partial(build, slot=slot)))  # type: ignore[misc]
                            return _expect(messages.Accepted, answer)
                        except (ConnectionError, EOFError) as lost:
                            if (failure := _away(lost, self.endpoint)).code not in PASSING:
                                raise failure from None
            finally:
                self._writing -= 1
            # The connection broke, and the slot with it: the content goes into another one, under the same key.

    def close(self) -> None:
        """Hangs up; the next request connects again."""
        with self._lock:
            self._drop()

    def _grant(self, size: int) -> tuple[int, mmap.mmap]:
        def ask(channel: _Channel) -> Message:
            held = tuple(self._slots)
            return channel.ask(
                lambda number: messages.RequestSlot(request=number, size_bytes=size, held=held), keep=True
            )

        granted = _expect(messages.SlotGranted, self._persist(lambda: self._ask(ask)))
        if self._channel is not None and (received := self._channel.take_received()):
            self._slots[granted.slot] = mmap.mmap(received[0], granted.capacity_bytes)
            _close(received)
        mapping = self._slots.pop(granted.slot)
        self._slots[granted.slot] = mapping
        while len(self._slots) > KEEP_MAPPED:
            del self._slots[next(iter(self._slots))]
        return granted.slot, mapping

    def _persist(self, ask: Callable[[], Message]) -> Message:
        """Asks, and asks again while a daemon that was there is away for a moment: requests are idempotent."""
        deadline = time.monotonic() + RECONNECT_S
        while True:
            try:
                return ask()
            except (ConnectionError, EOFError) as lost:
                failure = _away(lost, self.endpoint)
                was_there = failure.code is not Code.DAEMON_UNAVAILABLE or self.welcome is not None
                if failure.code not in PASSING or not was_there or time.monotonic() >= deadline:
                    raise failure from None
            threading.Event().wait(LOOK_S)

    def _ask(self, ask: Callable[[_Channel], Message]) -> Message:
        """Asks on the kept connection; one that was left in the middle of an answer is not used again."""
        channel = self._connected()
        try:
            return ask(channel)
        except BaseException:
            self._drop()
            raise

    def _connected(self) -> _Channel:
        if self._channel is None:
            self._channel = self._open()
        return self._channel

    def _open(self) -> _Channel:
        channel = _connect(self.endpoint)
        try:
            answer = channel.ask(
                lambda number: Hello(
                    request=number, min_version=wire.VERSION, max_version=wire.VERSION, client=f"ml-dash {_version()}"
                )
            )
            self.welcome = _expect(Welcome, answer)
        except BaseException:
            channel.close()
            raise
        return channel

    def _drop(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = None
        self._slots = {}


class _Socket(socket.socket):
    """Results keep their connection, so it ends, without a warning, with the last of them."""

    def __del__(self) -> None:
        self.close()


class _Channel:
    """One socket, after connecting; not safe among threads."""

    def __init__(self, peer: socket.socket) -> None:
        self._socket = peer
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))
        self._decoder = wire.Decoder(messages.REPLY_LIMITS)
        self._frames: list[wire.Frame] = []
        self._received: list[int] = []
        self._number = 0

    def ask(
        self,
        build: Callable[[int], Message],
        descriptors: Sequence[int] = (),
        progress: Callable[[int, int], None] | None = None,
        *,
        keep: bool = False,
    ) -> Message:
        """One request and its answer; request 0 is the daemon's own word before it hangs up.

        Descriptors that come with it are kept for `take_received` only with `keep`.
        """
        self._number += 1
        self._send(_encode(build(self._number), len(descriptors)), descriptors)
        while True:
            frame = self._next()
            answer = messages.decode(frame, messages.REPLIES)
            if keep:
                self._received.extend(frame.descriptors)
            else:
                _close(frame.descriptors)
            if isinstance(answer, Progress):
                if progress is not None:
                    progress(answer.done_bytes, answer.total_bytes)
            elif answer.request in (self._number, 0):
                if isinstance(answer, Failed) and answer.code == Code.SHUTTING_DOWN:
                    raise error(Code.SHUTTING_DOWN, answer.message)
                return answer

    def take_received(self) -> list[int]:
        """The descriptors of the last answer, for the caller to close."""
        received, self._received = self._received, []
        return received

    def close(self) -> None:
        _close(self._decoder.take_descriptors())
        _close(self._received)
        self._received = []
        self._socket.close()

    def _send(self, data: bytes, descriptors: Sequence[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        try:
            sent = self._socket.sendmsg([data], rights, socket.MSG_NOSIGNAL)
            if sent < len(data):
                self._socket.sendall(memoryview(data)[sent:], socket.MSG_NOSIGNAL)
        except BrokenPipeError:
            # The daemon has hung up; it may have said why.
            self._frames.append(self._next())

    def _next(self) -> wire.Frame:
        while not self._frames:
            count, ancillary, _, _ = self._socket.recvmsg_into([self._buffer], ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
            received = array.array("i")
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    received.frombytes(content[: len(content) - len(content) % received.itemsize])
            if not count:
                _close(received)
                raise EOFError("the connection was closed")
            self._frames.extend(self._decoder.feed(self._buffer[:count], received))
        return self._frames.pop(0)


def now_ms() -> int:
    """Milliseconds since 1970, UTC: the clock that the daemon on this machine has too."""
    return time.time_ns() // 1_000_000


def new_key() -> bytes:
    """An idempotency key."""
    return secrets.token_bytes(16)


def _encode(message: Message, descriptors: int) -> bytes:
    try:
        return messages.encode(message, descriptors)
    except UnicodeEncodeError as bad:
        what = f"{bad.object[:120]!r} has an unpaired surrogate"
        raise error(Code.INVALID_PATH, what, "use text that UTF-8 can hold") from None


def _expect(reply: type[M], answer: Message) -> M:
    if isinstance(answer, Failed):
        raise error(parse_code(answer.code), answer.message, answer.hint)
    if not isinstance(answer, reply):
        raise error(Code.PROTOCOL, f"{type(answer).__name__} came where {reply.__name__} was due")
    return answer


def _away(lost: ConnectionError | EOFError, endpoint: Endpoint) -> MLDashError:
    """A broken connection in our own words; an error that has its code already is left as it is."""
    if isinstance(lost, MLDashError):
        return lost
    return error(Code.CONNECTION_LOST, f"the daemon at {endpoint.socket} went away: {lost}")


# ---- reaching a daemon


def _connect(endpoint: Endpoint) -> _Channel:
    peer = _try(endpoint.socket)
    if peer is None and endpoint.root is not None:
        peer = _start(endpoint.root, endpoint.socket)
    if peer is None:
        raise error(Code.DAEMON_UNAVAILABLE, f"no daemon answers at {endpoint.socket}")
    return _Channel(peer)


def _try(path: Path) -> socket.socket | None:
    """A connected socket, or None where nobody listens."""
    peer = _Socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with reachable(path) as address:
            peer.connect(address)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        peer.close()
        return None
    except PermissionError:
        peer.close()
        raise error(Code.ACCESS_DENIED, f"the socket {path} may not be opened by uid {os.geteuid()}") from None
    return peer


def _answers(path: Path) -> bool:
    try:
        peer = _try(path)
    except MLDashError:
        return False
    if peer is None:
        return False
    peer.close()
    return True


def _services() -> Iterator[Path]:
    """Where services listen: the user's own, then the system's."""
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime) / "ml-dash" / "ml-dashd.sock"
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    yield Path(state) / "ml-dash" / "ml-dashd.sock"
    yield Path("/run/ml-dash/ml-dashd.sock")


def _start(root: Path, path: Path) -> socket.socket:
    """Starts the daemon of a root, once however many processes ask for it at the same time."""
    if any(importlib.util.find_spec(name) is None for name in ("ml_dashd", "uvloop", "awscrt")):
        raise error(Code.DAEMON_NOT_INSTALLED, f"no service runs here, and the daemon for {root} is not installed")
    home = path.parent
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as failure:
        why = f"the folder {home} can't be made: {failure.strerror}"
        raise error(Code.DAEMON_UNAVAILABLE, why, "name another root") from None
    deadline = time.monotonic() + START_TIMEOUT_S
    with _locked(home / "start.lock"):
        while (peer := _try(path)) is None:
            said = _launch(root, home / "log")
            if said == "ready":
                continue
            if time.monotonic() >= deadline or "another ml-dashd serves" not in said:
                raise error(
                    Code.DAEMON_UNAVAILABLE, f"the daemon for {root} did not start: {said}", f"see {home / 'log'}"
                )
            threading.Event().wait(LOOK_S)  # the last one is just ending
    return peer


def _launch(root: Path, log: Path) -> str:
    """Runs ml-dashd in the background; returns what it says of its start."""
    reading, writing = os.pipe()
    try:
        with log.open("ab") as output:
            command = [sys.executable, "-m", "ml_dashd", "run", "--embedded", str(root), "--ready-fd", str(writing)]
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=[writing], cwd=root
            )
        os.close(writing)
        writing = -1
        process.wait()  # it has forked: the daemon is no child of ours
        with os.fdopen(reading, "rb") as pipe:
            reading = -1
            return pipe.read().decode(errors="replace").strip() or "it ended at once"
    finally:
        for descriptor in (reading, writing):
            if descriptor >= 0:
                os.close(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _close(descriptors: Sequence[int] | array.array[int]) -> None:
    for descriptor in descriptors:
        with suppress(OSError):
            os.close(descriptor)


def _version() -> str:
    return version("ml-dash")
