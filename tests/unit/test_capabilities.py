"""What follows from what a server was found to do."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ml_dashd.core.capabilities import RENEW_MS, Capabilities, Trial, dumps, loads
from ml_dashd.core.model import Algorithm

WORKS = {"put_refused": True, "put_stated": True, "part_refused": True, "listed": True, "whole_stated": True}
CRC64, CRC32, MD5 = (Trial(each, **WORKS) for each in (Algorithm.CRC64NVME, Algorithm.CRC32C, Algorithm.MD5))
FOUND = Capabilities(
    1000, (CRC64, CRC32, MD5), put_if_none_match=True, complete_if_none_match=False, completed_again=""
)


@pytest.mark.parametrize(
    ("trials", "chosen"),
    [
        ((CRC64, CRC32, MD5), Algorithm.CRC64NVME),
        ((MD5, CRC32), Algorithm.CRC32C),
        ((replace(CRC64, put_refused=False), MD5), Algorithm.MD5),
        ((replace(CRC64, part_refused=False),), Algorithm.NONE),
        ((replace(CRC64, put_stated=False), replace(MD5, whole_stated=None)), Algorithm.NONE),
        ((replace(CRC32, listed=False),), Algorithm.CRC32C),
        ((), Algorithm.NONE),
    ],
)
def test_the_best_that_is_verified_is_chosen(trials: tuple[Trial, ...], chosen: Algorithm) -> None:
    assert replace(FOUND, trials=trials).chosen() is chosen


@pytest.mark.parametrize(
    ("now_ms", "due"), [(1000, False), (999 + RENEW_MS, False), (1000 + RENEW_MS, True), (999, True)]
)
def test_it_holds_for_a_day_unless_the_clock_was_put_back(now_ms: int, due: bool) -> None:
    assert FOUND.is_due(now_ms) is due


def test_the_journal_gives_back_what_it_was_given() -> None:
    assert loads(dumps(FOUND)) == FOUND
    assert loads(dumps(replace(FOUND, trials=(), completed_again=None))) == replace(
        FOUND, trials=(), completed_again=None
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "{}",
        json.dumps(json.loads(dumps(FOUND)) | {"format": 2}),
        json.dumps(json.loads(dumps(FOUND)) | {"more": 1}),
        json.dumps(json.loads(dumps(FOUND)) | {"trials": [{"algorithm": "sha3"}]}),
        json.dumps(json.loads(dumps(FOUND)) | {"trials": 3}),
    ],
)
def test_what_another_release_has_kept_is_found_out_anew(text: str) -> None:
    assert loads(text) is None
