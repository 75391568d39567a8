"""Requests: the key and the number by which one is known, and the answer that it is due."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from ml_dash.errors import Code, error, parse_code
from ml_dash.messages import Failed, Message

M = TypeVar("M", bound=Message)


def now_ms() -> int:
    """Milliseconds since 1970, UTC: the clock that the daemon on this machine has too."""
    return time.time_ns() // 1_000_000


def new_key() -> bytes:
    """An idempotency key. It begins with the time, so that those of one daemon's index lie side by side."""
    return now_ms().to_bytes(6, "big") + secrets.token_bytes(10)


def numbered(message: M) -> Callable[[int], M]:
    """What makes that request with its number."""
    return lambda number: replace(message, request=number)


def expect(reply: type[M], answer: Message) -> M:
    """The answer, where it is of that kind. Raises what the daemon refused with."""
    if isinstance(answer, Failed):
        raise error(parse_code(answer.code), answer.message, answer.hint)
    if not isinstance(answer, reply):
        raise error(Code.PROTOCOL, f"{type(answer).__name__} came where {reply.__name__} was due")
    return answer
