"""Names: one rule for every path, where a file lies in a store, and globs over segments."""

from __future__ import annotations

import json
import mimetypes
import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from ml_dash.errors import Code, MLDashError, error
from ml_dashd.core.model import FileRecord

MAX_SEGMENT_BYTES = 255
"""The longest file name of ext4, XFS and Btrfs."""
MAX_KEY_BYTES = 1024
"""The longest S3 key."""
MAX_PATTERN = 1024
RESERVED = ".ml-dash"
"""No segment may start with it: the daemon's own folders do."""
_ID_DIGITS = 19
"""Decimal digits of the largest 63-bit id, counted for every key so that its length does not hang on the id."""
_TOKEN = re.compile(r"\[([!^]?+)(\][^\]]*|[^\]]+)\]|\*+|.", re.DOTALL)
"""A set, stars, or one character of a glob; a "[" without its "]" is a character."""
_TYPES = mimetypes.MimeTypes()
_MORE_TYPES = {
    ".safetensors": "application/octet-stream",
    ".pt": "application/octet-stream",
    ".pth": "application/octet-stream",
    ".pkl": "application/octet-stream",
    ".npz": "application/octet-stream",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".toml": "application/toml",
    ".jsonl": "application/jsonl",
    ".md": "text/markdown",
}


def clean(path: str, what: str, code: Code = Code.INVALID_PATH) -> tuple[str, ...]:
    """The segments of a relative path, NFC-normalised; "" has none. `what` names it in the error."""
    if not path:
        return ()
    path = unicodedata.normalize("NFC", path)
    if path.startswith("/"):
        raise error(code, f"{what} {_shown(path)} is absolute")
    segments = tuple(path.split("/"))
    for segment in segments:
        if (fault := _fault(segment)) is not None:
            raise error(code, f"{what} {_shown(path)} has {fault}")
    return segments


def below(path: str) -> tuple[str, str]:
    """Every path below this one comes after the first of these and before the second: "0" follows "/"."""
    return f"{path}/", f"{path}0"


def clean_experiment(namespace: str, project: str, experiment: str) -> tuple[str, str, str]:
    """The checked parts of an experiment's prefix: one segment, one segment, one or more."""
    whole = f"{namespace}/{project}/{experiment}"
    segments = clean(whole, "the prefix", Code.INVALID_PREFIX)
    if "/" in namespace or "/" in project:
        raise error(Code.INVALID_PREFIX, f"the prefix {_shown(whole)} has a namespace or a project of several segments")
    return segments[0], segments[1], "/".join(segments[2:])


def place(prefix: str, to: str) -> tuple[str, str]:
    """Where a file goes: the folder and the filename of `to` below `prefix`."""
    segments = clean(prefix, "the prefix") + clean(to, "the file name")
    if not to:
        raise error(Code.INVALID_PATH, "the file name is empty")
    return "/".join(segments[:-1]), segments[-1]


def check_length(record: FileRecord, key_prefix: str) -> None:
    """Refuses a file whose S3 key would be too long, on every store alike, so that a local tree can go to S3."""
    key = s3_key(record, key_prefix).replace(f"/{record.id}/", f"/{'0' * _ID_DIGITS}/")
    size = len(key.encode())
    if size > MAX_KEY_BYTES:
        raise error(
            Code.INVALID_PATH,
            f"the whole path of {_shown(record.path)} takes {size} bytes, at most {MAX_KEY_BYTES}",
        )


def s3_key(record: FileRecord, key_prefix: str = "") -> str:
    """files/{namespace}/{project}/{experiment}/{prefix}/{id}/{filename}, after the store's own prefix."""
    parts = (
        "files", record.namespace, record.project, record.experiment, record.prefix, str(record.id), record.filename,
    )  # fmt: skip
    return key_prefix + "/".join(part for part in parts if part)


def local_key(record: FileRecord) -> str:
    """{namespace}/{project}/{experiment}/files/{prefix}/{id}/{filename}, below the store's root."""
    parts = (
        record.namespace, record.project, record.experiment, "files", record.prefix, str(record.id), record.filename,
    )  # fmt: skip
    return "/".join(part for part in parts if part)


def s3_folder(key_prefix: str) -> str:
    """What the key of every file in a bucket begins with."""
    return f"{key_prefix}files/"


def id_of(key: str) -> int | None:
    """The id in a file's key, its last segment but one; None where it is no file's key."""
    segment = key.rpartition("/")[0].rpartition("/")[2]
    if not (segment.isascii() and segment.isdigit() and len(segment) <= _ID_DIGITS):
        return None
    number = int(segment)
    return number if str(number) == segment and number < 2**63 else None


def place_of(key: str, folder: str, depth: int) -> tuple[str, str, str, str, str] | None:
    """Namespace, project, experiment, prefix and filename of a file's key; None where it has none.

    `depth` is how many segments the experiment's name has. `folder` is that of a bucket (`s3_folder`); "" is a local
    store's, whose keys have "files" after the experiment.
    """
    segments = key.removeprefix(folder).split("/")
    named, (*between, _), filename = segments[: 2 + depth], segments[2 + depth : -1] or [""], segments[-1]
    if not key.startswith(folder) or (not folder and between[:1] != ["files"]):
        return None
    prefix = "/".join(between if folder else between[1:])
    try:
        experiment = clean_experiment(named[0], "".join(named[1:2]), "/".join(named[2:]))
        place(prefix, filename)
    except MLDashError:
        return None
    return (*experiment, prefix, filename) if len(segments) >= 2 + depth + 2 else None


def content_type(filename: str) -> str:
    """The media type that a filename suggests."""
    last = max(filename.rfind("."), 0)
    two = max(filename.rfind(".", 0, last), 0) or last
    return _type_of(f"x{filename[two:]}" if two else filename)


