"""The connection to MongoDB that a fleet's catalog, runs and leases share.

Each write is on the disks of a majority when it returns. One that timed out may have happened: whoever repeats it must
find it the same, so every write here is an upsert, or names what it expects. A cancelled operation would close its
connection in PyMongo, and leave its outcome unknown; operations are therefore shielded, and run to their end.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from ml_dash.errors import TABLE, Code, MLDashError, error
from ml_dashd.core.model import Trouble
from ml_dashd.core.redact import redact
from ml_dashd.ports import JournalError

if TYPE_CHECKING:
    from pymongo import AsyncMongoClient
    from pymongo.asynchronous.collection import AsyncCollection
    from pymongo.asynchronous.database import AsyncDatabase

T = TypeVar("T")
Document = dict[str, Any]

SELECTION_MS = 5_000
"""How long an operation waits for a primary: an election takes a second or two, and who waits is told soon after."""
CONNECT_MS = 5_000
SOCKET_MS = 60_000
"""A server that takes an operation and is not heard of again: a half-open connection, a frozen disk."""
WRITE_MS = 30_000
"""wtimeout: how long a write waits for the majority. The outcome is unknown then, and the write is repeated."""
POOL = 16
"""Connections of a daemon to the primary, besides the two by which it watches each member; an idle one keeps one."""
IDLE_MS = 60_000
MISSING_HINT = "pip install 'ml-dash[fleet]'"

_DENIED = {13, 18, 8000}
"""Unauthorized, AuthenticationFailed, Atlas's own (MongoDB's error_codes.yml)."""
_FULL = {14031, 12501}
"""OutOfDiskSpace, quota exceeded."""
_PASSED = {239, 246}
"""SnapshotTooOld, SnapshotUnavailable: after a restart or a fail-over a moment that was read before may be gone."""


class Mongo:
    """A client of one database. Made without a connection: a server that is away is found so by the first call."""

    def __init__(self, url: str, prepare: Callable[[Mongo], Coroutine[Any, Any, None]] | None = None) -> None:
        """Takes a catalog.url, and what is to be done in the database, by `run`, before the first call.

        Raises CONFIG for a URL that PyMongo refuses, MISSING_LIBRARY without PyMongo.
        """
        self.place = place(url)
        self._prepare = prepare
        self._preparing: asyncio.Task[None] | None = None
        self._client = _connect(url)
        self._trouble: Trouble | None = None
        self._under_way: set[asyncio.Task[Any]] = set()

    @property
    def client(self) -> AsyncMongoClient[Document]:
        return self._client

    @property
    def database(self) -> AsyncDatabase[Document]:
        """The one that the URL names."""
        return self._client.get_default_database()

    def collection(self, name: str) -> AsyncCollection[Document]:
        return self.database[name]

    async def call(self, work: Coroutine[Any, Any, T]) -> T:
        """`run`, once the database is prepared, whenever it is reached. Raises JournalError with CONFIG, too."""
        try:
            if self._prepare is not None:
                await self._be_prepared(self._prepare)
        except BaseException:
            work.close()
            raise
        return await self.run(work)

    async def _be_prepared(self, prepare: Callable[[Mongo], Coroutine[Any, Any, None]]) -> None:
        """Whoever comes while it is tried shares the outcome."""
        if self._preparing is None or self._preparing.done():
            self._preparing = asyncio.create_task(prepare(self))
            self._preparing.add_done_callback(self._ended)
        try:
            await asyncio.shield(self._preparing)
        except MLDashError as refused:
            self._trouble = Trouble(refused.code, refused.message, refused.hint)
            raise JournalError(refused.message, refused.code) from None
        self._prepare = None

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of an operation, or of several; it runs to its end though its caller be cancelled.

        Raises JournalError with CATALOG_UNREACHABLE, CATALOG_DENIED or CATALOG_FULL; then the outcome may be unknown,
        and the operation is to be repeated. Whatever else it raises is a defect, or the work's own.
        """
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        try:
            result = await asyncio.shield(task)
        except _theirs() as failure:
            known = named(failure, self.place)
            if known is None:
                raise
            self._trouble = Trouble(known.code, str(known), TABLE[known.code].hint)
            raise known from None  # PyMongo's own words may hold the URL
        self._trouble = None
        return result

    def trouble(self) -> Trouble | None:
        """Why the last operation failed; None where it did not."""
        return self._trouble

    async def close(self) -> None:
        """Waits for what is under way, and lets go of connections. Idempotent."""
        if self._under_way:
            await asyncio.wait(self._under_way)
        await self._client.close()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # of one whose caller is gone nobody else asks


