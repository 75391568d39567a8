"""One cached virtual environment per server, and one with torch, kept apart from the tests' own packages.

The servers pin packages that the project needs in other versions (botocore above all), and torch is
large, so they are never installed beside it. An environment is found by the hash of its pins: new pins,
new environment.
"""

import fcntl
import hashlib
import platform
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

_PINS = Path(__file__).parent
_CACHE = _PINS.parents[1] / ".cache" / "servers"
_INSTALL_TIMEOUT_S = 900


class EnvironmentUnavailableError(RuntimeError):
    """A server's pinned packages could not be installed here; the message holds pip's own words."""


def server_python(name: str, cache: Path = _CACHE, pins: Path = _PINS, on: Path | None = None) -> Path:
    """Return the interpreter of server `name`'s environment, which is built first where there is none.

    The file {name}.txt in the folder `pins` says what is in it; with `on`, the interpreter of another of these
    environments, also what that one has.
    Safe to call from several processes at once, and after a build that was cut off at any point.
    """
    pins = pins / f"{name}.txt"
    root = cache / f"{name}-{_fingerprint(pins, on)}"
    if not _ready(root):
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _ready(root):  # another process may have built it while this one waited
                _build(name, root, pins, lock.fileno(), on)
    return _python(root)


def torch_python() -> Path:
    """Return the interpreter of the environment with torch, CPU alone where pip finds such a build.

    Raises EnvironmentUnavailableError where there is none: a build for CUDA without its libraries, say.
    """
    return server_python("torch")


def frameworks_python() -> Path:
    """Return the interpreter of the environment with Lightning and transformers, on that with torch: it is large.

    Raises EnvironmentUnavailableError as `torch_python` does.
    """
    return server_python("frameworks", on=torch_python())


def library_path(folder: Path) -> str:
    """Return the PYTHONPATH by which the Python of another environment finds the library of this checkout.

    The folder gets what it needs to know which release it is.
    """
    installed = folder / "installed"
    if not installed.exists():
        installed.mkdir()
        files = distribution("ml-dash").files or []
        own = next(file for file in files if file.name == "METADATA").locate().parent
        (installed / own.name).symlink_to(own)
    return f"{_PINS.parents[1] / 'client'}:{installed}"


def _fingerprint(pins: Path, on: Path | None) -> str:
    # Wheels are built for one version of Python, so the version is part of the identity; so is what lies below.
    below = "" if on is None else f" {on.parents[1].name}"
    identity = f"{sys.implementation.cache_tag} {platform.machine()}{below}\n".encode() + pins.read_bytes()
    return hashlib.sha256(identity).hexdigest()[:12]


def _python(root: Path) -> Path:
    return root / "bin" / "python"


def _marker(root: Path) -> Path:
    return root / ".ready"


def _ready(root: Path) -> bool:
    # exists() follows the link: an environment whose base interpreter was removed is no environment.
    return _marker(root).exists() and _python(root).exists()


def _packages(root: Path) -> Path:
    (packages,) = root.glob("lib/python*/site-packages")
    return packages


def _build(name: str, root: Path, pins: Path, lock: int, on: Path | None) -> None:
    # Without its marker, what lies here is an interrupted build.
    shutil.rmtree(root, ignore_errors=True)
    _run(name, lock, sys.executable, "-m", "venv", str(root))
    if on is not None:
        (_packages(root) / "below.pth").write_text(f"{_packages(on.parents[1])}\n")
    pip = (str(_python(root)), "-I", "-m", "pip", "--disable-pip-version-check")
    # The pins are the whole closure; resolving again could only differ. Wheels only: a compiler that is
    # not there fails late and unreadably. Most of what is in them is never imported, so nothing is compiled ahead.
    options = ("--quiet", "--no-input", "--no-deps", "--no-compile", "--only-binary=:all:")
    _run(name, lock, *pip, "install", *options, "-r", str(pins))
    _run(name, lock, *pip, "check")
    _marker(root).touch()


def _run(name: str, lock: int, *command: str) -> None:
    # The child inherits the lock: if this process is killed, pip goes on writing, and nobody may start
    # to build at the same place before it has ended.
    try:
        subprocess.run(
            command,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=(lock,),
            timeout=_INSTALL_TIMEOUT_S,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise EnvironmentUnavailableError(
            f"The environment {name!r} of the tests cannot be installed on Python {platform.python_version()} "
            f"({platform.machine()}) from the versions pinned in {name}.txt: {error}\n"
            f"{error.output}"
        ) from error
