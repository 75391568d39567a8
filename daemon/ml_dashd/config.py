"""The daemon's settings: TOML into frozen dataclasses, whose annotations are the schema.

config/ml-dashd.toml explains each key.

This is the one place in the daemon that reads the environment.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints
from urllib.parse import unquote_to_bytes, urlsplit

from ml_dash.errors import Code, MLDashError, error
from ml_dashd.config_keys import MONGODB, kind_of, section, unknown
from ml_dashd.core.redact import place
from ml_dashd.s3_settings import check_s3

MIB = 1024 * 1024
HOME = ".ml-dashd"
"""An embedded daemon's folder in its root."""
WORKING = Path("/proc/self/cwd")
"""The folder this process works in, by inode."""
OUTSIDE_IDLE_S = 3.0
"""The idle_timeout of a daemon whose root is on a network file system: other hosts may be waiting for it."""


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """The table [daemon]."""

    socket: str = ""
    state_dir: str = ""
    inbox: str = ""
    drain_timeout: float = 10.0
    idle_timeout: float = 300.0
    max_connections: int = 1024
    peer_timeout: float = 30.0
    log_level: str = "info"
    log_format: str = "human"


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """The table [store]."""

    url: str = ""
    endpoint_url: str = ""
    region: str = ""
    addressing: str = "auto"
    profile: str = ""
    credentials_file: str = ""
    proxy: str = ""
    ca_bundle: str = ""
    checksum: str = "auto"
    sse: str = ""
    sse_kms_key_id: str = ""
    storage_class: str = ""
    mode: str = "0640"
    part_size: int = 16 * MIB
    delete_grace: float = 7 * 24 * 3600.0
    reconcile_every: float = 24 * 3600.0
    orphan_age: float = 14 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class CatalogConfig:
    """The table [catalog]."""

    url: str = ""


@dataclass(frozen=True, slots=True)
class SpoolConfig:
    """The table [spool]."""

    pools: tuple[str, ...] = ()
    durability: str = "memory"
    quota: int = 0
    warm_bytes: int = 8 * 1024 * MIB
    copy_below: int = 64 * MIB
    copy_after: float = 30.0
    lease_max_delay: float = 2.0
    touch_leases: int = 256
    supersede: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """The table [limits]."""

    memory: int = 0
    threads: int = 0
    connections: int = 16
    bandwidth: int = 0
    nice: int = 10
    io_class: str = "low"
    uncached_from: int = 64 * MIB


@dataclass(frozen=True, slots=True)
class RetentionConfig:
    """The table [retention]."""

    keep_last: int = 0
    keep_tags: tuple[str, ...] = ()
    pattern: str = "**"
    incomplete_sets: float = 604800.0


@dataclass(frozen=True, slots=True)
class AccessConfig:
    """The table [access]."""

    uids: tuple[int, ...] = ()
    admins: tuple[int, ...] = ()
    read: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    write: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    socket_mode: str = "0600"


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """The table [http]."""

    listen: str = "auto"
    socket_mode: str = "0600"


