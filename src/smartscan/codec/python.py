"""Make and read records in Python: the twin of what _native.c does with them, but for inserting.

Pure. Same arguments, same results, same bytes, and the same refusals (docs/shard.md). `measure` gives its
totals, and its largest files, in no particular order. Some fifty times slower than the C.
"""

from __future__ import annotations

import heapq
import struct
import sys
from array import array
from dataclasses import dataclass
from typing import Any, NamedTuple

import xxhash

from smartscan.codec import kinds
from smartscan.errors import ShardError
from smartscan.numbers import signed

MAGIC = 0x33445353  # "SSD3"
KIND_DIR, KIND_ERROR, KIND_END = 1, 2, 3
LAST, UNCHANGED, BIG = 1, 2, 4
LISTED, VANISHED = 1, 7  # states; 7 is the highest
OP_STATFS = 5  # the highest operation
UNKNOWN = 0x80000000
TYPE, DIRECTORY, REGULAR, SYMLINK = 0o170000, 0o040000, 0o100000, 0o120000
ENTRY_BYTES = 60  # five columns of 8 bytes, five of 4
_M32, _M64 = (1 << 32) - 1, (1 << 64) - 1
_COLUMNS = ("ino", "size", "blocks", "mtime_ns", "ctime_ns", "nlink", "mode", "uid", "gid", "end")
_CODES = "QQQqqIIIII"

_HEADER = struct.Struct("<2I 12Q 4Ii 7I")
HEADER_BYTES = _HEADER.size
_LENGTH = struct.Struct("<I")
KNOWN = struct.Struct("<3Q")  # hash of a path, digest and id of the directory

Row = tuple[bytes, int, int, int, int, int, int, int, int, int, bytes]


class Header(NamedTuple):
    """The fixed part of a record, in its order."""

    magic: int
    kind: int
    length: int  # of the whole record, a multiple of 8
    check: int  # XXH64 of the header with check = 0, and of what of the body is not in `digest`
    digest: int  # of the body of a full record, see `digest_of`
    dir_digest: int  # of the whole directory, in its LAST record
    dev: int
    ino: int
    own_blocks: int
    files: int  # sums of this record: regular files, st_size and st_blocks of all but directories
    bytes: int
    blocks: int
    waited_ns: int
    known_id: int  # of an unchanged directory: the number that came with its digest
    n: int
    block: int
    flags: int
    state: int
    err: int
    op: int
    path_len: int
    names_len: int
    text_len: int
    subdirs: int
    links: int
    symlinks: int

    @property
    def full(self) -> bool:
        """Whether all entries of the directory, or of the block, are in it."""
        return self.kind == KIND_DIR and self.n > 0 and not self.flags & UNCHANGED


@dataclass(slots=True)
class Entries:
    """What the columns of a full record hold, in the order of the names."""

    names: list[bytes]
    size: array[int]
    blocks: array[int]
    mtime_ns: array[int]
    ctime_ns: array[int]
    ino: array[int]
    nlink: array[int]
    mode: array[int]
    uid: array[int]
    gid: array[int]
    targets: list[bytes]  # one per symbolic link


def pad8(n: int) -> int:
    """Round up to a multiple of 8."""
    return (n + 7) & ~7


def xxh64(buffer: Any, seed: int = 0) -> int:
    """Hash as _native.xxh64."""
    return xxhash.xxh64_intdigest(buffer, seed)


def _little(column: array[int]) -> array[int]:
    if sys.byteorder == "big":
        column.byteswap()
    return column


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def seal(header: Header, path: bytes, body: bytes) -> bytes:
    """Put a record together: fill in its lengths, its hashes and what it is padded with."""
    whole = _padded(_padded(path) + body)
    header = header._replace(magic=MAGIC, length=HEADER_BYTES + len(whole), path_len=len(path))
    if header.full:
        digest = digest_of(header, whole)
        last = header.flags & LAST
        header = header._replace(digest=digest, dir_digest=digest if last else header.dir_digest)
    return _HEADER.pack(*header._replace(check=check_of(header, whole))) + whole


