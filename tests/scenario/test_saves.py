"""`exp.files`: what is saved, what is stored of it, what is said of it, and what an acknowledgement covers."""

from __future__ import annotations

import array
import hashlib
import json
import os
import sys
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ml_dash import Experiment, FileResult
from ml_dash.errors import Code
from tests.harness import DaemonProcess, eventually, file_sha256, make_file
from tests.scenario.conftest import Held
from tests.scenario.test_files import LARGE, PAGE, PIXELS, SAVERS, content_of, paths, png, refused

pytestmark = pytest.mark.slow


# ---- save


@pytest.mark.parametrize(
    ("content", "stored_as"),
    [
        (b"bytes", b"bytes"),
        (bytearray(b"array"), b"array"),
        (memoryview(b"view"), b"view"),
        (memoryview(b"a-b-c-")[::2], b"abc"),
        (b"", b""),
        ({"a": 1}, b'{"a": 1}'),
        ([1, "two", None], b'[1, "two", null]'),
        (OrderedDict(b=1, a=np.float32(0.5)), b'{"b": 1, "a": 0.5}'),
        (PIXELS, png()),
        (PIXELS / 255, png()),
        (Image.fromarray(PIXELS), png()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_save_by_type(exp: Experiment, tmp_path: Path, content: Any, stored_as: bytes) -> None:
    exp.files("m").save(content, to="a.png")
    assert content_of(exp, "m/a.png", tmp_path) == stored_as


def test_save_of_a_path(exp: Experiment, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"content")
    for given in (str(tmp_path / "a.bin"), tmp_path / "a.bin"):
        exp.files("m").save(given, tags=["x"])
        exp.files("m").save(given, to="b.bin")
    assert paths(exp.files().list()) == ["m/a.bin", "m/a.bin", "m/b.bin", "m/b.bin"]
    assert [each["tags"] for each in exp.files("m").list("a.bin")] == [["x"], ["x"]]
    assert content_of(exp, "m/b.bin", tmp_path) == b"content"


class Tensor:
    """Of torch's, as far as its class tells."""

    __module__ = "torch"
    ndim = 1


class Module(type("Module", (), {"__module__": "torch.nn.modules.module"})):  # type: ignore[misc]
    """A user's own model."""


@pytest.mark.parametrize(
    ("content", "to", "saver"),
    [
        (1.5, "a", "save_json"),
        (None, "a", "save_json"),
        (("a", 1), "a", "save_json"),
        (object(), "a", "save_pkl"),
        (Module(), "a.pt", "call save_torch()"),
        (Tensor(), "a.pt", "call save_torch()"),
        (Figure(), "a.png", "call save_fig()"),
        (np.float32(1), "a.json", "save_json"),
        (PIXELS, "a", "end it with one of .png"),
        (PIXELS, "a.npy", "to keep the numbers: save_npz() or save_pkl()"),
        (PIXELS, "a.mp4", "call save_video()"),
        (Image.fromarray(PIXELS), "a.pt", "end it with one of .png"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_save_of_another_type_names_the_saver(exp: Experiment, content: Any, to: str, saver: str) -> None:
    refused(lambda: exp.files.save(content, to=to), Code.UNSUPPORTED_TYPE, ValueError, type(content).__name__, saver)
    assert exp.files().list() == []


def test_save_of_tensors_by_name_names_the_saver(exp: Experiment) -> None:
    """A state dict is no JSON."""
    nested = {"model": {"weight": Tensor()}, "epoch": 3}
    circle: dict[str, Any] = {"models": (1, Module())}
    circle["self"] = circle
    late = [*range(300_000), Tensor()]
    for content in ({"weight": Tensor(), "bias": Tensor()}, [Tensor()], nested, {"model": Module()}, circle, late):
        call = lambda content=content: exp.files.save(content, to="a.pt")  # noqa: E731
        refused(call, Code.UNSUPPORTED_TYPE, ValueError, "tensors", "save_torch()")
    refused(lambda: exp.files.save([1, object()], to="a"), Code.INVALID_METADATA, TypeError, "content[1]")
    refused(lambda: exp.files.save(b"", to="a", metadata=Tensor()), Code.INVALID_METADATA, TypeError, "metadata")
    assert exp.files().list() == []


def test_save_of_text_that_is_no_path(exp: Experiment, tmp_path: Path) -> None:
    for text in ("yaml: content\n", "nul\0", "long " * 5000, str(tmp_path / "nowhere")):
        refused(lambda text=text: exp.files.save(text, to="a"), Code.FILE_NOT_FOUND, ValueError, "save_text()")
    refused(lambda: exp.files.save(tmp_path, to="a"), Code.NOT_A_FILE, ValueError, str(tmp_path))
    refused(lambda: exp.files.save({}), Code.INVALID_PATH, ValueError, "to=")
    assert exp.files().list() == []


MISSING = {
    "PIL.Image": ("Pillow", lambda files, _: files.save_image(PIXELS, to="a.png")),
    "numpy": ("numpy", lambda files, _: files.save_image(PIXELS, to="a.png")),
    "matplotlib.pyplot": ("matplotlib", lambda files, _: files.save_fig(to="a.png")),
    "av": ("PyAV", lambda files, frames: files.save_video(frames, to="a.mp4")),
}


@pytest.mark.parametrize("module", MISSING)
def test_a_library_that_is_missing(exp: Experiment, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """The error says what to install, before a frame is taken, and old scripts catch it as an ImportError."""
    name, call = MISSING[module]
    monkeypatch.setitem(sys.modules, module, None)
    frames = iter([PIXELS])
    refused(lambda: call(exp.files, frames), Code.MISSING_LIBRARY, ImportError, name, 'pip install "ml-dash[media]"')
    assert len([*frames]) == 1
    assert exp.files().list() == []


# ---- what is stored


def test_content_may_change_once_it_is_saved(exp: Experiment, tmp_path: Path) -> None:
    """The next save of the same array, too, is of its own moment."""
    for size in (1000, LARGE, 3 * LARGE):
        content = bytearray(size)
        for value in range(1, 6):
            content[:] = bytes([value]) * size
            exp.files.save_blob(content, to=f"{size}.bin")
            content[:] = bytes(size)
        for value, version in enumerate(reversed(exp.files().list(f"{size}.bin")), start=1):
            assert content_of(exp, "", tmp_path, file_id=version["id"]) == bytes([value]) * size
            assert version["checksum"] == hashlib.sha256(bytes([value]) * size).hexdigest()


@pytest.mark.parametrize(
    "content",
    [
        array.array("d", [1.5, 2.5]),
        np.arange(6),
        np.arange(6).reshape(2, 3).T,
        np.arange(20)[::3],
        np.zeros((0, 3)),
        np.asfortranarray(np.arange(30_000).reshape(100, 300)),
    ],
    ids=["array", "numpy", "transposed", "strided", "empty", "large, by columns"],
)
def test_blobs_of_whatever_has_bytes(exp: Experiment, tmp_path: Path, content: Any) -> None:
    """In the order of its elements, however they lie in memory."""
    exp.files.save_blob(content, to="a.bin")
    assert content_of(exp, "a.bin", tmp_path) == content.tobytes()


def test_text_in_its_encoding(exp: Experiment, tmp_path: Path) -> None:
    exp.files.save_text("größe\r\n", to="a.txt")
    assert content_of(exp, "a.txt", tmp_path) == "größe\r\n".encode()
    exp.files.save_text("größe", to="a.txt", encoding="latin-1")
    assert content_of(exp, "a.txt", tmp_path) == "größe".encode("latin-1")
    refused(lambda: exp.files.save_text("数", to="a.txt", encoding="ascii"), Code.INVALID_ARGUMENT, ValueError, "ascii")
    refused(lambda: exp.files.save_text(b"x", to="a.txt"), Code.UNSUPPORTED_TYPE, ValueError, "bytes")  # type: ignore[arg-type]
    assert len(exp.files().list()) == 2


def test_json_that_is_saved(exp: Experiment, tmp_path: Path) -> None:
    """NaN and the infinities as Python's json writes them: a run's results may well have them."""
    value = {"größe": [1, 2.5, None, True], "nan": float("nan"), "inf": -float("inf"), "f32": np.float32(0.5)}
    exp.files.save_json(value, to="a.json")
    text = content_of(exp, "a.json", tmp_path).decode()
    assert text == '{"größe": [1, 2.5, null, true], "nan": NaN, "inf": -Infinity, "f32": 0.5}'
    assert json.loads(text)["inf"] == -float("inf")


def itself() -> list[Any]:
    whole: list[Any] = []
    whole.append(whole)
    return whole


def nested(depth: int) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for _ in range(depth):
        whole = {"a": whole}
    return whole


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"hist": {"bins": np.zeros(10)}}, '["hist"]["bins"] is a numpy.ndarray of shape (10,) (call .tolist())'),
        ({"runs": [1, (2, {3})]}, '["runs"][1][1] is a set'),
        ({"a": {(1, 2): 3}}, '["a"] has the key (1, 2) (use str as keys)'),
        ({"a": {np.int64(3): 3}}, '["a"] has the key np.int64(3)'),
        ({"a": {1: 3, "1": 4}}, " has two keys that are '1' in JSON"),
        ({"a": b"x"}, '["a"] is a bytes'),
        ({"a": np.datetime64("2020-01-01")}, '["a"] is a numpy.datetime64 ('),
        ({"a": np.complex64(1)}, '["a"] is a numpy.complex64'),
        ({"a": np.ma.masked}, '["a"] is a numpy.ma.'),
        ({"a": "\ud800"}, '["a"] is text with half of a surrogate pair'),
        ({"a": 10**5000}, '["a"] is an int of too many digits'),
        ({"a": itself()}, '["a"][0] contains itself'),
        (nested(100_000), " is nested too deeply"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_json_can_not_hold(exp: Experiment, value: Any, named: str) -> None:
    """It is named by where it lies; nothing is saved without it."""
    refused(lambda: exp.files.save_json(value, to="a"), Code.INVALID_METADATA, TypeError, f"content{named}")
    refused(
        lambda: exp.files.save_text("", to="a", metadata=value), Code.INVALID_METADATA, TypeError, f"metadata{named}"
    )
    assert exp.files().list() == []


def test_json_of_no_dict_is_named_too(exp: Experiment) -> None:
    for value, named in (
        (np.zeros((2, 3)), "content is a numpy.ndarray of shape (2, 3)"),
        ([{1}], "content[0] is a set"),
    ):
        refused(lambda value=value: exp.files.save_json(value, to="a"), Code.INVALID_METADATA, TypeError, named)


# ---- what is said of a file


@pytest.mark.parametrize("saver", SAVERS)
def test_what_is_said_of_a_file_comes_back(exp: Experiment, tmp_path: Path, saver: str) -> None:
    (tmp_path / "source").write_bytes(b"uploaded")
    said: dict[str, Any] = {
        "description": "Bestes Modell\n数据 🙂",
        "tags": ["checkpoint", "größte"],
        "bindrs": ["sweep-1"],
        "metadata": {"epoch": 50, "nested": {"list": [1, 2.5, None, True, "x"]}},
    }
    files = exp.files("m", **said)  # what the builder is given holds for each of its files
    save, _ = SAVERS[saver]
    result = save(files, tmp_path, "a.bin")
    assert {name: result[name] for name in said} == said
    result.wait(30)
    (listed,) = exp.files().list()
    assert {name: listed[name] for name in said} == said


def test_the_calls_words_go_before_the_builders(exp: Experiment) -> None:
    files = exp.files("m", description="all", tags=["all"], bindrs=["all"], metadata={"all": 1})
    assert files.save_text("x", to="a", tags=["one"])["tags"] == ["one"]
    bare = files.save_text("x", to="a", description="", tags=[], bindrs=[], metadata={})
    assert (bare["description"], bare["tags"], bare["bindrs"], bare["metadata"]) == ("", [], [], {})
    plain = exp.files("m", description=None, tags=None, bindrs=None, metadata=None).save_text("x", to="a", tags=None)
    assert (plain["description"], plain["tags"], plain["bindrs"], plain["metadata"]) == (None, [], [], None)


def test_tags_of_a_generator_are_tags(exp: Experiment, tmp_path: Path) -> None:
    """They are taken once: none is lost by a look at them."""
    for tag in ("best", "last"):
        exp.files.save_text(tag, to="a", tags=(each for each in (tag, "all"))).wait(30)  # type: ignore[arg-type]
    assert [file["tags"] for file in exp.files().list()] == [["last", "all"], ["best", "all"]]
    assert [file["tags"] for file in exp.files().list(tags=iter(["best"]))] == [["best", "all"]]  # type: ignore[arg-type]
    assert exp.files().prune(keep_last=1, keep_tags=iter(["best"])) == []  # type: ignore[arg-type]
    for name in ("b", "c"):
        (tmp_path / name).write_text(name)
    many = exp.files.upload_many([tmp_path / "b", tmp_path / "c"], tags=iter(["raw"]))
    assert [file["tags"] for file in many] == [["raw"], ["raw"]]


def test_numpy_scalars_in_metadata_are_numbers(exp: Experiment) -> None:
    metadata = {
        "float32": np.float32(0.5), "float64": np.float64(0.1), "int64": np.int64(7), "bool": np.bool_(True),
        "0-d": np.array(3), "text": np.str_("x"), "list": [np.float16(0.25)],
    }  # fmt: skip
    exp.files.save_text("x", to="a", metadata=metadata)
    assert exp.files().list()[0]["metadata"] == {
        "float32": 0.5, "float64": 0.1, "int64": 7, "bool": True, "0-d": 3, "text": "x", "list": [0.25],
    }  # fmt: skip


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan")], ids=repr)
def test_metadata_takes_no_nan(exp: Experiment, value: float) -> None:
    """JSON has none, and whoever reads the catalog may not know Python's."""
    call = partial(exp.files.save_text, "x", to="a", metadata={"losses": [0.5, value]})
    refused(call, Code.INVALID_METADATA, TypeError, f'metadata["losses"][1] is {value}')
    assert exp.files().list() == []


@pytest.mark.parametrize("saver", SAVERS)
def test_an_unknown_keyword_is_a_type_error(exp: Experiment, tmp_path: Path, saver: str) -> None:
    calls: dict[str, Callable[..., Any]] = {
        "upload": partial(exp.files.upload, tmp_path / "a"),
        "save_json": partial(exp.files.save_json, {}),
        "save_text": partial(exp.files.save_text, ""),
        "save_blob": partial(exp.files.save_blob, b""),
        "save_image": partial(exp.files.save_image, PIXELS),
        "save_fig": partial(exp.files.save_fig, PAGE),
        "save_video": partial(exp.files.save_video, PIXELS[None]),
        "save a path": partial(exp.files.save, tmp_path / "a"),
        "save bytes": partial(exp.files.save, b""),
        "save a dict": partial(exp.files.save, {}),
        "save pixels": partial(exp.files.save, PIXELS),
    }
    suffix = {"save_image": ".png", "save_fig": ".html", "save_video": ".mp4", "save pixels": ".png"}.get(saver, "")
    (tmp_path / "a").touch()
    with pytest.raises(TypeError, match="descripton"):
        calls[saver](to=f"a{suffix}", descripton="typo")
    with pytest.raises(TypeError, match="descripton"):
        exp.files("m", descripton="typo")  # type: ignore[call-arg]
    assert exp.files().list() == []


# ---- pins and acknowledgements


def test_a_snapshot_may_be_overwritten(held: Held, tmp_path: Path) -> None:
    """At once, and in place."""
    for size in (1000, LARGE):
        source = tmp_path / f"{size}.bin"
        digest = make_file(source, size)
        result = held.exp.files.upload(source, snapshot="copy")
        make_file(source, size, seed=1)
        assert file_sha256(Path(held.exp.files(source.name).download(to=tmp_path / "back"))) == digest
        assert result["checksum"] == digest
    assert result["pin"] == "copy"
    held.let_go()
    held.exp.files.flush(30)
    assert file_sha256(Path(held.exp.files(f"{LARGE}.bin").download(to=tmp_path / "back"))) == digest


def test_durability(held: Held, service: DaemonProcess, tmp_path: Path) -> None:
    """Said in the result: what an acknowledgement covers is never left to be guessed."""
    make_file(tmp_path / "a.bin", LARGE)
    files = held.exp.files
    calls: list[Callable[..., FileResult]] = [
        partial(files.upload, tmp_path / "a.bin"),
        partial(files.save_blob, bytes(LARGE), to="b.bin"),
        partial(files.save, bytes(LARGE), to="b.bin"),
        partial(files("m").save_text, "x" * LARGE, to="c.txt"),
    ]
    for call in calls:
        assert call()["ack"] == "memory"
        assert call(durability="memory")["ack"] == "memory"
        assert call(durability="disk")["ack"] == "disk"
    with service.experiment(held.exp.prefix, durability="disk").run as strict:
        assert strict.files.upload(tmp_path / "a.bin")["ack"] == "disk"
        assert strict.files("m").save_blob(bytes(LARGE), to="b.bin")["ack"] == "disk"
        assert strict.files("m").save_blob(bytes(LARGE), to="b.bin", durability="memory")["ack"] == "memory"
    assert files.save_text("small", to="d.txt")["ack"] == "disk"
    result = files.save_blob(bytes(LARGE), to="e.bin")
    eventually(lambda: result.refresh()["ack"] == "disk")  # the write-back is started at once
    assert result.state != "DONE"


@pytest.mark.parametrize("size", [10, LARGE])
def test_a_durability_that_there_is_not(exp: Experiment, tmp_path: Path, size: int) -> None:
    """Whatever the size: nobody finds out with the first large file."""
    make_file(tmp_path / "a.bin", size)
    for call in (partial(exp.files.upload, tmp_path / "a.bin"), partial(exp.files.save_blob, bytes(size), to="b.bin")):
        refused(partial(call, durability="rock"), Code.INVALID_ARGUMENT, ValueError, "durability", "rock")
    refused(lambda: exp.files.upload(tmp_path / "a.bin", snapshot="photo"), Code.INVALID_ARGUMENT, ValueError, "photo")
    assert exp.files().list() == []


@pytest.mark.parametrize("size", [10, LARGE, 20 << 20], ids=["inline", "one request", "parts"])
def test_a_source_may_be_unlinked_at_once(exp: Experiment, tmp_path: Path, size: int) -> None:
    results = []
    digests = []
    for seed in range(5):
        digests.append(make_file(tmp_path / "a.bin", size, seed))
        results.append(exp.files.upload(tmp_path / "a.bin"))
        (tmp_path / "a.bin").unlink()
    exp.files.flush(60)
    assert [result["checksum"] for result in results] == digests
    assert file_sha256(Path(exp.files("a.bin").download(to=tmp_path / "back"))) == digests[-1]


@pytest.mark.parametrize("size", [10, LARGE, 20 << 20], ids=["inline", "one request", "parts"])
def test_a_users_file_is_left_alone(exp: Experiment, tmp_path: Path, size: int) -> None:
    """Under the folder for temporary files too."""
    source = tmp_path / "a.bin"
    digest = make_file(source, size)
    source.chmod(0o604)
    os.utime(source, ns=(1_000_000_000, 2_000_000_000))
    before = source.stat()
    exp.files.upload(source).wait(60)
    eventually(lambda: source.stat().st_nlink == before.st_nlink)  # its link in the spool goes once it is listed
    after = source.stat()
    for name in ("st_ino", "st_mode", "st_uid", "st_size", "st_mtime_ns"):
        assert getattr(after, name) == getattr(before, name)
    assert file_sha256(source) == digest


def test_saves_go_on_while_the_store_is_away(held: Held) -> None:
    """Training does not end because of it: what is bounded is the disk, not the number of checkpoints."""
    made = [held.exp.files.save_blob(bytes([number]) * LARGE, to="a.bin") for number in range(40)]
    assert {each["state"] for each in held.exp.files().list()} <= {"QUEUED", "SENDING"}
    held.let_go()
    held.exp.files.flush(60)
    assert [each["checksum"] for each in made] == [
        hashlib.sha256(bytes([number]) * LARGE).hexdigest() for number in range(40)
    ]
