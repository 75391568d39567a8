"""pytest plugin: the running servers. Load it with `pytest_plugins = ["tests.servers.fixtures"]`."""

import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

import pymongo
import pytest

from tests.doubles.s3_double import S3Double
from tests.servers.ceph import Ceph
from tests.servers.debian import NotInstallableError
from tests.servers.environments import EnvironmentUnavailableError, frameworks_python, torch_python
from tests.servers.localstack import LocalStack
from tests.servers.mongodb import MongoDB
from tests.servers.s3server import S3Server
from tests.servers.swift import Swift

Server = TypeVar("Server", bound=S3Server)

GIVEN_MONGODB = os.environ.get("ML_DASH_TEST_MONGODB_URL", "")
"""Read before the tests are isolated from the environment."""


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swift]:
    """Swift, started for the first test that asks; a test that kills it must start it again."""
    yield from _serve(Swift(tmp_path_factory.mktemp("swift")))


@pytest.fixture(scope="session")
def localstack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """LocalStack, started for the first test that asks."""
    yield from _serve(LocalStack(tmp_path_factory.mktemp("localstack")))


@pytest.fixture(scope="session")
def s3_double() -> Iterator[S3Double]:
    """AWS's semantics in this process; a test that changes its keys or its clock makes one of its own."""
    with S3Double() as server:
        yield server


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    """Ceph's gateway, started for the first test that asks; without it, and without root to install it, they skip."""
    try:
        yield from _serve(Ceph(tmp_path_factory.mktemp("ceph")))
    except NotInstallableError as reason:
        pytest.skip(f"no Ceph: {reason}")


@pytest.fixture(scope="session")
def mongodb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MongoDB]:
    """A mongod, started for the first test that asks; a test that kills one makes one of its own."""
    with MongoDB(tmp_path_factory.mktemp("mongodb")) as server:
        yield server


@pytest.fixture
def mongodb_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The catalog.url of an empty database: on the server that ML_DASH_TEST_MONGODB_URL names, else on our own."""
    name = f"ml_dash_test_{secrets.token_hex(6)}"
    given = GIVEN_MONGODB
    if given:
        parts = urlsplit(given)
        url = urlunsplit(parts._replace(path=f"/{name}"))
    else:
        url = request.getfixturevalue("mongodb").url(name)
    yield url
    with pymongo.MongoClient(url) as client:
        client.drop_database(name)


@pytest.fixture(scope="session")
def torch() -> Path:
    """A Python that has torch; where pip finds no build for CPUs alone, those who ask skip."""
    try:
        return torch_python()
    except EnvironmentUnavailableError as reason:
        last = str(reason).strip().splitlines()[-1]
        pytest.skip(f"no torch (PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu has it): {last}")


@pytest.fixture(scope="session")
def frameworks() -> Path:
    """A Python that has torch, Lightning and transformers; where they can't be installed, those who ask skip."""
    try:
        return frameworks_python()
    except EnvironmentUnavailableError as reason:
        last = str(reason).strip().splitlines()[-1]
        pytest.skip(f"no frameworks (PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu has torch): {last}")


def _serve(server: Server) -> Iterator[Server]:
    with server:
        yield server
    # pytest keeps the directories of three runs: the logs are worth it, the objects are not.
    for bulky in (server.data, server.state / "tmp"):
        shutil.rmtree(bulky, ignore_errors=True)
