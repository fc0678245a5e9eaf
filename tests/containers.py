"""The engines of the tests: Docker, found or started by tests/docker-up, and Podman; how long to wait.

Touches: the engines' sockets; starts a Podman service with storage of its own where there is none.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from smartscan.engine import sockets
from smartscan.errors import EngineError

WORKER_IMAGE = "nas-scanner-hp:latest"
CONTROLLER_IMAGE = "nas-scanner-smart:latest"
SCRIPT = Path(__file__).parents[1] / "run_smart_scan.sh"
PODMAN = "unix:///run/podman/podman.sock"
# Podman's own limits are higher than a root without CAP_SYS_RESOURCE may give, and its usual crun does not
# start on a host with both versions of control groups.
PODMAN_CONFIGURATION = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
runtime = "runc"
"""

T = TypeVar("T")


def until(look: Callable[[], T], wanted: Callable[[T], object], seconds: float = 30.0) -> T:
    """Look again and again until it is as wanted; fail the test when it takes too long."""
    end = time.monotonic() + seconds
    while not wanted(seen := look()):
        assert time.monotonic() < end, f"still {seen!r} after {seconds} s"
        time.sleep(0.02)
    return seen


def engine_url() -> str:
    """Give the address of an engine that has both images; skip the test with the reason where none has."""
    url, reason = _engine()
    if reason:
        pytest.skip(os.environ.get("SMART_SCAN_NO_DOCKER") or reason)
    return url


@functools.cache
def _engine() -> tuple[str, str]:
    try:
        url = sockets.locate(2.0)
    except EngineError as error:
        return "", str(error)
    return url, _lacks(url, WORKER_IMAGE) or _lacks(url, CONTROLLER_IMAGE)


def podman_url() -> str:
    """Give the address of a Podman that has the worker's image; skip the test with the reason if none has."""
    url, reason = _podman()
    if reason:
        pytest.skip(f"Podman: {reason}")
    return url


@functools.cache
def _podman() -> tuple[str, str]:
    if not (reason := _lacks(PODMAN, WORKER_IMAGE)):
        return PODMAN, ""
    if not shutil.which("podman") or os.geteuid() != 0:
        return "", f"{reason} And there is no podman here that root could start."
    engine_url()  # whose image is copied
    folder = Path(tempfile.mkdtemp(prefix="smart-scan-podman-", dir="/var/tmp"))
    podman = ("podman", "--root", str(folder / "root"), "--runroot", str(folder / "run"))
    url = f"unix://{folder}/podman.sock"
    (folder / "containers.conf").write_text(PODMAN_CONFIGURATION)
    environment = {**os.environ, "CONTAINERS_CONF": str(folder / "containers.conf")}
    with (folder / "log").open("wb") as log:
        service = subprocess.Popen(
            (*podman, "system", "service", "--time=0", url), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env=environment, cwd=folder,  # its monitor leaves a file where it was started
        )  # fmt: skip

    def end() -> None:
        subprocess.run((*podman, "rm", "--all", "--force", "--time=0"), capture_output=True, check=False)
        service.terminate()
        service.wait(30)
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            if line.split()[4].startswith(f"{folder}/"):
                subprocess.run(("umount", "--lazy", line.split()[4]), check=False)
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    image = folder / "image.tar"
    docker_command("save", "--output", str(image), WORKER_IMAGE)
    loaded = subprocess.run(
        (*podman, "load", "--input", str(image)), capture_output=True, text=True, check=False
    )
    image.unlink(missing_ok=True)
    if loaded.returncode:
        return "", f"it takes no image: {loaded.stderr.strip()}"
    until(Path(url.removeprefix("unix://")).exists, bool)
    return url, _lacks(url, WORKER_IMAGE)


def _lacks(url: str, image: str) -> str:
    """Say why no worker of an image can be started there; empty where it can."""
    from smartscan.engine import docker

    try:
        docker.Docker("probe", url=url, image=image).check()
    except EngineError as error:
        return str(error)
    return ""


def docker_command(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the engine's own command line, as a user does."""
    return subprocess.run(("docker", *words), capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload, no-any-return]
