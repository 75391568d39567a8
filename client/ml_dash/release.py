"""Which release of ML-Dash this is."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def release() -> str:
    """Its number; "unknown" where the library lies on Python's path and was not installed."""
    try:
        return version("ml-dash")
    except PackageNotFoundError:
        return "unknown"
