"""docs/api says what the code does, and of every public call. tests/scenario/test_api_pages.py runs the examples."""

from __future__ import annotations

import ast
import re

import ml_dash
from tests.scenario.api_page_checks import announced, example
from tests.unit import api_pages
from tests.unit.api_pages import EMPTY, GROUPS, PAGES, PART, ROW, calls

MADE = {
    "Experiment": r"Experiment\(",
    "exp.run": r"\.run\b",
    "Checkpoint": r"\.checkpoint\(",
    "SavedCheckpoint": r"\.wait\(",
    "FileResult": r"saved\[",
    "BackgroundResult": "background=True",
    "MLDashError": "MLDashError",
}
"""How an example comes to an object."""


def text_of(name: str) -> str:
    return (PAGES / name).read_text()


def test_every_public_call_has_its_page_and_no_page_is_without_a_call() -> None:
    assert sorted(page.name for page in PAGES.iterdir()) == sorted(api_pages.names())
    assert sorted(page for pages in GROUPS.values() for page in pages) == sorted(calls()), "mend GROUPS in api_pages.py"


def test_every_public_name_is_on_a_page() -> None:
    text = text_of("MLDashError.md")
    assert {name for name in ml_dash.__all__ if name not in calls() and f"`{name}`" not in text} == set()


def test_the_pages_say_what_the_code_says() -> None:
    """Signatures, defaults, docstrings, and of every code what is raised for it and what to do."""
    stale = [name for name in api_pages.names() if api_pages.written(name, text_of(name)) != text_of(name)]
    assert stale == [], "run `python -m tests.unit.test_docs`"


def test_every_argument_is_explained() -> None:
    parts = {name: PART.search(text_of(name)) for name in api_pages.names()}
    rows = [(name, row) for name, part in parts.items() for row in ROW.findall(part[2] if part else "")]
    assert len(rows) > 100
    assert [(name, argument) for name, (argument, meaning) in rows if not meaning] == []


def test_a_page_says_what_a_call_returns_what_a_second_one_does_and_where_to_read_on() -> None:
    wanted = [r"^\*\*Returns\*\* ", r"^\*\*Called twice:\*\* ", r"^See \[[\s\S]*?\]\(\.\./"]
    for page, call in calls().items():
        text = text_of(f"{page}.md")
        assert text.startswith(f"# `{call.typed}`\n")
        needed = wanted if call.signature is not None else wanted[2:]
        assert [each for each in needed if not re.search(each, text, re.MULTILINE)] == [], page


def test_an_example_makes_the_call_and_shows_what_comes_of_it() -> None:
    for page, call in calls().items():
        code = example(page)
        ast.parse(code)
        made = MADE.get(call.typed) or rf"\b{call.typed.rpartition('.')[2]}\("
        assert re.search(made, code), page
        assert announced(code), f"{page}: print something, and say in a comment what"


def test_a_signature_that_can_only_be_read_is_read_as_it_stands() -> None:
    given = ast.parse("def __init__(self, files: FileSet, root: str | None = None, **options: Any) -> None: ...").body[
        0
    ]
    assert isinstance(given, ast.FunctionDef)
    read = api_pages.signature_of(given.args).parameters.values()
    assert [(each.name, each.annotation, each.default) for each in read] == [
        ("files", "FileSet", EMPTY), ("root", "str | None", None), ("options", "Any", EMPTY),
    ]  # fmt: skip