def digest_of(h: Header, body: Any) -> int:
    """Hash what a full record says of its directory: all but the inode numbers of files with one name, which
    some file systems invent anew whenever the kernel has forgotten them.
    """
    path, inos, rest = _parts(h, body)
    digest = xxh64(rest, xxh64(path))
    if h.links:
        nlinks, modes = (struct.unpack_from(f"<{h.n}I", rest, at * h.n) for at in (4 * 8, 4 * 8 + 4))
        for i, (nlink, mode) in enumerate(zip(nlinks, modes, strict=True)):
            if nlink > 1 and mode & TYPE != DIRECTORY:
                digest = xxh64(inos[8 * i:8 * i + 8], digest)
    return digest


def check_of(h: Header, body: Any) -> int:
    """Hash the header, and what of the body is not in the digest."""
    head = _HEADER.pack(*h._replace(check=0))
    return xxh64(_parts(h, body)[1], xxh64(head)) if h.full else xxh64(head + bytes(body))


def _parts(h: Header, body: Any) -> tuple[Any, Any, Any]:
    """Give the path of a full record, its inode numbers, and what comes behind them."""
    begin = pad8(h.path_len)
    end = begin + 8 * h.n
    return body[:begin], body[begin:end], body[end:]


NONE = Header(*[0] * len(Header._fields))


def record(kind: int, path: bytes, flags: int, state: int, err: int, op: int, block: int, reason: bytes,
           dev: int, ino: int, own_blocks: int, dir_digest: int, waited_ns: int) -> bytes:
    """Make a record without entries."""
    header = NONE._replace(kind=kind, flags=flags, state=state, err=err, op=op, block=block, dev=dev & _M64,
                           ino=ino & _M64, own_blocks=own_blocks & _M64, dir_digest=dir_digest & _M64,
                           waited_ns=waited_ns & _M64, text_len=len(reason))
    return seal(header, path, reason)


def full_record(header: Header, path: bytes, entries: Entries) -> bytes:
    """Make the record of a directory or block from its columns; names and sums are filled in."""
    n = len(entries.names)
    columns = (entries.ino, entries.size, entries.blocks, entries.mtime_ns, entries.ctime_ns, entries.nlink,
               entries.mode, entries.uid, entries.gid)
    text = b"".join(_LENGTH.pack(len(t)) + t for t in entries.targets)
    files = size = blocks = subdirs = links = 0
    for i in range(n):
        kind = entries.mode[i] & TYPE
        if kind == DIRECTORY:
            subdirs += 1
            continue
        size += entries.size[i]
        blocks += entries.blocks[i]
        files += kind == REGULAR
        links += entries.nlink[i] > 1
    names = b"".join(entries.names)
    header = header._replace(kind=KIND_DIR, n=n, files=files, bytes=size & _M64, blocks=blocks & _M64,
                             names_len=len(names), text_len=len(text), subdirs=subdirs, links=links,
                             symlinks=len(entries.targets))
    body = b"".join(_little(array(c.typecode, c)).tobytes() for c in columns)
    return seal(header, path, body + _ends(entries.names) + names + text)


def unchanged_record(data: bytes, known_id: int = 0) -> bytes:
    """Turn a full record into one that says only which subdirectories there are."""
    header = Header._make(_HEADER.unpack_from(data))
    path = data[HEADER_BYTES:HEADER_BYTES + header.path_len]
    entries = _entries(memoryview(data), 0, header)
    kept = [name for name, mode in zip(entries.names, entries.mode, strict=True) if mode & TYPE == DIRECTORY]
    names = b"".join(kept)
    header = header._replace(flags=header.flags | UNCHANGED, known_id=known_id, names_len=len(names),
                             text_len=0)
    return seal(header, path, _ends(kept) + names)


def _ends(names: list[bytes]) -> bytes:
    total = 0
    end: array[int] = array("I")
    for name in names:
        total += len(name)
        end.append(total)
    return _little(end).tobytes()


# -- reading ---------------------------------------------------------------------------------------------


def _header(view: memoryview, at: int) -> Header | None:
    """Give the header of the record at a place where it fits what it says of itself, else None."""
    if at < 0 or len(view) - at < HEADER_BYTES:
        return None
    h = Header._make(_HEADER.unpack_from(view, at))
    if h.magic != MAGIC or not HEADER_BYTES <= h.length <= len(view) - at or h.length % 8:
        return None
    if not (KIND_DIR <= h.kind <= KIND_END and h.flags <= LAST | UNCHANGED | BIG and h.state <= VANISHED
            and h.op <= OP_STATFS and h.files <= h.n):
        return None
    if h.flags & UNCHANGED:
        if h.kind != KIND_DIR or h.subdirs > h.n:
            return None
    elif h.known_id or (not h.full and (h.n or h.subdirs or h.names_len)):
        return None
    columns = h.n * ENTRY_BYTES if h.full else h.subdirs * 4
    need = HEADER_BYTES + pad8(h.path_len) + columns + h.names_len + h.text_len
    return h if pad8(need) == h.length else None


