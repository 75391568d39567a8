"""Whatever name and whatever pattern: what goes up comes down, nothing else is touched, what is refused leaves nothing.

The rules are written down here a second time, in the fewest words, and slowly.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import unicodedata
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from conftest import LONG
from ml_dash import Experiment, MLDashError
from ml_dash.errors import Code
from tests.harness import DaemonProcess, Folder, free_tree
from tests.scenario.conftest import Held

pytestmark = pytest.mark.slow

SMALL, SLOT = 30, 70_000


def fuzzed(examples: int) -> settings:
    return settings(
        max_examples=examples * (10 if LONG else 1),
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


# ---- names

ANY = st.text(max_size=12) | st.text(alphabet="ab./ \"'`$*?[]\\~-é\u0301ñ🙂\n\0\x7f\u202e", max_size=10)
TALL = st.integers(80, 260).map(lambda size: "é" * (size // 2) + "x" * (size % 2))
NAMES = st.lists(ANY | TALL | st.sampled_from(["..", ".", "", ".ml-dash", ".ml-dash-tmp", "a", " "]), max_size=5).map(
    "/".join
)


def allowed(path: str) -> bool:
    """The rule for a path, design §5."""
    segments = unicodedata.normalize("NFC", path).split("/")
    return all(
        segment not in ("", ".", "..")
        and not segment.startswith(".ml-dash")
        and len(segment.encode(errors="surrogatepass")) <= 255
        and not any(unicodedata.category(character) in ("Cc", "Cs") for character in segment)
        for segment in segments
    )


def fits_a_key(place: str, path: str) -> bool:
    """Whether the object's key has at most 1,024 bytes, with an id of 19 digits."""
    return len(f"files/{place}/{unicodedata.normalize('NFC', path)}/{'0' * 19}".encode()) <= 1024


def tree(root: Path) -> list[str]:
    """Every file below a folder, in bytes that no encoding can trip over."""
    found = []
    for folder, _, names in os.walk(os.fsencode(root)):
        found += [os.path.relpath(os.path.join(folder, name), os.fsencode(root)) for name in names]  # noqa: PTH118
    return sorted(os.fsdecode(name) for name in found)


def objects(store: Path) -> list[str]:
    """What was handed over, of all that a store's folder holds."""
    return [path for path in tree(store) if "/files/" in path]


