"""AWS Signature Version 4 as a server checks it, written from its documentation and not from the client's code."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, unquote_to_bytes

from tests.doubles.s3_double.exchange import Refusal

ALGORITHM = "AWS4-HMAC-SHA256"
MOST_SKEW_S = 15 * 60
"""How far a request's time may be from the server's."""
AUTHORIZATION = re.compile(
    ALGORITHM + r"\s+Credential=(?P<key>[^/,]+)/(?P<day>\d{8})/(?P<region>[^/]+)/s3/aws4_request,"
    r"\s*SignedHeaders=(?P<signed>[^,]+),\s*Signature=(?P<signature>[0-9a-f]{64})"
)
UNSIGNED = "UNSIGNED-PAYLOAD"


@dataclass(frozen=True, slots=True)
class Secret:
    """What belongs to an access key."""

    secret_key: str
    token: str | None = None
    expires_s: float | None = None
    """Unix time after which the server says ExpiredToken."""


@dataclass(frozen=True, slots=True)
class Signed:
    """A request as its signature covers it. The path is as it was sent, the query decoded."""

    method: str
    path: str
    query: Sequence[tuple[str, str]]
    headers: Mapping[str, str]


def verify(request: Signed, secrets: Mapping[str, Secret], region: str, now_s: float) -> None:
    """Raises Refusal unless a known key has signed this request, of this time, for this region."""
    found = AUTHORIZATION.fullmatch(request.headers.get("authorization", ""))
    if found is None:
        raise Refusal("AccessDenied", "the request is not signed with Signature Version 4 in a header")
    secret = secrets.get(found["key"])
    if secret is None:
        raise Refusal("InvalidAccessKeyId", f"there is no key {found['key']}")
    at = request.headers.get("x-amz-date", "")
    _check_time(at, found["day"], now_s)
    if found["region"] != region:
        raise Refusal("SignatureDoesNotMatch", f"signed for {found['region']}, and this is {region}")
    signed = found["signed"].split(";")
    _check_covered(request.headers, signed)
    scope = f"{found['day']}/{region}/s3/aws4_request"
    expected = _signature(_canonical(request, signed), secret.secret_key, at, scope)
    if not hmac.compare_digest(expected, found["signature"]):
        raise Refusal("SignatureDoesNotMatch", "the signature is not that of this request and this secret")
    if request.headers.get("x-amz-security-token") != secret.token:
        raise Refusal("InvalidToken", "the session token is not that of the key")
    if secret.expires_s is not None and now_s > secret.expires_s:
        raise Refusal("ExpiredToken", "the session token has expired")


def _check_time(at: str, day: str, now_s: float) -> None:
    try:
        moment = datetime.strptime(at, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise Refusal("AccessDenied", f"x-amz-date is {at!r}") from None
    if at[:8] != day:
        raise Refusal("SignatureDoesNotMatch", "the day of the credential is not that of the request")
    if abs(moment.timestamp() - now_s) > MOST_SKEW_S:
        raise Refusal("RequestTimeTooSkewed", "the request's time and this server's differ by too much")


def _check_covered(headers: Mapping[str, str], signed: Sequence[str]) -> None:
    if list(signed) != sorted(set(signed)) or "host" not in signed:
        raise Refusal("SignatureDoesNotMatch", "the signed headers are not in order, or without the host")
    for name in headers:
        if name.startswith("x-amz-") and name not in signed:
            raise Refusal("AccessDenied", f"the header {name} is not signed")
    if missing := [name for name in signed if name not in headers]:
        raise Refusal("SignatureDoesNotMatch", f"signed headers did not arrive: {', '.join(missing)}")


def _canonical(request: Signed, signed: Sequence[str]) -> str:
    query = "&".join(sorted(f"{_quote(name)}={_quote(value)}" for name, value in request.query))
    lines = "".join(f"{name}:{' '.join(request.headers[name].split())}\n" for name in signed)
    payload = request.headers.get("x-amz-content-sha256", UNSIGNED)
    path = quote(unquote_to_bytes(request.path), safe="/-._~")
    return "\n".join((request.method, path, query, lines, ";".join(signed), payload))


def _signature(canonical: str, secret: str, at: str, scope: str) -> str:
    text = "\n".join((ALGORITHM, at, scope, hashlib.sha256(canonical.encode()).hexdigest()))
    key = f"AWS4{secret}".encode()
    for piece in scope.split("/"):
        key = hmac.digest(key, piece.encode(), "sha256")
    return hmac.digest(key, text.encode(), "sha256").hex()


def _quote(text: str) -> str:
    return quote(text, safe="-._~")
