"""The blocking client: one request at a time, descriptors, slots, reconnection."""

from __future__ import annotations

import os
import socket
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from ml_dash import messages, wire
from ml_dash.background import Background, forget_failures
from ml_dash.channel import OPEN, Channel
from ml_dash.errors import Code, MLDashError, error
from ml_dash.lease import Lease, SlotFile
from ml_dash.messages import Failed, GrowSlot, Hello, Message, Progress, ReleaseSlot, Welcome
from ml_dash.patience import Patience, check_policy
from ml_dash.persistence import RECONNECT_S, Persistence, away
from ml_dash.reach import Endpoint, adopt, connect, daemon_of, inbox_of, reach, socket_of
from ml_dash.release import release
from ml_dash.request import expect
from ml_dash.silence import ANSWER_S, Silence, SilentError

M = TypeVar("M", bound=Message)
R = TypeVar("R")

INBOX_AFTER_S = 5.0
"""How long a daemon that went away is looked for before a file is left in its inbox: most restarts take less."""
SILENT_S = 10.0
"""The same of one that is there and answers nobody: behind systemd's socket, one that is stopped."""

_CONNECTIONS: weakref.WeakSet[Connection] = weakref.WeakSet()


def _forget_all() -> None:
    """In a forked child: closes the parent's sockets here, those too that its other threads had on their stacks.

    The daemon sees that the parent has gone only when nobody else has its socket.
    """
    for connection in _CONNECTIONS:
        connection.forget()
    for channel in OPEN:
        channel.close()
    forget_failures()


os.register_at_fork(after_in_child=_forget_all)


