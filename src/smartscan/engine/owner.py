"""Who started a worker, written so that another process can tell whether that one still lives.

Touches: /proc of this process and of the process a mark names.
"""

from __future__ import annotations

import os

from smartscan.engine import processes


def mark(container: str = "") -> str:
    """Name this process: pid namespace, pid, start time, and its container where it is in one."""
    me = processes.read(os.getpid())
    return f"{_pid_namespace()}/{os.getpid()}:{me.started if me else 0}/{container}"


def alive(text: str) -> bool | None:
    """Tell whether the process of a mark lives; None if it is not to be seen from here."""
    try:
        namespace, worker_id, _ = text.split("/", 2)
        pid, started = processes.parse_id(worker_id)
    except ValueError:
        return None
    if namespace != _pid_namespace():
        return None
    seen = processes.read(pid)
    return seen is not None and seen.started == started and processes.lives(seen)


def container(text: str) -> str:
    """Give the container of a mark; empty where its process was in none."""
    return text.rpartition("/")[2]


def _pid_namespace() -> str:
    return os.readlink("/proc/self/ns/pid").removeprefix("pid:[").removesuffix("]")
