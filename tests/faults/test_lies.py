"""Storage that answers with errors, nonsense or somebody else's files: rows 8 to 10, 19 and 25."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from line import until

import catalogues
from smartscan.faults import fail, fault_mount, latency
from trees import ODD_NAMES, Hard, Link, find_listing, odd_tree

pytestmark = pytest.mark.fuse

TREE = {
    **{f"d{n:02d}": {**{f"f{m}": m for m in range(6)}, "below": {"file": n}} for n in range(12)},
    "links": {f"l{n}": Link(f"to-{n}") for n in range(5)},
}
NO_CACHE = {"entry_cache_s": 0, "attr_cache_s": 0}
FIRST_OF_A_DIRECTORY = {"opendir": "open", "readdir": "readdir"}


@pytest.mark.row(8)
@pytest.mark.parametrize("errno", ["EIO", "EACCES", "ESTALE", "ENOENT", "ELOOP"])
def test_an_error_anywhere_is_one_problem_and_nothing_is_deleted(line, figure, errno):
    line.build(TREE)
    injected = found = 0
    with fault_mount(line.real, **NO_CACHE) as share:
        line.scan(share.path, code=0)
        before = line.listing()
        for op, path, at in (
            ("opendir", b"d03", "open"),
            ("readdir", b"d05", "readdir"),
            ("lookup", b"d07/f3", "stat"),
            ("readlink", b"links/l2", "readlink"),
            ("lookup", b"links/l4", "stat"),
        ):
            share.set(rules=[fail(os.fsdecode(path), op, errno=errno)])
            done = line.scan(share.path, code=3)
            injected += 1
            problems = line.problems()
            assert problems.keys() == {path}, (op, errno)
            assert problems[path][0] == at
            assert done.data["entries_gone"] == 0
            assert line.listing().keys() == before.keys()
            found += len(problems)
        share.set()
        line.scan(share.path, code=0)
        assert line.problems() == {}
        assert line.listing() == before
    figure(f"{errno}: injected, each one problem", f"{found} of {injected}")


@pytest.mark.row(8)
def test_an_error_at_the_nth_request_is_one_problem(line, figure):
    line.build({k: TREE[k] for k in ("d00", "links")})
    injected = found = 0
    numbers = {"opendir": (0, 1, 2, 3), "readdir": (0, 1, 2, 4), "lookup": (2, 5, 9), "readlink": (1, 4)}
    with fault_mount(line.real, **NO_CACHE) as share:
        line.scan(share.path, code=0)
        before = line.listing()
        for op, n in ((op, n) for op, ns in numbers.items() for n in ns):
            share.set(rules=[fail("*", op, errno="EIO", skip=n, count=1)])
            done = line.command(*line.words(share.path))
            # The share's root is opened twice: to open it at all, and to see that it is not empty.
            assert done.status in ((10,) if (op, n) == ("opendir", 0) else (0, 3)), (op, n, done.err)
            if done.status == 3:
                injected += 1
                found += len(line.problems())
            assert line.listing().keys() == before.keys()
        share.set()
        line.scan(share.path, code=0)
        assert line.listing() == before
    assert injected >= 6
    figure("EIO at the Nth request of each kind: injected, each one problem", f"{found} of {injected}")
    assert found == injected


@pytest.mark.row(9)
def test_an_endless_directory_is_capped_and_marked(line, figure):
    line.build(TREE)
    with fault_mount(line.real, virtual=[{"path": "d04", "kind": "endless"}]) as share:
        done, peak_bytes = line.measured_scan(share.path, "--dir-entries", 100_000, code=3)
    ((state, reason),) = line.query("SELECT state, reason FROM dir WHERE name = 'd04'")
    assert state == b"I/O error"
    assert b"given up after" in reason
    assert done.dirs["I/O error"] == 1
    figure("an endless directory, cut at 100,000 names: the scan took", done.took_s, "s", at_most=60)
    figure("largest process", peak_bytes / 2**20, "MiB", at_most=300)


@pytest.mark.row(27)
def test_inode_numbers_that_are_invented_anew_change_nothing(line, figure):
    line.build({
        "plain": {f"f{n}": n for n in range(50)} | {"below": {"x": 1}, "link": Link("f1")},
        "large": {f"{n:05d}": 0 for n in range(9000)},
        "names": {"one": 6000, "two": Hard("names/one"), "other": {"three": Hard("names/one")}},
        "touched": {f"f{n}": n for n in range(9)},
    })  # fmt: skip
    seen = []
    with fault_mount(line.real, **NO_CACHE) as share:
        line.scan(share.path, code=0)
        before, sums = line.listing(), catalogues.totals(line.db)
        for offset in (1 << 40, 2, 1):  # the last ones make numbers of others of them
            share.set(ino_offset=offset)
            with open(line.real / "touched/f0", "a") as file:
                file.write("x")
            done = line.scan(share.path, code=0)
            seen.append([done.data[f"entries_{what}"] for what in ("new", "changed", "gone")])
            found = {path: one._replace(ino=0) for path, one in line.listing().items()}
            same = {path for path, one in before.items() if found[path] == one._replace(ino=0)}
            assert before.keys() - same == {b"touched/f0"} and found.keys() == before.keys()
            found = line.listing()
            assert found[b"plain/f1"].ino == before[b"plain/f1"].ino  # it was not written again
            now = catalogues.totals(line.db)
            assert now[b"names"] == sums[b"names"] == (1, 4, 6000, now[b"names"][3])
            for path in (b"names/one", b"names/two", b"names/other/three"):  # by which they are one file
                assert found[path].ino == os.stat(share.path / os.fsdecode(path)).st_ino
    wrong = sum(changed - 1 for _, changed, _ in seen)
    figure("entries called changed beside the one that was", wrong, at_most=0)
    assert seen == [[0, 1, 0]] * 3


@pytest.mark.row(27)
def test_a_share_whose_own_number_is_invented_anew_is_the_same_share(line):
    line.build({"share": {f"d{n:02d}": {f"f{m}": m for m in range(30)} for n in range(40)}})
    with fault_mount(line.real, rules=[latency(2)], **NO_CACHE) as mount:
        words = ("--chunk-entries", 100, "--max-containers", 1, "--threads", 2)
        scanning = line.start(mount.path / "share", *words)
        offset = 0
        while scanning.poll() is None:
            offset += 1 << 40
            mount.set(rules=[latency(2)], ino_offset=offset)
            time.sleep(0.1)
        line.finish(scanning, code=0)
        # More than one worker has seen it, under more than one number.
        assert len(line.outcomes("sealed")) > 3 and offset > 4 << 40
    assert line.listing().keys() == find_listing(line.real / "share").keys() - {b""}


@pytest.mark.row(9)
def test_a_name_that_comes_twice_is_kept_once_and_marked(line, figure):
    line.build(TREE)
    with fault_mount(line.real, virtual=[{"path": "d04", "kind": "dup", "n": 3}]) as share:
        line.scan(share.path, code=3)
    assert line.problems() == {b"d04": ("readdir", 17)}
    assert sum(p == b"d04/dup" for p in line.listing()) == 1
    figure("rows of a name that a directory gives three times", 1)


@pytest.mark.row(9)
def test_a_directory_that_contains_itself_ends(line, figure):
    line.build(TREE)
    with fault_mount(line.real, virtual=[{"path": "d04", "kind": "loop", "name": "again"}]) as share:
        done = line.scan(share.path, code=None)
        assert done.status in (0, 3)
    assert done.dirs["other mount"] == 1
    levels = max(path.count(b"again") for path in line.listing())
    figure("a directory that contains itself: levels entered", levels, at_most=1)
    figure("and the scan took", done.took_s, "s", at_most=10)


@pytest.mark.row(9)
def test_depth_without_end_is_capped_and_marked(line, figure):
    line.build({"a": 1})
    # Chained by hand: no path of that length can be given to mkdir.
    deep, levels = line.real / "deep", 3000
    deep.mkdir()
    fd = os.open(deep, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(b"d", dir_fd=fd)
        inner = os.open(b"d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    done = line.scan(line.real, "--depth", 1000, code=3)
    assert done.dirs["I/O error"] == 1
    ((reason,),) = line.query("SELECT reason FROM dir WHERE state = 'I/O error'")
    assert b"depth" in reason
    figure("3,000 levels, cut at 1,000: the scan took", done.took_s, "s", at_most=20)
    subprocess.run(["rm", "-rf", deep], check=True)


@pytest.mark.row(9)
@pytest.mark.root
def test_a_share_mounted_in_itself_is_entered_once(line, figure):
    line.build(TREE)
    inside = line.real / "d00" / "below"
    subprocess.run(["mount", "--bind", line.real, inside], check=True)
    try:
        done = line.scan(line.real, code=0)
    finally:
        subprocess.run(["umount", "--lazy", inside], check=True)
    assert done.dirs["other mount"] == 1
    assert not [p for p in line.listing() if p.startswith(b"d00/below/")]
    figure("a share mounted in itself: times entered", 1)


@pytest.mark.row(10)
def test_all_names_come_back_exactly(line, figure):
    shutil.rmtree(line.real)
    with odd_tree(line.real, big=False) as odd:
        line.scan(odd.path, code=None)
        have, want = line.listing(), find_listing(odd.path)
        tops = (b"names", b"dirs", b"far", b"deep")
        asked = {p: e for p, e in want.items() if p.split(b"/")[0] in tops}
        assert {p: e for p, e in have.items() if p.split(b"/")[0] in tops} == {
            p: e._replace(dev=0) for p, e in asked.items()
        }
    names = sum(b"/" not in p.removeprefix(b"names/") for p in asked if p.startswith(b"names/"))
    figure("odd names that came back exactly", f"{names} of {len(ODD_NAMES)}")
    figure("longest path", max(map(len, have)), "bytes", at_least=4096)


@pytest.mark.row(19)
def test_a_share_that_is_not_there_is_refused_and_nothing_is_deleted(line, figure):
    line.build(TREE)
    refused = 0
    with fault_mount(line.real) as share:
        line.scan(share.path, code=0)
        before, point = line.listing(), share.path
    assert not any(point.iterdir()) if point.exists() else True
    point.mkdir(parents=True, exist_ok=True)
    try:
        empty = line.command(*line.words(point), code=10)  # unmounted: another, empty file system is there
        assert "is the share mounted?" in empty.err
        refused += 1
        moved = line.command(*line.words(point, "--moved"), code=10)
        assert "is empty" in moved.err
        refused += 1
    finally:
        shutil.rmtree(point.parent)
    missing = line.command(*line.words(point), code=10)
    refused += 1
    assert len(missing.err.splitlines()) < 6
    assert line.listing() == before
    line.at_rest()
    figure("refused where the share is missing, empty or not mounted", f"{refused} of 3")
    figure("rows deleted", 0)


@pytest.mark.row(19)
def test_a_share_unmounted_in_the_middle_deletes_nothing(line, figure):
    line.build(TREE)
    with fault_mount(line.real, **NO_CACHE) as share:
        line.scan(share.path, code=0)
        before = line.listing()
        share.set(rules=[latency(30)])
        (line.real / "new").write_text("x")
        scanning = line.start(share.path)
        until(lambda: share.asked("opendir"), lambda n: n > 36)
        share.daemon.kill()
        subprocess.run(["umount", "--lazy", share.path], check=True)
        done = line.finish(scanning)
        assert done.status in (3, 4, 10), done.err
    gone = before.keys() - line.listing().keys()
    figure("rows deleted by a share that is unmounted in the middle", len(gone), at_most=0)
    with fault_mount(line.real) as share:
        line.query("SELECT 1")


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
static long shift(void)
{
    FILE *f = fopen(getenv("CLOCK_SHIFT"), "r");
    long s = 0;
    if (f) { if (fscanf(f, "%ld", &s) != 1) s = 0; fclose(f); }
    return s;
}
int clock_gettime(clockid_t id, struct timespec *t)
{
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int r = real(id, t);
    if (!r && id == CLOCK_REALTIME) t->tv_sec += shift();
    return r;
}
int gettimeofday(struct timeval *restrict t, void *restrict z)
{
    (void)z;
    struct timespec now;
    int r = clock_gettime(CLOCK_REALTIME, &now);
    t->tv_sec = now.tv_sec; t->tv_usec = now.tv_nsec / 1000;
    return r;
}
time_t time(time_t *t)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (t) *t = now.tv_sec;
    return now.tv_sec;
}
"""


