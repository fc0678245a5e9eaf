"""run_smart_scan.sh by itself: a stand-in for the engine's command line says what it was asked to do."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from containers import SCRIPT
from smartscan import __version__

ENGINE = """#!/bin/sh
# `run` prints its words, one a line; the image is current; SAY and STATUS are what to answer instead.
case $1 in
version) [ -z "${HANG:-}" ] || exec sleep 60; [ -z "${SAY:-}" ] || { echo "$SAY" >&2; exit 1; }; echo 28.0 ;;
context) echo "unix://$SOCKET" ;;
image) cat "$SUM" ;;
build) [ -z "${BUILD_FAILS:-}" ] || { echo "no route to the registry" >&2; exit 1; } ;;
run) printf '%s\\n' "$@"; exit "${STATUS:-0}" ;;
ps) ;;
esac
"""


class Host:
    """A PATH on which `docker` is the stand-in, and an environment that has nothing else of ours."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "docker.sock"
        self.bin = folder / "bin"
        self.bin.mkdir()
        (self.bin / "docker").write_text(ENGINE)
        (self.bin / "docker").chmod(0o755)
        self.sum = folder / "sum"
        self.environment = {
            "PATH": f"{self.bin}:{os.defpath}:/usr/sbin:/sbin", "HOME": str(folder / "home"),
            "SOCKET": str(self.socket), "SUM": str(self.sum), "SMART_SCAN_DIR": str(folder / "data"),
            "SMART_SCAN_ENGINE": "docker",
        }  # fmt: skip
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.fspath(self.socket))
        sources = subprocess.run(
            ["sh", "-c", f"here={SCRIPT.parent}; {source_sum()}; source_sum"], capture_output=True, check=True
        )
        self.sum.write_bytes(sources.stdout)

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        shell = shutil.which("dash") or "sh"
        return subprocess.run(
            [shell, SCRIPT, *words], env=self.environment | environment, cwd=self.folder,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    def program_words(self, *words: str) -> list[str]:
        """Give what the program inside the container is called with."""
        ran = self.run(*words)
        assert ran.returncode == 0, ran.stderr
        asked = ran.stdout.splitlines()
        return asked[asked.index("nas-scanner-smart:latest") + 1 :]


def source_sum() -> str:
    found = re.search(r"^source_sum\(\) \{.*?^\}", SCRIPT.read_text(), re.MULTILINE | re.DOTALL)
    assert found
    return found[0]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_help_needs_nothing(host: Host) -> None:
    shown = host.run("--help", SMART_SCAN_ENGINE="auto", SAY="no engine")
    assert (shown.returncode, shown.stderr) == (0, "")
    for command in ("scan", "plan", "monitor", "stats", "story", "problems", "cleanup", "setup", "update",
                    "logs"):  # fmt: skip
        assert re.search(rf"^  .*\b{command}\b", shown.stdout, re.MULTILINE), command
    assert host.run().returncode == 2


def test_words_reach_the_program_as_they_are(host: Host) -> None:
    words = ["stats", "--json", "it's \"this\" $(touch x) `y` *", "", "a  b", "\\", "-x=é"]
    assert host.program_words(*words) == words
    assert list(host.folder.glob("x")) == []


def test_relative_paths_are_made_absolute_and_names_are_not(host: Host) -> None:
    (host.folder / "Media").mkdir()
    here = str(host.folder)
    words = host.program_words("scan", "--exclude", "Media", "--json", "Media", "Media", "--chunk-size", "50")
    assert words == ["scan", "--exclude", "Media", "--json", f"{here}/Media", "Media", "--chunk-size", "50"]
    assert host.program_words("stats", "Media", "--db", "x.db") == ["stats", "Media", "--db", f"{here}/x.db"]
    assert host.program_words("stats", "--db=x.db") == ["stats", f"--db={here}/x.db"]
    assert host.program_words("scan", "/", "root")[1] == "/"
    (host.folder / "-odd").mkdir()
    assert host.program_words("scan", "--", "-odd", "--db") == ["scan", "--", f"{here}/-odd", "--db"]
    words = host.program_words("scan", "Media", "--", "--db=x.db")
    assert words == ["scan", f"{here}/Media", "--", "--db=x.db"]
    words = host.program_words("scan", "--exclude", "--db", "Media", "a")
    assert words == ["scan", "--exclude", "--db", f"{here}/Media", "a"]
    (host.folder / "z:" / "home").mkdir(parents=True)
    for share in ("z:", "z:/home"):
        assert host.program_words("scan", "--exclude=a:/b", share, "N")[2:] == [f"{here}/{share}", "N"]
    (host.folder / "-").mkdir()
    assert host.program_words("scan", "-", "N") == ["scan", f"{here}/-", "N"]


def test_the_catalogue_is_named_by_a_path_that_the_container_has(host: Host) -> None:
    here = str(host.folder)
    (host.folder / "deep").mkdir()
    (host.folder / "cat").mkdir()
    for words in (["stats", "--db", "deep/../cat/x.db"], ["stats", f"--db={here}/deep/../cat/x.db"]):
        ran = host.run(*words)
        assert f'type=bind,"source={here}/cat","target={here}/cat"' in ran.stdout
        assert f"{here}/cat/x.db" in ran.stdout.splitlines()[-1]
    ran = host.run("stats", SMART_SCAN_DB="cat/x.db")
    assert f'type=bind,"source={here}/cat","target={here}/cat"' in ran.stdout


def test_a_link_to_the_catalogue_is_not_followed_out_of_its_directory(host: Host) -> None:
    data, disk = host.folder / "data", host.folder / "disk"
    data.mkdir()
    disk.mkdir()
    link = data / "smart_catalog.db"
    for target in ("../disk/big.db", "../gone/big.db", "../database/big.db", "smart_catalog.db"):
        link.symlink_to(target)
        for words, environment in ((["stats"], {}), (["stats", "--db", str(link)], {}),
                                   (["stats"], {"SMART_SCAN_DB": str(link)})):  # fmt: skip
            refused = host.run(*words, **environment)
            assert (refused.returncode, refused.stdout) == (12, "")
            assert f"the catalogue {link} is a link" in refused.stderr
        link.unlink()
    link.symlink_to("other.db")
    assert host.program_words("stats") == ["stats"]


def test_a_settings_file_goes_along(host: Host) -> None:
    settings = host.folder / "my settings.toml"
    settings.touch()
    for name in (str(settings), settings.name):
        ran = host.run("stats", SMART_SCAN_CONFIG=name)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert f'type=bind,"source={settings}","target={settings}",readonly' in ran.stdout.splitlines()
        assert f"SMART_SCAN_CONFIG={settings}" in ran.stdout.splitlines()
    for_all = host.folder / "home/.config/smart-scanner/smart_scan.toml"
    for_all.parent.mkdir(parents=True)
    for_all.touch()
    assert f"SMART_SCAN_CONFIG={for_all}" in host.run("stats").stdout.splitlines()
    (host.folder / "data").mkdir(exist_ok=True)
    (host.folder / "data/smart_scan.toml").touch()  # which comes first, and lies where the program looks
    assert "SMART_SCAN_CONFIG" not in host.run("stats").stdout


@pytest.mark.parametrize("command", ["setup", "update", "logs"])
def test_commands_of_the_script_alone_refuse_what_they_do_not_know(host: Host, command: str) -> None:
    ran = host.run(command, "--everything")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith(f"run_smart_scan.sh: {command} has no argument --everything")
    assert host.run(command, "--help").stdout.startswith("Usage: ")


def test_the_container_gets_the_data_directory_and_the_socket_and_never_the_share(host: Host) -> None:
    (host.folder / "share").mkdir()
    data = host.folder / 'data, "of" \'us\': x'
    ran = host.run("scan", "share", "s", SMART_SCAN_DIR=str(data), SMART_SCAN_CHUNK_SIZE="7")
    asked = ran.stdout.splitlines()
    mounts = [asked[number + 1] for number, word in enumerate(asked) if word == "--mount"]
    quoted = str(data).replace('"', '""')
    assert mounts == [
        f'type=bind,"source={quoted}","target={quoted}"',
        f'type=bind,"source={host.socket}","target=/var/run/docker.sock"',
    ]
    assert data.is_dir()
    assert f"SMART_SCAN_DIR={data}" in asked
    assert "SMART_SCAN_CHUNK_SIZE" in asked
    assert "--tty" not in asked
    assert "none" in asked


def test_only_the_drill_may_mount(host: Host) -> None:
    assert "SYS_ADMIN" not in host.run("doctor").stdout
    assert "SYS_ADMIN" not in host.run("stats", "--drill").stdout


def test_a_proxy_for_the_socket_is_honoured(host: Host) -> None:
    asked = host.run("stats", DOCKER_HOST="tcp://127.0.0.1:9").stdout.splitlines()
    assert not [word for word in asked if "docker.sock" in word]
    assert asked[asked.index("DOCKER_HOST") - 1] == "--env"


def test_the_exit_status_is_the_programs(host: Host) -> None:
    assert host.run("stats", STATUS="3").returncode == 3


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("permission denied while trying to connect", "permission denied while trying to connect"),
        ("Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?", "Cannot connect"),
    ],
)
def test_an_engine_that_cannot_be_used_is_one_sentence(host: Host, said: str, told: str) -> None:
    ran = host.run("stats", SAY=said)
    assert ran.returncode == 11
    assert ran.stderr.startswith(f"run_smart_scan.sh: docker cannot be used: {told}")
    assert ran.stderr.count("\n") == 1


