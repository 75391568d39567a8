"""A fleet as processes: nodes, each in a network of its own where root allows, an S3 server and a replica set.

What a schedule names is killed in it, or cut off, and comes back.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from tests.doubles.network import Network
from tests.doubles.nodes import Saving, node
from tests.doubles.schedules import LINK, MONGOD, NODE, STORE, Schedule, Victim
from tests.harness import Bucket, DaemonProcess
from tests.servers.mongodb import MongoDB
from tests.servers.s3server import S3Server

NODES = 3


class Fleet:
    """Its servers run; its nodes are started with it, and end with it."""

    def __init__(self, folder: Path, server: S3Server, mongodb: MongoDB) -> None:
        self.server = server
        self.mongodb = mongodb
        self.bucket = Bucket(server)
        ports = [server.ports[0], *mongodb.ports]
        self.networks = [Network(ports) for _ in range(NODES)]
        url = mongodb.url("fleet", "&serverSelectionTimeoutMS=1000")
        self.nodes: list[DaemonProcess] = [node(folder / f"node{at}", self.bucket, url) for at in range(NODES)]
        self._ending = ExitStack()

    def __enter__(self) -> Self:
        with self._ending:
            for network, daemon in zip(self.networks, self.nodes, strict=True):
                daemon.under = self._ending.enter_context(network).under
                self._ending.callback(daemon.kill)
                daemon.start()
            self._ending = self._ending.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    def suffer(self, schedule: Schedule, prefix: str) -> Saving:
        """Saves what the schedule says into that experiment, while it strikes; returns once all is listed."""
        saving = Saving(self.nodes, schedule.files, prefix, rounds=len(schedule.blows))
        for blow in schedule.blows:
            saving.wait_for(blow.after)
            for victim in blow.victims:
                self._deeds(victim)[0]()
            self._bring_back([victim for victim in blow.victims if victim.kind == NODE])
            saving.wait_for(blow.down)
            self._bring_back([victim for victim in blow.victims if victim.kind != NODE])
            saving.wait_for(schedule.a_round * NODES - blow.after - blow.down)
            saving.begin_round()
        saving.end()
        return saving

    def _bring_back(self, victims: list[Victim]) -> None:
        """All at once; of the replica set one start brings every member back."""
        if victims:
            deeds = {self._deeds(victim)[1] for victim in victims}
            with ThreadPoolExecutor(len(deeds)) as pool:
                for started in [pool.submit(deed) for deed in deeds]:
                    started.result()

    def _deeds(self, victim: Victim) -> tuple[Callable[[], object], Callable[[], object]]:
        """How it is killed, and how it comes back."""
        at = victim.number
        if victim.kind == NODE:
            return self.nodes[at].kill, self.nodes[at].start
        if victim.kind == LINK:
            return self.networks[at].cut, self.networks[at].mend
        if victim.kind == STORE:
            return self.server.kill, self.server.start
        assert victim.kind == MONGOD
        return lambda: self.mongodb.kill(self.mongodb.ports[at]), self.mongodb.start
