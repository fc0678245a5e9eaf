"""Row 26: scans of random trees with random faults, one after the other in one process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rows import ROWS
from steps import SEED

HERE = Path(__file__).parent
SCANS = int(os.environ.get("SMART_SCAN_SCANS", "4"))
LOADED_LATER_KIB = 2048


@pytest.mark.row(26)
@pytest.mark.fuse
@pytest.mark.slow
@pytest.mark.timeout(60 + 60 * SCANS)
def test_scans_with_random_faults_hold_and_nothing_grows(tmp_path, figure):
    command = [sys.executable, HERE / "soak.py", tmp_path, f"{SEED}", f"{SCANS}"]
    ran = subprocess.run(command, capture_output=True, text=True)
    told = [json.loads(line) for line in ran.stdout.splitlines()]
    assert ran.returncode == 0, f"seed {SEED + len(told)}: {ran.stderr}"
    seeds = f"seeds {SEED} to {SEED + SCANS - 1}"
    figure(f"scans with random faults ({seeds}) that held", f"{len(told)} of {SCANS}")
    ends = [scan["status"] for scan in told]
    counts = [ends.count(0), ends.count(3), sum(end not in (0, 3) for end in ends)]
    figure("of these complete, incomplete, mount dead", ", ".join(map(str, counts)))
    warm, last = told[min(2, len(told) - 1)], told[-1]
    figure("file descriptors more at the end", last["fds"] - warm["fds"], at_most=0)
    figure("threads more at the end", last["threads"] - warm["threads"], at_most=0)
    # A way through the code that is taken for the first time loads what it needs, once.
    grown = max(0, last["rss_kib"] - warm["rss_kib"] - LOADED_LATER_KIB) / max(1, len(told) - 3)
    figure("memory more with each scan", grown, "KiB", at_most=500)


def test_every_row_of_the_matrix_has_a_test():
    found: set[int] = set()
    for file in HERE.glob("test_*.py"):
        for numbers in re.findall(r"pytest\.mark\.row\(([\d, ]+)\)", file.read_text()):
            found.update(map(int, numbers.split(",")))
    assert found == set(ROWS)
