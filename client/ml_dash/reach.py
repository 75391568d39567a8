"""Which daemon, and the way to it: a service's socket, or the daemon of a root, which is started on demand.

This is the one place in the client that reads the environment.
"""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_dash import silence, wording
from ml_dash.address import reachable
from ml_dash.errors import Code, MLDashError, error, parse_code
from ml_dash.home import HOME, Home, States, check_owner, find_home, locked, make_home, refused
from ml_dash.silence import limit

_INBOXES = {"/run/ml-dash/ml-dashd.sock": "/var/spool/ml-dash"}
"""Of the system's service."""
START_TIMEOUT_S = 30.0
"""A daemon that has not come up by then will not."""
LOOK_S = 0.05
LOWEST = 3
"""The first descriptor that is no standard stream."""
_CREDENTIALS = struct.Struct("3i")
"""struct ucred: pid, uid, gid."""
_TOLD = (Code.ROOT_HELD, Code.DISK_FULL, Code.DISK_FAILED, Code.ACCESS_DENIED)
"""What a daemon that did not start says under its own code; the rest is DAEMON_UNAVAILABLE."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A daemon's socket; `root` is set where a daemon is started on demand for it.

    What was handed over before `began_ms` is an earlier run's; milliseconds since 1970, UTC.
    """

    socket: Path
    root: Path | None = None
    began_ms: int = field(default_factory=lambda: time.time_ns() // 1_000_000, compare=False)


def find_endpoint(socket_path: str | os.PathLike[str] | None, root: str | os.PathLike[str] | None) -> Endpoint:
    """The daemon to use: the one named, one for the root named, a service that runs, or one for the usual root."""
    return which(socket_path, root)[0]


def which(socket_path: str | os.PathLike[str] | None, root: str | os.PathLike[str] | None) -> tuple[Endpoint, str]:
    """The daemon to use, and why that one."""
    if socket_path:
        return Endpoint(Path(socket_path)), "it is named"
    if named := os.environ.get("ML_DASH_SOCKET"):
        return Endpoint(Path(named)), "ML_DASH_SOCKET names it"
    if root is not None:
        return endpoint_of(root), "its root is named"
    if (service := _service()) is not None:
        return service
    if named := os.environ.get("ML_DASH_ROOT"):
        return endpoint_of(named), "ML_DASH_ROOT names its root, and no service runs"
    return endpoint_of(".dash"), "no service runs, and nothing names another"


def _service() -> tuple[Endpoint, str] | None:
    """A service that runs, else one that is down and has an inbox here."""
    for path in _services():
        if _answers(path):
            return Endpoint(path), "it is a service that runs"
    for path in _services():
        if inbox_of(Endpoint(path)) is not None:
            return Endpoint(path), "it is a service that is down, and has an inbox here"
    return None


def inbox_of(endpoint: Endpoint, told: str = "") -> Path | None:
    """The folder in which files are left for a service that is down, if it is here; `told` is what it said of it."""
    if endpoint.root is not None:
        return None
    folder = Path(os.environ.get("ML_DASH_INBOX") or told or _INBOXES.get(str(endpoint.socket), ""))
    if not folder.is_absolute() and endpoint.socket in [*_services()][:-1]:
        homes = _state_homes()
        folder = homes[0] / "inbox" if homes else folder
    return folder if folder.is_absolute() and folder.is_dir() else None


def find_service(socket_path: str | os.PathLike[str] | None) -> Endpoint:
    """A service: the one named, or one that runs here. Raises DAEMON_UNAVAILABLE where there is neither."""
    endpoint, _ = which(socket_path, None)
    if endpoint.root is not None:
        what = "dash_url means the store of a service, and none runs here"
        hint = "start one with `ml-dashd run --config …`, or leave dash_url out: the files go to dash_root"
        raise error(Code.DAEMON_UNAVAILABLE, what, hint)
    return endpoint


def endpoint_of(root: str | os.PathLike[str]) -> Endpoint:
    """The embedded daemon of a root. Of one that is on a network file system and new, the socket is not known yet."""
    folder = Path(root).absolute()
    home = find_home(folder, _states()) or Home(folder, folder / HOME)
    return Endpoint(home.socket, folder)


def is_there(endpoint: Endpoint) -> bool:
    """Whether there is a daemon to reach, or a root that one has served."""
    if endpoint.root is None:
        return True
    try:
        (endpoint.root / HOME).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # it may be: who opens it says what is wrong
        return True
    return True


def default_prefix() -> str | None:
    """The experiment's prefix that the environment gives."""
    return os.environ.get("ML_DASH_PREFIX") or os.environ.get("DASH_PREFIX")


def default_root() -> Path:
    """The root that the environment names, else the usual one."""
    return Path(os.environ.get("ML_DASH_ROOT") or ".dash")


def said_by_environment(names: Iterable[str]) -> dict[str, str]:
    """Those of these variables that are set, such as what a launcher tells its processes."""
    return {name: os.environ[name] for name in names if name in os.environ}


def missing_packages() -> list[str]:
    """What a daemon of a root would need and is not installed."""
    return [name for name in ("ml_dashd", "uvloop", "awscrt") if importlib.util.find_spec(name) is None]


def socket_of(endpoint: Endpoint) -> Path:
    """Where its daemon listens now."""
    home = None if endpoint.root is None else find_home(endpoint.root, _states())
    return endpoint.socket if home is None else home.socket


def connect(endpoint: Endpoint) -> socket.socket:
    """A socket that a daemon has at its other end; one for a root is started if need be. Raises DAEMON_UNAVAILABLE."""
    peer = reach(endpoint)
    if peer is not None:
        return peer
    if endpoint.root is None:
        raise error(Code.DAEMON_UNAVAILABLE, f"no daemon answers at {endpoint.socket}")
    with _not_at_the_very_end(endpoint.root):
        return _start(endpoint.root, endpoint.began_ms)


def reach(endpoint: Endpoint) -> socket.socket | None:
    """A socket that the daemon has at its other end; None where none listens at the endpoint's place."""
    if endpoint.root is None:
        return _try(endpoint.socket)
    # Looked up anew each time: meanwhile the root may have been made, moved, or copied.
    home = find_home(endpoint.root, _states())
    return None if home is None else _try(home.socket)


class _Socket(socket.socket):
    """Results keep their connection, so it ends, without a warning, with the last of them."""

    def __del__(self) -> None:
        self.close()


def adopt(descriptor: int) -> socket.socket:
    """The socket of a connection that the daemon has passed."""
    peer = _Socket(fileno=descriptor)
    limit(peer, silence.LOOK_S)
    return peer


def daemon_of(peer: socket.socket) -> int:
    """The process that listens, or listened, at the other end; 0 where it is in a process namespace out of sight."""
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[0])


