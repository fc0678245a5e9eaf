"""What all tests share: a share and a place for its catalogue; who is skipped where, and why."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from trees import build
from users import may_mount

NEEDS = {
    "root": (may_mount(), "needs root that may mount"),
    # Said by tests/docker-up, which `make test` calls first.
    "docker": ("SMART_SCAN_NO_DOCKER" not in os.environ, os.environ.get("SMART_SCAN_NO_DOCKER", "")),
    "fuse": (may_mount() and os.access("/dev/fuse", os.R_OK | os.W_OK), "needs root and /dev/fuse"),
}


# `make test &` in a script starts with SIGINT ignored, and so would every command of ours.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A machine that is busy is no finding.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker, (met, reason) in NEEDS.items():
            if item.get_closest_marker(marker) and not met:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def share(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A share that holds the TREE of the test's file."""
    path = tmp_path / "share"
    path.mkdir()
    build(path, request.module.TREE)
    return path


@pytest.fixture
def db(tmp_path: Path) -> Path:
    """Where a catalogue is to be: alone in its data directory."""
    (tmp_path / "data").mkdir()
    return tmp_path / "data" / "smart_catalog.db"
