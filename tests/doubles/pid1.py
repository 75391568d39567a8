"""A real systemd, as PID 1 of namespaces of its own: the host's is neither asked nor touched, and nothing is left.

It takes root. /run, /etc and /var/lib are the test's own; processes, cgroups and mounts end with it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

MANAGER = Path("/lib/systemd/systemd")
STOCK = Path("/lib/systemd/system")
TARGETS = ("basic", "sysinit", "sockets", "slices", "paths", "timers", "local-fs", "shutdown", "umount", "multi-user")
NEEDED = ("systemctl", "unshare", "nsenter", "setpriv", "mount")
BOOT = """
set -e
mount --make-rprivate /
mount --bind /proc/sys /proc/sys
mount -o remount,ro,bind /proc/sys
mount -t tmpfs -o mode=755 tmpfs /run
mount -t overlay -o lowerdir=/etc,upperdir="$1/etc",workdir="$1/work" overlay /etc
mount -t tmpfs -o mode=755 tmpfs /etc/systemd
mkdir /etc/systemd/system /etc/systemd/user
mount --bind "$1/lib" /var/lib
{opened}
umount --lazy /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
export container=ml-dash-test SYSTEMD_UNIT_PATH="/etc/systemd/system:$1/units"
exec {manager} --system --unit=boot.target --log-target=console --log-level=info --show-status=no
"""
PATIENCE_S = 30.0


class Machine:
    """`folder` is what lies outside: `lib` is /var/lib, and `log` what its PID 1 says."""

    def __init__(self, folder: Path, pid: int) -> None:
        self.folder = folder
        self.pid = pid

    def run(self, *command: str, check: bool = True, **environment: str) -> str:
        """Runs a command as root inside, and returns what it prints, errors included."""
        ended = subprocess.run(
            self.entered(*command),
            env={"PATH": os.environ["PATH"], "HOME": "/run"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=90,
            check=False,
        )
        assert not check or ended.returncode == 0, f"{command}: {ended.stdout}\n{self.log()[-3000:]}"
        return ended.stdout

    def entered(self, *command: str) -> list[str]:
        """What runs a command as root inside."""
        return ["nsenter", "--target", str(self.pid), "--all", "--", *command]

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Properties of a unit."""
        lines = self.run("systemctl", "show", unit, *(f"--property={name}" for name in names)).splitlines()
        return dict(line.split("=", 1) for line in lines)

    def inside(self, path: str) -> Path:
        """How a path of its own is reached from here."""
        return Path(f"/proc/{self.pid}/root{path}")

    def log(self) -> str:
        return (self.folder / "log").read_text()


@contextlib.contextmanager
def booted(folder: Path) -> Iterator[Machine]:
    """Skips, with the reason, where one can't be run."""
    cgroup = _cgroup() / f"ml-dash-test-{secrets.token_hex(6)}"
    for name in ("etc", "work", "lib"):
        (folder / name).mkdir(parents=True)
    _stock(folder / "units")
    (folder / "boot").write_text(BOOT.format(manager=MANAGER, opened=_opened(folder)))
    cgroup.mkdir()
    # Dropped for good: what would reach beyond the namespaces.
    apart = ["setpriv", "--pdeathsig", "KILL", "--bounding-set", "-sys_time,-sys_module,-syslog", "--"]
    apart += ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--cgroup", "--ipc", "--uts"]
    join = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(cgroup)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*join, *apart, "sh", str(folder / "boot"), str(folder)], stdout=log, stderr=log)
    try:
        yield _up(folder, process)
    finally:
        process.kill()
        process.wait()
        _remove(cgroup)


def _cgroup() -> Path:
    if os.geteuid() != 0:
        pytest.skip("a systemd of the test's own takes root")
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing or not MANAGER.exists():
        pytest.skip(f"not installed: {', '.join(missing) or MANAGER}")
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    found = next((Path(mount[1]) for mount in mounts if mount[2] == "cgroup2"), None)
    if found is None or not os.access(found, os.W_OK):
        pytest.skip("there is no cgroup2 to put it in")
    return found


def _stock(folder: Path) -> None:
    """The targets that every unit leans on, and none of what hangs on them on a real machine."""
    folder.mkdir()
    for name in TARGETS:
        shutil.copy(STOCK / f"{name}.target", folder)
    (folder / "boot.target").write_text("[Unit]\nRequires=basic.target\nAfter=basic.target\nAllowIsolate=yes\n")


def _up(folder: Path, process: subprocess.Popen[bytes]) -> Machine:
    deadline = time.monotonic() + PATIENCE_S
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while time.monotonic() < deadline and process.poll() is None:
        pids = children.read_text().split()
        if pids and Path(f"/proc/{pids[0]}/root/run/systemd/private").exists():
            machine = Machine(folder, int(pids[0]))
            if "running" in machine.run("systemctl", "is-system-running", check=False):
                return machine
        time.sleep(0.05)
    pytest.skip(f"systemd can't be run here: {(folder / 'log').read_text()[-500:] or 'it did not come up'}")


def _remove(cgroup: Path) -> None:
    """Its processes are gone, or just going."""
    deadline = time.monotonic() + PATIENCE_S
    while cgroup.exists():
        with contextlib.suppress(OSError):
            for path, _, _ in os.walk(cgroup, topdown=False):
                Path(path).rmdir()
        assert time.monotonic() < deadline, f"{cgroup} is still in use"
        time.sleep(0.02)


def _opened(folder: Path) -> str:
    """Commands that let every user through to this checkout and its Python, which may lie in somebody's home.

    A folder's overlay has the mode of its upper layer.
    """
    places = [Path(sys.executable), Path(sys.executable).resolve(), Path(__file__)]
    closed = {each for place in places for each in place.parents if not each.stat().st_mode & stat.S_IXOTH}
    commands = []
    for number, each in enumerate(sorted(closed)):
        upper, work = folder / f"upper-{number}", folder / f"work-{number}"
        commands.append(f"mkdir -m 755 '{upper}' '{work}'")
        commands.append(f"mount -t overlay -o lowerdir='{each}',upperdir='{upper}',workdir='{work}' overlay '{each}'")
    return "\n".join(commands)
