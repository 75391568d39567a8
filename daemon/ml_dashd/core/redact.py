"""What nobody may read in a log, a status or an answer: credentials, in whatever text they come."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

HIDDEN = "***"

_NAMED = (
    r"x-amz-(?:credential|signature|security-token)"  # a presigned URL's query, SigV4's headers
    r"|signature|awsaccesskeyid|aws_access_key_id"
    r"|(?:aws_?)?secret_?(?:access_?)?key"
    r"|(?:aws_?)?session_?token"
    r"|pass(?:word|wd)"
)
_PATTERNS = (
    # scheme://user:password@host
    (("://",), re.compile(r"(?<=://)[^/?#\s\"'<>]*@"), f"{HIDDEN}@"),
    # A header's value is all of the rest of its line, or of its quotes.
    (
        (":", "="),
        re.compile(r"\b((?:proxy-)?authorization['\"]?\s*[:=]\s*(?:b?['\"])?)[^'\"\r\n]+", re.IGNORECASE),
        rf"\1{HIDDEN}",
    ),
    # name=value and name: value, in a query, a setting or JSON
    (
        (":", "="),
        re.compile(rf"\b((?:{_NAMED})['\"]?\s*[:=]\s*(?:b?['\"])?)[^&\s'\",;}}]+", re.IGNORECASE),
        rf"\1{HIDDEN}",
    ),
    # An access key's id, by the prefixes that AWS gives: long-lived, temporary, bearer, context.
    (("AKIA", "ASIA", "ABIA", "ACCA"), re.compile(r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{12,}\b"), HIDDEN),
)
"""What a text must hold to be searched, for most hold none of it; the pattern; and what takes its place."""


def redact(text: str) -> str:
    """The text with `***` in place of whatever looks like a credential. Idempotent."""
    for needles, pattern, instead in _PATTERNS:
        if any(needle in text for needle in needles):
            text = pattern.sub(instead, text)
    return text


def place(url: str) -> str:
    """A catalog.url for people: the hosts and the database, without user, password and options."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
