"""Files go over TLS, by proxies, and to buckets in the host's name; what is not trusted gets nothing. On Swift."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ml_dash.errors import Code
from ml_dash.messages import Record
from tests.doubles.authority import Authority
from tests.doubles.gate import Gate, refusal
from tests.doubles.tls_proxy import TlsProxy
from tests.harness import Bucket, DaemonProcess, assert_whole, eventually, make_file
from tests.servers.swift import STORAGE_DOMAIN, Swift

MIB = 1 << 20
SIZES = {"small.bin": MIB, "large.bin": 20 * MIB}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    names = ["localhost", "127.0.0.1", STORAGE_DOMAIN, f"*.{STORAGE_DOMAIN}"]
    return Authority(tmp_path_factory.mktemp("authority"), names)


@pytest.fixture
def front(swift: Swift, authority: Authority) -> Iterator[TlsProxy]:
    with TlsProxy(swift.endpoint, authority.server) as proxy:
        yield proxy


def hand_over(daemon: DaemonProcess, folder: Path) -> dict[str, str]:
    expected = {name: make_file(folder / name, size) for name, size in SIZES.items()}
    with daemon.experiment().run as exp:
        for name in expected:
            exp.files.upload(folder / name, to=name)
    return expected


def stored(daemon: DaemonProcess, expected: dict[str, str]) -> None:
    with daemon.experiment().run as exp:
        exp.files.flush(timeout=60)
        assert_whole(daemon, exp, expected)


def blocked(daemon: DaemonProcess, code: Code) -> Record:
    found = eventually(lambda: len(seen := daemon.status().blocked) == len(SIZES) and seen)
    assert {record.error_code for record in found} == {code}
    return found[0]


def test_an_authority_named_by_ca_bundle(swift: Swift, front: TlsProxy, authority: Authority, tmp_path: Path) -> None:
    store = Bucket(swift, endpoint=front.endpoint)
    with DaemonProcess(tmp_path / "daemon", store, f'ca_bundle = "{authority.bundle}"\n') as daemon:
        stored(daemon, hand_over(daemon, tmp_path))
    assert front.handshakes > 0


def test_an_authority_that_the_system_knows(
    swift: Swift, front: TlsProxy, authority: Authority, tmp_path: Path
) -> None:
    """OpenSSL's variable for the system's roots; aiobotocore by itself would look at a list of its own."""
    store = Bucket(swift, endpoint=front.endpoint)
    daemon = DaemonProcess(tmp_path / "daemon", store)
    daemon.environment = {"SSL_CERT_FILE": str(authority.bundle)}
    with daemon:
        stored(daemon, hand_over(daemon, tmp_path))


@pytest.mark.parametrize("why", ["authority", "host"])
def test_what_is_not_trusted_gets_nothing(
    why: str, swift: Swift, front: TlsProxy, authority: Authority, tmp_path: Path
) -> None:
    """Neither the names of files nor a signature; mended, they go on."""
    store = Bucket(swift)
    if why == "authority":
        store.endpoint, settings = front.endpoint, ""
    else:
        other = Authority(tmp_path / "other", ["elsewhere.test"])
        settings = f'ca_bundle = "{other.bundle}"\n'
    with ExitStack() as stack:
        if why == "host":
            store.endpoint = stack.enter_context(TlsProxy(swift.endpoint, other.server)).endpoint
        daemon = stack.enter_context(DaemonProcess(tmp_path / "daemon", store, settings))
        expected = hand_over(daemon, tmp_path)
        said = blocked(daemon, Code.STORE_UNTRUSTED)
        assert "store.ca_bundle" in (said.error_hint or "")
        assert "certificate" in (said.error_message or "")
        assert store.keys() == []
        daemon.kill()
        store.endpoint, daemon.settings = front.endpoint, f'ca_bundle = "{authority.bundle}"\n'
        daemon.start()
        stored(daemon, expected)


def through_proxy(store: Bucket, tmp_path: Path, settings: str, environment: dict[str, str] | None = None) -> None:
    daemon = DaemonProcess(tmp_path / "daemon", store, settings)
    daemon.environment = environment or {}
    with daemon:
        stored(daemon, hand_over(daemon, tmp_path))


@pytest.mark.parametrize("named", ["settings", "environment"])
def test_a_proxy_in_front_of_tls_sees_hosts_alone(
    named: str, swift: Swift, front: TlsProxy, authority: Authority, tmp_path: Path
) -> None:
    store = Bucket(swift, endpoint=front.endpoint)
    settings = f'ca_bundle = "{authority.bundle}"\n'
    with Gate(front.endpoint) as proxy:
        if named == "settings":
            through_proxy(store, tmp_path, settings + f'proxy = "{proxy.endpoint}"\n')
        else:
            through_proxy(store, tmp_path, settings, {"HTTPS_PROXY": proxy.endpoint})
        assert {(asked.method, asked.target) for asked in proxy.asked} == {("CONNECT", f"localhost:{front.port}")}
        assert len(proxy.asked) >= 2, "both the data path and aiobotocore's calls go this way"
        assert front.handshakes == len(proxy.asked), "something went past the proxy"


@pytest.mark.parametrize(
    ("settings", "environment", "passed"),
    [
        ('proxy = "{proxy}"', {}, True),
        ("", {"HTTP_PROXY": "{proxy}"}, True),
        ("", {"http_proxy": "{proxy}"}, True),
        ("", {"http_proxy": "{proxy}", "NO_PROXY": "127.0.0.1"}, False),
        ('proxy = "direct"', {"http_proxy": "{proxy}"}, False),
        ('proxy = "{proxy}"', {"NO_PROXY": "127.0.0.1"}, True),
    ],
)
def test_which_proxy(settings: str, environment: dict[str, str], passed: bool, swift: Swift, tmp_path: Path) -> None:
    with Gate(swift.endpoint) as proxy:
        named = {name: value.format(proxy=proxy.endpoint) for name, value in environment.items()}
        through_proxy(Bucket(swift), tmp_path, settings.format(proxy=proxy.endpoint) + "\n", named)
        assert {asked.method for asked in proxy.asked} >= ({"PUT", "POST", "GET", "HEAD"} if passed else set())
        assert bool(proxy.asked) is passed


def test_a_proxy_that_refuses_is_named(swift: Swift, front: TlsProxy, authority: Authority, tmp_path: Path) -> None:
    """It is no refusal of the file: once the proxy lets it, it goes on."""
    shut = [True]
    with Gate(front.endpoint, lambda _: refusal(407, "") if shut else None) as proxy:
        settings = f'ca_bundle = "{authority.bundle}"\nproxy = "{proxy.endpoint}"\n'
        with DaemonProcess(tmp_path / "daemon", Bucket(swift, endpoint=front.endpoint), settings) as daemon:
            expected = hand_over(daemon, tmp_path)
            said = blocked(daemon, Code.STORE_UNREACHABLE)
            assert "store.proxy" in (said.error_hint or "")
            assert "407" in (said.error_message or "")
            shut.clear()
            stored(daemon, expected)


@pytest.mark.parametrize("tls", [False, True])
def test_a_bucket_in_the_hosts_name(
    tls: bool, swift: Swift, front: TlsProxy, authority: Authority, tmp_path: Path
) -> None:
    """By a proxy, which is who looks names up; Swift takes the bucket from the host, and checks the signature."""
    store = Bucket(swift, endpoint=f"{'https' if tls else 'http'}://{STORAGE_DOMAIN}")
    settings = f'addressing = "virtual"\nca_bundle = "{authority.bundle}"\n'
    with Gate(front.endpoint if tls else swift.endpoint) as proxy:
        through_proxy(store, tmp_path, settings + f'proxy = "{proxy.endpoint}"\n')
        host = f"{store.bucket}.{STORAGE_DOMAIN}"
        if tls:
            assert {asked.target for asked in proxy.asked} == {f"{host}:443"}
        else:
            assert all(asked.target.startswith(f"http://{host}/") for asked in proxy.asked)
            assert not any(store.bucket in asked.target.removeprefix(f"http://{host}") for asked in proxy.asked)
