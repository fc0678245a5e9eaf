"""The whole line in containers, as a user has it: the script, a controller, one worker per chunk."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from containers import CONTROLLER_IMAGE, SCRIPT, WORKER_IMAGE, docker_command, engine_url, until
from smartscan.faults import fault_mount, hang, latency
from test_engine_docker import private_engine
from trees import Tree, build, find_listing

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
]

NAMESPACE_LABEL = "io.github.smart-scanner.namespace"
CONTROLLER_LABEL = "io.github.smart-scanner.controller"
TREE: Tree = {
    "films": {f"in {y}": {f"film {n}": {"1.mkv": 20_000, "2.nfo": 7} for n in range(30)} for y in range(40)},
    "odd: 'x', \"y\" $(touch z)": {b"\xff\n": 3, "-rf": {"deep": {"er": 1}}},
    "empty": {},
    "top": 7,
    ".hidden": {"inside": 70_000},
}


class Home:
    """A data directory of its own, a share, and the script."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data of: 'us', \"x\""
        self.share = folder / 'share: "a", b'
        self.share.mkdir()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SMART_SCAN_")},
            "SMART_SCAN_DIR": os.fspath(self.data),
            "SMART_SCAN_ENGINE": "docker",
            "SMART_SCAN_BUILD_CACHE": "keep",
        }
        if base := os.environ.get("SMART_SCAN_BASE"):
            self.environment["SMART_SCAN_BASE"] = base

    def command(self, *words: str) -> list[str]:
        return [os.fspath(SCRIPT), *words]

    def scan(self, *words: str, path: Path | None = None) -> list[str]:
        return self.command("scan", os.fspath(path or self.share), "Media", "--chunk-entries", "200", *words)

    def run(self, *words: str, cwd: Path | str = "/") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), env=self.environment, cwd=cwd, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=150,
        )  # fmt: skip

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            words, env=self.environment, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def query(self, sql: str) -> list[Any]:
        database = sqlite3.connect((self.data / "smart_catalog.db").as_uri() + "?mode=ro", uri=True)
        database.text_factory = bytes
        with contextlib.closing(database):
            return database.execute(sql).fetchall()

    def files(self) -> dict[bytes, tuple[int, int]]:
        """Give the catalogue's files by path below the share, with size and mtime."""
        prefix = os.fsencode(self.share) + b"/"
        rows = self.query("SELECT path, size, mtime_ns FROM files")
        return {path.removeprefix(prefix): (size, mtime) for path, size, mtime in rows}

    def expected(self) -> dict[bytes, tuple[int, int]]:
        """Give what find(1) says of the same."""
        listing = find_listing(self.share)
        return {path: (seen.size, seen.mtime_ns) for path, seen in listing.items() if seen.type == "f"}

    def containers(self, label: str) -> list[str]:
        """List the containers with a label that mount something of our data directory, running or not."""
        listed = docker_command("ps", "--all", "--quiet", "--filter", f"label={label}").stdout.split()
        seen = json.loads(docker_command("inspect", *listed).stdout) if listed else []
        data = os.fspath(self.data)
        return [one["Id"] for one in seen if any(mount["Source"].startswith(data) for mount in one["Mounts"])]

    def workers(self) -> list[str]:
        return self.containers(NAMESPACE_LABEL)

    def controllers(self) -> list[str]:
        return self.containers(CONTROLLER_LABEL)

    def assert_nothing_is_left(self) -> None:
        assert self.controllers() == []
        assert self.workers() == []
        work = self.data / "work"
        assert [os.fspath(path) for path in work.rglob("*") if path.parent != work] == []


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    engine_url()
    home = Home(tmp_path)
    yield home
    for container in home.controllers() + home.workers():
        docker_command("rm", "--force", container)