def _try(path: Path) -> socket.socket | None:
    """A connected socket, or None where nobody listens."""
    peer = _Socket(socket.AF_UNIX, socket.SOCK_STREAM)
    limit(peer, silence.LOOK_S)
    try:
        with reachable(path) as address:
            peer.connect(address)
    except BlockingIOError:
        peer.close()
        raise error(Code.DAEMON_UNAVAILABLE, f"the daemon at {path} takes no connections") from None
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        peer.close()
        return None
    except PermissionError as failure:
        peer.close()
        if failure.errno == errno.EACCES and path.parent.name == HOME:
            raise refused(path.parent, failure) from None
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
    yield from (folder / "ml-dashd.sock" for folder in _state_homes())
    yield Path("/run/ml-dash/ml-dashd.sock")


def _state_homes() -> list[Path]:
    """Where this user keeps state that outlives a reboot; a user without a home has no such place."""
    if state := os.environ.get("XDG_STATE_HOME"):
        return [Path(state) / "ml-dash"]
    with suppress(RuntimeError):
        return [Path.home() / ".local" / "state" / "ml-dash"]
    return []


def _states() -> States:
    """Where the state of roots on network file systems goes; with ML_DASH_STATE that of every root."""
    mine = f"ml-dash-{os.geteuid()}"
    if named := os.environ.get("ML_DASH_STATE"):
        return States([Path(named).absolute() / mine], always=True)
    return States([*_state_homes(), Path("/var/tmp") / mine])  # noqa: S108 made 0700, its owner checked


# ---- starting a daemon


