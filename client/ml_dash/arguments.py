"""What a caller passes, checked here: before anything is sent, and by the name that it has there."""

from __future__ import annotations

import math
import os
import stat
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Real
from typing import Any, TypedDict, cast

from ml_dash import messages as m
from ml_dash.errors import Code, error
from ml_dash.many import read_small

PathLike = str | os.PathLike[str]
DIGITS_OF_ID = "0123456789"


class Said(TypedDict, total=False):
    """What may be said of a file, and how it is handed over: the keywords that every saver takes."""

    description: str | None
    tags: Sequence[str] | None
    bindrs: Sequence[str] | None
    metadata: Mapping[str, Any] | None
    priority: int
    supersede: bool | None


class Words(Said, total=False):
    """`Said`, and `durability`: "disk" returns only when the bytes are on stable storage."""

    durability: str | None


class ManyWords(Words, total=False):
    """`Words`, and what keeps a file that is overwritten.

    `snapshot`: "copy" takes a copy first, so that it may be at once; `protect`: "lease" takes one when somebody opens
    it to write, who waits for it.
    """

    snapshot: str | None
    protect: str | None


DESCRIBED = tuple(Said.__annotations__)
WORDS = tuple(Words.__annotations__)


def open_source(source: str) -> int:
    """A descriptor to hand over. O_NONBLOCK, so that a FIFO does not stop the trainer before it is refused."""
    if not source:
        raise error(Code.INVALID_ARGUMENT, "the path of the file is empty", 'pass one, such as "model.pt"')
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        raise error(Code.FILE_NOT_FOUND, f"there is no file {source}") from None
    except PermissionError:
        raise error(Code.NOT_READABLE, f"{source} may not be read by uid {os.geteuid()}") from None
    except (OSError, ValueError) as failure:
        raise error(Code.NOT_A_FILE, f"{source!r} can't be opened: {failure}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise error(Code.NOT_A_FILE, f"{source} is {'a folder' if stat.S_ISDIR(mode) else 'not a regular file'}")
    return descriptor


def name_of(path: PathLike) -> str:
    """A file's own name."""
    return os.path.basename(text(path, "a path"))  # noqa: PTH119


def distinct(named: Iterable[tuple[str, PathLike]]) -> list[tuple[str, PathLike]]:
    """Names and the paths that get them. Raises where two would get one name: the later would hide the earlier."""
    paths: dict[str, PathLike] = {}
    pairs = [*named]
    for name, path in pairs:
        composed = unicodedata.normalize("NFC", text(name, "a name"))
        if composed in paths:
            what = f"{text(paths[composed], 'a path')} and {text(path, 'a path')} would both be {composed!r}"
            raise error(Code.INVALID_ARGUMENT, what, "give each a name of its own")
        paths[composed] = path
    return pairs


def opened(source: str) -> tuple[bytes, int | None]:
    """The content of a file that is small enough to travel in a message, as it is now; else a descriptor to it."""
    descriptor = open_source(source)
    try:
        content = read_small(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    if content is None:
        return b"", descriptor
    os.close(descriptor)
    return content, None


def absolute(source: str) -> str:
    """Where a file lies, for messages; its symlinks are kept."""
    return printable(os.path.abspath(source))  # noqa: PTH100 resolve() would follow them


def printable(path: str) -> str:
    """A path for messages: what is not UTF-8 in it is escaped, so that a file of any name can be handed over."""
    return os.fsencode(path).decode(errors="backslashreplace")


def durability_of(word: str) -> str:
    """Checked here, because small content is brought to disk whatever was asked for."""
    if word not in ("", "memory", "disk"):
        raise error(Code.INVALID_ARGUMENT, f"durability={word!r}", 'use "memory" or "disk"')
    return word


def priority_of(value: Any) -> int:
    return whole_number(value, "priority", *m.PRIORITIES)


def whole_number(value: Any, name: str, least: int, most: int | None = None) -> int:
    if type(value) is not int or value < least or (most is not None and value > most):
        bounds = f"from {least} on" if most is None else f"from {least} to {most}"
        raise error(Code.INVALID_ARGUMENT, f"{name}={value!r}", f"pass a whole number {bounds}")
    return value


def flag(value: Any, name: str) -> bool:
    if type(value) is not bool:
        raise error(Code.INVALID_ARGUMENT, f"{name}={value!r}", "pass True or False")
    return value


def only_known(described: Mapping[str, Any]) -> dict[str, Any]:
    """The words that every saver takes; any other is a TypeError, as from a plain function."""
    for name in described:
        if name not in DESCRIBED:
            close = get_close_matches(name, WORDS, 1)
            meant = f"did you mean {close[0]!r}? " if close else ""
            raise TypeError(f"unexpected keyword argument {name!r}; {meant}known are {', '.join(WORDS)}")
    return dict(described)


def split_words(given: dict[str, Any], taken: tuple[str, ...]) -> tuple[Words, dict[str, Any]]:
    """The words that every saver takes, and a library's own; `taken` are those of its words that `to` says already."""
    for name in taken:
        if name in given:
            raise TypeError(f"unexpected keyword argument {name!r}: to= says it")
    described = {name: said for name, said in given.items() if name in WORDS}
    return cast("Words", described), {name: said for name, said in given.items() if name not in described}


def seconds_of(value: Any, name: str) -> float | None:
    """A time to wait: a number of seconds, one below 0 as 0, or None for as long as it takes."""
    if value is None:
        return None
    seconds = number_of(value)
    if math.isnan(seconds):
        raise error(Code.INVALID_ARGUMENT, f"{name}={value!r}", "pass a number of seconds, or None")
    return seconds


def number_of(value: Any) -> float:
    """A number of any kind; NaN for what is none."""
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan


def words(value: Any, name: str) -> str:
    """Text that is kept, and so has to fit UTF-8."""
    said = text(value, name)
    try:
        said.encode()
    except UnicodeEncodeError:
        what = f"{name}={said[:80]!r} has half of a surrogate pair, which UTF-8 can't hold"
        raise error(Code.INVALID_ARGUMENT, what, "leave it out") from None
    return said


def of_kind(value: Any, kind: type, name: str, hint: str) -> None:
    """Refuses anything else where it is passed, such as a path for `exp.files(path)`: later it would cost a run."""
    if not isinstance(value, kind):
        raise error(Code.INVALID_ARGUMENT, f"{name} is {type(value).__name__}, not {kind.__name__}", hint)


def text(value: Any, name: str) -> str:
    if not isinstance(value, str | os.PathLike):
        raise error(Code.INVALID_ARGUMENT, f"{name} is {type(value).__name__}, not str", "pass text")
    return os.fspath(value)


def texts(values: Any, name: str) -> tuple[str, ...]:
    given = None if isinstance(values, str) or not isinstance(values, Iterable) else tuple(values)
    if given is None or not all(isinstance(value, str) for value in given):
        raise error(Code.INVALID_ARGUMENT, f"{name} is not a list of str", f'pass a list, as in {name}=["best"]')
    for value in given:
        words(value, name)
    return given


def array_name(name: Any) -> str:
    """The name of a tensor or an array in a file of several."""
    if not isinstance(name, str):
        raise error(Code.INVALID_ARGUMENT, f"the name {name!r} is {type(name).__name__}, not str", "use str as names")
    return name


def file_id_of(value: str | int | None) -> int | None:
    if value is None:
        return None
    if isinstance(value, Mapping):
        raise error(Code.INVALID_ARGUMENT, f"file_id is {type(value).__name__}, not an id", 'pass its "id"')
    text = str(value)
    if not text or any(digit not in DIGITS_OF_ID for digit in text) or len(text) > 19:  # noqa: PLR2004 63 bits
        raise error(Code.UNKNOWN_FILE, f"no file has the id {text!r}", "an id is a decimal number, as in result['id']")
    return int(text)


def sought(value: Any, name: str) -> str:
    """A path or a pattern that is looked for; it may begin with a "/", as a record's `path` does."""
    given = text(value, name)
    return given if given == "/" else given.removeprefix("/")


def is_glob(pattern: str) -> bool:
    given = text(pattern, "pattern")
    return any(mark in given for mark in "*?[")


def escape(name: str) -> str:
    """A pattern that only this name fits."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)
