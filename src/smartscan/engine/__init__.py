"""Start, look at and end workers: one protocol, an engine of local processes, an engine of containers.

Touches: the Docker socket, to choose; the engines behind the protocol touch processes and containers.
Nothing here reads the share: whether a worker can is for the worker to find out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from smartscan import units
from smartscan.config import WORKER_IMAGE
from smartscan.errors import EngineError, UsageError
from smartscan.model import Resources

WORKER_MODULE = "smartscan.worker"
LOG_TAIL_BYTES = 8192  # enough for a Python traceback, small enough for a row of the catalogue
PIDS_LIMIT = 512  # a worker has two processes and tens of threads; a runaway one must not take the host
OOM_SCORE_ADJ = 500  # the kernel, short of memory, takes a worker before the controller or a service
START_S = 30.0  # create and start a container: a second; longer means that the storage behind a mount hangs
START_LEAST_S = 10.0  # a NAS that starts ten containers at once takes seconds for each
AUTO_WAIT_S = 2.0  # an engine that takes longer to say its version would make every start slow


class Job(NamedTuple):
    """One attempt, as an engine needs to know it; `share` is the path on the engine's host."""

    scan_id: int
    mount_name: str
    chunk_id: int
    attempt: int
    share: bytes
    folder: Path
    resources: Resources


class Status(NamedTuple):
    """How a worker is; exit code and `oom` are hints, the result file in its folder is the truth.

    `gone`: the engine knows no such worker. `unknown`: the engine did not answer.
    A worker ended by signal N has exit code 128 + N.
    """

    state: Literal["running", "exited", "gone", "unknown"]
    exit_code: int | None = None
    oom: bool = False
    log_tail: str = ""


class Found(NamedTuple):
    """A worker that carries our mark; `owner_alive` is True also where that cannot be told."""

    worker_id: str
    scan_id: int
    chunk_id: int
    attempt: int
    folder: Path
    state: Literal["running", "exited"]
    owner_alive: bool


class Engine(Protocol):
    """Where workers run. Every call has a deadline inside and may be made from any thread."""

    name: str

    def check(self) -> None:
        """Raise EngineError, one sentence, where no worker could be started at all."""

    def prepare(self) -> None:
        """Begin with what makes the first start faster, and do not wait for it."""

    def cpus(self) -> float:
        """Tell how many processors all workers share."""

    def clamp(self, want: Resources, *, at_a_time: int = 1) -> tuple[Resources, list[str]]:
        """Fit what one worker may use to the host; the sentences say what was cut.

        And that so many workers at a time may use more memory than there is: that is not cut.
        """

    def describe(self) -> list[str]:
        """Say where workers run and which of their limits really hold."""

    def start(self, job: Job) -> str:
        """Start a worker in its existing folder and give its id.

        EngineError: nothing runs, and the fault is not the chunk's; EngineLost: nor will anything.
        MountError: the engine's host has no such share; MountSilent: it does not answer.
        A start that is given up after its deadline may still happen when the storage answers again; its
        folder then holds `stop`, so that it ends at once.
        """

    def status(self, worker_id: str) -> Status:
        """Look at a worker; never raises."""

    def kill(self, worker_id: str, *, grace_s: float = 1.0) -> bool:
        """SIGKILL all of a worker; True when nothing of it is left within the grace."""

    def remove(self, worker_id: str) -> bool:
        """Forget an exited worker; False where something of it remains, or it still runs."""

    def find(self, namespace: str) -> list[Found]:
        """List every worker of a namespace, whoever started it; EngineError if the engine is silent."""

    def close(self) -> None:
        """Let go of the engine. Local workers end with it, containers go on."""


def choose(
    name: str,
    *,
    namespace: str,
    image: str = WORKER_IMAGE,
    command: Sequence[str] | None = None,
    start_s: float = START_S,
) -> tuple[Engine, str]:
    """Open the engine called `auto`, `docker` or `local`, and say in one sentence why it is this one.

    `namespace` tells the workers of one data directory from those of another. `auto` takes Docker where an
    engine answers within 2 seconds and has the worker image, else local processes; a chosen engine that
    cannot work raises EngineError. `command` replaces the worker's program; `start_s` is how
    long the start of a container may take, which hangs where the share does.
    """
    from smartscan.engine import local

    if name == "local":
        return local.Local(namespace, command=command), "Workers are local processes."
    if name not in ("auto", "docker"):
        raise UsageError(f"There is no engine called {name!r}; use auto, docker or local.")

    from smartscan.engine import sockets

    try:
        url = sockets.locate(AUTO_WAIT_S)
        from smartscan.engine import docker  # imported late: the SDK takes a tenth of a second

        engine = docker.Docker(
            namespace, url=url, image=image, command=command, connect_s=AUTO_WAIT_S, start_s=start_s
        )
        engine.check()
    except EngineError as error:
        if name == "docker":
            raise
        return local.Local(namespace, command=command), f"Workers are local processes: {error}"
    return engine, f"Workers are containers: {engine.title} answers and has {image}."


def fit(
    want: Resources, cpus: float, memory_bytes: int, at_a_time: int
) -> tuple[Resources, list[str]]:
    """Cut what a worker may use to what its host has; the sentences are for the user."""
    said = []
    if want.cpus > cpus:
        said.append(f"The host has {cpus:g} CPUs: a worker gets {cpus:g} instead of {want.cpus:g}.")
    if want.memory_bytes > memory_bytes:
        has, wanted = units.memory(memory_bytes), units.memory(want.memory_bytes)
        said.append(f"The host has {has} of memory: a worker gets that instead of {wanted}.")
    got = Resources(min(want.cpus, cpus), min(want.memory_bytes, memory_bytes))
    if at_a_time > 1 and at_a_time * got.memory_bytes > memory_bytes:
        said.append(
            f"{at_a_time} workers at a time may use {units.memory(at_a_time * got.memory_bytes)} of memory, "
            f"and the host has {units.memory(memory_bytes)}: --memory or --max-containers make it less."
        )
    return got, said