@dataclass(frozen=True, slots=True)
class Config:
    """Everything; `embedded` is the root that an embedded daemon serves."""

    daemon: DaemonConfig = field(default_factory=DaemonConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    catalog: CatalogConfig = field(default_factory=CatalogConfig)
    spool: SpoolConfig = field(default_factory=SpoolConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    retention: RetentionConfig = field(default_factory=RetentionConfig)
    access: AccessConfig = field(default_factory=AccessConfig)
    http: HttpConfig = field(default_factory=HttpConfig)
    embedded: Path | None = None

    # ---- what follows from the settings

    @property
    def state_dir(self) -> Path:
        return self._followed(Path(self.daemon.state_dir))

    @property
    def socket(self) -> Path:
        return self._followed(Path(self.daemon.socket))

    @property
    def outside(self) -> bool:
        """Whether an embedded daemon keeps its state outside its root, which is on a network file system."""
        return self.embedded is not None and Path(self.daemon.state_dir).parent != self.embedded

    @property
    def pool_folders(self) -> list[Path]:
        """A folder of this daemon's own in each pool: what it does not know there it may remove."""
        mine = hashlib.sha256(os.fsencode(self.daemon.state_dir)).hexdigest()[:16]
        return [Path(pool) / ".ml-dash-spool" / mine for pool in self.spool.pools]

    @property
    def bucket(self) -> str:
        """The bucket of an s3:// store; "" for a folder."""
        parts = urlsplit(self.store.url)
        return parts.netloc if parts.scheme == "s3" else ""

    @property
    def key_prefix(self) -> str:
        """What every key of an s3:// store begins with: "" or a path that ends in "/"."""
        path = urlsplit(self.store.url).path.strip("/") if self.bucket else ""
        return f"{path}/" if path else ""

    @property
    def store_root(self) -> Path:
        """The folder of a file:// store."""
        return self._followed(_file_path(self.store.url))

    @property
    def fleet(self) -> bool:
        """Whether the catalog is one that many nodes share: MongoDB."""
        return urlsplit(self.catalog.url).scheme in MONGODB

    @property
    def catalog_place(self) -> str:
        """The catalog for people: a file, or a fleet's hosts and database."""
        return place(self.catalog.url) if self.fleet else str(_file_path(self.catalog.url))

    def exposed(self, source: Path | None) -> Path | None:
        """The file of these settings, where it holds a password and everybody may read it."""
        if source is None or urlsplit(self.catalog.url).password is None:
            return None
        return source if source.stat().st_mode & stat.S_IROTH else None

    @property
    def catalog_path(self) -> Path:
        """The file of a sqlite:// catalog."""
        return self._followed(_file_path(self.catalog.url))

    @property
    def runs_path(self) -> Path:
        """Beside it, the file of experiments, parameters and metrics; in a fleet, this node's, in its state folder."""
        if self.fleet:
            return self.state_dir / "runs.sqlite"
        return self.catalog_path.with_name(f"{self.catalog_path.stem}-runs.sqlite")

    def _followed(self, path: Path) -> Path:
        """What is in an embedded daemon's root is reached through its working folder, wherever that is moved."""
        if self.embedded is None or not path.is_relative_to(self.embedded):
            return path
        return WORKING / path.relative_to(self.embedded)


SYSTEMD_VARIABLES = (
    "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID",
)  # fmt: skip
FILE_NAME = "ml-dashd.toml"
GIVEN_CREDENTIALS = "s3"
"""The name of the credential that systemd's LoadCredential= hands in."""


def source(path: Path | None) -> Path | None:
    """The file with the settings: the one given, $ML_DASH_CONFIG, or a systemd unit's; None for the defaults."""
    if path is None and (named := os.environ.get("ML_DASH_CONFIG")):
        return Path(named)
    if path is None and (folder := _unit_folder("CONFIGURATION_DIRECTORY")) and (folder / FILE_NAME).is_file():
        return folder / FILE_NAME
    return path


def load(path: Path | None) -> Config:
    """The settings of `source(path)`, or the defaults. Raises CONFIG with the key and what is allowed."""
    path = source(path)
    if path is None:
        return with_defaults(Config())
    try:
        table = tomllib.loads(path.read_text())
    except OSError as failure:
        raise error(Code.CONFIG, f"{path}: {failure.strerror}", "name a file that can be read") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as bad:
        raise error(Code.CONFIG, f"{path}: not TOML: {bad}", "mend the line that it names") from None
    try:
        return _checked_together(with_defaults(parse(table)))
    except MLDashError as bad:
        raise error(Code.CONFIG, f"{path}: {bad.message}", bad.hint) from None


def parse(table: Mapping[str, Any]) -> Config:
    """Settings from TOML tables, checked key by key."""
    hints = {
        name: kind for name, kind in get_type_hints(Config).items() if isinstance(kind, type) and is_dataclass(kind)
    }
    sections: dict[str, Any] = {}
    for name, value in table.items():
        if name not in hints:
            raise unknown(f"[{name}]", (f"[{known}]" for known in hints))
        if not isinstance(value, dict):
            raise error(Code.CONFIG, f"{name} is {kind_of(value)}", f"make it a table: [{name}]")
        sections[name] = section(name, hints[name], value)
    return Config(**sections)


def embedded(root: Path, state_dir: Path | None = None) -> Config:
    """The settings of the daemon that serves one root by itself: everything is inside the root, or in `state_dir`.

    It must work in the root: paths in there are reached through the working folder.
    """
    home = state_dir or root / HOME
    idle_timeout = DaemonConfig().idle_timeout if state_dir is None else OUTSIDE_IDLE_S
    return Config(
        daemon=DaemonConfig(socket=str(home / "socket"), state_dir=str(home), idle_timeout=idle_timeout),
        store=StoreConfig(url=root.as_uri()),
        catalog=CatalogConfig(url=(home / "catalog.sqlite").as_uri().replace("file:", "sqlite:", 1)),
        http=HttpConfig(listen=""),
        embedded=root,
    )


def _checked_together(config: Config) -> Config:
    """What each may be, but not both."""
    if 0 < config.limits.memory < 2 * config.store.part_size:
        raise error(
            Code.CONFIG,
            f"limits.memory is {config.limits.memory} and store.part_size {config.store.part_size}",
            "limits.memory must be at least twice store.part_size: one part is read while another is sent",
        )
    if config.http.listen == f"unix:{config.daemon.socket}":
        raise error(Code.CONFIG, f"http.listen and daemon.socket are both {config.daemon.socket}", "use two paths")
    check_s3(config.store)
    return config


def with_defaults(config: Config) -> Config:
    """Fills in the places that depend on who runs the daemon: root gets the system's, others their own."""
    state_dir = config.daemon.state_dir or str(_default_state_dir())
    daemon = replace(config.daemon, state_dir=state_dir, socket=config.daemon.socket or str(_default_socket()))
    store = replace(
        config.store,
        url=config.store.url or (Path(state_dir) / "files").as_uri(),
        credentials_file=config.store.credentials_file or _given_credentials(),
    )
    catalog = replace(
        config.catalog,
        url=config.catalog.url or (Path(state_dir) / "catalog.sqlite").as_uri().replace("file:", "sqlite:", 1),
    )
    beside = f"unix:{Path(daemon.socket).with_name('http.sock')}"
    http = replace(config.http, listen=beside) if config.http.listen == "auto" else config.http
    return replace(config, daemon=daemon, store=store, catalog=catalog, http=http)


def fault_plan() -> tuple[dict[str, str], str | None] | None:
    """What tests ask of the fault points: "point=action,…" in ML_DASHD_FAULTS, and a file that lists the points met."""
    plan, met = os.environ.get("ML_DASHD_FAULTS"), os.environ.get("ML_DASHD_FAULT_LOG")
    if plan is None and met is None:
        return None
    pairs = (entry.split("=", 1) for entry in (plan or "").split(",") if entry)
    return {entry[0]: entry[1] for entry in pairs}, met


def of_systemd() -> dict[str, str]:
    """What systemd says to this process (edge/systemd.py), taken out of the environment: no child is to answer it."""
    return {name: os.environ.pop(name, "") for name in SYSTEMD_VARIABLES}


def _file_path(url: str) -> Path:
    return Path(os.fsdecode(unquote_to_bytes(urlsplit(url).path)))


def _unit_folder(name: str) -> Path | None:
    """The first folder that a systemd unit names in that variable (StateDirectory= and the like)."""
    first = os.environ.get(name, "").partition(":")[0]
    return Path(first) if first.startswith("/") else None


def _given_credentials() -> str:
    """The file that systemd hands in with LoadCredential=s3:…; "" where there is none.

    One that this user may not read is named all the same: files are blocked, and the reason is said.
    """
    if (folder := _unit_folder("CREDENTIALS_DIRECTORY")) is None:
        return ""
    given = folder / GIVEN_CREDENTIALS
    try:
        return str(given) if given.is_file() else ""
    except PermissionError:
        return str(given)


def _default_state_dir() -> Path:
    if (folder := _unit_folder("STATE_DIRECTORY")) is not None:
        return folder
    if os.geteuid() == 0:
        return Path("/var/lib/ml-dash")
    home = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(home) / "ml-dash"


def _default_socket() -> Path:
    if (folder := _unit_folder("RUNTIME_DIRECTORY")) is not None:
        return folder / "ml-dashd.sock"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if os.geteuid() != 0 and runtime:
        return Path(runtime) / "ml-dash" / "ml-dashd.sock"
    if os.geteuid() == 0:
        return Path("/run/ml-dash/ml-dashd.sock")
    return _default_state_dir() / "ml-dashd.sock"
