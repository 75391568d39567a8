"""No credential is left in a text, whatever it stands in; and a text without one is left as it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_dashd.core.redact import place, redact

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
KEY_ID = "AKIAIOSFODNN7EXAMPLE"

WITH_CREDENTIALS = {
    "URL": ("can't reach https://ann:hunter2@s3.example.org/bucket", "hunter2", "https://***@s3.example.org/bucket"),
    "URL with an @ in the password": ("mongodb://ann:hunter@2@db/x", "hunter", "mongodb://***@db/x"),
    "URL with a name alone": ("https://hunter2@host", "hunter2", "https://***@host"),
    "Authorization": (
        f"authorization: AWS4-HMAC-SHA256 Credential={KEY_ID}/20260101/r/s3/aws4_request, Signature=hunter2",
        "hunter2",
        "authorization: ***",
    ),
    "Authorization in a dict": ("{'Authorization': b'Basic aHVudGVy', 'Host': 'h'}", "aHVudGVy", "'Host': 'h'}"),
    "Proxy-Authorization": ("Proxy-Authorization: Bearer hunter2", "hunter2", "Proxy-Authorization: ***"),
    "session token": ("x-amz-security-token:hunter2\nhost:h", "hunter2", "\nhost:h"),
    "presigned": (
        f"https://b.s3/k?X-Amz-Credential={KEY_ID}%2F2026&X-Amz-Signature=hunter2&X-Amz-Expires=5",
        "hunter2",
        "&X-Amz-Expires=5",
    ),
    "presigned by version 2": (
        f"https://b.s3/k?AWSAccessKeyId={KEY_ID}&Signature=hunter2",
        "hunter2",
        "https://b.s3/k?",
    ),
    "environment": (f"AWS_SECRET_ACCESS_KEY={SECRET} HOME=/root", SECRET, "HOME=/root"),
    "profile": (f"aws_secret_access_key = {SECRET}\nregion = x", SECRET, "region = x"),
    "keyword": (f'Credentials(secret_key="{SECRET}", method="env")', SECRET, 'method="env")'),
    "JSON": (f'{{"SecretAccessKey": "{SECRET}", "SessionToken": "hunter2"}}', SECRET, '"SessionToken": "***"'),
    "access key": (f"InvalidAccessKeyId: {KEY_ID} is not known", KEY_ID, "InvalidAccessKeyId: *** is not known"),
    "temporary access key": ("ASIAIOSFODNN7EXAMPLE", "ASIA", "***"),
    "password": ("password=hunter2&x=1", "hunter2", "password=***&x=1"),
}


@pytest.mark.parametrize(("text", "secret", "left"), WITH_CREDENTIALS.values(), ids=WITH_CREDENTIALS.keys())
def test_a_credential_is_taken_out_and_the_rest_stays(text: str, secret: str, left: str) -> None:
    shown = redact(text)
    assert secret not in shown
    assert KEY_ID not in shown
    assert left in shown
    assert redact(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "checkpoints/epoch-12/model.pt",
        "https://s3.example.org:9000/bucket/key?partNumber=3&uploadId=x",
        "put files/ann@home/x: An error occurred (AccessDenied) when calling the PutObject operation: denied",
        "no credentials were found: Unable to locate credentials",
        "AKIA is too short",
        "SignatureDoesNotMatch",
    ],
)
def test_what_holds_none_is_left_as_it_is(text: str) -> None:
    assert redact(text) == text


@given(st.text(), st.text(alphabet=st.characters(categories=["L", "N"]), min_size=1), st.text())
def test_a_password_in_a_url_is_never_left(before: str, password: str, after: str) -> None:
    secret = f"«{password}»"
    assert secret not in redact(f"{before}https://ann:{secret}@host/{after}")


@pytest.mark.parametrize("user", ["", "u:p@", "u:p@ss@"])
def test_a_place_is_hosts_and_database(user: str) -> None:
    assert place(f"mongodb://{user}a:1,b:2/fleet?tls=true") == "mongodb://a:1,b:2/fleet"
