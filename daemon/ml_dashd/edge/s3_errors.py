"""Which of S3's errors mean what: every failure of a call becomes a StoreError with its Fault."""

from __future__ import annotations

import aiohttp
from botocore import exceptions as boto

from ml_dashd.core.redact import redact
from ml_dashd.core.retry import Fault, StoreError

FAULTS: dict[str, Fault] = {
    "SlowDown": Fault.THROTTLED,
    "ServiceUnavailable": Fault.THROTTLED,
    "TooManyRequests": Fault.THROTTLED,
    "RequestTimeout": Fault.TRANSIENT,
    "RequestTimeTooSkewed": Fault.TRANSIENT,
    "ExpiredToken": Fault.TRANSIENT,
    "OperationAborted": Fault.TRANSIENT,
    "BadDigest": Fault.CORRUPT,
    "InvalidDigest": Fault.CORRUPT,
    "IncompleteBody": Fault.CORRUPT,
    "XAmzContentChecksumMismatch": Fault.CORRUPT,
    "NoSuchUpload": Fault.GONE,
    "InvalidPart": Fault.GONE,
    "InvalidPartOrder": Fault.GONE,
    "EntityTooSmall": Fault.GONE,
    "NoSuchBucket": Fault.NO_BUCKET,
    "InvalidAccessKeyId": Fault.CREDENTIALS,
    "SignatureDoesNotMatch": Fault.CREDENTIALS,
    "InvalidToken": Fault.CREDENTIALS,
    "AuthorizationHeaderMalformed": Fault.CREDENTIALS,
    "AccessDenied": Fault.DENIED,
    "AllAccessDisabled": Fault.DENIED,
    "AccountProblem": Fault.DENIED,
}
"""S3's error codes. Others follow their HTTP status: 5xx may pass, 403 is a denial, what else is 4xx stays refused."""


def sorted_error(failure: Exception, what: str) -> StoreError:
    """Whatever a call raised, as a StoreError. An endpoint's URL may hold a password, and owners read the message."""
    return StoreError(_fault_of(failure), redact(f"{what}: {str(failure) or type(failure).__name__}"))


def _fault_of(failure: Exception) -> Fault:
    if isinstance(failure, boto.ClientError):
        return _fault_of_answer(failure)
    if isinstance(failure, boto.NoCredentialsError | boto.PartialCredentialsError | boto.CredentialRetrievalError):
        return Fault.CREDENTIALS
    if isinstance(failure, aiohttp.ClientConnectorError):
        return Fault.UNREACHABLE
    if isinstance(
        failure, boto.EndpointConnectionError | boto.ConnectTimeoutError | boto.SSLError | boto.ProxyConnectionError
    ):
        return Fault.UNREACHABLE
    return Fault.TRANSIENT


def _fault_of_answer(failure: boto.ClientError) -> Fault:
    code = str(failure.response.get("Error", {}).get("Code", ""))
    return fault_of(code, int(failure.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)))


def fault_of(code: str, status: int) -> Fault:
    """The family of an answer that is no success."""
    if (fault := FAULTS.get(code)) is not None:
        return fault
    if code.startswith("KMS.") or status == 403:  # noqa: PLR2004 Forbidden
        return Fault.DENIED
    if status >= 500 or status < 400:  # noqa: PLR2004 a 200 can hold an error, too
        return Fault.TRANSIENT
    return Fault.REFUSED


def code_of(failure: BaseException) -> str:
    """The S3 error code of what a call raised; "" for anything else."""
    response = getattr(failure, "response", {})
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""
