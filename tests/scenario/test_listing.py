"""Lists of more files than one cares to hold."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import catalog
import pytest
from rig import PREFIX

from conftest import LONG
from ml_dash import Experiment
from tests.harness import DaemonProcess, Folder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Experiment, int]]:
    """An experiment of many files, as after a day of saves, and how many those are."""
    count = 100_000 if LONG else 3000
    folder = tmp_path_factory.mktemp("many")
    daemon = DaemonProcess(folder / "daemon", Folder(folder / "store"))
    daemon.state.mkdir(mode=0o700)
    asyncio.run(catalog.fill(daemon.state, count))
    with daemon, daemon.experiment(PREFIX).run as exp:
        yield exp, count


def peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def key(record: dict[str, Any]) -> tuple[str, int]:
    return f"{record['path']}/{record['filename']}".strip("/"), -int(record["id"])


def test_each_holds_a_page_and_leaves_none_out(many: tuple[Experiment, int]) -> None:
    exp, count = many
    seen = 0

    def through() -> None:
        nonlocal seen
        before = ("", 0)
        for record in exp.files().each():
            assert before < key(record)
            before = key(record)
            seen += 1

    page_by_page = peak_bytes(through)
    assert seen == count
    assert page_by_page < peak_bytes(lambda: [*islice(exp.files().each(), 3000)]) / 2


def test_what_lists_find_among_many(many: tuple[Experiment, int]) -> None:
    exp, count = many
    assert len(exp.files().list("**/*.json")) == catalog.JSON_FILES
    paths = {catalog.path_of(number, count) for number in range(1, count + 1)}
    configs = [path for path in paths if path.startswith("configs/")]
    assert [key(each)[0] for each in exp.files("configs").list("*.json")] == sorted(configs)
    newest = exp.files("models").list("*.pt", latest=True)
    assert [key(each)[0] for each in newest] == sorted(path for path in paths if path.startswith("models/"))
    for each in newest:
        versions = exp.files(key(each)[0]).list()
        assert each["id"] == max((one["id"] for one in versions), key=int)
