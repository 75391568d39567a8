"""Values into JSON: a scalar of numpy, torch or jax is its number; what JSON can't hold is refused by its place.

    metadata["hist"]["bins"] is a numpy.ndarray of shape (10,) (call .tolist()) [INVALID_METADATA]

Nothing is left out and nothing is turned into text on the way.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ml_dash import json_text
from ml_dash.errors import Code, MLDashError, error

PLAIN = (bool, int, float, str)
CONTAINERS = (dict, list, tuple)
LEAVES = frozenset({*PLAIN, type(None)})
REFUSALS = (TypeError, ValueError, RuntimeError)
"""What json raises for a value, and the libraries for a scalar that has none, such as a tensor without memory."""


def encode(value: Any, name: str, *, allow_nan: bool = True) -> bytes:
    """JSON text as UTF-8; `name` is what the caller knows the value by. Raises TypeError."""
    with _explained(value, name, allow_nan):
        return _encode(value, allow_nan)


def pieces(value: Any, name: str) -> Iterator[bytes]:
    """`encode`, some of it at a time; it may raise at any of them.

    The text of large content is never there as a whole: fresh memory for it takes longer than the text itself.
    """
    with _explained(value, name, allow_nan=True):
        for text in json_text.pieces(value, _encoder(allow_nan=True)):
            yield text.encode()


@contextmanager
def _explained(value: Any, name: str, allow_nan: bool) -> Iterator[None]:
    """What the encoder refuses, by its place; and keys that it would not tell apart."""
    try:
        yield
    except RecursionError:
        raise error(Code.INVALID_METADATA, f"{name} is nested too deeply") from None
    except REFUSALS:
        culprit, place = _culprit(value, name, allow_nan)
        raise _refusal(culprit, place, allow_nan) from None
    if (key := _merged_key(value)) is not None:
        raise error(Code.INVALID_METADATA, f"{name} has two keys that are {key!r} in JSON", "use str as keys")


def _encoder(*, allow_nan: bool) -> json.JSONEncoder:
    return json.JSONEncoder(ensure_ascii=False, allow_nan=allow_nan, default=_scalar)


def _encode(value: Any, allow_nan: bool) -> bytes:
    return _encoder(allow_nan=allow_nan).encode(value).encode()


def _scalar(value: Any) -> Any:
    """The number in a scalar of numpy and its kin; one that is masked has none."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item") and not getattr(value, "mask", False):
        plain = value.item()
        if isinstance(plain, PLAIN):
            return plain
    raise TypeError(type(value).__name__)


def _merged_key(value: Any) -> str | None:
    """The text that two keys of one dict, such as 1 and "1", have in common: whoever reads it would get one of them."""
    waiting = [value] if isinstance(value, CONTAINERS) else []
    while waiting:
        outer = waiting.pop()
        if isinstance(outer, dict) and not _all_text(outer):
            names = _encode(dict.fromkeys(outer), allow_nan=True)
            keys: list[str] = json.loads(names, object_pairs_hook=lambda pairs: [key for key, _ in pairs])
            if len(set(keys)) < len(keys):
                return next(key for key in keys if keys.count(key) > 1)
        inside = outer.values() if isinstance(outer, dict) else outer
        waiting += [inner for inner in inside if type(inner) not in LEAVES and isinstance(inner, CONTAINERS)]
    return None


def _all_text(keys: Iterable[Any]) -> bool:
    """Whether all are str; joining them asks that in C, and most dicts of large content are small."""
    try:
        "".join(keys)
    except TypeError:
        return False
    return True


def _culprit(value: Any, name: str, allow_nan: bool) -> tuple[Any, str]:
    """The innermost value that JSON refuses, and where it lies. In a value that contains itself: one of the circle."""
    seen: set[int] = set()
    while id(value) not in seen:
        seen.add(id(value))
        for place, inner in _inside(value, name):
            if not _fits(inner, allow_nan):
                value, name = inner, place
                break
        else:
            break
    return value, name


def _inside(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{name}[{json.dumps(key, ensure_ascii=False) if isinstance(key, str) else repr(key)}]", inner
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield f"{name}[{index}]", inner


def _fits(value: Any, allow_nan: bool) -> bool:
    try:
        _encode(value, allow_nan)
    except REFUSALS:
        return False
    return True


def _refusal(value: Any, name: str, allow_nan: bool) -> MLDashError:
    said, hint = _complaint(value, allow_nan)
    return error(Code.INVALID_METADATA, f"{name} {said}", hint)


def _complaint(value: Any, allow_nan: bool) -> tuple[str, str | None]:
    """What is wrong with it, and what to do; None is the table's hint."""
    if isinstance(value, CONTAINERS):
        keys = [key for key in value if not _fits({key: None}, allow_nan)] if isinstance(value, dict) else []
        return (f"has the key {keys[0]!r}", "use str as keys") if keys else ("contains itself", "")
    if isinstance(value, str):
        return "is text with half of a surrogate pair, which UTF-8 can't hold", ""
    if isinstance(value, int):
        return "is an int of too many digits", "pass it as text"
    if _fits(value, allow_nan=True):
        return f"is {value}", "JSON has no NaN and no infinity: pass None, or text"
    kind = type(value)
    typed = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    said = f"is {'an' if typed[0] in 'aeiou' else 'a'} {typed}"
    if getattr(value, "shape", ()) and hasattr(value, "tolist"):
        return f"{said} of shape {tuple(value.shape)}", "call .tolist()"
    return said, None
