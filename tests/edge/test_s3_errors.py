"""What aiobotocore raises is sorted by what it was, not by what it is called."""

from __future__ import annotations

import errno

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey
from botocore import exceptions as boto

from ml_dashd.core.retry import Fault
from ml_dashd.edge.s3_errors import sorted_error

PLACE = ConnectionKey("host", 443, True, True, None, None, None)


@pytest.mark.parametrize(
    ("cause", "fault"),
    [
        (aiohttp.ClientConnectorError(PLACE, OSError(errno.ECONNREFUSED, "refused")), Fault.UNREACHABLE),
        (aiohttp.ClientOSError(errno.ECONNRESET, "reset"), Fault.TRANSIENT),
        (None, Fault.UNREACHABLE),
    ],
    ids=["never made", "reset", "nothing said"],
)
def test_a_connection_that_was_reset_is_no_unreachable_store(cause: Exception | None, fault: Fault) -> None:
    failure = boto.EndpointConnectionError(endpoint_url="https://host", error=cause)
    assert sorted_error(failure, "head x").fault is fault
