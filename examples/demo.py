"""A training run whose files are kept by ML-Dash: from its start to a checkpoint that is read back.

    make demo

The training is train_digits.py, a process of its own. This script starts it, and then looks on from outside.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import digits
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress

from ml_dash import Experiment, FileResult

PREFIX = "demo/digits/mlp"
TRAINER = Path(__file__).with_name("train_digits.py")

FOLDER = Path(".dash-demo")
"""All that the demo writes, in the working folder. The next run begins by removing it."""
ROOT = FOLDER / "root"
"""Where the files are kept. A daemon that serves this folder alone is started when it is first needed."""
WORK = FOLDER / "work"
"""Where the trainer writes a checkpoint before it hands it over."""

console = Console(highlight=False, soft_wrap=True)


def demo() -> None:
    say("A small network learns to read handwritten digits, and ML-Dash keeps its files.")
    say(f"There is no server: the files go to the folder {ROOT}, whose daemon starts by itself.")
    start_afresh()
    train()
    with Experiment(PREFIX, dash_root=ROOT).run as exp:
        watch_daemon(exp)
        list_files()
        read_back(exp)
    suggest()


def start_afresh() -> None:
    """Removes what the last run left: its folder and, where it still runs, its daemon."""
    asked = ml_dash("status", "--json", "--root", str(ROOT), check=False, capture_output=True)
    if asked.returncode == 0:
        daemon = json.loads(asked.stdout)
        os.kill(daemon["pid"], signal.SIGTERM)
        with Path(daemon["stateDir"], "lock").open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the daemon holds it for as long as it lives
    if FOLDER.exists():
        shutil.rmtree(FOLDER)
    WORK.mkdir(parents=True)


def train() -> None:
    title("1. A process of its own trains; the last two columns are how long its hand-overs block it")
    started = time.monotonic()
    # In a session of its own it gets no Ctrl-C from the terminal; `run` ends it when this script gets one.
    command = [sys.executable, "-u", TRAINER, "--root", ROOT.absolute()]
    trainer = subprocess.run(command, cwd=WORK, start_new_session=True, check=False)
    if trainer.returncode != 0:
        sys.exit(f"The trainer failed, with exit status {trainer.returncode}.")
    say(f"The trainer has ended, {time.monotonic() - started:.1f} s after it was started.")


def watch_daemon(exp: Experiment) -> None:
    files = exp.files().list()
    moving = [file for file in files if file["state"] != "DONE"]
    title("2. The daemon goes on without the trainer")
    say(f"Not stored yet: {len(moving)} of {len(files)} files, {mib(moving)} of {mib(files)}.")
    follow(moving)
    say(f"Stored: all {len(files)} files.")


def follow(files: Sequence[FileResult]) -> None:
    """Returns when all are stored: a bar for each on a terminal, else a line."""
    columns = ("{task.description}", BarColumn(), DownloadColumn(binary_units=True))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        for file in files:
            bar = bars.add_task(path_of(file), total=file["sizeBytes"])
            while not is_stored(file, timeout=0.05):
                bars.update(bar, completed=file.progress().done_bytes)
            bars.update(bar, completed=file["sizeBytes"])
            if not console.is_terminal:
                say(f"Stored: {path_of(file)}, {mib([file])}.")


def is_stored(file: FileResult, timeout: float) -> bool:
    """Waits for a file, for so many seconds at most. One that failed raises its error."""
    try:
        file.wait(timeout)
    except TimeoutError:
        return False
    return True


def list_files() -> None:
    title("3. What is there, as a shell shows it")
    arguments = ("ls", "--prefix", PREFIX, "--root", str(ROOT))
    say(f"$ {typed(*arguments)}")
    ml_dash(*arguments)


def read_back(exp: Experiment) -> None:
    """Downloads the best checkpoint, and compares what it can do with what it could do in training."""
    title("4. The best checkpoint, read back")
    best = max(exp.files("checkpoints").list(), key=lambda file: file["metadata"]["accuracy"])
    path = exp.files(path_of(best)).download(to=WORK / "best.npz")
    say(f"Downloaded: {path_of(best)}. Its SHA-256 is verified:\n{best['checksum']}")

    accuracy = digits.accuracy(digits.load_model(path), digits.load_data())
    in_training = best["metadata"]["accuracy"]
    say(f"Accuracy in training: {in_training:.2%}. Accuracy of the model that was read back: {accuracy:.2%}.")
    if accuracy != in_training:
        sys.exit("These should be the same.")


def suggest() -> None:
    title("5. What to try next")
    where = ("--prefix", PREFIX, "--root", str(ROOT))
    say(typed("status", "--root", str(ROOT)))
    say(typed("ls", "checkpoints", "--json", *where))
    say(typed("get", '"metrics/*.json"', "-o", str(FOLDER), *where))
    say(f"\nThe trainer's code is in {from_here(TRAINER)}.")
    say(f"The files lie in {ROOT / PREFIX / 'files'}; to remove them: rm -r {FOLDER}")
    say("The daemon ends by itself when it has had nothing to do for five minutes.")


# ---- the command, and what is printed


def ml_dash(*arguments: str, check: bool = True, **options: bool) -> subprocess.CompletedProcess[bytes]:
    """Runs the command `ml-dash`."""
    return subprocess.run([sys.executable, "-m", "ml_dash.cli", *arguments], check=check, **options)


def typed(*arguments: str) -> str:
    """The same, as it is typed in this folder."""
    command = Path(sys.executable).with_name("ml-dash")
    on_path = shutil.which("ml-dash") == str(command) or not command.exists()
    return " ".join(("ml-dash" if on_path else str(from_here(command)), *arguments))


def from_here(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def path_of(file: FileResult) -> str:
    return f"{file['path']}/{file['filename']}".lstrip("/")


def mib(files: Sequence[FileResult]) -> str:
    return f"{sum(file['sizeBytes'] for file in files) / 2**20:.1f} MiB"


def title(text: str) -> None:
    console.print(f"\n{text}\n", style="bold", markup=False)


def say(text: str) -> None:
    console.print(text, markup=False)


def main() -> None:
    # A daemon that the environment names comes before any folder, and would get the demo's files.
    os.environ.pop("ML_DASH_SOCKET", None)
    try:
        demo()
    except KeyboardInterrupt:
        say("\nStopped. What the daemon has by now it stores; then it ends by itself.")
        sys.exit(130)  # 128 + SIGINT, as shells have it


if __name__ == "__main__":
    main()
