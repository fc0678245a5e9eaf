"""The Docker engine of the tests: found or started by tests/docker-up; and how long to wait for things.

Touches: the engine's socket.
"""

from __future__ import annotations

import functools
import os
import subprocess
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
    from smartscan.engine import docker

    try:
        url = sockets.locate(2.0)
        for image in (WORKER_IMAGE, CONTROLLER_IMAGE):
            docker.Docker("probe", url=url, image=image).check()
    except EngineError as error:
        return "", str(error)
    return url, ""


def docker_command(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the engine's own command line, as a user does."""
    return subprocess.run(("docker", *words), capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload, no-any-return]
