"""What an experiment tells of itself: its run, parameters and metrics, on a folder and on S3."""

from __future__ import annotations

import getpass
import json
import math
import os
import pickle
import re
import shutil
import signal
import socket
import tempfile
import textwrap
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_dash import Experiment, MLDashError, ml_dash_experiment
from ml_dash import messages as m
from ml_dash.errors import Code
from ml_dash.params import details_of
from tests.doubles.s3_double import S3Double
from tests.doubles.users import User
from tests.harness import Bucket, DaemonProcess, Folder, eventually
from tests.scenario.embedded import run_trainer, trainer
from tests.scenario.test_http import Silent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["folder", "s3"])
def daemon(
    request: pytest.FixtureRequest, s3_double: S3Double, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp(request.param)
    store = Folder(folder / "store") if request.param == "folder" else Bucket(s3_double)
    with DaemonProcess(folder / "daemon", store) as process:
        yield process
        assert "Traceback" not in process.log()


@pytest.fixture
def experiment(daemon: DaemonProcess, request: pytest.FixtureRequest) -> Experiment:
    return daemon.experiment(prefix_of(request))


def prefix_of(request: pytest.FixtureRequest) -> str:
    return f"alice/cv/{re.sub('[^a-z0-9]+', '-', request.node.name)[:100]}"


def refused(code: Code, call: Callable[[], Any], *words: str) -> MLDashError:
    with pytest.raises(MLDashError) as caught:
        call()
    assert caught.value.code is code
    assert caught.value.hint
    assert [word for word in words if word not in str(caught.value)] == []
    return caught.value


def told(experiment: Experiment) -> m.ExperimentRecord:
    """What the daemon has of it."""
    (record,) = details_of(experiment._connection, experiment._place).experiments
    return record


# ---- the run


def test_the_record_of_a_run(daemon: DaemonProcess, request: pytest.FixtureRequest) -> None:
    experiment = daemon.experiment(
        prefix_of(request), readme="# größe", tags=["a", "b"], bindrs=["c"], metadata={"k": [1, None]}
    )
    refused(Code.NO_MATCH, lambda: told(experiment), experiment.prefix)
    with experiment.run:
        begun = told(experiment)
        assert begun.status == "RUNNING"
        assert (begun.host, begun.user, begun.ended_ms) == (socket.gethostname(), getpass.getuser(), None)
        assert (begun.readme, begun.tags, begun.bindrs) == ("# größe", ("a", "b"), ("c",))
        assert json.loads(str(begun.metadata)) == {"k": [1, None]}
    ended = told(experiment)
    assert ended.status == "COMPLETED"
    assert begun.created_ms <= begun.started_ms <= int(ended.ended_ms or 0) <= ended.updated_ms
    with daemon.experiment(experiment.prefix, tags=["new"]).run:
        again = told(experiment)
    assert (again.status, again.ended_ms, again.readme, again.tags) == ("RUNNING", None, "# größe", ("new",))
    assert again.created_ms == begun.created_ms
    assert again.started_ms > begun.started_ms


def test_how_a_run_ends_is_kept(experiment: Experiment) -> None:
    def raises(what: BaseException) -> None:
        with pytest.raises(type(what)), experiment.run:
            raise what

    raises(ValueError("the loss\nis nan"))
    assert (told(experiment).status, told(experiment).error) == ("FAILED", "ValueError: the loss\nis nan")
    with experiment.run:
        assert (told(experiment).status, told(experiment).error) == ("RUNNING", None)
    assert told(experiment).status == "COMPLETED"
    raises(SystemExit(3))
    assert told(experiment).status == "FAILED"
    raises(SystemExit(0))
    assert told(experiment).status == "COMPLETED"
    experiment.run.start()
    experiment.run.cancel()
    experiment.run.fail("too late")
    assert (told(experiment).status, told(experiment).error) == ("CANCELLED", None)
    experiment.run.start()
    experiment.run.fail("x" * 100_000)
    assert told(experiment).error == "x" * 16384
    experiment.run.start()
    experiment.run.fail(ValueError("the loss is nan"))  # as from an except clause
    assert (told(experiment).status, told(experiment).error) == ("FAILED", "ValueError: the loss is nan")
    experiment.run.start()
    with pytest.raises(ValueError, match="error is int"):
        experiment.run.fail(5)  # type: ignore[arg-type]
    assert experiment.run.state == "RUNNING"
    experiment.run.cancel()
    assert told(experiment).status == "CANCELLED"


def test_a_trainer_that_is_killed_leaves_its_run_open(experiment: Experiment, daemon: DaemonProcess) -> None:
    script = """
        import os, signal, sys
        from ml_dash import Experiment
        with Experiment(sys.argv[1], socket=sys.argv[2]).run as exp:
            exp.params.set(lr=1)
            exp.metrics.log(loss=0.5)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run_trainer(script, experiment.prefix, str(daemon.socket))[2] == -signal.SIGKILL
    assert told(experiment).status == "RUNNING"
    with experiment.run as exp:
        assert exp.params.get() == {"lr": 1}
        assert [row["loss"] for row in exp.metrics()] == [0.5]
    assert told(experiment).status == "COMPLETED"


def test_an_end_that_no_daemon_can_note(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Whoever leaves the block has done their work, and is told; whoever asks for the end is refused."""
    with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store")) as daemon:
        experiment = daemon.experiment(exit_wait=0.1)
        with experiment.run:
            daemon.kill()
        assert experiment.run.state == "COMPLETED"
        said = capfd.readouterr().err
        assert said.startswith("ml-dash: it is not noted that alice/cv/resnet is COMPLETED: no daemon answers")
        daemon.start()
        assert told(experiment).status == "RUNNING"
        experiment.run.start()
        daemon.kill()
        assert isinstance(refused(Code.DAEMON_UNAVAILABLE, experiment.run.complete), ConnectionError)
        daemon.start()
        assert (experiment.run.state, told(experiment).status) == ("RUNNING", "RUNNING")
        experiment.run.complete()  # once more
        assert (experiment.run.state, told(experiment).status) == ("COMPLETED", "COMPLETED")


def test_what_belongs_to_a_run_needs_one(experiment: Experiment) -> None:
    for look in (lambda: experiment.params, lambda: experiment.metrics, experiment.flush):
        assert isinstance(refused(Code.RUN_NOT_OPEN, look, experiment.prefix), RuntimeError)


def test_words_that_are_too_long_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    for words in ({"readme": "x" * 300_000}, {"tags": ["a"] * 129}, {"tags": "best"}, {"readme": 5}):
        refused(Code.INVALID_ARGUMENT, lambda words=words: Experiment("a/b/c", socket=tmp_path, **words))
    refused(Code.INVALID_METADATA, lambda: Experiment("a/b/c", socket=tmp_path, metadata={"a": object()}))
    with pytest.raises(TypeError, match="unexpected keyword"):
        Experiment("a/b/c", socket=tmp_path, readmee="x")  # type: ignore[call-arg]


# ---- the prefix


def test_fields_of_a_prefix_are_filled_in_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "ada")
    today = f"{datetime.now().astimezone():%Y-%m-%d}"
    experiment = Experiment("{user}/cv/{now:%Y-%m-%d}/{{x}}", socket=tmp_path)
    assert experiment.prefix in (f"ada/cv/{today}/{{x}}", f"ada/cv/{datetime.now().astimezone():%Y-%m-%d}/{{x}}")
    assert re.fullmatch(r"ada/cv/\d{8}T\d{6}", Experiment("{user}/cv/{now}", socket=tmp_path).prefix)
    monkeypatch.setenv("ML_DASH_PREFIX", "{user}/{now:%Y}/x")
    assert Experiment(socket=tmp_path).prefix == f"ada/{datetime.now().astimezone():%Y}/x"


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("{usr}/b/c", "{usr}"), ("{user.x}/b/c", "{user.x}"), ("{}/b/c", "{}"), ("{0}/b/c", "{0}"),
        ("{user:>9}/b/c", "{user:>9}"), ("{now!r}/b/c", "{now!r}"), ("{user/b/c", "'{user/b/c'"),
        ("a}/b/c", "'a}/b/c'"),
    ],
)  # fmt: skip
def test_a_field_that_does_not_exist(tmp_path: Path, prefix: str, said: str) -> None:
    failure = refused(Code.INVALID_PREFIX, lambda: Experiment(prefix, socket=tmp_path), said)
    assert "{user}" in str(failure.hint) or "{{" in str(failure.hint)


