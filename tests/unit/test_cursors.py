"""Cursors: what was given out comes back as it was, anything else is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_dash.errors import Code, MLDashError
from ml_dashd.core import cursors

NUMBERS = st.integers(0, 2**63 - 1)


@given(st.text(st.characters(exclude_categories=["Cc"])), NUMBERS, st.dictionaries(NUMBERS, NUMBERS))
def test_fields_come_back_as_they_were(path: str, number: int, counted: dict[int, int]):
    cursor = cursors.write(cursors.text_of(counted), path, number)
    assert cursors.read(cursor, cursors.counts, str, cursors.number) == (counted, path, number)


@pytest.mark.parametrize(
    ("cursor", "kinds"),
    [
        ("", (cursors.number,)),
        ("x", (cursors.number,)),
        ("-1", (cursors.number,)),
        ("\u0661", (cursors.number,)),
        (str(2**63), (cursors.number,)),
        ("a/b", (str, cursors.number)),
        ("a\nb\n1", (str, cursors.number)),
        ("1:2,3", (cursors.counts,)),
        ("a:1", (cursors.counts,)),
    ],
)
def test_what_was_never_given_out_is_refused(cursor: str, kinds: tuple[object, ...]):
    with pytest.raises(MLDashError) as refused:
        cursors.read(cursor, *kinds)  # type: ignore[arg-type]
    assert refused.value.code is Code.INVALID_ARGUMENT