def _verify(view: memoryview, at: int, h: Header) -> bool:
    body = view[at + HEADER_BYTES:at + h.length]
    if check_of(h, body) != h.check or (h.full and digest_of(h, body) != h.digest):
        return False
    last = 0
    for end in _column(view, at, h, "end"):
        if not last < end <= h.names_len:
            return False
        last = end
    path = bytes(view[at + HEADER_BYTES:at + HEADER_BYTES + h.path_len])
    return (last == h.names_len and all(map(_is_name, _names(view, at, h)))
            and (not path or all(map(_is_name, path.split(b"/")))))


def _is_name(name: bytes) -> bool:
    """Whether a directory can hold it."""
    return name not in (b"", b".", b"..") and b"/" not in name and b"\0" not in name


def _counts_fit(view: memoryview, at: int, h: Header) -> bool:
    subdirs = symlinks = links = 0
    for mode, nlink in zip(_column(view, at, h, "mode"), _column(view, at, h, "nlink"), strict=True):
        kind = mode & TYPE
        subdirs += kind == DIRECTORY
        symlinks += kind == SYMLINK
        links += kind != DIRECTORY and nlink > 1
    if (subdirs, symlinks, links) != (h.subdirs, h.symlinks, h.links):
        return False
    return _targets(view, at, h) is not None


def _record(view: memoryview, at: int) -> Header | None:
    """Check a record against everything it says of itself; None where it is torn."""
    h = _header(view, at)
    if h is None or not _verify(view, at, h) or (h.full and not _counts_fit(view, at, h)):
        return None
    return h


def _body(at: int, h: Header) -> int:
    return at + HEADER_BYTES + pad8(h.path_len)


def _column(view: memoryview, at: int, h: Header, which: str) -> array[int]:
    start, number = _body(at, h), _COLUMNS.index(which)
    if h.full:
        start += h.n * (8 * min(number, 5) + 4 * max(number - 5, 0))
        n = h.n
    else:
        n = h.subdirs
    column = array(_CODES[number])
    column.frombytes(view[start:start + n * column.itemsize])
    return _little(column)


def _names_at(at: int, h: Header) -> int:
    return _body(at, h) + (h.n * ENTRY_BYTES if h.full else h.subdirs * 4)


def _names(view: memoryview, at: int, h: Header) -> list[bytes]:
    start, last, names = _names_at(at, h), 0, []
    raw = bytes(view[start:start + h.names_len])
    for end in _column(view, at, h, "end"):
        names.append(raw[last:end])
        last = end
    return names


def _targets(view: memoryview, at: int, h: Header) -> list[bytes] | None:
    start = _names_at(at, h) + h.names_len
    text = bytes(view[start:start + h.text_len])
    place, targets = 0, []
    for _ in range(h.symlinks):
        if len(text) - place < 4:
            return None
        (length,) = _LENGTH.unpack_from(text, place)
        place += 4
        if length > len(text) - place:
            return None
        targets.append(text[place:place + length])
        place += length
    return targets if place == len(text) else None


def _entries(view: memoryview, at: int, h: Header) -> Entries:
    ino, size, blocks, mtime, ctime, nlink, mode, uid, gid = (_column(view, at, h, c) for c in _COLUMNS[:-1])
    return Entries(_names(view, at, h), size, blocks, mtime, ctime, ino, nlink, mode, uid, gid,
                   _targets(view, at, h) or [])


def _subdirs(view: memoryview, at: int, h: Header) -> list[bytes]:
    if not h.subdirs:
        return []
    names = _names(view, at, h)
    if not h.full:
        return names
    modes = _column(view, at, h, "mode")
    return [name for name, mode in zip(names, modes, strict=True) if mode & TYPE == DIRECTORY]


def known(rows: list[tuple[bytes, int, int]]) -> bytes:
    """Give what `Walker.know` takes, from path, digest and id of each directory."""
    return b"".join(KNOWN.pack(xxh64(path), digest & _M64, id_ & _M64) for path, digest, id_ in rows)


