"""The S3 double, and a client of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from tests.doubles.s3_double import S3Double


@pytest.fixture
def double() -> Iterator[S3Double]:
    with S3Double() as server:
        server.make_bucket("bucket")
        yield server


@pytest.fixture
def s3(double: S3Double) -> Iterator[Any]:
    with closing(double.client()) as client:
        yield client
