"""What each key of the settings may hold, and what is said of one that holds something else."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from typing import Any, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

from ml_dash.errors import Code, MLDashError, error
from ml_dashd.core import names
from ml_dashd.core.listen import FORMS, parse_listen
from ml_dashd.core.plan import MIB
from ml_dashd.core.redact import redact

CHOICES = {
    "store.addressing": ("auto", "path", "virtual"),
    "store.sse": ("", "AES256", "aws:kms", "aws:kms:dsse"),
    "store.checksum": ("auto", "crc64nvme", "crc32c", "md5", "none"),
    "spool.durability": ("memory", "disk"),
    "limits.io_class": ("normal", "low", "idle"),
    "daemon.log_level": ("debug", "info", "warning", "error"),
    "daemon.log_format": ("human", "json"),
}
LEAST: dict[str, float] = {
    "daemon.drain_timeout": 0,
    "daemon.idle_timeout": 1,
    "daemon.max_connections": 1,
    "daemon.peer_timeout": 0.1,
    "store.part_size": 5 * MIB,
    "store.delete_grace": 0,
    "store.reconcile_every": 0,
    "store.orphan_age": 3600,
    "retention.keep_last": 0,
    "retention.incomplete_sets": 1,
    "limits.memory": 0,
    "limits.threads": 0,
    "limits.connections": 1,
    "limits.bandwidth": 0,
    "limits.nice": 0,
    "limits.uncached_from": 0,
    "access.uids": 0,
    "spool.quota": 0,
    "spool.warm_bytes": 0,
    "spool.copy_below": 0,
    "spool.copy_after": 0,
    "spool.lease_max_delay": 0,
    "spool.touch_leases": 0,
    "access.admins": 0,
}
LEAST_UNLESS_0 = {"limits.bandwidth": 64 * 1024, "limits.memory": 32 * MIB}
"""With fewer bytes a second, a request would take longer than its signature holds."""
MOST: dict[str, float] = {
    "store.part_size": 5 * 1024 * MIB,
    "limits.threads": 64,
    "limits.connections": 256,
    "limits.nice": 19,
}
MONGODB = ("mongodb", "mongodb+srv")
SCHEMES = {
    "store.url": (("file", "s3"), '"file:///folder" or "s3://bucket/key_prefix"'),
    "catalog.url": (("sqlite", *MONGODB), '"sqlite:///file" or "mongodb://host,host/database?options"'),
    "store.endpoint_url": (("http", "https"), '"https://host:port"'),
    "store.proxy": (("http", "https"), '"http://host:port", or "direct" for none'),
}
OTHER = {"store.endpoint_url": ("",), "store.proxy": ("", "direct")}
"""What may stand in place of a URL."""
CREDENTIALS_OF = {
    "store.url": "give them to the AWS chain",
    "store.endpoint_url": "give them to the AWS chain",
    "store.proxy": "give the proxy's whole URL in the daemon's environment (HTTPS_PROXY)",
}
PATHS = (
    "daemon.socket",
    "daemon.state_dir",
    "daemon.inbox",
    "store.ca_bundle",
    "store.credentials_file",
    "spool.pools",
)


def section(name: str, kind: type, table: Mapping[str, Any]) -> Any:
    """A table of the file as its dataclass. Raises CONFIG for what it may not hold."""
    hints = get_type_hints(kind)
    values = {}
    for key, value in table.items():
        full = f"{name}.{key}"
        if key not in hints:
            raise unknown(full, (f"{name}.{known}" for known in hints))
        values[key] = _value(full, hints[key], value)
    return kind(**values)


def _value(name: str, kind: Any, value: Any) -> Any:
    if get_origin(kind) is Mapping:
        return _by_namespace(name, get_args(kind)[1], value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if get_args(kind):
        (item, _) = get_args(kind)
        if not isinstance(value, list) or not all(type(one) is item for one in value):
            raise wrong(name, value, f"an array of {_NAMES[item]}")
        for one in value:
            _check(name, one)
        return tuple(value)
    if type(value) is not kind:
        raise wrong(name, value, _NAMES[kind])
    _check(name, value)
    return value


def _by_namespace(name: str, kind: Any, value: Any) -> Mapping[str, Any]:
    """A table whose keys are namespaces, by the rule for those that files are handed over with."""
    if not isinstance(value, dict):
        raise wrong(name, value, "a table of namespaces")
    for namespace in value:
        segments = names.clean(namespace, f"the namespace in {name}", Code.CONFIG)
        if segments != (namespace,):
            raise error(
                Code.CONFIG, f"{name} has {namespace!r}, which is no namespace", "use the first part of a prefix"
            )
    return {namespace: _value(f"{name}.{namespace}", kind, entry) for namespace, entry in value.items()}


def _check(name: str, value: Any) -> None:
    if name.startswith(("access.read.", "access.write.")) and value < 0:
        raise wrong(name, value, "at least 0")
    if name in CHOICES and value not in CHOICES[name]:
        raise wrong(name, value, "one of " + ", ".join(repr(choice) for choice in CHOICES[name]))
    if name in LEAST:
        _check_range(name, value)
    if isinstance(value, float) and not math.isfinite(value):
        raise wrong(name, value, "a finite number")
    if name.endswith("mode") and not re.fullmatch(r"0[0-7]{3}", value):
        raise wrong(name, value, 'an octal mode such as "0640"')
    if name in SCHEMES and value not in OTHER.get(name, ()) and not _is_url(value, SCHEMES[name][0]):
        raise wrong(name, value, SCHEMES[name][1])
    if name in CREDENTIALS_OF and "@" in urlsplit(value).netloc:
        raise error(Code.CONFIG, f"{name} holds credentials", f"{CREDENTIALS_OF[name]}, and leave them out here")
    if name in CHECKS:
        CHECKS[name](name, value)
    if name in PATHS and (value or name == "spool.pools") and not value.startswith("/"):
        raise wrong(name, value, "an absolute path")


def _check_range(name: str, value: float) -> None:
    if not LEAST[name] <= value <= MOST.get(name, float("inf")):
        raise wrong(name, value, f"at least {LEAST[name]}" + (f", at most {MOST[name]}" if name in MOST else ""))
    if 0 < value < (least := LEAST_UNLESS_0.get(name, 0)):
        raise wrong(name, value, f"0, or at least {least}")


def _check_pattern(name: str, value: str) -> None:
    try:
        names.matches("", "", value)
    except MLDashError as bad:
        raise error(Code.CONFIG, f"{name}: {bad.message}", 'use a glob, such as "**/checkpoints/*"') from None


def _check_listen(name: str, value: str) -> None:
    if value in ("", "auto"):
        return
    try:
        parse_listen(value)
    except ValueError:
        raise wrong(name, value, f"{FORMS}: HTTP is for this machine alone") from None


CHECKS = {"http.listen": _check_listen, "retention.pattern": _check_pattern, "spool.supersede": _check_pattern}


def _is_url(value: str, schemes: tuple[str, ...]) -> bool:
    """Whether it names a place, and nothing of it would be dropped without a word."""
    try:
        parts = urlsplit(value)
        _ = parts.port if parts.scheme not in MONGODB else None  # several hosts, each with a port
    except ValueError:
        return False
    if parts.scheme not in schemes or not value.isprintable():
        return False
    if parts.scheme in MONGODB:
        return bool(parts.netloc.rpartition("@")[2]) and len(parts.path) > 1
    if parts.scheme in ("file", "sqlite", "s3") and set("?#") & set(value):
        return False
    if parts.scheme in ("file", "sqlite"):
        return not parts.netloc and parts.path.startswith("/")
    return bool(parts.hostname)


def wrong(name: str, value: Any, allowed: str) -> MLDashError:
    return error(Code.CONFIG, f"{name} is {_shown(value)}", f"it must be {allowed}")


def unknown(name: str, known: Any) -> MLDashError:
    known = sorted(known)
    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]}? " if close else ""
    shown = name if name.isprintable() else ascii(name)
    return error(Code.CONFIG, f"unknown key {shown}", f"{hint}allowed are {', '.join(known)}")


def _shown(value: Any) -> str:
    return redact(f"{value!r} ({kind_of(value)})")


_NAMES: dict[Any, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def kind_of(value: Any) -> str:
    return _NAMES.get(type(value), type(value).__name__)
