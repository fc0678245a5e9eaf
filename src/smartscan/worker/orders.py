"""What a worker is told: the chunk file, read and checked.

Touches: the attempt's folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from smartscan.errors import ShardError
from smartscan.model import Limits, Root, b64, unb64
from smartscan.shard import write_json

KNOWN = "known.bin"  # what `Ingest.known` gives for the roots of a chunk
VERSION = 2  # of what a worker is given and hands in; those of another one are refused


class Orders(NamedTuple):
    """One attempt, as the controller writes it and the worker reads it."""

    share: bytes
    scan_id: int
    chunk_id: int
    attempt: int
    roots: tuple[Root, ...]
    limits: Limits
    patterns: tuple[bytes, ...]
    one_file_system: bool
    stuck: tuple[bytes, ...] = ()
    held: tuple[bytes, ...] = ()  # directories that another chunk enters, last of all
    known: bool = False  # KNOWN comes into the attempt's folder, now or later
    fs_type: str | None = (
        None  # of the share, where the catalogue knows it; another one means that it is not mounted
    )
    share_id: tuple[int, int] | None = (
        None  # (st_dev, st_ino) the share's root must have: what this scan began on
    )
    sizes_only: bool = False  # a survey: entries are left out where their sums will do

    def write(self, folder: Path) -> None:
        write_json(
            folder / "chunk.json",
            {
                "version": VERSION,
                "share_b64": b64(self.share),
                "scan": self.scan_id,
                "chunk": self.chunk_id,
                "attempt": self.attempt,
                "roots": [r.to_json() for r in self.roots],
                "limits": self.limits._asdict(),
                "patterns_b64": [b64(p) for p in self.patterns],
                "one_file_system": self.one_file_system,
                "stuck_b64": [b64(p) for p in self.stuck],
                "held_b64": [b64(p) for p in self.held],
                "known": self.known,
                "sizes_only": self.sizes_only,
                "fs_type": self.fs_type,
                "share_id": self.share_id,
            },
        )

    @classmethod
    def read(cls, folder: Path) -> Orders:
        """Raises ShardError with one sentence where the file is not what a controller writes."""
        try:
            data: dict[str, Any] = json.loads((folder / "chunk.json").read_bytes())
            if data["version"] != VERSION:
                raise ShardError(
                    f"{folder}/chunk.json is of version {data['version']}, this worker reads {VERSION}"
                )
            return cls(
                share=unb64(data["share_b64"]),
                scan_id=int(data["scan"]),
                chunk_id=int(data["chunk"]),
                attempt=int(data["attempt"]),
                roots=tuple(Root.from_json(r) for r in data["roots"]),
                limits=Limits(**data["limits"]),
                patterns=tuple(unb64(p) for p in data["patterns_b64"]),
                one_file_system=bool(data["one_file_system"]),
                stuck=tuple(unb64(p) for p in data["stuck_b64"]),
                held=tuple(unb64(p) for p in data["held_b64"]),
                known=bool(data["known"]),
                sizes_only=bool(data["sizes_only"]),
                fs_type=data["fs_type"],
                share_id=tuple(data["share_id"]) if data["share_id"] else None,
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise ShardError(f"{folder}/chunk.json cannot be used: {e!r}") from e
