"""AWS Signature Version 4, for requests whose payload is not signed: pure, and cheap enough for every small file.

docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html is the source; the tests compare it with botocore.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

UNSIGNED = "UNSIGNED-PAYLOAD"
"""In place of the payload's SHA-256: the checksum headers prove the payload, and are signed."""
ALGORITHM = "AWS4-HMAC-SHA256"


@dataclass(frozen=True, slots=True)
class Keys:
    """Credentials as they are at one moment; never shown."""

    access_key: str
    secret_key: str
    token: str | None = None

    def __repr__(self) -> str:
        return "Keys(…)"


class Signer:
    """Signs for one region and service. The day's signing key is derived once."""

    def __init__(self, region: str, service: str = "s3") -> None:
        self.region = region
        self._scope = f"{region}/{service}/aws4_request"
        self._service = service
        self._derived: tuple[str, str] = ("", "")
        self._prepared = hmac.new(b"", digestmod="sha256")

    def headers(
        self, keys: Keys, method: str, path: str, query: Mapping[str, str], given: Mapping[str, str], at: str
    ) -> dict[str, str]:
        """All headers of the request. `path` is encoded already; `given` holds "host" and has lower-case names.

        `at` is the time as 20260131T235959Z, UTC.
        """
        signed = {**given, "x-amz-content-sha256": UNSIGNED, "x-amz-date": at}
        if keys.token:
            signed["x-amz-security-token"] = keys.token
        names = sorted(signed)
        listed = ";".join(names)
        lines = "\n".join([f"{name}:{' '.join(signed[name].split())}" for name in names])
        request = f"{method}\n{path}\n{canonical_query(query)}\n{lines}\n\n{listed}\n{UNSIGNED}"
        scope = f"{at[:8]}/{self._scope}"
        text = f"{ALGORITHM}\n{at}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        signature = self._signature(keys.secret_key, at[:8], text.encode())
        signed["authorization"] = (
            f"{ALGORITHM} Credential={keys.access_key}/{scope}, SignedHeaders={listed}, Signature={signature}"
        )
        return signed

    def _signature(self, secret: str, day: str, text: bytes) -> str:
        """By a copy of the day's HMAC: hmac.digest() gives the interpreter's lock away, and small files wait for it."""
        if self._derived != (secret, day):
            key = f"AWS4{secret}".encode()
            for piece in (day, self.region, self._service, "aws4_request"):
                key = hmac.digest(key, piece.encode(), "sha256")
            self._derived, self._prepared = (secret, day), hmac.new(key, digestmod="sha256")
        signed = self._prepared.copy()
        signed.update(text)
        return signed.hexdigest()


def encode_key(key: str) -> str:
    """An object's key as it stands in a URL's path."""
    return quote(key, safe="/-._~")


def canonical_query(query: Mapping[str, str]) -> str:
    """The query in the order and encoding that is signed, and sent."""
    return "&".join(f"{quote(name, safe='-._~')}={quote(query[name], safe='-._~')}" for name in sorted(query))
