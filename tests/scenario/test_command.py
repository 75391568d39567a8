"""`ml-dashd` as an operator runs it: exit status, one line on stderr, and nothing half done."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ml_dash import messages as m
from tests.doubles.raw_client import RawClient
from tests.harness import DaemonProcess, Folder

pytestmark = pytest.mark.slow

MODULE = [sys.executable, "-m", "ml_dashd"]
SCRIPT = [str(Path(sys.executable).with_name("ml-dashd"))]


def ran(command: list[str], *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, *words], env=os.environ | environment, capture_output=True, text=True, timeout=30, check=False
    )


@pytest.mark.parametrize("command", [MODULE, SCRIPT], ids=["python -m", "script"])
def test_help_and_version(command: list[str]) -> None:
    for words in (["--help"], ["run", "--help"]):
        ended = ran(command, *words)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.startswith("usage: ml-dashd")
    ended = ran(command, "--version")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("ml-dashd ")


@pytest.mark.parametrize("words", [["check-config"], ["run"]], ids=["check-config", "run"])
@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[daemon]\nsoket = '/x'", "unknown key daemon.soket: did you mean daemon.socket?"),
        ("[limits]\nthreads = 'four'", "limits.threads is 'four' (text): it must be a whole number"),
        ("[store]\nurl = 'data'", 'store.url is \'data\' (text): it must be "file:///folder" or "s3://bucket/'),
        ("threads = ", "not TOML"),
        (None, "No such file or directory"),
    ],
)
def test_bad_settings_end_it_at_once(words: list[str], text: str | None, named: str, tmp_path: Path) -> None:
    path = tmp_path / "ml-dashd.toml"
    if text is not None:
        path.write_text(text)
    for ended in (ran(MODULE, *words, "--config", str(path)), ran(MODULE, *words, ML_DASH_CONFIG=str(path))):
        assert ended.returncode == 2
        assert ended.stdout == ""
        assert ended.stderr.count("\n") == 1
        assert ended.stderr.startswith(f"ml-dashd: {path}: {named}")
    assert [entry.name for entry in tmp_path.iterdir()] == ([] if text is None else ["ml-dashd.toml"])


def test_good_settings_are_right_and_nothing_is_made(tmp_path: Path) -> None:
    path = tmp_path / "ml-dashd.toml"
    path.write_text(f'[daemon]\nstate_dir = "{tmp_path}/state"\nsocket = "{tmp_path}/run/socket"\n')
    for ended in (
        ran(MODULE, "check-config", "--config", str(path)),
        ran(MODULE, "check-config", ML_DASH_CONFIG=str(path)),
    ):
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout == (
            f"{path}: right; store file://{tmp_path}/state/files, catalog {tmp_path}/state/catalog.sqlite, "
            f"socket {tmp_path}/run/socket\n"
        )
    assert [entry.name for entry in tmp_path.iterdir()] == ["ml-dashd.toml"]


def test_run_takes_its_settings_from_the_environment_and_makes_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "ml-dashd.toml"
    path.write_text(f'[daemon]\nstate_dir = "{tmp_path}/state"\nsocket = "{tmp_path}/run/deep/socket"\n')
    reading, writing = os.pipe()
    with subprocess.Popen(
        [*MODULE, "run", "--ready-fd", str(writing)],
        env=os.environ | {"ML_DASH_CONFIG": str(path)},
        stderr=subprocess.PIPE,
        pass_fds=[writing],
    ) as process:
        os.close(writing)
        with os.fdopen(reading) as pipe:
            assert pipe.read() == "ready"
        with RawClient(tmp_path / "run" / "deep" / "socket").greet() as client:
            report = client.ask(m.StatusReport, m.Status(request=2))
        process.terminate()
        assert process.wait(30) == 0
    assert report.store == f"file://{tmp_path}/state/files"
    assert report.state_dir == f"{tmp_path}/state"
    assert not report.embedded
    for folder in (tmp_path / "state", tmp_path / "run" / "deep", tmp_path / "state" / "spool"):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "ml-dashd.toml"
    path.write_text(f'[daemon]\nstate_dir = "{tmp_path}/file/state"\nsocket = "{tmp_path}/socket"\n')
    ended = ran(MODULE, "run", "--config", str(path))
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert f"{tmp_path}/file/state" in ended.stderr


@pytest.mark.parametrize("what", ["catalog", "journal"])
def test_a_database_that_is_none_is_named(tmp_path: Path, what: str) -> None:
    daemon = DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store"))
    daemon.state.mkdir()
    (daemon.state / f"{what}.sqlite").write_text("my notes\n" * 1000)
    try:
        with pytest.raises(RuntimeError, match="not a database"):
            daemon.start()
        assert daemon.process is not None
        assert daemon.process.returncode == 1
        assert daemon.log().count("\n") == 1
        assert str(daemon.state / f"{what}.sqlite") in daemon.log()
    finally:
        daemon.kill()
    assert (daemon.state / f"{what}.sqlite").read_text() == "my notes\n" * 1000


@pytest.mark.parametrize("library", ["uvloop", "aiohttp"])
def test_a_library_that_is_missing_is_named(tmp_path: Path, library: str) -> None:
    """As after `pip install ml-dash`, which brings the command and none of its libraries."""
    without = f"import sys; sys.modules['{library}'] = None; from ml_dashd.__main__ import main; sys.exit(main())"
    settings = f'[daemon]\nsocket = "{tmp_path}/socket"\nstate_dir = "{tmp_path}/state"\n'
    (tmp_path / "ml-dashd.toml").write_text(f'{settings}[store]\nurl = "file://{tmp_path}/store"\n')
    ended = ran([sys.executable, "-c", without], "run", "--config", str(tmp_path / "ml-dashd.toml"))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("ml-dashd: the daemon needs a library that can't be imported: ")
    assert library in ended.stderr
    assert ended.stderr.endswith(": pip install 'ml-dash[daemon]'\n")
    assert ended.stderr.count("\n") == 1


def test_a_file_of_settings_to_start_from(tmp_path: Path) -> None:
    ended = ran(MODULE, "default-config")
    assert (ended.returncode, ended.stderr) == (0, "")
    (tmp_path / "ml-dashd.toml").write_text(ended.stdout)
    assert ran(MODULE, "check-config", "--config", str(tmp_path / "ml-dashd.toml")).returncode == 0
    assert "# drain_timeout = " in ended.stdout


def test_units_are_shown_or_written(tmp_path: Path) -> None:
    shown = ran(MODULE, "units", "--user")
    assert (shown.returncode, shown.stderr) == (0, "")
    written = ran(MODULE, "units", "--user", "--write", str(tmp_path / "systemd/user"))
    assert written.returncode == 0
    paths = [Path(line) for line in written.stdout.splitlines()]
    assert shown.stdout == "".join(f"# {path.name}\n{path.read_text()}\n" for path in paths)
    assert f"ExecStart={sys.executable} -m ml_dashd run\n" in shown.stdout
    assert ran(SCRIPT, "units").returncode == 2
    (tmp_path / "file").touch()
    refused = ran(SCRIPT, "units", "--system", "--write", str(tmp_path / "file/x"))
    assert refused.returncode == 1
    assert str(tmp_path / "file/x") in refused.stderr


def test_an_installed_wheel_has_its_units_and_settings(tmp_path: Path) -> None:
    """What was built is used from a folder of its own; the packages that it needs are those of this environment."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    if built.returncode:
        pytest.skip(f"pip can't fetch the build backend: {built.stderr[-300:]}")
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    for words in (["units", "--system"], ["units", "--user"], ["default-config"]):
        installed, here = (
            ran([sys.executable, "-P", "-c", FROM], *words, PYTHONPATH=path) for path in (str(tmp_path / "site"), "")
        )
        assert (installed.returncode, installed.stderr) == (0, f"{tmp_path}/site/ml_dashd/__main__.py\n")
        assert installed.stdout == here.stdout


FROM = "import sys, ml_dashd.__main__ as command; print(command.__file__, file=sys.stderr); sys.exit(command.main())"
ROOT = Path(__file__).parents[2]