@pytest.fixture
def clock(line) -> Path:
    """A file that moves the wall clock of the scan by the seconds in it."""
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("needs a C compiler, to move the clock of one process")
    source, library, shift = (line.folder / name for name in ("clock.c", "clock.so", "shift"))
    source.write_text(CLOCK)
    shift.write_text("0")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    line.environment |= {"LD_PRELOAD": str(library), "CLOCK_SHIFT": str(shift)}
    return shift


@pytest.mark.row(25)
@pytest.mark.parametrize("days", [1, -1])
def test_a_clock_that_jumps_judges_nobody(line, figure, clock, days):
    line.build(TREE)
    with fault_mount(line.real, rules=[latency(60)], **NO_CACHE) as share:
        scanning = line.start(share.path, "--chunk-entries", 60, "--max-containers", 2)
        until(lambda: share.asked("opendir"), lambda n: n > 3)
        clock.write_text(str(days * 86400))
        done = line.finish(scanning, code=0)
    ((first, last),) = line.query("SELECT started_at, ended_at FROM scan")
    assert (float(last) - float(first)) * days > 80_000, "the clock did jump"
    figure(f"false verdicts when the clock jumps {days:+d} day", len(line.problems()), at_most=0)
    assert done.dirs["listed"] == 1 + 12 * 2 + 1
    line.at_rest()