def index(buffer: Any, subdirs: bool) -> tuple[list[tuple[Any, ...]], list[tuple[int, int, int]], int]:
    """Check every record and stop at the first torn one: (records, attrs, good bytes)."""
    view, at = memoryview(buffer), 0
    records: list[tuple[Any, ...]] = []
    attrs: dict[tuple[int, int, int], None] = {}
    while at < len(view):
        h = _record(view, at)
        if h is None:
            break
        text = b""
        if h.full:
            columns = (_column(view, at, h, which) for which in ("mode", "uid", "gid"))
            attrs.update(dict.fromkeys(zip(*columns, strict=True)))
        else:
            start = _names_at(at, h) + h.names_len
            text = bytes(view[start:start + h.text_len])
        path = bytes(view[at + HEADER_BYTES:at + HEADER_BYTES + h.path_len])
        records.append((at, h.kind, path, h.flags, h.state, h.err, h.op, h.n, h.block, signed(h.dir_digest),
                        signed(h.dev), signed(h.own_blocks), h.files, h.bytes, h.blocks, h.waited_ns, h.links,
                        h.subdirs, h.symlinks, text, _subdirs(view, at, h) if subdirs else None,
                        signed(h.known_id)))
        at += h.length
    return records, list(attrs), at


def rows(buffer: Any, offset: int) -> list[Row]:
    """Give (name, mode, uid, gid, size, blocks, mtime_ns, ctime_ns, ino, nlink, target).

    Size, blocks and ino are unsigned; the target is b"" but for symbolic links that could be read. A record
    that does not hold its entries (unchanged, an error, not listed) has none. ShardError where it is torn.
    """
    view = memoryview(buffer)
    h = _header(view, offset)
    if h is None or (h.full and _targets(view, offset, h) is None):
        raise ShardError(f"damaged at byte {offset} of a window")
    if not h.full:
        return []
    e = _entries(view, offset, h)
    links = iter(e.targets)
    targets = (next(links, b"") if mode & TYPE == SYMLINK else b"" for mode in e.mode)
    return list(zip(e.names, e.mode, e.uid, e.gid, e.size, e.blocks, e.mtime_ns, e.ctime_ns, e.ino, e.nlink,
                    targets, strict=True))


Tally = list[tuple[int, bytes, int, int, int]]
Largest = list[tuple[int, int, bytes]]
Links = list[tuple[int, bytes, int, int, int, int, int, int]]