def _start(root: Path, began_ms: int) -> socket.socket:
    """Starts the daemon of a root, once however many processes ask for it at the same time."""
    if missing_packages():
        raise error(Code.DAEMON_NOT_INSTALLED, f"no service runs here, and the daemon for {root} is not installed")
    if getattr(_starting, "root", None) == root:
        what = f"the daemon for {root} is being started by what this signal handler, or finalizer, has interrupted"
        raise error(Code.DAEMON_UNAVAILABLE, what, "save once it has returned")
    with _starts(root):
        home = make_home(root, _states())
        check_owner(home.folder)
        with locked(home.folder / "start.lock"):
            return _reach_or_launch(home, began_ms)


def _reach_or_launch(home: Home, began_ms: int) -> socket.socket:
    deadline = time.monotonic() + START_TIMEOUT_S
    while (peer := _try(home.socket)) is None:
        said = _launch(home, began_ms)
        if "ready" in said:
            _say_what_goes_on(**said["ready"])
            continue
        code, message = parse_code(said["code"]), said["message"]
        if time.monotonic() >= deadline or "another ml-dashd serves" not in message:
            hint = said["hint"] if code in _TOLD else f"see {home.folder / 'log'}"
            known = code if code in _TOLD else Code.DAEMON_UNAVAILABLE
            raise error(known, f"the daemon for {home.root} did not start: {message}", hint)
        threading.Event().wait(LOOK_S)  # the last one is just ending
    return peer


_starting = threading.local()


@contextmanager
def _starts(root: Path) -> Iterator[None]:
    """Notes what this thread starts: whoever interrupts it there would wait for its lock for ever."""
    _starting.root = root
    try:
        yield
    finally:
        _starting.root = None


def _launch(home: Home, began_ms: int) -> dict[str, Any]:
    """Runs ml-dashd in the background; returns what it says of its start: {ready: …} or {code, message, hint}."""
    reading, writing = _pipe()
    command = [sys.executable, "-P", "-m", "ml_dashd", "run", "--embedded", str(home.root), "--ready-fd", str(writing)]
    command += ["--began-ms", str(began_ms)]
    if home.outside:
        command += ["--state-dir", str(home.folder)]
    try:
        with (home.folder / "log").open("ab") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=[writing], cwd=home.root,
                start_new_session=True,  # Ctrl-C is the trainer's alone
            )  # fmt: skip
        os.close(writing)
        writing = -1
        process.wait()  # it has forked: the daemon is no child of ours
        with os.fdopen(reading, "rb") as pipe:
            reading = -1
            return _read_words(pipe.read())
    except OSError as failure:
        raise refused(home.folder, failure) from None
    finally:
        for descriptor in (reading, writing):
            if descriptor >= 0:
                os.close(descriptor)


def _pipe() -> tuple[int, int]:
    """Beyond the standard streams: of a trainer that has closed its own, Popen would put the child's in their place."""
    pipe = os.pipe()
    try:
        reading = fcntl.fcntl(pipe[0], fcntl.F_DUPFD_CLOEXEC, LOWEST)
        return reading, fcntl.fcntl(pipe[1], fcntl.F_DUPFD_CLOEXEC, LOWEST)
    finally:
        for descriptor in pipe:
            os.close(descriptor)


def _read_words(words: bytes) -> dict[str, Any]:
    try:
        said: dict[str, Any] = json.loads(words)
    except ValueError:  # it ended without a word, or with somebody else's
        message = words.decode(errors="replace").strip() or "it ended at once"
        return {"code": Code.DAEMON_UNAVAILABLE, "message": message, "hint": ""}
    return said


def _say_what_goes_on(files: int, size_bytes: int) -> None:
    """An earlier run was killed before its files were stored; whoever comes next is told that they are not lost.

    A run whose own daemon was killed knows of its files.
    """
    if files:
        verb = "goes" if files == 1 else "go"
        wording.say(f"{wording.files(files)} ({wording.size(size_bytes)}) of an earlier run {verb} on")


@contextmanager
def _not_at_the_very_end(root: Path) -> Iterator[None]:
    """At the interpreter's shutdown no process can be started; what Python says of that is not for users."""
    try:
        yield
    except (RuntimeError, ImportError, TypeError, AttributeError) as failure:
        if isinstance(failure, MLDashError) or not sys.is_finalizing():
            raise
        what = f"Python is shutting down, and no daemon for {root} runs that could take a file"
        raise error(Code.DAEMON_UNAVAILABLE, what, "save before the script ends") from None
