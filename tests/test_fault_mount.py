"""The fault file system does what its rules say, and is gone afterwards."""

import errno
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pytest

from smartscan.faults import fail, fault_mount, hang, latency, slow

pytestmark = pytest.mark.fuse


@pytest.fixture
def real(tmp_path):
    tree = tmp_path / "real"
    (tree / "ok" / "deep").mkdir(parents=True)
    (tree / "stuck").mkdir()
    for name in ("a", "b", "c"):
        (tree / "ok" / name).write_text(name)
    os.utime(tree / "ok" / "a", ns=(-1_500_000_001, -1_500_000_001))
    os.symlink("nowhere", tree / "ok" / "link")
    os.mkfifo(tree / "ok" / "fifo")
    (tree / "stuck" / "inside").touch()
    return tree


def listing(top: Path) -> dict[str, tuple[object, ...]]:
    found = {}
    for folder, folders, files in os.walk(top):
        for name in folders + files:
            seen = os.lstat(os.path.join(folder, name))
            found[os.path.relpath(os.path.join(folder, name), top)] = (
                seen.st_ino, seen.st_mode, seen.st_nlink, seen.st_size, seen.st_blocks, seen.st_mtime_ns,
                seen.st_ctime_ns,
            )  # fmt: skip
    return found


def reader(path: Path) -> subprocess.Popen[bytes]:
    """Start a process that lists a directory."""
    return subprocess.Popen([sys.executable, "-S", "-c", f"import os; os.listdir({str(path)!r})"],
                            stderr=subprocess.DEVNULL)


def test_without_rules_it_is_the_tree_below(real):
    with fault_mount(real) as share:
        assert listing(share.path) == listing(real)
        assert os.readlink(share.path / "ok/link") == "nowhere"
        assert (share.path / "ok/b").read_text() == "b"


def test_what_is_written_arrives(real):
    with fault_mount(real) as share:
        new = share.path / "new"
        new.mkdir()
        (new / "file").write_bytes(b"x" * 300_000)
        (new / "file").rename(share.path / "moved")
        os.link(share.path / "moved", share.path / "twin")
        os.symlink("t", share.path / "sym")
        os.utime(share.path / "moved", ns=(0, -7))
        os.truncate(share.path / "moved", 5)
        os.chmod(share.path / "moved", 0o600)
        new.rmdir()
        (share.path / "ok/c").unlink()
    seen = os.stat(real / "moved")
    assert (seen.st_size, seen.st_nlink, seen.st_mode & 0o777) == (5, 2, 0o600)
    assert not (real / "new").exists() and not (real / "ok/c").exists()
    assert os.readlink(real / "sym") == "t"


def test_a_hung_reader_cannot_be_killed_and_is_freed_by_removing_the_rule(real):
    with fault_mount(real, rules=[hang("stuck", "opendir")]) as share:
        stuck = reader(share.path / "stuck")
        while not share.asked("opendir", b"stuck"):
            time.sleep(0.01)
        stuck.kill()
        with pytest.raises(subprocess.TimeoutExpired):
            stuck.wait(1)
        state = Path(f"/proc/{stuck.pid}/stat").read_text().rpartition(")")[2].split()[0]
        assert state == "D"
        assert "deep" in os.listdir(share.path / "ok")  # the rest works
        share.set(rules=[])
        assert stuck.wait(5) == -signal.SIGKILL
        assert os.listdir(share.path / "stuck") == ["inside"]


def test_leaving_frees_every_reader_and_leaves_nothing_mounted(real):
    with fault_mount(real, rules=[hang("*", "readdir")]) as share:
        stuck = [reader(share.path / "stuck"), reader(share.path / "ok"), reader(share.path)]
        while share.asked("readdir") < 3:
            time.sleep(0.01)
        for one in stuck:
            one.kill()
    for one in stuck:
        assert one.wait(5) == -signal.SIGKILL
    assert os.fsencode(share.path) not in Path("/proc/self/mountinfo").read_bytes()
    assert not share.path.exists()


