"""What the Python walker knows of a directory, a job and a name, and the tokens they are handed on as.

Pure. The tokens are those of _native.c.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

M32, M64 = (1 << 32) - 1, (1 << 64) - 1
PAIR = struct.Struct("<QQ")


class Node(NamedTuple):
    """A directory above, to recognise loops."""

    dev: int
    ino: int
    depth: int
    above: Node | None


class Job(NamedTuple):
    """A directory to list."""

    path: bytes
    flags: int
    above: Node | None


class Stat(NamedTuple):
    """What stat says, as a record has it."""

    size: int
    blocks: int
    mtime_ns: int
    ctime_ns: int
    ino: int
    nlink: int
    mode: int
    uid: int
    gid: int
    dev: int


class Name(NamedTuple):
    """A name as the directory itself gives it."""

    name: bytes
    ino: int
    type: int  # DT_*


def _clamp(ns: int) -> int:
    """As the C does where seconds times 10^9 do not fit 64 bits."""
    limit = (1 << 63) // 10**9
    if ns // 10**9 > limit - 1:
        return (1 << 63) - 1
    return -(1 << 63) if ns // 10**9 < 1 - limit else ns


def stat_of(st: os.stat_result) -> Stat:
    """Give what a record holds of it."""
    dev = os.major(st.st_dev) << 32 | os.minor(st.st_dev)
    return Stat(st.st_size & M64, st.st_blocks & M64, _clamp(st.st_mtime_ns), _clamp(st.st_ctime_ns),
                st.st_ino, st.st_nlink & M32, st.st_mode, st.st_uid & M32, st.st_gid & M32, dev)


def read_job(token: bytes) -> Job:
    """Read the token of a job; raises ValueError."""
    if len(token) < 8:
        raise ValueError("not a job")
    depth, flags = struct.unpack_from("<II", token)
    start = 8 + 16 * depth
    if len(token) < start:
        raise ValueError("not a job")
    above = None
    for dev, ino in PAIR.iter_unpack(token[8:start]):
        above = Node(dev, ino, above.depth + 1 if above else 1, above)
    return Job(token[start:], flags, above)


def job_token(job: Job) -> bytes:
    """Make the token of a job: depth, flags, (dev, ino) of each directory above, path."""
    chain = []
    node = job.above
    while node:
        chain.append(PAIR.pack(node.dev, node.ino))
        node = node.above
    return struct.pack("<II", len(chain), job.flags) + b"".join(reversed(chain)) + job.path


def pack_names(names: list[Name]) -> bytes:
    """Pack names that another thread is to stat."""
    return b"".join(struct.pack("<QB", n.ino, n.type) + n.name + b"\0" for n in names)


def unpack_names(blob: bytes) -> list[Name]:
    """Give back what `pack_names` packed."""
    names, at = [], 0
    while at + 10 <= len(blob):
        end = blob.find(b"\0", at + 9)
        end = len(blob) if end < 0 else end
        names.append(Name(blob[at + 9:end], *struct.unpack_from("<QB", blob, at)))
        at = end + 1
    return names
