"""Where HTTP is served, as a setting says it."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

FORMS = '"unix:/path", a loopback address such as "127.0.0.1:9464" or "[::1]:9464", "auto", or "" for none'
HIGHEST_PORT = 65_535


@dataclass(frozen=True, slots=True)
class Listen:
    """A socket's path, or a loopback address and its port."""

    path: str = ""
    host: str = ""
    port: int = 0


def parse_listen(text: str) -> Listen:
    """What `http.listen` names. Raises ValueError for all that is not loopback: names, too, may lead elsewhere."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/") or path.endswith("/") or not path.isprintable():
            raise ValueError(f"{path!r} is no absolute path of a socket")
        return Listen(path=path)
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    address = ip_address(host[1:-1] if bracketed else host)
    if not address.is_loopback or bracketed is not (address.version == 6):  # noqa: PLR2004 IPv6
        raise ValueError(f"{host} is no loopback address")
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= HIGHEST_PORT):
        raise ValueError(f"{port!r} is no port")
    return Listen(host=str(address), port=int(port))


def is_loopback(host: str) -> bool:
    """Whether a request's Host names this machine itself: a page that rebinds its name in DNS names another."""
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    if name.lower() == "localhost":
        return True
    try:
        return ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
