"""The example of a page of docs/api runs as it stands there, and prints what it says.

tests/scenario/test_api_pages.py asks for it, and programs for a Python that has torch or a framework.
"""

from __future__ import annotations

import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

PAGES = Path(__file__).parents[2] / "docs" / "api"
EXAMPLE = re.compile(r"^## Example\n\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def example(page: str) -> str:
    """The code on the page."""
    (code,) = EXAMPLE.findall((PAGES / f"{page}.md").read_text())
    return str(code)


def check(page: str) -> None:
    """Runs the example in the working folder. Its experiment has a namespace of its own here."""
    code, out = example(page), StringIO()
    with redirect_stdout(out):
        exec(code.replace('"alice/', f'"{page}/'), {"__name__": page})  # noqa: S102 our own page
    assert out.getvalue().splitlines() == announced(code), page


def announced(code: str) -> list[str]:
    """What it says that it prints: comments behind a print, and lines of their own for the next turns of a loop."""
    lines = [line for line in code.splitlines() if "print(" in line or line.lstrip().startswith("# ")]
    return [line.partition("# ")[2].removesuffix(", then") for line in lines]