def measure(buffer: Any, offsets: bytes, top: int) -> tuple[Tally, Largest, Links]:
    """Sum up regular files by the keys of `kinds`; find the `top` largest, and every name of several.

    Gives (dimension, key, files, bytes, blocks), (size, offset, name) and (number of the offset, name, signed
    ino, size, blocks, mtime_ns, mode, uid). Of two files of one size that which comes first is kept.
    """
    view = memoryview(buffer)
    cells: dict[tuple[int, bytes], list[int]] = {}
    heap: list[tuple[int, int, int, bytes]] = []
    links: Links = []
    for k, (at,) in enumerate(struct.iter_unpack("<Q", offsets[:len(offsets) // 8 * 8])):
        h = _header(view, at)
        if h is None or not h.full:
            continue
        for i, (name, mode, uid, _, size, blocks, mtime, _, ino, nlink, _) in enumerate(rows(view, at)):
            if nlink > 1 and mode & TYPE != DIRECTORY and h.links:
                links.append((k, name, signed(ino), size, blocks, mtime, mode, uid))
            if mode & (TYPE | UNKNOWN) != REGULAR:
                continue
            for dimension, key in enumerate(kinds.keys(name, size, mtime, uid)):
                cell = cells.setdefault((dimension, key), [0, 0, 0])
                cell[0] += 1
                cell[1] += size
                cell[2] += blocks
            if size and top > 0:
                file = (size, -at, -i, name)
                if len(heap) < top:
                    heapq.heappush(heap, file)
                elif file > heap[0]:
                    heapq.heapreplace(heap, file)
    tally = [(d, key, files, size & _M64, blocks & _M64) for (d, key), (files, size, blocks) in cells.items()]
    return tally, [(size, -at, name) for size, at, _, name in heap], links


PLACE = struct.Struct("<Qqq")  # a new directory: offset of its record, its id, that of the directory above it
SUMS = struct.Struct("<4q")  # of its subtree: files, entries, bytes, disk bytes

Sums = list[int]


def place(records: list[Any], at: int, next_id: int, sizes_only: bool, cache: dict[bytes, Any],
          placed: dict[bytes, int], new: list[Any], places: list[int], plain: list[tuple[Any, int]]
          ) -> tuple[int, int]:
    """Take directories that are simply new, which nearly all are in a first scan: listed in one piece, no
    path of `cache` or `placed`, and below a directory that is in `placed`, or in `cache` with `below_known`.

    From `records[at]` on, to the first that is not such: (its number, the next free id). Each gets an id in
    `placed`, a place in `new` and in `places` (offset, id, id of the one above; what `carry` wants), and with
    entries to be added, one in `plain`. One that is in `placed` comes twice and changes nothing.
    """
    while at < len(records):
        r = records[at]
        offset, kind, path, flags, state, err, _, n, *_, text, _, _ = r
        sums_only = sizes_only and flags == LAST | UNCHANGED
        if kind != KIND_DIR or not path or not (flags == LAST or sums_only):
            break
        if state != LISTED or err or text:
            break
        if path not in placed:
            if path in cache:
                break
            above_path = path.rpartition(b"/")[0]
            above_id, above = placed.get(above_path), cache.get(above_path)
            if above_id is None:
                if above is None or not above.below_known:
                    break
                above_id = above.id
            placed[path] = next_id
            new.append(r)
            places += offset, next_id, above_id
            if n and not sums_only:
                plain.append((r, next_id))
            next_id += 1
        at += 1
    return at, next_id


def carry(buffer: Any, places: bytes) -> tuple[bytes, list[tuple[int, ...]], tuple[int, int, int]]:
    """Sum up new directories, in the order of their ids, of which each is larger than that of the one above.

    Gives the sums of their subtrees, a `SUMS` each; what goes to directories that are not among them, as
    (number of a place right below it, files, entries, bytes, disk bytes), once for places in a row; and the
    entries, bytes and disk bytes of all. Modulo 2^64, signed.
    """
    view = memoryview(buffer)
    found = list(PLACE.iter_unpack(places[:len(places) // PLACE.size * PLACE.size]))
    number = {id_: k for k, (_, id_, _) in enumerate(found)}
    headers = [_header(view, at) or NONE for at, _, _ in found]
    sums = [[h.files, h.n, h.bytes, (h.blocks + h.own_blocks) * 512] for h in headers]
    _, entries, size, disk = _wrapped([sum(column) for column in zip(*sums, strict=True)] or [0] * 4)
    outside: list[tuple[int, Sums]] = []
    for k in range(len(found) - 1, -1, -1):
        above_id = found[k][2]
        if above_id in number:
            _add(sums[number[above_id]], sums[k])
        elif outside and outside[-1][0] == k + 1 and found[k + 1][2] == above_id:
            outside[-1] = k, _add(outside[-1][1], sums[k])
        else:
            outside.append((k, list(sums[k])))
    packed = b"".join(SUMS.pack(*_wrapped(s)) for s in sums)
    return packed, [(k, *_wrapped(s)) for k, s in outside], (entries, size, disk)


def _add(to: Sums, more: Sums) -> Sums:
    to[:] = map(int.__add__, to, more)
    return to


def _wrapped(sums: Sums) -> Sums:
    return [signed(value) for value in sums]


def dir_rows(buffer: Any, places: bytes, sums: bytes) -> list[tuple[Any, ...]]:
    """Give new directories as the virtual table smartscan_dirs of _native.c shows them, less its constants.

    That is (id, id of the one above, name, dev, digest, own entries, own subdirectories, own blocks, files,
    entries, bytes, disk bytes). ShardError where one is torn.
    """
    view = memoryview(buffer)
    rows = []
    for (at, id_, above_id), total in zip(PLACE.iter_unpack(places), SUMS.iter_unpack(sums), strict=True):
        h = _header(view, at)
        if h is None:
            raise ShardError(f"damaged at byte {at} of a window")
        name = bytes(view[at + HEADER_BYTES:at + HEADER_BYTES + h.path_len]).rpartition(b"/")[2]
        own = (signed(h.dev), signed(h.dir_digest), h.n, h.subdirs, signed(h.own_blocks))
        rows.append((id_, above_id, name, *own, *total))
    return rows
