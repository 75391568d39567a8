"""Whether the folder of a store is the one that files were stored in: its disk may not be mounted.

The folder is marked at its first use, and this journal keeps by what. A folder that has no mark is taken for the
store's where nothing says that it is not: it has files, or the catalog has none.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from ml_dash.errors import TABLE, Code
from ml_dashd.core.model import Trouble
from ml_dashd.ports import Catalog, Clock, Folder, Journal, JournalError, NotMountedError, Threads

log = logging.getLogger("ml_dashd.flow")

LOOK_S = 1.0
"""Between looks: a call of stat."""
PATIENCE_S = 5.0
"""How long a start waits for the first look: a file system may not answer at all."""
SETTING = "store folder"


class Mount:
    """Looks at it now and then. Without a folder, as for S3, it does nothing. `url` is what the settings call it."""

    def __init__(
        self, *, folder: Folder | None, url: str, journal: Journal, catalog: Catalog, threads: Threads, clock: Clock
    ) -> None:
        self._folder = folder
        self._url = url
        self._journal = journal
        self._catalog = catalog
        self._threads = threads
        self._clock = clock
        self._known = False
        self._trouble: Trouble | None = None
        self._looked = asyncio.Event()

    def trouble(self) -> Trouble | None:
        """Why nothing can be stored, or looked for, in it; as of the last look."""
        return self._trouble

    async def run(self) -> None:
        """Until it is cancelled."""
        while self._folder is not None:
            try:
                await self._look(self._folder)
            except JournalError as failure:
                log.info("mount_stumbled", extra={"error": failure})
            except Exception:
                log.exception("mount_stumbled")
            self._looked.set()
            await self._clock.sleep(LOOK_S)

    async def looked(self) -> None:
        """Returns once it was looked at, or not for PATIENCE_S."""
        if self._folder is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._looked.wait(), PATIENCE_S)

    async def _look(self, folder: Folder) -> None:
        try:
            if not self._known:
                await self._find_out(folder)
            await self._threads.run(folder.check)
        except NotMountedError as failure:
            self._tell(Trouble(Code.STORE_NOT_MOUNTED, str(failure), TABLE[Code.STORE_NOT_MOUNTED].hint))
        except OSError:  # files are blocked by what it is, and say so
            self._tell(None)
        else:
            self._tell(None)

    async def _find_out(self, folder: Folder) -> None:
        """By what the folder is known. Raises OSError where that can't be told."""
        name = f"{SETTING} {self._url}"
        known = await self._journal.setting(name)
        if known is None:
            try:
                known = await self._choose(folder)
            except OSError as failure:
                folder.refuse(failure)
                raise
            await self._journal.set_setting(name, known)
        folder.expect(known)
        self._known = True

    async def _choose(self, folder: Folder) -> str:
        if said := await self._threads.run(folder.read):
            return said
        if said is None and not await self._threads.run(folder.has_files) and await self._lists():
            raise NotMountedError(f"the catalog lists files, and {self._url} has none")
        return await self._threads.run(folder.mark)

    async def _lists(self) -> bool:
        try:
            return bool(await self._catalog.inventory.records("", 1))
        except JournalError as away:
            what = f"{self._url} has no files, and the catalog does not say whether it should: {away}"
            raise NotMountedError(what) from away

    def _tell(self, trouble: Trouble | None) -> None:
        before, self._trouble = self._trouble, trouble
        if trouble is not None and before is None:
            log.warning("store_not_mounted", extra={"code": trouble.code, "error": trouble.message})
        elif trouble is None and before is not None:
            log.info("store_mounted")
