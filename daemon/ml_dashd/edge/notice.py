"""A note in the state folder that says which daemon serves it, for people and for the daemon that finds it taken.

It is only ever information: the lock beside it decides.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import aiofiles
import aiofiles.os

log = logging.getLogger("ml_dashd")

NAME = "daemon.json"


async def leave(folder: Path, **facts: str | int) -> None:
    """Writes the note, whole or not at all: a full disk is no reason not to serve."""
    temporary = folder / f".{NAME}"
    try:
        async with aiofiles.open(temporary, "w") as file:
            await file.write(json.dumps(facts, indent=2) + "\n")
        await aiofiles.os.replace(temporary, folder / NAME)
    except OSError as failure:
        log.warning("notice_not_left", extra={"error": failure})


async def read(folder: Path) -> dict[str, str | int]:
    """What the note says; nothing where there is none, or one that can't be read."""
    try:
        async with aiofiles.open(folder / NAME) as file:
            facts = json.loads(await file.read())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


async def remove(folder: Path) -> None:
    """Takes the note away. Idempotent."""
    (folder / NAME).unlink(missing_ok=True)
