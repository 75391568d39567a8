"""The cap on what is sent to the store, taken slice by slice as it is given to the network or the disk."""

from __future__ import annotations

from ml_dashd.core.bandwidth import Bucket, slice_bytes
from ml_dashd.edge.system import SystemClock
from ml_dashd.ports import Clock


class Throttle:
    """Makes senders wait so that all together send `bandwidth` bytes a second; 0 is no cap."""

    def __init__(self, bandwidth: int = 0, clock: Clock | None = None) -> None:
        self.slice_bytes = slice_bytes(bandwidth)
        """What is sent at a time. Whoever has little to send waits behind a slice of each other, not behind a part."""
        self.capped = bandwidth > 0
        self._clock = clock or SystemClock()
        self._bucket = Bucket(bandwidth, self._clock.monotonic()) if bandwidth else None

    async def take(self, size_bytes: int) -> None:
        """Waits until so many bytes may be sent. A caller that is cancelled has used them up."""
        if self._bucket is not None and (wait := self._bucket.take(size_bytes, self._clock.monotonic())) > 0:
            await self._clock.sleep(wait)
