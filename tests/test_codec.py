"""Records read the same in C and in Python; nothing torn, garbled or self-contradicting is taken for one."""

from __future__ import annotations

import _sqlite3
import datetime
import functools
import re
import sqlite3
import struct
from array import array
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import twins
from records import dotted, full_records, i64, paths, reasons, records, rehashed, u8, u32, u64
from smartscan import shard
from smartscan.codec import kinds, python
from smartscan.codec.python import NONE, Entries, Header, full_record
from smartscan.errors import ShardError
from trees import names
from twins import CODECS, native, needs_native

ROOT = Path(__file__).parent.parent


def header_of(data: bytes, at: int = 0) -> Header:
    return Header._make(python._HEADER.unpack_from(data, at))


def offsets_of(data: bytes) -> bytes:
    return b"".join(struct.pack("<Q", row[0]) for row in python.index(data, False)[0])


@needs_native
@given(st.binary(max_size=200))
def test_both_hash_alike(data):
    assert native.xxh64(data) == python.xxh64(data)


@needs_native
@given(st.tuples(st.integers(0, 4), paths, u8, u8, st.integers(-9, 200), u8, u32, reasons, *[u64] * 5))
def test_both_make_the_same_record(arguments):
    assert native.record(*arguments) == python.record(*arguments)


@needs_native
@given(st.lists(records, max_size=5).map(b"".join), st.booleans())
def test_both_read_the_same(data, subdirs):
    got = native.index(data, subdirs)
    assert got == python.index(data, subdirs)
    assert got[2] == len(data), "what one twin made the other takes"


@needs_native
@given(st.lists(records, max_size=5).map(b"".join), st.integers(0, 6))
def test_both_measure_the_same(data, top):
    offsets = offsets_of(data)
    tally, largest, links = native.measure(data, offsets, top)
    expected = python.measure(data, offsets, top)
    assert sorted(tally) == sorted(expected[0])
    assert sorted(largest) == sorted(expected[1])
    assert links == expected[2]
    assert len(largest) <= top


@pytest.mark.parametrize("codec", CODECS)
def test_of_equally_large_files_the_first_is_kept(codec):
    zeros = [0] * 30
    size = array("Q", [7] * 30)
    entries = Entries([b"%02d" % i for i in range(30)], size, size, *[array(c, zeros) for c in "qqQI"],
                      array("I", [0o100644] * 30), *[array("I", zeros)] * 2, [])
    data = full_record(NONE._replace(flags=1), b"", entries)
    largest = codec.measure(data, struct.pack("<Q", 0), 3)[1]
    assert sorted(largest) == [(7, 0, b"00"), (7, 0, b"01"), (7, 0, b"02")]


