"""The disk of the catalogue and of the workers' folders: full, read-only, hung; rows 21, 23 and 24."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from line import STALL_S, Line, until

import catalogues
from disks import fill, small_disk
from smartscan.faults import fault_mount, latency
from trees import find_listing

pytestmark = [pytest.mark.root, pytest.mark.fuse]

TREE = {f"d{n:03d}": {**{f"f{m}": m for m in range(20)}, "below": {"file": n}} for n in range(60)}
NO_CACHE = {"entry_cache_s": 0, "attr_cache_s": 0}
SMALL = ("--chunk-entries", 150, "--max-containers", 2)


class Said:
    """What a command says on stderr, as it says it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.lines = process, []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for text in self.process.stderr:
            self.lines.append((time.monotonic(), text))

    def when(self, words: str, seconds: float) -> float:
        """Give the moment at which a line with these words came."""
        found = until(lambda: [at for at, text in self.lines if words in text], bool, seconds)
        return found[0]


def talkative(line: Line, share: Path, *words: object) -> tuple[subprocess.Popen[str], Said]:
    """Start a scan that says what it does, as for people."""
    scanning = line._popen([word for word in line.words(share, *words) if word != "--json"])
    return scanning, Said(scanning)


def exact(line: Line) -> None:
    want = find_listing(line.real)
    have = line.listing()
    assert have.keys() == want.keys() - {b""}
    assert {p: e.size for p, e in have.items()} == {p: want[p].size for p in have}


@pytest.mark.row(21)
def test_a_disk_that_fills_up_pauses_the_scan(line, figure):
    line.build(TREE)
    with small_disk(120) as disk, fault_mount(line.real, rules=[latency(6)], **NO_CACHE) as share:
        line.data = disk / "data"
        line.data.mkdir()
        line.db = line.data / "x.db"
        scanning, said = talkative(line, share.path, *SMALL)
        until(lambda: share.asked("opendir"), lambda n: n > 20)
        filler = fill(disk)
        full_at = time.monotonic()
        told_at = said.when("Waiting: ", 30)
        figure("a full disk is said after", told_at - full_at, "s", at_most=10)
        time.sleep(2.5)
        assert scanning.poll() is None, "it waits"
        filler.unlink()
        said.when("Going on", 20)
        assert scanning.wait(60) == 0, said.lines
        catalogues.check(line.db)
        exact(line)
        print(line.unhappy())
        failed = line.query("SELECT count(*) FROM chunk WHERE fails > 0 OR state = 'quarantined'")
        figure("chunks that failed because of it", failed[0][0], at_most=0)
        line.at_rest()


@pytest.mark.row(21)
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_scan_that_waits_for_room_can_be_stopped_and_keeps_what_is_sealed(line, stop):
    line.build(TREE)
    with small_disk(120) as disk, fault_mount(line.real, rules=[latency(20)], **NO_CACHE) as share:
        line.data = disk / "data"
        line.data.mkdir()
        line.db = line.data / "x.db"
        scanning, said = talkative(line, share.path, "--max-containers", 2)
        until(lambda: list(line.data.rglob("*.shard")), len)
        line.db.with_suffix(".reserve").unlink()  # so that not even the stop can be written down
        filler = fill(disk)
        said.when("Waiting: ", 30)
        scanning.send_signal(stop)
        assert scanning.wait(20) == 130, said.lines
        assert "stopped while it waited" in said.lines[-1][1]
        assert not line.workers()
        sealed = {os.fsencode(shard.name) for shard in line.data.rglob("*.shard")}
        filler.unlink()
        share.set()
        line.scan(share.path, code=0)
        taken = {name for (name,) in line.query("SELECT name FROM shard WHERE attempt = 1")}
        assert sealed, "what was sealed was thrown away"
        assert sealed <= taken
        exact(line)
        line.at_rest()


@pytest.mark.row(21)
def test_a_full_disk_is_said_before_the_scan_and_reports_still_open(line, figure):
    line.build(TREE)
    with small_disk(100) as disk:
        line.data = disk / "data"
        line.data.mkdir()
        line.db = line.data / "x.db"
        line.scan(line.real, code=0)
        filler = fill(disk)
        line.command("stats", "--db", line.db, code=0)
        (line.real / "new").write_text("x")
        done = line.scan(line.real, code=0)  # the reserve beside the catalogue is there for this
        assert done.data["entries_new"] == 1
        line.db.with_suffix(".reserve").unlink(missing_ok=True)
        fill(disk)
        refused = line.command(*line.words(line.real), code=12)
        assert "no space left" in refused.err
        filler.unlink()
        line.scan(line.real, code=0)
    figure("commands refused, said in one sentence", len(refused.err.splitlines()), at_most=6)


