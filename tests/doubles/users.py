"""Processes of other users: clients, which do what a test tells them, and a daemon.

Run by root as `python -m tests.doubles.users UID SOCKET`, and, for a daemon, `… UID run --config …`. It imports first
and becomes the other user then: checkout and interpreter may lie where only root can read. The uids need not be in
/etc/passwd.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import os
import pickle
import secrets
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from ml_dash import messages as m
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
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump((message, path, flags), self._process.stdin)
        self._process.stdin.flush()
        answer: Any = pickle.load(self._process.stdout)  # noqa: S301 our own
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]

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
            message, path, flags = pickle.load(sys.stdin.buffer)  # noqa: S301 our own
        except EOFError:
            break
        answer: object
        try:
            client = client or RawClient(socket).greet()
            answer = _ask(client, message, path, flags)
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


def _run_daemon(uid: int, arguments: Sequence[str]) -> int:
    """What the daemon reads of its installation only as it runs is read before: the release's number, an event loop."""
    release = importlib.metadata.version("ml-dash")
    importlib.metadata.version = lambda _: release
    from ml_dashd import app  # noqa: PLC0415 with that in place
    from ml_dashd.__main__ import main  # noqa: PLC0415

    app._run_loop(asyncio.sleep(0))
    _be(uid)
    return main(arguments)


if __name__ == "__main__":
    if sys.argv[2] == "run":
        sys.exit(_run_daemon(int(sys.argv[1]), sys.argv[2:]))
    _be(int(sys.argv[1]))
    _serve(Path(sys.argv[2]))
