"""Settings: what the defaults are, what is refused, and that a refusal is one line that names the key."""

from __future__ import annotations

import os
import tomllib
from dataclasses import fields
from pathlib import Path

import botocore
import pytest

from ml_dash.errors import Code, MLDashError
from ml_dashd.__main__ import main
from ml_dashd.config import MIB, Config, RetentionConfig, load, of_systemd, parse, with_defaults

CERTIFICATES = Path(botocore.__file__).with_name("cacert.pem")
KMS_KEY = "arn:aws:kms:eu-north-1:123456789012:key/1a2b"
GOOD = f"""
[daemon]
socket = "/run/x/socket"
state_dir = "/var/lib/x"
inbox = "/var/spool/x"
drain_timeout = 5
idle_timeout = 1.5
max_connections = 7
peer_timeout = 2
log_level = "debug"
log_format = "json"
[store]
url = "s3://bucket/some/prefix/"
endpoint_url = "https://[::1]:9000"
region = "eu-north-1"
addressing = "path"
profile = "uploads"
credentials_file = "/etc/ml-dash/credentials"
proxy = "http://proxy:3128"
ca_bundle = "{CERTIFICATES}"
checksum = "crc32c"
sse = "aws:kms"
sse_kms_key_id = "{KMS_KEY}"
storage_class = "STANDARD_IA"
mode = "0600"
part_size = 8_388_608
delete_grace = 60
reconcile_every = 3600
orphan_age = 86400
[catalog]
url = "sqlite:///var/lib/x/catalog%20of%20x.sqlite"
[spool]
pools = ["/data/spool", "/scratch/spool"]
durability = "disk"
quota = 1_000_000_000
warm_bytes = 2_000_000_000
copy_below = 0
copy_after = 1.5
lease_max_delay = 1.5
touch_leases = 16
supersede = ["last.pt", "**/latest.pt"]
[limits]
memory = 67_108_864
threads = 64
connections = 256
bandwidth = 65_536
nice = 5
io_class = "idle"
uncached_from = 1048576
[retention]
keep_last = 3
keep_tags = ["best"]
pattern = "**/checkpoints/*"
incomplete_sets = 3600
[access]
uids = [0, 1000]
admins = [1001]
socket_mode = "0660"
[access.read]
vision = [1002, 1003]
"bild größe" = []
[access.write]
vision = [1002]
[http]
listen = "unix:/run/x/http"
socket_mode = "0666"
"""

