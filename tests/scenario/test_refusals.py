"""What is refused is refused at once, in words that name it and say what to do, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ml_dash import Experiment, MLDashError
from ml_dash.errors import Code
from tests.harness import DaemonProcess, Folder

NOBODY = 65534


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp("refusals")
    with DaemonProcess(folder / "daemon", Folder(folder / "store")) as process:
        yield process


@pytest.fixture
def exp(daemon: DaemonProcess) -> Iterator[Experiment]:
    """An open run; whatever the test does, nothing may be left of it."""
    with daemon.experiment().run as run:
        yield run
        assert run.files().list() == []
    assert daemon.rows("SELECT path FROM files") == []
    assert daemon.store.keys() == []
    assert [name for name in daemon.spool() if "slots" not in name] == []


def refused(call: Any, code: Code, *named: str) -> MLDashError:
    with pytest.raises(MLDashError) as caught:
        call()
    failure = caught.value
    assert failure.code is code
    assert failure.hint
    for text in named:
        assert text in failure.message
    return failure


def test_a_file_that_is_not_there(exp: Experiment, tmp_path: Path) -> None:
    failure = refused(lambda: exp.files.upload(tmp_path / "nowhere.pt"), Code.FILE_NOT_FOUND, "nowhere.pt")
    assert isinstance(failure, ValueError)


def test_a_folder(exp: Experiment, tmp_path: Path) -> None:
    failure = refused(lambda: exp.files.upload(tmp_path), Code.NOT_A_FILE, str(tmp_path))
    assert isinstance(failure, ValueError)


def test_a_fifo(exp: Experiment, tmp_path: Path) -> None:
    """It would block whoever opens it until somebody writes."""
    os.mkfifo(tmp_path / "pipe")
    refused(lambda: exp.files.upload(tmp_path / "pipe"), Code.NOT_A_FILE, "pipe")


def test_a_device(exp: Experiment) -> None:
    refused(lambda: exp.files.upload("/dev/zero"), Code.NOT_A_FILE, "/dev/zero")


def test_an_unreadable_file(exp: Experiment, tmp_path: Path) -> None:
    """Root may read everything, so another uid tries."""
    secret = tmp_path / "secret.pt"
    secret.write_bytes(b"x")
    secret.chmod(0)
    program = (
        "import os, sys; from ml_dash.arguments import open_source; from ml_dash import MLDashError\n"
        f"os.setuid({NOBODY})\n"
        "try: open_source(sys.argv[1])\n"
        "except MLDashError as failure: print(failure.code, failure.message)"
    )
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.name.startswith("pytest-"):
            parent.chmod(0o755)
    said = subprocess.run([sys.executable, "-c", program, str(secret)], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == f"NOT_READABLE {secret} may not be read by uid {NOBODY}"


def test_a_file_over_100_gb(exp: Experiment, tmp_path: Path) -> None:
    with (tmp_path / "huge.bin").open("wb") as file:
        file.truncate(100_000_000_001)
    refused(lambda: exp.files.upload(tmp_path / "huge.bin"), Code.TOO_LARGE, "huge.bin", "100000000001")


@pytest.mark.parametrize(
    ("to", "named"),
    [
        ("/abs.bin", "absolute"),
        ("../up.bin", "'..'"),
        ("a/../b.bin", "'..'"),
        ("a//b.bin", "empty segment"),
        ("a/", "empty segment"),
        ("./a.bin", "'.'"),
        ("", "empty"),
        ("nul\0.bin", "U+0000"),
        ("line\nbreak.bin", "U+000A"),
        ("half\ud800.bin", "surrogate"),
        ("x" * 256, "256 bytes"),
        ("/".join(["y" * 200] * 6), "at most 1024"),
        (".ml-dash-tmp/x", "reserved"),
    ],
)  # fmt: skip
def test_bad_names(exp: Experiment, tmp_path: Path, to: str, named: str) -> None:
    source = tmp_path / "fine.bin"
    source.write_bytes(b"fine")
    for call in (lambda: exp.files.upload(source, to=to), lambda: exp.files.save_blob(b"x" * 100_000, to=to)):
        failure = refused(call, Code.INVALID_PATH, named)
        assert isinstance(failure, ValueError)
    assert source.read_bytes() == b"fine"


@pytest.mark.parametrize("prefix", ["../a/b", "a/../b", "/a/b/c", "a//b", "a/b/\0", "x" * 256 + "/b/c", "a/b", "a", ""])
def test_bad_prefixes(daemon: DaemonProcess, exp: Experiment, prefix: str) -> None:
    def start() -> None:
        daemon.experiment(prefix).run.start()

    refused(start, Code.INVALID_PREFIX)


@pytest.mark.parametrize("prefix", ["//abs", "../up", "/../up", "a/../b", "nul\0"])
def test_bad_folders(exp: Experiment, prefix: str) -> None:
    refused(lambda: exp.files(prefix).save_text("x", to="a.txt"), Code.INVALID_PATH)


@pytest.mark.parametrize(
    "metadata",
    [{"when": object()}, {"set": {1, 2}}, {"bytes": b"x"}, {"nan": float("nan")}, {1: "key"}, ["a", "list"]],
    ids=["object", "set", "bytes", "nan", "a key that is no text", "a list"],
)
def test_metadata_that_is_not_json(exp: Experiment, metadata: Any) -> None:
    failure = refused(lambda: exp.files.save_text("x", to="a.txt", metadata=metadata), Code.INVALID_METADATA)
    assert isinstance(failure, TypeError)


def test_metadata_that_is_too_large(exp: Experiment) -> None:
    """Refused here, by name; not by the daemon, which would have to hang up."""
    metadata = {"k": "v" * 300_000}
    refused(
        lambda: exp.files.save_text("x", to="a.txt", metadata=metadata), Code.INVALID_ARGUMENT, "metadata", "262144"
    )


@pytest.mark.parametrize(
    ("field", "value"), [("description", "d" * 17_000), ("tags", ["t" * 300]), ("tags", ["t"] * 200), ("bindrs", [""])]
)
def test_words_that_are_too_long(exp: Experiment, field: str, value: Any) -> None:
    refused(lambda: exp.files.save_text("x", to="a.txt", **{field: value}), Code.INVALID_ARGUMENT, field)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda files: files.upload(5), "fpath is int"),
        (lambda files: files.upload(None), "fpath is NoneType"),
        (lambda files: files.upload(b"model.pt"), "fpath is bytes"),
        (lambda files: files.upload_many("model.pt"), "upload_many() was given str"),
        (lambda files: files.upload_many(5), "upload_many() was given int"),
        (lambda files: files.upload_many([5]), "a path is int"),
        (lambda files: files.upload_many({"a": 5}), "a path is int"),
        (lambda files: files.save_text("x", to="a", tags=5), "tags is not a list"),
        (lambda files: files(file_id={"id": "5"}), "file_id is dict"),
        (lambda files: files().list(5), "pattern is int"),
        (lambda files: files("a").exists(5), "pattern is int"),
        (lambda files: files("a").read_text(5), "name is int"),
        (lambda files: files("a").download(5), "pattern is int"),
        (lambda files: files("a").download("*", to=5), "to is int"),
        (lambda files: files("a").delete(5), "pattern is int"),
        (lambda files: files("a").prune(5, keep_last=1), "pattern is int"),
        (lambda files: files.duplicate(1.5, "a"), "source is float"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_of_the_wrong_type_is_named(exp: Experiment, call: Callable[[Any], Any], named: str) -> None:
    refused(lambda: call(exp.files), Code.INVALID_ARGUMENT, named)


def test_refused_saves_use_up_no_slots(exp: Experiment) -> None:
    """A process has 16 slots; each refusal gives its own back."""
    for _ in range(20):
        refused(lambda: exp.files.save_blob(b"x" * 100_000, to="../a.bin"), Code.INVALID_PATH)


def test_a_source_whose_name_is_not_utf8(daemon: DaemonProcess, tmp_path: Path) -> None:
    source = os.fsencode(tmp_path) + b"/half\xff.bin"
    Path(os.fsdecode(source)).write_bytes(b"x" * 100_000)
    with daemon.experiment("alice/cv/bytes").run as exp:
        refused(lambda: exp.files.upload(os.fsdecode(source)), Code.INVALID_PATH, "surrogate")
        exp.files.upload(os.fsdecode(source), to="whole.bin").wait(30)
        exp.files("whole.bin").delete()


def test_the_connection_goes_on_after_a_refusal(daemon: DaemonProcess, tmp_path: Path) -> None:
    with daemon.experiment("alice/cv/afterwards").run as exp:
        refused(lambda: exp.files.save_text("x", to="../a.txt"), Code.INVALID_PATH)
        exp.files.save_text("x", to="a.txt").wait(30)
        exp.files("a.txt").delete()
