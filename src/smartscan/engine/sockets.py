"""Where a Docker engine may listen, and whether one does.

Touches: the environment, sockets. Knows no more of Docker than its addresses, so that a host without
Docker is told apart in a millisecond.
"""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

from smartscan.errors import EngineError

DOCKER_SOCKET = "/var/run/docker.sock"


def candidates() -> list[str]:
    """List the addresses to try, in order: DOCKER_HOST alone where set, else the usual sockets."""
    if host := os.environ.get("DOCKER_HOST"):
        return [host]
    runtime = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    docker = (DOCKER_SOCKET, f"{runtime}/docker.sock")
    podman = ("/run/podman/podman.sock", f"{runtime}/podman/podman.sock")
    return [f"unix://{path}" for path in docker + podman]


def locate(timeout_s: float) -> str:
    """Give the first address where something listens; EngineError says why none does."""
    refusals: list[str] = []
    for url in candidates():
        refusal = _refusal(url, timeout_s)
        if refusal is None:
            return url
        refusals.append(refusal)
    told = [refusal for refusal in refusals if refusal]
    raise EngineError(told[0] if told else f"there is no Docker engine here (no {DOCKER_SOCKET}).")


def is_replaced(url: str) -> bool:
    """Tell whether a socket was deleted since it was mounted here, which is the fate of a file's mount."""
    try:
        return urlsplit(url).scheme == "unix" and os.stat(_path(url)).st_nlink == 0
    except OSError:
        return False


def _path(url: str) -> str:
    parts = urlsplit(url)
    return parts.path if not parts.netloc else f"/{parts.netloc}{parts.path}"


def _refusal(url: str, timeout_s: float) -> str | None:
    """Say why nothing can be asked at `url`; None where something listens, "" where nothing ever was."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        path = _path(url)
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(timeout_s)
                probe.connect(path)
        except FileNotFoundError:
            return f"DOCKER_HOST names {path}, which does not exist." if os.environ.get("DOCKER_HOST") else ""
        except PermissionError:
            return f"this user may not use {path}; join its group (usually docker) or use sudo."
        except OSError as error:
            return f"nothing answers on {path} ({error.strerror or error}); start the Docker engine."
    elif parts.scheme in ("tcp", "http", "https"):
        try:
            socket.create_connection((parts.hostname or "", parts.port or 2375), timeout_s).close()
        except OSError as error:
            return f"nothing answers at {url} ({error.strerror or error}); see DOCKER_HOST."
    else:
        return f"DOCKER_HOST is {url}, and only unix:// and tcp:// addresses can be used."
    return None