@contextlib.contextmanager
def own_disk(folder: Path, megabytes: int = 100) -> Iterator[Path]:
    """A file system on a loop device, which can be frozen; thawed and unmounted on every way out."""
    if not (shutil.which("mkfs.ext4") and Path("/dev/loop-control").exists() and shutil.which("fsfreeze")):
        pytest.skip("needs loop devices, mkfs.ext4 and fsfreeze")
    image, point = folder / "disk.img", folder / "disk"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop,errors=remount-ro", image, point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", point], stderr=subprocess.DEVNULL, check=False)
        subprocess.run(["umount", "--lazy", point], check=True)
        image.unlink()


@pytest.mark.row(24)
def test_an_output_disk_that_hangs_is_said_and_waited_for(line, figure):
    line.build(TREE)
    with own_disk(line.folder) as disk, fault_mount(line.real, rules=[latency(6)], **NO_CACHE) as share:
        line.data = disk / "data"
        line.data.mkdir()
        line.db = line.data / "x.db"
        scanning, said = talkative(line, share.path, *SMALL)
        until(lambda: share.asked("opendir"), lambda n: n > 20)
        subprocess.run(["fsfreeze", "--freeze", disk], check=True)
        frozen_at = time.monotonic()
        told_at = said.when("has not answered for", 30)
        figure("a hung disk is said after", told_at - frozen_at, "s", at_most=STALL_S + 2)
        time.sleep(3 * STALL_S)  # longer than anybody's patience with a worker
        subprocess.run(["fsfreeze", "--unfreeze", disk], check=True)
        said.when("Going on", 20)
        assert scanning.wait(90) == 0, said.lines
        catalogues.check(line.db)
        exact(line)
        line.at_rest()
        (quarantined,) = line.query("SELECT count(*) FROM chunk WHERE state = 'quarantined'")
        figure("chunks given up because of it", quarantined[0], at_most=0)


@pytest.mark.row(24)
def test_an_output_disk_that_turns_read_only_is_said_and_gone_on_with(line, figure):
    line.build(TREE)
    with own_disk(line.folder) as disk, fault_mount(line.real, rules=[latency(6)], **NO_CACHE) as share:
        line.data = disk / "data"
        line.data.mkdir()
        line.db = line.data / "x.db"
        scanning, said = talkative(line, share.path, *SMALL)
        until(lambda: share.asked("opendir"), lambda n: n > 20)
        # As the kernel does it to a disk that fails, without asking who writes.
        device = os.stat(disk).st_dev
        loop = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
        Path(f"/sys/fs/ext4/{loop}/trigger_fs_error").write_text("1")
        began = time.monotonic()
        status = scanning.wait(60)
        assert status == 12, (status, said.lines)
        took_s = time.monotonic() - began
        figure("a disk that turns read-only is said after", took_s, "s", at_most=STALL_S + 10)
        assert not line.workers()
        refused = line.command(*line.words(share.path), code=12)
        assert "read-only" in refused.err.lower()
        subprocess.run(["umount", "--lazy", disk], check=True)
        subprocess.run(["mount", "-o", "loop", line.folder / "disk.img", disk], check=True)
        share.set()
        line.scan(share.path, *SMALL, code=0)
        exact(line)


@pytest.mark.row(23)
def test_two_controllers_and_two_paths_are_refused(line, figure):
    line.build(TREE)
    refused = 0
    other = line.folder / "other"
    other.mkdir()
    subprocess.run(["mount", "--bind", line.data, other], check=True)
    try:
        slow = [latency(10)]
        with fault_mount(line.data) as second, fault_mount(line.real, rules=slow, **NO_CACHE) as share:
            scanning = line.start(share.path)
            until(lambda: share.asked("opendir"), lambda n: n > 3)
            same = line.command(*line.words(share.path), code=12)
            assert f"process {scanning.pid}" in same.err
            refused += 1
            words = [word.replace(str(line.data), str(other)) for word in line.words(share.path)]
            bound = line.command(*words)
            assert bound.status == 12, bound.err
            refused += 1
            words = [str(w).replace(str(line.data), str(second.path)) for w in line.words(line.real)]
            words[words.index("m")] = "another"
            through = line.command(*words)
            assert through.status == 12, through.err
            assert "by another path" in through.err
            refused += 1
            share.set()
            line.finish(scanning, code=0)
    finally:
        subprocess.run(["umount", "--lazy", other], check=True)
    exact(line)
    figure("second controllers refused (same path, bind mount, FUSE)", f"{refused} of 3")