def place(url: str) -> str:
    """A catalog.url for people: the hosts and the database, without user, password and options."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def named(failure: Exception, where: str) -> JournalError | None:
    """PyMongo's exception as a JournalError that names the place; None for what no operator could mend."""
    code = _code(failure)
    if code in _DENIED:
        kind = Code.CATALOG_DENIED
    elif code in _FULL:
        kind = Code.CATALOG_FULL
    elif _is_away(failure):
        kind = Code.CATALOG_UNREACHABLE
    else:
        return None
    return JournalError(f"the catalog {where}: {_words(failure)}", kind)


def _is_away(failure: Exception) -> bool:
    """Whether it may be there again by itself: no connection, no primary, no majority, too slow."""
    from pymongo import errors  # noqa: PLC0415 optional

    away = (
        errors.ConfigurationError,  # a name that DNS does not have now
        errors.ConnectionFailure,
        errors.WTimeoutError,
        errors.ExecutionTimeout,
        errors.WaitQueueTimeoutError,
    )
    if isinstance(failure, away) or _code(failure) in _PASSED:
        return True
    details: Mapping[str, Any] = getattr(failure, "details", None) or {}
    if isinstance(failure, errors.BulkWriteError):
        return bool(details.get("writeConcernErrors")) and not details.get("writeErrors")
    if isinstance(failure, errors.WriteConcernError):
        return True
    return isinstance(failure, errors.PyMongoError) and (
        failure.has_error_label("RetryableWriteError") or failure.has_error_label("TransientTransactionError")
    )


def _code(failure: Exception) -> int:
    """The server's number; of a bulk write, of the first that failed."""
    details: Mapping[str, Any] = getattr(failure, "details", None) or {}
    for entry in details.get("writeErrors") or []:
        return int(entry.get("code") or 0)
    return int(getattr(failure, "code", None) or 0)


def _words(failure: Exception) -> str:
    """What it says, in one line, without the description of the whole topology."""
    text = str(failure).partition(", Timeout:")[0].partition(", full error:")[0]
    return redact(text)[:500] or type(failure).__name__


def _theirs() -> type[Exception]:
    from pymongo.errors import PyMongoError  # noqa: PLC0415 optional

    return PyMongoError


def _connect(url: str) -> AsyncMongoClient[Document]:
    try:
        from pymongo import AsyncMongoClient  # noqa: PLC0415 optional
        from pymongo.errors import PyMongoError  # noqa: PLC0415
    except ImportError:
        what = f"the catalog {place(url)} needs PyMongo, which is not installed"
        raise error(Code.MISSING_LIBRARY, what, MISSING_HINT) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # an option that PyMongo would drop, such as a mistyped tls
            client: AsyncMongoClient[Document] = AsyncMongoClient(url, **_options(url))
        client.get_default_database()
    except (PyMongoError, ValueError, Warning) as refused:
        raise bad_url(url, str(refused)) from None
    return client


def _options(url: str) -> dict[str, Any]:
    """What the URL does not say otherwise, and what it may not: how durable a write is, and what is read."""
    fixed: dict[str, Any] = {
        "w": "majority",
        "journal": True,
        "readConcernLevel": "majority",
        "readPreference": "primary",
        "retryWrites": True,
        "retryReads": True,
    }
    usual: dict[str, Any] = {
        "wTimeoutMS": WRITE_MS,
        "serverSelectionTimeoutMS": SELECTION_MS,
        "connectTimeoutMS": CONNECT_MS,
        "socketTimeoutMS": SOCKET_MS,
        "maxPoolSize": POOL,
        "maxIdleTimeMS": IDLE_MS,
        "waitQueueTimeoutMS": SELECTION_MS,
        "appname": "ml-dashd",
    }
    named = {name.lower() for name in parse_qs(urlsplit(url).query)}
    return fixed | {name: value for name, value in usual.items() if name.lower() not in named}


def bad_url(url: str, why: str) -> MLDashError:
    """The error of a URL that names no database, or has options that do not exist. Its password is not shown."""
    password = urlsplit(url).netloc.rpartition("@")[0].partition(":")[2]
    for secret in {password, unquote(password)} - {""}:
        why = why.replace(secret, "***")
    return error(Code.CONFIG, f"catalog.url {place(url)}: {redact(why)}", 'use "mongodb://host:port/database"')
