"""One table: every code has its exception and its hint, and old `except` clauses go on working."""

from __future__ import annotations

import copy
import pickle

import pytest

from ml_dash import errors
from ml_dash.errors import TABLE, Code, MLDashError, error, parse_code

every_code = pytest.mark.parametrize("code", Code)


def test_every_code_is_in_the_table():
    assert set(TABLE) == set(Code)


@every_code
def test_a_code_is_its_own_name(code: Code):
    assert code.value == code.name


@every_code
def test_a_code_raises_its_exception_with_its_hint(code: Code):
    raised = error(code, "best.pt is too large")
    assert type(raised) is TABLE[code].exception
    assert isinstance(raised, MLDashError)
    assert (raised.code, raised.message, raised.hint) == (code, "best.pt is too large", TABLE[code].hint)
    assert str(raised) == f"best.pt is too large ({TABLE[code].hint}) [{code.name}]"


@every_code
def test_a_hint_is_one_short_line(code: Code):
    hint = TABLE[code].hint
    assert hint
    assert hint == hint.strip()
    assert "\n" not in hint
    assert not hint.endswith(".")
    assert len(hint) <= 120


def test_a_hint_of_its_own_replaces_the_tables():
    raised = error(Code.NO_MATCH, "no file fits '*.pt'", "try '**/*.pt'")
    assert str(raised) == "no file fits '*.pt' (try '**/*.pt') [NO_MATCH]"


def test_without_a_hint():
    assert str(error(Code.NO_MATCH, "no file fits '*.pt'", "")) == "no file fits '*.pt' [NO_MATCH]"


@pytest.mark.parametrize(
    ("exception", "builtin"),
    [
        (errors.InvalidError, ValueError),
        (errors.NotJSONError, TypeError),
        (errors.MissingError, FileNotFoundError),
        (errors.AccessError, PermissionError),
        (errors.StorageError, RuntimeError),
        (errors.NetworkError, ConnectionError),
        (errors.WaitTimeoutError, TimeoutError),
        (errors.StateError, RuntimeError),
        (errors.ProtocolError, ConnectionError),
        (errors.LibraryError, ImportError),
    ],
)
def test_exceptions_are_the_builtins_that_old_scripts_catch(exception: type[MLDashError], builtin: type[Exception]):
    assert issubclass(exception, MLDashError)
    assert issubclass(exception, builtin)
    assert exception in {entry.exception for entry in TABLE.values()}


@pytest.mark.parametrize(
    ("code", "builtin"),
    [
        (Code.FILE_NOT_FOUND, ValueError),
        (Code.NOT_A_FILE, ValueError),
        (Code.TOO_LARGE, ValueError),
        (Code.NO_MATCH, ValueError),
        (Code.UNSUPPORTED_TYPE, ValueError),
        (Code.INVALID_ARGUMENT, ValueError),
        (Code.UNKNOWN_FILE, FileNotFoundError),
        (Code.INVALID_METADATA, TypeError),
        (Code.RUN_NOT_OPEN, RuntimeError),
        (Code.MISSING_LIBRARY, ImportError),
        (Code.CHECKSUM_MISMATCH, errors.StorageError),
        (Code.DAEMON_UNAVAILABLE, errors.NetworkError),
        (Code.ACCESS_DENIED, PermissionError),
        (Code.TIMEOUT, TimeoutError),
    ],
)
def test_what_a_script_of_old_may_catch(code: Code, builtin: type[Exception]):
    with pytest.raises(builtin):
        raise error(code, "no")


@every_code
@pytest.mark.parametrize("hint", [None, "do this", ""])
def test_pickling_and_copying_keep_everything(code: Code, hint: str | None):
    before = error(code, "no", hint)
    for after in (pickle.loads(pickle.dumps(before)), copy.copy(before)):  # noqa: S301 our own
        assert type(after) is type(before)
        assert (after.code, after.message, after.hint) == (before.code, before.message, before.hint)
        assert str(after) == str(before)


def test_an_os_error_of_ours_claims_no_errno_and_no_file():
    missing = error(Code.UNKNOWN_FILE, "no file has the id 5")
    assert isinstance(missing, OSError)
    assert (missing.errno, missing.filename) == (None, None)


@every_code
def test_a_code_is_parsed_from_its_name(code: Code):
    assert parse_code(str(code)) is code


@pytest.mark.parametrize("text", ["", "A_CODE_OF_TOMORROW", "no_match"])
def test_an_unknown_code_is_internal(text: str):
    assert parse_code(text) is Code.INTERNAL