REFUSED = [
    # what the file says, the key that is named, what is allowed or what is meant
    ("[daemon]\nsoket = '/x'", "unknown key daemon.soket", "did you mean daemon.socket?"),
    ("[daemon]\nxyz = 1", "unknown key daemon.xyz", "daemon.drain_timeout, daemon.idle_timeout"),
    ("[stor]\nurl = 'file:///x'", "unknown key [stor]", "did you mean [store]?"),
    ("[embedded]\nroot = '/x'", "unknown key [embedded]", "[access], [catalog], [daemon]"),
    ("socket = '/x'", "unknown key [socket]", "[daemon]"),
    ('"a\\nb" = 1', "unknown key", "allowed are"),
    ('[daemon]\n"a\\nb" = 1', "unknown key", "allowed are"),
    ("daemon = 1", "daemon is a whole number", "[daemon]"),
    ("[[daemon]]\nsocket = '/x'", "daemon is", "[daemon]"),
    ("[daemon]\nsocket = 1", "daemon.socket is 1", "text"),
    ("[daemon]\nmax_connections = '5'", "daemon.max_connections is '5'", "a whole number"),
    ("[daemon]\nmax_connections = 5.0", "daemon.max_connections is 5.0", "a whole number"),
    ("[daemon]\nmax_connections = true", "daemon.max_connections is True", "a whole number"),
    ("[daemon]\ndrain_timeout = inf", "daemon.drain_timeout is inf", "a finite number"),
    ('[spool]\nsupersede = ["a//b"]', "spool.supersede: ", "a glob"),
    ("[spool]\ncopy_after = nan", "spool.copy_after is nan", "at least 0"),
    ("[daemon]\ndrain_timeout = true", "daemon.drain_timeout is True", "a number"),
    ("[daemon]\ndrain_timeout = '30'", "daemon.drain_timeout is '30'", "a number"),
    ("[spool]\npools = '/x'", "spool.pools is '/x'", "an array of text"),
    ("[store]\ndelete_grace = -1", "store.delete_grace is -1", "at least 0"),
    ("[store]\nreconcile_every = -1", "store.reconcile_every is -1", "at least 0"),
    ("[retention]\nkeep_last = -1", "retention.keep_last is -1", "at least 0"),
    ("[retention]\npattern = 'a//b'", "retention.pattern", 'such as "**/checkpoints/*"'),
    ("[spool]\npools = ['/x', 1]", "spool.pools is", "an array of text"),
    ("[access]\nuids = ['root']", "access.uids is", "an array of a whole number"),
    ("[access]\nuids = [true]", "access.uids is", "an array of a whole number"),
    ("[access]\nuids = [-1]", "access.uids is", "at least 0"),
    ("[access]\nadmins = [-1]", "access.admins is", "at least 0"),
    ("[access]\nadmins = 0", "access.admins is 0", "an array of a whole number"),
    ("[access]\nread = [1001]", "access.read is [1001]", "a table of namespaces"),
    ("[access.read]\nvision = 1001", "access.read.vision is 1001", "an array of a whole number"),
    ("[access.read]\nvision = ['bob']", "access.read.vision is", "an array of a whole number"),
    ("[access.write]\nvision = [-1]", "access.write.vision is -1", "at least 0"),
    ("[access.read]\nvision = [-1]", "access.read.vision is -1", "at least 0"),
    ("[access.read]\n'vision/cv' = [1]", "access.read has 'vision/cv'", "the first part of a prefix"),
    ("[access.read]\n'' = [1]", "access.read has ''", "the first part of a prefix"),
    ("[access.read]\n'..' = [1]", "the namespace in access.read '..'", "see config/ml-dashd.toml"),
    ('[access.read]\n"gro\\u0308sse" = [1]', "access.read has", "the first part of a prefix"),
    ("[daemon]\ndrain_timeout = -0.5", "daemon.drain_timeout is -0.5", "at least 0"),
    ("[daemon]\ndrain_timeout = nan", "daemon.drain_timeout is nan", "at least 0"),
    ("[daemon]\nidle_timeout = 0", "daemon.idle_timeout is 0", "at least 1"),
    ("[daemon]\nmax_connections = 0", "daemon.max_connections is 0", "at least 1"),
    ("[store]\npart_size = 5_242_879", "store.part_size is 5242879", "at least 5242880, at most 5368709120"),
    ("[store]\npart_size = 5_368_709_121", "store.part_size is 5368709121", "at most 5368709120"),
    ("[limits]\nmemory = 33_554_431", "limits.memory is 33554431", "at least 33554432"),
    ("[limits]\nthreads = -1", "limits.threads is -1", "at least 0, at most 64"),
    ("[limits]\nthreads = 65", "limits.threads is 65", "at least 0, at most 64"),
    ("[limits]\nconnections = 257", "limits.connections is 257", "at least 1, at most 256"),
    ("[limits]\nbandwidth = 65_535", "limits.bandwidth is 65535", "0, or at least 65536"),
    ("[limits]\nbandwidth = -1", "limits.bandwidth is -1", "at least 0"),
    ("[limits]\nbandwidth = '200MB/s'", "limits.bandwidth is '200MB/s'", "a whole number"),
    ("[daemon]\nlog_level = 'INFO'", "daemon.log_level is 'INFO'", "one of 'debug', 'info', 'warning', 'error'"),
    ("[daemon]\nlog_format = 'xml'", "daemon.log_format is 'xml'", "one of 'human', 'json'"),
    ("[http]\nlisten = '0.0.0.0:9464'", "http.listen is '0.0.0.0:9464'", "a loopback address such as"),
    ("[http]\nlisten = '[::]:9464'", "http.listen is '[::]:9464'", "HTTP is for this machine alone"),
    ("[http]\nlisten = 'node7:9464'", "http.listen is 'node7:9464'", "a loopback address such as"),
    ("[http]\nlisten = 'unix:http.sock'", "http.listen is 'unix:http.sock'", '"unix:/path"'),
    ("[http]\nlisten = 9464", "http.listen is 9464", "text"),
    ("[http]\nsocket_mode = '660'", "http.socket_mode is '660'", 'octal mode such as "0640"'),
    ("[daemon]\nsocket='/x/s'\n[http]\nlisten='unix:/x/s'", "http.listen and daemon.socket are both /x/s", "two paths"),
    ("[store]\nendpoint_url='https://ann:pw@h'", "store.endpoint_url holds credentials", "the AWS chain"),
    ("[store]\nurl='s3://ann:pw@bucket'", "store.url holds credentials", "the AWS chain"),
    ("[store]\nurl='gs://ann:pw@bucket'", "store.url is 'gs://***@bucket'", "s3://bucket/key_prefix"),
    ("[store]\nchecksum = 'sha1'", "store.checksum is 'sha1'", "'crc64nvme', 'crc32c', 'md5'"),
    ("[spool]\ndurability = 'tape'", "spool.durability is 'tape'", "one of 'memory', 'disk'"),
    ("[store]\nurl = '/data'", "store.url is '/data'", 'file:///folder" or "s3://bucket/key_prefix'),
    ("[store]\nurl = ''", "store.url is ''", "file:///folder"),
    ("[store]\nurl = 'gs://bucket'", "store.url is 'gs://bucket'", "s3://bucket/key_prefix"),
    ("[store]\nurl = 's3://'", "store.url is 's3://'", "s3://bucket/key_prefix"),
    ("[store]\nurl = 'file://data/x'", "store.url is 'file://data/x'", "file:///folder"),
    ("[store]\nurl = 'file:data'", "store.url is 'file:data'", "file:///folder"),
    ("[store]\nurl = 'file://'", "store.url is 'file://'", "file:///folder"),
    ("[store]\nurl = 'file:///data/run#1'", "store.url is 'file:///data/run#1'", "file:///folder"),
    ("[store]\nurl = 'file:///data/what?'", "store.url is 'file:///data/what?'", "file:///folder"),
    ("[store]\nurl = 's3://[bucket'", "store.url is 's3://[bucket'", "s3://bucket/key_prefix"),
    ('[store]\nurl = "file:///a\\nb"', "store.url is", "file:///folder"),
    ("[store]\nendpoint_url = 'minio:9000'", "store.endpoint_url is 'minio:9000'", "https://host:port"),
    ("[store]\nendpoint_url = 'http://[::1'", "store.endpoint_url is 'http://[::1'", "https://host:port"),
    ("[store]\nendpoint_url = 'http://minio:port'", "store.endpoint_url is 'http://minio:port'", "https://host:port"),
    ("[store]\nendpoint_url = 'http://:9000'", "store.endpoint_url is 'http://:9000'", "https://host:port"),
    ("[catalog]\nurl = 'mysql://db/x'", "catalog.url is 'mysql://db/x'", "sqlite:///file"),
    ("[catalog]\nurl = 'mongodb://u:p@'", "catalog.url is 'mongodb://***@'", "mongodb://host,host/database?options"),
    ("[catalog]\nurl = 'mongodb://host:27017/'", "catalog.url is 'mongodb://host:27017/'", "/database"),
    ("[catalog]\nurl = 'sqlite:catalog'", "catalog.url is 'sqlite:catalog'", "sqlite:///file"),
    ("[store]\nmode = '640'", "store.mode is '640'", 'octal mode such as "0640"'),
    ("[store]\nmode = '0o640'", "store.mode is '0o640'", 'octal mode such as "0640"'),
    ("[access]\nsocket_mode = '0680'", "access.socket_mode is '0680'", 'octal mode such as "0640"'),
    ("[access]\nsocket_mode = '٠٦٦٠'", "access.socket_mode is", 'octal mode such as "0640"'),
    ("[access]\nsocket_mode = 660", "access.socket_mode is 660", "text"),
    ("[daemon]\nsocket = 'run/socket'", "daemon.socket is 'run/socket'", "an absolute path"),
    ("[daemon]\nstate_dir = '~/state'", "daemon.state_dir is '~/state'", "an absolute path"),
    ("[daemon]\ninbox = 'inbox'", "daemon.inbox is 'inbox'", "an absolute path"),
    ("[store]\nca_bundle = 'ca.pem'", "store.ca_bundle is 'ca.pem'", "an absolute path"),
    ("[store]\nca_bundle = '/no/ca.pem'", "store.ca_bundle: /no/ca.pem: No such file", "a file of certificates"),
    ("[store]\nca_bundle = '/proc/self/maps'", "store.ca_bundle: /proc/self/maps holds no certificate", "in PEM"),
    ("[store]\ncredentials_file = '~/.aws/credentials'", "store.credentials_file is", "an absolute path"),
    ("[store]\nproxy = 'proxy:3128'", "store.proxy is 'proxy:3128'", '"direct" for none'),
    ("[store]\nproxy = 'http://ann:pw@proxy:3128'", "store.proxy holds credentials", "HTTPS_PROXY"),
    ("[store]\naddressing = 'host'", "store.addressing is 'host'", "one of 'auto', 'path', 'virtual'"),
    ("[store]\naddressing='virtual'\nendpoint_url='https://10.0.0.1'", "store.addressing is virtual", '"path"'),
    ("[store]\naddressing='virtual'\nendpoint_url='https://[::1]:9'", "store.addressing is virtual", '"path"'),
    ("[store]\nsse = 'aes256'", "store.sse is 'aes256'", "'AES256', 'aws:kms'"),
    ("[store]\nsse_kms_key_id = 'k'", "store.sse_kms_key_id is set, and store.sse is ''", 'store.sse = "aws:kms"'),
    ("[store]\nsse='AES256'\nsse_kms_key_id='k'", "store.sse_kms_key_id is set, and", 'store.sse = "aws:kms"'),
    ('[store]\nsse="aws:kms"\nsse_kms_key_id="a\\nb"', "store.sse_kms_key_id is", "ASCII without spaces"),
    ("[store]\nstorage_class = 'COLD LINE'", "store.storage_class is 'COLD LINE'", "ASCII without spaces"),
    ("[store]\nstorage_class = 'GLACIER'", "store.storage_class is GLACIER", "GLACIER_IR"),
    ("[store]\npart_size = 50331648\n[limits]\nmemory = 75497472", "limits.memory is 75497472", "at least twice"),
    ("[spool]\npools = ['/x', 'spool']", "spool.pools is", "an absolute path"),
    ("[spool]\npools = ['']", "spool.pools is", "an absolute path"),
    ("[daemon", "not TOML", "at end of document"),
    ("[daemon]\nsocket = '/a'\nsocket = '/b'\n", "not TOML", "line 3"),
]  # fmt: skip


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that the command gives up with."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ml-dashd: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    return err