def test_no_prefix_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ML_DASH_PREFIX", raising=False)
    monkeypatch.delenv("DASH_PREFIX", raising=False)
    refused(Code.INVALID_PREFIX, lambda: Experiment(socket=tmp_path), "ML_DASH_PREFIX", "namespace/project/experiment")


# ---- which daemon


def test_dash_url_means_a_service(daemon: DaemonProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old scripts name a server; whatever they name, the files go to the store of the service that runs here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    for url in ("https://api.dash.ml", True):
        failure = refused(
            Code.DAEMON_UNAVAILABLE,
            lambda url=url: Experiment("a/b/c", dash_url=url, dash_root=".dash"),
            "ml-dashd run",
        )
        assert isinstance(failure, ConnectionError)
    (tmp_path / "runtime" / "ml-dash").mkdir(parents=True)
    (tmp_path / "runtime" / "ml-dash" / "ml-dashd.sock").symlink_to(daemon.socket)
    with Experiment("alice/cv/url", dash_url="https://api.dash.ml", dash_root=".dash").run as exp:
        result = exp.files.save_text("x", to="a").wait(30)
    stored = daemon.store.keys()
    assert daemon.store.key_of(result) in stored
    assert not (tmp_path / ".dash").exists()


# ---- the decorator


def test_a_decorated_function_is_a_run(daemon: DaemonProcess, request: pytest.FixtureRequest) -> None:
    prefix = prefix_of(request)

    @ml_dash_experiment(prefix=prefix, socket=daemon.socket, tags=["decorated"])
    def train(lr: float, *, experiment: Experiment, fails: bool = False) -> float:
        """Trains."""
        experiment.params.set(lr=lr)
        assert experiment.run.state == "RUNNING"
        if fails:
            raise ValueError("no")
        return lr * 2

    assert (train.__name__, train.__doc__) == ("train", "Trains.")
    assert train(0.5) == 1.0
    look = daemon.experiment(prefix)
    assert (told(look).status, told(look).tags) == ("COMPLETED", ("decorated",))
    with pytest.raises(ValueError, match="no"):
        train(0.25, fails=True)
    assert (told(look).status, told(look).error) == ("FAILED", "ValueError: no")
    assert details_of(look._connection, look._place).params == '{"lr": 0.25}'


def test_a_decorator_without_its_parentheses() -> None:
    """Said where it is written, not where the function is called."""
    with pytest.raises(ValueError, match=r"write @ml_dash_experiment\(prefix="):
        ml_dash_experiment(lambda experiment: experiment)  # type: ignore[arg-type]


def test_a_decorated_coroutine_runs_inside_its_run(daemon: DaemonProcess, request: pytest.FixtureRequest) -> None:
    @ml_dash_experiment(prefix_of(request), socket=daemon.socket)
    async def train(*, experiment: Experiment) -> str:
        return str(experiment.run.state)

    with pytest.raises(StopIteration) as ended:
        train().send(None)
    assert ended.value.value == "RUNNING"
    assert told(daemon.experiment(prefix_of(request))).status == "COMPLETED"


# ---- parameters


def test_parameters_are_flattened_merged_and_read_back(experiment: Experiment, daemon: DaemonProcess) -> None:
    with experiment.run as exp:
        assert exp.params.get() == {}
        assert exp.params.set(model="resnet50", epochs=100) is exp.params
        exp.params.set({"opt": {"name": "adam", "betas": [0.9, 0.99], "more": {}}, 1: None}, lr=np.float32(0.5))
        exp.params.set(epochs=np.int64(7), opt={"name": "sgd"}).set()
        flat = {
            "1": None, "epochs": 7, "lr": 0.5, "model": "resnet50",
            "opt.betas": [0.9, 0.99], "opt.more": {}, "opt.name": "sgd",
        }  # fmt: skip
        assert exp.params.get() == flat
        nested = exp.params.get(flatten=False)
        assert nested["opt"] == {"betas": [0.9, 0.99], "more": {}, "name": "sgd"}
        assert nested["epochs"] == 7
    with daemon.experiment(experiment.prefix).run as again:
        assert again.params.get() == flat


def test_a_value_and_a_group_of_one_name(experiment: Experiment) -> None:
    with experiment.run as exp:
        exp.params.set(opt={"name": "adam", "lr": 1})
        exp.params.set(opt="sgd")
        assert exp.params.get() == {"opt": "sgd"}
        exp.params.set(**{"opt.name": "adam"})
        assert exp.params.get(flatten=False) == {"opt": {"name": "adam"}}
        refused(Code.INVALID_ARGUMENT, lambda: exp.params.set({"a": 1, "a.b": 2}), "'a' and 'a.b'")
        refused(Code.INVALID_ARGUMENT, lambda: exp.params.set({"a": {"b": 1}, "a.b": 2}), "'a.b'")
        assert exp.params.get() == {"opt.name": "adam"}


def test_parameters_that_json_can_not_hold_are_named(experiment: Experiment) -> None:
    with experiment.run as exp:
        exp.params.set(lr=1)
        failure = refused(Code.INVALID_METADATA, lambda: exp.params.set(lr=2, opt={"model": object()}), "'opt.model'")
        refused(
            Code.INVALID_METADATA, lambda: exp.params.set(opt={"p": np.zeros(3)}),
            "the parameter 'opt.p' is a numpy.ndarray of shape (3,)", "call .tolist()",
        )  # fmt: skip
        refused(Code.INVALID_METADATA, lambda: exp.params.set(Namespace(lr=1)), "Namespace", "vars(")
        assert isinstance(failure, TypeError)
        refused(Code.INVALID_METADATA, lambda: exp.params.set({("a",): 1}), "('a',)")
        refused(Code.INVALID_ARGUMENT, lambda: exp.params.set({"": 1}))
        refused(Code.INVALID_ARGUMENT, lambda: exp.params.set(table="x" * 300_000))
        for number in range(5):
            exp.params.set({f"t{number}": "x" * 200_000})
        refused(Code.INVALID_ARGUMENT, lambda: exp.params.set(t5="x" * 200_000), "save_json")
        assert len(exp.params.get()) == 6


# ---- metrics


def test_rows_go_where_scripts_expect_them(experiment: Experiment) -> None:
    with experiment.run as exp:
        assert exp.metrics.log(epoch=1, train={"loss": 0.5, "acc": np.float32(0.25)}, eval={"epoch": 7}) is exp.metrics
        exp.metrics.log(train={"loss": 0.4}).log().flush()
        exp.metrics("train").log(loss=math.nan, parts={"a": 1}).flush()
        exp.metrics("eval/small").log(loss=math.inf, _ts=5)
        exp.metrics.log(_flush=True, step=3)
        rows = {name: [*exp.metrics(name)] for name in exp.metrics.names()}
        assert all(isinstance(row.pop("_ts"), float | int) for some in rows.values() for row in some)
        assert math.isnan(rows["train"][2].pop("loss"))
        assert rows == {
            "": [{"epoch": 1}, {"step": 3}],
            "eval": [{"epoch": 7}],
            "eval/small": [{"loss": math.inf}],
            "train": [{"epoch": 1, "loss": 0.5, "acc": 0.25}, {"loss": 0.4}, {"parts": {"a": 1}}],
        }
        assert [*exp.metrics("None")] == [*exp.metrics(None)] == [*exp.metrics()]
        assert exp.metrics("eval/small").read()["data"][0]["data"]["_ts"] == 5


def test_rows_are_read_in_pieces(experiment: Experiment) -> None:
    with experiment.run as exp:
        for number in range(1100):
            exp.metrics("train").log(n=number)
        whole = exp.metrics("train").read(limit=5000)
        assert [row["data"]["n"] for row in whole["data"]] == [row["index"] for row in whole["data"]] == [*range(1100)]
        assert whole["data"][0]["createdAt"].endswith("Z")
        assert whole | {"data": 0} == {"data": 0, "startIndex": 0, "endIndex": 1099, "total": 1100, "hasMore": False}
        some = exp.metrics("train").read(start_index=1000, limit=3)
        assert [row["index"] for row in some["data"]] == [1000, 1001, 1002]
        assert some | {"data": 0} == {"data": 0, "startIndex": 1000, "endIndex": 1002, "total": 1100, "hasMore": True}
        assert exp.metrics("train").read(limit=0)["data"] == []
        assert exp.metrics("none").read() == {
            "data": [], "startIndex": 0, "endIndex": -1, "total": 0, "hasMore": False,
        }  # fmt: skip
        refused(Code.INVALID_ARGUMENT, lambda: exp.metrics("train").read(start_index=-1))
        refused(Code.INVALID_ARGUMENT, lambda: exp.metrics("train").read("loss"))
        assert [row["n"] for row in exp.metrics("train")] == [*range(1100)]


def test_rows_that_can_not_be_kept_are_refused_whole(experiment: Experiment) -> None:
    with experiment.run as exp:
        for code, named, words in (
            (Code.INVALID_METADATA, {"train": {"loss": 1, "model": object()}}, ["'train'", "'model'"]),
            (Code.INVALID_PATH, {"../x": {"loss": 1}}, ["../x"]),
            (Code.INVALID_PATH, {"a/data.jsonl": {"loss": 1}}, ["data.jsonl"]),
            (Code.INVALID_PATH, {"x" * 1025: {"loss": 1}}, []),
            (Code.INVALID_ARGUMENT, {"train": {"text": "x" * 70_000}}, ["'train'"]),
            (Code.INVALID_ARGUMENT, {"None": {"a": 1}, "loss": 1}, ["unnamed metric"]),
            (Code.INVALID_ARGUMENT, {"gr\u00f6\u00dfe": {"a": 1}, "gro\u0308\u00dfe": {"a": 2}}, ["größe"]),
            (Code.INVALID_ARGUMENT, {f"m{n}": {"a": 1} for n in range(257)}, []),
            (Code.INVALID_ARGUMENT, {f"m{n}": {"a": "x" * 60_000} for n in range(20)}, []),
        ):
            refused(code, lambda named=named: exp.metrics.log(good={"a": 1}, **named), *words)
        refused(
            Code.INVALID_METADATA, lambda: exp.metrics("train").log(hist=np.zeros(3)),
            "metric 'train', the value 'hist' is a numpy.ndarray of shape (3,)", "call .tolist()",
        )  # fmt: skip
        assert exp.metrics.names() == []
        exp.metrics.log(**{f"m{n}": {"a": "x" * 30_000} for n in range(20)})
        assert len(exp.metrics.names()) == 20


LOGGING = """
    import sys
    from ml_dash import Experiment
    with Experiment(sys.argv[1], socket=sys.argv[2]).run as exp:
        for number in range(int(sys.argv[4])):
            exp.metrics.log(train={"who": sys.argv[3], "n": number})
            if number == 10:
                print("logging", flush=True)
"""


def test_processes_log_into_one_metric(experiment: Experiment, daemon: DaemonProcess) -> None:
    """Read meanwhile; every row is there once, in order for each of them."""
    count = 300
    processes = [trainer(LOGGING, experiment.prefix, str(daemon.socket), who, str(count)) for who in ("a", "b")]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "logging\n"
    with experiment.run as exp:
        meanwhile = [*exp.metrics("train")]
        assert len(meanwhile) >= 20
        ends = [process.communicate(timeout=60) for process in processes]
        assert [(err, process.returncode) for (_, err), process in zip(ends, processes, strict=True)] == [("", 0)] * 2
        rows = [*exp.metrics("train")]
        assert rows[: len(meanwhile)] == meanwhile
        assert {who: [row["n"] for row in rows if row["who"] == who] for who in ("a", "b")} == {
            "a": [*range(count)], "b": [*range(count)],
        }  # fmt: skip


def test_threads_and_forks_log_into_one_metric(experiment: Experiment, daemon: DaemonProcess) -> None:
    script = """
        import os, sys, threading, warnings
        from ml_dash import Experiment
        warnings.filterwarnings("ignore", ".* is multi-threaded, use of fork", DeprecationWarning)

        def log(exp, who):
            for number in range(50):
                exp.metrics("train").log(who=who, n=number)

        with Experiment(sys.argv[1], socket=sys.argv[2]).run as exp:
            threads = [threading.Thread(target=log, args=(exp, f"thread-{n}")) for n in range(2)]
            for thread in threads:
                thread.start()
            children = []
            for number in range(2):
                child = os.fork()
                if child == 0:
                    log(exp, f"child-{number}")
                    os._exit(0)
                children.append(child)
            log(exp, "parent")
            for thread in threads:
                thread.join()
            print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
    """
    assert run_trainer(textwrap.dedent(script), experiment.prefix, str(daemon.socket)) == ("[0, 0]\n", "", 0)
    with experiment.run as exp:
        rows = [*exp.metrics("train")]
    for who in ("parent", "child-0", "child-1", "thread-0", "thread-1"):
        assert [row["n"] for row in rows if row["who"] == who] == [*range(50)], who
    assert len(rows) == 250


def test_a_pickled_experiment_logs_as_a_writer_of_its_own(experiment: Experiment) -> None:
    with experiment.run as exp:
        exp.metrics("train").log(n=0)
        again = pickle.loads(pickle.dumps(exp))  # noqa: S301 our own
        again.metrics("train").log(n=1)
        exp.metrics("train").log(n=2)
        assert [row["n"] for row in exp.metrics("train")] == [0, 1, 2]


def test_flush_brings_rows_and_files_home(experiment: Experiment, daemon: DaemonProcess) -> None:
    with experiment.run as exp:
        result = exp.files.save_text("x", to="a")
        exp.metrics.log(loss=1)
        exp.flush(timeout=30)
        assert dict.get(result.refresh(), "state") == "DONE"


def test_rows_come_to_the_disk_while_the_daemon_drains(tmp_path: Path) -> None:
    """A drain may take hours, and rows are taken all the while."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        DaemonProcess(tmp_path / "daemon", Silent(listener), daemon_settings="drain_timeout = 20") as daemon,
    ):
        with daemon.experiment().run as exp:
            exp.files.save_text("x", to="a.txt")
            listener.settimeout(30)
            with listener.accept()[0]:
                assert daemon.process is not None
                daemon.process.terminate()
                eventually(lambda: '"stopping"' in daemon.log() or " stopping" in daemon.log())
                exp.metrics.log(loss=1)
                eventually(lambda: daemon.rows("SELECT count FROM syncs", "catalog-runs") > [(0,)])
                assert daemon.process.poll() is None
                exp.files("a.txt").delete()
        assert daemon.process.wait(60) == 0


# ---- who may read it


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users")
def test_each_user_has_their_own_and_reads_what_they_may() -> None:
    """As with files: what another user logs at the same prefix is theirs. The tree shows whoever was first."""
    folder = Path(tempfile.mkdtemp(prefix="ml-dash-runs-"))  # every user gets there: pytest's own are root's
    folder.chmod(0o755)
    settings = '[access]\nuids = [64001, 64002]\nsocket_mode = "0666"\n[access.read]\nalice = [64003]\n'
    place = m.Place(namespace="alice", project="cv", experiment="shared")
    daemon = DaemonProcess(folder / "daemon", Folder(folder / "store"), settings)
    with ExitStack() as ended:
        ended.callback(shutil.rmtree, folder)
        ended.enter_context(daemon)
        users = {uid: User(uid, daemon.socket) for uid in (64001, 64002, 64003)}
        for user in users.values():
            ended.callback(user.close)
        for uid in (64001, 64002):
            users[uid].expect(m.Done, m.OpenExperiment(request=1, place=place, readme=str(uid)))
            users[uid].expect(m.Done, m.SetParams(request=1, place=place, values=f'{{"uid": {uid}}}'))
            row = m.NewRow(metric="train", data=f'{{"uid": {uid}}}')
            users[uid].expect(m.Done, m.LogRows(request=1, place=place, writer=1, number=1, rows=(row,)))
        for uid, reads in ((64001, 64001), (64002, 64002), (64003, 64001)):
            about = users[uid].expect(
                m.Experiments, m.ListExperiments(request=1, prefix="alice/cv/shared", details=True, seen_rows=9)
            )
            assert [(run.owner_uid, run.readme) for run in about.experiments] == [(reads, str(reads))]
            assert about.params == f'{{"uid": {reads}}}'
            rows = users[uid].expect(m.Rows, m.ReadRows(request=1, place=place, metric="train"))
            assert ([row.data for row in rows.rows], rows.total) == ([f'{{"uid": {reads}}}'], 1)
        for uid, seen in ((64001, [64001]), (64002, [64002]), (64003, [64001, 64002])):
            page = users[uid].expect(m.Experiments, m.ListExperiments(request=1))
            assert [run.owner_uid for run in page.experiments] == seen
        shown = folder / "store/alice/cv/shared/experiment.json"
        assert json.loads(eventually(lambda: shown.is_file() and shown.read_text()))["readme"] == "64001"