def test_a_signal_ends_a_hang_where_the_rules_say_so(real):
    with fault_mount(real, rules=[hang("stuck", "opendir")], interrupt="eintr") as share:
        stuck = reader(share.path / "stuck")
        while not share.asked("opendir", b"stuck"):
            time.sleep(0.01)
        stuck.kill()
        assert stuck.wait(5) == -signal.SIGKILL


def test_errors_come_after_skip_and_count_times(real):
    rules = [fail("ok/?", "lookup", errno="EIO", skip=1, count=2)]
    with fault_mount(real, rules=rules, entry_cache_s=0, attr_cache_s=0) as share:
        seen = []
        for name in ("a", "b", "c", "a", "b"):
            try:
                os.stat(share.path / "ok" / name)
                seen.append(0)
            except OSError as error:
                seen.append(error.errno)
        assert seen == [0, errno.EIO, errno.EIO, 0, 0]
        assert share.asked("lookup", b"ok/a") == 2


def test_names_and_stats_are_asked_again_or_not_as_the_caches_say(real):
    for cache_s, times in ((0, 3), (60, 1)):
        with fault_mount(real, entry_cache_s=cache_s, attr_cache_s=cache_s) as share:
            for _ in range(3):
                os.stat(share.path / "stuck/inside")
            assert share.asked("lookup", b"stuck/inside") == times


def test_slow_answers_do_not_hold_up_others(real):
    with fault_mount(real, rules=[slow("stuck", "opendir", ms=1500)]) as share, ThreadPoolExecutor(9) as pool:
        began = time.monotonic()
        waiting = [pool.submit(os.listdir, share.path / "stuck") for _ in range(8)]
        os.listdir(share.path / "ok")
        assert not any(one.done() for one in waiting)
        assert all(one.result() == ["inside"] for one in waiting)
        assert 1.5 <= time.monotonic() - began < 6  # one after the other they take 12


def test_latency_of_a_millisecond_is_one_also_for_many_clients(tmp_path):
    for number in range(640):
        (tmp_path / f"{number}").touch()
    with fault_mount(tmp_path, rules=[latency(1)], entry_cache_s=0, attr_cache_s=0) as share:
        paths = [os.path.join(share.path, f"{number}") for number in range(640)]

        def ask(paths: list[str]) -> float:
            began = time.monotonic()
            for path in paths:
                os.lstat(path)
            return (time.monotonic() - began) / len(paths)

        alone_s = ask(paths[:64])
        with ThreadPoolExecutor(32) as pool:
            began = time.monotonic()
            list(pool.map(ask, (paths[start::32] for start in range(32))))
            together_s = time.monotonic() - began
        assert 0.001 <= alone_s < 0.02  # one lookup each
        assert together_s < 640 * alone_s / 4  # far from one after the other


def test_virtual_entries(real):
    odd = b"new\nline\xff"
    virtual = [
        {"path": "ok", "kind": "names", "hex": [odd.hex()]},
        {"path": "stuck", "kind": "dup", "n": 4},
        {"path": "ok/deep", "kind": "many", "n": 5000},
        {"path": "", "kind": "loop", "name": "again"},
    ]
    with fault_mount(real, virtual=virtual) as share:
        assert odd in os.listdir(os.fsencode(share.path / "ok"))
        assert os.lstat(os.path.join(os.fsencode(share.path), b"ok", odd)).st_size == 4096
        assert sorted(os.listdir(share.path / "stuck")) == ["dup"] * 4 + ["inside"]
        assert len(os.listdir(share.path / "ok/deep")) == 5000
        assert sorted(os.listdir(share.path / "again/again/again")) == ["again", "ok", "stuck"]


def test_an_endless_directory_has_no_end(real):
    with fault_mount(real, virtual=[{"path": "ok/deep", "kind": "endless"}]) as share:
        with os.scandir(share.path / "ok/deep") as entries:
            assert len({entry.name for entry in islice(entries, 30_000)}) == 30_000


def test_without_page_cache_there_is_no_shared_memory(real):
    import mmap

    with fault_mount(real, direct_io=True) as share, open(share.path / "ok/b", "r+b") as file:
        with pytest.raises(OSError):
            mmap.mmap(file.fileno(), 1)
