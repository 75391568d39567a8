"""The daemon's node number: taken from the catalog, renewed every minute, kept with the state folder, given up in time.

What is asked of the catalog is noted first: whoever is killed before the answer, or never gets one, finds its number by
the token that it asked with.
"""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from ml_dash.errors import TABLE, Code, error
from ml_dashd.core.ids import node_of
from ml_dashd.core.lease import BEAT_S, Answer, Claim, LapsedError, Lease, LeasedIds, Node, Place, choose, held
from ml_dashd.core.model import Trouble
from ml_dashd.ports import Clock, Journal, JournalError, Leases, Whereabouts

log = logging.getLogger("ml_dashd.flow")

SETTING = "node"
"""What the journal keeps of it."""
START_S = 10.0
"""How long a start waits for a number. Then the daemon serves what it can without one."""
SOON_S = 5.0
"""Between tries while no id can be made."""
LEAST_S = 1.0
"""Between tries, however many hand-offs wait."""
ASKED = 15
"""Tokens of unanswered claims that are kept: the catalog has one of those, or the one before them all."""
TRIES = 5
"""Numbers that are asked for at a time, where others are quicker."""
WAITING = Trouble(
    Code.RETRY_LATER,
    "after a boot the catalog waits whether a twin of this machine, made from a snapshot, shows itself",
    "wait: it goes on by itself within three minutes",
)
NONE_FREE = Trouble(
    Code.RETRY_LATER,
    "the catalog has no number that is free",
    "see `ml-dash nodes --all`: a number is free seven days after its daemon was last heard of",
)
NOT_ASKED = Trouble(Code.RETRY_LATER, "the catalog has not answered yet", "wait a moment")


@dataclass(frozen=True, slots=True)
class Kept:
    """What the state folder keeps: a number, the tokens that prove it, and, once it was granted, the lease."""

    number: int
    tokens: tuple[str, ...]
    """The one that the catalog has, for all that is known, and those that were asked with since."""
    lease: Lease | None = None

    def asking(self, token: str) -> Kept:
        return replace(self, tokens=(*self.tokens[:1], *self.tokens[1:][-ASKED:], token))


class NodeNumber:
    """The port `Ids` for daemons that share a catalog."""

    def __init__(self, leases: Leases, journal: Journal, here: Whereabouts, clock: Clock) -> None:
        self._leases = leases
        self._journal = journal
        self._here = here
        self._clock = clock
        self._ids = LeasedIds()
        self._kept: Kept | None = None
        self._why: Trouble | None = NOT_ASKED
        """Why the last claim was not granted; None where it was."""
        self._wanted = asyncio.Event()

    @property
    def lease(self) -> Lease | None:
        """What is held, or was: `trouble` says whether it still counts."""
        return self._ids.lease

    # ---- ids

    def next(self, now_ms: int) -> int:
        try:
            return self._ids.next(now_ms, self._here.boottime_ms())
        except LapsedError as lapsed:
            trouble = self._explained(lapsed)
            raise error(Code.RETRY_LATER, trouble.message, trouble.hint) from None

    def pass_over(self, file_id: int) -> None:
        if node_of(file_id):
            raise error(Code.ID_TAKEN, f"the id {file_id} is for node {node_of(file_id)} to give out")

    def trouble(self) -> Trouble | None:
        """Why no file can be taken in; None where one can. A catalog that is away is none while the lease lasts.

        Who asks, and gets an answer, makes it try again soon.
        """
        try:
            self._ids.check(self._clock.now_ms(), self._here.boottime_ms())
        except LapsedError as lapsed:
            return self._explained(lapsed)
        return None

    def left_s(self) -> float:
        """How long ids can be made without the catalog."""
        lease = self._ids.lease
        return 0.0 if lease is None else max(0.0, (lease.fence_ms - self._here.boottime_ms()) / 1000)

    def _explained(self, lapsed: LapsedError) -> Trouble:
        self._wanted.set()
        why = self._why or NOT_ASKED
        because = why.message if why.code is Code.RETRY_LATER else f"{why.code}: {why.message}"
        return Trouble(Code.RETRY_LATER, f"{lapsed}: {because}", why.hint)

    # ---- the lease

    async def start(self) -> None:
        """Goes on with the number that was kept, where that may be without the catalog; else asks for one.

        Its ids are above all that the journal has ever accepted.
        """
        self._ids = LeasedIds(await self._journal.high_water())
        self._kept = _read(await self._journal.setting(SETTING))
        lease = None if self._kept is None else self._kept.lease
        if lease is not None and lease.holds(self._here.place, self._here.boottime_ms()):
            self._ids.hold(lease)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(START_S):
                await self.beat()

    async def run(self) -> None:
        """Renews it, until it is cancelled; at once where somebody wants an id and none can be made."""
        while True:
            await self.beat()
            await self._clock.sleep(LEAST_S)
            pause_s = SOON_S if self.trouble() else BEAT_S * (1 - self._clock.jitter() / 4)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._wanted.wait()
            self._wanted.clear()

    async def beat(self) -> None:
        """Asks for more time, or for a number. What it can't get is told by `trouble`."""
        before, had = self._ids.lease, self._why
        try:
            self._why = await self._ask()
        except JournalError as failure:
            self._why = Trouble(failure.code, str(failure), TABLE[failure.code].hint)
        except Exception as defect:  # what is held counts, and ends in time
            log.exception("node_number_failed")
            self._why = Trouble(Code.INTERNAL, f"the claim failed: {type(defect).__name__}", "see the daemon's log")
        lease = self._ids.lease
        if lease is not None and (before is None or before.number != lease.number):
            log.info("node_number", extra={"number": lease.number})
        elif self._why is not None and self._why != had:
            log.warning("node_number_not_renewed", extra={"code": self._why.code, "error": self._why.message})

    async def _ask(self) -> Trouble | None:
        asked_ms, claim = self._here.boottime_ms(), self._claim()
        if (kept := self._kept) is not None:
            await self._keep(kept.asking(claim.token))
            said, node = await self._leases.renew(kept.number, kept.tokens, claim)
            if node is not None:
                await self._hold(node, asked_ms)
                return None
            if said is Answer.UNSURE:
                self._kept = kept
                return WAITING
            self._ids.drop()
            self._kept = None
            if kept.lease is not None:
                log.warning("node_number_overtaken", extra={"number": kept.number})
        return await self._take()

    async def _take(self) -> Trouble | None:
        for _ in range(TRIES):
            asked_ms, claim = self._here.boottime_ms(), self._claim()
            number = choose(await self._leases.taken(claim), self._clock.jitter())
            if number is None:
                break
            await self._keep(Kept(number, (claim.token,)))
            if (node := await self._leases.take(number, claim)) is not None:
                await self._hold(node, asked_ms)
                return None
        return NONE_FREE

    async def _hold(self, node: Node, asked_ms: int) -> None:
        lease = held(node, asked_ms)
        self._ids.hold(lease)
        await self._keep(Kept(node.number, (node.token,), lease))

    def _claim(self) -> Claim:
        here = self._here
        return Claim(here.token(), here.place, self._clock.now_ms(), here.host)

    async def _keep(self, kept: Kept) -> None:
        await self._journal.set_setting(SETTING, json.dumps(asdict(kept)))
        self._kept = kept


def _read(said: str | None) -> Kept | None:
    if said is None:
        return None
    kept = json.loads(said)
    lease = kept["lease"]
    if lease is not None:
        lease = Lease(**{**lease, "place": Place(**lease["place"])})
    return Kept(kept["number"], tuple(kept["tokens"]), lease)
