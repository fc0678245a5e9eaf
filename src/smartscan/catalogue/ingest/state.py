"""What the ingest remembers and counts while it takes shards in.

Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from smartscan.model import DirState

STATES = (
    DirState.FOUND,
    DirState.LISTED,
    DirState.EXCLUDED,
    DirState.DENIED,
    DirState.TIMED_OUT,
    DirState.IO_ERROR,
    DirState.OTHER_MOUNT,
    DirState.VANISHED,
)
LEFT_OUT = (DirState.EXCLUDED, DirState.OTHER_MOUNT)  # on purpose: what was inside goes from the catalogue


@dataclass(slots=True)
class Counts:
    """What ingesting one shard brought."""

    entries: int = 0
    dirs: int = 0  # decided for the first time in this scan
    bytes: int = 0
    disk_bytes: int = 0
    new: int = 0
    changed: int = 0
    gone: int = 0


@dataclass(slots=True, eq=False)
class Dir:
    """A directory as the ingest knows it. A directory's id is larger than that of the one above it."""

    id: int
    path: bytes
    above: Dir | None
    state: str
    scan_id: int | None = None
    # As they were before this scan, or as it found them; nobody asks for those of one that was new.
    digest: int | None = None
    dev: int | None = None
    own_blocks: int = 0
    listed: bool = False  # its entries were catalogued before
    # Whether the cache has every directory right below it that has a row. None: not asked; False: too many.
    below_known: bool | None = None


@dataclass(slots=True)
class Large:
    """What the blocks of a large directory summed up to so far."""

    entries: int = 0
    dirs: int = 0
