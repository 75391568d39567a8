"""What is thought of a source, of what fstat says and what the kernel has told."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from ml_dashd.core.model import Fingerprint
from ml_dashd.core.witness import Account, Verdict, judge

WAS = Fingerprint(device=1, inode=2, size_bytes=3, mtime_ns=4, ctime_ns=5)
RETIMED = replace(WAS, mtime_ns=9, ctime_ns=9)
CHMODDED = replace(WAS, ctime_ns=9)
QUIET = Account(written=False, opened=False, touched=False)
TOUCHED = replace(QUIET, touched=True)
ALL = [None, *(Account(*facts) for facts in product([False, True], repeat=4))]


@pytest.mark.parametrize("told", ALL)
def test_what_did_not_move_is_the_same(told: Account | None):
    assert judge(WAS, WAS, told) is Verdict.SAME


@pytest.mark.parametrize("told", ALL)
@pytest.mark.parametrize("field", ["device", "inode", "size_bytes"])
def test_another_file_or_size_is_another_content_whatever_is_told(field: str, told: Account | None):
    assert judge(WAS, replace(RETIMED, **{field: 9}), told) is Verdict.CHANGED


@pytest.mark.parametrize("told", ALL)
def test_a_new_mtime_is_harmless_only_where_it_was_set_and_nobody_had_the_file_open_to_write(told: Account | None):
    assert judge(WAS, RETIMED, told) is (Verdict.MOVED if told == TOUCHED else Verdict.CHANGED)


@pytest.mark.parametrize("told", ALL)
def test_a_new_ctime_alone_is_harmless_where_no_write_is_told_whose_mtime_was_put_back(told: Account | None):
    suspect = told is not None and (told.written or (told.sure and told.opened and told.touched))
    assert judge(WAS, CHMODDED, told) is (Verdict.CHANGED if suspect else Verdict.MOVED)
