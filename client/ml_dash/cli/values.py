"""What can be typed as a value, and options that several commands share."""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

LONGEST_S = 24 * 3600
UNITS = {"s": 1, "m": 60, "h": 3600}


def add_prefix(parser: argparse.ArgumentParser) -> None:
    """The experiment."""
    parser.add_argument("--prefix", metavar="NS/PROJ/EXP", help="the experiment (default: $ML_DASH_PREFIX)")


def add_described(parser: argparse.ArgumentParser) -> None:
    """What is said of a file."""
    parser.add_argument("--description", metavar="TEXT", help="what it is")
    parser.add_argument("--tag", metavar="TAG", action="append", default=[], dest="tags", help="may be repeated")
    parser.add_argument("--metadata", metavar="JSON", type=json_object, help="a JSON object")


def json_object(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = json.loads(text)
    except ValueError as bad:
        raise argparse.ArgumentTypeError(f"not JSON: {bad}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"a JSON object is due, not {type(value).__name__}")
    return value


def is_id(text: str) -> bool:
    """Whether it is the id of a file."""
    return text.isascii() and text.isdigit() and int(text) < 2**63


def file_id(text: str) -> int:
    """The id of a file."""
    if not is_id(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no id: a decimal number is due, as `ml-dash ls` shows it")
    return int(text)


def count(text: str) -> int:
    """How many versions are kept."""
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**63):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of versions: at least 1 is kept")
    return int(text)


def seconds(text: str) -> float:
    """A number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


def span(text: str) -> float:
    """A length of time with its unit, in seconds."""
    unit = UNITS.get(text[-1:], 0)
    try:
        value = seconds(text[:-1] if unit else text) * (unit or 1)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is no length of time: 90s, 2m, 1h, or seconds") from None
    if value > LONGEST_S:
        raise argparse.ArgumentTypeError(f"{text!r} is longer than a day")
    return value