@pytest.fixture(scope="module")
def lonely(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """A daemon with nothing else in its folder, so that whatever is written there is seen."""
    folder = tmp_path_factory.mktemp("lonely")
    with DaemonProcess(folder / "daemon", Folder(folder / "store")) as daemon:
        yield daemon


@pytest.mark.parametrize("size", [SMALL, SLOT], ids=["inline", "slot"])
@pytest.mark.parametrize("how", ["to", "prefix"])
@fuzzed(30)
@given(path=NAMES)
@example(path="../../x")
@example(path="a/../../x")
@example(path="/abs.bin")
@example(path="a\nb")
@example(path="e\u0301/n\u0303")
@example(path="é" * 127 + "x")
@example(path="é" * 128)
@example(path=" /. /.a/a./..a/a ..")
@example(path="'\"$(x)`y`/[a]*?{b}/~/-rf")
@example(path="/".join(["é" * 100] * 5))
@example(path=".ml-dash-tmp/x")
@example(path="\ud800")
def test_a_name_goes_up_is_listed_and_comes_down_or_is_refused(
    lonely: DaemonProcess, tmp_path_factory: pytest.TempPathFactory, path: str, how: str, size: int
) -> None:
    assert isinstance(lonely.store, Folder)
    store = lonely.store.root
    content = secrets.token_bytes(size)
    out = tmp_path_factory.mktemp("out")
    with lonely.experiment(f"fuzz/names/{secrets.token_hex(8)}").run as exp:
        before = (objects(store), spooled(lonely), rows(lonely))
        folder, _, name = path.rpartition("/") if how == "prefix" else ("", "", path)
        place = exp.files.place
        taken = allowed(path) and fits_a_key(f"{place.namespace}/{place.project}/{place.experiment}", path)
        if how == "prefix" and (folder.endswith("/") or path.startswith("/")):  # files("/a/") is files("a")
            return
        if not taken:
            with pytest.raises(ValueError) as refused:
                exp.files(folder).save_blob(content, to=name)
            assert isinstance(refused.value, MLDashError)
            assert refused.value.code in (Code.INVALID_PATH, Code.INVALID_ARGUMENT)
            after = (objects(store), spooled(lonely), rows(lonely))
            assert after == before
            return
        made = exp.files(folder).save_blob(content, to=name)
        made.wait(30)
        composed = unicodedata.normalize("NFC", path)
        assert f"{made['path']}/{made['filename']}".strip("/") == composed.strip("/")
        assert sorted({*objects(store)} - {*before[0]}) == [lonely.store.key_of(made)]
        for typed in (path, composed, unicodedata.normalize("NFD", path)):
            assert [each["id"] for each in exp.files(typed).list()] == [made["id"]]
        assert [each["id"] for each in exp.files().list()] == [made["id"]]
        assert [each["id"] for each in exp.files().list("**")] == [made["id"]]
        got = exp.files(path).download(to=out / "whole")
        assert Path(str(got)).read_bytes() == content
        (got_too,) = exp.files().download("**", to=out / "tree")
        assert Path(got_too) == out / "tree" / composed
        assert Path(got_too).read_bytes() == content
        assert tree(out) == sorted(["whole", f"tree/{composed}"])
        assert exp.files(path).delete()["ids"] == [made["id"]]
        free_tree(store / place.namespace / place.project / place.experiment)


def spooled(daemon: DaemonProcess) -> list[str]:
    """What is kept for a file; a slot is its connection's, and is used again."""
    return [name for name in daemon.spool() if "slots" not in name]


def rows(daemon: DaemonProcess) -> int:
    return int(daemon.rows("SELECT count(*) FROM files")[0][0])


@pytest.mark.parametrize(
    ("prefix", "filename"),
    [("../../..", "x"), ("a/../..", "x"), ("", "../x"), ("", "/tmp/abs"), ("a", ".."), ("", "."), ("a//b", "x")],
)
def test_a_stored_name_that_leaves_the_destination_is_not_followed(
    lonely: DaemonProcess, tmp_path: Path, prefix: str, filename: str
) -> None:
    """As another program, or an earlier release, may have put it into the catalog."""
    out = tmp_path / "deep" / "deeper" / "out"
    with lonely.experiment(f"fuzz/stored/{secrets.token_hex(8)}").run as exp:
        made = exp.files("m").save_text("x", to="a.txt").wait(30)
        path = f"{prefix}/{filename}".strip("/")
        alter(
            lonely,
            "UPDATE files SET prefix = ?, filename = ?, path = ? WHERE id = ?",
            prefix,
            filename,
            path,
            int(made["id"]),
        )
        for fetch in (
            lambda: exp.files().download("**", to=out),
            lambda: exp.files(file_id=made["id"]).download(to=f"{out}/"),
        ):
            with suppress(ValueError):  # some are found by no pattern
                fetch()
        assert tree(tmp_path) == []
        assert not Path("/tmp/abs").exists()


def alter(daemon: DaemonProcess, statement: str, *values: Any) -> None:
    with closing(sqlite3.connect(daemon.state / "catalog.sqlite", timeout=30)) as connection, connection:
        connection.execute(statement, values)


# ---- patterns

PATHS = [
    "a", "b.a", "ab", "é.a", "[a]", "*", "a*b", ".a",
    "a.d/a", "a.d/b.a", "a.d/ab.b", "a.d/e/a", "a.d/e/b.a", "a.d/e/f/g.a",
    "ab.d/a", "ab.d/[a", "ab.d/a]", "ab.d/a!b", "b/a/b/a", "b/a/b/a.b", "b/b/b/b", "b/x.tar.a", "b/é/ab",
]  # fmt: skip
GLOBS = st.text(alphabet="ab.*?[]!é", min_size=1, max_size=5)
PATTERNS = st.lists(
    GLOBS | st.just("**") | st.sampled_from(["*", "a", "b", "*.a", "[ab]", "[!a]*", "?"]), min_size=1, max_size=4
)
PREFIXES = st.sampled_from(["", "a.d", "a.d/e", "ab.d", "b", "b/a", "b/a/b/a", "nowhere"])


def fits(path: list[str], pattern: list[str]) -> bool:
    """`**` is zero or more segments, at the end one or more; every other glob is one."""
    if not pattern:
        return not path
    if pattern == ["**"]:
        return bool(path)
    if pattern[0] == "**":
        return fits(path, pattern[1:]) or (bool(path) and fits(path[1:], pattern))
    return bool(path) and name_fits(path[0], pattern[0]) and fits(path[1:], pattern[1:])


def name_fits(name: str, glob: str) -> bool:
    if not glob:
        return not name
    if glob[0] == "*":
        return name_fits(name, glob[1:]) or (bool(name) and name_fits(name[1:], glob))
    members, rest = first_of(glob)
    return bool(name) and (members is None or (name[0] in members[1]) is members[0]) and name_fits(name[1:], rest)


def first_of(glob: str) -> tuple[tuple[bool, str] | None, str]:
    """What one character may be (None: any; else whether it is among these), and the rest of the glob."""
    if glob[0] == "?":
        return None, glob[1:]
    negated = glob[1:2] in ("!", "^")
    start = 2 if negated else 1
    end = glob.find("]", start + 1)
    if glob[0] == "[" and end > 0:
        return (not negated, glob[start:end]), glob[end + 1 :]
    return (True, glob[0]), glob[1:]


@pytest.fixture(scope="module")
def listed(service: DaemonProcess) -> Iterator[Experiment]:
    """Files of which the catalog has every version."""
    with service.experiment(f"fuzz/patterns/{secrets.token_hex(8)}").run as exp:
        save_all(exp)
        exp.files.flush(60)
        yield exp


def save_all(exp: Experiment) -> None:
    for path in [*PATHS, *PATHS[::3]]:
        exp.files.save_text(path, to=path)


def assert_lists(exp: Experiment, prefix: str, pattern: list[str]) -> None:
    text = "/".join(pattern)
    below = [path.removeprefix(f"{prefix}/") for path in PATHS if not prefix or path.startswith(f"{prefix}/")]
    expected = sorted(f"{prefix}/{path}".strip("/") for path in below if fits(path.split("/"), pattern))
    if any(segment in ("", ".", "..") for segment in text.split("/")):
        with pytest.raises(ValueError, match="segment"):
            exp.files(prefix).list(text)
        return
    found = [f"{each['path']}/{each['filename']}".strip("/") for each in exp.files(prefix).list(text)]
    assert sorted(set(found)) == expected, (prefix, text)
    newest = [f"{each['path']}/{each['filename']}".strip("/") for each in exp.files(prefix).list(text, latest=True)]
    assert newest == expected
    assert len(found) == sum(1 + (PATHS.index(path) % 3 == 0) for path in expected)


@fuzzed(200)
@given(prefix=PREFIXES, pattern=PATTERNS)
@example(prefix="", pattern=["**", "*.a"])
@example(prefix="a.d", pattern=["**", "*.a"])
@example(prefix="", pattern=["a.d", "*"])
@example(prefix="", pattern=["**"])
@example(prefix="b", pattern=["**", "b", "**", "a"])
@example(prefix="ab.d", pattern=["[[]a"])
def test_patterns_agree_with_the_rule(listed: Experiment, prefix: str, pattern: list[str]) -> None:
    assert_lists(listed, prefix, pattern)


@fuzzed(60)
@given(prefix=PREFIXES, pattern=PATTERNS)
def test_patterns_agree_with_the_rule_for_files_on_their_way(
    held_tree: Experiment, prefix: str, pattern: list[str]
) -> None:
    assert_lists(held_tree, prefix, pattern)


@pytest.fixture
def held_tree(held: Held) -> Experiment:
    save_all(held.exp)
    return held.exp


@fuzzed(40)
@given(prefix=PREFIXES, pattern=PATTERNS)
def test_a_glob_comes_down_as_it_lies(
    listed: Experiment, tmp_path_factory: pytest.TempPathFactory, prefix: str, pattern: list[str]
) -> None:
    """Folders kept, the newest of each path, and nothing beside the destination."""
    text = "/".join(pattern)
    if any(segment in ("", ".", "..") for segment in text.split("/")) or not any(mark in text for mark in "*?["):
        return
    folder = tmp_path_factory.mktemp("glob")
    below = [path.removeprefix(f"{prefix}/") for path in PATHS if not prefix or path.startswith(f"{prefix}/")]
    expected = sorted(path for path in below if fits(path.split("/"), pattern))
    if not expected:
        with pytest.raises(ValueError, match="no file fits"):
            listed.files(prefix).download(text, to=folder / "out")
        assert tree(folder) == []
        return
    got = listed.files(prefix).download(text, to=folder / "out")
    assert sorted(got) == [str(folder / "out" / path) for path in expected]
    assert tree(folder) == [f"out/{path}" for path in expected]
    for path in expected:
        assert (folder / "out" / path).read_text() == f"{prefix}/{path}".strip("/")
