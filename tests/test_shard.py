"""A shard is taken whole or refused; what is salvaged of an attempt and what is left of it make the tree."""

from __future__ import annotations

import itertools
import os
import random
from array import array
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartscan import shard
from smartscan.codec import python as codec
from smartscan.errors import ShardError
from smartscan.model import Root, Scope, join
from smartscan.shard import BIG, EXCLUDED, KIND_DIR, LAST, LISTED, Part, salvage, windows
from trees import Link, build
from twins import drive, opened, python_walk

TREE = {
    "a": {"b": {"f": 1}, "c": {"d": {}, "l": Link("x")}, "skip": {"inside": {}}},
    "e": {"g": 1, "h": {"i": {"j": {}}}}, "skip": {"f": 1}, "k": {},
}  # fmt: skip


def walked(path: Path, roots: list[Root] | None = None) -> list[bytes]:
    """Walk a tree, one directory per call."""
    with opened(path, python_walk, patterns=(b"skip",)) as walker:
        return drive(walker, roots, budget_ns=0)[0]


def sealed(folder: Path, data: bytes, number: int = 1) -> Path:
    part = Part(folder, number)
    part.write(data)
    return folder / part.seal()


def read(path: Path, **options: bool) -> list[shard.Record]:
    return [r for window in windows(path, **options) for r in window.records]


def refused(path: Path) -> bool:
    try:
        for _ in windows(path, subdirs=True):
            pass
    except ShardError:
        return True
    return False


@pytest.fixture
def small(tmp_path: Path) -> bytes:
    """A small shard that is whole, with an end."""
    (tmp_path / "share").mkdir()
    build(tmp_path / "share", {"d": {"f": 1}, "l": Link("t"), "skip": {}})
    return sealed(tmp_path, b"".join(walked(tmp_path / "share"))).read_bytes()


# Whole or not at all


def test_what_is_sealed_is_read(tmp_path):
    (tmp_path / "share").mkdir()
    build(tmp_path / "share", TREE)
    data = b"".join(walked(tmp_path / "share"))
    path = sealed(tmp_path, data)
    assert path.name == "000001.shard"
    assert [p.suffix for p in tmp_path.iterdir() if p.is_file()] == [".shard"]
    buffers, names = [], []
    for window in windows(path, subdirs=True):
        buffers.append(bytes(window.buffer))
        names += [row[0] for r in window.records if r.path == b"a/c" for row in shard.rows(window, r.offset)]
    assert buffers == [data]
    assert names == [b"d", b"l"]
    assert read(sealed(tmp_path, b"", 2)) == []


def test_no_flipped_bit_is_accepted(tmp_path, small):
    path = tmp_path / "garbled.shard"
    garbled = bytearray(small)
    accepted = []
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(fd, garbled)
    for bit in range(8 * len(small)):
        os.pwrite(fd, bytes([garbled[bit >> 3] ^ 1 << (bit & 7)]), bit >> 3)
        if not refused(path):
            accepted.append(bit)
        os.pwrite(fd, garbled[bit >> 3:(bit >> 3) + 1], bit >> 3)
    os.close(fd)
    assert accepted == []
    assert not refused(path), "it was the bits"


def test_no_cut_is_accepted(tmp_path, small):
    path = tmp_path / "cut.shard"
    path.write_bytes(small)
    for length in range(len(small) - 1, -1, -1):
        os.truncate(path, length)
        assert refused(path), length


@pytest.mark.parametrize("more", [b"\0", bytes(8), b"x" * 144, shard.record(shard.KIND_END, b"")])
def test_nothing_may_follow_the_end(tmp_path, small, more):
    path = tmp_path / "longer.shard"
    path.write_bytes(small + more)
    assert refused(path)
    path.write_bytes(more + small)
    assert refused(path)
    path.write_bytes(small + small)
    assert refused(path)


def test_no_whole_record_may_be_missing(tmp_path, small):
    rows, _, _ = codec.index(small, False)
    starts = [row[0] for row in rows] + [len(small)]
    for start, end in itertools.pairwise(starts):
        path = tmp_path / "short.shard"
        path.write_bytes(small[:start] + small[end:])
        assert refused(path)


