"""`ml-dash experiments`, `params` and `metrics`, as their users run them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_dash import Experiment
from tests.harness import PREFIX, DaemonProcess, Folder
from tests.scenario.shell import RUN, Shell

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp("runs")
    with DaemonProcess(folder / "daemon", Folder(folder / "store")) as process:
        yield process


@pytest.fixture
def shell(daemon: DaemonProcess, tmp_path: Path) -> Shell:
    return Shell(tmp_path, ["--socket", str(daemon.socket)])


@pytest.fixture(scope="module")
def logged(daemon: DaemonProcess) -> Experiment:
    with daemon.experiment(readme="r", tags=["a"]).run as exp:
        exp.params.set(lr=0.1, opt={"name": "größe"})
        exp.metrics.log(epoch=1, train={"loss": 0.123456789, "note": "warm-up"})
        exp.metrics.log(epoch=2, train={"loss": float("nan")})
    return exp


def test_experiments(shell: Shell, daemon: DaemonProcess, logged: Experiment) -> None:
    with pytest.raises(ValueError), daemon.experiment("bob/nlp/bert/small").run:
        raise ValueError("the loss\nis nan")
    found = shell.json("experiments")
    assert [(each["experimentId"], each["status"], each["error"]) for each in found] == [
        (PREFIX, "COMPLETED", None), ("bob/nlp/bert/small", "FAILED", "ValueError: the loss\nis nan"),
    ]  # fmt: skip
    assert (found[0]["readme"], found[0]["tags"], found[0]["metadata"]) == ("r", ["a"], None)
    assert found[0]["startedAt"] < found[0]["endedAt"]
    for below in ("bob", "bob/nlp/", "bob/nlp/bert"):
        assert [each["experimentId"] for each in shell.json("experiments", below)] == ["bob/nlp/bert/small"]
    assert shell.json("experiments", "carol") == []
    assert shell("experiments", "carol").out == "no experiments\n"
    head, first, second = shell("experiments").out.splitlines()
    assert head.split() == ["STATUS", "STARTED", "ENDED", "EXPERIMENT"]
    assert first.startswith("COMPLETED")
    assert first.endswith(PREFIX)
    assert second.endswith("bob/nlp/bert/small  ValueError: the loss is nan")
    assert shell.refused("experiments", "../x", status=2)["code"] == "INVALID_PREFIX"


def test_params(shell: Shell, logged: Experiment) -> None:
    assert shell.json("params", "--prefix", PREFIX) == {"lr": 0.1, "opt.name": "größe"}
    assert shell("params", ML_DASH_PREFIX=PREFIX).out == 'lr        0.1\nopt.name  "größe"\n'
    assert shell.refused("params", "--prefix", "alice/cv/none", status=1)["code"] == "NO_MATCH"
    assert shell.refused("params", status=2)["code"] == "INVALID_PREFIX"


def test_metrics(shell: Shell, logged: Experiment) -> None:
    rows = shell.json("metrics", "--prefix", PREFIX)
    assert [(row["metric"], row["index"], row["data"]["epoch"]) for row in rows] == [
        (None, 0, 1), (None, 1, 2), ("train", 0, 1), ("train", 1, 2),
    ]  # fmt: skip
    assert [row["metric"] for row in shell.json("metrics", "None", "--prefix", PREFIX)] == [None, None]
    for words in ((), ("--follow",)):
        failure = shell.refused("metrics", "other", *words, "--prefix", PREFIX, status=1)
        assert failure["message"] == f"there is no metric 'other' in {PREFIX}"
        assert failure["hint"] == "it has: None, train"
    title, head, first, second = shell("metrics", "train", "--prefix", PREFIX).out.splitlines()
    assert (title, head.split()) == ("train", ["#", "TIME", "epoch", "loss", "note"])
    assert [first.split()[0], *first.split()[3:]] == ["0", "1", "0.123457", "warm-up"]
    assert [second.split()[0], *second.split()[3:]] == ["1", "2", "nan"]
    assert len({len(head), len(first)}) == 1
    assert shell("metrics", "--prefix", PREFIX).out.startswith("(unnamed)\n")
    assert shell.refused("metrics", "--prefix", "alice/cv/none", status=1)["code"] == "NO_MATCH"


def test_numbers_that_json_has_not_are_texts(shell: Shell, daemon: DaemonProcess) -> None:
    """jq and JavaScript read what is printed; Python's float() and JavaScript's Number() make numbers of them again."""
    with daemon.experiment("alice/cv/odd").run as exp:
        exp.params.set(clip=float("inf"), floor=float("-inf"), steps=[1.5, float("nan")], plain=0.1)
        exp.metrics.log(train={"loss": float("nan"), "best": float("-inf")})
    strict = {"parse_constant": pytest.fail}
    params = json.loads(shell("params", "--prefix", "alice/cv/odd", "--json").out, **strict)
    assert params == {"clip": "Infinity", "floor": "-Infinity", "steps": [1.5, "NaN"], "plain": 0.1}
    for words in ((), ("--follow",)):
        out = shell("metrics", "train", "--prefix", "alice/cv/odd", "--json", *words).out
        said = json.loads(out, **strict)
        (row,) = [said] if words else said
        assert (row["data"]["loss"], row["data"]["best"]) == ("NaN", "-Infinity")


def test_a_table_goes_on_where_a_row_names_its_values_in_another_order(shell: Shell, daemon: DaemonProcess) -> None:
    with daemon.experiment("bob/nlp/orders").run as exp:
        exp.metrics("train").log(epoch=1, loss=0.5)
        exp.metrics("train").log(loss=0.25, epoch=2)
    with_head, first, second = (line.split() for line in shell("metrics", "--prefix", exp.prefix).out.splitlines()[1:])
    assert (with_head[2:], first[3:], second[3:]) == (["epoch", "loss"], ["1", "0.5"], ["2", "0.25"])
    followed = shell("metrics", "train", "--prefix", exp.prefix, "--follow").out.splitlines()
    assert [line.split()[-2:] for line in followed[1:]] == [["epoch", "loss"], ["1", "0.5"], ["2", "0.25"]]


@pytest.mark.parametrize("as_json", [True, False])
def test_metrics_as_they_come(shell: Shell, daemon: DaemonProcess, as_json: bool) -> None:
    """Each row at once, until the run has ended."""
    prefix = f"alice/cv/follow-{as_json}"
    with daemon.experiment(prefix).run as exp:
        exp.metrics.log(train={"n": 0})
        words = ["metrics", "train", "--prefix", prefix, "--follow", *(["--json"] if as_json else [])]
        following = subprocess.Popen(
            [*RUN, *shell.where, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        out = following.stdout
        assert out is not None
        for number in range(3):
            if number:
                exp.metrics.log(train={"n": number}, other={"n": 9})
            if not as_json and not number:
                assert out.readline() == "train\n"
                assert out.readline().split() == ["#", "TIME", "n"]
            line = out.readline()
            if as_json:
                row = json.loads(line)
                assert (row["metric"], row["index"], row["data"]["n"]) == ("train", number, number)
            else:
                assert [line.split()[0], line.split()[-1]] == [str(number)] * 2
    rest, err = following.communicate(timeout=30)
    assert (rest, err, following.returncode) == ("", "", 0)


def test_a_prefix_with_fields(shell: Shell, daemon: DaemonProcess) -> None:
    """As in a script: what the environment gives both is the same experiment."""
    script = "from ml_dash import Experiment\nwith Experiment(socket={!r}).run as exp: exp.params.set(a=1)"
    prefix = {"ML_DASH_PREFIX": "{user}/cv/{now:%Y}", "LOGNAME": "ada"}
    subprocess.run([sys.executable, "-c", script.format(str(daemon.socket))], env=prefix, check=True)
    assert shell("params", **prefix).out == "a  1\n"
