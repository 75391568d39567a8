"""The `ml-dash` command as its users run it: a process in a folder, on a terminal or without one."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from tests.harness import PREFIX
from tests.prefork import Prefork

RUN = [sys.executable, "-W", "error", "-m", "ml_dash.cli"]
WITHOUT_RICH = [
    sys.executable,
    "-c",
    "import sys; sys.modules['rich'] = None; from ml_dash.cli import main; sys.exit(main())",
]
RECORD = {
    "id", "experimentId", "path", "filename", "description", "tags", "bindrs", "contentType", "sizeBytes", "checksum",
    "metadata", "createdAt", "uploadedAt", "updatedAt", "deletedAt", "state", "ack", "pin",
}  # fmt: skip


@dataclass
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


def ran(command: list[str], folder: Path, environment: dict[str, str]) -> Ended:
    """Runs a command to its end, whose output is text."""
    if command[: len(RUN)] != RUN or not Prefork.takes(environment):
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        return Ended(done.returncode, done.stdout, done.stderr)
    with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        descriptors = {1: out.fileno(), 2: err.fileno()}
        arguments = command[len(RUN) :]
        process = Prefork.begun().start("ml_dash.cli", arguments, environment, descriptors, folder, strict=True)
        try:
            process.wait(60)
        finally:
            process.kill()
        for file in (out, err):
            file.seek(0)
        assert process.returncode is not None
        return Ended(process.returncode, out.read(), err.read())


@dataclass
class Shell:
    """Runs the command in a folder, against one daemon."""

    folder: Path
    where: list[str]

    def __call__(self, *words: str, status: int = 0, **environment: str) -> Ended:
        ended = ran(self.command(*words), self.folder, os.environ | environment)
        assert ended.status == status, f"{ended.out}\n{ended.err}"
        return ended

    def json(self, *words: str) -> Any:
        """What --json prints; nothing may stand on stderr."""
        ended = self(*words, "--json")
        assert ended.err == ""
        return json.loads(ended.out)

    def refused(self, *words: str, status: int) -> dict[str, str]:
        """The error that --json prints; nothing may stand on stdout."""
        ended = self(*words, "--json", status=status)
        assert ended.out == ""
        failure = json.loads(ended.err)["error"]
        assert failure.keys() == {"code", "message", "hint"}
        assert failure["hint"]
        return failure

    def on_a_terminal(self, *words: str, run: list[str] = RUN) -> Ended:
        """Runs it with stdin and stderr on a terminal, as in `ml-dash … > file`."""
        with self.terminal(*words, run=run) as (process, terminal):
            shown = b""
            with suppress(OSError):  # EIO: the other end is closed
                while piece := os.read(terminal, 65536):
                    shown += piece
            assert process.stdout is not None
            out = process.stdout.read().decode()
            return Ended(process.wait(60), out, shown.decode())

    @contextmanager
    def terminal(self, *words: str, run: list[str] = RUN) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
        ours, theirs = pty.openpty()
        try:
            with subprocess.Popen(
                self.command(*words, run=run),
                cwd=self.folder,
                env=os.environ | {"TERM": "xterm", "COLUMNS": "120"},
                stdin=theirs,
                stdout=subprocess.PIPE,
                stderr=theirs,
                start_new_session=True,
            ) as process:
                os.close(theirs)
                theirs = -1
                try:
                    yield process, ours
                finally:
                    process.kill()
        finally:
            for descriptor in (ours, theirs):
                if descriptor >= 0:
                    os.close(descriptor)

    def command(self, *words: str, run: list[str] = RUN) -> list[str]:
        return [*run, *words, *self.where]


@contextmanager
def closing_descriptor(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def put(shell: Shell, name: str, content: bytes, *words: str) -> dict[str, Any]:
    (shell.folder / name).write_bytes(content)
    return shell.json("put", name, "--prefix", PREFIX, *words)
