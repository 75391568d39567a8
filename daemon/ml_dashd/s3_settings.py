"""What the settings of an S3 store must be, beyond the kind of each value."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ml_dash.errors import Code, error

if TYPE_CHECKING:
    from ml_dashd.config import StoreConfig

UNREADABLE_CLASSES = ("GLACIER", "DEEP_ARCHIVE")
"""Objects of these have to be restored, for hours, before they can be read."""


def check_s3(store: StoreConfig) -> None:
    """Raises CONFIG with the key and what is allowed."""
    if store.ca_bundle:
        _check_bundle(store.ca_bundle)
    if store.sse_kms_key_id and not store.sse.startswith("aws:kms"):
        raise error(
            Code.CONFIG, f"store.sse_kms_key_id is set, and store.sse is {store.sse!r}", 'set store.sse = "aws:kms"'
        )
    for name, value in (("sse_kms_key_id", store.sse_kms_key_id), ("storage_class", store.storage_class)):
        if not re.fullmatch(r"[!-~]*", value):  # it becomes a header
            raise error(Code.CONFIG, f"store.{name} is {value!a}", "it must be ASCII without spaces")
    if store.storage_class in UNREADABLE_CLASSES:
        raise error(
            Code.CONFIG,
            f"store.storage_class is {store.storage_class}, whose objects can't be read back",
            "use STANDARD_IA or GLACIER_IR, and a lifecycle rule of the bucket for what gets old",
        )
    if store.addressing == "virtual" and _is_address(store.endpoint_url):
        raise error(
            Code.CONFIG,
            f"store.addressing is virtual, and {store.endpoint_url} has an address for a host",
            'use "path", or a host name of which bucket.host is known, too',
        )


def _check_bundle(path: str) -> None:
    import ssl  # noqa: PLC0415 few need it, and everybody would wait for it

    try:
        ssl.create_default_context(cafile=path)
    except ssl.SSLError as bad:
        raise error(
            Code.CONFIG, f"store.ca_bundle: {path} holds no certificate that can be read ({bad.reason or bad})", PEM
        ) from None
    except OSError as failure:
        raise error(Code.CONFIG, f"store.ca_bundle: {path}: {failure.strerror}", PEM) from None


PEM = "name a file of certificates in PEM (-----BEGIN CERTIFICATE-----)"


def _is_address(url: str) -> bool:
    try:
        ipaddress.ip_address(urlsplit(url).hostname or "")
    except ValueError:
        return False
    return True
