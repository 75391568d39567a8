"""What completion offers for a path in an experiment: it starts no daemon, is soon over, and tells of no failure."""

from __future__ import annotations

import os
import shlex
import signal
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from ml_dash.arguments import escape
from ml_dash.cli import parser, reaching
from ml_dash.errors import MLDashError
from ml_dash.files import Files

COMMAND = "__complete"
"""What the scripts call, and nobody types: with the words before the one that is typed, and that one."""
ENOUGH_S = 1.0
"""Nobody waits longer at a prompt: what is found by then is offered."""


def offer(words: Sequence[str]) -> int:
    """Prints what the last of the words may become, a line each; a folder ends with a "/"."""
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    signal.setitimer(signal.ITIMER_REAL, ENOUGH_S)
    *before, typed = map(_unquoted, words or [""])
    with suppress(MLDashError, parser.UsageError, OSError, EOFError, UnicodeEncodeError):
        options = _said(before)
        with reaching.running(options) as connection:
            for path in _fitting(reaching.files(options, connection), typed):
                print(path, flush=True)
    return 0


def _said(words: Sequence[str]) -> Namespace:
    """Which experiment of which daemon; readline makes three words of --root=DIR."""
    options = parser.Parser(prog=parser.PROGRAM, add_help=False)
    for name in ("--prefix", "--socket", "--root"):
        options.add_argument(name)
    said, _ = options.parse_known_args([word for word in words if word != "="])
    if said.root:
        said.root = str(Path(said.root).expanduser())
    return said


def _fitting(files: Files, typed: str) -> Iterator[str]:
    """Paths that begin so, up to the next "/", each once."""
    root = "/" if typed.startswith("/") else ""
    begun = typed.removeprefix("/")
    depth = begun.count("/") + 1
    seen = set()
    for pattern in (f"{escape(begun)}*", f"{escape(begun)}*/**"):
        for file in files.each(pattern, latest=True):
            parts = f"{file['path']}/{file['filename']}".lstrip("/").split("/")
            path = "/".join(parts[:depth]) + ("/" if len(parts) > depth else "")
            if path not in seen:
                seen.add(path)
                yield f"{root}{path}"


def _unquoted(word: str) -> str:
    """A word as its command would get it; a quote may be open still."""
    for end in ("", "'", '"'):
        with suppress(ValueError):
            parts = shlex.split(word + end)
            if len(parts) == 1:
                return parts[0]
    return word
