"""Credentials come from AWS's chain or a file, end in the middle of a file, are revoked, and are mended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_dash.errors import Code
from tests.doubles.gate import Answer, Asked, Gate
from tests.doubles.keys import Keys
from tests.harness import Bucket, DaemonProcess, assert_whole, eventually, make_file
from tests.servers.localstack import LocalStack
from tests.servers.swift import Swift

MIB = 1 << 20
LARGE = "large.bin"
SIZES = {"small.bin": MIB, LARGE: 60 * MIB}
PARTS = 12
"""Of the large file, of 5 MiB each."""
SMALL_PARTS = f"part_size = {5 * MIB}\n"

pytestmark = pytest.mark.slow


@pytest.fixture
def keys() -> Iterator[Keys]:
    with Keys() as double:
        yield double


class Revoked:
    """Ends all keys just before such a request for the large file, once."""

    def __init__(self, keys: Keys, method: str, query: str) -> None:
        self.keys, self.method, self.query = keys, method, query
        self.done = False

    def __call__(self, asked: Asked) -> Answer | None:
        ours = asked.method == self.method and LARGE in asked.target and self.query in asked.target
        if ours and not self.done:
            self.done = True
            self.keys.revoke_all()
        return self.keys.judge(asked)


MOMENTS = {
    "a part": ("PUT", "partNumber=6&"),
    "begin": ("POST", "?uploads"),
    "complete": ("POST", "?uploadId="),
    "list parts": ("GET", "uploadId="),
    "head": ("HEAD", ""),  # refused without a word of why
}


def from_container(keys: Keys, token: Path) -> dict[str, str]:
    token.write_text("of this pod")
    return {
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{keys.endpoint}/role",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(token),
    }


def from_web_identity(keys: Keys, token: Path) -> dict[str, str]:
    token.write_text("of this pod")
    return {
        "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/ml-dash",
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(token),
        "AWS_ENDPOINT_URL_STS": keys.endpoint,
    }


def send_all(daemon: DaemonProcess, folder: Path) -> None:
    expected = {name: make_file(folder / name, size) for name, size in SIZES.items()}
    with daemon.experiment().run as exp:
        for name in expected:
            exp.files.upload(folder / name, to=name)
        exp.files.flush(timeout=120)
        assert_whole(daemon, exp, expected)


@pytest.mark.parametrize("moment", MOMENTS)
def test_keys_that_end_in_the_middle_of_a_file(moment: str, localstack: LocalStack, keys: Keys, tmp_path: Path) -> None:
    """Earlier than they said. Others are asked for, and no part that was stored is sent again."""
    revoked = Revoked(keys, *MOMENTS[moment])
    with Gate(localstack.endpoint, revoked) as gate:
        store = Bucket(localstack, endpoint=gate.endpoint)
        store.credentials = {"AWS_DEFAULT_REGION": "us-east-1"} | from_container(keys, tmp_path / "token")
        with DaemonProcess(tmp_path / "daemon", store, SMALL_PARTS) as daemon:
            send_all(daemon, tmp_path)
        assert revoked.done
        assert keys.refused > 0
        assert len(keys.given) >= 2, "nobody asked for other keys"
        assert len(keys.given) <= 1 + keys.refused, "asked for keys that nobody needed"
        sent = [asked for asked in gate.asked if LARGE in asked.target and "partNumber=" in asked.target]
        assert len(sent) <= PARTS + keys.refused


def test_keys_that_live_shorter_than_a_file_takes(localstack: LocalStack, keys: Keys, tmp_path: Path) -> None:
    """Below ten minutes botocore asks before each request; each set is refused as soon as there is a newer one."""
    keys.life_s = 300

    def newest_alone(asked: Asked) -> Answer | None:
        keys.good.intersection_update(keys.given[-20:])
        return keys.judge(asked)

    with Gate(localstack.endpoint, newest_alone) as gate:
        store = Bucket(localstack, endpoint=gate.endpoint)
        store.credentials = {"AWS_DEFAULT_REGION": "us-east-1"} | from_container(keys, tmp_path / "token")
        with DaemonProcess(tmp_path / "daemon", store, SMALL_PARTS) as daemon:
            send_all(daemon, tmp_path)
    assert len(keys.given) > PARTS


def test_web_identity(localstack: LocalStack, keys: Keys, tmp_path: Path) -> None:
    """As pods have it: a token that the platform renews is changed for keys. The token is read anew each time."""
    token = tmp_path / "token"
    revoked = Revoked(keys, "PUT", "partNumber=6&")

    def judge(asked: Asked) -> Answer | None:
        if "partNumber=5&" in asked.target:
            token.write_text("of this pod, renewed")
        return revoked(asked)

    with Gate(localstack.endpoint, judge) as gate:
        store = Bucket(localstack, endpoint=gate.endpoint)
        store.credentials = {"AWS_DEFAULT_REGION": "us-east-1"} | from_web_identity(keys, token)
        with DaemonProcess(tmp_path / "daemon", store, SMALL_PARTS) as daemon:
            send_all(daemon, tmp_path)
            assert "of this pod" not in daemon.log()
    assert keys.tokens[0] == "of this pod"
    assert keys.tokens[-1] == "of this pod, renewed"


def test_who_gives_keys_is_away_for_a_while(localstack: LocalStack, keys: Keys, tmp_path: Path) -> None:
    """Files wait, an operator is told, and they go on by themselves."""
    keys.broken = True
    with Gate(localstack.endpoint, keys.judge) as gate:
        store = Bucket(localstack, endpoint=gate.endpoint)
        store.credentials = {"AWS_DEFAULT_REGION": "us-east-1"} | from_container(keys, tmp_path / "token")
        with DaemonProcess(tmp_path / "daemon", store) as daemon, daemon.experiment().run as exp:
            digest = make_file(tmp_path / "a.bin", MIB)
            exp.files.upload(tmp_path / "a.bin")
            (said,) = eventually(lambda: daemon.status().blocked)
            assert said.error_code == Code.STORE_CREDENTIALS
            keys.broken = False
            exp.files.flush(timeout=60)
            assert_whole(daemon, exp, {"a.bin": digest})


def test_keys_that_have_ended_for_good_are_an_operators_business(
    localstack: LocalStack, keys: Keys, tmp_path: Path
) -> None:
    """Temporary keys in a file that nobody renews: after a few tries it is said; renewed, files go on."""
    profile = tmp_path / "credentials"

    def write() -> None:
        given = keys.give()
        lines = (f"aws_{name} = {given[key]}" for name, key in NAMES.items())
        profile.write_text("[default]\n" + "\n".join(lines))

    write()
    keys.revoke_all()
    with Gate(localstack.endpoint, keys.judge) as gate:
        store = Bucket(localstack, endpoint=gate.endpoint)
        store.credentials = {"AWS_DEFAULT_REGION": "us-east-1"}
        settings = f'credentials_file = "{profile}"\n'
        with DaemonProcess(tmp_path / "daemon", store, settings) as daemon, daemon.experiment().run as exp:
            digest = make_file(tmp_path / "a.bin", MIB)
            exp.files.upload(tmp_path / "a.bin")
            (said,) = eventually(lambda: daemon.status().blocked)
            assert said.error_code == Code.STORE_CREDENTIALS
            assert "ExpiredToken" in (said.error_message or "")
            write()
            exp.files.flush(timeout=60)
            assert_whole(daemon, exp, {"a.bin": digest})


NAMES = {"access_key_id": "AccessKeyId", "secret_access_key": "SecretAccessKey", "session_token": "Token"}


def give(path: Path, server: Swift, secret: str, profile: str = "default") -> None:
    path.write_text(f"[{profile}]\naws_access_key_id = {server.access_key}\naws_secret_access_key = {secret}\n")


@pytest.mark.parametrize("how", ["settings", "systemd"])
def test_a_file_of_credentials_goes_before_the_environment(how: str, swift: Swift, tmp_path: Path) -> None:
    store = Bucket(swift)
    store.credentials |= {"AWS_SECRET_ACCESS_KEY": "of somebody else"}
    handed = tmp_path / "handed in"
    handed.mkdir()
    file = handed / ("s3" if how == "systemd" else "credentials")
    give(file, swift, swift.secret_key)
    settings = f'credentials_file = "{file}"\n' if how == "settings" else ""
    daemon = DaemonProcess(tmp_path / "daemon", store, settings)
    daemon.environment = {"CREDENTIALS_DIRECTORY": str(handed)}
    with daemon, daemon.experiment().run as exp:
        exp.files.save_text("x", to="x.txt").wait(60)
        assert len(store.keys()) == 1


def test_a_profile_goes_before_the_environment(swift: Swift, tmp_path: Path) -> None:
    store = Bucket(swift)
    file = tmp_path / "credentials"
    give(file, swift, swift.secret_key, "uploads")
    store.credentials |= {"AWS_SECRET_ACCESS_KEY": "of somebody else", "AWS_SHARED_CREDENTIALS_FILE": str(file)}
    with DaemonProcess(tmp_path / "daemon", store, 'profile = "uploads"\n') as daemon, daemon.experiment().run as exp:
        exp.files.save_text("x", to="x.txt").wait(60)
        assert len(store.keys()) == 1


@pytest.mark.parametrize("missing", ["the file", "the profile"])
def test_what_is_named_and_not_there_is_waited_for(missing: str, swift: Swift, tmp_path: Path) -> None:
    """The environment's keys, which would do, are not used in its place."""
    store = Bucket(swift)
    file = tmp_path / "credentials"
    if missing == "the profile":
        give(file, swift, swift.secret_key, "another")
    settings = f'credentials_file = "{file}"\nprofile = "uploads"\n'
    with DaemonProcess(tmp_path / "daemon", store, settings) as daemon, daemon.experiment().run as exp:
        exp.files.save_text("x", to="x.txt")
        (said,) = eventually(lambda: daemon.status().blocked)
        assert said.error_code == Code.STORE_CREDENTIALS
        assert (str(file) if missing == "the file" else "uploads") in (said.error_message or "")
        give(file, swift, swift.secret_key, "uploads")
        exp.files.flush(timeout=60)
        assert len(store.keys()) == 1
