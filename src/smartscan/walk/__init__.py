"""The only door to the share: list directories, stat what lies in them.

Touches: the share, read-only, never through a symbolic link, never a file's content.

`open_walker` gives the C walker or its pure Python twin (walk/python.py); both write the same records.
A job is an opaque token: a directory to list together with the identities of its ancestors.
"""

from __future__ import annotations

import importlib
import os
import struct
from typing import Any

from smartscan.codec import NATIVE
from smartscan.model import Root, Scope

FILES, CHAIN = 1, 2  # flags of a job
# How much a walker leaves a path alone: it never touches it again; it gives its stat and does not enter it;
# it lists its names and touches none of them.
AVOID, HOLD, HUSH = 1, 2, 4
SLOT_BYTES = 16384
_LOST_AT = 52
_SLOT = struct.Struct("<QQQQQIIII")  # beat, entries, dirs, bytes, blocks, op, path_len, name_len, lost


def open_walker(
    root_fd: int,
    shared: Any,
    *,
    patterns: tuple[bytes, ...],
    one_file_system: bool,
    depth: int,
    sizes_only: bool,
) -> Any:
    """Make a walker on an open share. `shared` is writable memory of SLOT_BYTES for each thread.

    With `sizes_only` entries are left out of records where their sums will do.
    """
    door = importlib.import_module("smartscan._native" if NATIVE else "smartscan.walk.python")
    return door.Walker(root_fd, shared, patterns, one_file_system, depth, sizes_only)


def open_share(path: bytes) -> int:
    """Open the mount's root. May hang for as long as the storage does; raises OSError."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def identity(root_fd: int) -> tuple[int, int]:
    """Which directory this is: (st_dev, st_ino). May hang; raises OSError."""
    st = os.fstat(root_fd)
    return st.st_dev, st.st_ino


def is_empty(root_fd: int) -> bool:
    """Whether nothing lies in the share: then it is not mounted. May hang.

    One that cannot be listed is not called empty: the walk will tell of the error.
    """
    try:
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root_fd)
    except OSError:
        return False
    try:
        with os.scandir(fd) as entries:
            return next(entries, None) is None
    except OSError:
        return False
    finally:
        os.close(fd)


def used_bytes(root_fd: int) -> tuple[int, int]:
    """Ask the file system for (total, used) bytes, statvfs(3). May hang; raises OSError."""
    v = os.fstatvfs(root_fd)
    return v.f_blocks * v.f_frsize, (v.f_blocks - v.f_bfree) * v.f_frsize


def ask(root_fd: int) -> None:
    """Have the share itself answer, not what the kernel remembers of it. May hang; raises OSError."""
    os.fstatvfs(root_fd)
    os.fstat(root_fd)
    os.close(os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root_fd))


def job(root: Root) -> bytes:
    """Make the job of a chunk's root; the walker finds its ancestors itself."""
    return struct.pack("<II", 0, FILES if root.scope is Scope.FILES else 0) + root.path


def job_path(token: bytes) -> bytes:
    """The directory of a job."""
    return token[8 + 16 * int.from_bytes(token[:4], "little") :]


def job_root(token: bytes) -> Root:
    """Turn a job back into a root, to be given back as leftover."""
    flags = int.from_bytes(token[4:8], "little")
    return Root(job_path(token), Scope.FILES if flags & FILES else Scope.SUBTREE)


def list_only(token: bytes) -> bytes:
    """The same job, but its subdirectories come back as leftover."""
    flags = int.from_bytes(token[4:8], "little") | FILES
    return token[:4] + struct.pack("<I", flags) + token[8:]


class Slot:
    """What one walker thread says of itself in shared memory; written without a lock, read as it is."""

    __slots__ = ("beat", "blocks", "bytes", "dirs", "entries", "name", "op", "path")

    def __init__(self, shared: Any, number: int) -> None:
        at = number * SLOT_BYTES
        while True:
            (self.beat, self.entries, self.dirs, self.bytes, self.blocks, self.op, path_len, name_len, _) = (
                _SLOT.unpack_from(shared, at)
            )
            start = at + _SLOT.size + 0
            text = bytes(shared[start : start + min(path_len + name_len, SLOT_BYTES - _SLOT.size)])
            if _SLOT.unpack_from(shared, at)[0] == self.beat or path_len == 0:
                break
        self.path, self.name = text[:path_len], text[path_len:]

    @staticmethod
    def give_up(shared: Any, number: int, beat: int) -> bool:
        """Let a thread that has not moved since `beat` touch nothing more; False where it moves again."""
        struct.pack_into("<I", shared, number * SLOT_BYTES + _LOST_AT, 1)
        if _SLOT.unpack_from(shared, number * SLOT_BYTES)[0] == beat:
            return True
        struct.pack_into("<I", shared, number * SLOT_BYTES + _LOST_AT, 0)
        return False

    @property
    def full(self) -> bytes:
        """The path the thread is at: the directory, or the name in it."""
        if not self.name:
            return self.path
        return self.path + b"/" + self.name if self.path else self.name
