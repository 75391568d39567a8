"""Named values as JSON text: parameters, and rows of metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_dash.errors import Code, NotJSONError, error
from ml_dash.serialize import json_bytes


def object_text(values: Mapping[str, Any], what: str) -> str:
    """A JSON object. Scalars of numpy and its kin become numbers; NaN and the infinities stay what they are.

    Raises TypeError, a NotJSONError, that names the value which JSON can't hold.
    """
    try:
        return json_bytes(values).decode()
    except NotJSONError:
        for name, value in values.items():
            _check(f"{what} {name!r}", value)
        raise


def _check(what: str, value: Any) -> None:
    try:
        json_bytes(value)
    except NotJSONError as bad:
        raise error(Code.INVALID_METADATA, f"{what}: {bad.message}") from None
