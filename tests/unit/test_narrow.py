"""What a glob says of every path that fits it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_dashd.core import names, narrow

segments = st.text(alphabet="ab.[]", min_size=1, max_size=5).filter(lambda segment: segment not in (".", ".."))
globs = st.text(alphabet="ab.*?[!]", min_size=1, max_size=6).filter(lambda glob: glob not in (".", ".."))
paths = st.lists(segments, min_size=1, max_size=5).map("/".join)
patterns = st.lists(globs | segments | st.just("**"), min_size=1, max_size=5).map("/".join)


@pytest.mark.parametrize(
    ("pattern", "literal", "rest"),
    [
        ("a/b.pt", "a/b.pt", ""),
        ("a/b/*.pt", "a/b", "*.pt"),
        ("a/*/b/*.pt", "a", "*/b/*.pt"),
        ("*.pt", "", "*.pt"),
        ("**/a", "", "**/a"),
        ("a/b?/c", "a", "b?/c"),
        ("a/b/[cd]", "a/b", "[cd]"),
        ("a/[[]b]/[*]", "a/[b]/*", ""),
        ("e\u0301/*", "\u00e9", "*"),
        ("e\u0301", "\u00e9", ""),
    ],
)
def test_the_literal_start_and_the_rest(pattern: str, literal: str, rest: str):
    assert narrow.split(pattern) == (literal, rest)


@pytest.mark.parametrize(
    ("pattern", "depth"), [("*", 1), ("a*/b", 2), ("**", None), ("a/**/b", None), ("a**/b", 2), ("***", 1)]
)
def test_how_deep_a_path_is_that_fits(pattern: str, depth: int | None):
    assert narrow.depth(pattern) == depth


@pytest.mark.parametrize(
    ("pattern", "one"), [(None, False), ("", False), ("*", True), ("*.pt", True), ("a*/b", False), ("**", False)]
)
def test_whether_what_fits_lies_in_one_folder(pattern: str | None, one: bool):
    assert narrow.is_of_one_folder(pattern) is one


@pytest.mark.parametrize(
    ("pattern", "ending"),
    [
        ("**/*.json", "json"),
        ("*.tar.gz", "gz"),
        ("**/README", "README"),
        ("*/model.pt", "pt"),
        ("*/a.", ""),
        ("**/*_best", None),
        ("**", None),
        ("*.*", None),
        ("a.?", None),
        ("*.[jp]", None),
        ("*[.]json", None),
        ("[ab].json", "json"),
        ("a[b.json", "json"),
        ("*.a/b*", None),
    ],
)
def test_the_ending_of_whatever_fits(pattern: str, ending: str | None):
    assert narrow.ending_of_all(pattern) == ending


@pytest.mark.parametrize(
    ("filename", "ending"), [("a.json", "json"), ("a.tar.gz", "gz"), ("a", "a"), (".a", "a"), ("a.", "")]
)
def test_the_ending_of_a_filename(filename: str, ending: str):
    assert narrow.ending(filename) == ending


@pytest.mark.slow
@settings(deadline=None, max_examples=400)
@given(st.data(), paths)
def test_whatever_fits_is_as_its_pattern_says(data: st.DataObject, path: str):
    """With patterns that are made of the path itself, so that many fit."""
    made = [
        data.draw(st.sampled_from([segment, "**", "*", f"{segment[:1]}*", f"*{segment[1:]}"]) | globs)
        for segment in path.split("/")
    ]
    pattern = data.draw(st.just("/".join(made)) | patterns)
    try:
        if not names.matches(path, "", pattern):
            return
    except ValueError:  # a set that can't be
        return
    literal, rest = narrow.split(pattern)
    assert path == literal if rest == narrow.WHOLE else f"{path}/".startswith(f"{literal}/" if literal else "")
    if rest != narrow.WHOLE:
        left = path.removeprefix(f"{literal}/" if literal else "")
        assert narrow.depth(rest) in (None, len(left.split("/")))
        assert narrow.ending_of_all(rest) in (None, narrow.ending(left.rpartition("/")[2]))
        assert names.matches(left, "", rest)


@pytest.mark.parametrize(
    ("pattern", "path", "onward"),
    [
        ("*/77*.png", "", ""),
        ("*/77*.png", "a/1.png", "a/76\U0010ffff"),
        ("*/77*.png", "a/77.png", "a/77.png"),
        ("*/77*.png", "a/78.png", "a/\U0010ffff"),
        ("*/77*.png", "a", "a"),  # "a-b/77.png" comes before "a/77.png"
        ("*", "a", "a"),
        ("*", "a/b", "a/\U0010ffff"),
        ("*/b.json", "a/b", "a/b.jsom\U0010ffff"),
        ("*/b.json", "a/b.json", "a/\U0010ffff"),
        ("*/c/*", "a/b", "a/c.\U0010ffff"),
        ("*/c/*", "a/c", "a/c.\U0010ffff"),
        ("*/c/*", "a/c/d", "a/c/d"),
        ("*/c/*", "a/c/d/e", "a/c/d/\U0010ffff"),
        ("*/c/*", "a/d", "a/\U0010ffff"),
        ("best*", "", "bess\U0010ffff"),
        ("best*", "bess\U0010ffff\U0010ffff", "bess\U0010ffff\U0010ffff"),
        ("best*", "beta", None),
        ("b/*", "c", None),
        ("a*/**/b", "a/c", "a/c"),
        ("**/b", "c", "c"),
        ("*/\ue000*", "a/b", "a/b"),  # just before it there is no character
        ("*/\0*", "a/", "a/"),
    ],
)
def test_where_what_fits_goes_on(pattern: str, path: str, onward: str | None):
    assert narrow.leap(pattern, path) == onward


@pytest.mark.parametrize(
    ("pattern", "may"), [(None, False), ("", False), ("**/a*", False), ("*", True), ("a*/b", True)]
)
def test_whether_anything_may_be_passed_over(pattern: str | None, may: bool):
    assert narrow.may_leap(pattern) is may


@pytest.mark.slow
@settings(deadline=None, max_examples=400)
@given(st.data(), paths | st.just(""), patterns, st.lists(paths, max_size=5))
def test_nothing_that_fits_is_passed_over(data: st.DataObject, path: str, pattern: str, others: list[str]):
    """Among paths that are made of the pattern itself, so that some fit."""
    made = [
        data.draw(st.sampled_from([each, each.replace("*", "a"), each.strip("*")])) or "b"
        for each in pattern.split("/")
    ]
    try:
        names.matches("", "", pattern)
    except ValueError:  # a set that can't be
        return
    onward = narrow.leap(pattern, path)
    assert onward is None or onward >= path
    for each in [*others, path, "/".join(made)]:
        if each > path and names.matches(each, "", pattern):
            assert onward is not None
            assert each > onward
