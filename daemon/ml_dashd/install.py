"""What an installation needs beside the package: systemd's units, and a file of settings to start from."""

from __future__ import annotations

import sys
from pathlib import Path

UNITS = ("ml-dashd.service", "ml-dashd.socket")
COMMAND = "ml-dashd run"
"""As it stands in systemd/; an installed unit names this very interpreter."""


def units(kind: str) -> dict[str, str]:
    """The units of kind "system" or "user" by their names, with the command of this installation."""
    folder = _shipped("systemd") / kind
    start = f"ExecStart={_quoted(sys.executable)} -m ml_dashd run"
    return {name: (folder / name).read_text().replace(f"ExecStart={COMMAND}", start) for name in UNITS}


def write_units(kind: str, folder: Path) -> list[Path]:
    """Writes them into a folder of systemd's, in place of older ones. Idempotent."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in units(kind).items():
        (folder / name).write_text(text)
    return [folder / name for name in UNITS]


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
