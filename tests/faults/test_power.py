"""The power is cut: a kernel of its own (User-Mode Linux) is killed in the middle of a scan."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from line import Line
from steps import SAMPLE, SEED

import catalogues
from trees import find_listing

INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/run TMPDIR=/run PYTHONPATH={packages}
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mount -t ext4 /dev/ubda {disk} || exit 1
echo SCANNING
{python} -m smartscan.cli scan {share} m --db {disk}/x.db --engine local --chunk-entries 60 --max-containers 2
echo STATUS $?
sync
halt -f
"""


class Machine:
    """A computer that boots this host's files, read-only, and has one disk of its own."""

    def __init__(self, line: Line, kernel: str) -> None:
        self.kernel, self.folder = kernel, line.folder
        self.image, self.disk = line.folder / "disk.img", line.folder / "disk"
        self.disk.mkdir()
        with self.image.open("wb") as file:
            file.truncate(64 << 20)
        subprocess.run(["mkfs.ext4", "-q", self.image], check=True)
        self.init = line.folder / "init"
        packages = os.pathsep.join(path for path in sys.path if path)
        self.init.write_text(
            INIT.format(packages=packages, python=sys.executable, share=line.real, disk=self.disk)
        )
        self.init.chmod(0o755)

    def boot(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.kernel, "rootfstype=hostfs", "rootflags=/", "ro", f"init={self.init}", "mem=512M",
             f"ubd0={self.image}", "con=null", "con0=null,fd:1"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", start_new_session=True,
        )  # fmt: skip

    def cut(self, machine: subprocess.Popen[str], after_s: float) -> None:
        """Cut the power so long after the scan began; it may have ended by then, but not be refused."""
        for text in machine.stdout:
            if "SCANNING" in text:
                break
        time.sleep(after_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(machine.pid, signal.SIGKILL)
        said, _ = machine.communicate()
        assert "STATUS" not in said or "STATUS 0" in said, said[-1500:]

    @contextlib.contextmanager
    def opened(self) -> Iterator[Path]:
        """Look at the disk from here, after its journal was replayed."""
        subprocess.run(["mount", "-o", "loop", self.image, self.disk], check=True)
        try:
            yield self.disk / "x.db"
        finally:
            subprocess.run(["umount", self.disk], check=True)


@pytest.mark.row(12)
@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_power_cut_in_the_middle_loses_nothing_acknowledged(line, figure):
    kernel = shutil.which("linux")
    if not kernel or b"User Mode Linux" not in Path(kernel).read_bytes():
        pytest.skip("needs User-Mode Linux (package user-mode-linux), to cut its power")
    line.build({f"d{n:03d}": {f"f{m}": m for m in range(9)} | {"below": {"x": n}} for n in range(40)})
    machine, chance = Machine(line, kernel), random.Random(SEED)
    cuts, acknowledged = max(3, min(30, SAMPLE // 8)), 0
    for _ in range(cuts):
        machine.cut(machine.boot(), chance.uniform(1.2, 4.5))
        with machine.opened() as db:
            if db.exists() and db.stat().st_size:
                line.db = db
                ((ok,),) = line.query("PRAGMA integrity_check")
                assert ok == b"ok"
                with contextlib.suppress(Exception):
                    ((rows,),) = line.query("SELECT count(*) FROM entry")
                    assert rows >= acknowledged, "what was there after the last cut is there"
                    acknowledged = rows
    last = machine.boot()
    out, _ = last.communicate(timeout=100)
    assert "STATUS 0" in out, out[-3000:]
    with machine.opened() as db:
        catalogues.check(db)
        have = {path: entry.size for path, entry in catalogues.listing(db).items()}
    want = {path: entry.size for path, entry in find_listing(line.real).items() if path}
    assert have == want
    figure("rows there after the last cut", acknowledged, f"of {len(want)}")
    figure("power cuts in the middle of one scan, then the same command: exact", f"{cuts} of {cuts}")
