"""What an object says of itself comes back as it was written, and nothing else is believed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_dashd.core import about
from ml_dashd.core.about import MAX_UID, About
from ml_dashd.core.model import FileRecord, Job, Pin, PinKind
from ml_dashd.core.sets import Share

SHA = "ab" * 32


@given(
    st.builds(
        About,
        st.integers(0, MAX_UID),
        st.integers(1, 500),
        st.booleans(),
        st.none() | st.binary(min_size=32, max_size=32).map(bytes.hex),
    )
)
def test_it_comes_back_as_it_was_written(said: About) -> None:
    text = about.write(said)
    assert text.isascii()
    assert " " not in text
    assert about.read(text) == said


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "owner=1000;depth=1",
        "owner=-1;depth=1;set=0",
        f"owner={MAX_UID + 1};depth=1;set=0",
        "owner=1000;depth=0;set=0",
        "owner=1000;depth=1;set=2",
        "owner=\u0661;depth=1;set=0",
        "owner=1000;depth=1;set=0;sha256=short",
        f"owner=1000;depth=1;set=0;sha256={SHA.upper()}",
        "owner=1000;depth=1;set=0\n",
        "owner=1000;depth=1;set=0;more=1",
    ],
)
def test_anything_else_says_nothing(text: str | None) -> None:
    assert about.read(text) is None


@pytest.mark.parametrize("share", [None, Share("00" * 16, "step_1", "1", 0, 2)])
def test_an_object_is_told_what_is_known_of_its_file(share: Share | None) -> None:
    record = FileRecord(7, 1000, "ns", "p", "a/b/c", "x", "f", 1, "t", 0, 0, sha256=SHA, share=share, key="k")
    assert about.read(Job(record, Pin(PinKind.NONE)).target.about) == About(1000, 3, share is not None, SHA)
