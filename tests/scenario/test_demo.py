"""`make demo` as a newcomer meets it: what is on the screen is true, what it tells one to type works, and it ends."""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.harness import free_tree

pytestmark = pytest.mark.slow

DEMO = [sys.executable, str(Path(__file__).parents[2] / "examples" / "demo.py")]
EPOCHS = range(1, 5)
FILES = sorted(
    ["configs/config.json"]
    + [f"checkpoints/epoch-{epoch}.npz" for epoch in EPOCHS]
    + [f"metrics/epoch-{epoch}.json" for epoch in EPOCHS]
)
ROW = re.compile(
    r"^ +(\d)  +\d\.\d+  +([\d.]+%)  +\d+ ms  +\d+ ms  +([\d.]+) MiB  +([\d.]+) ms  +([\d.]+) ms$", re.MULTILINE
)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where the demo is run; the daemon that it leaves is ended with the test."""
    yield tmp_path
    if not (tmp_path / ".dash-demo" / "root").exists():
        return
    process = os.pidfd_open(daemon_of(tmp_path))
    signal.pidfd_send_signal(process, signal.SIGTERM)
    ended = has_ended(process, timeout=60)
    os.close(process)
    free_tree(tmp_path)
    assert ended, "the daemon did not end after SIGTERM"


def test_the_demo(folder: Path) -> None:
    done = subprocess.run(DEMO, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    screen = done.stdout

    rows = ROW.findall(screen)
    assert [int(epoch) for epoch, *_ in rows] == [*EPOCHS], screen
    assert all(float(size) >= 50 for _, _, size, _, _ in rows)
    best = max((percent for _, percent, *_ in rows), key=lambda percent: float(percent.rstrip("%")))
    assert float(best.rstrip("%")) > 90

    moving = re.search(r"^Not stored yet: (\d) of 9 files, [\d.]+ MiB of [\d.]+ MiB\.$", screen, re.MULTILINE)
    assert moving is not None, screen
    stored = re.findall(r"^Stored: \S+/\S+, [\d.]+ MiB\.$", screen, re.MULTILINE)
    assert len(stored) == int(moving[1])
    assert "Stored: all 9 files." in screen

    listed = re.findall(r"^ *\d{15,19}  DONE  .+  (\S+)$", screen, re.MULTILINE)
    assert sorted(listed) == FILES

    accuracy = re.search(
        r"^Accuracy in training: (\S+%)\. Accuracy of the model that was read back: (\S+%)\.$", screen, re.MULTILINE
    )
    assert accuracy is not None, screen
    assert accuracy[1] == accuracy[2] == best

    what_it_tells_one_to_type_works(screen, folder)
    a_second_run_begins_afresh_and_stops_on_ctrl_c(folder)


def what_it_tells_one_to_type_works(screen: str, folder: Path) -> None:
    suggested = re.findall(r"^\S*ml-dash .+$", screen.partition("What to try next")[2], re.MULTILINE)
    assert len(suggested) >= 3
    for line in suggested:
        done = subprocess.run(shlex.split(line), cwd=folder, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    assert len(list((folder / ".dash-demo" / "metrics").glob("*.json"))) == len(EPOCHS)
    assert (folder / re.search(r"The files lie in (\S+);", screen)[1]).is_dir()  # type: ignore[index]


def a_second_run_begins_afresh_and_stops_on_ctrl_c(folder: Path) -> None:
    first_daemon = os.pidfd_open(daemon_of(folder))
    with subprocess.Popen(DEMO, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        for line in demo.stdout:
            if line.startswith("epoch"):
                break
        trainer = os.pidfd_open(trainer_in(folder))
        demo.send_signal(signal.SIGINT)
        rest = demo.stdout.read()
        assert demo.wait(60) == 130
        assert "\nStopped." in rest
        assert demo.stderr.read() == ""
    assert has_ended(first_daemon, timeout=0)
    assert has_ended(trainer, timeout=60)
    os.close(first_daemon)
    os.close(trainer)
    checkpoints = list((folder / ".dash-demo").rglob("epoch-*.npz"))
    assert len(checkpoints) < len(EPOCHS), "the first run's files are still there"


def trainer_in(folder: Path) -> int:
    """The pid of the demo's trainer."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            words = (process / "cmdline").read_text().split("\0")
            if any(word.endswith("train_digits.py") for word in words) and str(folder / ".dash-demo" / "root") in words:
                return int(process.name)
    pytest.fail("there is no trainer")


def daemon_of(folder: Path) -> int:
    """The pid of the daemon that serves the demo's files."""
    command = [sys.executable, "-m", "ml_dash.cli", "status", "--json", "--root", ".dash-demo/root"]
    asked = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=True)
    return int(json.loads(asked.stdout)["pid"])


def has_ended(process: int, timeout: float) -> bool:
    """Whether the process of a pidfd ends within so many seconds."""
    return bool(select.select([process], [], [], timeout)[0])
