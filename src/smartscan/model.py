"""The words of the program as types: what is scanned, cut, run and found.

Pure. Paths are bytes relative to the mount (b"" is the mount itself); times are Unix seconds unless
the name says `_ns`; sizes are bytes.
"""

from __future__ import annotations

import base64
import os
from enum import IntEnum, StrEnum
from typing import Any, NamedTuple, NoReturn

from smartscan.errors import CatalogueError

SHARE_VARIABLE = "SMART_SCAN_SHARE"  # in a worker's environment: where the share is, if not at its own path


class Scope(StrEnum):
    """How much of a root belongs to the chunk."""

    SUBTREE = "subtree"
    FILES = "files"  # one directory: its own files; its subdirectories come back as leftover


class _State(StrEnum):
    """A state as the catalogue holds it; CatalogueError where it holds another word."""

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        table = cls.__name__.removesuffix("State").lower()
        raise CatalogueError(f"the catalogue is damaged: {value!r} is no state of a {table}")


class ScanState(_State):
    RUNNING = "running"
    COMPLETE = "complete"
    INCOMPLETE = "incomplete"
    CANCELLED = "cancelled"


class ChunkState(_State):
    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    QUARANTINED = "quarantined"


class Outcome(StrEnum):
    """How an attempt ended."""

    SEALED = "sealed"
    FAILED = "failed"
    STALLED = "stalled"
    OVERDUE = "overdue"
    OOM = "oom"
    LOST = "lost"
    CANCELLED = "cancelled"


class DirState(_State):
    """The one state every directory found ends in."""

    FOUND = "found"  # not visited yet; none is left when a scan is complete
    LISTED = "listed"
    EXCLUDED = "excluded"
    DENIED = "denied"
    TIMED_OUT = "timed out"
    IO_ERROR = "I/O error"
    OTHER_MOUNT = "other mount"
    VANISHED = "vanished"


UNREAD = (DirState.DENIED, DirState.TIMED_OUT, DirState.IO_ERROR)  # what is in them is missing


class Op(IntEnum):
    """The system call a walker thread is in, or that failed; numbers are part of the shard format."""

    IDLE = 0
    OPEN = 1
    READDIR = 2
    STAT = 3
    READLINK = 4
    STATFS = 5

    @property
    def label(self) -> str:
        """Name as users know it from strace(1)."""
        return ("idle", "open", "readdir", "stat", "readlink", "statfs")[self]


def b64(path: bytes) -> str:
    """Encode a path for JSON where text would be lossy."""
    return base64.b64encode(path).decode("ascii")


def unb64(text: str) -> bytes:
    """Decode what `b64` encoded; raises ValueError on anything else."""
    return base64.b64decode(text, validate=True)


def path_json(path: bytes) -> dict[str, str]:
    """Give the JSON members of a path: `path` as text, and `path_b64` where that text is lossy."""
    try:
        return {"path": path.decode("utf-8")}
    except UnicodeDecodeError:
        return {"path": path.decode("utf-8", "replace"), "path_b64": b64(path)}


def show(path: bytes) -> str:
    """Render a path for a terminal: one line, no control characters, undecodable bytes as \\xNN."""
    return printable(path.decode("utf-8", "backslashreplace"))


def printable(text: str) -> str:
    """Give a text as one line that a terminal does not obey."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def inside(path: bytes) -> bytes:
    """Give a path relative to the mount; ValueError where it is none, or might lead out of the mount."""
    if path and (b"\0" in path or not {b"", b".", b".."}.isdisjoint(path.split(b"/"))):
        raise ValueError(f"not a path below the mount: {show(path)}")
    return path


def join(parent: bytes, name: bytes) -> bytes:
    """Join a path relative to the mount with a name."""
    return parent + b"/" + name if parent else name


class Root(NamedTuple):
    """One place where a chunk begins."""

    path: bytes
    scope: Scope = Scope.SUBTREE

    def to_json(self) -> dict[str, str]:
        return {
            "path_b64": b64(self.path),
            "path": os.fsdecode(self.path).encode("utf-8", "replace").decode(),
            "scope": self.scope.value,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Root:
        """Raises ValueError, KeyError or TypeError on what is no place below the mount."""
        return cls(inside(unb64(data["path_b64"])), Scope(data["scope"]))


class Chunk(NamedTuple):
    """Work for one container."""

    id: int
    roots: tuple[Root, ...]
    est_bytes: int | None = None
    est_entries: int | None = None
    state: ChunkState = ChunkState.PENDING


class Usage(NamedTuple):
    """What is known of one directory's size; `own_*` is what lies directly in it.

    `disk_bytes` and `entries` are the whole subtree, hard links counted once, as du(1).
    """

    path: bytes
    bytes: int
    disk_bytes: int
    entries: int
    own_disk_bytes: int
    own_entries: int
    exact: bool = True


class WalkError(NamedTuple):
    """A path that could not be read: data, not an exception."""

    path: bytes
    op: Op
    errno: int
    waited_s: float = 0.0
    wchan: str = ""


class Limits(NamedTuple):
    """What one attempt may do before it must give the rest back as leftover."""

    chunk_bytes: int = 100 * 10**9
    chunk_entries: int = 1_000_000
    chunk_s: float = 3600.0
    dir_entries: int = 50_000_000  # one directory; beyond it the listing is taken for endless
    depth: int = 20_000
    stall_s: float = 60.0
    threads: int = 8

    @property
    def most_entries(self) -> int:
        """Where a chunk may end at the latest: a tenth more entries would leave little for another one."""
        return self.chunk_entries * 11 // 10

    def fitting(self, entries: int | None) -> Limits:
        """Give the limits of a chunk that is expected to have so many entries: all of them, where that is
        little more than a chunk may have.
        """
        if entries is None or not self.chunk_entries < entries <= self.most_entries:
            return self
        return self._replace(chunk_entries=entries)


class Rules(NamedTuple):
    """What is recorded but not entered."""

    patterns: tuple[bytes, ...] = ()
    system_dirs: bool = True
    one_file_system: bool = False

    @classmethod
    def noted(cls, options: dict[str, Any]) -> Rules:
        """Give the rules that the options of a scan note (`Request.options`); CatalogueError for no rules."""
        try:
            patterns = tuple(unb64(p) for p in options.get("patterns_b64", ()))
        except (TypeError, ValueError, AttributeError) as error:
            raise CatalogueError("the catalogue is damaged: the rules of a scan cannot be read") from error
        system_dirs, one_file_system = options.get("system_dirs", True), options.get("one_file_system", False)
        return cls(patterns, bool(system_dirs), bool(one_file_system))


class Resources(NamedTuple):
    """What one worker may use; already clamped to the host."""

    cpus: float
    memory_bytes: int


class Reading(NamedTuple):
    """What one walker thread is in, and for how long."""

    path: bytes
    op: Op
    for_s: float


class Progress(NamedTuple):
    """What a worker says while it runs; `beat` changes whenever anything moved."""

    beat: int
    entries: int = 0
    dirs: int = 0
    bytes: int = 0
    disk_bytes: int = 0
    readings: tuple[Reading, ...] = ()
    cpu_s: float = 0.0  # that its walker has used so far
