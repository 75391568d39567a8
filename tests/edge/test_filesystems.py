"""Which file systems are a network's: the table by its values, and what FUSE is mounted as."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from ml_dash import filesystems
from ml_dash.filesystems import FUSE, LOCAL_FUSE, NETWORK, mounts, network_name, statfs_type

HEADER = Path("/usr/include/linux/magic.h")
NAMES = {
    "NFS": "NFS", "SMB": "SMB", "CIFS": "CIFS", "SMB2": "SMB2", "V9FS": "9p", "CEPH": "CephFS", "AFS": "AFS",
    "AFS_FS": "AFS", "CODA": "Coda", "NCP": "NCP", "OCFS2": "OCFS2",
}  # fmt: skip


@pytest.mark.skipif(not HEADER.exists(), reason="the kernel's headers are not installed")
def test_the_values_are_the_kernels() -> None:
    defined = {
        found[1].removesuffix("_SUPER"): int(found[2], 16)
        for found in re.finditer(r"#define\s+(\w+)_MAGIC\s+(0x[0-9a-fA-F]+)", HEADER.read_text())
    }
    assert {name: NETWORK.get(defined[name]) for name in NAMES} == NAMES
    assert defined["FUSE"] == FUSE
    local = ("EXT4", "XFS", "BTRFS", "TMPFS", "OVERLAYFS", "F2FS", "RAMFS")
    values = {name: value for name, value in defined.items() if name.removesuffix("_SUPER") in local}
    assert not set(values.values()) & {*NETWORK, FUSE}


def test_what_the_kernel_says_of_a_folder(tmp_path: Path) -> None:
    """Compared with the table of mounts, for every kind that is mounted here and can be looked into."""
    magic = {"ext4": 0xEF53, "tmpfs": 0x01021994, "proc": 0x9FA0, "sysfs": 0x62656572, "overlay": 0x794C7630}
    assert statfs_type(Path("/proc")) == magic["proc"]
    seen = dict(mounts())
    kind = seen.get(f"{os.major(tmp_path.stat().st_dev)}:{os.minor(tmp_path.stat().st_dev)}")
    if kind in magic:
        assert statfs_type(tmp_path) == magic[kind]
    with pytest.raises(FileNotFoundError):
        statfs_type(tmp_path / "missing")


@pytest.mark.parametrize(
    ("kind", "name"), [(0x6969, "NFS"), (0xFF534D42, "CIFS"), (0x0BD00BD0, "Lustre"), (0xEF53, None)]
)
def test_a_folder_that_is_yet_to_be_made(tmp_path: Path, kind: int, name: str | None) -> None:
    """Its nearest parent that exists decides."""
    asked: list[Path] = []

    def probe(path: Path) -> int:
        asked.append(path)
        return kind

    assert network_name(tmp_path / "a" / "b" / "c", probe) == name
    assert asked == [tmp_path]


@pytest.mark.parametrize(
    ("mounted", "name"),
    [("fuse.sshfs", "fuse.sshfs"), ("fuse.juicefs", "fuse.juicefs"), ("fuse", "fuse"), (None, "FUSE"),
     *((each, None) for each in sorted(LOCAL_FUSE))],
)  # fmt: skip
def test_fuse_is_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mounted: str | None, name: str | None) -> None:
    """What is not known to be on a disk of this machine is taken for a network's."""
    device = tmp_path.stat().st_dev
    table = [] if mounted is None else [(f"{os.major(device)}:{os.minor(device)}", mounted)]
    monkeypatch.setattr(filesystems, "mounts", lambda: iter([("0:1", "fuse.other"), *table]))
    assert network_name(tmp_path, lambda _: FUSE) == name


def test_the_table_of_mounts(tmp_path: Path) -> None:
    """Fields behind the sixth may be any number; names have spaces as \\040."""
    table = tmp_path / "mountinfo"
    table.write_text(
        "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"
        "37 35 0:52 / /home/a\\040b rw shared:1 master:2 propagate_from:3 - fuse.sshfs a@b:/ rw\n"
        "38 35 0:53 / /mnt rw - nfs4 server:/x rw\n"
        "not a line\n"
    )
    assert list(mounts(table)) == [("98:0", "ext3"), ("0:52", "fuse.sshfs"), ("0:53", "nfs4")]
