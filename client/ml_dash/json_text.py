"""JSON text some at a time, as Python's json would write it whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

PIECE_CHARACTERS = 1024 * 1024
FIRST_ITEMS = 16
"""Of a large container so many are written together at first, then as many as make about a piece."""
DEEPEST = 3
"""Containers in containers are taken apart down to here; what is below is written with what it is in."""
SAMPLES = (64, 8, 4, 2)
"""Items that are looked at to guess a container's size, by depth."""
FLOAT_CHARACTERS = 18
SOME_CHARACTERS = 12
"""Of what is not looked at."""


def pieces(value: Any, encoder: json.JSONEncoder, depth: int = 0) -> Iterator[str]:
    """What `encoder.encode` makes of it, in order; raises what that raises."""
    is_dict = type(value) is dict
    if depth == DEEPEST or not (is_dict or type(value) in (list, tuple)) or _is_plain(value):
        yield encoder.encode(value)
    elif is_dict:
        yield from _dict(value, encoder, depth)
    else:
        yield from _list(value, encoder, depth)


def _is_plain(value: dict[Any, Any] | list[Any] | tuple[Any, ...]) -> bool:
    """A few numbers or words: as quickly written at once."""
    inner = value.values() if isinstance(value, dict) else value
    return len(value) <= FIRST_ITEMS and not any(isinstance(one, dict | list | tuple) for one in inner)


def about(value: Any, depth: int = 0) -> int:
    """A guess at the characters of its text: that of a few items stands for all."""
    if isinstance(value, str):
        return len(value) + 2
    if isinstance(value, int):
        return value.bit_length() * 3 // 10 + 2
    if isinstance(value, float):
        return FLOAT_CHARACTERS
    if depth == len(SAMPLES) or not isinstance(value, dict | list | tuple) or not value:
        return SOME_CHARACTERS
    if isinstance(value, dict):
        some: list[Any] = [*islice(dict.items(value), SAMPLES[depth])]
        size = sum(about(key) + about(inner, depth + 1) + 4 for key, inner in some)
    else:
        some = [*value[:: max(1, len(value) // SAMPLES[depth])]]
        size = sum(about(inner, depth + 1) + 2 for inner in some)
    return size * len(value) // len(some)


def _list(value: list[Any] | tuple[Any, ...], encoder: json.JSONEncoder, depth: int) -> Iterator[str]:
    between, start, items = "[", 0, FIRST_ITEMS
    while start < len(value):
        if len(value) <= FIRST_ITEMS:
            yield between
            yield from pieces(value[start], encoder, depth + 1)
            start += 1
        else:
            text = encoder.encode(value[start : start + items])
            yield between + text[1:-1]
            start += items
            items = _more(items, len(text))
        between = ", "
    yield "]"


def _dict(value: dict[Any, Any], encoder: json.JSONEncoder, depth: int) -> Iterator[str]:
    between, items, left = "{", FIRST_ITEMS, iter([*value.items()])
    while some := dict(islice(left, 1 if len(value) <= FIRST_ITEMS else items)):
        if len(value) <= FIRST_ITEMS:
            ((key, inner),) = some.items()
            yield between + encoder.encode({key: None}).removeprefix("{").removesuffix("null}")
            yield from pieces(inner, encoder, depth + 1)
        else:
            text = encoder.encode(some)
            yield between + text[1:-1]
            items = _more(items, len(text))
        between = ", "
    yield "}"


def _more(items: int, characters: int) -> int:
    """How many items to write together next, of those of which that many had so many characters."""
    return max(1, min(4 * items, items * PIECE_CHARACTERS // characters))