@lru_cache(1024)
def _type_of(filename: str) -> str:
    """Remembered: a job's files have few suffixes, and looking one up takes as long as the rest of a file's names."""
    dot = filename.rfind(".")
    known = _MORE_TYPES.get(filename[dot:].lower()) if dot >= 0 else None
    guessed, compression = _TYPES.guess_type(filename, strict=False)
    return known or (None if compression else guessed) or "application/octet-stream"


def metadata(text: str | None) -> str | None:
    """Metadata checked to be one JSON object; its text as it came."""
    if text is None:
        return None
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as bad:
        raise error(Code.INVALID_METADATA, f"the metadata is not JSON: {bad}") from None
    if not isinstance(value, dict):
        raise error(Code.INVALID_METADATA, f"the metadata is {type(value).__name__}, not an object")
    return text


def tags(values: Iterable[str], what: str) -> tuple[str, ...]:
    """Tags without empty ones, doubles and control characters, in the order given."""
    kept = tuple(dict.fromkeys(values))
    for value in kept:
        if not value or _fault_in_text(value):
            raise error(Code.INVALID_ARGUMENT, f"{what} has {value!r}: use short text without control characters")
    return kept


def matches(path: str, prefix: str, pattern: str | None) -> bool:
    """Whether a file's path is at or below `prefix` and, relative to it, fits the glob. No pattern fits everything."""
    if prefix:
        if path == prefix:
            return pattern is None
        if not path.startswith(prefix + "/"):
            return False
        path = path[len(prefix) + 1 :]
    return pattern is None or _glob(pattern).fullmatch(path) is not None


def only_name(segment: str) -> str | None:
    """The one name that fits this segment of a glob, without wildcards or with sets of one; None where more do."""
    name = ""
    for token in _TOKEN.finditer(segment):
        negation, members = token.groups()
        if token[0][0] in "*?" or (members and (negation or len(members) > 1)):
            return None
        name += members or token[0]
    return name


@lru_cache(maxsize=256)
def _glob(pattern: str) -> re.Pattern[str]:
    """`*` and `?` stay inside a segment, `[…]` is a set, `**` spans segments: zero or more, at the end one or more.

    What follows a star is taken where it first fits and tried nowhere else (`(?>…)`): another place can't do better,
    and no pattern takes more than the product of its length and the path's.
    """
    pattern = unicodedata.normalize("NFC", pattern)
    if len(pattern) > MAX_PATTERN:
        raise error(Code.INVALID_PATH, f"the pattern has {len(pattern)} characters, at most {MAX_PATTERN}")
    segments = pattern.split("/")
    if any(segment in ("", ".", "..") for segment in segments):
        raise error(Code.INVALID_PATH, f"the pattern {_shown(pattern)} has an empty, '.' or '..' segment")
    runs: list[list[str]] = [[]]
    for segment in segments:
        if segment == "**":
            runs.append([])
        else:
            runs[-1].append(_segment(segment))
    text = "/".join(runs[0])
    if len(runs) > 1:
        first, *middle, last = ["".join(f"{segment}/" for segment in run) for run in runs]
        text = first + "".join(f"(?>(?:[^/]+/)*?{run})" for run in middle)
        text += f"(?:[^/]+/)*{last[:-1]}" if last else "(?s:.+)"
    try:
        return re.compile(text)
    except re.error as bad:
        raise error(Code.INVALID_PATH, f"the pattern {_shown(pattern)} has a set that can't be: {bad.msg}") from None


def _segment(glob: str) -> str:
    """A regular expression for one segment of a glob."""
    chunks = [""]
    for token in _TOKEN.finditer(glob):
        negation, members = token.groups()
        if members:
            chunks[-1] += f"(?!/)[{'^' if negation else ''}{_set(members)}]"
        elif token[0].startswith("*"):
            chunks.append("")
        else:
            chunks[-1] += "[^/]" if token[0] == "?" else re.escape(token[0])
    if len(chunks) == 1:
        return chunks[0]
    first, *middle, last = chunks
    return first + "".join(f"(?>[^/]*?{chunk})" for chunk in middle) + f"[^/]*{last}"


def _set(members: str) -> str:
    """The inside of a set: ranges and single characters, none of them special."""
    return "".join(
        re.escape(single) or f"{re.escape(low)}-{re.escape(high)}"
        for low, high, single in re.findall(r"(.)-(.)|(.)", members, re.DOTALL)
    )


def _fault(segment: str) -> str | None:
    """What is wrong with a segment of a path, in words."""
    if segment in ("", ".", ".."):
        return {"": "an empty segment", ".": "a '.' segment", "..": "a '..' segment"}[segment]
    if segment.startswith(RESERVED):
        return f"a segment that starts with {RESERVED}, which is reserved"
    if (fault := _fault_in_text(segment)) is not None:
        return fault
    size = len(segment.encode())
    return f"a segment of {size} bytes, at most {MAX_SEGMENT_BYTES}" if size > MAX_SEGMENT_BYTES else None


def _fault_in_text(text: str) -> str | None:
    """A character that no name may hold: NUL, a control character, or half of a surrogate pair."""
    if text.isprintable():  # of such characters none is
        return None
    for character in text:
        category = unicodedata.category(character)
        if category in ("Cc", "Cs"):
            return f"the {'control' if category == 'Cc' else 'unpaired surrogate'} character U+{ord(character):04X}"
    return None


def _shown(path: str) -> str:
    """A path for a message: quoted, its middle left out when long."""
    return repr(path if len(path) <= 120 else f"{path[:80]}…{path[-30:]}")  # noqa: PLR2004 a line's length


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON value")
