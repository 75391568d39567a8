"""Which of S3's errors mean what: every failure of a call becomes a StoreError with its Fault."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime

import aiohttp
from botocore import exceptions as boto

from ml_dashd.core.redact import redact
from ml_dashd.core.retry import Fault, StoreError
from ml_dashd.edge.system import SystemClock

FAULTS: dict[str, Fault] = {
    "SlowDown": Fault.THROTTLED,
    "ServiceUnavailable": Fault.THROTTLED,
    "TooManyRequests": Fault.THROTTLED,
    "RequestTimeout": Fault.TRANSIENT,
    "RequestTimeTooSkewed": Fault.SKEWED,
    "ExpiredToken": Fault.EXPIRED,
    "TokenRefreshRequired": Fault.EXPIRED,
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
    "NotImplemented": Fault.UNSUPPORTED,
    "InvalidStorageClass": Fault.UNSUPPORTED,
    "InvalidEncryptionAlgorithmError": Fault.UNSUPPORTED,
}
"""S3's error codes. Others follow their HTTP status: 5xx may pass, 403 is a denial, what else is 4xx stays refused."""


_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.ProfileNotFound,
    boto.ConfigParseError,
    boto.InvalidConfigError,
)
_NO_WAY = (
    aiohttp.ClientConnectorError,
    aiohttp.ClientHttpProxyError,
    boto.EndpointConnectionError,
    boto.ConnectTimeoutError,
    boto.SSLError,
    boto.ProxyConnectionError,
)
PROXY_AUTHENTICATION = 407
BODILESS_DENIAL = "403"
"""What botocore makes of an answer without a body."""
SKEW_S = 15 * 60
"""As far as S3 lets a clock be off."""


def sorted_error(failure: Exception, what: str) -> StoreError:
    """Whatever a call raised, as a StoreError. An endpoint's URL may hold a password, and owners read the message."""
    fault = _fault_of(failure)
    message = f"{what}: {str(failure) or type(failure).__name__}"
    if isinstance(failure, boto.ProxyConnectionError):
        message += f": {failure.kwargs.get('error')}"  # botocore leaves out what the proxy said
    if fault is Fault.SKEWED and isinstance(failure, boto.ClientError):
        message += clock_difference(_date_of(failure))
    return StoreError(fault, redact(message))


def _fault_of(failure: Exception) -> Fault:
    if isinstance(failure, boto.ClientError):
        return _fault_of_answer(failure)
    if isinstance(failure, _NO_CREDENTIALS):
        return Fault.CREDENTIALS
    # aiobotocore wraps what aiohttp raises.
    if isinstance(getattr(failure, "kwargs", {}).get("error", failure), aiohttp.ClientConnectorCertificateError):
        return Fault.UNTRUSTED
    if isinstance(failure, boto.EndpointConnectionError) and _was_connected(failure):
        return Fault.TRANSIENT
    if isinstance(failure, _NO_WAY):
        return Fault.UNREACHABLE
    return Fault.TRANSIENT


def _was_connected(failure: boto.EndpointConnectionError) -> bool:
    """For aiobotocore a connection that was reset, and one that was never made, are the same error."""
    cause = failure.kwargs.get("error")
    return isinstance(cause, aiohttp.ClientOSError) and not isinstance(cause, aiohttp.ClientConnectorError)


def _fault_of_answer(failure: boto.ClientError) -> Fault:
    about = failure.response.get("ResponseMetadata", {})
    fault = fault_of(code_of(failure), int(about.get("HTTPStatusCode", 0)))
    if fault is Fault.DENIED and code_of(failure) == BODILESS_DENIAL and _far_off(_date_of(failure)):
        return Fault.SKEWED  # a HEAD says no more than 403
    return fault


def fault_of(code: str, status: int) -> Fault:
    """The family of an answer that is no success."""
    if (fault := FAULTS.get(code)) is not None:
        return fault
    if status in (429, 503):  # Too Many Requests, Service Unavailable
        return Fault.THROTTLED
    if code.startswith("KMS.") or status == 403:  # noqa: PLR2004 Forbidden
        return Fault.DENIED
    if status == PROXY_AUTHENTICATION:
        return Fault.UNREACHABLE
    if status >= 500 or status < 400:  # noqa: PLR2004 a 200 can hold an error, too
        return Fault.TRANSIENT
    return Fault.REFUSED


def clock_difference(date: str | None) -> str:
    """How far this machine's clock is off the store's, as the end of a message; "" where its answer has no date."""
    off = _off_s(date)
    return (
        ""
        if off is None
        else f" (this machine's clock is {abs(off)} s {'ahead of' if off > 0 else 'behind'} the store's)"
    )


def _far_off(date: str | None) -> bool:
    return abs(_off_s(date) or 0) > SKEW_S


def _off_s(date: str | None) -> int | None:
    try:
        theirs = parsedate_to_datetime(date or "")
    except ValueError:
        return None
    return round(SystemClock().now_ms() / 1000 - theirs.timestamp())


def _date_of(failure: boto.ClientError) -> str | None:
    said: str | None = failure.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    return said


def as_placed(refused: StoreError, asked: Mapping[str, str]) -> StoreError:
    """What is refused where headers ask for encryption or a storage class is refused for them."""
    if refused.fault is not Fault.REFUSED or not asked:
        return refused
    named = ", ".join(f"{name}: {value}" for name, value in asked.items())
    return StoreError(Fault.UNSUPPORTED, f"{refused.message} (asked for {named})")


def code_of(failure: BaseException) -> str:
    """The S3 error code of what a call raised; "" for anything else."""
    response = getattr(failure, "response", {})
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""
