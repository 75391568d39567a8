"""The connection to MongoDB that a fleet's catalog, runs and leases share.

Each write is on the disks of a majority when it returns. One that timed out may have happened: whoever repeats it must
find it the same, so every write here is an upsert, or names what it expects. A cancelled operation would close its
connection in PyMongo, and leave its outcome unknown; operations are therefore shielded, and run to their end.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qs, parse_qsl, unquote, urlsplit

from ml_dash.errors import TABLE, Code, MLDashError, error
from ml_dashd.core.model import Trouble
from ml_dashd.core.redact import place, redact
from ml_dashd.edge.mongo_failures import named
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
            known = named(failure, self.place, self._members())
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

    def _members(self) -> dict[str, Exception]:
        """What keeps each member from being asked, as it was found out last."""
        members = self._client.topology_description.server_descriptions().values()
        return {f"{each.address[0]}:{each.address[1]}": each.error for each in members if each.error is not None}

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # of one whose caller is gone nobody else asks


def _theirs() -> type[Exception]:
    from pymongo.errors import PyMongoError  # noqa: PLC0415 optional

    return PyMongoError


def _connect(url: str) -> AsyncMongoClient[Document]:
    try:
        from pymongo import AsyncMongoClient  # noqa: PLC0415 optional
    except ImportError:
        what = f"the catalog {place(url)} needs PyMongo, which is not installed"
        raise error(Code.MISSING_LIBRARY, what, MISSING_HINT) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # an option that PyMongo would drop, such as a mistyped tls
            client: AsyncMongoClient[Document] = AsyncMongoClient(url, **_options(url))
        client.get_default_database()
    except _refusals() as refused:
        raise bad_url(url, _why(url, refused)) from None
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
    return error(
        Code.CONFIG, f"catalog.url {place(url)}: {redact(why)}", 'use "mongodb://host:port/database?option=value"'
    )


def check_url(url: str) -> None:
    """Raises CONFIG and MISSING_LIBRARY as `Mongo` does. Asks nobody."""
    _connect(url)


def _why(url: str, refused: Exception) -> str:
    """In PyMongo's words, which name no unknown option."""
    from pymongo.uri_parser import split_options  # noqa: PLC0415 optional

    said, unknown, names = str(refused).partition(" or maybe a camelCase")[0], "Unknown option", []
    if not said.startswith(unknown):
        return said
    for name, value in parse_qsl(urlsplit(url).query):
        try:
            split_options(f"{name}={value}")
        except _refusals() as one:
            names += [repr(name)] if str(one).startswith(unknown) else []
    return f"{unknown} {', '.join(names)}{said.removeprefix(unknown)}"


def _refusals() -> tuple[type[Exception], ...]:
    """What PyMongo says of a URL: a file that it names may be missing, too."""
    return (_theirs(), ValueError, Warning, OSError)
