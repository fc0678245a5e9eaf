"""Garble real shards, also so that their hashes fit, and see that C and Python still say the same of them.

Touches: tests/corpus, and memory databases. Not collected by itself:

    python -m pytest tests/fuzz_codec.py            as many examples as hypothesis takes by default
    FUZZ_EXAMPLES=100000 python -m pytest ...       a long run
    python tests/fuzz_codec.py                      make the corpus anew

Under tools/sanitize.sh a read outside of a record ends the run.
"""

from __future__ import annotations

import itertools
import os
import sqlite3
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from records import rehashed
from smartscan import shard
from smartscan.catalogue.bulk import Bulk, open_bulk
from smartscan.codec import python
from smartscan.errors import ShardError
from smartscan.model import Root
from trees import Dir, Fifo, File, Hard, Link, build
from twins import drive, native, needs_native, opened, python_walk

CORPUS = Path(__file__).parent / "corpus"
SEEDS = {path.name: path.read_bytes() for path in sorted(CORPUS.glob("*.shard"))}
FAULTS = ("header", "body", "column", "bytes", "cut", "grow", "twice", "swap", "drop")
FIELDS = python.Header._fields
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "200"))
MANY = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

odd_numbers = st.one_of(
    st.sampled_from([0, 1, 2, 3, 4, 7, 8, 9, 127, 128, 255, 256, 8192]),
    st.sampled_from([2**31 - 1, 2**31, 2**32 - 8, 2**32 - 1]),
    st.sampled_from([2**63 - 1, 2**63, 2**64 - 144, 2**64 - 8, 2**64 - 1]),
    st.integers(0, 2**64 - 1),
    st.integers(0, 300),
)


def whole_records(data: bytes) -> list[bytes]:
    rows, _, good = python.index(data, False)
    starts = [row[0] for row in rows] + [good]
    return [data[a:b] for a, b in itertools.pairwise(starts)]


def reseal(record: bytes, values: dict[str, int], *, length: bool) -> bytes:
    """Change a header and make its hashes fit, and its length as well if asked."""
    header = python.Header._make(python._HEADER.unpack_from(record))
    for name, value in values.items():
        limit = 64 if name in ("length", "check") or FIELDS.index(name) in range(4, 14) else 32
        value &= (1 << limit) - 1
        if name == "err" and value >> 31:
            value -= 1 << 32
        header = header._replace(**{name: value})
    body = record[python.HEADER_BYTES:]
    if length:
        header = header._replace(length=len(record))
    return rehashed(header, body, keep=values)


