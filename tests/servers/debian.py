"""Servers that Debian packages: installed into the system where that is allowed, once."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

_INSTALL_TIMEOUT_S = 900
_LOCK = Path(tempfile.gettempdir()) / "ml-dash-tests-apt.lock"


class NotInstallableError(RuntimeError):
    """The packages are not there, and cannot be installed here; the message says why, and what a user can do."""


def ensure_commands(commands: Sequence[str], packages: Sequence[str]) -> dict[str, str]:
    """The absolute path of each command; `packages` are installed first where one is missing.

    Safe to call from several processes at once.
    """
    if (found := _found(commands)) is not None:
        return found
    with _LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (found := _found(commands)) is not None:
            return found
        _install(packages)
    if (found := _found(commands)) is None:
        raise NotInstallableError(f"{' '.join(packages)} brought no {', '.join(commands)}")
    return found


def _found(commands: Sequence[str]) -> dict[str, str] | None:
    paths = {name: shutil.which(name, path="/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin") for name in commands}
    return {name: path for name, path in paths.items() if path} if all(paths.values()) else None


def _install(packages: Sequence[str]) -> None:
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise NotInstallableError(f"install it with: {' '.join(command)}")
    if _apt(command).returncode == 0:
        return
    _apt(["apt-get", "update"])  # the lists of packages may be missing, or older than what the mirror has
    if (tried := _apt(command)).returncode != 0:
        raise NotInstallableError(f"{' '.join(command)} failed:\n{tried.stdout[-1000:]}")


def _apt(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*command, "-qq"],
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"},
        timeout=_INSTALL_TIMEOUT_S,
    )
