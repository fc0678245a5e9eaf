"""The controller's own container: which one it is in, and what its paths are on the engine's host.

Touches: /proc/self/mountinfo, the environment. A path inside a container means nothing to the engine, which
runs outside of it.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

SELF = "SMART_SCAN_CONTAINER"  # our own container's name, from whoever started it (run_smart_scan.sh does)

# Docker and Podman bind files from the container's own directory on the host over these.
_OWN_FILES = ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf")
_CONTAINER_ID = re.compile(r"/(?:containers|overlay-containers)/([0-9a-f]{64})/")


def own_container() -> list[str]:
    """List the names by which the engine may know this process's container, surest first.

    Empty outside of containers. The engine need not know any of them: it may run in the same container.
    """
    names = [os.environ[SELF]] if os.environ.get(SELF) else []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            root, point = line.split()[3:5]
            if point in _OWN_FILES and (match := _CONTAINER_ID.search(root)):
                names.append(match[1])
    if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists():
        names.append(socket.gethostname())
    return list(dict.fromkeys(names))


def translate(path: bytes, mounts: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Give the host's path of a container's path, by the innermost mount that holds it; None for no mount."""
    holders = sorted(
        ((PurePosixPath(mount["Destination"]), mount["Source"]) for mount in mounts if mount.get("Source")),
        key=lambda holder: len(holder[0].parts),
        reverse=True,
    )
    inside = PurePosixPath(os.fsdecode(path))
    for destination, source in holders:
        if inside.is_relative_to(destination):
            return os.fsencode(PurePosixPath(source) / inside.relative_to(destination))
    return None
