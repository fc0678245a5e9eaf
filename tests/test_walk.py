"""Both walkers give the same records, byte for byte, and these say of a tree what find(1) says of it."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from smartscan import walk
from smartscan.codec import python as codec
from smartscan.model import Op, Root, Scope, join
from smartscan.shard import (
    BIG,
    DENIED,
    EXCLUDED,
    IO_ERROR,
    KIND_DIR,
    KIND_ERROR,
    LAST,
    LISTED,
    OTHER_MOUNT,
    TIMED_OUT,
    UNCHANGED,
    VANISHED,
)
from trees import Hard, Link, Listed, build, churning, find_listing, odd_tree, random_trees
from twins import WALKERS, Seen, drive, native, needs_native, opened, python_walk, take_apart, walk_all
from users import ordinary_user

TYPES = {0o10: "f", 0o04: "d", 0o12: "l", 0o01: "p", 0o14: "s", 0o02: "c", 0o06: "b"}
both = pytest.mark.parametrize("door", WALKERS)


def as_find_says(row: tuple[Any, ...]) -> tuple[Any, ...]:
    mode, uid, gid, size, blocks, mtime_ns, ctime_ns, ino, nlink, target = row
    kind = TYPES[mode >> 12]
    return (kind, size, blocks, mtime_ns, ctime_ns, ino, nlink, mode & 0o7777, uid, gid, target)


def clamped(entry: Listed) -> tuple[Any, ...]:
    times = [max(min(t, 2**63 - 1), -(2**63)) for t in (entry.mtime_ns, entry.ctime_ns)]
    return (*entry[:3], *times, *entry[5:11])


def check(path: Path, seen: Seen, *, without: tuple[bytes, ...] = (), **options: Any) -> None:
    """Compare a walk with find(1), entry by entry."""
    found = find_listing(path, **options)
    assert seen.states.keys() >= {p for p, e in found.items() if e.type == "d"}
    del found[b""]
    got = {p: as_find_says(row) for p, row in seen.entries.items() if p not in without}
    assert got == {p: clamped(e) for p, e in found.items() if p not in without}


def walk_twice(path: Path, roots: list[Root] | None = None, **options: Any) -> bytes:
    """Walk with both, and see that they agree; gives the records."""
    calls = []
    for door in (python_walk, native):
        if door is not None:
            with opened(path, door, **options) as walker:
                calls.append(drive(walker, roots))
    assert calls[0] == calls[-1]
    return b"".join(calls[0][0])


# Trees


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(random_trees())
def test_any_tree_is_seen_as_find_sees_it(tree):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        build(path, tree)
        data = walk_twice(path)
        check(path, take_apart(data))


def test_everything_odd_is_seen_as_find_sees_it(tmp_path):
    with odd_tree(tmp_path / "share", big=False) as odd:
        seen = take_apart(walk_twice(odd.path))
        check(odd.path, seen, without=(odd.bind,) if odd.bind else ())
        assert seen.entries[odd.far][3] == len(b"the end")
        for path, size in odd.huge.items():
            assert seen.entries[path][3] == size
        if odd.bind:
            assert seen.states[odd.bind] == OTHER_MOUNT


@both
def test_any_cut_of_a_walk_into_calls_gives_the_same(tmp_path, door):
    build(tmp_path, {"a": {"b": {"c": {}}, "f": 1}, "d": {"e": {"f": 5}}, "g": Link("a")})
    with opened(tmp_path, door) as walker:
        whole, _ = drive(walker)
        steps, _ = drive(walker, budget_ns=0)
    assert len(whole) == 1
    assert len(steps) == 6, "one directory each"
    assert b"".join(steps) == whole[0]


@both
def test_digests_depend_on_nothing_but_the_directory(tmp_path, door):
    build(tmp_path, {"a": {"b": {"c": 1}}})
    first = walk_all(tmp_path, door).records
    assert [r.dir_digest for r in walk_all(tmp_path, door).records] == [r.dir_digest for r in first]
    (tmp_path / "a" / "b" / "c").write_bytes(b"xy")
    then = {r.path: r.dir_digest for r in walk_all(tmp_path, door).records}
    assert {r.path for r in first if then[r.path] != r.dir_digest} == {b"a/b"}


# What is known already


def known(seen: Seen) -> bytes:
    last = [r for r in seen.records if r.kind == KIND_DIR and r.flags & LAST]
    return codec.known([(r.path, r.dir_digest, number_of(r.path)) for r in last])


def number_of(path: bytes) -> int:
    return len(path) + 7


def test_what_has_the_digest_it_had_is_not_told_again(tmp_path):
    same = {"file": 5, "sub": {"x": 1}, "other": {}, "l": Link("file")}
    build(tmp_path, {"same": same, "new": {"file": 1}, "no-subs": {"f": 9}})
    before = take_apart(walk_twice(tmp_path))
    (tmp_path / "new" / "file").write_bytes(b"longer")
    data = walk_twice(tmp_path, known=known(before))
    after = take_apart(data)
    flags = {r.path: r.flags for r in after.records}
    assert {p for p, f in flags.items() if f == LAST} == {b"new", b"same/other"}, "changed, or empty"
    assert {p for p, f in flags.items() if f == LAST | UNCHANGED} == {b"", b"same", b"same/sub", b"no-subs"}
    old, new = ({r.path: r for r in seen.records} for seen in (before, after))
    for path in (b"", b"same", b"no-subs"):
        assert new[path].subdir_names == old[path].subdir_names
        assert new[path].known_id == number_of(path)
        assert new[path]._replace(offset=0, flags=LAST, text=b"", known_id=0) == old[path]._replace(offset=0)
    assert len(data) < len(walk_twice(tmp_path))


@both
def test_digests_may_come_while_it_walks(tmp_path, door):
    build(tmp_path, {"a": {"file": 5}, "b": {"file": 5}})
    digests = known(walk_all(tmp_path, door))
    flags = {}
    with opened(tmp_path, door) as walker:
        for path in (b"a", b"b"):
            (data,), _ = drive(walker, [Root(path)])
            flags |= {r.path: r.flags for r in take_apart(data).records}
            walker.know(digests)
    assert flags == {b"a": LAST, b"b": LAST | UNCHANGED}


def test_a_digest_under_another_path_is_none(tmp_path):
    build(tmp_path, {"a": {"file": 5}, "b": {}})
    digests = {r.path: r.dir_digest for r in walk_all(tmp_path, python_walk).records}
    wrong = codec.known([(b"b", digests[b"a"], 1), (b"a", 1, 2)]) + b"tail"
    seen = take_apart(walk_twice(tmp_path, known=wrong))
    assert not any(r.flags & UNCHANGED for r in seen.records)


def test_where_sizes_will_do_only_sums_and_names_of_directories_are_told(tmp_path):
    twice = {"f": 9, "g": Hard("twice/f"), "sub": {}}
    build(tmp_path, {"plain": {"f": 5, "sub": {"x": 1}, "l": Link("f")}, "twice": twice, "none": {}})
    with_all = {r.path: r for r in take_apart(walk_twice(tmp_path)).records}
    seen = take_apart(walk_twice(tmp_path, sizes_only=True))
    told = {r.path: r for r in seen.records}
    left_out = {b"", b"plain", b"plain/sub"}
    assert {p for p, r in told.items() if r.flags & UNCHANGED} == left_out
    assert set(seen.entries) == {b"twice/f", b"twice/g", b"twice/sub"}, "names of one file count once"
    for path, r in told.items():
        before = with_all[path]
        assert r.subdir_names == before.subdir_names
        assert r._replace(offset=0, flags=LAST) == before._replace(offset=0)


@pytest.mark.root
def test_where_sizes_will_do_a_directory_that_cannot_be_looked_at_is_told(tmp_path):
    build(tmp_path, {"no-search": {"sub": {"f": 1}}})
    (tmp_path / "no-search").chmod(0o744)
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(0o755)
    with ordinary_user():
        seen = take_apart(walk_twice(tmp_path, sizes_only=True))
    assert set(seen.entries) == {b"no-search/sub"}


# What is not entered


def test_patterns(tmp_path):
    build(tmp_path, {
        ".snapshot": {"f": 1}, "a": {".snapshot": {"f": 1}, "cache": {"f": 1}, "b": {"cache": {"f": 1}}},
        "cache": {"kept": 1}, "file.tmp": 1, "x.tmp": {"f": 1}, b"\xff.tmp": {"f": 1}, "[x]": {"f": 1},
    })  # fmt: skip
    patterns = (b".snapshot", b"/a/*cache", b"*.tmp", b"[[]x]")
    seen = take_apart(walk_twice(tmp_path, patterns=patterns))
    excluded = {r.path: r.text for r in seen.records if r.state == EXCLUDED}
    assert excluded == {
        b".snapshot": b".snapshot", b"a/.snapshot": b".snapshot", b"a/cache": b"/a/*cache",
        b"a/b/cache": b"/a/*cache", b"x.tmp": b"*.tmp", b"\xff.tmp": b"*.tmp", b"[x]": b"[[]x]",
    }  # fmt: skip
    assert {p for p in seen.entries if p.endswith((b"/f", b"kept"))} == {b"cache/kept"}
    assert seen.entries[b"file.tmp"], "only directories are left out"
    assert seen.entries[b"a/cache"], "and are entries all the same"
    paths = [r.path for r in seen.records]
    for path in excluded:
        assert paths.index(path) < paths.index(path.rpartition(b"/")[0]), "before the directory that holds it"


def test_a_pattern_with_a_slash_matches_beyond_path_max(tmp_path):
    names = [b"n%03d" % i + b"x" * 200 for i in range(25)]
    tree: dict[bytes, Any] = {b"cache": {b"f": 1}, b"kept": {b"f": 1}}
    for name in reversed(names):
        tree = {name: tree}
    try:
        build(tmp_path, tree)
        above = b"/".join(names)
        assert len(above) > 4096
        seen = take_apart(walk_twice(tmp_path, patterns=(b"*/cache",)))
        assert seen.states[above + b"/cache"] == EXCLUDED
        assert above + b"/kept/f" in seen.entries
        assert above + b"/cache/f" not in seen.entries
        assert take_apart(walk_twice(tmp_path, [Root(above + b"/kept")])).states == {above + b"/kept": LISTED}
    finally:
        subprocess.run(["rm", "-rf", tmp_path / os.fsdecode(names[0])], check=True)


@pytest.mark.root
def test_one_file_system(tmp_path):
    with odd_tree(tmp_path / "share", big=False) as odd:
        seen = take_apart(walk_twice(odd.path, one_file_system=True))
        states = {r.path: r.text for r in seen.records if r.state == OTHER_MOUNT}
        loop = b"loop: the same directory as one above it"
        assert states == {odd.inside: b"--one-file-system", odd.bind: loop}
        assert join(odd.inside, b"file") not in seen.entries
        check(odd.path, seen, xdev=True, without=(odd.bind,))
        whole = take_apart(walk_twice(odd.path))
        assert join(odd.inside, b"folder/file") in whole.entries


@pytest.mark.root
@both
def test_a_loop_is_seen_from_any_root(tmp_path, door):
    with odd_tree(tmp_path / "share", big=False) as odd:
        with opened(odd.path, door) as walker:
            for root in (b"mounts", b"mounts/bind"):
                seen = take_apart(b"".join(drive(walker, [Root(root)])[0]))
                assert seen.states[b"mounts/bind"] == OTHER_MOUNT
                assert not any(p.startswith(b"mounts/bind/") for p in seen.states)


@pytest.mark.root
def test_what_the_kernel_makes_up_is_not_entered(tmp_path):
    build(tmp_path, {"proc": {}, "plain": {"f": 1}})
    subprocess.run(["mount", "-t", "proc", "proc", tmp_path / "proc"], check=True)
    try:
        seen = take_apart(walk_twice(tmp_path))
        assert seen.states == {b"": LISTED, b"proc": OTHER_MOUNT, b"plain": LISTED}
        assert {r.text for r in seen.records if r.state == OTHER_MOUNT} == {b"pseudo file system"}
    finally:
        subprocess.run(["umount", tmp_path / "proc"], check=True)


@both
def test_the_depth_limit(tmp_path, door):
    build(tmp_path, {"a": {"b": {"c": {"d": {}}}}})
    seen = walk_all(tmp_path, door, depth=2)
    assert seen.states == {b"": LISTED, b"a": LISTED, b"a/b": LISTED, b"a/b/c": IO_ERROR}
    (record,) = [r for r in seen.records if r.state == IO_ERROR]
    assert (record.err, record.text) == (errno.ELOOP, b"deeper than the depth limit")


# What cannot be read


@pytest.mark.root
def test_denied_directories_are_data(tmp_path):
    with odd_tree(tmp_path / "share", big=False) as odd:
        os.chmod(odd.path / "denied" / "no-read", 0o755)
        build(odd.path / "denied" / "no-read", {"open": {"file": 1}})
        os.chmod(odd.path / "denied" / "no-read", 0o111)
        calls = []
        for door in (python_walk, native):
            if door is None:
                continue
            with opened(odd.path, door) as walker, ordinary_user():
                calls.append(b"".join(drive(walker, [Root(b"denied"), Root(b"denied/no-read/open")])[0]))
        assert calls[0] == calls[-1]
        seen = take_apart(calls[0])
        assert seen.states == {
            b"denied": LISTED, b"denied/nothing": DENIED, b"denied/no-read": DENIED,
            b"denied/no-search": LISTED, b"denied/no-search/folder": DENIED, b"denied/no-read/open": LISTED,
        }  # fmt: skip
        own = {r.path: r.own_blocks for r in seen.records}
        found = find_listing(odd.path)
        assert own[b"denied/nothing"] == found[b"denied/nothing"].blocks, "its parent could be asked"
        errors = {r.path: (r.err, r.op) for r in seen.records if r.kind == KIND_ERROR}
        inside = (b"denied/no-search/file", b"denied/no-search/folder")
        assert errors == dict.fromkeys(inside, (errno.EACCES, Op.STAT))
        assert seen.entries[b"denied/no-search/file"][0] == codec.UNKNOWN | 0o100000
        assert seen.entries[b"denied/no-search/folder"][0] == codec.UNKNOWN | 0o040000


@both
def test_roots_that_are_not_there_or_no_directories_have_vanished(tmp_path, door):
    outside = tmp_path / "outside"
    build(tmp_path, {"outside": {"secret": {"file": 1}}, "share": {"file": 1, "dir": {}}})
    (tmp_path / "share" / "out").symlink_to(outside)
    (tmp_path / "share" / "up").symlink_to("..")
    roots = [b"gone", b"file", b"out", b"out/secret", b"up/outside"]
    roots += [b"x" * 300, b"y" * 5000]
    with opened(tmp_path / "share", door) as walker:
        seen = take_apart(b"".join(drive(walker, [Root(root) for root in roots])[0]))
        above = b"".join(drive(walker, [Root(b"dir/../../outside")])[0])
    assert above and b"secret" not in above  # which no reader would take in
    assert not seen.entries
    assert {seen.states[root] for root in roots[:5]} == {VANISHED}
    assert set(seen.states.values()) == {VANISHED, IO_ERROR}


@both
def test_directories_that_come_and_go_stop_nobody(tmp_path, door):
    build(tmp_path, {"still": {"file": 1, "deep": {"x": {}}}})
    until = time.monotonic() + 2
    walks = 0
    with churning(tmp_path):
        while time.monotonic() < until:
            seen = walk_all(tmp_path, door)
            walks += 1
            assert {b"", b"still", b"still/deep", b"still/deep/x"} <= seen.states.keys()
            assert set(seen.states.values()) <= {LISTED, VANISHED}
            assert not [r for r in seen.records if r.kind == KIND_ERROR]
    assert walks > 3


# Large directories


def many(count: int) -> dict[bytes, Any]:
    folder: dict[bytes, Any] = {b"inside": {}, b"file": 1}
    return {b"%x" % (i * 2654435761 % 2**32): 0 if i % 500 else folder for i in range(count)}


@pytest.mark.parametrize("count", [8191, 8192, 20_003])
def test_large_directories_come_in_blocks(tmp_path, count):
    tree = many(count)
    build(tmp_path, {"large": tree})
    seen = take_apart(walk_twice(tmp_path))
    blocks = [r for r in seen.records if r.path == b"large"]
    check(tmp_path, seen)
    if count < 8192:
        assert [(r.flags, r.n) for r in blocks] == [(LAST, count)]
        return
    assert all(r.flags == BIG and r.state == LISTED and r.n >= 1 for r in blocks)
    assert [r.block for r in blocks] == list(range(len(blocks)))
    assert sum(r.n for r in blocks) == count
    assert sum(r.subdirs for r in blocks) == sum(isinstance(node, dict) for node in tree.values())
    assert {r.dir_digest for r in blocks} == {0}, "only the whole has one"


@both
@pytest.mark.parametrize("count", [3, 9000])
def test_the_subdirectories_of_a_files_root_come_back(tmp_path, door, count):
    build(tmp_path, {"large": many(count), "other": {}})
    with opened(tmp_path, door, patterns=(b"0",)) as walker:
        calls, left = drive(walker, [Root(b"large", Scope.FILES)])
    seen = take_apart(b"".join(calls))
    assert len(seen.entries) == count
    dirs = {p for p, row in seen.entries.items() if row[0] & 0o170000 == 0o040000}
    assert {r.path for r in left} == dirs - {b"large/0"}
    assert all(r.scope is Scope.SUBTREE for r in left)
    assert {p for p, s in seen.states.items() if s == EXCLUDED} == {b"large/0"}


# Slots, orders, tokens


@both
def test_slots_tell_what_was_seen(tmp_path, door):
    build(tmp_path, {"a": {"f": 1000, "g": Hard("a/f")}, "b": {}})
    shared = bytearray(walk.SLOT_BYTES)
    with opened(tmp_path, door, shared=shared) as walker:
        drive(walker)
    slot = walk.Slot(shared, 0)
    blocks = os.stat(tmp_path / "a" / "f").st_blocks
    assert (slot.entries, slot.dirs, slot.bytes, slot.blocks) == (4, 3, 2000, 2 * blocks)
    assert (slot.op, slot.path, slot.name, slot.full) == (Op.IDLE, b"", b"", b"")
    assert slot.beat > 10


@needs_native
def test_slots_are_alike(tmp_path):
    with odd_tree(tmp_path / "share", big=False) as odd:
        slots = []
        for door in (python_walk, native):
            shared = bytearray(walk.SLOT_BYTES)
            with opened(odd.path, door, shared=shared) as walker:
                drive(walker, [Root(b"names"), Root(b"links"), Root(b"deep")])
            slots.append(bytes(shared))
        assert slots[0] == slots[1], "to the last name that was touched"


@both
def test_avoided_paths_are_never_touched(tmp_path, door):
    build(tmp_path, {"a": {"f": 1, "d": {"x": 1}, "l": Link("f")}, "b": {"x": 1}})
    with opened(tmp_path, door) as walker:
        for path in (b"a/f", b"a/d", b"b"):
            walker.avoid(path, walk.AVOID)
        seen = take_apart(b"".join(drive(walker, [Root(b""), Root(b"b")])[0]))
    assert seen.states == {b"": LISTED, b"a": LISTED}
    modes = {p: row[0] for p, row in seen.entries.items()}
    assert (modes[b"a/f"], modes[b"a/d"]) == (codec.UNKNOWN | 0o100000, codec.UNKNOWN | 0o040000)
    assert modes[b"b"] == codec.UNKNOWN | 0o040000
    assert not [r for r in seen.records if r.kind == KIND_ERROR], "who found it stuck says so"


@both
def test_held_paths_are_named_and_not_entered(tmp_path, door):
    build(tmp_path, {"a": {"f": 1, "d": {"x": 1}}, "b": {"x": 1}})
    with opened(tmp_path, door) as walker:
        for path in (b"a/d", b"b"):
            walker.avoid(path, walk.HOLD)
        seen = take_apart(b"".join(drive(walker, [Root(b"")])[0]))
        assert seen.states == {b"": LISTED, b"a": LISTED}
        assert {p for p, row in seen.entries.items() if row[0] & codec.UNKNOWN} == set()
        assert take_apart(b"".join(drive(walker, [Root(b"b")])[0])).states == {b"b": LISTED}


@both
def test_a_hushed_directory_gives_its_names_and_no_more(tmp_path, door):
    build(tmp_path, {"a": {"f": 1, "d": {"x": 1}}, "b": {"x": 1}})
    with opened(tmp_path, door) as walker:
        walker.avoid(b"a", walk.HUSH)
        seen = take_apart(b"".join(drive(walker, [Root(b"")])[0]))
    assert seen.states == {b"": LISTED, b"a": TIMED_OUT, b"a/d": LISTED, b"b": LISTED}
    assert {p for p, row in seen.entries.items() if row[0] & codec.UNKNOWN} == {b"a/f", b"a/d"}
    assert not [r for r in seen.records if r.kind == KIND_ERROR]


@both
def test_stop_ends_a_call_at_the_next_directory(tmp_path, door):
    build(tmp_path, {"a": {}, "b": {}})
    with opened(tmp_path, door) as walker:
        walker.stop()
        records, rest, left, large = walker.walk([walk.job(Root(b""))], 0, 10**10)
    assert len(take_apart(records).records) == 1
    assert [walk.job_root(t) for t in rest] == [Root(b"b"), Root(b"a")]
    assert (left, large) == ([], None)


@both
def test_what_is_no_job_and_no_slot_is_refused(tmp_path, door):
    with opened(tmp_path, door) as walker:
        short, long = struct.pack("<II", 1, 0) + b"x" * 15, struct.pack("<II", 2**32 - 1, 0)
        for token in (b"", b"1234567", short, long):
            with pytest.raises(ValueError, match="not a job"):
                walker.walk([token], 0, 0)
        for slot in (-1, 1, 2**40):
            with pytest.raises(IndexError):
                walker.walk([walk.job(Root(b""))], slot, 0)


@both
def test_names_that_end_in_the_middle_are_taken_as_they_are(tmp_path, door):
    build(tmp_path, {"a": 1, "b": 1})
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with opened(tmp_path, door) as walker:
            name = struct.pack("<QB", 1, 8)
            one = name + b"a\0"
            for blob, names in [(b"", []), (name, []), (one + name + b"b", [b"a", b"b"]),
                                (one + name + b"gone\0", [b"a"]), (one + one, [b"a"])]:
                data, rest, left = walker.stat_names(walk.job(Root(b"")), fd, blob, 1, 2, 3, 4, 0)
                seen = take_apart(data)
                assert sorted(seen.entries) == names
                assert (rest, left) == ([], [])
                assert (seen.records[-1].block, seen.records[-1].own_blocks) == (4, 3)
    finally:
        os.close(fd)


# Without openat2(2)

BLOCKED = """
import ctypes, struct, sys
sys.path[:0] = {paths!r}
load, is_openat2 = (0x20, 0, 0, 0), (0x15, 0, 1, 437)
fail, allow = (6, 0, 0, 0x50000 | {error}), (6, 0, 0, 0x7fff0000)
program = ctypes.create_string_buffer(struct.pack("<" + "HBBI" * 4, *load, *is_openat2, *fail, *allow))
libc = ctypes.CDLL(None, use_errno=True)
filter = ctypes.create_string_buffer(struct.pack("@HP", 4, ctypes.addressof(program)))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, filter, 0, 0) == 0
from pathlib import Path
from smartscan.model import Root
import twins
door = twins.{door}
with twins.opened(Path(sys.argv[1]), door) as walker:
    roots = [Root(b""), Root(b"links/out/etc"), Root(b"links/dir/folder")]
    sys.stdout.buffer.write(b"".join(twins.drive(walker, roots)[0]))
