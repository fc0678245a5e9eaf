"""Strategies: records that no file system gives, but well-formed, as of a worker that lies."""

from __future__ import annotations

import contextlib
import struct
from array import array
from collections.abc import Container

from hypothesis import strategies as st

from smartscan.codec import python
from smartscan.codec.python import NONE, Entries, full_record
from trees import names

u32 = st.integers(0, 2**32 - 1)
u64 = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**63 - 1, 2**63, 2**64 - 1]))
i64 = st.integers(-(2**63), 2**63 - 1)
u8 = st.integers(0, 255)
modes = st.one_of(
    st.sampled_from([0o100644, 0o040755, 0o120777, 0o010600]),
    st.sampled_from([0o100000 | python.UNKNOWN, 0o040000 | python.UNKNOWN]),
    u32,
)
reasons = st.binary(max_size=20).map(lambda text: text.replace(b"\0", b""))
paths = st.lists(names, max_size=4).map(b"/".join)
dotted = st.text(alphabet="aZ9._-éß~ ", min_size=1, max_size=24).map(str.encode).filter(
    lambda name: name not in (b".", b"..")
)


def rehashed(header: python.Header, body: bytes, *, keep: Container[str] = ()) -> bytes:
    """Put a record together whose hashes fit, where it is one that can have them, whatever else it says."""
    if header.full and "digest" not in keep:
        with contextlib.suppress(struct.error):
            header = header._replace(digest=python.digest_of(header, body))
    if "check" not in keep:
        header = header._replace(check=python.check_of(header, body))
    return python._HEADER.pack(*header) + body


@st.composite
def full_records(draw: st.DrawFn, before: bytes = b"", *, ascending: bool = True) -> bytes:
    """A record of a directory with entries that no file system has, whose names all begin with `before`."""
    row = st.tuples(u64, u64, i64, i64, u64, u32, modes, u32, u32)
    named = st.one_of(names, dotted).map(before.__add__)
    rows = draw(st.dictionaries(named, row, min_size=1, max_size=9))
    order = sorted(rows) if ascending else list(rows)
    columns = zip(*(rows[name] for name in order), strict=True)
    size, blocks, mtime, ctime, ino, nlink, mode, uid, gid = (
        array(code, column) for code, column in zip("QQqqQIIII", columns, strict=True)
    )
    links = sum(m & 0o170000 == 0o120000 for m in mode)
    targets = draw(st.lists(st.binary(max_size=9), min_size=links, max_size=links))
    header = NONE._replace(
        flags=draw(st.sampled_from([python.LAST, python.BIG])), state=draw(st.integers(0, 7)), err=draw(u8),
        dev=draw(u64), ino=draw(u64), own_blocks=draw(u64), block=draw(u32),
    )  # fmt: skip
    entries = Entries(order, size, blocks, mtime, ctime, ino, nlink, mode, uid, gid, targets)
    return full_record(header, draw(paths), entries)


short_records = st.builds(
    python.record, st.integers(1, 3), paths, st.sampled_from([0, 1, 4, 5]), st.integers(0, 7),
    st.integers(-9, 200), st.integers(0, 5), u32, reasons, u64, u64, u64, u64, u64,
)  # fmt: skip
unchanged_records = st.builds(python.unchanged_record, full_records(), st.integers(0, 4))
records = st.one_of(full_records(), short_records, unchanged_records)


def directory(path: bytes, modes: dict[bytes, int]) -> bytes:
    """A directory of 8 blocks, whose entries have these modes, one name and 10 bytes in one block each."""
    n, order = len(modes), sorted(modes)
    eights = [array(code, [value] * n) for code, value in zip("QQqqQ", (10, 1, 0, 0, 7), strict=True)]
    nlink, mode, none = array("I", [1] * n), array("I", [modes[name] for name in order]), array("I", [0] * n)
    header = NONE._replace(flags=python.LAST, state=python.LISTED, dev=5, own_blocks=8)
    return full_record(header, path, Entries(order, *eights, nlink, mode, none, none, []))
