"""Where the daemon of a root keeps its things, and what becomes of that when the root is moved or copied."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ml_dash import NetworkError, reach
from ml_dash.errors import Code, MLDashError
from ml_dash.home import HOME, IDENTITY, Home, States, find_home, make_home

Network = Callable[[Path], str | None]


@pytest.fixture
def states(tmp_path: Path) -> States:
    return States([tmp_path / "state"])


@pytest.fixture
def network(tmp_path: Path) -> Network:
    """What lies below `net` or `home on the net` is on NFS."""
    places = (tmp_path / "net", tmp_path / "home on the net")
    return lambda path: "NFS" if any(path.is_relative_to(place) for place in places) else None


def test_on_a_disk_it_is_in_the_root(tmp_path: Path, states: States, network: Network) -> None:
    root = tmp_path / "disk" / "root"
    assert find_home(root, states, network) == Home(root, root / HOME)
    assert not root.exists()
    assert make_home(root, states, network) == Home(root, root / HOME)
    assert (root / HOME).stat().st_mode & 0o777 == 0o700
    assert not (tmp_path / "state").exists()


def test_on_a_network_it_is_on_a_disk(tmp_path: Path, states: States, network: Network) -> None:
    root = tmp_path / "net" / "root"
    assert find_home(root, states, network) is None
    home = make_home(root, states, network)
    assert home.folder.parent == tmp_path / "state"
    assert home.outside
    assert make_home(root, states, network) == find_home(root, states, network) == home
    assert [path.name for path in (root / HOME).iterdir()] == [IDENTITY]
    assert home.folder.stat().st_mode & 0o777 == 0o700


def test_the_first_place_that_is_on_a_disk(tmp_path: Path, network: Network) -> None:
    """The home of an HPC user is on the network, too."""
    root, far, near = tmp_path / "net" / "root", tmp_path / "home on the net" / "state", tmp_path / "near"
    assert make_home(root, States([far, near]), network).folder.parent == near
    assert not far.exists()
    with pytest.raises(NetworkError) as caught:
        make_home(root, States([far]), network)
    assert caught.value.code is Code.DAEMON_UNAVAILABLE
    assert str(far) in caught.value.message
    assert "ML_DASH_STATE" in caught.value.hint


def test_two_roots_have_two_homes(tmp_path: Path, states: States, network: Network) -> None:
    homes = {make_home(tmp_path / "net" / name, states, network).folder for name in "abc"}
    assert len(homes) == 3


def test_many_that_come_first_at_once(tmp_path: Path, states: States, network: Network) -> None:
    root = tmp_path / "net" / "root"
    with ThreadPoolExecutor(16) as pool:
        homes = set(pool.map(lambda _: make_home(root, states, network), range(64)))
    assert len(homes) == 1


def test_a_root_that_was_moved_keeps_its_home(tmp_path: Path, states: States, network: Network) -> None:
    before, after = tmp_path / "net" / "before", tmp_path / "net" / "after"
    home = make_home(before, states, network)
    before.rename(after)
    assert find_home(after, states, network) is None  # the state's folder still names the old path
    assert make_home(after, states, network).folder == home.folder
    assert find_home(after, states, network) == Home(after, home.folder)
    assert make_home(before, states, network).folder != home.folder  # a new one at the old path


def test_a_root_that_was_copied_gets_its_own(tmp_path: Path, states: States, network: Network) -> None:
    original, copy = tmp_path / "net" / "original", tmp_path / "net" / "copy"
    home = make_home(original, states, network)
    (original / HOME / "holder.json").write_text("{}")
    shutil.copytree(original, copy)
    assert make_home(copy, states, network).folder != home.folder
    assert not (copy / HOME / "holder.json").exists()
    assert find_home(original, states, network) == home
    assert (original / HOME / "holder.json").exists()


def test_one_root_at_two_paths(tmp_path: Path, states: States, network: Network) -> None:
    """As where it is mounted twice: one home, whichever was used last."""
    root, other = tmp_path / "net" / "root", tmp_path / "net" / "other"
    home = make_home(root, states, network)
    other.symlink_to(root)
    assert make_home(other, states, network).folder == home.folder
    assert make_home(root, states, network).folder == home.folder


@pytest.mark.parametrize("text", ["", "../../../etc", "x" * 32, "\0" * 32])
def test_an_identity_that_somebody_else_wrote(tmp_path: Path, states: States, network: Network, text: str) -> None:
    root = tmp_path / "net" / "root"
    (root / HOME).mkdir(parents=True)
    (root / HOME / IDENTITY).write_text(text)
    with pytest.raises(NetworkError) as caught:
        make_home(root, states, network)
    assert str(root / HOME / IDENTITY) in caught.value.message
    (root / HOME / IDENTITY).unlink()
    assert make_home(root, states, network).folder.parent == tmp_path / "state"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")
def test_a_state_folder_of_another_user(tmp_path: Path, states: States, network: Network) -> None:
    """As somebody may have put it into /var/tmp."""
    (tmp_path / "state").mkdir()
    os.chown(tmp_path / "state", 65534, 65534)
    with pytest.raises(MLDashError) as caught:
        make_home(tmp_path / "net" / "root", states, network)
    assert caught.value.code is Code.ACCESS_DENIED
    assert "belongs to uid 65534" in caught.value.message


def test_a_user_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under a number that nobody has: there is no service of its own, and a root works."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    monkeypatch.chdir(tmp_path)
    assert reach.find_endpoint(None, None).root == tmp_path / ".dash"
