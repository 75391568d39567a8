"""One rule for every path, and the layouts of both stores."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_dash.errors import Code, MLDashError
from ml_dashd.core import names
from ml_dashd.core.model import FileRecord

RECORD = FileRecord(5, 0, "ns", "project", "exp/seed 1", "a/b", "c.pt", 0, "text/plain", 0, 0)


def fault(code: Code, call, *arguments) -> str:
    """The message with which a call refused its arguments."""
    with pytest.raises(MLDashError) as caught:
        call(*arguments)
    assert caught.value.code is code
    return caught.value.message


# ---- the path rule


@pytest.mark.parametrize(
    ("path", "segments"),
    [
        ("", ()),
        ("a", ("a",)),
        ("models/best.pt", ("models", "best.pt")),
        ("a b/ü/日本/🎉", ("a b", "ü", "日本", "🎉")),
        (".hidden/..a/a..", (".hidden", "..a", "a..")),
        ("...", ("...",)),
        (".ml-das/x.ml-dash", (".ml-das", "x.ml-dash")),
        ("a\\b/*?[]", ("a\\b", "*?[]")),
        ("a\u202eb/\u200b", ("a\u202eb", "\u200b")),
    ],
)
def test_paths_that_are_taken(path: str, segments: tuple[str, ...]):
    assert names.clean(path, "the path") == segments


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("/", "the path '/' is absolute"),
        ("/etc/passwd", "the path '/etc/passwd' is absolute"),
        ("a//b", "the path 'a//b' has an empty segment"),
        ("a/", "the path 'a/' has an empty segment"),
        (".", "the path '.' has a '.' segment"),
        ("a/./b", "the path 'a/./b' has a '.' segment"),
        ("..", "the path '..' has a '..' segment"),
        ("../x", "the path '../x' has a '..' segment"),
        ("a/..", "the path 'a/..' has a '..' segment"),
        ("a\0b", "the path 'a\\x00b' has the control character U+0000"),
        ("a/\n", "the path 'a/\\n' has the control character U+000A"),
        ("a\x7f", "the path 'a\\x7f' has the control character U+007F"),
        ("\x85", "the path '\\x85' has the control character U+0085"),
        ("\ud800", "the path '\\ud800' has the unpaired surrogate character U+D800"),
        (".ml-dash", "the path '.ml-dash' has a segment that starts with .ml-dash, which is reserved"),
        ("a/.ml-dashd/b", "the path 'a/.ml-dashd/b' has a segment that starts with .ml-dash, which is reserved"),
    ],
)
def test_paths_that_are_refused(path: str, complaint: str):
    assert fault(Code.INVALID_PATH, names.clean, path, "the path") == complaint


def test_a_refusal_has_the_callers_code_and_words():
    assert fault(Code.INVALID_PREFIX, names.clean, "/a", "the prefix", Code.INVALID_PREFIX).startswith(
        "the prefix '/a'"
    )


def test_paths_are_normalised_to_nfc():
    assert names.clean("e\u0301/A\u030a", "the path") == ("\u00e9", "\u00c5")
    assert names.clean("\u212b", "the path") == ("\u00c5",)


def test_a_segment_of_255_bytes():
    assert names.clean("é" * 127 + "x", "the path") == ("é" * 127 + "x",)
    assert "has a segment of 256 bytes, at most 255" in fault(Code.INVALID_PATH, names.clean, "é" * 128, "the path")
    assert names.clean("e\u0301" * 127, "the path") == ("é" * 127,), "the bytes are counted after normalising"


def test_a_long_path_is_shortened_in_messages():
    message = fault(Code.INVALID_PATH, names.clean, "a" * 120 + "/.." + "b" * 50 + "/..", "the path")
    assert message == f"the path '{'a' * 80}…{'b' * 27}/..' has a '..' segment"
    assert f"'{'a' * 117}/..'" in fault(Code.INVALID_PATH, names.clean, "a" * 117 + "/..", "the path")


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=12) | st.text(alphabet="a./\0é", max_size=8))
def test_a_path_is_taken_whole_or_refused(path: str):
    try:
        segments = names.clean(path, "the path")
    except MLDashError as refused:
        assert refused.code is Code.INVALID_PATH  # noqa: PT017 it need not come
        return
    assert names.clean("/".join(segments), "the path") == segments
    assert not any(segment in ("", ".", "..") or "/" in segment for segment in segments)


def test_an_experiments_parts():
    assert names.clean_experiment("ns", "project", "exp") == ("ns", "project", "exp")
    assert names.clean_experiment("e\u0301", "b", "c/d/e") == ("é", "b", "c/d/e")


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        (("", "b", "c"), "the prefix '/b/c' is absolute"),
        (("a", "", "c"), "the prefix 'a//c' has an empty segment"),
        (("a", "b", ""), "the prefix 'a/b/' has an empty segment"),
        (("a", "b", "c/../d"), "the prefix 'a/b/c/../d' has a '..' segment"),
        (("a/b", "c", "d"), "the prefix 'a/b/c/d' has a namespace or a project of several segments"),
        (("a", "b/c", "d"), "the prefix 'a/b/c/d' has a namespace or a project of several segments"),
    ],
)
def test_an_experiment_that_is_refused(parts: tuple[str, str, str], complaint: str):
    assert fault(Code.INVALID_PREFIX, names.clean_experiment, *parts) == complaint


@pytest.mark.parametrize(
    ("prefix", "to", "placed"),
    [
        ("", "a.pt", ("", "a.pt")),
        ("models", "a.pt", ("models", "a.pt")),
        ("", "models/a.pt", ("models", "a.pt")),
        ("a/b", "c/d.pt", ("a/b/c", "d.pt")),
    ],
)
def test_where_a_file_goes(prefix: str, to: str, placed: tuple[str, str]):
    assert names.place(prefix, to) == placed


def test_where_no_file_goes():
    assert fault(Code.INVALID_PATH, names.place, "a", "") == "the file name is empty"
    assert fault(Code.INVALID_PATH, names.place, "a", "../b") == "the file name '../b' has a '..' segment"
    assert fault(Code.INVALID_PATH, names.place, "/a", "b") == "the prefix '/a' is absolute"


# ---- where files lie


def test_the_layouts():
    assert names.s3_key(RECORD, "runs/") == "runs/files/ns/project/exp/seed 1/a/b/5/c.pt"
    assert names.s3_key(RECORD) == "files/ns/project/exp/seed 1/a/b/5/c.pt"
    assert names.local_key(RECORD) == "ns/project/exp/seed 1/files/a/b/5/c.pt"


def test_the_layouts_without_a_prefix():
    bare = replace(RECORD, prefix="")
    assert names.s3_key(bare) == "files/ns/project/exp/seed 1/5/c.pt"
    assert names.local_key(bare) == "ns/project/exp/seed 1/files/5/c.pt"


@pytest.mark.parametrize("file_id", [1, 2**63 - 1])
def test_the_length_of_a_key_does_not_hang_on_the_id(file_id: int):
    longest = replace(RECORD, id=2**63 - 1, prefix="")
    room = 1024 - len(names.s3_key(longest, "runs/").encode()) - 1
    prefix = "/".join(["x" * 199] * (room // 200) + ["x" * (room % 200)])
    fitting = replace(RECORD, id=file_id, prefix=prefix)
    names.check_length(fitting, "runs/")
    message = fault(Code.INVALID_PATH, names.check_length, replace(fitting, prefix=prefix + "x"), "runs/")
    assert message.endswith("takes 1025 bytes, at most 1024")
    assert fault(Code.INVALID_PATH, names.check_length, fitting, "runs2/").endswith("takes 1025 bytes, at most 1024")


def test_the_length_of_a_key_is_in_bytes():
    record = replace(RECORD, prefix="/".join(["日" * 85] * 4))
    assert "takes 1078 bytes, at most 1024" in fault(Code.INVALID_PATH, names.check_length, record, "k/")


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        ("model.pt", "application/octet-stream"),
        ("MODEL.PTH", "application/octet-stream"),
        ("m.safetensors", "application/octet-stream"),
        ("a.json", "application/json"),
        ("a.b.JSON", "application/json"),
        ("log.jsonl", "application/jsonl"),
        ("a.yaml", "application/yaml"),
        ("a.yml", "application/yaml"),
        ("a.toml", "application/toml"),
        ("a.md", "text/markdown"),
        ("a.txt", "text/plain"),
        ("a.csv", "text/csv"),
        ("a.png", "image/png"),
        ("a.jpg", "image/jpeg"),
        ("a.mp4", "video/mp4"),
        ("README", "application/octet-stream"),
        ("a.unheard-of", "application/octet-stream"),
        (".yaml", "application/yaml"),
        ("a.json.gz", "application/octet-stream"),
        ("a.tar.xz", "application/octet-stream"),
        ("a.", "application/octet-stream"),
    ],
)
def test_content_types(filename: str, expected: str):
    assert names.content_type(filename) == expected


# ---- what is said of a file


@pytest.mark.parametrize("text", ["{}", '{"a": [1, 2.5, null, true, "é"]}', ' {"a":{}} ', '{"a":1,"a":2}', None])
def test_metadata_stays_as_it_came(text: str | None):
    assert names.metadata(text) == text


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "the metadata is not JSON: Expecting value"),
        ("{", "the metadata is not JSON: Expecting property name"),
        ("{'a': 1}", "the metadata is not JSON: Expecting property name"),
        ("{} {}", "the metadata is not JSON: Extra data"),
        ('{"a": NaN}', "the metadata is not JSON: NaN is not a JSON value"),
        ('{"a": -Infinity}', "the metadata is not JSON: -Infinity is not a JSON value"),
        ('{"a":' * 100_000, "the metadata is not JSON: maximum recursion depth exceeded"),
        ('{"a":' + "1" * 5000 + "}", "the metadata is not JSON: Exceeds the limit"),
        ("[]", "the metadata is list, not an object"),
        ("null", "the metadata is NoneType, not an object"),
        ('"a"', "the metadata is str, not an object"),
    ],
)
def test_metadata_that_is_no_object(text: str, complaint: str):
    assert fault(Code.INVALID_METADATA, names.metadata, text).startswith(complaint)


def test_tags_are_kept_once_in_their_order():
    assert names.tags(["b", "a", "b", "ü x"], "tags") == ("b", "a", "ü x")
    assert names.tags((), "tags") == ()


@pytest.mark.parametrize("value", ["", "a\nb", "\0", "\udc80"])
def test_tags_that_are_refused(value: str):
    message = fault(Code.INVALID_ARGUMENT, names.tags, ["fine", value], "bindrs")
    assert message == f"bindrs has {value!r}: use short text without control characters"


# ---- keys, read back


@pytest.mark.parametrize(
    ("key", "file_id"),
    [
        ("files/ns/p/e/7/x", 7),
        ("7/x", 7),
        ("ns/p/e/files/a/9223372036854775807/x", 2**63 - 1),
        ("ns/p/e/files/a/9223372036854775808/x", None),
        ("ns/p/e/files/a/92233720368547758070/x", None),
        ("ns/p/e/files/a/07/x", None),
        ("ns/p/e/files/a/\u0667/x", None),
        ("ns/p/e/files/a/x/7", None),
        ("7", None),
        ("", None),
    ],
)
def test_the_id_in_a_key(key: str, file_id: int | None) -> None:
    assert names.id_of(key) == file_id


@pytest.mark.parametrize("experiment", ["e", "e/files/1"])
@pytest.mark.parametrize("prefix", ["", "a", "files/a/b"])
def test_where_a_key_says_that_a_file_belongs(experiment: str, prefix: str) -> None:
    made = FileRecord(7, 0, "ns", "p", experiment, prefix, "x.pt", 0, "", 0, 0)
    place, depth = ("ns", "p", experiment, prefix, "x.pt"), experiment.count("/") + 1
    assert names.place_of(names.local_key(made), "", depth) == place
    assert names.place_of(names.s3_key(made, "pre/"), names.s3_folder("pre/"), depth) == place
    assert names.place_of(names.s3_key(made, "other/"), names.s3_folder("pre/"), depth) is None


@pytest.mark.parametrize(
    ("key", "folder", "depth"),
    [
        ("", "", 1),
        ("x", "", 1),
        ("ns/p/e/7/x", "", 1),
        ("ns/p/e/files/7/x", "", 2),
        ("files/ns/p/e/7", "files/", 1),
        ("files/ns/p", "files/", 1),
        ("files/ns/p/e/7/x", "files/", 3),
        ("files/ns/../e/7/x", "files/", 1),
        ("files/ns/p/e/./7/x", "files/", 1),
        ("files/ns/p/e/7/", "files/", 1),
        ("files/", "files/", 1),
        ("files", "files/", 1),
    ],
)
def test_a_key_that_is_no_files(key: str, folder: str, depth: int) -> None:
    assert names.place_of(key, folder, depth) is None
