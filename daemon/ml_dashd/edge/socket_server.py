"""The Unix socket: who may connect, as the kernel states it, and how many at once. What they say is connection.py's."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ml_dash import messages
from ml_dash.errors import TABLE, Code, error
from ml_dash.messages import Failed
from ml_dashd.core.access import Policy, has_room
from ml_dashd.edge import listening
from ml_dashd.edge.connection import Connection
from ml_dashd.edge.descriptors import FOR_CONNECTIONS, DescriptorBudget
from ml_dashd.ports import Clock, Service, Session

log = logging.getLogger("ml_dashd.socket")

BACKLOG = 512
ACCEPT_PAUSE_S = 0.1
"""After a failed accept (out of descriptors, say): others may be closed meanwhile."""
ACCEPT_QUIET_S = 60.0
"""After a line about a failed accept the next one waits this long: there are ten a second while descriptors are out."""
NOBODY = -1
"""Whose accept fails is not known."""
QUIET_S = 5.0
"""After a line about a user's connections the next of its kind waits this long: peers must not fill the log."""
QUIET_USERS = 1024
"""Users of whom that is kept in mind: who may not connect can have any number of uids."""
_CREDENTIALS = struct.Struct("3i")
"""struct ucred: pid, uid, gid."""


@dataclass(frozen=True, slots=True)
class Access:
    """Who may connect, through a socket of which mode, and how many at once.

    A peer has `peer_timeout_s` for each of its parts of a conversation: to say Hello, to finish a frame that it has
    begun, and to take a reply.
    """

    policy: Policy
    mode: int
    max_connections: int
    peer_timeout_s: float


class SocketServer:
    """Listens at a path, for the uids that may; or at a socket that somebody else has made and goes on to own."""

    def __init__(
        self,
        path: Path,
        service: Service,
        clock: Clock,
        access: Access,
        passed: socket.socket | None = None,
        budget: DescriptorBudget | None = None,
    ) -> None:
        self._passed = passed
        self._path = path
        self._clock = clock
        self._service = service
        self._access = access
        self._connections: dict[asyncio.Task[None], Connection] = {}
        self._of_uid: Counter[int] = Counter()
        self._received: Counter[int] = Counter()
        self._budget = budget or DescriptorBudget()
        self._budget.count(lambda: len(self._connections) + self._received.total())
        self._said: dict[tuple[str, int], tuple[float, int]] = {}
        """When the log was last told of an event of a user's, and how many it was spared since."""
        self._numbers = 0
        self._stopping = False
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None

    @property
    def connections(self) -> int:
        return len(self._connections)

    def start(self) -> None:
        """Listens. A socket file that nobody listens on any more is replaced; raises CONFIG for any other."""
        listener = self._passed or self._bind()
        listener.setblocking(False)
        self._listener = listener
        self._accepting = asyncio.create_task(self._accept(listener), name="accept")

    def _bind(self) -> socket.socket:
        listener = listening.bind(self._path, self._access.mode, "daemon.socket")
        listener.listen(BACKLOG)
        return listener

    async def stop(self) -> None:
        """Stops listening, lets the requests in hand be answered, and ends the connections."""
        self._stopping = True
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.gather(self._accepting, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
            if self._passed is None:
                listening.leave(self._path)
        for connection in self._connections.values():
            connection.finish()
        if self._connections:
            _, late = await asyncio.wait(list(self._connections), timeout=1.0)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                peer, _ = await loop.sock_accept(listener)
            except OSError as failure:
                spared = self.worth_a_line("accept_failed", NOBODY, ACCEPT_QUIET_S)
                if spared is not None:
                    log.warning("accept_failed", extra={"spared": spared, "error": failure})
                await self._clock.sleep(ACCEPT_PAUSE_S)
                continue
            self._admit(peer)

    def _admit(self, peer: socket.socket) -> None:
        pid, uid, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        refusal = self._refusal(uid)
        if refusal is not None:
            spared = self.worth_a_line("connection_refused", uid)
            if spared is not None:
                about = {"uid": uid, "pid": pid, "code": refusal.code, "spared": spared}
                log.info("connection_refused", extra=about)
            with suppress(OSError):
                peer.send(messages.encode(refusal))
            peer.close()
            return
        self._serve(peer, uid, pid)

    def _serve(self, peer: socket.socket, uid: int, pid: int) -> None:
        self._numbers += 1
        connection = Connection(peer, Session(self._numbers, uid, pid), self._service, self)
        task = asyncio.create_task(connection.serve(), name=f"connection {self._numbers}")
        self._connections[task] = connection
        self._of_uid[uid] += 1
        task.add_done_callback(lambda ended: self._forget(ended, uid))

    def _refusal(self, uid: int) -> Failed | None:
        """Why this uid gets no connection now."""
        policy, mine, every = self._access.policy, self._of_uid[uid], len(self._connections)
        if not policy.may_connect(uid):
            return _refused(Code.ACCESS_DENIED, f"uid {uid} may not use this daemon")
        most = min(self._access.max_connections, every + self._budget.left(FOR_CONNECTIONS))
        if not has_room(mine, every, most, shared=policy.shared):
            message = f"{every} connections are open, {mine} of them of uid {uid}; there may be {most} of all users"
            return _refused(Code.RETRY_LATER, message)
        return None

    def _forget(self, task: asyncio.Task[None], uid: int) -> None:
        del self._connections[task]
        self._of_uid[uid] -= 1
        if not self._of_uid[uid]:
            del self._of_uid[uid]

    # ---- what connections ask

    @property
    def peer_timeout_s(self) -> float:
        return self._access.peer_timeout_s

    def count(self, uid: int, descriptors: int) -> bool:
        """Notes that so many descriptors came from a user, or, below 0, were closed; whether there was room for them.

        As with connections, nobody may have more of them waiting than are left.
        """
        self._received[uid] += descriptors
        left = self._budget.left()
        return left >= 0 and (self._received[uid] <= left or not self._access.policy.shared)

    def branch(self, session: Session) -> socket.socket:
        """The far end of another connection of the session's user, for the caller to close.

        Of a pair's ends the kernel states this process: it is the session's user and process that count. Raises
        RETRY_LATER where there is no room.
        """
        if self._stopping:
            raise error(Code.SHUTTING_DOWN, "the daemon is being stopped")
        if (refusal := self._refusal(session.uid)) is not None:
            raise error(Code(refusal.code), refusal.message)
        try:
            near_end, far_end = socket.socketpair()
        except OSError as failure:
            raise error(Code.RETRY_LATER, f"there can be no other connection now: {failure}") from None
        self._serve(near_end, session.uid, session.pid)
        return far_end

    def worth_a_line(self, event: str, uid: int, quiet_s: float = QUIET_S) -> int | None:
        """How many such events of this user's the log was spared since its last line; None to spare it this one."""
        now = self._clock.monotonic()
        said, spared = self._said.get((event, uid), (now - quiet_s, 0))
        if now - said < quiet_s:
            self._said[event, uid] = said, spared + 1
            return None
        if len(self._said) > QUIET_USERS:
            self._said.clear()
        self._said[event, uid] = now, 0
        return spared


def _refused(code: Code, message: str) -> Failed:
    return Failed(request=0, code=code, message=message, hint=TABLE[code].hint)