def test_what_cannot_be_read_is_refused(tmp_path, small):
    path = tmp_path / "000009.shard"
    with pytest.raises(ShardError, match=r"000009\.shard: No such file"):
        list(windows(path))
    path.symlink_to(tmp_path / "000001.shard")
    assert refused(path)
    assert refused(tmp_path)


def test_a_shard_of_several_windows(tmp_path, monkeypatch):
    monkeypatch.setattr(shard, "WINDOW_BYTES", 16 << 20)
    reason = "x" * 300_000
    one = shard.record(KIND_DIR, b"p", state=EXCLUDED, reason=reason)
    path = sealed(tmp_path, one * 120)
    assert len(list(windows(path))) == 3
    assert len(read(path)) == 120
    data = path.read_bytes()
    for at in (1_000_000, 17_000_000, 35_000_000):
        path.write_bytes(data[:at] + b"y" + data[at + 1:])
        with pytest.raises(ShardError, match=f"damaged at byte {at // len(one) * len(one)}"):
            list(windows(path))


@pytest.mark.parametrize("length", [0, 8, 2**30 + 8, 2**63, 2**64 - 8])
def test_a_length_that_nobody_wrote_does_not_make_the_reader_read_it_all(tmp_path, length):
    path = tmp_path / "endless.shard"
    head = shard.record(KIND_DIR, b"p", state=EXCLUDED)
    path.write_bytes(head[:8] + length.to_bytes(8, "little") + head[16:])
    os.truncate(path, 1 << 40)  # a hole: reading it all would take hours
    with pytest.raises(ShardError, match="damaged at byte 0"):
        list(windows(path))


# Salvage


def dirs_of(records: Iterable[bytes]) -> dict[bytes, tuple[bytes, ...]]:
    """Every directory of a walk, with its subdirectories; those not entered have none."""
    found: dict[bytes, tuple[bytes, ...]] = {}
    for row in codec.index(b"".join(records), True)[0]:
        r = shard.Record._make(row)
        found[r.path] = (*found.get(r.path, ()), *(join(r.path, s) for s in r.subdir_names or ()))
    return found


def below(tree: dict[bytes, tuple[bytes, ...]], top: bytes) -> list[bytes]:
    stack, all_ = [top], []
    while stack:
        path = stack.pop()
        all_.append(path)
        stack += tree[path]
    return all_


def check_covered(tree: dict[bytes, tuple[bytes, ...]], left: tuple[Root, ...], ended: list[bytes],
                  given: list[bytes], tops: tuple[bytes, ...] = (b"",)) -> None:
    """See that what ended, what was given back and what is left make the tree, each directory once.

    As the controller does: a subdirectory of a FILES root that is decided or a root elsewhere is left out.
    """
    times = Counter(ended)
    assert max(times.values(), default=1) == 1
    roots = {r.path for r in left}
    assert len(roots) == len(left)
    for root in [*left, *(Root(p) for p in given)]:
        if root.scope is Scope.SUBTREE:
            times.update(below(tree, root.path))
            continue
        times[root.path] += 1
        for sub in tree[root.path]:
            if sub not in ended and sub not in given and sub not in roots:
                times.update(below(tree, sub))
    expected = {p for top in tops for p in below(tree, top)}
    assert {p: n for p, n in times.items() if n != 1} == {}
    assert times.keys() == expected


def ended_in(folder: Path, names: Iterable[str]) -> list[bytes]:
    return [r.path for name in names for r in read(folder / name) if r.kind == KIND_DIR and r.flags & LAST]


