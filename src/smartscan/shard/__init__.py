"""Write, seal, open and salvage shards: the files in which a worker hands over what it saw.

Touches: the attempt's folder (output disk), never the share.

A shard is a sequence of records (one directory each, or one block of a large one) and an END record
that says how long the shard must be. A part is a shard that has no END yet. The byte layout is
described in docs/shard.md and lives in two twins that give the same bytes: `_native.c` and
`codec/python.py`.
"""

from __future__ import annotations

import errno
import functools
import json
import mmap
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from smartscan.codec import codec
from smartscan.errors import ShardError
from smartscan.model import Root, Scope, join

KIND_DIR, KIND_ERROR, KIND_END = 1, 2, 3
LAST, UNCHANGED, BIG = 1, 2, 4
FOUND, LISTED, EXCLUDED, DENIED, TIMED_OUT, IO_ERROR, OTHER_MOUNT, VANISHED = range(8)

# Read at a time: bounds memory. Only a shard of a large directory is larger than 8 MB. Its blocks go in as
# one sorted run per window, and each run touches all the pages that those before it have filled.
WINDOW_BYTES = 128 << 20
KEPT_BYTES = 16 << 20  # what nearly every shard fits in; of it, only what was used takes memory
RECORD_MAX_BYTES = 1 << 30  # nothing legitimate comes near: a larger length is garbage
JSON_MAX_BYTES = 1 << 28  # a million roots with long paths; more would fill the memory of who reads it

_OURS = re.compile(r"\d{6,}\.(?:shard|part)|leftover-\d{6,}\.json", re.ASCII)


Text = bytes  # by another name, because a record has a field of that name


class Record(NamedTuple):
    """What the header of one record says; offsets are within its window.

    The digest, `dev` and `own_blocks` are signed, as the catalogue has them. `known_id` is not 0 where the
    worker was told of the directory with its digest (`Ingest.known`), and it is unchanged.
    """

    offset: int
    kind: int
    path: bytes
    flags: int
    state: int
    err: int
    op: int
    n: int
    block: int
    dir_digest: int
    dev: int
    own_blocks: int
    files: int
    bytes: int
    blocks: int
    waited_ns: int
    links: int
    subdirs: int
    symlinks: int
    text: Text
    subdir_names: list[Text] | None
    known_id: int


_AS_RECORD = functools.partial(tuple.__new__, Record)  # `Record._make` without a call of Python's for each


class Window(NamedTuple):
    """Some whole records of a shard, checked; `attrs` are the (mode, uid, gid) that occur in it."""

    buffer: bytes | memoryview  # there until the next window is asked for
    records: list[Record]
    attrs: list[tuple[int, int, int]]


class WindowMemory:
    """Memory for one window at a time; who reads many shards has the kernel clear it once, not for each."""

    def __init__(self) -> None:
        self._kept = _memory(KEPT_BYTES)

    def of(self, size: int) -> mmap.mmap:
        """Give at least so many bytes, which may hold what was read before; or MemoryError."""
        return self._kept if size <= KEPT_BYTES else _memory(size)


def _memory(size: int) -> mmap.mmap:
    try:
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:  # which would be taken for a fault of the shard
        raise MemoryError(f"no {size} bytes for a window of a shard") from error


def record(
    kind: int,
    path: bytes,
    *,
    flags: int = LAST,
    state: int = 0,
    err: int = 0,
    op: int = 0,
    block: int = 0,
    reason: str = "",
    dev: int = 0,
    ino: int = 0,
    own_blocks: int = 0,
    dir_digest: int = 0,
    waited_ns: int = 0,
) -> bytes:
    """Make a record without entries: the end of a large directory, a stuck path, an END."""
    data: bytes = codec.record(
        kind, path, flags, state, err, op, block, reason.encode(), dev, ino, own_blocks, dir_digest, waited_ns
    )
    return data


def fold(digests: Iterable[int]) -> int:
    """Digest of a large directory, from those of its blocks in their order."""
    return int(codec.xxh64(b"".join(d.to_bytes(8, "little") for d in digests)))


def block_digest(data: bytes) -> int:
    """Digest of the full record at the start of `data`, or 0 where it has no entries."""
    return int.from_bytes(data[24:32], "little")


