"""Ceph's RADOS Gateway: a second production server, whose quirks have to be survived. From Debian, one node."""

import random
import subprocess
import uuid
from typing import ClassVar

from tests.servers.debian import ensure_commands
from tests.servers.s3server import S3Server, ServerError

_PACKAGES = ("radosgw", "ceph-mon", "ceph-osd")
_COMMANDS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
_STEP_TIMEOUT_S = 60

# No cephx, no manager, one copy of everything, few placement groups: small, and quick to start.
# bluestore and not memstore: what was acknowledged is there after kill().
# mon_data_avail_crit: a disk that is almost full is no reason to refuse to start.
_CONF = """\
[global]
fsid = {fsid}
mon host = [v2:{host}:{mon_v2}/0,v1:{host}:{mon_v1}/0]
mon initial members = a
public addr = {host}
cluster addr = {host}
auth cluster required = none
auth service required = none
auth client required = none
ms mon client mode = crc
ms mon service mode = crc
ms mon cluster mode = crc
ms client mode = crc
ms service mode = crc
ms cluster mode = crc
run dir = {run}
admin socket = {run}/$name.$pid.asok
pid file = {run}/$name.pid
log file = {state}/log/ceph-$name.log
mon cluster log file = {state}/log/cluster.log
crash dir = {state}/log
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
paxos propose interval = 0.05
paxos min wait = 0.01
mon data avail crit = 1
mon data avail warn = 2
[mon.a]
mon data = {data}/mon
mon addr = [v2:{host}:{mon_v2}/0,v1:{host}:{mon_v1}/0]
[osd.0]
osd data = {data}/osd
osd objectstore = bluestore
bluestore block size = 21474836480
bluestore block db create = false
bluestore block wal create = false
bdev enable discard = false
osd memory target = 1073741824
osd memory target autotune = false
osd max scrubs = 0
osd class update on start = false
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw enable usage log = false
rgw enable ops log = false
rgw lc debug interval = -1
rgw gc max objs = 4
rgw gc obj min wait = 2
rgw gc processor period = 2
rgw gc processor max time = 2
rgw thread pool size = 64
rgw override bucket index max shards = 1
rgw data log num shards = 1
rgw md log max shards = 1
rgw reshard num logs = 1
rgw lc max objs = 1
rgw usage max shards = 1
"""


def ceph_commands() -> dict[str, str]:
    """The absolute paths of Ceph's commands, which are installed first. Raises NotInstallableError."""
    return ensure_commands(_COMMANDS, _PACKAGES)


class Ceph(S3Server):
    """Ceph RGW with one monitor and one object store daemon; data outlive kill()."""

    name: ClassVar[str] = "ceph"
    secret_key: ClassVar[str] = "testtest"
    region: ClassVar[str] = "us-east-1"
    port_count: ClassVar[int] = 3

    def prepare(self) -> None:
        """Raises NotInstallableError where Ceph is not installed and cannot be."""
        self._paths = ceph_commands()
        # A loopback address of its own: the object store daemon takes eight ports in a row, of which the gateway's and
        # other servers' may be one.
        self._host = f"127.{random.randint(1, 254)}.{random.randint(0, 254)}.{random.randint(1, 254)}"
        self._write_conf()
        self._make_cluster()

    def commands(self) -> dict[str, list[str]]:
        return {
            "mon": [self._paths["ceph-mon"], "-i", "a", "-f"],
            "osd": [self._paths["ceph-osd"], "-i", "0", "-f"],
            "rgw": [self._paths["radosgw"], "-n", "client.rgw", "-f"],
        }

    def listeners(self) -> dict[str, int]:
        return {"rgw": self.ports[0], "mon": self.ports[1]}

    def variables(self) -> dict[str, str]:
        return {"CEPH_CONF": str(self.state / "ceph.conf")}

    def _write_conf(self) -> None:
        run = self.state / "run"
        for folder in (run, self.data / "mon", self.data / "osd"):
            folder.mkdir(exist_ok=True)
        self._fsid = str(uuid.uuid4())
        values = {"fsid": self._fsid, "host": self._host, "run": run, "state": self.state, "data": self.data}
        ports = dict(zip(("port", "mon_v2", "mon_v1"), self.ports, strict=True))
        (self.state / "ceph.conf").write_text(_CONF.format(**values, **ports))

    def _make_cluster(self) -> None:
        """What a new cluster needs before the gateway can start; its first two processes run for it, and end."""
        addresses = f"[v2:{self._host}:{self.ports[1]},v1:{self._host}:{self.ports[2]}]"
        map_file = str(self.state / "monmap")
        self._do("monmaptool", "--create", "--clobber", "--fsid", self._fsid, "--addv", "a", addresses, map_file)
        self._do("ceph-mon", "--mkfs", "-i", "a", "--monmap", map_file)
        self._boot("mon")
        osd = str(uuid.uuid4())
        self._do("ceph", "--connect-timeout", str(_STEP_TIMEOUT_S), "osd", "new", osd, "0")
        self._do("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", osd)
        self._do("ceph", "osd", "crush", "add", "osd.0", "1.0", "root=default", "host=localhost")
        self._boot("osd")
        keys = (f"--access-key={self.access_key}", f"--secret-key={self.secret_key}")
        self._do("radosgw-admin", "-n", "client.rgw", "user", "create", "--uid=test", "--display-name=test", *keys)
        self.kill()

    def _boot(self, name: str) -> None:
        """Starts a process that must end with this one, too."""
        self._processes[name] = self._spawn(name, self.commands()[name])
        earlier, self._guard = self._guard, self._watch()
        if earlier is not None:
            earlier.kill()
            earlier.wait()

    def _do(self, command: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._paths[command], *arguments],
            cwd=self.state,
            env={"PATH": "/usr/bin:/bin", "HOME": str(self.state), "LANG": "C.UTF-8"} | self.variables(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=_STEP_TIMEOUT_S,
        )
        if done.returncode != 0:
            raise ServerError(f"Ceph: {command} {' '.join(arguments)}\n{done.stdout[-2000:]}\n{self._log_tails()}")