def test_a_part_cut_anywhere_gives_its_whole_directories_and_the_rest_is_left(tmp_path):
    (tmp_path / "share").mkdir()
    build(tmp_path / "share", TREE)
    calls = walked(tmp_path / "share")
    data, tree = b"".join(calls), dirs_of(calls)
    starts = [row[0] for row in codec.index(data, False)[0]] + [len(data)]
    end = shard.record(shard.KIND_END, b"", dir_digest=len(data))
    for cut in range(len(data + end) + 1):
        folder = tmp_path / "attempt"
        folder.mkdir()
        (folder / "000001.part").write_bytes((data + end)[:cut])
        got = salvage(folder, [Root(b"")], [])
        whole = max((s for s in starts if s <= cut), default=0)
        if not whole:
            assert (got.shards, got.leftover, list(folder.iterdir())) == ((), (Root(b""),), [])
        else:
            assert got.shards == ("000001.shard",)
            assert (folder / "000001.shard").read_bytes()[:whole] == data[:whole]
            ended = ended_in(folder, got.shards)
            assert len(ended) == starts.index(whole) == got.dirs
            check_covered(tree, got.leftover, ended, [])
            assert not any(r.path.endswith(b"skip") for r in got.leftover), "nobody enters what is excluded"
            assert salvage(folder, [Root(b"")], []) == got, "once more changes nothing"
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    assert got.leftover == ()


def full(path: bytes, subdirs: Iterable[bytes], *, flags: int = LAST, block: int = 0) -> bytes:
    """The record of a directory with these subdirectories and a file."""
    names = sorted({*subdirs, b"~file"})
    n = len(names)
    modes = [0o100644 if name == b"~file" else 0o040755 for name in names]
    zeros = [array(c, [0] * n) for c in "QQqqQI"]
    entries = codec.Entries(names, *zeros, array("I", modes), *[array("I", [0] * n)] * 2, [])
    return codec.full_record(codec.NONE._replace(flags=flags, state=LISTED, block=block), path, entries)


@st.composite
def shapes(draw: st.DrawFn) -> dict[bytes, tuple[bytes, ...]]:
    """A tree of directories, in the order of a walk."""
    tree: dict[bytes, tuple[bytes, ...]] = {}
    todo = [b""]
    for number in draw(st.lists(st.integers(0, 3), max_size=14)):
        if not todo:
            break
        path = todo.pop(draw(st.integers(0, len(todo) - 1)))
        tree[path] = tuple(join(path, b"%d" % i) for i in range(number))
        todo += tree[path]
    return tree | dict.fromkeys(todo, ())


@settings(max_examples=300, deadline=None)
@given(shapes(), st.randoms(use_true_random=False))
def test_whatever_is_lost_the_tree_is_covered_once(tmp_path_factory, tree, rng: random.Random):
    folder = tmp_path_factory.mktemp("attempt")
    files = rng.random() < 0.3  # the root is listed only
    order = [b""] if files else list(tree)[:rng.randint(0, len(tree))]
    begun = set(order)
    queue = [s for p in order for s in tree[p] if s not in begun] if not files else []
    given_back = [p for p in queue if rng.random() < 0.3]
    parts: dict[int, list[bytes]] = {}
    large = {p for p in order if rng.random() < 0.2}
    for path in order:
        names = [s.rpartition(b"/")[2] for s in tree[path]]
        if path in large:
            number = 100 + order.index(path)
            half = len(names) // 2
            blocks = enumerate((names[:half], names[half:]))
            parts[number] = [full(path, some, flags=BIG, block=i) for i, some in blocks]
            if rng.random() < 0.6:
                parts[number].append(shard.record(KIND_DIR, path, flags=LAST | BIG, state=LISTED, block=2))
        else:
            parts.setdefault(rng.randint(1, 3), []).append(full(path, names))
    for number, records in parts.items():
        data = b"".join(records)
        if number >= 100 and len(records) < 3:
            (folder / f"{number:06}.part").write_bytes(data[:rng.randint(0, len(data))])
        elif rng.random() < 0.5:
            whole = sealed(folder, data, number)
            if rng.random() < 0.3:  # a disk that lies
                whole.write_bytes(whole.read_bytes()[:-9])
        else:
            (folder / f"{number:06}.part").write_bytes(data[:rng.randint(0, len(data))])
    top = Root(b"", Scope.FILES if files else Scope.SUBTREE)
    got = salvage(folder, [top], [Root(p) for p in given_back])
    check_covered(tree, got.leftover, ended_in(folder, got.shards), given_back)


