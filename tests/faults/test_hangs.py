"""Storage that does not answer: rows 1 to 7 and 11 of the matrix, with a mount that really hangs."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from line import STALL_S, Line, until

from smartscan.faults import FaultMount, fail, fault_mount, hang, latency, slow
from trees import ODD_NAMES, build, find_listing

pytestmark = pytest.mark.fuse

FOLDERS = 40
TREE = {
    **{f"d{n:02d}": {**{f"f{m}": m for m in range(6)}, "below": {"file": n}} for n in range(FOLDERS)},
    "deep": {"er": {"est": {"file": 5}}},
    "file": 1,
}
DIRS = 1 + 2 * FOLDERS + 3
VERDICT_S = STALL_S + 2  # from the hang to the verdict
REST_S = STALL_S + 20  # what a hang may add to a whole scan
OPENDIR = ("opendir", "readdir")
NO_CACHE = {"entry_cache_s": 0, "attr_cache_s": 0}


def hung_at(share: FaultMount) -> float:
    """Give the moment of the first request that was never answered."""
    found = re.search(r"^([\d.]+) .* -> hang$", share._log.read_text(), re.MULTILINE)
    assert found
    return float(found[1])


def verdict_s(line: Line, share: FaultMount) -> float:
    """Give the time from the first hang to the first problem in the catalogue."""
    ((first_at,),) = line.query("SELECT min(first_at) FROM problem WHERE errno = 110")
    return float(first_at) - hung_at(share)


def same_as_real(line: Line, without: tuple[bytes, ...] = ()) -> None:
    """Compare with find(1) on what lies under the mount, but for what is missing below some directories."""
    want = find_listing(line.real)
    del want[b""]
    want = {p: e for p, e in want.items() if not any(p.startswith(top + b"/") for top in without)}
    have = line.listing()
    assert have.keys() == want.keys()
    for path, entry in want.items():
        assert (path, have[path][:4]) == (path, entry[:4])  # the mount has a device of its own


@pytest.mark.row(1)
@pytest.mark.parametrize("op", ["opendir", "readdir", "lookup"])
def test_a_directory_that_hangs_costs_its_subtree_and_nothing_else(line, figure, op):
    line.build(TREE)
    healthy = Line(line.folder / "healthy")
    with fault_mount(line.real) as share:
        healthy.db = healthy.data / "x.db"
        undisturbed = healthy.scan(share.path, code=0)
    with fault_mount(line.real, rules=[hang("d05", op)]) as share:
        done = line.scan(share.path, code=3, abandoned=1)
        assert share.asked(op, b"d05") == 1
        figure("time from hang to verdict", verdict_s(line, share), "s", at_most=VERDICT_S)
        longer_s = done.took_s - undisturbed.took_s
        figure("whole scan, longer than undisturbed", longer_s, "s", at_most=REST_S)
        share.end()
        line.all_gone()
    want = ("stat" if op == "lookup" else "open" if op == "opendir" else "readdir", 110)
    assert line.problems() == {b"d05": want}
    same_as_real(line, (b"d05",)) if op != "lookup" else None
    lost = find_listing(line.real).keys() - {b""} - line.listing().keys()
    figure("entries lost beside the directory's own", sum(not p.startswith(b"d05/") for p in lost), at_most=0)
    ((cause,),) = line.query("SELECT cause FROM problem")
    assert b"did not answer for 2 s" in cause


@pytest.mark.row(1)
def test_what_hangs_is_blamed_on_the_mount_it_lies_on(line):
    """A server that is mounted within a share of healthy disks."""
    line.build(TREE)
    server = line.folder / "server"
    server.mkdir()
    build(server, {"d": {"file": 1}})
    with fault_mount(server, rules=[hang("d", "opendir")], below=line.real) as within:
        done = line.scan(line.real, code=3, abandoned=1)
        assert done.dirs["timed out"] == 1
        ((cause,),) = line.query("SELECT cause FROM problem WHERE errno = 110")
        behind = f"a disk or server behind {within.path} (fuse.faultfs)"
        assert cause.decode().startswith(f"{behind} did not answer for")
        within.end()
        line.all_gone()


@pytest.mark.row(2)
def test_a_stat_that_hangs_costs_one_row(line, figure):
    line.build(TREE)
    with fault_mount(line.real, rules=[hang("d07/f4", "lookup")]) as share:
        line.scan(share.path, code=3, abandoned=1)
        figure("time from hang to verdict", verdict_s(line, share), "s", at_most=VERDICT_S)
        assert share.asked("lookup", b"d07/f4") == 1
        again = line.scan(share.path, code=3, abandoned=1)
        assert share.asked("lookup", b"d07/f4") == 1, "the next scan leaves it alone until it is due"
        assert again.data["entries_gone"] == 0
        share.set()
        line.retry(code=0)
    have = line.listing()
    assert have[b"d07/f4"].size == 4
    lost = [p for p in find_listing(line.real).keys() - {b""} if p not in have]
    figure("rows lost", len(lost) + 1, at_most=1)


@pytest.mark.row(3)
@pytest.mark.parametrize(
    "rule",
    [hang("*"), hang("", "opendir", "readdir"), hang("", "getattr")],
    ids=["all", "its listing", "its stat"],
)
def test_a_share_whose_root_hangs_is_dead(line, figure, rule):
    line.build(TREE)
    with fault_mount(line.real, attr_cache_s=0, rules=[rule]) as share:
        done = line.scan(share.path, code=4, abandoned=1)
        assert "does not answer" in done.err or done.data["mount_dead"]
        figure("time to the verdict", verdict_s(line, share), "s", at_most=VERDICT_S)
        figure("whole scan", done.took_s, "s", at_most=REST_S)
        share.set()
        line.scan(share.path, code=0)  # what was deferred is tried at once when the share answers
        line.all_gone()
    same_as_real(line)


@pytest.mark.row(3, 4)
@pytest.mark.parametrize("frozen_s", [1.2, 8.0], ids=["shorter than the limit", "for longer"])
def test_a_mount_that_freezes_in_the_middle_loses_nothing(line, figure, frozen_s):
    line.build(TREE)
    with fault_mount(line.real, rules=[latency(20)], **NO_CACHE) as share:
        scanning = line.start(share.path, "--chunk-entries", 60, "--max-containers", 3)
        until(lambda: share.asked("opendir"), lambda n: n > 20)
        began = time.time()
        share.daemon.send_signal(signal.SIGSTOP)
        if frozen_s < STALL_S:
            time.sleep(frozen_s)
            share.daemon.send_signal(signal.SIGCONT)
            line.finish(scanning, code=0)
        else:
            done = line.finish(scanning, code=4, abandoned=3)
            ((dead_at,),) = line.query("SELECT min(at) FROM event WHERE kind = 'mount dead'")
            figure("frozen mount called dead after", float(dead_at) - began, "s", at_most=2 * STALL_S + 4)
            assert done.data["mount_dead"]
            share.daemon.send_signal(signal.SIGCONT)
            share.set()
            line.scan(share.path, code=0)
        line.all_gone()
    same_as_real(line)
    figure("rows missing or twice", 0)


@pytest.mark.row(5)
def test_more_stuck_places_than_the_budget(line, figure):
    line.build(TREE)
    stuck = [f"d{n:02d}" for n in range(28)]
    with fault_mount(line.real, rules=[hang(name, "opendir") for name in stuck]) as share:
        done = line.scan(share.path, "--chunk-entries", 60, code=3, abandoned=16, timeout_s=100)
        figure("stuck directories isolated", done.dirs["timed out"], "of 28", at_least=28)
        figure("siblings lost", DIRS - 28 - 28 - done.dirs["listed"], at_most=0)
        figure("workers abandoned", len(done.data["certificate"]["abandoned"]), "of 16", at_most=16)
        again = max(share.asked("opendir", os.fsencode(name)) for name in stuck) - 1
        figure("readers that asked a stuck path again", again, at_most=0)
        share.end()
        line.all_gone()
    same_as_real(line, tuple(map(os.fsencode, stuck)))


@pytest.mark.row(6)
def test_a_stuck_path_is_read_once(line, figure):
    line.build(TREE)
    words = ("--chunk-entries", 40, "--max-containers", 4)
    with fault_mount(line.real, rules=[hang("d05/below", "opendir"), hang("d11", "readdir")]) as share:
        line.scan(share.path, *words, code=3, abandoned=2)
        asked = {p: share.asked(op, p) for p, op in ((b"d05/below", "opendir"), (b"d11", "readdir"))}
        figure("requests for a stuck path in one scan", max(asked.values()), at_most=1)
        line.scan(share.path, *words, code=3, abandoned=2)
        assert share.asked("opendir", b"d05/below") == 1, "not due: not touched by the next scan either"
        share.set(rules=[])
        assert line.retry(code=0).dirs["timed out"] == 0
        line.all_gone()
    assert line.problems() == {}
    same_as_real(line)


@pytest.mark.row(6)
def test_a_thread_that_was_given_up_and_comes_back_touches_nothing_more(line, figure):
    """A name is so slow that the work of its thread goes to another one; then it is answered after all."""
    line.build({"d": {f"f{m}": m for m in range(40)}, "slow": {f"f{m}": m for m in range(60)}})
    late = min((line.real / "d").iterdir(), key=lambda file: file.stat().st_ino).name
    rules = [slow(f"d/{late}", "lookup", ms=1500 * STALL_S), slow("slow/*", "lookup", ms=100)]
    with fault_mount(line.real, rules=rules, **NO_CACHE) as share:
        line.scan(share.path, "--threads", 2, code=3)
        asked = re.findall(r" lookup b'd/(f\d+)' pid=(\d+)", share._log.read_text())
    (at,) = (n for n, (name, _) in enumerate(asked) if name == late)
    more = [name for name, thread in asked[at + 1 :] if thread == asked[at][1]]
    figure("names touched by a thread after it was given up", len(more), at_most=0)
    assert len({name for name, _ in asked}) == 40, "its heir has the others"
    assert line.problems()[f"d/{late}".encode()] == ("stat", 110)


SLOW_TREE = {f"d{n:02d}": {"a": 1, "b": 2, "below": {"file": n}} for n in range(10)}


@pytest.mark.row(7)
def test_slow_is_not_stuck(line, figure):
    line.build(SLOW_TREE)
    with fault_mount(line.real, rules=[latency(200)], **NO_CACHE) as share:
        done = line.scan(share.path, "--threads", 16, code=0)
        figure("false verdicts at 200 ms per operation", len(line.problems()), at_most=0)
        figure("and the scan took", done.took_s, "s")
    same_as_real(line)


@pytest.mark.row(1, 2, 7, 8, 9, 10)
def test_everything_at_once(line, figure):
    """The fault tree of the figures: three unkillable places, endless, loop, errors, latency, odd names."""
    line.build(
        {
            **TREE,
            "slow": SLOW_TREE["d00"],
            "names": {name: len(name) for name in ODD_NAMES},
            "endless": {},
            "loop": {"file": 1},
        }
    )
    bounded = ("--dir-entries", 20_000)
    healthy = Line(line.folder / "healthy")
    with fault_mount(line.real) as share:
        undisturbed = healthy.scan(share.path, *bounded, code=0)
    rules = [
        hang("d01", "opendir"), hang("d02/below", "readdir"), hang("d03/f1", "lookup"),
        fail("d04", "opendir", errno="EIO"), fail("d05/f2", "lookup", "getattr", errno="ESTALE"),
        fail("d06", "opendir", errno="EACCES"), slow("slow*", ms=200),
    ]  # fmt: skip
    virtual = [{"path": "endless", "kind": "endless"}, {"path": "loop", "kind": "loop", "name": "again"}]
    with fault_mount(line.real, rules=rules, virtual=virtual) as share:
        done = line.scan(share.path, *bounded, code=3, abandoned=1)
        longer_s = done.took_s - undisturbed.took_s
        figure("the fault tree, longer than the same tree healthy", longer_s, "s", at_most=STALL_S + 20)
        stuck = (("opendir", b"d01"), ("readdir", b"d02/below"), ("lookup", b"d03/f1"))
        asked = max(share.asked(op, path) for op, path in stuck)
        figure("paths asked again while their first reader hangs", asked - 1, at_most=0)
        share.end()
        line.all_gone()
        figure("processes, folders, control groups left when the storage answers again", len(line.workers()))
    assert line.problems() == {
        b"d01": ("open", 110), b"d02/below": ("readdir", 110), b"d03/f1": ("stat", 110), b"d04": ("open", 5),
        b"d05/f2": ("stat", 116), b"d06": ("open", 13), b"endless": ("readdir", 27),
    }  # fmt: skip
    have = line.listing().keys()
    lost = find_listing(line.real).keys() - {b""} - have
    hidden = (b"d01/", b"d02/below/", b"d04/", b"d06/")
    figure("siblings lost", sum(not path.startswith(hidden) for path in lost), at_most=0)
    assert {b"names/" + name for name in ODD_NAMES} <= have


@contextlib.contextmanager
def block_device(folder: Path) -> Iterator[tuple[Path, FaultMount]]:
    """An ext4 on a loop device whose image lies on the fault file system; unmounted on every way out."""
    if not (shutil.which("mkfs.ext4") and Path("/dev/loop-control").exists()):
        pytest.skip("needs loop devices and mkfs.ext4")
    image, point = folder / "images" / "disk", folder / "disk"
    image.parent.mkdir()
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, point], check=True)
    build(point, SLOW_TREE)
    subprocess.run(["umount", point], check=True)
    with fault_mount(image.parent) as share:
        mount = ["mount", "-o", "loop,ro,noatime", share.path / "disk", point]
        subprocess.run(mount, check=True)
        try:
            yield point, share
        finally:
            share.set()
            until(lambda: subprocess.run(["umount", point], check=False).returncode, lambda code: code == 0)


@pytest.mark.row(11)
@pytest.mark.root
def test_a_block_device_that_does_not_answer(line, figure):
    with block_device(line.folder) as (disk, share):
        drop_caches = Path("/proc/sys/vm/drop_caches")
        drop_caches.write_text("3")
        healthy = Line(line.folder / "healthy")
        healthy.scan(disk, code=0)
        drop_caches.write_text("3")
        share.set(rules=[hang("disk", "read", skip=3, count=1)])  # a block of inodes: many share it
        done = line.scan(disk, code=None, abandoned=3)
        assert done.status in (3, 4), done.err
        figure("whole scan", done.took_s, "s", at_most=REST_S)
        figure("places that waited for the disk", len(line.problems()), at_least=1)
        share.set()
        until(line.workers, lambda left: not left, 20)
        line.scan(disk, code=0) if done.status == 4 else line.retry(code=0)
        want = find_listing(disk).keys() - {b""}
        assert line.listing().keys() == want
        line.all_gone()
    figure("rows missing when the disk answers again", 0)
