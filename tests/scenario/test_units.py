"""The units, as docs/install.md installs them, in a real systemd of the test's own."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.gate import Gate, refusal
from tests.doubles.pid1 import Machine, booted
from tests.harness import PREFIX, eventually, file_sha256, is_object, make_file

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
INSTALLED = {"/opt/ml-dash/bin": str(BIN), "~/.local/ml-dash/bin": str(BIN), "sudo ": ""}
BY_HAND = ("python3 -m venv", "pip install", "loginctl ")
"""What this checkout has already, and what takes a person."""
MIB = 1 << 20
TRAINER = """
import json, sys
from ml_dash import Experiment
with Experiment(sys.argv[1], wait=False).run as exp:
    results = [exp.files.upload(path) for path in sys.argv[2:]]
    print(json.dumps([[result["filename"], result["pin"]] for result in results]))
"""

HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
input()
"""


def page(block: str) -> str:
    """A block of docs/install.md."""
    found = re.search(rf"<!-- {block} -->\n```\w+\n(.*?)```", (ROOT / "docs/install.md").read_text(), re.DOTALL)
    assert found
    return found[1]


def script(block: str, edit: str = "") -> str:
    """The block's commands for this checkout, with `edit` where a person would edit the settings."""
    lines = []
    text = page(block)
    for there, here in INSTALLED.items():
        text = text.replace(there, here)
    for line in text.splitlines():
        if line.startswith("editor "):
            lines.append(edit)
        elif not any(word in line for word in BY_HAND):
            lines.append(line)
    return "\n".join(lines)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with booted(tmp_path / "machine") as running:
        yield running


def install(machine: Machine, drop_in: str = "", edit: str = "") -> None:
    """A service of the machine, as the page says, that takes root's files."""
    folder = machine.inside("/etc/systemd/system/ml-dashd.service.d")
    folder.mkdir()
    (folder / "log.conf").write_text("[Service]\nStandardError=append:/run/ml-dashd.log\n")
    (folder / "override.conf").write_text(drop_in)
    settings = "/etc/ml-dash/ml-dashd.toml"
    machine.run("sh", "-ec", script("system", f"sed -i 's/^# uids = .*/uids = [0]/; {edit}' {settings}"))
    wanted = {"ActiveState": "active", "StatusText": "nothing on its way", "User": "ml-dash"}
    eventually(lambda: machine.show("ml-dashd.service", *wanted) == wanted)


def hand_over(machine: Machine, *paths: str, **environment: str) -> dict[str, str]:
    """A trainer inside, of root's; returns each file's pin."""
    return dict(json.loads(machine.run(sys.executable, "-c", TRAINER, PREFIX, *paths, **environment)))


def stored(root: Path) -> dict[str, str]:
    """Every file of a store by its name, and its SHA-256."""
    found = [path for path in root.rglob("*") if path.is_file() and is_object(str(path.relative_to(root)))]
    found = [path for path in found if ".ml-dash" not in str(path)]
    assert len({path.name for path in found}) == len(found), "a file is there twice"
    return {path.name: file_sha256(path) for path in found}


