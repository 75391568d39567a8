"""What goes in and out: a request that was verified, an answer, a refusal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from xml.sax.saxutils import escape

NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
STATUS = {
    "AccessDenied": 403,
    "BadDigest": 400,
    "BucketAlreadyOwnedByYou": 409,
    "BucketNotEmpty": 409,
    "EntityTooLarge": 400,
    "EntityTooSmall": 400,
    "ExpiredToken": 400,
    "IncompleteBody": 400,
    "InvalidAccessKeyId": 403,
    "InvalidArgument": 400,
    "InvalidDigest": 400,
    "InvalidPart": 400,
    "InvalidPartOrder": 400,
    "InvalidRange": 416,
    "InvalidRequest": 400,
    "InvalidToken": 400,
    "KeyTooLongError": 400,
    "MalformedXML": 400,
    "MetadataTooLarge": 400,
    "MethodNotAllowed": 405,
    "MissingContentLength": 411,
    "NoSuchBucket": 404,
    "NoSuchKey": 404,
    "NoSuchUpload": 404,
    "NotImplemented": 501,
    "PreconditionFailed": 412,
    "RequestTimeTooSkewed": 403,
    "SignatureDoesNotMatch": 403,
    "XAmzContentSHA256Mismatch": 400,
}
"""Each error code with its HTTP status, as in AWS's list of error responses."""


class Refusal(Exception):  # noqa: N818 it is an answer
    """An answer that is no success."""

    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(f"{code} {message}".rstrip())
        self.code = code
        self.message = message

    def answer(self) -> Answer:
        text = f"<Error><Code>{self.code}</Code><Message>{escape(self.message)}</Message></Error>"
        return Answer(STATUS[self.code], {"Content-Type": "application/xml"}, text.encode())


@dataclass(frozen=True, slots=True)
class Request:
    """A request whose signature and body were verified. Header names are in lower case."""

    method: str
    bucket: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    content: bytes = b""
    checksums: Mapping[str, str] = field(default_factory=dict)
    """Those that its sender stated, by algorithm, base64; each was verified, unless it is of another content."""

    def number(self, name: str, default: int, least: int, most: int) -> int:
        """A number of the query; the answer is InvalidArgument where it is none, or less than the least."""
        text = self.query.get(name) or str(default)
        if not text.isdecimal() or int(text) < least:
            raise Refusal("InvalidArgument", f"{name} is {text!r}")
        return min(int(text), most)


@dataclass(frozen=True, slots=True)
class Answer:
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""


def xml(name: str, *elements: str) -> Answer:
    """A document of these elements."""
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<{name} {NAMESPACE}>{"".join(elements)}</{name}>'
    return Answer(200, {"Content-Type": "application/xml"}, text.encode())


def element(name: str, value: object) -> str:
    if isinstance(value, bool):
        value = str(value).lower()
    if isinstance(value, datetime):
        value = f"{value:%Y-%m-%dT%H:%M:%S.000Z}"
    return f"<{name}>{escape(str(value))}</{name}>"


def nested(name: str, elements: Iterable[str]) -> str:
    return f"<{name}>{''.join(elements)}</{name}>"
