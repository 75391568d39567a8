"""The command `ml-dashd`."""

from __future__ import annotations

import argparse
import errno
import gc
import json
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ml_dash.errors import Code, MLDashError, error
from ml_dash.release import release
from ml_dashd import config as settings
from ml_dashd import install, logs
from ml_dashd.core.redact import redact
from ml_dashd.log_file import BoundedLog

log = logging.getLogger("ml_dashd")

EXPOSED = "every user of this machine can read the password of catalog.url there"
EXAMPLES = """examples:
  ml-dashd run                             serve with the defaults of this user
  ml-dashd run --config /etc/ml-dashd.toml
  ml-dashd check-config --config /etc/ml-dashd.toml
  ml-dashd default-config > ml-dashd.toml  every setting, with its default
  ml-dashd units --user --write ~/.config/systemd/user
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 1 failed, 2 usage or settings."""
    options = _parser().parse_args(arguments)
    if options.command == "default-config":
        sys.stdout.write(install.default_config())
        return 0
    try:
        if options.command == "units":
            return _units(options.kind, options.write)
        config = _embedded(options) if options.embedded else settings.load(options.config)
        return _HOW[options.command](config, options)
    except MLDashError as refused:
        _report(options, refused)
        return 2 if refused.code is Code.CONFIG else 1
    except (OSError, ImportError) as failure:
        _report(options, _named(failure))
        return 1


def _check_config(config: settings.Config, options: argparse.Namespace) -> int:
    if config.fleet:
        from ml_dashd.edge.mongo import check_url  # noqa: PLC0415 an extra

        check_url(config.catalog.url)
    source = settings.source(options.config)
    place = f"store {config.store.url}, catalog {config.catalog_place}, socket {config.socket}"
    print(f"{source or 'the defaults'}: right; {place}")  # noqa: T201
    if (exposed := config.exposed(source)) is not None:
        print(f"ml-dashd: {exposed}: {EXPOSED}: chmod o= {exposed}", file=sys.stderr)  # noqa: T201
    return 0


def _make_inbox(config: settings.Config, options: argparse.Namespace) -> int:
    if (made := install.make_inbox(config, options.user)) is not None:
        print(made)  # noqa: T201
    return 0


def _named(failure: OSError | ImportError) -> MLDashError:
    """What the system refused, or what is not installed, with a code of ours."""
    if isinstance(failure, ImportError):  # as after `pip install ml-dash`, which brings the client's libraries alone
        what = f"the daemon needs a library that can't be imported: {failure}"
        return error(Code.MISSING_LIBRARY, what, "pip install 'ml-dash[daemon]'")
    if failure.errno in (errno.ENOSPC, errno.EDQUOT):
        return error(Code.DISK_FULL, str(failure))
    code = Code.ACCESS_DENIED if isinstance(failure, PermissionError) else Code.DISK_FAILED
    return error(code, str(failure), "check the path, its owner and the disk")


def _embedded(options: argparse.Namespace) -> settings.Config:
    root: Path = options.embedded.resolve()
    os.chdir(root)
    return settings.embedded(root, options.state_dir)


def _run(config: settings.Config, options: argparse.Namespace) -> int:
    """Serves. Who has started it is told of the files that were handed over before `began_ms`."""
    if config.embedded is not None:
        _detach()
    os.umask(0o027)
    bounded = None if config.embedded is None else BoundedLog(config.state_dir / "log")
    logs.set_up(config.daemon.log_level, config.daemon.log_format, bounded)
    gc.disable()  # a tenth of the time that it takes to load all this; app.run() collects once
    if (exposed := config.exposed(settings.source(options.config))) is not None:
        log.warning("password_exposed", extra={"file": exposed, "error": EXPOSED})
    from ml_dashd import app  # noqa: PLC0415 check-config needs none of it
    from ml_dashd.flow.recover import Recovered  # noqa: PLC0415

    def ready(left: Recovered) -> None:
        earlier = left.before(options.began_ms)
        facts = {"files": len(earlier.jobs), "size_bytes": earlier.size_bytes}
        _tell(options.ready_fd, "ready" if config.embedded is None else json.dumps({"ready": facts}))

    app.run(config, ready)
    return 0


_HOW = {"run": _run, "check-config": _check_config, "make-inbox": _make_inbox}
"""The commands that need settings."""


def _units(kind: str, folder: Path | None) -> int:
    """Writes systemd's units into a folder, or shows them."""
    if folder is None:
        for name, text in install.units(kind).items():
            sys.stdout.write(f"# {name}\n{text}\n")
        return 0
    for path in install.write_units(kind, folder):
        print(path)  # noqa: T201
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


def _report(options: argparse.Namespace, refused: MLDashError) -> None:
    """Says why it does not run: in words, and to a client that started it as it would raise it."""
    given = vars(options)
    message = redact(refused.message)
    if given.get("embedded"):  # it works there; its user knows the path
        message = message.replace(str(settings.WORKING), str(options.embedded.resolve()))
    text = f"ml-dashd: {message}: {redact(refused.hint)}"
    facts = {"code": refused.code, "message": message, "hint": refused.hint}
    _tell(given.get("ready_fd", -1), json.dumps(facts) if given.get("embedded") else text)
    with suppress(OSError):  # the log of a daemon that was started for a root is on the same full disk
        print(text, file=sys.stderr)  # noqa: T201


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ml-dashd",
        description="The ML-Dash daemon: takes files over a Unix socket, keeps them, and sends them to the store.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ml-dashd {release()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("run", "serve until SIGTERM"),
        ("check-config", "check the settings and say what is wrong"),
        ("make-inbox", "make the inbox that the settings name, as root, before the service starts"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--config", type=Path, metavar="FILE", help="TOML settings (else $ML_DASH_CONFIG)")
        hidden = argparse.SUPPRESS
        command.add_argument("--embedded", type=Path, metavar="ROOT", help=hidden)
        command.add_argument("--state-dir", type=Path, metavar="FOLDER", help=hidden)
        command.add_argument("--ready-fd", type=int, default=-1, help=hidden)
        command.add_argument("--began-ms", type=int, default=2**63 - 1, help=hidden)
        if name == "make-inbox":
            command.add_argument("--user", required=True, help="the service's own")
    text = "print every setting with its default and reason, as a file to start from"
    commands.add_parser("default-config", help=text, description=text)
    text = "print systemd's units for this installation, or write them"
    command = commands.add_parser("units", help=text, description=text)
    kind = command.add_mutually_exclusive_group(required=True)
    kind.add_argument("--system", dest="kind", action="store_const", const="system", help="a service for all users")
    kind.add_argument("--user", dest="kind", action="store_const", const="user", help="a service of this user's")
    command.add_argument("--write", type=Path, metavar="FOLDER", help="such as /etc/systemd/system")
    return parser


if __name__ == "__main__":
    sys.exit(main())
