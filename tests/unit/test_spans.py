"""Which ranges of paths a list reads, and what its cursor leaves of them."""

from __future__ import annotations

import pytest

from ml_dashd.core.model import Selection
from ml_dashd.core.spans import Span, spans


@pytest.mark.parametrize(
    ("asked", "read"),
    [
        ({}, [Span("")]),
        ({"cursor": ("b", 5)}, [Span("b", only=True, id=5), Span("b")]),
        ({"cursor": ("b", 5), "latest": True}, [Span("b")]),
        ({"prefix": "m"}, [Span("m", only=True), Span("m/", "m0")]),
        ({"prefix": "m", "pattern": "*.pt"}, [Span("m/", "m0")]),
        ({"prefix": "m", "pattern": ""}, [Span("m", only=True)]),
        ({"prefix": "m", "cursor": ("m", 5)}, [Span("m", only=True, id=5), Span("m/", "m0")]),
        ({"prefix": "m", "cursor": ("m", 5), "latest": True}, [Span("m/", "m0")]),
        ({"prefix": "m", "cursor": ("m/a", 5)}, [Span("m/a", only=True, id=5), Span("m/a", "m0")]),
        ({"prefix": "m", "cursor": ("m0", 5)}, []),
        ({"prefix": "m", "cursor": ("a", 5)}, [Span("m", only=True), Span("m/", "m0")]),
    ],
)
def test_spans(asked: dict, read: list[Span]) -> None:
    assert list(spans(Selection("a", "b", "c", **asked))) == read