def mostly(value: Any, *others: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from([value] * 12 + list(others))


near = st.lists(st.sampled_from([b"a", b"b"]), max_size=2).map(b"/".join)
kinds_, flags, states = mostly(1, 2), mostly(1, 3, 3, 3, 3, 0, 5), mostly(1, 0, 2)
dirs = st.tuples(near, kinds_, flags, states, mostly(0, 13), mostly(b"", b"why"), st.booleans())


@needs_native
@settings(max_examples=600)
@given(st.lists(dirs, max_size=6), st.dictionaries(near, st.sampled_from([None, False, True])),
       st.sets(near, max_size=2), st.booleans())  # fmt: skip
def test_both_place_the_same(found, known, placed, sizes_only):
    template = python.index(python.record(1, b"", 1, 1, 0, 0, 0, b"", 0, 0, 0, 0, 0), False)[0][0]
    records = [
        shard.Record._make(template)._replace(
            offset=100 * k, path=path, kind=kind, flags=flags, state=state, err=err, text=text, n=n
        )
        for k, (path, kind, flags, state, err, text, n) in enumerate(found)
    ]
    cache = {path: SimpleNamespace(id=10 + k, below_known=how) for k, (path, how) in enumerate(known.items())}
    for at in range(len(records) + 1):
        outcomes = []
        for codec in (native, python):
            taken: tuple[Any, ...] = {path: 5 for path in placed if path not in cache}, [], [], []
            outcomes.append((codec.place(records, at, 30, sizes_only, cache, *taken), taken))
        assert outcomes[0] == outcomes[1]


def hung(data: bytes, aboves: list[int]) -> bytes:
    """The records of `data` as new directories, each below one before it or elsewhere."""
    places = b""
    for k, (at,) in enumerate(struct.iter_unpack("<Q", offsets_of(data))):
        above = aboves[k] % (k + 3) - 3 if k < len(aboves) else -1
        places += python.PLACE.pack(at, 100 + 2 * k, 100 + 2 * above)
    return places


@needs_native
@given(st.lists(records, max_size=8).map(b"".join), st.lists(st.integers(0, 100), max_size=8))
def test_both_carry_up_the_same(data, aboves):
    places = hung(data, aboves)
    assert native.carry(data, places) == python.carry(data, places)


@pytest.mark.parametrize("codec", CODECS)
@given(st.lists(full_records(), max_size=8).map(b"".join), st.lists(st.integers(0, 100), max_size=8))
def test_what_is_carried_up_is_what_there_is(codec, data, aboves):
    places = list(python.PLACE.iter_unpack(hung(data, aboves)))
    packed, outside, (entries, size, disk) = codec.carry(data, hung(data, aboves))
    headers = [header_of(data, at) for at, _, _ in places]
    own = [(h.files, h.n, h.bytes, (h.blocks + h.own_blocks) * 512) for h in headers]
    names = {id_: k for k, (_, id_, _) in enumerate(places)}
    below: list[list[int]] = [[k] for k in range(len(places))]
    for k in range(len(places) - 1, -1, -1):
        if places[k][2] in names:
            below[names[places[k][2]]] += below[k]

    def total(numbers: list[int]) -> list[int]:
        return [sum(own[k][i] for k in numbers) % 2**64 for i in range(4)]

    sums = [[value % 2**64 for value in s] for s in python.SUMS.iter_unpack(packed)]
    assert sums == [total(numbers) for numbers in below]
    elsewhere: dict[int, list[int]] = {}
    for k, *change in outside:
        assert places[k][2] not in names
        to = elsewhere.setdefault(places[k][2], [0] * 4)
        to[:] = [(a + b) % 2**64 for a, b in zip(to, change, strict=True)]
    assert elsewhere == {
        above: total([n for k, (_, _, up) in enumerate(places) if up == above for n in below[k]])
        for above in {up for _, _, up in places} - set(names)
    }
    assert [entries % 2**64, size % 2**64, disk % 2**64] == total(list(range(len(places))))[1:]


@given(full_records())
def test_a_full_record_gives_its_rows(data):
    header = header_of(data)
    rows = python.rows(data, 0)
    assert len(rows) == header.n
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    others = [row for row in rows if row[1] & 0o170000 != 0o040000]
    assert (sum(row[4] for row in others) & 2**64 - 1, sum(row[5] for row in others) & 2**64 - 1) == (
        header.bytes, header.blocks,
    )  # fmt: skip
    assert python.rows(python.unchanged_record(data), 0) == []


@pytest.mark.parametrize("codec", CODECS)
@settings(max_examples=15)
@given(data=records)
def test_no_flipped_bit_goes_unseen(codec, data):
    garbled = bytearray(data)
    for bit in range(8 * len(data)):
        garbled[bit >> 3] ^= 1 << (bit & 7)
        assert codec.index(bytes(garbled), True)[2] == 0, bit
        garbled[bit >> 3] ^= 1 << (bit & 7)


@pytest.mark.parametrize("codec", CODECS)
@settings(max_examples=15)
@given(data=records, more=records)
def test_a_cut_record_is_refused_and_those_before_it_are_not(codec, data, more):
    for cut in range(len(more)):
        found, _, good = codec.index(data + more[:cut], True)
        assert (len(found), good) == (1, len(data))


def inserted(blocks: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """The names of the blocks of one directory, in the order in which they are inserted, and as they are."""
    data = b"".join(blocks)
    attrs = python.index(data, False)[1]
    in_memory = functools.partial(sqlite3.connect, ":memory:", isolation_level=None)
    conn, handle = native.connect(_sqlite3.__file__, in_memory)
    with closing(conn):
        conn.execute("CREATE TABLE entry (dir, name, attr, size, blocks, mtime, ctime, ino, nlink, counted)")
        conn.execute("CREATE TABLE symlink (dir_id, name, target)")
        ids = struct.pack("<q", 7) * len(blocks)
        numbers = b"".join(struct.pack("<IIIIq", *attr, 0, i) for i, attr in enumerate(attrs))
        into = ("INSERT INTO entry SELECT * FROM smartscan_rows",
                "INSERT INTO symlink SELECT dir_id, name, attr_or_target FROM smartscan_rows")  # fmt: skip
        assert native.insert(handle, *into, data, offsets_of(data), ids, numbers) == 0
        found = [name for (name,) in conn.execute("SELECT CAST(name AS BLOB) FROM entry ORDER BY rowid")]
    offsets = [offset for (offset,) in struct.iter_unpack("<Q", offsets_of(data))]
    return found, [row[0] for offset in offsets for row in python.rows(data, offset)]


@needs_native
@given(st.data(), st.one_of(st.just(b""), names, dotted))
def test_blocks_of_one_directory_are_inserted_as_one_in_the_order_of_names(data, before):
    found, names = inserted(data.draw(st.lists(full_records(before), min_size=2, max_size=6)))
    assert found == sorted(names)


@needs_native
@given(st.lists(full_records(ascending=False), min_size=2, max_size=6))
def test_blocks_whose_names_do_not_ascend_are_inserted_as_well(blocks):
    found, names = inserted(blocks)
    assert sorted(found) == sorted(names)


def resealed(data: bytes, **changes: int) -> bytes:
    """Change the header of a record and let its hashes say that all is well."""
    return rehashed(header_of(data)._replace(**changes), data[python.HEADER_BYTES:])


CONTRADICTIONS: dict[str, tuple[int, ...]] = {
    "kind": (0, 2, 3, 4, 2**32 - 1), "flags": (2, 3, 8, 2**31), "state": (8, 2**32 - 1), "op": (6,),
    "n": (0, 1, 2, 9, 2**32 - 1), "files": (4, 2**63), "subdirs": (0, 2, 5, 2**32 - 1),
    "links": (0, 2), "symlinks": (0, 2, 2**31),
    "names_len": (0, 1, 2**32 - 1), "text_len": (0, 3, 5, 2**32 - 1), "path_len": (0, 100, 2**32 - 1),
    "length": (0, 8, 151, 2**63, 2**64 - 1), "magic": (0, 0x31445353),
    "known_id": (1, 2**63),
}  # fmt: skip


def three_entries() -> bytes:
    """A directory with a subdirectory, a link and a file that has two names."""
    zeros = [0, 0, 0]
    size = array("Q", [4096, 5, 4])
    entries = Entries([b"dir", b"file", b"link"], size, *[array(c, zeros) for c in "QqqQ"],
                      array("I", [2, 2, 1]), array("I", [0o040755, 0o100644, 0o120777]),
                      *[array("I", zeros)] * 2, [b"file"])
    return full_record(NONE._replace(flags=1, state=1), b"a/path", entries)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("field", CONTRADICTIONS)
def test_a_record_that_contradicts_itself_is_refused_though_its_hashes_fit(codec, field):
    data = three_entries()
    assert codec.index(resealed(data), True)[2] == len(data)
    for value in CONTRADICTIONS[field]:
        assert codec.index(resealed(data, **{field: value}), True) == ([], [], 0), value


NO_NAMES = b"", b".", b"..", b"a/b", b"/a", b"a/", b"a\0b"
NO_PATHS = b"/", b"/a", b"a/", b"a//b", b".", b"..", b"a/..", b"../a", b"a/./b", b"a\0b", b"a/b\0"


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("path", NO_PATHS)
def test_what_is_no_path_below_the_share_is_refused(codec, path):
    """Else a worker that was taken over could name one directory in two ways, which no row can be."""
    entries = Entries([b"a"], *[array(c, [1]) for c in "QQqqQIIII"], [])
    full = full_record(NONE._replace(flags=1), path, entries)
    for data in (full, python.unchanged_record(full), python.record(2, path, 1, 0, 5, 3, 0, b"", *[0] * 5)):
        assert codec.index(data, True)[2] == 0


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", NO_NAMES)
def test_what_is_no_name_of_an_entry_is_refused(codec, name):
    columns = [array(c, [1, 1]) for c in "QQqqQI"] + [array("I", [0o040755, 0o040755])]
    entries = Entries([name, b"z"], *columns, *[array("I", [1, 1])] * 2, [])
    full = full_record(NONE._replace(flags=1), b"dir", entries)
    for data in (full, python.unchanged_record(full)):
        assert codec.index(data, True)[2] == 0


@pytest.mark.parametrize("codec", CODECS)
def test_a_short_record_says_nothing_of_entries(codec):
    data = python.record(python.KIND_ERROR, b"path", 1, 0, 5, 3, 0, b"", 0, 0, 0, 0, 0)
    for field in ("n", "subdirs", "names_len"):
        assert codec.index(resealed(data, **{field: 1}), True)[2] == 0


def test_rows_of_a_torn_record_are_refused():
    data = three_entries()
    for at in (8, len(data), 2**60):
        with pytest.raises(ShardError):
            python.rows(data, at)
    with pytest.raises(ShardError):
        python.rows(data[:-8], 0)


# Keys


def key_in_c(name: bytes, size: int, mtime_ns: int, uid: int) -> tuple[bytes, ...]:
    """The keys that the C gives to one file."""
    values = zip("QQqqQIIII", (size, 0, mtime_ns, 0, 0, 1, 0o100644, uid, 0), strict=True)
    entries = Entries([name], *[array(code, [value]) for code, value in values], [])
    data = full_record(NONE._replace(flags=1), b"", entries)
    return tuple(key for _, key, *_ in sorted(native.measure(data, struct.pack("<Q", 0), 0)[0]))


@needs_native
@settings(max_examples=500)
@given(st.one_of(names, dotted), u64, i64, u32)
def test_both_count_a_file_under_the_same_keys(name, size, mtime_ns, uid):
    expected = kinds.keys(name, size, mtime_ns, uid)
    assert key_in_c(name, size, mtime_ns, uid) == expected
    assert kinds.size_class(size - 2**64 if size >> 63 else size) == expected[3], "as SQLite gives it back"


@pytest.mark.parametrize(
    ("name", "extension"),
    [(b"a.TXT", b"txt"), (b"a.tar.gz", b"gz"), (b".bashrc", b""), (b"..a.b", b"b"), (b"a.", b""),
     (b"...", b""), (b"a.b c", b""), (b"a.\xc9\xe9", b"\xc9\xe9"), (b"a." + b"x" * 16, b"x" * 16),
     (b"a." + b"x" * 17, b""),
     ("a.É".encode(), "É".encode()), (b"a.m4_-", b"m4_-")],
)  # fmt: skip
def test_extensions(name, extension):
    assert kinds.extension(name) == extension
    assert native is None or key_in_c(name, 0, 0, 0)[0] == extension


@given(st.integers(-(2**63), 2**63 - 1))
def test_months(mtime_ns):
    when = datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=mtime_ns // 1000)
    assert kinds.month(mtime_ns) == f"{when.year:04}-{when.month:02}".encode()


@pytest.mark.parametrize("mtime_ns", [2**63, 2**200, -(2**63) - 1, -(2**200)])
def test_times_beyond_the_end_count_for_the_last_month(mtime_ns):
    assert kinds.month(mtime_ns) == (b"2262-04" if mtime_ns > 0 else b"1677-09")


# The document


def test_the_layout_is_documented_as_it_is():
    text = (ROOT / "docs" / "shard.md").read_text("utf-8")
    fields = re.findall(r"^\| (\d+) \| ([ui]\d+) \| `(\w+)` \|", text, re.M)
    header = python._HEADER
    at, expected = 0, []
    codes = re.sub(r"(\d+)([A-Za-z])", lambda m: m[2] * int(m[1]), header.format.replace(" ", "")[1:])
    for name, code in zip(Header._fields, codes, strict=True):
        kind = {"I": "u32", "i": "i32", "Q": "u64"}[code]
        expected.append((str(at), kind, name))
        at += int(kind[1:]) // 8
    assert fields == expected
    assert at == header.size == 152
    columns = re.findall(r"^\| ([ui]\d+) \S n \| `(\w+)` \|", text, re.M)
    kinds_of = {"Q": "u64", "q": "i64", "I": "u32"}
    assert columns == [(kinds_of[c], n) for n, c in zip(python._COLUMNS, python._CODES, strict=True)]
    for number, name in [(1, "LAST"), (2, "UNCHANGED"), (4, "BIG")]:
        assert f"| {number} | `{name}` |" in text
        assert getattr(shard, name) == getattr(python, name) == number
    states = ("FOUND", "LISTED", "EXCLUDED", "DENIED", "TIMED_OUT", "IO_ERROR", "OTHER_MOUNT", "VANISHED")
    for number, name in enumerate(states):
        assert f"| {number} | `{name}` |" in text
        assert getattr(shard, name) == number
    for number, name in enumerate(("DIR", "ERROR", "END"), 1):
        assert f"| {number} | `{name}` |" in text
        assert getattr(shard, f"KIND_{name}") == getattr(python, f"KIND_{name}") == number


def test_the_c_has_the_same_numbers():
    source = (ROOT / "src" / "smartscan" / "_native.c").read_text("utf-8")
    body = re.search(r"typedef struct \{([^}]*)\} Header;", source)
    assert body
    declared: list[Any] = re.findall(r"\b(?:u?int(?:32|64)_t) ([^;]+);", body[1])
    assert [name for line in declared for name in line.split(", ")] == list(Header._fields)
    assert "BLOCK_NAMES 8192 " in source and twins.python_walk.BLOCK_NAMES == 8192
