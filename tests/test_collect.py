"""What an attempt brought is said in words."""

import pytest

from smartscan.model import Op, WalkError
from smartscan.run import collect


@pytest.mark.parametrize(
    ("where", "wchan", "says"),
    [
        ((b"/mnt/disk5", "xfs", "/dev/md5p1"), "folio_wait_bit", "the disk behind /mnt/disk5 (/dev/md5p1)"),
        ((b"/mnt/user", "fuse.shfs", "shfs"), "", "a disk or server behind /mnt/user (fuse.shfs)"),
        ((b"/mnt/nas", "nfs4", "nas:/films"), "", "the NFS server nas:/films behind /mnt/nas"),
        ((b"/mnt/pc", "cifs", "//pc/c"), "", "the SMB server //pc/c behind /mnt/pc"),
        ((b"", "ext4", "/dev/sdb1"), "", "the disk behind /dev/sdb1"),
        ((b"", "", ""), "rpc_wait_bit_killable", "the NFS server"),
        ((b"/mnt/\xff\n", "ext4", ""), "", "the disk behind /mnt/\\xff\\n"),
    ],
)
def test_what_did_not_answer_is_named(where, wchan, says):
    error = WalkError(b"d", Op.READDIR, 110, 90.2, wchan)
    assert collect.cause(error, *where) == f"{says} did not answer for 90 s"
