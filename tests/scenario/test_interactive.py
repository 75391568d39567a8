"""Where code is typed, or runs inside an event loop: notebooks whose kernel is killed, and asyncio."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness import eventually, file_sha256
from tests.scenario.embedded import Root, held, run_trainer

pytestmark = pytest.mark.slow


@dataclass
class Kernel:
    """Python as it is typed into: a cell at a time, each of which prints a line of JSON."""

    process: subprocess.Popen[str]

    def run(self, cell: str) -> object:
        self.send(cell)
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def send(self, cell: str) -> None:
        """One statement a line; an empty line ends what is indented."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{cell}\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def kernel(root: Root) -> Iterator[Kernel]:
    """A new one, which has opened the experiment, as the notebook's first cell does."""
    command = [sys.executable, "-W", "error", "-i", "-q"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as process:
        made = Kernel(process)
        try:
            made.send("import json, sys; from ml_dash import Experiment")
            made.send("def show(value): print(json.dumps(value), flush=True)\n")
            made.send(f'exp = Experiment("alice/cv/resnet", dash_root={str(root.path)!r}).run.start()')
            yield made
        finally:
            made.kill()


def test_a_kernel_that_is_killed_in_the_middle_of_an_experiment(root: Root) -> None:
    """Nothing that was acknowledged is lost, what was not is nowhere, and the next kernel goes on where it was."""
    acknowledged: list[str] = []
    for life in range(3):
        with kernel(root) as typed:
            found = typed.run('show([each["filename"] for each in exp.files("steps").list()])')
            assert isinstance(found, list)
            assert set(acknowledged) <= set(found)
            assert len(found) <= len(acknowledged) + life, "at most the one save that each kill broke off"
            save = f'show(exp.files("steps").save_blob(b"%d " % step * 40_000, to=f"{life}-{{step}}.bin")["filename"])'
            typed.send(f"for step in range(10_000): {save}\n")
            assert typed.process.stdout is not None
            acknowledged += [json.loads(typed.process.stdout.readline()) for _ in range(25)]
            typed.process.kill()
            rest = typed.process.communicate()[0].splitlines()
            acknowledged += [json.loads(line) for line in rest if line.endswith('"')]
    with kernel(root) as typed:
        assert typed.run("exp.files.flush(60); show(1)") == 1
        records = typed.run("show([dict(each) for each in exp.files().list()])")
    assert isinstance(records, list)
    by_name = {each["filename"]: each["checksum"] for each in records}
    assert len(by_name) == len(records) == len(root.files())
    assert set(acknowledged) <= set(by_name)
    assert {file_sha256(root.path / name) for name in root.files()} == set(by_name.values())


def test_a_cell_that_is_run_again_after_a_restart_finds_its_files_on_their_way(root: Root) -> None:
    with held(root) as let_go:
        with kernel(root) as typed:
            first = typed.run('show(exp.files("m").save_blob(bytes(200_000), to="a.bin")["id"])')
        eventually(lambda: root.status().connections == 1)
        with kernel(root) as typed:
            assert typed.run('show([each["id"] for each in exp.files("m").list("*.bin")])') == [first]
            second = typed.run('show(exp.files("m").save_blob(bytes(300_000), to="a.bin")["id"])')
            let_go()
            assert typed.run("exp.files.flush(60); show(1)") == 1
            assert typed.run('show([each["id"] for each in exp.files("m").list(latest=True)])') == [second]
    assert len(root.files()) == 2


ASYNC = """
import asyncio, sys
from ml_dash import Experiment

async def train(exp, who):
    for number in range(10):
        exp.files(who).save_json({"step": number}, to=f"{number}.json")  # from the loop itself, which is running
        await asyncio.to_thread(exp.files(who).save_blob, who.encode() * 40_000, to=f"{number}.bin")
        await asyncio.sleep(0)

async def main():
    with Experiment("alice/cv/resnet", dash_root=sys.argv[1]).run as exp:
        await asyncio.gather(*(train(exp, f"task-{number}") for number in range(4)))
        await asyncio.to_thread(exp.files.flush, 60)
        listed = exp.files().list("**/*.json", latest=True)
        await asyncio.to_thread(exp.files("task-3/9.json").download, to=sys.argv[1] + "-back.json")
    print(len(listed))

asyncio.run(main(), debug="debug" in sys.argv)
"""


@pytest.mark.parametrize("mode", ["plain", "debug"])
def test_saves_from_a_running_event_loop(root: Root, mode: str) -> None:
    """And from its threads; in asyncio's debug mode, too, which complains about what was never awaited."""
    out, err, status = run_trainer(ASYNC, str(root.path), mode)
    said = [line for line in err.splitlines() if not line.startswith("Executing <")]  # a step that took 0.1 s
    assert (out, said, status) == ("40\n", [], 0)
    assert len(root.files()) == 4 * 20
    assert json.loads(Path(f"{root.path}-back.json").read_text()) == {"step": 9}
