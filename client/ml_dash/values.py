"""Named values as JSON text: parameters, and rows of metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_dash import json_values
from ml_dash.errors import NotJSONError


def object_text(values: Mapping[str, Any], what: str) -> str:
    """A JSON object. Scalars of numpy and its kin become numbers; NaN and the infinities stay what they are.

    Raises TypeError, a NotJSONError, that names the value which JSON can't hold.
    """
    try:
        return json_values.encode(values, what).decode()
    except NotJSONError:
        for name, value in values.items():
            json_values.encode(value, f"{what} {name!r}")
        raise
