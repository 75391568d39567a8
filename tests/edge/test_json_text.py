"""JSON text in pieces is the text that Python's json writes whole, whatever it is of."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_dash import MLDashError, json_text, json_values

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
KEYS = st.text() | st.integers() | st.floats() | st.booleans() | st.none()
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=25) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner, max_size=25)
        | st.dictionaries(st.text(), inner).map(OrderedDict)
    ),
    max_leaves=60,
)  # fmt: skip
ENCODER = json.JSONEncoder(ensure_ascii=False)


@settings(max_examples=50, deadline=None)
@given(VALUES)
def test_the_pieces_are_the_text(value: Any) -> None:
    assert "".join(json_text.pieces(value, ENCODER)) == ENCODER.encode(value)


@pytest.mark.parametrize(
    "value",
    [
        {"lines": ["x" * 1000] * 20_000},
        [{"a": [1, 2, {"b": number}]} for number in range(100_000)],
        {str(number): number / 7 for number in range(200_000)},
        [[[*range(1000)]] * 17] * 17,
    ],
)
def test_large_content_comes_in_pieces_of_about_a_million(value: Any) -> None:
    text, pieces = ENCODER.encode(value), [*json_text.pieces(value, ENCODER)]
    assert "".join(pieces) == text
    assert max(map(len, pieces)) < 2 * json_text.PIECE_CHARACTERS
    assert len(text) / 2 < json_text.about(value) < 2 * len(text)


@pytest.mark.parametrize("depth", range(6))
def test_a_value_in_itself_is_refused_wherever_it_is(depth: int) -> None:
    inner: list[Any] = []
    inner.append([inner])
    value: Any = inner
    for _ in range(depth):
        value = {"a": [value]}
    with pytest.raises(MLDashError, match="contains itself"):
        b"".join(json_values.pieces(value, "content"))
