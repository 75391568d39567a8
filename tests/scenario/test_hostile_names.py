"""Downloads never leave their destination, whatever the catalog says, and never harm what is there when they fail.

The catalog is a file that other programs may write: its names are not trusted.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from functools import partial
from pathlib import Path

import pytest

from ml_dash import Experiment
from ml_dash.errors import Code
from tests.harness import DaemonProcess
from tests.scenario.test_files import refused

pytestmark = pytest.mark.slow

HOSTILE = {
    "up": ("..", "evil"),
    "up in the middle": ("a/../../..", "evil"),
    "absolute": ("/tmp", "evil"),
    "absolute, twice": ("//tmp", "evil"),
    "a name that goes up": ("a", ".."),
    "a name with folders": ("a", "../../evil"),
    "an absolute name": ("a", "/evil"),
    "no name": ("a", ""),
    "here": ("a/.", "evil"),
    "a NUL": ("a", "ev\0il"),
    "an empty folder": ("a//b", "evil"),
}
"""Prefix and filename, as another program has written them into the catalog."""


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_name_in_the_catalog_writes_nothing(
    service: DaemonProcess, exp: Experiment, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = exp.files("a").save_text("evil", to="good").wait(30)
    prefix, filename = HOSTILE[case]
    with contextlib.closing(sqlite3.connect(service.state / "catalog.sqlite")) as connection, connection:
        connection.execute(
            "UPDATE files SET prefix = ?, filename = ?, path = ? WHERE id = ?",
            (prefix, filename, f"{prefix}/{filename}", int(saved["id"])),
        )
    out = tmp_path / "deep" / "er" / "out"
    out.mkdir(parents=True)
    monkeypatch.chdir(out)
    for download in (
        lambda: exp.files().download("**", to=out),
        lambda: exp.files(file_id=saved["id"]).download(),
        lambda: exp.files(file_id=saved["id"]).download(to=out),
    ):
        with contextlib.suppress(ValueError):
            download()
    escaped = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(out)]
    assert escaped == []
    assert not Path("/tmp/evil").exists()
    assert not Path("/evil").exists()
    refused(exp.files(file_id=saved["id"]).download, Code.INVALID_PATH, ValueError, saved["id"])
    exp.files(file_id=saved["id"]).delete()


def test_a_destination_that_is_a_symlink_is_replaced_and_not_followed(exp: Experiment, tmp_path: Path) -> None:
    exp.files.save_text("new", to="a.txt")
    (tmp_path / "precious").write_text("precious")
    for target, leads_to in (("link", "precious"), ("dangling", "nowhere")):
        (tmp_path / target).symlink_to(leads_to)
        assert exp.files("a.txt").download(to=tmp_path / target) == str(tmp_path / target)
        assert not (tmp_path / target).is_symlink()
        assert (tmp_path / target).read_text() == "new"
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


def test_a_destination_that_is_a_folder_takes_the_file_into_it(exp: Experiment, tmp_path: Path) -> None:
    exp.files("m").save_text("new", to="a.txt")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    for to in ("folder", "link", "made/"):
        target = exp.files("m/a.txt").download(to=f"{tmp_path}/{to}")
        assert Path(target).read_text() == "new"
        assert Path(target).name == "a.txt"
    assert sorted(os.listdir(tmp_path / "folder")) == ["a.txt"]  # noqa: PTH208 names


def test_a_link_in_the_destination_that_leads_out_of_it(exp: Experiment, tmp_path: Path) -> None:
    """Nothing of a glob is written by way of it; one that stays inside is followed, as is the destination itself."""
    exp.files("m").save_text("new", to="a.txt")
    for folder in ("outside", "out/inside"):
        (tmp_path / folder).mkdir(parents=True)
    link = tmp_path / "out" / "m"
    link.symlink_to(tmp_path / "outside")
    download = partial(exp.files().download, "**", to=tmp_path / "out")
    refused(download, Code.INVALID_PATH, ValueError, str(link), "remove that link")
    assert list((tmp_path / "outside").iterdir()) == []
    link.unlink()
    link.symlink_to("inside")
    (tmp_path / "alias").symlink_to("out")
    assert exp.files().download("**", to=tmp_path / "alias") == [f"{tmp_path}/alias/m/a.txt"]
    assert (tmp_path / "out" / "inside" / "a.txt").read_text() == "new"


def test_a_folder_where_the_file_would_go_stays(exp: Experiment, tmp_path: Path) -> None:
    exp.files("m").save_text("new", to="a.txt")
    (tmp_path / "m" / "a.txt" / "precious").mkdir(parents=True)
    for download in (
        lambda: exp.files().download("**", to=tmp_path),
        lambda: exp.files("m/a.txt").download(to=tmp_path / "m"),
    ):
        with pytest.raises(IsADirectoryError):
            download()
    assert (tmp_path / "m" / "a.txt" / "precious").is_dir()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.txt", "m", "precious"]


def test_what_goes_wrong_leaves_what_was_there(service: DaemonProcess, exp: Experiment, tmp_path: Path) -> None:
    """Two files of a glob that have the same name in other folders stay two."""
    for folder in ("a", "b"):
        exp.files(folder).save_text(folder, to="0.png")
    assert exp.files().download("**/*.png", to=tmp_path) == [f"{tmp_path}/a/0.png", f"{tmp_path}/b/0.png"]
    assert [(tmp_path / folder / "0.png").read_text() for folder in ("a", "b")] == ["a", "b"]
    damaged = exp.files("a").save_text("right", to="0.png").wait(30)
    (service.store.root / service.store.key_of(damaged)).write_text("wrong")  # type: ignore[attr-defined]
    refused(lambda: exp.files().download("a/*", to=tmp_path), Code.CHECKSUM_MISMATCH, RuntimeError)
    assert (tmp_path / "a" / "0.png").read_text() == "a"