@pytest.mark.slow
def test_an_engine_that_hangs_is_given_up(host: Host) -> None:
    begun = time.monotonic()
    ran = host.run("stats", HANG="1")
    assert (ran.returncode, "does not answer within 10 seconds" in ran.stderr) == (11, True)
    assert time.monotonic() - begun < 20


def test_images_of_other_sources_are_built_and_a_failure_is_shown(host: Host) -> None:
    host.sum.write_text("other\n")
    ran = host.run("stats")
    assert f"building the images of version {__version__}" in ran.stderr
    assert ran.returncode == 0
    ran = host.run("stats", BUILD_FAILS="1")
    assert ran.returncode == 11
    assert "no route to the registry" in ran.stderr
    assert "nas-scanner-hp:latest cannot be built" in ran.stderr


def test_a_share_that_is_none_is_said_at_once(host: Host) -> None:
    (host.folder / "file").touch()
    ran = host.run("scan", "nowhere", "x")
    assert (ran.returncode, ran.stderr) == (10, "run_smart_scan.sh: there is no directory nowhere.\n")
    ran = host.run("plan", "file")
    assert (ran.returncode, ran.stderr) == (10, "run_smart_scan.sh: file is not a directory.\n")
    assert host.run("plan", "nowhere", "--from-catalogue").returncode == 0


