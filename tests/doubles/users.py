"""Processes of other users: clients, which do what a test tells them, and a daemon.

Run by root as `python -m tests.doubles.users UID SOCKET`, and, for a daemon, `… UID run --config …`. It imports first
and becomes the other user then: checkout and interpreter may lie where only root can read. The uids need not be in
/etc/passwd.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import io
import os
import pickle
import pkgutil
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest

from ml_dash import Experiment
from ml_dash import messages as m
from ml_dashd.edge.system import raise_descriptor_limit
from tests.doubles.raw_client import RawClient

M = TypeVar("M", bound=m.Message)
PLACE = m.Place(namespace="vision", project="cv", experiment="resnet")


class User:
    """Somebody else, as root sees it. Requests go through pipes; what the daemon answers comes back."""

    def __init__(self, uid: int, socket: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root can be somebody else")
        self.uid = uid
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.doubles.users", str(uid), str(socket)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()

    def ask(self, message: m.Message, path: Path | None = None, flags: int = os.O_RDONLY) -> m.Message | None:
        """The daemon's answer; None where it hung up. The path is opened by that user, and goes with the message.

        Raises what that user meets: PermissionError, say.
        """
        return self.call(_ask, message, path, flags)  # type: ignore[no-any-return]

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Runs a function of this module there, with that user's client first; returns what it returns, or raises."""
        self.begin(function, *arguments)
        return self.end()

    def begin(self, function: Callable[..., Any], *arguments: Any) -> None:
        """The first half of `call`: it runs while the test goes on."""
        assert self._process.stdin is not None
        pickle.dump((function, arguments), self._process.stdin)
        self._process.stdin.flush()

    def end(self) -> Any:
        """The second half of `call`."""
        assert self._process.stdout is not None
        answer: Any = pickle.load(self._process.stdout)  # noqa: S301 our own
        if isinstance(answer, Exception):
            raise answer
        return answer

    def expect(self, kind: type[M], message: m.Message, path: Path | None = None, flags: int = os.O_RDONLY) -> M:
        """`ask`, where the answer must be of that kind."""
        answer = self.ask(message, path, flags)
        assert isinstance(answer, kind), answer
        return answer

    def put(self, to: str, place: m.Place = PLACE, content: bytes = b"weights", key: bytes | None = None) -> m.Record:
        """Hands content over."""
        file = m.Described(place=place, to=to)
        return self.expect(m.Accepted, put(file, content, key)).record


def put(file: m.Described, content: bytes, key: bytes | None = None) -> m.Put:
    sha256 = hashlib.sha256(content).digest()
    return m.Put(request=3, key=key or secrets.token_bytes(16), file=file, content=content, sha256=sha256)


def _be(uid: int) -> None:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)


def _serve(socket: Path) -> None:
    """Answers until the pipe ends. A connection that the daemon has closed is opened again for the next request."""
    client: RawClient | None = None
    while True:
        try:
            function, arguments = pickle.load(sys.stdin.buffer)  # noqa: S301 our own
        except EOFError:
            break
        answer: object
        try:
            client = client or RawClient(socket).greet()
            answer = function(client, *arguments)
        except (OSError, AssertionError) as failure:
            answer = failure
            client = None
        if answer is None:
            client = None
        pickle.dump(answer, sys.stdout.buffer)
        sys.stdout.buffer.flush()


def _ask(client: RawClient, message: m.Message, path: Path | None, flags: int) -> m.Message | None:
    descriptors: Sequence[int] = [] if path is None else [os.open(path, flags, 0o600)]
    try:
        client.send(m.encode(message, len(descriptors)), descriptors)
        while isinstance(reply := client.reply(), m.Progress):
            pass
        return reply
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def ask_on_a_branch(client: RawClient, message: m.Message) -> m.Message | None:
    """The answer on a connection that the daemon has passed through this one."""
    with client.branch() as branch:
        return _ask(branch.greet(), message, None, 0)


class Crowd(NamedTuple):
    """What became of connections that were opened at once: how many were let in, and with what the rest was refused."""

    admitted: int
    refused: Counter[str]


_CROWD: list[RawClient] = []


def crowd(client: RawClient, count: int) -> Crowd:
    """Opens so many connections more, and keeps those that are let in."""
    refused: Counter[str] = Counter()
    for _ in range(count):
        one = RawClient(client.path)
        one.send(m.encode(m.Hello(request=0, min_version=1, max_version=1, client="crowd")))
        answer = one.reply()
        if isinstance(answer, m.Welcome):
            _CROWD.append(one)
            continue
        refused[answer.code if isinstance(answer, m.Failed) else "hung up"] += 1
        one.close()
    return Crowd(len(_CROWD), refused)


def stuff(client: RawClient, count: int, data: bytes, path: Path, beside: int) -> Crowd:
    """As `crowd`, and each sends these bytes, with the path opened so many times beside them."""
    before = len(_CROWD)
    made = crowd(client, count)
    descriptors = [os.open(path, os.O_RDONLY)] * beside
    for one in _CROWD[before:]:
        one.send(data, descriptors)
    os.close(descriptors[0])
    return made


def grab(client: RawClient, count: int) -> int:
    """Asks for slots, on new connections, until there are no more; returns how many there were."""
    granted = 0
    for number in range(count):
        if number % 15 == 0:
            client = RawClient(client.path).greet()
            _CROWD.append(client)
        client.send(m.encode(m.RequestSlot(request=number, size_bytes=5)))
        answer = client.reply()
        if not isinstance(answer, m.SlotGranted):
            assert isinstance(answer, m.Failed), answer
            assert answer.code == "RETRY_LATER", answer
            break
        granted += 1
    return granted


def read_in_a_run(client: RawClient, prefix: str, path: str) -> tuple[str, list[str]]:
    """A script that looks, and then saves: what it is told, and what it is shown."""
    with redirect_stderr(io.StringIO()) as told, Experiment(prefix=prefix, socket=client.path).run as exp:
        shown = [result["filename"] for result in exp.files().list()] + [exp.files(path).read_text()]
        try:
            exp.files.save_text("mine", to="mine.txt")
        except PermissionError as refused:
            shown.append(str(refused))
    return told.getvalue(), shown


def disperse(_: RawClient) -> None:
    """Closes them."""
    for one in _CROWD:
        one.close()
    _CROWD.clear()


def _run_daemon(uid: int, arguments: Sequence[str]) -> int:
    """What the daemon reads of its installation only as it runs is read before: the release, modules, an event loop."""
    _know_the_release()
    import ml_dashd  # noqa: PLC0415 with that in place

    for module in pkgutil.walk_packages(ml_dashd.__path__, "ml_dashd."):
        importlib.import_module(module.name)
    sys.modules["ml_dashd.app"].run_loop(asyncio.sleep(0))
    _be(uid)
    status: int = sys.modules["ml_dashd.__main__"].main(arguments)
    return status


def _know_the_release() -> None:
    """Before its files can't be read any more."""
    release = importlib.metadata.version("ml-dash")
    importlib.metadata.version = lambda _: release


if __name__ == "__main__":
    if sys.argv[2] == "run":
        sys.exit(_run_daemon(int(sys.argv[1]), sys.argv[2:]))
    raise_descriptor_limit()
    _know_the_release()
    _be(int(sys.argv[1]))
    _serve(Path(sys.argv[2]))