@pytest.mark.parametrize("kind", ["system", "user"])
def test_systemd_has_nothing_to_say_against_the_units(kind: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    subprocess.run([BIN / "ml-dashd", "units", f"--{kind}", "--write", tmp_path], check=True, stdout=subprocess.PIPE)
    paths = [str(tmp_path / "ml-dashd.service"), str(tmp_path / "ml-dashd.socket")]
    said = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", f"--{kind}", *paths],
        capture_output=True, text=True, check=False, env={"XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)},
    )  # fmt: skip
    complaints = said.stderr.splitlines()
    if any("Unknown key 'FileDescriptorStorePreserve'" in line for line in complaints):  # before systemd 254
        complaints = [line for line in complaints if "FileDescriptorStorePreserve" not in line]
    else:
        assert said.returncode == 0
    assert complaints == []


def test_files_larger_than_the_spool_survive_restarts_and_kill_9_though_they_are_removed(
    machine: Machine, tmp_path: Path
) -> None:
    """The spool has 48 MiB; the store is a folder elsewhere, closed at first. Two trainers, one of them all along."""
    machine.run("sh", "-ec", "mkdir /var/lib/ml-dash && mount -t tmpfs -o size=48m tmpfs /var/lib/ml-dash")
    store = machine.folder / "lib" / "store"
    store.mkdir(mode=0o777)
    store.chmod(0o777)
    gate = store / PREFIX / "files"
    gate.parent.mkdir(parents=True)
    for folder in gate.parents[: PREFIX.count("/") + 1]:
        folder.chmod(0o777)
    gate.touch()
    install(
        machine,
        "[Service]\nReadWritePaths=/var/lib/store\n",
        '0,/^# url = ""/s||url = "file:///var/lib/store"|',
    )
    large = {f"large-{number}.bin": make_file(tmp_path / f"large-{number}.bin", 64 * MIB, number) for number in (1, 2)}
    assert hand_over(machine, *(str(tmp_path / name) for name in large)) == dict.fromkeys(large, "fd")
    assert machine.show("ml-dashd.service", "NFileDescriptorStore") == {"NFileDescriptorStore": "2"}
    for name in large:
        (tmp_path / name).unlink()

    small = {f"{number}.bin": make_file(tmp_path / f"{number}.bin", 70_000 + number, number) for number in range(200)}
    paths = [str(tmp_path / name) for name in small]
    command = machine.entered(sys.executable, "-c", TRAINER, "bob/cv/x", *paths)
    trainer = subprocess.Popen(command, stdout=subprocess.PIPE)
    began = machine.show("ml-dashd.service", "MainPID")
    machine.run("systemctl", "restart", "ml-dashd.service")
    machine.run("systemctl", "kill", "--signal=KILL", "ml-dashd.service")
    eventually(lambda: machine.show("ml-dashd.service", "NRestarts", "ActiveState")
               == {"NRestarts": "1", "ActiveState": "active"})  # fmt: skip
    machine.run("systemctl", "restart", "ml-dashd.service")
    pins, _ = trainer.communicate(timeout=60)
    assert trainer.returncode == 0
    assert dict(json.loads(pins)) == dict.fromkeys(small, "fd")
    assert machine.show("ml-dashd.service", "MainPID") != began

    gate.unlink()
    eventually(lambda: len(stored(store)) == len(large) + len(small), 60)
    assert stored(store) == large | small
    eventually(lambda: machine.show("ml-dashd.service", "NFileDescriptorStore") == {"NFileDescriptorStore": "0"})


def test_clients_wait_while_the_service_is_stopped_and_start_it(machine: Machine, tmp_path: Path) -> None:
    """Where the socket is stopped, too, they leave their files in the inbox, which the unit has made."""
    machine.run("mount", "-t", "tmpfs", "tmpfs", "/var/spool")
    setting = re.search("^inbox = .*", page("inbox"), re.MULTILINE)
    assert setting
    install(machine, edit=f"s|^# inbox = .*|{setting[0]}|")
    expected = make_file(tmp_path / "a.bin", MIB)
    machine.run("systemctl", "stop", "ml-dashd.service")
    assert machine.inside("/run/ml-dash/ml-dashd.sock").is_socket()
    assert machine.show("ml-dashd.service", "ActiveState") == {"ActiveState": "inactive"}
    hand_over(machine, str(tmp_path / "a.bin"))
    assert machine.show("ml-dashd.service", "ActiveState") == {"ActiveState": "active"}
    eventually(lambda: stored(machine.folder / "lib/ml-dash/files") == {"a.bin": expected})

    assert machine.run("stat", "--format=%a %U %G", "/var/spool/ml-dash") == "3730 ml-dash ml-dash\n"
    machine.run("systemctl", "stop", "ml-dashd.socket", "ml-dashd.service")
    other = make_file(tmp_path / "b.bin", MIB, seed=1)
    hurried = f"import ml_dash.connection\nml_dash.connection.INBOX_AFTER_S = 0.2\n{TRAINER}"
    left = machine.run(sys.executable, "-c", hurried, PREFIX, str(tmp_path / "b.bin")).splitlines()
    assert json.loads(left[-1]) == [["b.bin", "inbox"]]
    machine.run("systemctl", "start", "ml-dashd.socket", "ml-dashd.service")
    eventually(lambda: stored(machine.folder / "lib/ml-dash/files") == {"a.bin": expected, "b.bin": other})
    assert machine.run("ls", "-A", "/var/spool/ml-dash") == ""


def test_the_hang_of_its_journal_ends_in_a_restart(machine: Machine, tmp_path: Path) -> None:
    """WatchdogSec= made short; the lock is held for longer."""
    install(machine, "[Service]\nWatchdogSec=2\n")
    journal = "/var/lib/ml-dash/journal.sqlite"
    command = machine.entered(sys.executable, "-c", HOLD, journal)
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with other:
        assert other.stdout is not None
        other.stdout.readline()
        eventually(lambda: machine.show("ml-dashd.service", "Result") == {"Result": "watchdog"})
        other.kill()
    eventually(lambda: machine.show("ml-dashd.service", "ActiveState", "StatusText")
               == {"ActiveState": "active", "StatusText": "nothing on its way"})  # fmt: skip


def test_wrong_settings_are_said_and_not_tried_again_and_again(machine: Machine, tmp_path: Path) -> None:
    """Clients that wait are refused in the end; once it is mended, the lines of the page have all well again."""
    install(machine)
    settings = machine.inside("/etc/ml-dash/ml-dashd.toml")
    right = settings.read_text()
    settings.write_text(right + "[daemon")
    machine.run("systemctl", "restart", "ml-dashd.service", check=False)
    wanted = {"ActiveState": "failed", "ExecMainStatus": "2", "NRestarts": "0"}
    assert machine.show("ml-dashd.service", *wanted) == wanted
    assert "/etc/ml-dash/ml-dashd.toml: not TOML" in machine.run("tail", "-n1", "/run/ml-dashd.log")
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(str(machine.inside("/run/ml-dash/ml-dashd.sock")))
        eventually(lambda: machine.show("ml-dashd.socket", "ActiveState") == {"ActiveState": "failed"})
    settings.write_text(right)
    machine.run("sh", "-ec", script("mended"))
    expected = make_file(tmp_path / "a.bin", MIB)
    hand_over(machine, str(tmp_path / "a.bin"))
    eventually(lambda: stored(machine.folder / "lib/ml-dash/files") == {"a.bin": expected})


def test_with_the_drop_in_of_the_page_files_of_others_are_linked(machine: Machine) -> None:
    """Of root, readable for root alone, touched, and removed before they are stored: all is started anew meanwhile."""
    install(machine, page("links"), "s/^# copy_below = .*/copy_below = 0/")
    files = machine.folder / "lib/ml-dash/files"
    (files / "alice").touch()
    expected = make_file(machine.folder / "lib/a.bin", 3 * MIB)
    (machine.folder / "lib/a.bin").chmod(0o600)
    assert hand_over(machine, "/var/lib/a.bin") == {"a.bin": "link"}
    machine.run("touch", "/var/lib/a.bin")
    (machine.folder / "lib/a.bin").unlink()
    machine.run("systemctl", "stop", "ml-dashd.socket", "ml-dashd.service")
    (files / "alice").unlink()
    machine.run("systemctl", "start", "ml-dashd.service")
    eventually(lambda: stored(files) == {"a.bin": expected})


def test_without_it_they_are_held_by_descriptor(machine: Machine) -> None:
    install(machine)
    expected = make_file(machine.folder / "lib/a.bin", 3 * MIB)
    assert hand_over(machine, "/var/lib/a.bin") == {"a.bin": "fd"}
    eventually(lambda: stored(machine.folder / "lib/ml-dash/files") == {"a.bin": expected})


def test_an_s3_store_is_spoken_to_from_within_the_sandbox(machine: Machine, tmp_path: Path) -> None:
    """Names are looked up, checksums and signatures computed, connections made: nobody answers, as its status says."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    keys = "Environment=AWS_ACCESS_KEY_ID=x AWS_SECRET_ACCESS_KEY=x AWS_EC2_METADATA_DISABLED=true"
    url = f's|^# endpoint_url = .*|endpoint_url = "http://localhost:{port}"|; 0,/^# url = ""/s||url = "s3://bucket"|'
    install(machine, f"[Service]\nWatchdogSec=2\n{keys}\n", url)
    make_file(tmp_path / "a.bin", 3 * MIB)
    hand_over(machine, str(tmp_path / "a.bin"))
    wanted = "1 file on its way, 3.1 MB; 1 blocked: "
    eventually(lambda: wanted in machine.show("ml-dashd.service", "StatusText")["StatusText"])
    assert f"localhost:{port}" in machine.show("ml-dashd.service", "StatusText")["StatusText"]


def test_credentials_that_systemd_hands_in(machine: Machine, tmp_path: Path) -> None:
    """By the page's drop-in, from a file that root alone can read."""
    folder = machine.inside("/etc/ml-dash")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "credentials"
    file.write_text("[default]\naws_access_key_id = of-the-page\naws_secret_access_key = x\n")
    file.chmod(0o600)
    with Gate("http://nobody.test", lambda _: refusal(403, "InvalidAccessKeyId")) as gate:
        url = f's|^# endpoint_url = .*|endpoint_url = "{gate.endpoint}"|; 0,/^# url = ""/s||url = "s3://bucket"|'
        install(machine, page("credentials"), url)
        make_file(tmp_path / "a.bin", MIB)
        hand_over(machine, str(tmp_path / "a.bin"))
        said = eventually(lambda: refused_for(machine))
        if "Permission denied: '/run/credentials/" in said:
            pytest.skip("in namespaces of its own this systemd lets root alone read what it hands in")
        assert "InvalidAccessKeyId" in said
        assert "Credential=of-the-page/" in gate.asked[0].headers["authorization"]


def refused_for(machine: Machine) -> str:
    """Why a file is blocked, as its status says; "" while none is."""
    return machine.show("ml-dashd.service", "StatusText")["StatusText"].partition("1 blocked: ")[2]


USER_MANAGER = """
[Service]
Type=notify
User=alice
Delegate=yes
Environment=XDG_RUNTIME_DIR=/run/user/alice HOME=/var/lib/alice
Environment=SYSTEMD_UNIT_PATH=/var/lib/alice/.config/systemd/user:/usr/lib/systemd/user
ExecStart=/lib/systemd/systemd --user --log-target=console
"""


def test_a_service_of_one_user_links_what_its_owner_hands_over(machine: Machine, tmp_path: Path) -> None:
    """A restart and kill -9, with files of the spool's file system and of another; /dev/shm's is removed."""
    machine.run("useradd", "--create-home", "--home-dir", "/var/lib/alice", "alice")
    machine.run("install", "-d", "-o", "alice", "-m", "700", "/run/user/alice")
    machine.inside("/etc/systemd/system/manager.service").write_text(USER_MANAGER)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "manager.service")
    mine = {"HOME": "/var/lib/alice", "XDG_RUNTIME_DIR": "/run/user/alice"}

    def alice(*command: str) -> str:
        return machine.run("setpriv", "--reuid=alice", "--regid=alice", "--clear-groups", "--", *command, **mine)

    alice("sh", "-ec", script("user").replace("~", "/var/lib/alice"))
    files = machine.folder / "lib/alice/.local/state/ml-dash/files"
    (files / "alice").touch()
    home, memory = machine.folder / "lib/alice", Path("/dev/shm") / f"{tmp_path.name}.bin"
    expected = {"a.bin": make_file(home / "a.bin", 3 * MIB), memory.name: make_file(memory, 3 * MIB, seed=1)}
    try:
        memory.chmod(0o644)
        (home / "a.bin").chmod(0o666)
        pins = alice(sys.executable, "-c", TRAINER, PREFIX, "/var/lib/alice/a.bin", str(memory))
    finally:
        memory.unlink()
    assert dict(json.loads(pins)) == {"a.bin": "link", memory.name: "fd"}
    (home / "a.bin").unlink()
    alice("systemctl", "--user", "restart", "ml-dashd.service")
    alice("systemctl", "--user", "kill", "--signal=KILL", "ml-dashd.service")
    (files / "alice").unlink()
    eventually(lambda: stored(files) == expected)
