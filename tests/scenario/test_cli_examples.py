"""The examples of `ml-dash COMMAND --help` and of docs/cli.md do what they say, as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ml_dash import Experiment
from ml_dash.cli import main
from ml_dash.cli.parser import EXAMPLES
from tests.harness import PREFIX, DaemonProcess

pytestmark = pytest.mark.slow

ELSEWHERE = {
    "cancel": "test_cancel_stops_what_is_on_its_way: a file on its way",
    "retry": "test_a_failed_file_goes_back_to_the_queue: a file that failed",
    "doctor": "test_doctor.py: what it finds is the machine's",
    "push": "test_cli_push.py: a root beside the service",
    "upload": "test_the_old_names: a root beside the service",
}
"""Commands whose examples need more than a service that is well, and who runs them."""
ALONE = ("--stop", "./runs", "ml-dash top$")
"""Of the others: what ends the service, what names another daemon, what runs until a key is pressed."""
IDS = ("7351023561728", "7351023561729")
EXAMPLE = re.compile(r"ml-dash [a-z].*")


def examples(command: str) -> list[str]:
    """What is typed, without what a shell does with its output, or is said of it."""
    lines = (
        re.split(r"  +| \||\)| >", found[0])[0]
        for found in map(EXAMPLE.search, EXAMPLES[command].splitlines())
        if found
    )
    return [line for line in lines if not any(re.search(part, line) for part in ALONE)]


@pytest.fixture(scope="module")
def trained(service: DaemonProcess, tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Path]:
    """What the examples speak of: an experiment that was run, and a folder with files."""
    folder = tmp_path_factory.mktemp("work")
    for name in ("model.pt", "last.pt", "log.txt", "runs/1/a.txt", "runs/1/b.tmp"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    with service.experiment(PREFIX).run as run:
        run.params.set(lr=0.1, opt={"name": "adam"})
        run.metrics.log(epoch=1, train={"loss": 0.5})
        for name in ("models/best.pt", "models/bad.pt", "a.pt", "b.pt", "tmp/x", "logs/1.txt", "config.json"):
            run.files.save_text(name, to=name, tags=["best"])
        run.files.flush(60)
    return run, folder


def typed(example: str, service: DaemonProcess) -> list[str]:
    """The words as a shell passes them."""
    split = shlex.split(example.replace("/run/ml-dash/ml-dashd.sock", str(service.socket)))[1:]
    words = [match for word in split for match in (sorted(map(str, Path().glob(word))) if word == "*.pt" else [word])]
    return words if "--socket" in words else [*words, "--socket", str(service.socket)]


@pytest.mark.parametrize("command", [name for name in EXAMPLES if name not in ELSEWHERE])
def test_an_example_does_what_it_says(
    trained: tuple[Experiment, Path],
    service: DaemonProcess,
    command: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exp, folder = trained
    monkeypatch.chdir(folder)
    for example in examples(command):
        for known in [each for each in IDS if each in example]:
            with exp.run:
                mine = exp.files.save_text(known, to=f"{known}.txt").wait(60)["id"]
            example = example.replace(known, mine)  # noqa: PLW2901
        status = main(typed(example, service))
        said = capfd.readouterr()
        assert (status, "Traceback" in said.err) == (0, False), f"{example}\n{said.out}\n{said.err}"
        assert said.out, example


def test_what_the_examples_leave(
    trained: tuple[Experiment, Path], service: DaemonProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    exp, folder = trained
    monkeypatch.chdir(folder)
    for example in examples("put"):
        assert main(typed(example, service)) == 0
    with exp.run:
        exp.files.flush(60)
        assert exp.files("models").exists("last.pt")
        assert exp.files("runs/1").list()[0]["filename"] == "a.txt"
        assert not exp.files("runs/1").exists("b.tmp")
        assert exp.files("log.txt").list()[0]["metadata"] == {"epoch": 3}
        assert exp.files("models/best.pt").read_text() == "model.pt"
