"""Objects into bytes. Each library is imported when it is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ml_dash import json_values
from ml_dash.errors import Code, error


def json_pieces(value: Any) -> Iterator[bytes]:
    """JSON text as UTF-8. NaN and the infinities are written as Python's json writes them. Raises TypeError."""
    return json_values.pieces(value, "content")


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
    """Metadata as the JSON text that travels, without NaN. Raises TypeError for what JSON can't hold, and names it."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise error(Code.INVALID_METADATA, f"metadata is {type(value).__name__}, not a dict")
    for key in value:
        if not isinstance(key, str):
            raise error(
                Code.INVALID_METADATA, f"the metadata key {key!r} is {type(key).__name__}, not str", "use str as keys"
            )
    return json_values.encode(dict(value), "metadata", allow_nan=False).decode()
