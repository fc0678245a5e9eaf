"""Run the matrix of faults and make docs/reliability.md of what was measured.

Touches: what the tests in tests/faults touch; docs/reliability.md, written only where no test failed.

    reliability.py            run all, every step of everything; about half an hour on two CPUs
    reliability.py FIGURES    make the document of the figures of earlier runs (see SMART_SCAN_FIGURES)

SMART_SCAN_STEPS, SMART_SCAN_SCANS and SMART_SCAN_HISTORIES make it shorter; the document says how many it
took.

Exit status: that of the tests.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "reliability.md"
WHOLE = {"SMART_SCAN_STEPS": "100000", "SMART_SCAN_SCANS": "100", "SMART_SCAN_HISTORIES": "100000"}

HEAD = """# Reliability

<!-- Made by `make reliability` of what its tests measured; run that. -->

What happens to a scan when storage, engine, disk or machine fail: each row is a test with the real fault, on
the command line that users have. Every one of them also asserts that the scan ends, its exit status, that the
catalogue passes SQLite's `integrity_check`, that the directories found are the sum of those in each state,
and that no process, container, mount or folder is left but the workers that the certificate lists as
abandoned; and that those are gone, too, once the storage answers again. The stall limit is 2 s in these tests
and 60 s by default (`--stall-after`).

Measured on {machine}, on {day}.
{counts}
`make test` runs all rows too, with a sample of the steps where there are hundreds, and `make soak` goes on
with new seeds until something fails. What your own box does, `smartscan doctor --drill` shows.
"""


def run(figures: Path) -> int:
    """Run the tests of the matrix, and of the supervisor, with nothing left out."""
    environment = {**WHOLE, **os.environ, "SMART_SCAN_FIGURES": str(figures)}
    tests = ["tests/faults", "tests/test_supervisor.py"]
    command = [sys.executable, "-m", "pytest", "-q", *tests, *sys.argv[1:]]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


def read(figures: Path) -> dict[int, list[dict[str, Any]]]:
    """Sort what the tests told by row; of a test that was skipped once and then ran, what it told then."""
    last: dict[str, dict[str, Any]] = {}
    for told in map(json.loads, figures.read_text("utf-8").splitlines()):
        if told["outcome"] != "skipped" or told["test"] not in last:
            last[told["test"]] = told
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for told in last.values():
        for row in told["rows"]:
            found[row].append(told)
    return found


def document(told: dict[int, list[dict[str, Any]]], rows: dict[int, tuple[str, str]]) -> str:
    """Render the page: the table of rows, then every figure."""
    parts = [HEAD.format(machine=_machine(), day=time.strftime("%Y-%m-%d"), counts=_counts())]
    parts += ["| # | fault | must happen | tests |", "|---|---|---|---|"]
    for row, (fault, must) in rows.items():
        parts.append(f"| {row} | {fault} | {must} | {_count(told.get(row, []))} |")
    parts += ["", "## Figures", "", "| # | what was measured | value | limit |", "|---|---|---|---|"]
    for figure in _figures(told):
        parts.append(f"| {figure['rows']} | {figure['what']} | {figure['value']} | {figure['bound']} |")
    reasons = {(row, test["reason"]) for row, tests in told.items() for test in tests if test["reason"]}
    if reasons:
        parts += ["", "## Not run here", "", *(f"- row {row}: {reason}" for row, reason in sorted(reasons))]
    return "\n".join(parts) + "\n"


def _figures(told: dict[int, list[dict[str, Any]]]) -> list[dict[str, str]]:
    """List every figure once, with the rows it belongs to; values of several cases of one test are joined."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row, tests in sorted(told.items()):
        for test in tests:
            if row != min(test["rows"]):
                continue
            label = ", ".join(map(str, sorted(test["rows"])))
            for figure in test["figures"]:
                known = found.setdefault((label, figure["what"]), dict(figure, rows=label, value=""))
                if figure["value"] not in known["value"].split("; "):
                    known["value"] = "; ".join(filter(None, [known["value"], figure["value"]]))
    return list(found.values())


def _count(tests: list[dict[str, Any]]) -> str:
    passed = sum(test["outcome"] == "passed" for test in tests)
    skipped = sum(test["outcome"] == "skipped" for test in tests)
    return f"{passed} passed" + (f", {skipped} skipped" if skipped else "")


def _counts() -> str:
    """Say how much of everything there is to try was tried."""
    took = {name: int(os.environ.get(name, whole)) for name, whole in WHOLE.items()}
    steps = took["SMART_SCAN_STEPS"]
    many = "every step" if steps >= int(WHOLE["SMART_SCAN_STEPS"]) else f"at most {steps} steps of each test"
    return (
        f"`make reliability` took {many}, and the supervisor came through {took['SMART_SCAN_HISTORIES']:,}\n"
        "random histories with all invariants checked after every event."
    )


def _machine() -> str:
    release = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    kernel = ".".join(platform.release().split(".")[:2])
    return f"{os.cpu_count()} CPUs, {release}, kernel {kernel}"


def main() -> int:
    """Run, and write the document where nothing failed."""
    sys.path.insert(0, str(ROOT / "tests" / "faults"))
    rows = importlib.import_module("rows").ROWS

    given = [Path(word) for word in sys.argv[1:] if Path(word).is_file()]
    with tempfile.TemporaryDirectory() as folder:
        figures = given[0] if given else Path(folder) / "figures.jsonl"
        status = 0 if given else run(figures)
        if status == 0:
            DOCUMENT.write_text(document(read(figures), rows), "utf-8")
            print(f"wrote {DOCUMENT.relative_to(ROOT)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
