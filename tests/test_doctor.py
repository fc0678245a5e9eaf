"""`doctor` from outside, on this machine as it is."""

import json
import subprocess
import sys

import pytest

from fault_mount import fault_mount, hang


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
