"""Signatures, compared with botocore's for any key, query, header and moment."""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from ml_dashd.core.sigv4 import Keys, Signer, canonical_query, encode_key

HOST = "s3.eu-north-1.amazonaws.com"
words = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=30)
plain = st.text("abcXYZ019+/=;:,. ", min_size=1, max_size=30)
keys = st.builds(
    Keys, plain.map(str.strip).filter(bool), plain, st.one_of(st.none(), plain.map(str.strip).filter(bool))
)


def botocores(keys: Keys, url: str, given: dict[str, str], at: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The Authorization header that botocore makes."""
    request = AWSRequest(method="PUT", url=url, headers=given, data=b"")
    request.context["payload_signing_enabled"] = False
    request.context["client_config"] = type("Config", (), {"s3": {"payload_signing_enabled": False}})()
    auth = S3SigV4Auth(Credentials(keys.access_key, keys.secret_key, keys.token), "s3", "eu-north-1")
    moment = datetime.strptime(at, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda *_, **__: moment)
    auth.add_auth(request)
    return str(request.headers["Authorization"])


@given(
    keys=keys,
    key=st.lists(words, min_size=1, max_size=4).map("/".join),
    query=st.dictionaries(st.sampled_from(["partNumber", "uploadId", "x", "A"]), words, max_size=3),
    extra=st.dictionaries(st.sampled_from(["x-amz-meta-id", "content-md5", "x-amz-checksum-crc64nvme"]), plain),
    moments=st.lists(st.integers(1_580_000_000, 2_200_000_000), min_size=1, max_size=3),
)
def test_a_signature_is_botocores(keys, key, query, extra, moments):
    signer = Signer("eu-north-1")
    with pytest.MonkeyPatch.context() as monkeypatch:
        for moment in moments:  # one signer for many requests, on several days
            at = datetime.fromtimestamp(moment, UTC).strftime("%Y%m%dT%H%M%SZ")
            given = {"host": HOST, "content-type": "text/plain", **extra}
            path = f"/bucket/{encode_key(key)}"
            ours = signer.headers(keys, "PUT", path, query, given, at)
            text = canonical_query(query)
            url = f"https://{HOST}{path}" + (f"?{text}" if text else "")
            theirs = botocores(
                keys, url, {name: value for name, value in given.items() if name != "host"}, at, monkeypatch
            )
            assert ours["authorization"] == theirs
            assert urlsplit(url).path == path


def test_secrets_are_not_shown():
    shown = repr(Keys("AKIAEXAMPLE", "secret", "token"))
    assert "secret" not in shown
    assert "token" not in shown
    assert "AKIA" not in shown