def test_the_catalogue_on_the_host_is_what_find_says(home: Home) -> None:
    build(home.share, TREE)
    scanned = home.run(*home.scan()[1:])
    assert scanned.returncode == 0, scanned.stderr
    assert home.files() == home.expected()
    assert len(home.query("SELECT id FROM chunk WHERE state = 'done'")) > 2
    home.assert_nothing_is_left()
    (home.share / "top").unlink()
    (home.share / "new").write_text("new")
    assert home.run(*home.scan()[1:]).returncode == 0
    assert home.files() == home.expected()
    stats = home.run("stats", "--json")
    assert stats.returncode == 0, stats.stderr
    json.loads(stats.stdout)
    home.assert_nothing_is_left()


def test_a_share_that_the_worker_has_one_of_its_own_of(home: Home) -> None:
    scanned = home.run("scan", "/etc", "System")
    assert scanned.returncode == 0, scanned.stderr
    assert (b"/etc/passwd", Path("/etc/passwd").stat().st_size) in home.query("SELECT path, size FROM files")
    home.assert_nothing_is_left()


def test_relative_paths_mean_what_they_mean_here(home: Home) -> None:
    build(home.share, TREE)
    scanned = home.run("scan", home.share.name, "Media", cwd=home.share.parent)
    assert scanned.returncode == 0, scanned.stderr
    assert home.files() == home.expected()


def test_the_catalogue_belongs_to_puid_and_pgid(home: Home) -> None:
    build(home.share, TREE)
    home.environment |= {"PUID": "99", "PGID": "100", "UMASK": "027"}
    assert home.run(*home.scan()[1:]).returncode == 0
    seen = (home.data / "smart_catalog.db").stat()
    assert (seen.st_uid, seen.st_gid, seen.st_mode & 0o777) == (99, 100, 0o640)


def test_exit_statuses_come_through(home: Home) -> None:
    missing = home.run("scan", "/no/such: share", "Media")
    assert missing.returncode == 10
    assert missing.stderr == "run_smart_scan.sh: there is no directory /no/such: share.\n"
    assert home.run("scan").returncode == 2
    assert home.run("story", "no-number").returncode == 2


@pytest.mark.fuse
def test_a_dead_share_is_said_before_any_container(home: Home) -> None:
    with fault_mount(home.share, rules=[hang("*")]) as mount:
        time.sleep(1.2)  # what the kernel still knew of the root
        begun = time.monotonic()
        scanned = home.run(*home.scan(path=mount.path)[1:])
        assert (scanned.returncode, "does not answer" in scanned.stderr) == (4, True)
        assert time.monotonic() - begun < 15


@pytest.mark.fuse
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_scan_that_is_stopped_goes_on_where_it_stopped(home: Home, number: signal.Signals) -> None:
    build(home.share, TREE)
    with fault_mount(home.share, rules=[latency(40)]) as mount:
        command = home.scan(path=mount.path)
        with home.start(*command) as scan:
            until(home.workers, bool, 90)
            time.sleep(1)
            os.killpg(scan.pid, number)
            scan.communicate(timeout=60)
            assert scan.returncode == 130
        home.assert_nothing_is_left()
        mount.set()
        assert home.run(*command[1:]).returncode == 0
    prefix = os.fsencode(mount.path) + b"/"
    rows = home.query("SELECT path, size FROM files")
    assert {path.removeprefix(prefix): size for path, size in rows} == {
        path: size for path, (size, _) in home.expected().items()
    }


@pytest.mark.fuse
def test_a_controller_that_was_killed_finds_its_workers_again(home: Home) -> None:
    build(home.share, TREE)
    with fault_mount(home.share, rules=[latency(40)]) as mount:
        command = home.scan(path=mount.path)
        with home.start(*command) as scan:
            until(home.workers, bool, 90)
            time.sleep(1)
            docker_command("kill", *home.controllers())
            scan.communicate(timeout=60)
            assert scan.returncode == 137
        assert home.workers()
        mount.set()
        again = home.run(*command[1:])
        assert again.returncode == 0, again.stderr
    prefix = os.fsencode(mount.path) + b"/"
    rows = home.query("SELECT path, size FROM files")
    assert {path.removeprefix(prefix): size for path, size in rows} == {
        path: size for path, (size, _) in home.expected().items()
    }
    home.assert_nothing_is_left()


