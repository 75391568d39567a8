"""Prefixes of experiments: where one comes from, what its fields stand for, and its three parts."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from datetime import datetime
from string import Formatter

from ml_dash import messages as m
from ml_dash.arguments import text
from ml_dash.errors import Code, error
from ml_dash.reach import default_prefix

FIELDS = ("user", "now")
"""What may stand in braces in a prefix."""
HOW = 'pass prefix="namespace/project/experiment", or set ML_DASH_PREFIX to one'


def prefix_of(given: str | None) -> str:
    """The prefix that is given, else the environment's (ML_DASH_PREFIX, DASH_PREFIX), its fields filled in.

    `{user}` is whoever runs this, `{now:%Y-%m-%d}` the local time by strftime; alone, `{now}` is 20260131T235959.
    Raises INVALID_PREFIX where there is none, or one with another field.
    """
    template = text(given or "", "prefix") or default_prefix()
    if not template:
        raise error(Code.INVALID_PREFIX, "no prefix is given", HOW)
    return "".join(_filled(template))


def place_of(prefix: str) -> m.Place:
    """The three parts of a prefix; the daemon checks their names."""
    parts = prefix.split("/", 2)
    if len(parts) < 3:  # noqa: PLR2004 namespace, project, experiment
        raise error(Code.INVALID_PREFIX, f"the prefix {prefix!r} has fewer than three segments")
    return m.Place(namespace=parts[0], project=parts[1], experiment=parts[2])


def user_name() -> str:
    """Whoever runs this: LOGNAME or USER, else the name of the process's user; its number where it has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without that user in /etc/passwd
        return str(os.geteuid())


def _filled(template: str) -> Iterator[str]:
    now = datetime.now().astimezone()  # noqa: TID251 the moment of whoever starts the script, on their clock
    try:
        parts = [*Formatter().parse(template)]
    except ValueError as bad:
        hint = "write {{ and }} for braces themselves"
        raise error(Code.INVALID_PREFIX, f"the prefix {template!r}: {bad}", hint) from None
    for plain, field, form, conversion in parts:
        yield plain
        if field is None:
            continue
        if field not in FIELDS or conversion or (field == "user" and form):
            known = "use {user} and {now:%Y-%m-%d}, any form of strftime; {{ and }} for braces themselves"
            shown = field + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
            raise error(Code.INVALID_PREFIX, f"the prefix {template!r} has the field {{{shown}}}", known)
        yield user_name() if field == "user" else now.strftime(form or "%Y%m%dT%H%M%S")