class Part:
    """A shard being written. Only whole records go in; `seal` makes it final."""

    def __init__(self, folder: Path, number: int) -> None:
        self.path = folder / f"{number:06d}.part"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_APPEND
        self._fd = os.open(self.path, flags, 0o644)
        self.bytes = 0
        self.synced = 0

    def write(self, records: bytes) -> None:
        """Append whole records; raises OSError when the disk is full, with a tail that salvage cuts off."""
        view = memoryview(records)
        while view:
            view = view[os.write(self._fd, view) :]
        self.bytes += len(records)

    def sync(self) -> None:
        """Make durable what was written so far, so that `seal` has less to wait for."""
        self.synced = self.bytes
        os.fdatasync(self._fd)

    def seal(self) -> str:
        """Make it durable under its final name, and give that name."""
        self.write(record(KIND_END, b"", dir_digest=self.bytes))
        os.fsync(self._fd)
        os.close(self._fd)
        final = self.path.with_suffix(".shard")
        os.rename(self.path, final)
        sync_folder(final.parent)
        return final.name

    def drop(self) -> None:
        """Forget a part that holds nothing."""
        os.close(self._fd)
        os.unlink(self.path)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def open_file(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open what a worker wrote: a regular file in its own folder, or OSError.

    A worker that was taken over could leave a link that leads out of the folder, or a pipe whose other end
    never opens.
    """
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return fd


def read_json(path: Path) -> dict[str, Any]:
    """Read a small file that a worker wrote; OSError or ValueError for whatever no worker writes."""
    with open(open_file(path), "rb") as f:
        fits = os.fstat(f.fileno()).st_size <= JSON_MAX_BYTES
        text = f.read(JSON_MAX_BYTES) if fits else b""
    try:
        data = json.loads(text)
    except RecursionError:
        data = None
    if not isinstance(data, dict):
        raise ValueError(f"{path.name} is not what a worker writes")
    return data


def windows(
    path: Path, *, subdirs: bool = False, part: bool = False, memory: WindowMemory | None = None
) -> Iterator[Window]:
    """Read a shard window by window, every record checked. Memory: one window, or the largest record.

    A window's buffer, a part of `memory`, is there until the next window is asked for. Raises ShardError
    where a sealed shard is torn, garbled, cut or longer than its END says; a part (`part`) simply ends at its
    last whole record. The last window of a shard comes only after the whole shard was found good, earlier
    ones before: who acts on them must be able to take it back.
    """
    try:
        fd = open_file(path)
    except OSError as e:
        raise ShardError(f"{path.name}: {e.strerror}") from e
    try:
        at, want, size, ended = 0, WINDOW_BYTES, os.fstat(fd).st_size, False
        memory = memory or WindowMemory()
        while at < size:
            room = memory.of(min(want, size - at))
            with memoryview(room)[: os.preadv(fd, [room], at)] as buffer:
                if ended:
                    raise ShardError(f"{path.name}: bytes after its end")
                rows, attrs, good = codec.index(buffer, subdirs)
                records = list(map(_AS_RECORD, rows))
                whole = good
                if records and records[-1].kind == KIND_END:
                    end = records.pop()
                    ended, whole = True, end.offset
                    if good != len(buffer) or end.dir_digest != at + end.offset:
                        raise ShardError(f"{path.name}: its end does not fit its length")
                if any(r.kind == KIND_END for r in records):
                    raise ShardError(f"{path.name}: an end in the middle")
                if records:
                    with buffer[:whole] as view:
                        yield Window(view, records, attrs)
                at += good
                if good:
                    want = WINDOW_BYTES
                elif len(buffer) >= 16 and want < int.from_bytes(buffer[8:16], "little") <= RECORD_MAX_BYTES:
                    want = int.from_bytes(buffer[8:16], "little")
                else:
                    break
                del room, rows, records  # the next window takes the place of this one
        if not ended and not part:
            fault = f"damaged at byte {at}" if at < size else "has no end"
            raise ShardError(f"{path.name}: {fault}")
    except OSError as e:
        raise ShardError(f"{path.name}: {e.strerror}") from e
    finally:
        os.close(fd)


def rows(window: Window, offset: int) -> list[tuple[Any, ...]]:
    """Give the entries of one record; see codec.python.rows."""
    from smartscan.codec import python

    return list(python.rows(window.buffer, offset))


class Salvage(NamedTuple):
    """What is left of an attempt that did not end by itself."""

    shards: tuple[str, ...]
    leftover: tuple[Root, ...]
    entries: int
    dirs: int


def salvage(
    folder: Path, roots: Iterable[Root], given_back: Iterable[Root], stuck: Iterable[bytes] = ()
) -> Salvage:
    """Seal the whole directories in an attempt's parts and find what is not done.

    Not done = roots and subdirectories found, less directories ended (listed, excluded, unreadable),
    less what the worker gave back, less stuck paths. A directory whose own record is lost while something
    below it is ended or given back becomes a FILES root: it is listed again, not entered, and of its
    subdirectories the caller leaves out those that are decided or a root elsewhere. Cost: one pass over
    the attempt's files; memory grows with its directories (a chunk has at most a million entries). Parts
    that hold nothing are removed; a damaged shard is left out, so its directories count as not done.
    """
    roots = tuple(roots)
    given = {r.path for r in given_back}
    files_roots = {r.path for r in roots if r.scope is Scope.FILES}
    found: dict[bytes, Scope] = {r.path: r.scope for r in roots}
    ended: set[bytes] = set()
    left: set[bytes] = set()
    names: list[str] = []
    entries = 0
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".shard", ".part") or not _OURS.fullmatch(path.name):
            continue
        part = path.suffix == ".part"
        good = 0
        here: list[Record] = []
        try:
            for window in windows(path, subdirs=True, part=part):
                good += len(window.buffer)
                here += window.records
        except ShardError:
            continue
        kept = [r for r in here if r.kind == KIND_DIR]
        if part and (not here or _is_open(kept)):
            path.unlink()
            continue
        names.append(_seal_part(path, good) if part else path.name)
        for r in kept:
            if r.flags & LAST:
                ended.add(r.path)
            entries += r.n
            into = left if r.path in files_roots else None
            for sub in r.subdir_names or ():
                child = join(r.path, sub)
                if into is not None:
                    into.add(child)
                else:
                    found.setdefault(child, Scope.SUBTREE)
    gone = ended | given | set(stuck)
    rest = {p: s for p, s in found.items() if p not in gone}
    rest |= {p: Scope.SUBTREE for p in left if p not in gone and p not in found}
    rest |= dict.fromkeys(_lost(ended | given, {r.path for r in roots}, gone), Scope.FILES)
    return Salvage(tuple(names), tuple(Root(p, rest[p]) for p in sorted(rest)), entries, len(ended))


def _is_open(records: list[Record]) -> bool:
    """Whether a large directory was being listed; its blocks are of use only all together."""
    return any(r.flags & BIG for r in records) and not any(r.flags & BIG and r.flags & LAST for r in records)


def _lost(done: set[bytes], roots: set[bytes], gone: set[bytes]) -> set[bytes]:
    """Find the directories above `done`, up to the roots, that have no record of their own."""
    lost: set[bytes] = set()
    for path in done:
        above = []
        while path and path not in roots:
            path = path.rpartition(b"/")[0]
            if path in gone or path in lost:
                break
            above.append(path)
        if path in roots or path in gone or path in lost:
            lost.update(above)
    return lost


def _seal_part(path: Path, good: int) -> str:
    fd = open_file(path, os.O_WRONLY)
    try:
        os.ftruncate(fd, good)
        os.lseek(fd, 0, os.SEEK_END)
        os.write(fd, record(KIND_END, b"", dir_digest=good))
        os.fsync(fd)
    finally:
        os.close(fd)
    final = path.with_suffix(".shard")
    os.rename(path, final)
    sync_folder(path.parent)
    return final.name


def leftover_files(folder: Path) -> list[tuple[str, tuple[Root, ...]]]:
    """What a worker gave back while it ran, file by file.

    What no worker writes is left out: those directories are not decided by anybody, and the certificate
    says so.
    """
    given = []
    for path in sorted(folder.glob("leftover-*.json")):
        if not _OURS.fullmatch(path.name):
            continue
        try:
            given.append((path.name, tuple(Root.from_json(r) for r in read_json(path)["roots"])))
        except (OSError, ValueError, KeyError, TypeError) as e:
            import logging

            logging.getLogger(__name__).warning("%s: %r", path, e)
    return given


def is_shard(name: str) -> bool:
    """Whether a file of that name can be a shard that a worker of ours has sealed."""
    return name.endswith(".shard") and _OURS.fullmatch(name) is not None


def write_json(path: Path, data: dict[str, Any], *, durable: bool = False) -> None:
    """Replace a small file atomically; `durable` survives a power cut."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as f:
        f.write(json.dumps(data, separators=(",", ":")).encode())
        if durable:
            f.flush()
            os.fsync(f.fileno())
    os.replace(temporary, path)
    if durable:
        sync_folder(path.parent)
