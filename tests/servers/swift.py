"""OpenStack Swift with its S3 API: the strict and durable server that every test run uses."""

import errno
import os
import pwd
import subprocess
from pathlib import Path
from typing import ClassVar

from tests.servers.environments import server_python
from tests.servers.s3server import S3Server, ServerError

STORAGE_DOMAIN = "s3.test"
"""A bucket may stand in front of it in the host's name; nobody resolves it."""
_BACKENDS = ("account", "container", "object")

# Any value will do, but it must outlive a restart: it decides where each object lies on the disk.
_SWIFT_CONF = """\
[swift-hash]
swift_hash_path_prefix = y
swift_hash_path_suffix = x
[storage-policy:0]
name = default
default = yes
"""

# workers = 0: one process a server, which ends when it is killed and leaves no workers behind.
# log_udp_*: the discard port; otherwise every line goes to the machine's syslog too. -v logs to stderr.
_COMMON = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
bind_timeout = 5
workers = 0
user = {user}
swift_dir = {state}
log_level = WARNING
log_udp_host = 127.0.0.1
log_udp_port = 9
"""

# disable_fallocate, mount_check, db_preallocation: a plain directory is the disk.
# Chunks of 1 MiB, one sync an object (mb_per_sync): with the defaults a large file measures Swift's overhead.
# keep_cache_size = 0: the page cache is for the files under test, not for their copies here.
# The timeouts are for a busy machine. By default an object server waits 0.5 s for a connection to the
# container server and 1 s for its answer, then leaves the listing to a background daemon, which does not
# run here: an object, or a part, would be missing from listings for ever.
_BACKEND = """\
devices = {devices}
mount_check = false
disable_fallocate = true
db_preallocation = off
conn_timeout = 30
node_timeout = 60
container_update_timeout = 60
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
conn_timeout = 30
node_timeout = 60
container_update_timeout = 60
keep_cache_size = 0
disk_chunk_size = 1048576
network_chunk_size = 1048576
mb_per_sync = 4096
"""

# slo: as many segments as S3 allows parts, small ones read at full speed, and the segments of a deleted
# object gone when the answer comes.
# error_suppression_limit: there is one replica; after ten errors the proxy would refuse to ask it for a
# minute, and one fault that a test provokes would fail the next tests.
_PROXY = """\
client_timeout = 120
[pipeline:main]
pipeline = {pipeline} proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
object_chunk_size = 1048576
client_chunk_size = 1048576
conn_timeout = 30
node_timeout = 60
error_suppression_limit = 1000000
[filter:s3api]
use = egg:swift#s3api
location = {region}
storage_domain = {domain}
s3_acl = false
dns_compliant_bucket_names = false
allow_multipart_uploads = true
max_upload_part_num = 10000
min_segment_size = 5242880
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {secret} .admin
[filter:slo]
use = egg:swift#slo
max_manifest_segments = 10000
max_manifest_size = 16777216
rate_limit_under_size = 0
allow_async_delete = false
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_object_versioning = true
"""
_FILTERS = (
    *("catch_errors", "gatekeeper", "listing_formats", "bulk", "s3api", "tempauth"),
    *("copy", "slo", "dlo", "versioned_writes", "symlink"),
)
_CONFIGURED = ("s3api", "tempauth", "slo", "versioned_writes")

# swift-ring-builder does the same with nine processes, which take seconds.
_MAKE_RINGS = """\
import sys
from swift.common.ring import RingBuilder
state, *rings = sys.argv[1:]
for ring in rings:
    name, port = ring.split("=")
    builder = RingBuilder(part_power=4, replicas=1, min_part_hours=1)
    device = {"region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port), "device": "d1", "weight": 1}
    builder.add_dev(device | {"replication_ip": "127.0.0.1", "replication_port": int(port)})
    builder.rebalance()
    builder.get_ring().save(f"{state}/{name}.ring.gz")
"""


class Swift(S3Server):
    """Swift 2.38.3: one proxy and one account, container and object server; data outlive kill()."""

    name: ClassVar[str] = "swift"
    access_key: ClassVar[str] = "test:tester"
    secret_key: ClassVar[str] = "testing"
    port_count: ClassVar[int] = 1 + len(_BACKENDS)

    def prepare(self) -> None:
        _require_xattrs(self.data)
        self._python = server_python(self.name)
        (self.data / "d1").mkdir(exist_ok=True)
        self._write("swift.conf", _SWIFT_CONF)
        user = _user_name()
        for name in _BACKENDS:
            common = _COMMON.format(port=self.listeners()[name], user=user, state=self.state)
            self._write(f"{name}-server.conf", common + _BACKEND.format(name=name, devices=self.data))
        self._write("proxy-server.conf", self._proxy_conf(user))
        self._make_rings()

    def commands(self) -> dict[str, list[str]]:
        scripts = self._python.parent
        return {
            name: [
                str(self._python),
                str(scripts / f"swift-{name}-server"),
                str(self.state / f"{name}-server.conf"),
                "-v",
            ]
            for name in (*_BACKENDS, "proxy")
        }

    def listeners(self) -> dict[str, int]:
        # The proxy must not be asked while a backend is down: it would note an error against it.
        return dict(zip(("proxy", *_BACKENDS), self.ports, strict=True))

    def _proxy_conf(self, user: str) -> str:
        common = _COMMON.format(port=self.ports[0], user=user, state=self.state)
        proxy = _PROXY.format(
            pipeline=" ".join(_FILTERS), region=self.region, domain=STORAGE_DOMAIN, secret=self.secret_key
        )
        plain = (f"[filter:{name}]\nuse = egg:swift#{name}\n" for name in _FILTERS if name not in _CONFIGURED)
        return common + proxy + "".join(plain)

    def _make_rings(self) -> None:
        rings = [f"{name}={self.listeners()[name]}" for name in _BACKENDS]
        command = [str(self._python), "-I", "-c", _MAKE_RINGS, str(self.state), *rings]
        made = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        if made.returncode != 0:
            raise ServerError(f"Swift's rings cannot be built:\n{made.stderr}")

    def _write(self, name: str, text: str) -> None:
        (self.state / name).write_text(text)


def _require_xattrs(directory: Path) -> None:
    probe = directory / "xattr-probe"
    probe.touch()
    try:
        os.setxattr(probe, "user.swift.probe", b"1")
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        raise ServerError(
            f"Swift keeps its metadata in user xattrs, and the file system of {directory} has none; "
            "use another one, as with pytest --basetemp or TMPDIR"
        ) from error
    finally:
        probe.unlink()


def _user_name() -> str:
    # Swift wants a user to become; it may only ever be the one that it already is.
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError as error:
        raise ServerError(f"Swift needs a user name, and user id {os.geteuid()} has none") from error