class Connection:
    """Requests to one daemon. Safe among threads and after a fork; a lost daemon is found again.

    A request is sent again, with the same idempotency key, when the connection breaks before its answer.
    """

    def __init__(self, endpoint: Endpoint, on_full: str = "warn") -> None:
        self.endpoint = endpoint
        self.on_full = check_policy(on_full)
        self._writing = 0
        self._branches = True
        """Whether the daemon passes further connections through one that there is."""
        self.welcome: Welcome | None = None
        self._inbox: Path | None = None
        self._knows_inbox = False
        self.is_down = False
        """A file was left in the service's inbox, and nothing was heard of it since."""
        self.has_said_down = False
        self._lock = threading.RLock()
        self._channel: Channel | None = None
        self.background = Background(partial(Connection, endpoint, on_full))
        _CONNECTIONS.add(self)

    def forget(self) -> None:
        """In a forked child: the socket is the parent's, and a lock may be held by a thread of its."""
        self._lock = threading.RLock()
        self._channel = None
        self._writing = 0
        self.background = Background(partial(Connection, self.endpoint, self.on_full))

    def __reduce__(self) -> tuple[type[Connection], tuple[Endpoint, str]]:
        """In another process it is another connection to the same daemon, or to the same root's."""
        return type(self), (self.endpoint, self.on_full)

    @property
    def embedded(self) -> bool:
        """Whether this daemon was started for a root, and may end with its container."""
        return self.endpoint.root is not None

    def inbox(self) -> Path | None:
        """The folder for files while this service is down, if there is one here."""
        if not self._knows_inbox:
            self._inbox = inbox_of(self.endpoint, self.welcome.inbox if self.welcome else "")
            self._knows_inbox = True
        return self._inbox

    @property
    def lost_s(self) -> float:
        """How long a hand-off looks for a daemon that went away."""
        if self.inbox() is None:
            return RECONNECT_S
        return 0.0 if self.is_down else INBOX_AFTER_S

    @property
    def silent_s(self) -> float | None:
        """How long a hand-off waits for a daemon that answers nobody; None is for ever."""
        return None if self.inbox() is None else SILENT_S

    def greet(self) -> None:
        """Returns when there is a daemon at the other end; raises what a hand-off would."""
        if not self.interrupted():
            with self._lock:
                if self._channel is not None and self._channel.has_hung_up():
                    self._drop()
                self._persist(lambda: self._connected(self.silent_s), self.lost_s)

    def call(
        self,
        reply: type[M],
        build: Callable[[int], Message],
        descriptors: Sequence[int] = (),
        silent_s: float | None = ANSWER_S,
        lost_s: float | None = None,
    ) -> M:
        """Sends what `build` makes of a request number and returns the answer. Raises what the daemon refused with.

        One that is there and answers nobody is DAEMON_UNAVAILABLE after `silent_s`; None waits for it (silence.py). One
        that went away is looked for so long: `lost_s`, RECONNECT_S where it is None.
        """
        if self.interrupted():
            with closing(Connection(self.endpoint, self.on_full)) as another:
                return another.call(reply, build, descriptors, silent_s, lost_s)
        patience = Patience(self.on_full)
        while True:
            try:
                with self._lock:
                    answer = self._persist(
                        lambda: self._ask(lambda channel: channel.ask(build, descriptors), silent_s), lost_s
                    )
                    return expect(reply, answer)
            except MLDashError as refused:
                patience.wait(refused)

    def hand_over(self, reply: type[M], build: Callable[[int], Message], descriptors: Sequence[int] = ()) -> M:
        """`call`, and waits as long as a hand-off does: not long where the service has an inbox."""
        return self.call(reply, build, descriptors, self.silent_s, self.lost_s)

    def call_aside(
        self,
        reply: type[M],
        build: Callable[[int], Message],
        descriptors: Sequence[int] = (),
        progress: Callable[[Progress], None] | None = None,
        silent_s: float | None = None,
    ) -> M:
        """`call` on a connection of its own, for requests that take long: others are not held up."""

        def ask() -> Message:
            with closing(self._aside(silent_s)) as channel:
                return channel.ask(build, descriptors, progress)

        return expect(reply, self._persist(ask))

    def begin_aside(self, build: Callable[[int], Message], descriptors: Sequence[int]) -> Channel:
        """Sends a request on a connection of its own, for who waits for several answers; the caller closes it."""
        channel = self._aside(None)
        try:
            channel.begin(build, descriptors)
        except BaseException:
            channel.close()
            raise
        return channel

    def save(self, data: memoryview, build: Callable[..., Message]) -> messages.Accepted:
        """Writes content into a slot and commits it; `build` takes the request's number and the slot's."""
        with self.uninterrupted() as free:
            patience = Patience(free.on_full)
            while True:
                lease = free.lease(len(data), patience)
                try:
                    lease.write(data, 0)
                except BaseException:  # Ctrl-C
                    free.release(lease)
                    raise
                if (accepted := free.commit(lease, build, patience)) is not None:
                    return accepted
                # The connection broke, and the slot with it: the content goes into another one, under the same key.

    @contextmanager
    def uninterrupted(self) -> Iterator[Connection]:
        """Yields this connection; in a signal handler that came in the middle of its own thread's request, another."""
        if not self.interrupted():
            yield self
            return
        with closing(Connection(self.endpoint, self.on_full)) as another:
            yield another

    def lease(self, size_bytes: int, patience: Patience | None = None) -> Lease:
        """A slot of at least that size, to be committed or released. Waits for room; without `patience` it raises."""
        while True:
            try:
                with self._lock:
                    lease = self._grant(size_bytes)
                    self._writing += 1
                    return lease
            except MLDashError as full:
                if patience is None:
                    raise
                # Without the lock: others commit, and free what they hold.
                patience.wait(full, room_comes=self._writing > 0)

    def grow(self, lease: Lease, size_bytes: int) -> bool:
        """Makes a slot larger, what was written to it stays; False where it is gone, or there is no room now.

        Raises TOO_LARGE.
        """
        with self._lock:
            if self._channel is not lease.channel:
                return False
            try:
                answer = self._ask(
                    lambda channel: channel.ask(
                        lambda number: GrowSlot(request=number, slot=lease.number, size_bytes=size_bytes)
                    )
                )
                granted = expect(messages.SlotGranted, answer)
            except (ConnectionError, EOFError, MLDashError) as refused:
                if isinstance(refused, MLDashError) and refused.code is Code.TOO_LARGE:
                    raise
                return False
            lease.capacity_bytes = granted.capacity_bytes
        return True

    def commit(self, lease: Lease, build: Callable[..., Message], patience: Patience) -> messages.Accepted | None:
        """Hands over what is in a slot; None where the connection broke, and the slot is gone with it."""
        try:
            with self._lock:
                if self._channel is not lease.channel:
                    return None
                try:
                    commit = partial(build, slot=lease.number)
                    answer = self._ask(lambda channel: channel.ask(commit), self.silent_s)
                    return expect(messages.Accepted, answer)
                except (ConnectionError, EOFError) as lost:
                    patience.lost(away(lost, self.endpoint))
                    return None
        finally:
            self._writing -= 1

    def release(self, lease: Lease) -> None:
        """Lets go of a slot that will not be committed: a connection has only so many at once."""
        self._writing -= 1
        with self._lock:
            if self._channel is lease.channel:
                with suppress(ConnectionError, EOFError):
                    self._ask(
                        lambda channel: channel.ask(lambda number: ReleaseSlot(request=number, slot=lease.number))
                    )

    def interrupted(self) -> bool:
        """Whether this is a signal handler, or a finalizer, in the middle of its own thread's request.

        It gets a connection of its own: the answer that comes next on this one is not for it.
        """
        return self._lock._is_owned()  # type: ignore[attr-defined,no-any-return]  # noqa: SLF001 as Condition does

    def close(self) -> None:
        """Hangs up; the next request connects again."""
        with self._lock:
            self._drop()

    def _grant(self, size: int) -> Lease:
        """Its descriptor is kept no longer than the save: what nobody can write to, a local store may take as it is."""

        def ask(channel: Channel) -> Message:
            return channel.ask(lambda number: messages.RequestSlot(request=number, size_bytes=size), keep=True)

        granted = expect(messages.SlotGranted, self._persist(lambda: self._ask(ask, self.silent_s), self.lost_s))
        received = self._channel.take_received() if self._channel is not None else []
        if not received:
            raise error(Code.PROTOCOL, f"slot {granted.slot} came without its descriptor")
        return Lease(granted.slot, SlotFile(received[0]), granted.capacity_bytes, self._channel)

    def _persist(self, ask: Callable[[], R], lost_s: float | None = None) -> R:
        """Asks, and asks again while a daemon that was there is away for a moment: requests are idempotent."""
        persistence = Persistence(self.endpoint, lost_s)
        while True:
            try:
                return ask()
            except SilentError:
                raise
            except (ConnectionError, EOFError) as lost:
                persistence.wait(lost, was_there=self.welcome is not None)

    def _ask(self, ask: Callable[[Channel], Message], silent_s: float | None = None) -> Message:
        """Asks on the kept connection; one that was left in the middle of an answer is not used again."""
        channel = self._connected(silent_s)
        try:
            return ask(channel)
        except BaseException:
            self._drop()
            raise

    def _connected(self, silent_s: float | None) -> Channel:
        if self._channel is None:
            self._channel = self._open(silent_s)
        self._channel.silence.patience_s = silent_s
        return self._channel

    def _aside(self, silent_s: float | None) -> Channel:
        """A connection of its own, for the caller to close."""
        return self._greet(self._beside(silent_s), silent_s)

    def _beside(self, silent_s: float | None) -> socket.socket:
        """A socket to the daemon that the kept connection leads to, which may have moved with its root since.

        What has interrupted a request of its own thread goes by the path: the kept connection is in use.
        """
        kept = self._channel
        if kept is None or self.endpoint.root is None or self.interrupted():
            return connect(self.endpoint)
        peer = reach(self.endpoint)
        if peer is not None and kept.daemon and daemon_of(peer) == kept.daemon:
            return peer
        if peer is not None:
            peer.close()
        with self._lock:
            return self._branch(silent_s) or connect(self.endpoint)

    def _branch(self, silent_s: float | None) -> socket.socket | None:
        """Asks on the kept connection for another one; None of a daemon of an earlier release, which hangs up."""
        if self._channel is None or not self._branches:
            return None
        answer = self._ask(lambda kept: kept.ask(lambda number: messages.Branch(request=number), keep=True), silent_s)
        if isinstance(answer, Failed) and answer.code == Code.PROTOCOL:
            self._branches = False
            self._drop()
            return None
        expect(messages.Branched, answer)
        (received,) = self._channel.take_received()
        return adopt(received)

    def _open(self, silent_s: float | None) -> Channel:
        return self._greet(connect(self.endpoint), silent_s)

    def _greet(self, peer: socket.socket, silent_s: float | None) -> Channel:
        channel = Channel(peer, Silence(partial(socket_of, self.endpoint), silent_s))
        try:
            answer = channel.ask(
                lambda number: Hello(
                    request=number, min_version=wire.VERSION, max_version=wire.VERSION, client=f"ml-dash {release()}"
                )
            )
            self._welcomed(expect(Welcome, answer))
        except BaseException:
            channel.close()
            raise
        return channel

    def _welcomed(self, welcome: Welcome) -> None:
        told = self.welcome.inbox if self.welcome else None
        if self.is_down or welcome.inbox != told:  # to look for it takes a fifth of what a hand-off does
            self._knows_inbox = False
        self.welcome = welcome
        self.is_down = self.has_said_down = False

    def _drop(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = None
