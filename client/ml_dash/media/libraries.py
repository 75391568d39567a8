"""Libraries that `import ml_dash` does not need."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ml_dash.errors import Code, error


def library(module: str, name: str) -> Any:
    """The module, imported now; `name` is what its users call it. Raises MISSING_LIBRARY, an ImportError."""
    try:
        return import_module(module)
    except ImportError as failure:
        raise error(Code.MISSING_LIBRARY, f"{name} is needed for this and can't be imported: {failure}") from failure