"""


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS], ids=["EPERM", "ENOSYS"])
@pytest.mark.parametrize("door", ["python_walk", pytest.param("native", marks=needs_native)])
def test_without_openat2_no_symbolic_link_is_followed_either(tmp_path, door, error):
    with odd_tree(tmp_path / "share", big=False) as odd:
        script = BLOCKED.format(paths=[p for p in sys.path if p], error=error, door=door)
        done = subprocess.run([sys.executable, "-c", script, odd.path], capture_output=True)
        if b"AssertionError" in done.stderr:
            pytest.skip("this container allows no seccomp filters")
        assert done.returncode == 0, done.stderr.decode()
        seen = take_apart(done.stdout)
        for path in (b"links/out/etc", b"links/dir/folder"):
            assert seen.states.pop(path) == VANISHED
        with opened(odd.path, python_walk) as walker:
            expected = take_apart(b"".join(drive(walker)[0]))
        assert seen.entries == expected.entries
        assert seen.states == expected.states


# The C library under the twin


def test_without_getdents64_its_number_is_called(tmp_path):
    build(tmp_path, {b"%d" % i: 0 for i in range(100)} | {"dir": {}, "link": Link("x")})

    class Old:
        """A C library from before 2020."""

        syscall = python_walk._libc.syscall

    read = []
    for call in (python_walk._find_getdents(python_walk._libc), python_walk._find_getdents(Old())):
        fd = os.open(tmp_path, os.O_RDONLY)
        buffer = ctypes.create_string_buffer(65536)
        read.append((call(fd, buffer, 65536), buffer.raw))
        os.close(fd)
    assert read[0] == read[1]
    assert read[0][0] > 2400
