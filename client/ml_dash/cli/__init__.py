"""The command `ml-dash`: what the library does, from a shell.

The exit status is 0, 1 where something failed, 2 for wrong usage, 3 where no daemon answers.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence

from ml_dash.cli import offering, parser, show
from ml_dash.cli.commands import COMMANDS
from ml_dash.errors import Code, MLDashError, error

FAILED, USAGE, NO_DAEMON = 1, 2, 3
INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""
PIPE_CLOSED = 141
"""128 + SIGPIPE: what `ls` ends with when `head` has seen enough."""
GOES_ON = {
    "put": ("what was handed over goes on by itself", "see `ml-dash status`"),
    "wait": ("the files go on by themselves", "see `ml-dash status`, or wait again"),
    "get": ("nothing is left of what is not whole", "the same command begins anew"),
    "drain": ("the drain has ended; the files go on, in their own order", "see `ml-dash status`"),
    "verify": ("nothing was changed", "the same command begins anew"),
}
"""What becomes of the work after Ctrl-C, and what to do."""
STATUS = {
    Code.INVALID_PREFIX: USAGE,
    Code.INVALID_PATH: USAGE,
    Code.INVALID_METADATA: USAGE,
    Code.INVALID_ARGUMENT: USAGE,
    Code.UNSUPPORTED_TYPE: USAGE,
    Code.DAEMON_UNAVAILABLE: NO_DAEMON,
    Code.DAEMON_NOT_INSTALLED: NO_DAEMON,
    Code.CONNECTION_LOST: NO_DAEMON,
}
"""Exit statuses of errors; any other is FAILED."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status; `arguments` are sys.argv's by default."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal can't show is no failure
    try:
        status = _run(words)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _drop_stdout()
        return PIPE_CLOSED
    except show.Interrupted as stopped:
        show.trouble(stopped.message, stopped.hint)
        return INTERRUPTED
    except KeyboardInterrupt:
        command = next((word for word in words if word in COMMANDS), None)
        if command in GOES_ON:
            show.trouble(*GOES_ON[command])
        return INTERRUPTED
    except OSError as failure:  # of the flush
        _drop_stdout()
        return _say(_known(failure), "--json" in words)
    return status


def _run(words: Sequence[str]) -> int:
    if words[:1] == [offering.COMMAND]:
        return offering.offer(words[1:])
    as_json = "--json" in words
    try:
        options, unknown = parser.build().parse_known_args(words)
        if unknown:  # said of the command: argparse would say it of the program
            raise parser.wrong(str(options.command), f"unrecognized arguments: {' '.join(unknown)}")
        return COMMANDS[str(options.command)](options)
    except SystemExit as end:  # --help, --version
        return int(end.code or 0)
    except parser.UsageError as wrong:
        if not as_json:
            print(wrong.usage, end="", file=sys.stderr)
        show.failure(error(Code.INVALID_ARGUMENT, wrong.message, wrong.hint), as_json=as_json)
        return USAGE
    except BrokenPipeError:
        raise
    except (OSError, EOFError, UnicodeEncodeError) as failure:
        return _say(_known(failure), as_json)
    except MLDashError as failure:
        return _say(failure, as_json)


def _say(failure: MLDashError, as_json: bool) -> int:
    show.failure(failure, as_json=as_json)
    return STATUS.get(failure.code, FAILED)


def _known(failure: OSError | EOFError | UnicodeEncodeError) -> MLDashError:
    """A failure of the system, with a code of ours: of the way to the daemon, of a disk, or of a path."""
    if isinstance(failure, MLDashError):
        return failure
    if isinstance(failure, UnicodeEncodeError):
        return error(Code.INVALID_PATH, f"{failure.object!r} is not UTF-8", "rename it")
    if isinstance(failure, EOFError | ConnectionError):
        return error(Code.CONNECTION_LOST, f"the daemon went away: {failure}")
    if failure.errno in (errno.ENOSPC, errno.EDQUOT):
        return error(Code.DISK_FULL, str(failure), "free space there")
    if failure.errno == errno.EIO:
        return error(Code.DISK_FAILED, str(failure))
    code = Code.ACCESS_DENIED if isinstance(failure, PermissionError) else Code.NOT_A_FILE
    return error(code, str(failure), "check the path, its owner and its mode")


def _drop_stdout() -> None:
    """Nobody takes what is left: it goes nowhere, so that the interpreter's own flush at the end does not fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
