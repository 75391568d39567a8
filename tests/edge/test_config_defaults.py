"""Where a daemon of each kind keeps its things, unless its settings say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ml_dashd.config import MIB, WORKING, embedded, load, parse, with_defaults


def test_the_system_daemon_lives_in_the_system(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/0")
    config = load(None)
    assert config.socket == Path("/run/ml-dash/ml-dashd.sock")
    assert config.state_dir == Path("/var/lib/ml-dash")
    assert config.store_root == Path("/var/lib/ml-dash/files")
    assert config.catalog_path == Path("/var/lib/ml-dash/catalog.sqlite")
    assert config.embedded is None


def test_a_users_daemon_lives_with_the_user(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/ann b")
    config = load(None)
    assert config.state_dir == Path("/home/ann b/.local/state/ml-dash")
    assert config.socket == Path("/home/ann b/.local/state/ml-dash/ml-dashd.sock")
    assert config.store_root == Path("/home/ann b/.local/state/ml-dash/files")
    assert config.catalog_path == Path("/home/ann b/.local/state/ml-dash/catalog.sqlite")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    config = load(None)
    assert (config.socket, config.state_dir) == (Path("/run/user/1000/ml-dash/ml-dashd.sock"), Path("/state/ml-dash"))


def test_a_state_dir_alone_takes_store_and_catalog_with_it():
    config = with_defaults(parse({"daemon": {"state_dir": "/data/state"}}))
    assert config.store_root == Path("/data/state/files")
    assert config.catalog_path == Path("/data/state/catalog.sqlite")


def test_http_is_beside_the_socket_of_a_service_or_off():
    beside = with_defaults(parse({"daemon": {"socket": "/run/x/socket"}}))
    assert (beside.http.listen, beside.http.socket_mode) == ("unix:/run/x/http.sock", "0600")
    assert with_defaults(parse({"http": {"listen": ""}})).http.listen == ""
    assert embedded(Path("/data/.dash")).http.listen == ""


def test_the_defaults_of_the_design():
    config = load(None)
    assert (config.daemon.drain_timeout, config.daemon.max_connections) == (10.0, 1024)
    assert (config.store.checksum, config.store.mode, config.store.part_size) == ("auto", "0640", 16 * MIB)
    assert (config.spool.durability, config.spool.pools) == ("memory", ())
    assert (config.access.uids, config.access.socket_mode) == ((), "0600")
    assert (config.access.admins, config.access.read, config.daemon.peer_timeout) == ((), {}, 30.0)
    assert config.access.write == {}


def test_an_embedded_daemon_keeps_everything_in_its_root(tmp_path: Path):
    """Named as people know it, and reached through the folder that it works in, wherever that is moved."""
    root = tmp_path / "größe #1?"
    config = embedded(root)
    assert config.embedded == root
    assert (config.daemon.socket, config.store.url) == (str(root / ".ml-dashd" / "socket"), root.as_uri())
    assert config.store_root == WORKING
    assert config.socket == WORKING / ".ml-dashd" / "socket"
    assert config.state_dir == WORKING / ".ml-dashd"
    assert config.catalog_path == WORKING / ".ml-dashd" / "catalog.sqlite"
    assert not config.outside


def test_an_embedded_daemon_whose_state_lies_elsewhere(tmp_path: Path):
    root, state = tmp_path / "root", tmp_path / "state"
    config = embedded(root, state)
    assert config.store_root == WORKING
    assert (config.socket, config.state_dir, config.catalog_path) == (state / "socket", state, state / "catalog.sqlite")
    assert config.outside
    assert config.daemon.idle_timeout < embedded(root).daemon.idle_timeout  # other hosts may be waiting
