"""Objects into bytes. Each library is imported when it is used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ml_dash.errors import Code, NotJSONError, error


def json_bytes(value: Any) -> bytes:
    """JSON text as UTF-8. NaN and the infinities are written as Python's json writes them. Raises TypeError."""
    return _json(value, "this value")


def text_bytes(value: str, encoding: str = "utf-8") -> bytes:
    """Text in an encoding. Raises ValueError for what the encoding can't hold."""
    if not isinstance(value, str):
        raise error(Code.UNSUPPORTED_TYPE, f"save_text takes str, not {type(value).__name__}")
    try:
        return value.encode(encoding)
    except (UnicodeEncodeError, LookupError) as bad:
        raise error(Code.INVALID_ARGUMENT, f"the text does not fit {encoding}: {bad}", "use utf-8") from None


def blob_view(value: Any) -> memoryview:
    """The bytes of anything that has them, without a copy. Raises ValueError for anything else."""
    try:
        view = memoryview(value)
    except TypeError:
        raise error(Code.UNSUPPORTED_TYPE, f"save_blob takes bytes, not {type(value).__name__}") from None
    if not view.c_contiguous:
        view = memoryview(view.tobytes())
    return view.cast("B") if view.nbytes else memoryview(b"")


def metadata_text(value: Mapping[str, Any] | None) -> str | None:
    """Metadata as the JSON text that travels. Raises TypeError for what JSON can't hold, and names it."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise error(Code.INVALID_METADATA, f"metadata is {type(value).__name__}, not a dict")
    for key in value:
        if not isinstance(key, str):
            raise error(Code.INVALID_METADATA, f"the metadata key {key!r} is {type(key).__name__}, not str")
    return _json(dict(value), "the metadata", allow_nan=False).decode()


def _json(value: Any, what: str, *, allow_nan: bool = True) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=allow_nan, default=_refuse).encode()
    except NotJSONError:
        raise
    except (TypeError, ValueError, RecursionError) as bad:
        raise error(Code.INVALID_METADATA, f"{what} is not JSON: {bad}") from None


def _refuse(value: Any) -> Any:
    """Scalars of numpy and its kin are taken for what they are; anything else is named."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    kind = type(value)
    raise error(Code.INVALID_METADATA, f"a value of type {kind.__module__}.{kind.__qualname__} is not JSON")