@pytest.mark.parametrize(("text", "named", "allowed"), REFUSED)
def test_a_bad_setting_is_refused_in_one_line(
    text: str, named: str, allowed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "ml-dashd.toml"
    path.write_text(text)
    line = refused(capsys, "check-config", "--config", str(path))
    assert line.startswith(f"ml-dashd: {path}: {named}")
    assert allowed in line.removeprefix(f"ml-dashd: {path}: ")


@pytest.mark.parametrize("text", [GOOD, "", "[store]\n", *(f"[{field.name}]" for field in fields(Config)[:-1])])
def test_a_good_file_is_right(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "ml-dashd.toml"
    path.write_text(text)
    assert main(["check-config", "--config", str(path)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{path}: right; store ")
    assert err == ""


@pytest.mark.parametrize(("mode", "exposed"), [(0o600, False), (0o640, False), (0o644, True)])
def test_a_fleets_catalog_is_checked_and_its_password_is_its_readers(
    mode: int, exposed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "ml-dashd.toml"
    path.write_text('[catalog]\nurl = "mongodb://ml:hunter2@a,b/fleet?replicaSet=rs0"')
    path.chmod(mode)
    assert main(["check-config", "--config", str(path)]) == 0
    out, err = capsys.readouterr()
    assert ", catalog mongodb://a,b/fleet, socket " in out
    assert "hunter2" not in out + err
    assert (f"every user of this machine can read the password of catalog.url there: chmod o= {path}" in err) is exposed
    path.write_text('[catalog]\nurl = "mongodb://ml:hunter2@a,b/fleet?tsl=true"')
    line = refused(capsys, "check-config", "--config", str(path))
    assert "catalog.url mongodb://a,b/fleet: Unknown option 'tsl'" in line
    assert "hunter2" not in line


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda _: None, "No such file or directory"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.write_bytes(b"socket = '\xff'"), "not TOML"),
    ],
)
def test_a_file_that_can_not_be_read_is_refused(make, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "ml-dashd.toml"
    make(path)
    line = refused(capsys, "check-config", "--config", str(path))
    assert line.startswith(f"ml-dashd: {path}: {said}")


def test_the_environment_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    bad, good = tmp_path / "bad.toml", tmp_path / "good.toml"
    bad.write_text("[limits]\nthreads = 65")
    good.write_text('[store]\nurl = "s3://bucket"')
    monkeypatch.setenv("ML_DASH_CONFIG", str(bad))
    assert refused(capsys, "check-config").startswith(f"ml-dashd: {bad}: limits.threads")
    monkeypatch.setenv("ML_DASH_CONFIG", str(good))
    assert main(["check-config"]) == 0
    assert capsys.readouterr().out.startswith(f"{good}: right; store s3://bucket")


def test_an_option_goes_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    good = tmp_path / "good.toml"
    good.write_text('[store]\nurl = "s3://bucket"')
    monkeypatch.setenv("ML_DASH_CONFIG", str(tmp_path / "missing.toml"))
    assert main(["check-config", "--config", str(good)]) == 0
    assert capsys.readouterr().out.startswith(f"{good}: right; store s3://bucket")


def test_without_a_file_there_are_defaults(capsys: pytest.CaptureFixture[str]):
    assert main(["check-config"]) == 0
    assert capsys.readouterr().out.startswith("the defaults: right; store file:///")


def test_every_key_arrives():
    config = parse(tomllib.loads(GOOD))
    assert (config.socket, config.state_dir) == (Path("/run/x/socket"), Path("/var/lib/x"))
    assert (config.daemon.drain_timeout, config.daemon.idle_timeout) == (5.0, 1.5)
    assert type(config.daemon.drain_timeout) is float
    assert (config.daemon.max_connections, config.daemon.log_level, config.daemon.log_format) == (7, "debug", "json")
    assert (config.daemon.peer_timeout, config.daemon.inbox) == (2.0, "/var/spool/x")
    assert (config.bucket, config.key_prefix) == ("bucket", "some/prefix/")
    assert (config.store.endpoint_url, config.store.region) == ("https://[::1]:9000", "eu-north-1")
    assert (config.store.addressing, config.store.profile) == ("path", "uploads")
    assert (config.store.credentials_file, config.store.proxy) == ("/etc/ml-dash/credentials", "http://proxy:3128")
    assert (config.store.checksum, config.store.ca_bundle) == ("crc32c", str(CERTIFICATES))
    assert (config.store.sse, config.store.sse_kms_key_id) == ("aws:kms", KMS_KEY)
    assert config.store.storage_class == "STANDARD_IA"
    assert (config.store.mode, config.store.part_size) == ("0600", 8 * MIB)
    assert config.catalog_path == Path("/var/lib/x/catalog of x.sqlite")
    assert (config.spool.pools, config.spool.durability) == (("/data/spool", "/scratch/spool"), "disk")
    assert config.spool.supersede == ("last.pt", "**/latest.pt")
    assert (config.spool.quota, config.spool.warm_bytes) == (10**9, 2 * 10**9)
    assert (config.spool.copy_below, config.spool.copy_after) == (0, 1.5)
    assert (config.spool.lease_max_delay, config.spool.touch_leases) == (1.5, 16)
    assert (config.limits.memory, config.limits.threads, config.limits.connections) == (64 * MIB, 64, 256)
    assert config.limits.bandwidth == 65_536
    assert config.store.delete_grace == 60.0
    assert (config.store.reconcile_every, config.store.orphan_age) == (3600.0, 86400.0)
    assert config.retention == RetentionConfig(3, ("best",), "**/checkpoints/*", 3600.0)
    assert (config.access.uids, config.access.socket_mode) == ((0, 1000), "0660")
    assert (config.http.listen, config.http.socket_mode) == ("unix:/run/x/http", "0666")
    assert (config.access.admins, config.access.read) == ((1001,), {"vision": (1002, 1003), "bild größe": ()})
    assert config.access.write == {"vision": (1002,)}
    assert with_defaults(config) == config


def test_credentials_that_systemd_hands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """LoadCredential=s3:…; what the settings name goes before it, and another credential is nobody's business here."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert with_defaults(Config()).store.credentials_file == ""
    (tmp_path / "s3").write_text("[default]")
    assert with_defaults(Config()).store.credentials_file == str(tmp_path / "s3")
    named = parse({"store": {"credentials_file": "/etc/keys"}})
    assert with_defaults(named).store.credentials_file == "/etc/keys"


def test_a_test_of_every_key_names_every_key():
    """The one above: a new setting is missed there."""
    given = {f"{table}.{key}" for table, keys in tomllib.loads(GOOD).items() for key in keys}
    assert given == {
        f"{table.name}.{key.name}"
        for table in fields(Config)
        if table.name != "embedded"
        for key in fields(table.default_factory)  # type: ignore[arg-type]
    }


@pytest.mark.parametrize(
    ("url", "bucket", "key_prefix"),
    [("s3://b", "b", ""), ("s3://b/", "b", ""), ("s3://b/p", "b", "p/"), ("s3://b/p/q/", "b", "p/q/")],
)
def test_a_bucket_and_its_key_prefix(url: str, bucket: str, key_prefix: str):
    config = parse({"store": {"url": url}})
    assert (config.bucket, config.key_prefix) == (bucket, key_prefix)


def test_a_folder_has_no_bucket():
    config = parse({"store": {"url": "file:///data/a%20b"}})
    assert (config.bucket, config.key_prefix, config.store_root) == ("", "", Path("/data/a b"))


def test_an_error_has_a_code_for_programs():
    with pytest.raises(MLDashError) as raised:
        parse({"daemon": {"sock": "/x"}})
    assert raised.value.code is Code.CONFIG


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["check-config", "--help"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: ml-dashd ")
    assert "--embedded" not in out
    assert err == ""


@pytest.mark.parametrize("arguments", [[], ["serve"], ["run", "--port", "1"]])
def test_a_wrong_command_line_ends_with_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: ml-dashd ")


def test_a_unit_of_systemd_says_where_things_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """StateDirectory=, RuntimeDirectory= and ConfigurationDirectory=, each of them perhaps with several folders."""
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/one:/var/lib/two")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/one")
    monkeypatch.setenv("CONFIGURATION_DIRECTORY", str(tmp_path))
    config = load(None)
    assert (str(config.state_dir), str(config.socket)) == ("/var/lib/one", "/run/one/ml-dashd.sock")
    assert config.store.url == "file:///var/lib/one/files"
    (tmp_path / "ml-dashd.toml").write_text('[daemon]\nstate_dir = "/mine"\n[limits]\nthreads = 7\n')
    config = load(None)
    assert (str(config.state_dir), config.limits.threads) == ("/mine", 7)
    (tmp_path / "other.toml").write_text("[limits]\nthreads = 8\n")
    monkeypatch.setenv("ML_DASH_CONFIG", str(tmp_path / "other.toml"))
    assert load(None).limits.threads == 8
    monkeypatch.setenv("STATE_DIRECTORY", "no/path")
    assert "no/path" not in str(load(None).state_dir)


def test_what_systemd_says_is_taken_out_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    monkeypatch.setenv("LISTEN_FDS", "1")
    said = of_systemd()
    assert (said["NOTIFY_SOCKET"], said["LISTEN_FDS"], said["WATCHDOG_USEC"]) == ("/run/notify", "1", "")
    assert not set(said) & set(os.environ)