def test_several_roots_of_which_one_is_in_another(tmp_path):
    build(tmp_path, {"a": {"b": {"c": {}}, "d": {}}, "e": {}})
    calls = walked(tmp_path)
    tree = dirs_of(calls)
    roots = [Root(b"a", Scope.FILES), Root(b"a/b"), Root(b"e")]
    for keep in range(5):
        folder = tmp_path / f"attempt-{keep}"
        folder.mkdir()
        order = [b"a", b"a/b", b"a/b/c", b"e"][:keep]
        records = {r[2]: full(r[2], [s.rpartition(b"/")[2] for s in tree[r[2]]])
                   for r in codec.index(b"".join(calls), False)[0]}  # fmt: skip
        (folder / "000001.part").write_bytes(b"".join(records[p] for p in order))
        got = salvage(folder, roots, [])
        check_covered(tree, got.leftover, ended_in(folder, got.shards), [], (b"a", b"e"))


def test_a_large_directory_that_was_not_listed_to_its_end_is_listed_again_but_not_entered_twice(tmp_path):
    (tmp_path / "000001.part").write_bytes(full(b"", [b"a"]))
    blocks = full(b"a", [b"x", b"y"], flags=BIG), full(b"a", [b"z"], flags=BIG, block=1)
    (tmp_path / "000002.part").write_bytes(b"".join(blocks))
    (tmp_path / "000003.part").write_bytes(full(b"a/x", [b"in"]))
    got = salvage(tmp_path, [Root(b"")], [Root(b"a/y")])
    assert got.shards == ("000001.shard", "000003.shard")
    assert got.leftover == (Root(b"a", Scope.FILES), Root(b"a/x/in"))
    assert not (tmp_path / "000002.part").exists()


def test_stuck_paths_are_not_left(tmp_path):
    (tmp_path / "000001.part").write_bytes(full(b"", [b"a", b"b"]))
    assert salvage(tmp_path, [Root(b"")], [], [b"a"]).leftover == (Root(b"b"),)
    assert salvage(tmp_path, [Root(b"x")], [], [b"x"]).leftover == (Root(b"a"), Root(b"b"))


def test_errors_are_kept(tmp_path):
    error = shard.record(shard.KIND_ERROR, b"a/file", err=5, op=3)
    (tmp_path / "000001.part").write_bytes(error + full(b"a", [])[:-1])
    got = salvage(tmp_path, [Root(b"a")], [])
    assert (got.dirs, got.leftover) == (0, (Root(b"a"),))
    (kept,) = read(tmp_path / "000001.shard")
    assert (kept.path, kept.err, kept.op) == (b"a/file", 5, 3)


# Small files


def test_what_was_given_back_is_read_in_order(tmp_path):
    roots = [Root(b"\xff", Scope.FILES), Root(b"b")]
    for number, root in enumerate(roots, 1):
        data = {"roots": [root.to_json()]}
        shard.write_json(tmp_path / f"leftover-{number:06d}.json", data, durable=number == 1)
    assert shard.leftover_files(tmp_path) == [
        ("leftover-000001.json", (roots[0],)), ("leftover-000002.json", (roots[1],)),
    ]  # fmt: skip


def test_a_full_disk_leaves_a_tail_that_is_cut_off(tmp_path):
    import resource
    import signal

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    data = full(b"", [b"a"])
    part = Part(tmp_path, 1)
    part.write(data)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(data) + 100, limits[1]))
    try:
        with pytest.raises(OSError):
            part.write(data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert salvage(tmp_path, [Root(b"")], []).leftover == (Root(b"a"),)
    assert len(read(tmp_path / "000001.shard")) == 1


def test_a_part_that_becomes_a_link_while_it_is_salvaged_leads_nowhere(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    part, other = tmp_path / "folder" / "000001.part", tmp_path / "other"
    part.write_bytes(full(b"", [b"a"]))
    other.write_text("of somebody else")
    whole = shard.windows

    def swapped(path, **options):
        yield from whole(path, **options)
        path.unlink()
        path.symlink_to(other)

    monkeypatch.setattr(shard, "windows", swapped)
    with pytest.raises(OSError, match="symbolic links"):
        salvage(tmp_path / "folder", [Root(b"")], [])
    assert other.read_text() == "of somebody else"