@pytest.mark.fuse
def test_a_controller_whose_engine_comes_back_with_another_socket_does_not_wait_for_it(home: Home) -> None:
    with tempfile.TemporaryDirectory(prefix="engine-") as short, private_engine(Path(short), True) as daemon:
        images = Path(short) / "images.tar"
        docker_command("save", "--output", str(images), WORKER_IMAGE, CONTROLLER_IMAGE, check=True)
        docker_command("--host", daemon.url, "load", "--input", str(images), check=True)
        images.unlink()
        home.environment["DOCKER_HOST"] = daemon.url

        def running() -> list[str]:
            mark = f"label={CONTROLLER_LABEL}"
            return docker_command("--host", daemon.url, "ps", "-q", "--filter", mark).stdout.split()

        build(home.share, TREE)
        with fault_mount(home.share, rules=[latency(40)]) as mount:
            command = home.scan("--max-containers", "1", path=mount.path)
            with home.start(*command) as scan:
                until((home.data / "work" / "Media").exists, bool, 60)
                daemon.stop(signal.SIGTERM)
                scan.communicate(timeout=60)  # its terminal went with the engine, the controller did not
            daemon.start()
            until(running, lambda found: not found, 90)
            assert home.query("SELECT state FROM scan") == [(b"cancelled",)]
            mount.set()
            assert home.run(*command[1:]).returncode == 0
        assert len(home.files()) == len(home.expected())
        assert docker_command("--host", daemon.url, "ps", "-aq").stdout == ""


def test_two_scans_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    engine_url()
    homes = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        home = Home(tmp_path / name)
        build(home.share, TREE)
        homes.append(home)
    scans = [home.start(*home.scan()) for home in homes]
    for home, scan in zip(homes, scans, strict=True):
        _, errors = scan.communicate(timeout=120)
        assert scan.returncode == 0, errors
        assert home.files() == home.expected()
        home.assert_nothing_is_left()


def test_a_terminal_is_passed_through(home: Home) -> None:
    build(home.share, TREE)
    shown = bytearray()
    controller, terminal = pty.openpty()

    def read() -> None:
        with contextlib.suppress(OSError):
            while chunk := os.read(controller, 4096):
                shown.extend(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        done = subprocess.run(
            home.scan(), env={**home.environment, "TERM": "xterm"}, cwd="/", stdin=terminal, stdout=terminal,
            stderr=terminal, timeout=120,
        )  # fmt: skip
    finally:
        os.close(terminal)
        reader.join(10)
        os.close(controller)
    assert done.returncode == 0
    assert b"\x1b[" in shown  # the program knew that somebody watches


def test_the_doctor_looks_at_a_share_that_its_container_does_not_have(home: Home) -> None:
    def share(*words: str) -> tuple[int, str, bool]:
        done = home.run("doctor", *words, "--json")
        (found,) = [one for one in json.loads(done.stdout) if one["what"] == "share"]
        return done.returncode, found["says"], found["ok"]

    assert share("/usr") == (0, "/usr is a directory, and answers", True)
    assert share("/no where") == (1, "there is no directory /no where", False)


@pytest.mark.fuse
def test_the_doctor_says_of_a_share_that_hangs_that_it_does(home: Home) -> None:
    with fault_mount(home.share, rules=[hang("*")]) as mount:
        time.sleep(1.2)  # what the kernel still knew of the root
        done = home.run("doctor", os.fsdecode(mount.path), "--json")
    (found,) = [one for one in json.loads(done.stdout) if one["what"] == "share"]
    assert (done.returncode, found["ok"]) == (1, False)
    assert "does not answer within 10 seconds" in found["says"]


@pytest.mark.fuse
def test_the_drill_proves_it_in_containers(home: Home) -> None:
    done = home.run("doctor", "--drill", "--json")
    found = json.loads(done.stdout or "[]")
    assert done.returncode == 0, found or done.stderr
    assert any("on the engine docker" in one["says"] for one in found)
    assert found[-1]["what"] == "left"
    home.assert_nothing_is_left()
    assert os.fspath(home.data).encode() not in Path("/proc/self/mountinfo").read_bytes()
    assert list(home.data.iterdir()) == []
