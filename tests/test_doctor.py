"""`doctor` from outside, on this machine as it is."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from command import command_of, run, until
from smartscan.faults import fault_mount, hang
from users import NOBODY


def doctor(*words: object) -> tuple[int, dict[str, dict[str, object]]]:
    done = subprocess.run(
        [sys.executable, "-m", "smartscan.cli", "doctor", "--engine", "local", "--json", *map(str, words)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, {f["what"]: f for f in json.loads(done.stdout)}


def test_it_looks_at_all_that_a_scan_needs(tmp_path):
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "file").touch()
    _, found = doctor(tmp_path / "share", "--db", tmp_path / "x.db")
    assert {"program", "walker", "engine", "limits", "data", "catalogue", "share"} <= found.keys()
    assert found["share"]["ok"]
    assert not list(tmp_path.glob("*.db*"))


@pytest.mark.parametrize(("name", "says"), [("gone", "No such file"), ("empty", "is empty")])
def test_a_share_that_cannot_be_scanned_is_said(tmp_path, name, says):
    (tmp_path / "empty").mkdir()
    status, found = doctor(tmp_path / name, "--db", tmp_path / "x.db")
    assert status == 1
    assert says in found["share"]["says"]


@pytest.mark.fuse
def test_a_hanging_share_does_not_hang_the_doctor(tmp_path):
    (tmp_path / "real").mkdir()
    with fault_mount(tmp_path / "real", rules=[hang("", "opendir", "readdir")]) as share:
        status, found = doctor(share.path, "--db", tmp_path / "x.db")
    assert status == 1
    assert "did not answer" in found["share"]["says"]


DRILL = [sys.executable, "-m", "smartscan.cli", "doctor", "--drill", "--engine", "local", "--json"]


def traces(data: Path) -> list[str]:
    """What a drill may have left: its mount, its folder, its processes."""
    mounted = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(data) in line]
    running = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.fsencode(data) in (process / "environ").read_bytes() + (process / "cmdline").read_bytes():
                running.append(process.name)
    return mounted + running + [str(path) for path in (data.iterdir() if data.exists() else ())]


@pytest.mark.fuse
def test_the_drill_proves_that_a_scan_of_a_share_that_hangs_ends(tmp_path):
    data = tmp_path / "data, with 'spaces'"
    done = subprocess.run(
        [*DRILL, "--db", data / "x.db"], capture_output=True, text=True, timeout=170, check=False
    )
    found = json.loads(done.stdout)
    assert done.returncode == 0, found
    says = {f"{f['what']} {f['says']}" for f in found}
    looked_at = {"share", "scan", "named", "asked", "files", "account", "retry", "left"}
    assert {f["what"] for f in found} == looked_at
    assert any("does not answer: open:" in text and "did not answer for" in text for text in says)
    assert any("exit status 3" in text for text in says)
    assert traces(data) == []
    assert not data.exists(), "it was not there before"


@pytest.mark.fuse
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_drill_that_is_ended_in_the_middle_leaves_nothing(tmp_path, number):
    data = tmp_path / "data"
    data.mkdir()
    with subprocess.Popen([*DRILL, "--db", data / "x.db"], stdout=subprocess.PIPE) as drill:
        until(lambda: list(data.glob("drill-*/work/*/*/progress.json")))
        time.sleep(1)  # something hangs by now
        drill.send_signal(number)
        drill.communicate(timeout=60)
    assert drill.returncode == (130 if number != signal.SIGKILL else -9)
    if number == signal.SIGKILL:
        assert traces(data)
        run("cleanup", "--db", data / "x.db")
    until(lambda: not traces(data))


@pytest.mark.root
def test_a_drill_says_in_one_sentence_why_it_cannot_be(tmp_path):
    nobody = command_of(NOBODY)
    if nobody is None:
        pytest.skip("no Python here that an ordinary user may run")
    said = run("doctor", "--drill", "--db", tmp_path / "x.db", code=1, **nobody).stderr
    assert said.startswith("smartscan: the drill mounts a share that hangs, which only root may; run it as")
    assert said.count("\n") == 1
    assert run("doctor", "--drill", "/mnt", "--db", tmp_path / "x.db", code=2).stderr.count("\n") == 1
