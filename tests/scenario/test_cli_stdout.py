"""`ml-dash get … -o -`: one file onto stdout, for a pipe."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.harness import PREFIX
from tests.scenario.shell import Shell, put

pytestmark = pytest.mark.slow

CONTENT = os.urandom(300_000)


def piped(shell: Shell, *words: str) -> subprocess.CompletedProcess[bytes]:
    command = shell.command("get", *words, "-o", "-")
    return subprocess.run(command, cwd=shell.folder, capture_output=True, timeout=60, check=False)


def test_a_file_onto_stdout(shell: Shell) -> None:
    """Every byte as it is, and nothing else; a damaged one gives none."""
    record = put(shell, "a.bin", CONTENT, "--to", "m/b.bin", "--wait")
    (shell.folder / "a.bin").unlink()
    for words in (("m/b.bin", "--prefix", PREFIX), ("--id", record["id"])):
        ended = piped(shell, *words)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, CONTENT, b"")
    assert [*shell.folder.iterdir()] == []

    (stored,) = (shell.folder.parent / "root" / PREFIX / "files").rglob("b.bin")
    spoil(stored)
    ended = piped(shell, "m/b.bin", "--prefix", PREFIX)
    assert (ended.returncode, ended.stdout) == (1, b"")
    assert b"hint: " in ended.stderr


def spoil(stored: Path) -> None:
    with stored.open("r+b") as file:
        file.seek(len(CONTENT) // 2)
        file.write(b"damaged")


@pytest.mark.parametrize("words", [("*.bin",), ("a.bin", "b.bin"), ("-r",), ("a.bin", "--json"), ()], ids=" ".join)
def test_one_file_alone_goes_onto_stdout(shell: Shell, words: tuple[str, ...]) -> None:
    ended = piped(shell, *words, "--prefix", PREFIX)
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert b"-o - takes one file" in ended.stderr
