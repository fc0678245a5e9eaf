"""What /proc/self/mountinfo says about a path, which is known without touching the path.

Touches: /proc/self/mountinfo, in `read` alone. Nothing here ever calls stat: the share may be dead, and a
stat on a dead mount hangs. Paths are therefore taken as written: symbolic links in them are not followed.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

MOUNTINFO = Path("/proc/self/mountinfo")
# May give a file another inode number whenever the kernel has forgotten it; FUSE as its daemon likes.
INVENTING = ("fuse", "cifs", "smb3", "vfat", "msdos", "exfat")


class MountInfo(NamedTuple):
    """The mount that a path lies on."""

    mount_point: bytes
    fs_type: str  # ext4, nfs4, fuse.shfs, ...
    source: str  # the device or server behind it
    dev: int  # as st_dev; os.minor(dev) is the connection's number in fusectl


def read() -> bytes:
    """Read the mount table of this process."""
    return MOUNTINFO.read_bytes()


def lookup(path: bytes, mountinfo: bytes) -> MountInfo | None:
    """Find the mount that an absolute path lies on; None where the table has no mount above it.

    Follows the path from the root as the kernel does, from a mount to what is mounted on it, so that
    mounts hidden under a later one are not taken for visible.
    """
    path = os.path.normpath(path)
    table = [_parse(line) for line in mountinfo.splitlines() if line]
    ids = {mount_id for mount_id, _, _ in table}
    # The parent of the root's mount is not in the table, or is itself.
    above = [info for mount_id, parent_id, info in table if parent_id not in ids or parent_id == mount_id]
    found: MountInfo | None = None
    while crossed := [info for info in above if _is_below(path, info.mount_point)]:
        found = min(crossed, key=lambda info: len(info.mount_point))  # the first one met on the way down
        here = {mount_id for mount_id, _, info in table if info is found}
        above = [info for mount_id, parent_id, info in table if parent_id in here and mount_id not in here]
    return found


def invents_inodes(dev: int, mountinfo: bytes) -> bool:
    """Tell whether the file system of this st_dev may invent its inode numbers, anew from time to time."""
    table = (_parse(line)[2] for line in mountinfo.splitlines() if line)
    return any(info.dev == dev and info.fs_type.startswith(INVENTING) for info in table)


def _is_below(path: bytes, mount_point: bytes) -> bool:
    return path == mount_point or path.startswith(mount_point.rstrip(b"/") + b"/")


def _parse(line: bytes) -> tuple[int, int, MountInfo]:
    """Split a line, by proc(5): id, parent, device, root, mount point, options, [tags], -, type, source."""
    fields = line.split(b" ")
    tail = fields[fields.index(b"-", 6) + 1 :]
    major, minor = fields[2].split(b":")
    info = MountInfo(
        mount_point=_unescape(fields[4]),
        fs_type=os.fsdecode(tail[0]),
        source=os.fsdecode(_unescape(tail[1])),
        dev=os.makedev(int(major), int(minor)),
    )
    return int(fields[0]), int(fields[1]), info


def _unescape(field: bytes) -> bytes:
    """Undo the kernel's octal escapes of space, tab, newline and backslash."""
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)
