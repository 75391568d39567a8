"""save_torch, with a real torch in a Python of its own: torch.load reads what it has saved, wherever it is by then."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ml_dash import Experiment, MLDashError
from ml_dash.errors import Code
from tests.harness import DaemonProcess, Folder, eventually
from tests.scenario.conftest import Held, path_in_store
from tests.servers.environments import library_path

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("torch_checks.py")
CHECKS = [
    node.name.removeprefix("check_")
    for program in (PROGRAM, PROGRAM.with_name("model_checks.py"))
    for node in ast.parse(program.read_text()).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")
]


def start(torch: Path, folder: Path, socket: Path, *command: str) -> subprocess.Popen[str]:
    """A program of the Python that has torch, with the library of this checkout."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "PYTHONPATH": library_path(folder),
        "ML_DASH_SOCKET": str(socket),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [torch, *command], env=environment, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def run(torch: Path, folder: Path, socket: Path, *command: str) -> str:
    with start(torch, folder, socket, *command) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def said(
    torch: Path, service: DaemonProcess, tmp_path_factory: pytest.TempPathFactory, full_size: bool
) -> dict[str, str]:
    """What each check of the program has to say: nothing, if it holds."""
    folder = tmp_path_factory.mktemp("checks")
    out = run(torch, folder, service.socket, str(PROGRAM), *["full"] * full_size, str(folder))
    eventually(lambda: all(count.state in ("DONE", "CANCELLED") for count in service.status().counts))
    return json.loads(out.splitlines()[-1])


@pytest.mark.parametrize("check", CHECKS)
def test_save_torch_is_torch_save(said: dict[str, str], check: str) -> None:
    assert said[check] == "", said[check]


MANY_KEYS = """
import sys, torch
from ml_dash import Experiment
state = {f"layers.{number}.weight": torch.full((2, 2), float(number)) for number in range(int(sys.argv[2]))}
with Experiment(prefix="alice/torch/keys").run as exp:
    exp.files.save_torch(state, to="keys.pt").wait(300)
    loaded = torch.load(exp.files("keys.pt").download(to=sys.argv[1]), weights_only=True)
assert loaded.keys() == state.keys() and all(torch.equal(loaded[key], state[key]) for key in state)
"""


def test_a_state_dict_of_many_keys(torch: Path, service: DaemonProcess, tmp_path: Path, full_size: bool) -> None:
    path = tmp_path / "keys.pt"
    run(torch, tmp_path, service.socket, "-c", MANY_KEYS, str(path), "100000" if full_size else "2000")
    whole(path)


SAVE = """
import sys, torch
from ml_dash import Experiment
with Experiment(prefix=sys.argv[1], wait=False).run as exp:
    result = exp.files("models").save_torch({"a": torch.arange(3_000_000), "b": torch.ones(5)}, to="a.pt")
    print(result["id"], flush=True)
"""
LOAD = """
import sys, torch
loaded = torch.load(sys.argv[1], weights_only=True)
assert torch.equal(loaded["a"], torch.arange(3_000_000)) and torch.equal(loaded["b"], torch.ones(5))
"""


def whole(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def test_a_file_on_its_way_is_whole_for_whoever_downloads_it(
    torch: Path, service: DaemonProcess, held: Held, tmp_path: Path
) -> None:
    """Downloaded, hashed and stored, in this order: three readers, the same bytes."""
    place = held.exp.files.place
    prefix = f"{place.namespace}/{place.project}/{place.experiment}"
    run(torch, tmp_path, service.socket, "-c", SAVE, prefix)
    (result,) = held.exp.files("models").list()
    assert result["state"] != "DONE"
    path = Path(held.exp.files("models/a.pt").download(to=tmp_path / "pending.pt"))
    whole(path)
    run(torch, tmp_path, service.socket, "-c", LOAD, str(path))
    checksum = result["checksum"]
    held.let_go()
    result.wait(30)
    assert result["checksum"] == checksum
    assert path_in_store(service, result).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("point", ["seal.written", "accept.journaled"])
def test_kill_9_of_the_daemon_changes_no_byte(torch: Path, tmp_path: Path, point: str) -> None:
    with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store"), faults=f"{point}=kill") as daemon:
        prefix = "alice/cv/killed"
        with start(torch, tmp_path, daemon.socket, "-c", SAVE, prefix) as trainer:
            daemon.wait_for_death(60)
            daemon.start()
            _, err = trainer.communicate(timeout=60)
        assert trainer.returncode == 0, err
        with daemon.experiment(prefix).run as exp:
            exp.files.flush(60)
            (result,) = exp.files().list()
        stored = path_in_store(daemon, result)
        whole(stored)
        run(torch, tmp_path, daemon.socket, "-c", LOAD, str(stored))
        assert point in daemon.faults_met()


def test_the_examples_of_its_page_run(torch: Path, service: DaemonProcess, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    together = run(torch, tmp_path, service.socket, "-c", "\n".join(examples))
    assert together.startswith("last.pt\n['a', 'b']\nstep_1000 ")


def test_what_is_no_archive_is_stored_as_it_is_and_told(service: DaemonProcess, exp: Experiment) -> None:
    """A client may say what it likes of its slot: it harms its own file at most."""
    content = b"PK\x05\x06 or so" * 100_000
    with exp.files.writing("a.pt", seal=True) as written:
        written.out.write(content)
    result = written.file.wait(30)
    assert path_in_store(service, result).read_bytes() == content
    assert service.log().count(f"not_sealed id={result['id']}") == 1


def test_without_torch_it_says_what_to_install(exp: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="pip install torch") as raised:
        exp.files("models").save_torch({}, to="a.pt")
    assert isinstance(raised.value, MLDashError)
    assert raised.value.code is Code.MISSING_LIBRARY
    assert exp.files().list() == []
