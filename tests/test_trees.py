"""The trees that other tests are made of are what they say."""

import os
import stat
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from trees import (
    ODD_NAMES,
    TIMES_NS,
    Dir,
    Fifo,
    File,
    Hard,
    Link,
    Socket,
    build,
    churning,
    find_listing,
    odd_tree,
    random_trees,
)


def count(tree: dict) -> int:
    return sum(1 + (count(node) if isinstance(node, dict) else 0) for node in tree.values())


def test_a_tree_is_built_as_it_is_written(tmp_path):
    build(
        tmp_path,
        {
            "folder": {"five": 5, b"\xff": b"content", "to": Link("five")},
            "twin": Hard("folder/five"),
            "hole": File(2**33, sparse=True, mtime_ns=-5),
            "old": Dir({"x": 0}, mtime_ns=7, mode=0o700),
            "fifo": Fifo(),
            "socket": Socket(),
        },
    )
    found = find_listing(tmp_path)
    assert {name: entry.type for name, entry in found.items()} == {
        b"": "d", b"folder": "d", b"folder/five": "f", b"folder/\xff": "f", b"folder/to": "l", b"twin": "f",
        b"hole": "f", b"old": "d", b"old/x": "f", b"fifo": "p", b"socket": "s",
    }  # fmt: skip
    assert (found[b"twin"].ino, found[b"twin"].nlink) == (found[b"folder/five"].ino, 2)
    assert found[b"folder/to"].target == b"five"
    assert (found[b"hole"].size, found[b"hole"].blocks, found[b"hole"].mtime_ns) == (2**33, 0, -5)
    assert (found[b"old"].mtime_ns, found[b"old"].mode) == (7, 0o700)


def test_find_says_what_stat_says(tmp_path):
    build(tmp_path, {"a": {"b": File(5, mtime_ns=-1_500_000_001)}, "l": Link("x" * 300), "p": Fifo()})
    for name, entry in find_listing(tmp_path).items():
        seen = os.lstat(os.path.join(os.fsencode(tmp_path), name))
        assert entry[1:10] == (
            seen.st_size, seen.st_blocks, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino, seen.st_nlink,
            stat.S_IMODE(seen.st_mode), seen.st_uid, seen.st_gid,
        )  # fmt: skip
        assert entry.dev == seen.st_dev


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=random_trees())
def test_random_trees_are_built_whole(tmp_path, tree):
    top = tmp_path / f"{time.monotonic_ns()}"
    top.mkdir()
    build(top, tree)
    assert len(find_listing(top)) == 1 + count(tree)


def test_the_odd_tree_has_everything_odd(tmp_path):
    with odd_tree(tmp_path / "odd", big=False) as odd:
        found = find_listing(odd.path)
        for name in ODD_NAMES:
            assert found[b"names/" + name].size == len(name)
            assert found[b"dirs/" + name + b"/" + name].type == "f"
        assert len(odd.far) > 4096 and found[odd.far].size == 7
        assert found[b"deep" + b"/d" * odd.deep + b"/end"].type == "f"
        assert sum(name.startswith(b"wide/") for name in found) == odd.wide
        assert len({found[name].ino for name in odd.hard}) == 1
        for name, size in odd.huge.items():
            assert (found[name].size, found[name].blocks) == (size, 0)
        assert len(odd.times) == len(TIMES_NS)
        for name, mtime_ns in odd.times.items():
            assert found[name].mtime_ns == mtime_ns
        assert odd.times[b"times/before-1970"] < 0
        assert {found[name].type for name in odd.system_dirs + odd.denied} == {"d"}
    assert not odd.path.exists()


@pytest.mark.root
def test_the_odd_tree_of_root_has_devices_and_mounts(tmp_path):
    with odd_tree(tmp_path / "odd", big=False) as odd:
        found = find_listing(odd.path)
        assert [found[name].type for name in odd.devices] == ["c", "b"]
        assert found[odd.inside + b"/file"].dev != found[b""].dev
        assert odd.inside + b"/file" not in find_listing(odd.path, xdev=True)
        assert odd.inside in find_listing(odd.path, xdev=True)
        assert odd.bind not in found
        assert os.path.samefile(os.path.join(os.fsencode(odd.path), odd.bind), odd.path)
    assert not odd.path.exists()


@pytest.mark.root
def test_the_odd_tree_is_taken_away_also_when_the_test_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), odd_tree(tmp_path / "odd", big=False):
        _ = 1 / 0
    assert not (tmp_path / "odd").exists()
    assert os.fsencode(tmp_path) not in Path("/proc/self/mountinfo").read_bytes()


def test_churning_leaves_nothing(tmp_path):
    with churning(tmp_path):
        seen = set()
        for _ in range(200):
            done = subprocess.run(["find", tmp_path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            seen.add(done.stdout)
            if len(seen) > 5:
                break
    assert len(seen) > 5
    assert list(tmp_path.iterdir()) == []
