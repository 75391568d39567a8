"""Globs over segments, against an independent matcher."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from fnmatch import fnmatchcase
from types import FrameType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_dash.errors import Code, MLDashError
from ml_dashd.core import names


@pytest.mark.parametrize(
    ("path", "prefix", "pattern", "expected"),
    [
        # No pattern: everything at or below the prefix
        ("a.pt", "", None, True),
        ("models/a.pt", "models", None, True),
        ("models", "models", None, True),
        ("models/a/b", "models/a", None, True),
        ("models/a.pt", "model", None, False),
        ("models", "models/a", None, False),
        ("other/models/a", "models", None, False),
        # Patterns are relative to the prefix
        ("models/a.pt", "models", "*.pt", True),
        ("models/a.pt", "models", "models/*.pt", False),
        ("models/a.pt", "", "*.pt", False),
        ("models/a.pt", "model", "*", False),
        ("models", "models", "*", False),
        ("models", "models", "**", False),
        # A literal pattern
        ("a.pt", "", "a.pt", True),
        ("axpt", "", "a.pt", False),
        ("x/a.pt", "", "a.pt", False),
        ("a.pt/x", "", "a.pt", False),
        ("a+(b)|^$", "", "a+(b)|^$", True),
        ("a\\b", "", "a\\b", True),
        # A star stays inside a segment
        ("a/b.pt", "", "*", False),
        ("a/b.pt", "", "a/*", True),
        ("a/b.pt", "", "*/*", True),
        ("a/b/c.pt", "", "a/*.pt", False),
        ("a", "", "a*", True),
        ("abc", "", "a*c", True),
        ("abcb", "", "a*c", False),
        ("aXbXc", "", "a*b*c", True),
        ("ab", "", "a**b", True),
        ("a/b", "", "a**b", False),
        ("aab", "", "*ab", True),
        ("abab", "", "*ab", True),
        ("ababc", "", "*ab*bc", True),
        ("ab", "", "*ab*b", False),
        # Two stars span segments
        ("c.json", "", "**/*.json", True),
        ("a/c.json", "", "**/*.json", True),
        ("a/b/c.json", "", "**/*.json", True),
        ("configs/a/b/c.json", "configs", "**/*.json", True),
        ("a/b/c.json", "", "a/**/c.json", True),
        ("a/c.json", "", "a/**/c.json", True),
        ("ab/c.json", "", "a/**/c.json", False),
        ("a/b/c", "", "**", True),
        ("a", "", "**", True),
        ("a/b/c", "", "a/**", True),
        ("a/b", "", "a/**", True),
        ("a", "", "a/**", False),
        ("ab/c", "", "a/**", False),
        ("a", "", "**/**", True),
        ("a/b", "", "**/**/b", True),
        ("x/b/y/b/c", "", "**/b/c", True),
        ("x/b/y/b/c", "", "**/b/**/c", True),
        ("b/c", "", "**/b/**/c", True),
        ("b/x/b", "", "**/b/**/b/**/b", False),
        ("a/b/c/d", "", "a/**/**/d", True),
        ("a/b/a/b/c", "", "**/a/b/**/a/b/c", True),
        ("a/b/c", "", "**/a/b/**/a/b/c", False),
        # Question marks and sets
        ("a1", "", "a?", True),
        ("a", "", "a?", False),
        ("a/", "", "a?", False),
        ("a/b", "", "a?b", False),
        ("a1", "", "a[0-9]", True),
        ("ax", "", "a[0-9]", False),
        ("ax", "", "a[!0-9]", True),
        ("ax", "", "a[^0-9]", True),
        ("a1", "", "a[!0-9]", False),
        ("a/b", "", "a[!0-9]b", False),
        ("a/b", "", "a[+-9]b", False),
        ("a.b", "", "a[+-9]b", True),
        ("a]", "", "a[]]", True),
        ("a]", "", "a[]b]", True),
        ("a]", "", "a[!]]", False),
        ("ab", "", "a[!]]", True),
        ("a[", "", "a[[]", True),
        ("a-", "", "a[b-]", True),
        ("a-", "", "a[-b]", True),
        ("a-", "", "a[+--]", True),
        ("a,", "", "a[+--]", True),
        ("a\\", "", "a[\\]", True),
        ("ad", "", "a[\\d]", True),
        ("a1", "", "a[\\d]", False),
        ("a&", "", "a[x&&y]", True),
        ("a|", "", "a[x||y]", True),
        ("a~", "", "a[x~~y]", True),
        ("a^", "", "a[x^]", True),
        ("a^", "", "a[^^]", False),
        ("a\n", "", "a[\n]", True),
        # A bracket without its partner is itself
        ("a[b", "", "a[b", True),
        ("a[]", "", "a[]", True),
        ("a[!]", "", "a[!]", True),
        ("a[^]", "", "a[^]", True),
        ("[a/b]", "", "[a/b]", True),
        ("a]", "", "a]", True),
        # Case and normal form
        ("a", "", "A", False),
        ("\u00e9", "", "e\u0301", True),
        ("\u00e9", "", "?", True),
    ],
)
def test_globs(path: str, prefix: str, pattern: str | None, expected: bool):
    assert names.matches(path, prefix, pattern) is expected


@pytest.mark.parametrize(
    ("pattern", "complaint"),
    [
        ("", "the pattern '' has an empty, '.' or '..' segment"),
        ("/a", "the pattern '/a' has an empty, '.' or '..' segment"),
        ("a//b", "the pattern 'a//b' has an empty, '.' or '..' segment"),
        ("a/../b", "the pattern 'a/../b' has an empty, '.' or '..' segment"),
        ("./a", "the pattern './a' has an empty, '.' or '..' segment"),
        ("*" * 1025, "the pattern has 1025 characters, at most 1024"),
        ("[z-a]", "the pattern '[z-a]' has a set that can't be: bad character range z-a"),
        ("[a--]", "the pattern '[a--]' has a set that can't be: bad character range a-\\-"),
    ],
)
def test_patterns_that_are_refused(pattern: str, complaint: str):
    with pytest.raises(MLDashError) as refused:
        names.matches("a", "", pattern)
    assert (refused.value.code, refused.value.message) == (Code.INVALID_PATH, complaint)


def test_the_longest_pattern():
    assert names.matches("a" * 255, "", "*" * 1024)


def fits(path: list[str], pattern: list[str]) -> bool:
    """The same rule in other words: segment by segment, `**` for zero or more of them, at the end for one or more."""
    if not pattern:
        return not path
    first, *rest = pattern
    if first == "**":
        return bool(path) if not rest else any(fits(path[skipped:], rest) for skipped in range(len(path) + 1))
    return bool(path) and fnmatchcase(path[0], first) and fits(path[1:], rest)


segments = st.text(alphabet="ab.", min_size=1, max_size=5).filter(lambda segment: segment not in (".", ".."))
globs = st.text(alphabet="ab.*?", min_size=1, max_size=6).filter(lambda glob: glob not in (".", ".."))
paths = st.lists(segments, min_size=1, max_size=6).map("/".join)
patterns = st.lists(globs | st.just("**"), min_size=1, max_size=6).map("/".join)


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(paths, patterns)
def test_globs_agree_with_an_independent_matcher(path: str, pattern: str):
    # The reference knows no `**` inside a segment: there it is one star.
    reference = ["**" if glob == "**" else re.sub(r"\*+", "*", glob) for glob in pattern.split("/")]
    assert names.matches(path, "", pattern) is fits(path.split("/"), reference)


@pytest.mark.slow
@settings(deadline=None, max_examples=250)
@given(st.data(), paths)
def test_globs_made_from_a_path_agree_with_an_independent_matcher(data: st.DataObject, path: str):
    made = []
    for segment in path.split("/"):
        start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(segment))] * 2)))
        glob = segment[:start] + data.draw(st.sampled_from(["*", "?", "*a*", ""])) + segment[end:]
        made.append(data.draw(st.sampled_from(["**", segment, glob or "*"])))
    made = ["*" if glob in (".", "..") else glob for glob in made]
    assert names.matches(path, "", "/".join(made)) is fits(path.split("/"), made)


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(paths, patterns, paths)
def test_a_prefix_is_taken_off_before_the_pattern(path: str, pattern: str, prefix: str):
    assert names.matches(f"{prefix}/{path}", prefix, pattern) is names.matches(path, "", pattern)
    assert not names.matches(f"{prefix}x/{path}", prefix, pattern)
    assert not names.matches(prefix, prefix, pattern)


@pytest.mark.parametrize(
    ("segment", "name"),
    [
        ("b.pt", "b.pt"),
        ("*", None),
        ("a?", None),
        ("[a]", "a"),
        ("[ab]", None),
        ("[!a]", None),
        ("a[[]1].png", "a[1].png"),
        ("a[*][?]", "a*?"),
        ("[]]", "]"),
        ("a[b", "a[b"),
        ("[!]", "[!]"),
        ("", ""),
    ],
)
def test_the_only_name_that_fits(segment: str, name: str | None):
    assert names.only_name(segment) == name


@pytest.fixture
def five_seconds() -> Iterator[None]:
    """Ends a match that would go on for years: the regular expression engine listens to signals."""

    def over(number: int, where: FrameType | None) -> None:
        pytest.fail("the pattern takes longer than five seconds")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, 5)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("five_seconds")
@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        pytest.param("a" * 255, "*a" * 500 + "b", id="stars in a segment"),
        pytest.param("a" * 255, "*a" * 100 + "?b", id="stars and a question mark"),
        pytest.param("a" * 255, "*[a-b]" * 150 + "c", id="stars and sets"),
        pytest.param("a" * 255, "*?" * 511 + "c", id="stars and question marks"),
        pytest.param("/".join("a" * 500), "**/" * 340 + "b", id="double stars"),
        pytest.param("/".join("a" * 500), "**/a/" * 200 + "b", id="double stars between segments"),
        pytest.param("/".join("a" * 500), "**/*/" * 200 + "b", id="double stars and stars"),
        pytest.param("/".join("a" * 500), "**/*a*/" * 140 + "b", id="double stars and stars in segments"),
        pytest.param("/".join("a" * 500), "**/" + "*/" * 400 + "b", id="many stars"),
        pytest.param("/".join(["a" * 250] * 4), "**/*a*a*a*a*a*a*b/" * 50 + "c", id="all at once"),
    ],
)
def test_no_pattern_is_slow(path: str, pattern: str):
    assert not names.matches(path, "", pattern)
