"""The daemons that share the catalog, for an operator who asks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ml_dash import messages as m
from ml_dash.errors import Code, error
from ml_dashd.core import cursors
from ml_dashd.core.access import Policy
from ml_dashd.core.lease import Node
from ml_dashd.flow.lease import NodeNumber
from ml_dashd.ports import Clock, Leases, Session, Whereabouts

Reply = tuple[m.Message, Sequence[int]]


class Nodes:
    """Answers with them. `number` and `leases` are None for a daemon that has its catalog for itself."""

    def __init__(
        self,
        *,
        number: NodeNumber | None,
        leases: Leases | None,
        here: Whereabouts,
        policy: Policy,
        clock: Clock,
    ) -> None:
        self._number = number
        self._leases = leases
        self._here = here
        self._policy = policy
        self._clock = clock
        self.answers: dict[type[m.Message], Callable[..., Awaitable[Reply]]] = {m.ListNodes: self._list}

    async def _list(self, session: Session, message: m.ListNodes, *_: Any) -> Reply:
        """For admins: it names machines that are not the caller's."""
        if not self._policy.is_admin(session.uid):
            what = f"uid {session.uid} may not list the nodes of this catalog"
            raise error(Code.ACCESS_DENIED, what, "ask one of the admins named in [access]")
        if self._leases is None:
            alone = m.NodeRecord(number=0, host=self._here.host, held=True, mine=True)
            return m.Nodes(request=message.request, nodes=(alone,), shared=False), ()
        (after,) = (0,) if message.cursor is None else cursors.read(message.cursor, cursors.number)
        found = await self._leases.nodes(after, m.NODES)
        records = tuple(self._record(node) for node in found)
        return m.Nodes(
            request=message.request,
            nodes=tuple(each for each in records if each.held or message.everything),
            shared=True,
            cursor=cursors.write(found[-1].number) if len(found) == m.NODES else None,
        ), ()

    def _record(self, node: Node) -> m.NodeRecord:
        lease = None if self._number is None else self._number.lease
        return m.NodeRecord(
            number=node.number,
            host=node.host,
            held=node.until_ms >= self._clock.now_ms(),
            mine=lease is not None and lease.number == node.number,
            until_ms=node.until_ms,
            seen_ms=node.seen_ms,
        )
