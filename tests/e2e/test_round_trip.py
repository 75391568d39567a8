"""Files of every size go in and come back the same, on each store; they lie where the spec says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness import Bucket, DaemonProcess, assert_whole, file_sha256, free_tree, make_file
from tests.servers.localstack import LocalStack

MIB = 1 << 20
SIZES = {
    "0 bytes": 0,
    "1 byte": 1,
    "inline": 64 * 1024,
    "just not inline": 64 * 1024 + 1,
    "15.9 MiB": int(15.9 * MIB),
    "16 MiB": 16 * MIB,
    "16 MiB + 1": 16 * MIB + 1,
    "three parts": 40 * MIB + 3,
}


def test_every_size_uploaded_and_saved(daemon: DaemonProcess, tmp_path: Path) -> None:
    expected = {}
    with daemon.experiment(wait=True).run as exp:
        for number, (name, size) in enumerate(SIZES.items()):
            source = tmp_path / "source.bin"
            digest = make_file(source, size, seed=number)
            expected[f"uploaded/{name}.bin"] = expected[f"saved/{name}.bin"] = digest
            exp.files("uploaded").upload(source, to=f"{name}.bin")
            exp.files("saved").save_blob(source.read_bytes(), to=f"{name}.bin")
            source.unlink()  # the bytes are the daemon's
        exp.files.flush(timeout=120)
        assert_whole(daemon, exp, expected)
        for path, digest in expected.items():
            target = tmp_path / "back.bin"
            assert exp.files(path).download(to=target) == str(target)
            assert file_sha256(target) == digest


def test_objects_lie_where_the_spec_says(daemon: DaemonProcess) -> None:
    with daemon.experiment("alice/cv/deep/resnet").run as exp:
        deep = exp.files("models/checkpoints").save_text("x", to="best.pt").wait(60)
        flat = exp.files.save_text("x", to="top.txt").wait(60)
    store, root = daemon.store, daemon.store.key_prefix
    if store.endpoint is None:
        expected = [
            f"alice/cv/deep/resnet/files/models/checkpoints/{deep['id']}/best.pt",
            f"alice/cv/deep/resnet/files/{flat['id']}/top.txt",
        ]
    else:
        expected = [
            f"{root}files/alice/cv/deep/resnet/models/checkpoints/{deep['id']}/best.pt",
            f"{root}files/alice/cv/deep/resnet/{flat['id']}/top.txt",
        ]
    assert store.keys() == sorted(expected)


@pytest.mark.parametrize(
    "name",
    ["größe/数据/модель.pt", "a b+c%20&=#?.txt", "emoji-🙂.bin", "x" * 255, "e\u0301.txt"],
    ids=["scripts", "marks", "emoji", "255 bytes", "combining"],
)
def test_unicode_and_long_names(daemon: DaemonProcess, name: str, tmp_path: Path) -> None:
    with daemon.experiment().run as exp:
        exp.files.save_text("hello", to=name).wait(60)
        assert exp.files(name).download(to=tmp_path / "back") == str(tmp_path / "back")
        assert (tmp_path / "back").read_text() == "hello"
        assert len(daemon.store.keys()) == 1
        # What is typed composed or decomposed is one name.
        assert exp.files().list()[0]["filename"] in (name.rpartition("/")[2], "\u00e9.txt")


@pytest.mark.slow
def test_a_gibibyte_beside_three_others(daemon: DaemonProcess, tmp_path: Path, full_size: bool) -> None:
    """LocalStack takes half a minute of CPU for a gibibyte: in the small it has an eighth of it."""
    store = daemon.store
    slow = isinstance(store, Bucket) and isinstance(store.server, LocalStack)
    largest = 128 if slow and not full_size else 1024
    sizes = [1024 * MIB] * 4 if full_size else [largest * MIB, 100 * MIB, 48 * MIB, 17 * MIB]
    expected = {f"big/{n}.bin": make_file(tmp_path / "big" / f"{n}.bin", size, n) for n, size in enumerate(sizes)}
    with daemon.experiment().run as exp:
        for path in expected:
            exp.files.upload(tmp_path / path, to=path)
        exp.files.flush(timeout=600)
        assert_whole(daemon, exp, expected)
    free_tree(tmp_path / "big")
    free_tree(tmp_path / "store")
