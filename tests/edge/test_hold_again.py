"""What the last daemon held is held again beside all else; whatever becomes of it meanwhile, nothing for ever."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from ml_dashd.core.model import Job, Pin, PinKind
from ml_dashd.core.states import State
from ml_dashd.edge import cloning
from ml_dashd.edge.threads import Pool
from ml_dashd.flow.recover import hold_again
from ml_dashd.ports import JournalError
from tests.edge.pin_rig import Spool, content, open_descriptors, written


class Now:
    """A journal that knows what became of a file."""

    def __init__(self, answer: Callable[[], list[Job]]) -> None:
        self.answer = answer

    async def get(self, _: list[int]) -> list[Job]:
        return self.answer()


def is_away() -> list[Job]:
    raise JournalError("the disk is full")


BECAME: dict[str, tuple[Callable[[Job], list[Job]], bool]] = {
    "it waits": (lambda job: [job], True),
    "it is sent": (lambda job: [replace(job, state=State.SENDING)], True),
    "it has failed": (lambda job: [replace(job, state=State.FAILED)], True),
    "nobody can say": (lambda _: is_away(), True),
    "it is stored": (lambda job: [replace(job, state=State.DONE)], False),
    "it is deleted": (lambda job: [replace(job, state=State.CANCELLED)], False),
    "it is copied": (lambda job: [replace(job, pin=Pin(PinKind.COPY, "1.copy"))], False),
    "it is forgotten": (lambda _: [], False),
}


@pytest.mark.parametrize(("became", "held"), BECAME.values(), ids=BECAME.keys())
async def test_what_is_over_is_let_go(
    tmp_path: Path,
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
    became: Callable[[Job], list[Job]],
    held: bool,
) -> None:
    monkeypatch.setattr(cloning, "FICLONE", 0)
    path, threads = written(elsewhere / "best.pt"), Pool(1, "disk")
    spool = Spool(tmp_path / "spool")
    job = spool.take(path)
    linked = spool.take(written(tmp_path / "linked.pt"))
    assert (job.pin.kind, linked.pin.kind) == (PinKind.FD, PinKind.LINK)
    spool.pins.close()
    later = Spool(spool.folder)
    before = open_descriptors()
    journal = cast("Any", Now(lambda: became(job)))
    await hold_again([linked, job], journal, later.pins, threads)
    path.unlink()
    assert (open_descriptors() > before) is held
    if held:
        assert later.read(job) == content()
    assert later.read(linked) == content()
    later.pins.close()
    later.slots.close()
    threads.close()
