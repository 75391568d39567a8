"""What annotations of a dataclass say, as functions: to plain values that msgpack takes, and back, checked.

A field with a default may be left out. An unknown field, a missing one, a wrong type or a value past its bound raises
ProtocolError.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from ml_dash.errors import Code, ProtocolError

MAX_INT = 2**63 - 1


class Max(NamedTuple):
    """The largest length of text, bytes or a tuple in an annotation (text in characters)."""

    size: int


class Within(NamedTuple):
    """The least and the largest value of a whole number in an annotation; without it, 0 to MAX_INT."""

    least: int
    most: int


_AS_THEY_ARE = frozenset({int, str, bytes, bool, NoneType})
"""Most fields are one of these, and are not looked at further."""
_SIZED = frozenset({str, bytes})
Reader = Callable[[Any, str], Any]


def plain(value: Any) -> Any:
    """What msgpack takes. A field that has its default is left out: a hand-off's frames are half as long without."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    schema: Any = type(value)
    defaults = _defaults(schema)
    if defaults is None:
        return value
    given = {}
    for name, default in defaults:
        item = getattr(value, name)
        kind = type(item)
        if kind is not type(default) or item != default:
            given[name] = item if kind in _AS_THEY_ARE else plain(item)
    return given


@cache
def _defaults(kind: Any) -> tuple[tuple[str, Any], ...] | None:
    """A dataclass's fields and their defaults; None for another type."""
    return tuple((field.name, field.default) for field in fields(kind)) if is_dataclass(kind) else None


@cache
def reader(kind: Any) -> Reader:
    """A function that takes a plain value and its name and returns it, checked against an annotation."""
    if get_origin(kind) is Annotated:
        inner, limit = get_args(kind)
        if isinstance(limit, Within):
            return _integer_within(limit, f"{limit.least} to {limit.most}")
        return _scalar(inner, limit.size) if inner in _SIZED else _bounded(reader(inner), limit.size)
    if get_origin(kind) in (Union, UnionType):
        (inner,) = (option for option in get_args(kind) if option is not NoneType)
        return _optional(reader(inner))
    if get_origin(kind) is tuple:
        return _array(reader(get_args(kind)[0]))
    if is_dataclass(kind):
        return _map(kind)
    return _integer_within(Within(0, MAX_INT), "0 to 2**63 - 1") if kind is int else _scalar(kind)


def _scalar(kind: type, size: int | None = None) -> Reader:
    def read(value: Any, name: str) -> Any:
        found = type(value)
        if found is not kind:
            raise broken(f"{name} is {found.__name__}, not {kind.__name__}")
        if size is not None and len(value) > size:
            raise broken(f"{name} has a length of {len(value)}, at most {size}")
        return value

    return read


def _integer_within(limit: Within, allowed: str) -> Reader:
    least, most = limit

    def read(value: Any, name: str) -> Any:
        if type(value) is not int:
            raise broken(f"{name} is {type(value).__name__}, not int")
        if not least <= value <= most:
            raise broken(f"{name} is {value}, not in {allowed}")
        return value

    return read


def _bounded(read: Reader, size: int) -> Reader:
    def read_bounded(value: Any, name: str) -> Any:
        if isinstance(value, str | bytes | list) and len(value) > size:
            raise broken(f"{name} has a length of {len(value)}, at most {size}")
        return read(value, name)

    return read_bounded


def _optional(read: Reader) -> Reader:
    return lambda value, name: None if value is None else read(value, name)


def _array(read: Reader) -> Reader:
    def read_array(value: Any, name: str) -> Any:
        if not isinstance(value, list):
            raise broken(f"{name} is {type(value).__name__}, not an array")
        return tuple(read(item, name) for item in value)

    return read_array


def _map(kind: Any) -> Reader:
    hints = get_type_hints(kind, include_extras=True)
    readers = {field.name: reader(hints[field.name]) for field in fields(kind)}
    required = {field.name for field in fields(kind) if field.default is MISSING}

    def read_map(value: Any, name: str) -> Any:
        if not isinstance(value, dict):
            raise broken(f"{name} is {type(value).__name__}, not a map")
        if not value.keys() <= readers.keys():
            raise broken(f"{name} has fields that are not known, such as {min(value.keys() - readers.keys())[:64]!r}")
        if not required <= value.keys():
            raise broken(f"{name} lacks {sorted(required - value.keys())[:3]}")
        try:
            return kind(**{key: readers[key](item, key) for key, item in value.items()})
        except ProtocolError as bad:
            raise broken(f"{name}.{bad.message}") from None

    return read_map


def broken(what: str) -> ProtocolError:
    return ProtocolError(Code.PROTOCOL, what)