def test_the_doctor_is_told_what_is_wrong_with_a_share_that_it_does_not_get(host: Host) -> None:
    (host.folder / "file").touch()
    for word in ("nowhere", "file", "."):
        ran = host.run("doctor", word)
        assert ran.returncode == 0
        assert "SMART_SCAN_SHARE_FAULT" in ran.stdout.splitlines()
        assert host.program_words("doctor", word) == ["doctor", f"{host.folder}/{word}"]
    assert "SMART_SCAN_SHARE_FAULT" not in host.run("doctor").stdout


@pytest.mark.slow
def test_without_an_engine_it_makes_itself_a_virtual_environment(host: Host) -> None:
    ran = host.run("--version", SMART_SCAN_ENGINE="auto", SAY="no engine")
    if "cannot be installed" in ran.stderr:
        pytest.skip(f"no package index can be reached: {ran.stderr.splitlines()[-2:]}")
    assert (ran.returncode, ran.stdout) == (0, f"smartscan {__version__}\n"), ran.stderr
    assert "making a virtual environment" in ran.stderr
    begun = time.monotonic()
    again = host.run("--version", SMART_SCAN_ENGINE="local")
    assert (again.returncode, again.stderr) == (0, "")
    assert time.monotonic() - begun < 5
    assert sorted(path.name for path in (host.folder / "home/.cache/smart-scanner").iterdir()) == ["venv"]
