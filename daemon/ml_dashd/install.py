"""What an installation needs beside the package: systemd's units, a file of settings to start from, and an inbox."""

from __future__ import annotations

import pwd
import re
import stat
import sys
from pathlib import Path

from ml_dashd.config import Config

UNITS = ("ml-dashd.service", "ml-dashd.socket")
_COMMAND = re.compile(r"^(Exec\w+=[-+]*)ml-dashd ", re.MULTILINE)
"""As it stands in systemd/; an installed unit names this very interpreter."""


def units(kind: str) -> dict[str, str]:
    """The units of kind "system" or "user" by their names, with the command of this installation."""
    folder = _shipped("systemd") / kind
    start = f"{_quoted(sys.executable)} -m ml_dashd "
    return {name: _COMMAND.sub(lambda found: found[1] + start, (folder / name).read_text()) for name in UNITS}


def write_units(kind: str, folder: Path) -> list[Path]:
    """Writes them into a folder of systemd's, in place of older ones. Idempotent."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in units(kind).items():
        (folder / name).write_text(text)
    return [folder / name for name in UNITS]


def make_inbox(config: Config, user: str) -> Path | None:
    """Makes the inbox that the settings name, for the service of that user: root alone can. None where they name none.

    Its mode goes with the socket's, which systemd has made. Idempotent: one that is there stays as it is.
    """
    if not config.daemon.inbox:
        return None
    from ml_dashd.edge.inbox import make_for  # noqa: PLC0415 most starts have none to make

    try:
        mode = config.socket.stat().st_mode
    except FileNotFoundError:
        mode = int(config.access.socket_mode, 8)
    owner = pwd.getpwnam(user)
    make_for(Path(config.daemon.inbox), stat.S_IMODE(mode), owner.pw_uid, owner.pw_gid)
    return Path(config.daemon.inbox)


def default_config() -> str:
    """Every setting, commented out, with its default and reason."""
    return (_shipped("config") / "ml-dashd.toml").read_text()


def _shipped(name: str) -> Path:
    """The copy that a wheel has inside the package, or the folder of the checkout."""
    copy = Path(__file__).parent / "shipped" / name
    return copy if copy.is_dir() else Path(__file__).parents[2] / name


def _quoted(path: str) -> str:
    """As systemd.service(5) wants it in a command line."""
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        path = path.replace(plain, escaped)
    return f'"{path}"' if set(" \t'\"\\") & set(path) else path
