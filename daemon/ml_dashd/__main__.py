"""The command `ml-dashd`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from ml_dash.errors import Code, MLDashError
from ml_dashd import config as settings

EXAMPLES = """examples:
  ml-dashd run                             serve with the defaults of this user
  ml-dashd run --config /etc/ml-dashd.toml
  ml-dashd check-config --config /etc/ml-dashd.toml
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 1 failed, 2 usage or settings."""
    options = _parser().parse_args(arguments)
    try:
        config = settings.embedded(options.embedded.resolve()) if options.embedded else settings.load(options.config)
        if options.command == "check-config":
            source = settings.source(options.config) or "the defaults"
            print(f"{source}: right; store {config.store.url}, socket {config.socket}")  # noqa: T201
            return 0
        return _run(config, options.ready_fd)
    except MLDashError as refused:
        _report(options.ready_fd, f"ml-dashd: {refused.message}: {refused.hint}")
        return 2 if refused.code is Code.CONFIG else 1
    except OSError as failure:
        _report(options.ready_fd, f"ml-dashd: {failure}")
        return 1


def _run(config: settings.Config, ready_fd: int) -> int:
    if config.embedded is not None:
        _detach()
    os.umask(0o027)
    logging.getLogger("aiobotocore").setLevel(logging.WARNING)
    logging.basicConfig(
        level=config.daemon.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    from ml_dashd import app  # noqa: PLC0415 check-config needs none of it

    app.run(config, lambda: _tell(ready_fd, "ready"))
    return 0


def _detach() -> None:
    """Leaves the trainer's process group and session, so that what ends the trainer does not end the daemon."""
    if os.fork():
        os._exit(0)
    os.setsid()


def _tell(ready_fd: int, text: str) -> None:
    """Tells whoever started us, through the pipe that it gave us."""
    if ready_fd >= 0:
        os.write(ready_fd, text.encode())
        os.close(ready_fd)


def _report(ready_fd: int, text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201
    _tell(ready_fd, text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ml-dashd",
        description="The ML-Dash daemon: takes files over a Unix socket, keeps them, and sends them to the store.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ml-dashd {version('ml-dash')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("run", "serve until SIGTERM"),
        ("check-config", "check the settings and say what is wrong"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--config", type=Path, metavar="FILE", help="TOML settings (else $ML_DASH_CONFIG)")
        hidden = argparse.SUPPRESS
        command.add_argument("--embedded", type=Path, metavar="ROOT", help=hidden)
        command.add_argument("--ready-fd", type=int, default=-1, help=hidden)
    return parser


if __name__ == "__main__":
    sys.exit(main())