@st.composite
def garbled(draw: st.DrawFn) -> bytes:
    """A shard of the corpus with some faults in it."""
    records = whole_records(SEEDS[draw(st.sampled_from(sorted(SEEDS)))])
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(records) - 1))
        record = records[at]
        fault = draw(st.sampled_from(FAULTS))
        if fault == "header":
            names = draw(st.lists(st.sampled_from(FIELDS), min_size=1, max_size=3, unique=True))
            values = {name: draw(odd_numbers) for name in names}
            records[at] = reseal(record, values, length="length" not in values)
        elif fault in ("body", "column") and len(record) >= python.HEADER_BYTES + 4:
            body = bytearray(record[python.HEADER_BYTES:])
            for _ in range(draw(st.integers(1, 4))):
                if fault == "body":
                    body[draw(st.integers(0, len(body) - 1))] = draw(st.integers(0, 255))
                else:
                    place = 4 * draw(st.integers(0, len(body) // 4 - 1))
                    struct.pack_into("<I", body, place, draw(odd_numbers) & 0xFFFFFFFF)
            records[at] = reseal(record[:python.HEADER_BYTES] + body, {}, length=True)
        elif fault == "bytes" and record:
            some = bytearray(record)
            some[draw(st.integers(0, len(some) - 1))] ^= 1 << draw(st.integers(0, 7))
            records[at] = bytes(some)
        elif fault == "cut":
            records[at] = record[:draw(st.integers(0, len(record)))]
        elif fault == "grow" and len(record) >= python.HEADER_BYTES:
            more = draw(st.integers(1, 40))
            records[at] = reseal(record + bytes(8 * more), {}, length=True)
        elif fault == "twice":
            records.insert(draw(st.integers(0, len(records))), record)
        elif fault == "swap":
            records.reverse()
        elif fault == "drop" and len(records) > 1:
            del records[at]
        if not all(len(r) >= python.HEADER_BYTES for r in records):
            break
    return b"".join(records)


def offsets(data: bytes) -> bytes:
    return b"".join(struct.pack("<Q", row[0]) for row in python.index(data, False)[0])


def hung(places: bytes) -> bytes:
    """Records as new directories, each below that in the middle of those before it."""
    found = [at for (at,) in struct.iter_unpack("<Q", places)]
    return b"".join(python.PLACE.pack(at, 10 + k, 10 + k // 2 if k else 1) for k, at in enumerate(found))


def measured(codec: Any, data: bytes, places: bytes) -> tuple[Any, ...]:
    tally, largest, links = codec.measure(data, places, 3)
    return sorted(tally), sorted(largest), links


def test_the_corpus_is_whole():
    assert len(SEEDS) >= 5
    for name in SEEDS:
        assert list(shard.windows(CORPUS / name, subdirs=True))


@needs_native
@MANY
@given(garbled(), st.booleans())
def test_both_take_and_refuse_the_same(data, subdirs):
    got = native.index(data, subdirs)
    assert got == python.index(data, subdirs)
    assert 0 <= got[2] <= len(data)
    good = data[:got[2]]
    places = offsets(good)
    assert measured(native, good, places) == measured(python, good, places)
    assert native.carry(good, hung(places)) == python.carry(good, hung(places))
    for (at,) in struct.iter_unpack("<Q", places):
        assert python.rows(good, at) is not None


@needs_native
@MANY
@given(garbled(), st.lists(st.integers(0, 3000), max_size=5))
def test_places_where_no_record_is_harm_nobody(data, places):
    """What was not checked before: nothing of the kind is done, and it must not crash either."""
    packed = b"".join(struct.pack("<Q", 8 * place) for place in places)
    native.measure(data, packed, 2)
    assert native.carry(data, hung(packed)) == python.carry(data, hung(packed))
    for place in places:
        try:
            python.rows(data, 8 * place)
        except (ShardError, ValueError):
            continue


def opened_bulk(*, quick: bool) -> Bulk:
    def connect() -> sqlite3.Connection:
        conn = sqlite3.connect(":memory:", isolation_level=None)
        conn.text_factory = bytes
        conn.executescript(
            "CREATE TABLE entry (dir_id INTEGER, name TEXT, attr_id INTEGER, size, blocks, mtime_ns, "
            "ctime_ns, ino, nlink, counted); CREATE TABLE symlink (dir_id INTEGER, name TEXT, target TEXT);"
            "CREATE TABLE dir (id INTEGER PRIMARY KEY, mount_id, parent_id, name TEXT, state, scan_id, dev, "
            "digest, own_entries, own_dirs, own_blocks, files, entries, bytes, disk_bytes);"
        )
        return conn

    return open_bulk(connect) if quick else Bulk(connect(), 0)


@needs_native
@MANY
@given(garbled(), st.integers(1, 3))
def test_both_insert_the_same_rows(data, blocks):
    _, attrs, good = python.index(data, False)
    data = data[:good]
    places = offsets(data)
    ids = b"".join(struct.pack("<q", 100 + i // blocks) for i in range(len(places) // 8))
    numbers = b"".join(struct.pack("<IIIIq", *attr, 0, i) for i, attr in enumerate(attrs))
    found = []
    for quick in (False, True):
        bulk = opened_bulk(quick=quick)
        bulk.insert("entry", "symlink", data, places, ids, numbers)
        bulk.insert_dirs(data, hung(places), python.carry(data, hung(places))[0], 7, 2**40)
        columns = "dir_id, CAST({} AS BLOB), {}"
        entries = columns.format("name", "attr_id, size, blocks, mtime_ns, ctime_ns, ino, nlink, counted")
        links = columns.format("name", "CAST(target AS BLOB)")
        found.append([bulk.conn.execute(f"SELECT {entries} FROM entry").fetchall(),
                      bulk.conn.execute(f"SELECT {links} FROM symlink").fetchall(),
                      bulk.conn.execute("SELECT typeof(name), * FROM dir").fetchall()])
        bulk.conn.close()
    if blocks > 1:  # those of one directory come as one, in the order of names
        assert [row[0] for row in found[1][0]] == sorted(row[0] for row in found[1][0])
        found = [[sorted(rows, key=repr) for rows in both] for both in found]
    assert found[0] == found[1]


@MANY
@given(data=garbled())
@pytest.mark.parametrize("part", [False, True])
def test_a_garbled_file_is_refused_or_whole(tmp_path_factory, data, part):
    path = tmp_path_factory.getbasetemp() / "fuzz.shard"
    path.write_bytes(data)
    try:
        kept = b"".join(bytes(window.buffer) for window in shard.windows(path, subdirs=True, part=part))
    except ShardError:
        return
    assert data.startswith(kept)
    if not part:
        assert len(kept) == len(data) - python.HEADER_BYTES, "all but the end"


# The corpus

TREES: dict[str, Any] = {
    "plain": {"a": {"b": {"c.txt": 5, "D.TXT": 0}, "empty": {}}, "f": 1},
    "links": {"one": 5, "two": Hard("one"), "to": Link("one"), "long": Link("x" * 300), "x": Link(b"\xff\n")},
    "odd": {b"\xff.\xc9": 1, b"\n": File(2**40, sparse=True), "fifo": Fifo(), "old": File(1, mtime_ns=-1)},
    "skip": {"skip": {"f": 1}, "kept": {"skip": {}, "f": Dir({})}},
}


def renew() -> None:
    """Make the corpus from real trees."""
    CORPUS.mkdir(exist_ok=True)
    made: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, tree in TREES.items():
            path = Path(folder) / name
            path.mkdir()
            build(path, tree)
            with opened(path, python_walk, patterns=(b"skip",)) as walker:
                made[name] = b"".join(drive(walker, [Root(b""), Root(b"gone")])[0])
        last = [row for row in python.index(made["plain"], False)[0] if row[7]]
        known = python.known([(row[2], row[9], 7) for row in last])
        with opened(Path(folder) / "plain", python_walk, known=known) as walker:
            made["unchanged"] = b"".join(drive(walker)[0])
        first = whole_records(made["links"])[0]
        made["large"] = reseal(first, {"flags": shard.BIG, "dir_digest": 0}, length=True) + shard.record(
            shard.KIND_DIR, b"", flags=shard.LAST | shard.BIG, state=shard.LISTED, block=1, dir_digest=7)
        made["errors"] = shard.record(shard.KIND_ERROR, b"a/b", err=5, op=3, waited_ns=10**9) + shard.record(
            shard.KIND_DIR, b"a", state=shard.TIMED_OUT, err=110, op=1, reason="timed out")
    for name, data in made.items():
        (CORPUS / f"{name}.shard").write_bytes(data + shard.record(shard.KIND_END, b"", dir_digest=len(data)))


if __name__ == "__main__":
    renew()
