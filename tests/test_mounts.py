"""Which mount a path lies on, from the text of mountinfo alone."""

import os

import pytest

from smartscan import mounts

TABLE = rb"""
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:20 / /proc rw - proc proc rw
30 21 0:41 / /mnt/user rw,noatime shared:9 master:2 - fuse.shfs shfs rw,user_id=0
31 21 9:1 / /mnt/cache rw - xfs /dev/md1 rw
32 30 0:50 / /mnt/user/My\040Films\134x rw - nfs4 server:/export/a\040b rw
33 21 0:60 / /mnt/hidden/inner rw - tmpfs under rw
34 21 0:61 / /mnt/hidden rw - ext4 /dev/over rw
35 34 0:62 / /mnt/hidden rw - ext4 /dev/overover rw
36 31 259:1048575 / /mnt/cache/deep/er rw - btrfs /dev/nvme0n1 rw
""".strip()


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (b"/", "/dev/sda1"),
        (b"/mnt", "/dev/sda1"),
        (b"/mnt/userx", "/dev/sda1"),
        (b"/mnt/user", "shfs"),
        (b"/mnt/user/../user//Videos/", "shfs"),
        (b"/mnt/user/My Films\\x/a", "server:/export/a b"),
        (b"/mnt/cache/deep/er/x", "/dev/nvme0n1"),
        (b"/mnt/cache/deep/error", "/dev/md1"),
        (b"/mnt/hidden/inner", "/dev/overover"),  # what was mounted there first can no longer be seen
    ],
)
def test_a_path_lies_on_the_mount_that_the_kernel_would_reach(path, source):
    found = mounts.lookup(path, TABLE)
    assert found is not None
    assert found.source == source


def test_all_of_a_mount_is_given():
    found = mounts.lookup(b"/mnt/cache/deep/er", TABLE)
    assert found == mounts.MountInfo(b"/mnt/cache/deep/er", "btrfs", "/dev/nvme0n1", os.makedev(259, 1048575))


def test_file_systems_that_may_invent_inode_numbers():
    def invents(fs_type: str, dev: int = 0x32) -> bool:
        return mounts.invents_inodes(os.makedev(0, dev), b"9 1 0:50 / /x rw - " + fs_type.encode() + b" x rw")

    assert all(map(invents, ("fuse", "fuseblk", "fuse.sshfs", "cifs", "smb3", "vfat", "exfat")))
    assert not any(map(invents, ("ext4", "xfs", "btrfs", "zfs", "nfs", "nfs4", "overlay")))
    assert not invents("fuse.sshfs", dev=51)
    assert not mounts.invents_inodes(50, b"")


def test_no_mount_above_the_path_is_none():
    assert mounts.lookup(b"/mnt/user", b"") is None
    assert mounts.lookup(b"/elsewhere", TABLE.splitlines()[2]) is None


def test_a_table_without_the_root_is_understood():
    found = mounts.lookup(b"/mnt/user/x", TABLE.splitlines()[2])
    assert found is not None and found.fs_type == "fuse.shfs"


def test_the_table_of_this_process_agrees_with_stat():
    table = mounts.read()
    for path in (b"/", b"/proc/self", b"/dev", b"/sys"):
        found = mounts.lookup(path, table)
        assert found is not None
        assert found.dev == os.stat(path).st_dev
