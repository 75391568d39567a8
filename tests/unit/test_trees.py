"""Which files of a folder are meant: the globs of the command, which are those of lists."""

from __future__ import annotations

import pytest

from ml_dash.cli.trees import Wanted, covers
from ml_dashd.core.names import matches


@pytest.mark.parametrize(
    ("glob", "name", "fits"),
    [
        ("a.txt", "a.txt", True),
        ("a.txt", "sub/a.txt", False),
        ("*.txt", "a.txt", True),
        ("*.txt", "sub/a.txt", False),
        ("**/*.txt", "a.txt", True),
        ("**/*.txt", "sub/deep/a.txt", True),
        ("sub", "sub/deep/a.txt", True),
        ("sub/", "sub/deep/a.txt", True),
        ("sub/*", "sub/deep/a.txt", True),
        ("sub", "subway", False),
        ("sub/**", "sub/deep/a.txt", True),
        ("**", "a.txt", True),
        ("**/cache", "x/cache/y/z", True),
        ("x/**/z", "x/z", True),
        ("x/**/z", "x/y/y/z", True),
        ("x/**/z", "y/z", False),
        ("?[ab]", "xa", True),
        ("?[ab]", "xc", False),
        ("*", ".hidden", True),
        ("a/b/c", "a/b", False),
    ],
)
def test_a_glob_covers_what_it_fits_and_what_is_below(glob: str, name: str, fits: bool) -> None:
    assert covers(glob, name) is fits
    segments = name.split("/")
    as_listed = any(matches("/".join(segments[:end]), "", glob.rstrip("/")) for end in range(1, len(segments) + 1))
    assert as_listed is fits, "lists say otherwise"


def test_what_is_left_out_and_what_is_taken() -> None:
    wanted = Wanted(include=("**/*.pt", "logs"), exclude=("**/tmp", "*.bak"))
    assert [wanted.skips(name) for name in ("tmp", "a/tmp", "a.bak", "a/a.bak", ".ml-dashd", "a/.ml-dash-x")] == [
        True, True, True, False, True, True,
    ]  # fmt: skip
    assert [wanted.takes(name) for name in ("a.pt", "x/y.pt", "logs/1.txt", "a.txt")] == [True, True, True, False]
    assert Wanted().takes("anything")


def test_many_stars_take_no_time() -> None:
    assert not covers("/".join(["**", "*a*"] * 30) + "/no", "/".join(["aaaa"] * 60))
