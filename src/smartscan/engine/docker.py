"""Workers as containers of Docker, or of Podman behind the same socket.

Touches: the engine's socket. The only door to Docker. A call that has no answer at its deadline is given
up: the engine may still carry it out, which is why a worker is fenced by its own attempt folder.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import docker
import requests
from docker.types import LogConfig, Mount

from smartscan import __version__
from smartscan.engine import (
    LOG_TAIL_BYTES,
    OOM_SCORE_ADJ,
    PIDS_LIMIT,
    START_S,
    WORKER_MODULE,
    Found,
    Job,
    Status,
    fit,
    host,
    owner,
    sockets,
)
from smartscan.errors import EngineError, EngineLost, MountError, MountSilent
from smartscan.model import SHARE_VARIABLE, Resources, show

LABEL = "io.github.smart-scanner."
VERSION_LABEL = "org.opencontainers.image.version"
ATTEMPT = "/attempt"  # where a worker finds its folder
# A share has its own path in a worker too, but for one that would cover what the worker itself lives on.
SHARE = "/share"
SYSTEM = re.compile("/(attempt|bin|boot|dev|etc|lib|lib32|lib64|libx32|opt|proc|root|run|sbin|sys|usr)?(/|$)")
CALL_S = 10.0  # inspect, list, logs: milliseconds, but seconds on a NAS that starts ten containers
LEARN_S = 0.25  # what a start takes; one that takes longer does not hold up the others
LATE_STARTS = 2  # in a row, while the engine answers otherwise: the share is dead
SNAPSHOT_S = 0.1  # many workers are asked after at once; one list answers for all
NEVER = float("-inf")
LOG_LINES = 60
CPU_SHARES = 256  # a quarter of the default weight, as cgroups.SHARES
UNREACHABLE = (docker.errors.DockerException, requests.RequestException)

_UNFIT = re.compile(r"[^a-zA-Z0-9_.-]+")


class _Manner(NamedTuple):
    """What to ask of an engine that not every one can do, and that a worker can do without."""

    propagation: str | None = "rslave"  # what is mounted below the share later is seen; needs a shared mount
    init: bool = True  # needs the engine's helper program
    cpu_quota: bool = True  # needs the kernel's; some Synology models have none

    def without(self, refusal: str) -> _Manner | None:
        """Give up what a refusal names; None where it names nothing of ours."""
        if self.propagation and ("not a shared or slave mount" in refusal or "propagation" in refusal):
            return self._replace(propagation=None)
        if self.cpu_quota and ("NanoCPUs" in refusal or "cpu.cfs_quota" in refusal or "cpu.max" in refusal):
            return self._replace(cpu_quota=False)
        if self.init and re.search(r"docker-init|catatonit|container-init", refusal):
            return self._replace(init=False)
        return None


class Docker:
    """The engine of containers; `command` gets the attempt's folder as its last argument."""

    name = "docker"

    def __init__(
        self,
        namespace: str,
        *,
        url: str,
        image: str,
        command: Sequence[str] | None = None,
        connect_s: float = CALL_S,
        start_s: float = START_S,
    ) -> None:
        """Connect; EngineError where nobody answers within `connect_s`."""
        self._namespace = namespace
        self._url = url
        self._image = image
        self._command = [*(command or ("python3", "-m", WORKER_MODULE)), ATTEMPT]
        try:
            asked = self._open(connect_s, "auto").version()
        except UNREACHABLE as error:
            raise EngineError(f"the Docker engine at {url} does not answer ({_sentence(error)}).") from None
        self._version = str(asked["ApiVersion"])
        self._product = "Podman" if "podman" in str(asked.get("Components", "")).lower() else "Docker"
        self.title = f"{self._product} {asked['Version']} at {url}"
        self._api = self._open(CALL_S)
        self._start_s = start_s
        self._slow = self._open(start_s)
        self._info = self._ask_info()
        self._security = " ".join(self._info.get("SecurityOptions") or ())
        self._container, self._mounts = self._own()
        self._owner = owner.mark(self._container)
        self._manner = _Manner(cpu_quota=bool(self._info.get("CpuCfsQuota", True)))
        self._lock = threading.Lock()
        self._late_starts = 0
        self._first, self._started_once = threading.Lock(), False
        self._seen: dict[str, str] | None = None
        self._seen_at = NEVER
        self._ended: dict[str, Status] = {}

    def check(self) -> None:
        try:
            image = self._api.inspect_image(self._image)
        except docker.errors.ImageNotFound:
            raise EngineError(
                f"The image {self._image} is missing; ./run_smart_scan.sh setup builds it."
            ) from None
        except UNREACHABLE as error:
            raise self._silent(error) from None
        version = (image["Config"].get("Labels") or {}).get(VERSION_LABEL)
        if version != __version__:
            raise EngineError(
                f"The image {self._image} is of version {version or 'unknown'}, this program of "
                f"{__version__}; ./run_smart_scan.sh setup builds the right one."
            )

    def prepare(self) -> None:
        """Nothing helps: most of a start is the engine's."""

    def cpus(self) -> float:
        return float(self._info["NCPU"])

    def clamp(self, want: Resources, *, at_a_time: int = 1) -> tuple[Resources, list[str]]:
        return fit(want, self.cpus(), int(self._info["MemTotal"]), at_a_time)

    def describe(self) -> list[str]:
        held = ["CPUs" if self._manner.cpu_quota else "CPU shares (this kernel has no quota)"]
        held += ["memory"] if self._info.get("MemoryLimit") else []
        held += ["processes"] if self._info.get("PidsLimit", True) else []
        said = [f"A worker is limited by its container: {', '.join(held)}."]
        if not self._info.get("MemoryLimit"):
            said.append("This kernel does not limit a container's memory.")
        return said

    def start(self, job: Job) -> str:
        source = self._source(job.share)
        folder = self._source(os.fsencode(job.folder), ours=True)
        groups = self._open_folder(job.folder)
        # What this engine cannot do is found out by the first start, not by eight at once.
        first = not self._started_once and self._first.acquire(timeout=LEARN_S)
        if first and self._started_once:  # it was found out while we waited
            self._first.release()
            first = False
        try:
            return self._start(job, source, folder, groups)
        finally:
            if first:
                self._first.release()

    def _start(self, job: Job, source: str, folder: str, groups: list[str]) -> str:
        while True:
            manner = self._manner
            try:
                return self._run(job, source, folder, groups, manner)
            except docker.errors.ImageNotFound:
                raise EngineError(
                    f"The image {self._image} is missing; ./run_smart_scan.sh setup builds it."
                ) from None
            except docker.errors.APIError as error:
                refusal = str(error.explanation or error).strip()
                if less := manner.without(refusal):
                    self._manner = less
                elif f"source path does not exist: {source}" in refusal:
                    raise MountError(f"The engine's host has no directory {source}.") from None
                else:
                    raise EngineError(f"Docker refuses to start a worker: {refusal}.") from None
            except requests.Timeout:
                with contextlib.suppress(OSError):
                    (job.folder / "stop").touch()
                raise self._late(job) from None
            except UNREACHABLE as error:
                raise self._silent(error) from None

    def _late(self, job: Job) -> EngineError | MountSilent:
        """Say whose fault it is that a start did not come to its end: who mounts a dead share hangs with it.

        A busy engine is late as well, so that the share is blamed only the second time in a row.
        """
        self._late_starts += 1
        said = f"The {self._product} engine did not start a worker within {self._start_s:g} s; "
        try:
            self._list(self._namespace)
        except UNREACHABLE as error:
            return self._silent(error)
        if self._late_starts < LATE_STARTS:
            return EngineError(f"{said}does {show(job.share)} answer?")
        return MountSilent(f"{said}it answers otherwise, and {show(job.share)} does not.")

    def status(self, worker_id: str) -> Status:
        if worker_id in self._ended:
            return self._ended[worker_id]
        state = self._state(worker_id)
        if state in ("running", "gone", "unknown"):
            return Status(state)
        if state == "created":  # inspecting one whose start hangs would hang as well
            return Status("exited")
        try:
            end = self._api.inspect_container(worker_id)["State"]
            tail = self._api.logs(worker_id, tail=LOG_LINES)[-LOG_TAIL_BYTES:].decode("utf-8", "replace")
        except docker.errors.NotFound:
            return Status("gone")
        except UNREACHABLE:
            return Status("unknown")
        if error := end.get("Error"):
            tail += f"\n{error}"
        return self._ended.setdefault(
            worker_id, Status("exited", int(end["ExitCode"]), bool(end.get("OOMKilled")), tail)
        )

    def kill(self, worker_id: str, *, grace_s: float = 1.0) -> bool:
        until = time.monotonic() + grace_s
        # The engine answers when the container has ended, or after ten seconds when it does not end.
        with contextlib.suppress(*UNREACHABLE), contextlib.closing(self._open(max(grace_s, 0.2))) as api:
            api.kill(worker_id, "SIGKILL")
        while (state := self._state(worker_id, fresh=True)) in ("running", "unknown"):
            if time.monotonic() >= until:
                return False
            time.sleep(0.05)
        return bool(state != "unknown")

    def remove(self, worker_id: str) -> bool:
        try:
            self._api.remove_container(worker_id, v=False, force=False)
        except docker.errors.NotFound:
            pass
        except UNREACHABLE:
            return False
        self._ended.pop(worker_id, None)
        return True

    def find(self, namespace: str) -> list[Found]:
        try:
            listed = self._list(namespace)
            running = {one["Id"] for one in self._api.containers()} if listed else set()
        except UNREACHABLE as error:
            raise self._silent(error) from None
        return [
            Found(
                one["Id"],
                int(labels[LABEL + "scan"]),
                int(labels[LABEL + "chunk"]),
                int(labels[LABEL + "attempt"]),
                Path(labels[LABEL + "folder"]),
                "running" if _lives(one["State"]) else "exited",
                self._owner_alive(labels[LABEL + "owner"], running),
            )
            for one in listed
            for labels in (one["Labels"],)
        ]

    def close(self) -> None:
        self._api.close()
        self._slow.close()

    def _open(self, timeout_s: float, version: str | None = None) -> Any:
        return docker.APIClient(
            self._url, version=version or self._version, timeout=timeout_s, max_pool_size=32, **_tls()
        )

    def _ask_info(self) -> dict[str, Any]:
        try:
            return dict(self._api.info())
        except UNREACHABLE as error:
            raise self._silent(error) from None

    def _silent(self, error: Exception) -> EngineError:
        if self._container and sockets.is_replaced(self._url):
            return EngineLost(
                f"The {self._product} engine was stopped and took its socket away; this container does not "
                "see the one it has when it is started again. The same command goes on."
            )
        return EngineError(f"The Docker engine at {self._url} does not answer ({_sentence(error)}).")

    def _own(self) -> tuple[str, list[dict[str, Any]]]:
        """Find the container this process is in, and its mounts; ("", []) where the engine knows none."""
        for name in host.own_container():
            try:
                own = self._api.inspect_container(name)
            except docker.errors.NotFound:
                if name == os.environ.get(host.SELF):
                    raise EngineError(
                        f"{host.SELF} names a container that the engine at {self._url} does not have: {name}."
                    ) from None
            except UNREACHABLE as error:
                raise self._silent(error) from None
            else:
                return str(own["Id"]), list(own["Mounts"])
        return "", []

    def _source(self, path: bytes, *, ours: bool = False) -> str:
        """Give a path as the engine's host has it.

        The controller never has the share, so a share in none of its mounts is the host's path already;
        our own folder in none of them would be written where nobody looks.
        """
        found = host.translate(path, self._mounts) if self._container else path
        if found is None and ours:
            raise EngineError(
                f"{os.fsdecode(path)} lies in no mount of the controller's container; "
                "mount the data directory into it."
            )
        for source in (found or path, path):
            text = source.decode("utf-8", "backslashreplace")
            # Podman's Docker API writes mounts as comma-separated text without quoting it (seen in 4.3).
            if text.encode() != source or (self._product == "Podman" and re.search(r'[",\r\n]', text)):
                raise EngineError(f"{self._product} cannot mount {show(source)}; use --engine local.")
        return os.fsdecode(found or path)

    def _open_folder(self, folder: Path) -> list[str]:
        """Let the worker, root without DAC_OVERRIDE, write into a folder that is not root's: by its group."""
        try:
            seen = folder.stat()
            if seen.st_uid == 0 or "name=rootless" in self._security:
                return []
            folder.chmod(seen.st_mode | 0o070)
        except OSError as error:
            raise EngineError(f"The attempt's folder cannot be used: {error}.") from None
        return [str(seen.st_gid)]

    def _run(self, job: Job, source: str, folder: str, groups: list[str], manner: _Manner) -> str:
        api = self._slow
        inside = _inside(job.share)
        share = Mount(inside, source, "bind", read_only=True, propagation=manner.propagation)
        memory = job.resources.memory_bytes if self._info.get("MemoryLimit") else None
        options = ["no-new-privileges"]
        if "name=selinux" in self._security:  # relabelling somebody's whole share is out of the question
            options.append("label=disable")
        config = api.create_container_config(
            self._image,
            None,
            entrypoint=self._command,
            user="0:0",
            environment={"PYTHONDONTWRITEBYTECODE": "1", SHARE_VARIABLE: inside},
            working_dir="/",
            network_disabled=True,
            labels={
                LABEL + "namespace": self._namespace,
                LABEL + "scan": str(job.scan_id),
                LABEL + "chunk": str(job.chunk_id),
                LABEL + "attempt": str(job.attempt),
                LABEL + "folder": os.fspath(job.folder),
                LABEL + "owner": self._owner,
                LABEL + "version": __version__,
            },
            host_config=api.create_host_config(
                mounts=[share, Mount(ATTEMPT, folder, "bind", propagation="rprivate")],
                read_only=True,
                network_mode="none",
                cap_drop=["ALL"],
                cap_add=["DAC_READ_SEARCH"],
                security_opt=options,
                group_add=groups,
                userns_mode="host" if "name=userns" in self._security else None,
                pids_limit=PIDS_LIMIT,
                oom_score_adj=OOM_SCORE_ADJ,
                init=manner.init,
                log_config=LogConfig(type="json-file", config={"max-size": "1m", "max-file": "1"}),
                mem_limit=memory,
                memswap_limit=memory if self._info.get("SwapLimit") else None,
                nano_cpus=int(job.resources.cpus * 10**9) if manner.cpu_quota else None,
                cpu_shares=CPU_SHARES,
            ),
        )
        worker_id = self._create(config, job)
        try:
            api.start(worker_id)
        except docker.errors.APIError:
            self.remove(worker_id)
            raise
        with self._lock:  # a list that was made before this one ran would say that it does not
            self._seen_at = NEVER
        self._late_starts, self._started_once = 0, True
        return worker_id

    def _create(self, config: Any, job: Job) -> str:
        """Create the container under the first name that is free."""
        plain = f"smart-scan-{_UNFIT.sub('-', job.mount_name).strip('-')[:40] or 'share'}-{job.chunk_id}"
        for name in (plain, plain, f"{plain}-{job.attempt}", f"{plain}-{job.attempt}-{secrets.token_hex(4)}"):
            try:
                return str(self._slow.create_container_from_config(config, name)["Id"])
            except docker.errors.APIError as error:
                if error.status_code != 409 and "in use" not in str(error.explanation):
                    raise
                refused = error
            self._clear(name, job)
        raise refused

    def _clear(self, name: str, job: Job) -> None:
        """Remove the dead container of the same chunk that holds a name; leave anything else alone."""
        with contextlib.suppress(*UNREACHABLE):
            for one in self._list(self._namespace):
                mine = one["Labels"][LABEL + "chunk"] == str(job.chunk_id)
                if mine and f"/{name}" in one["Names"] and one["State"] in ("exited", "dead"):
                    self.remove(one["Id"])

    def _list(self, namespace: str) -> list[dict[str, Any]]:
        return list(self._api.containers(all=True, filters={"label": f"{LABEL}namespace={namespace}"}))

    def _state(self, worker_id: str, *, fresh: bool = False) -> Any:
        """Tell a worker's state by the list, which answers even where inspecting a stuck worker does not."""
        with self._lock:
            begun_since = self._seen is not None and worker_id not in self._seen
            if fresh or begun_since or time.monotonic() - self._seen_at > SNAPSHOT_S:
                self._look()
            if self._seen is None:
                return "unknown"
            return self._seen.get(worker_id, "gone")

    def _look(self) -> None:
        try:
            listed = self._list(self._namespace)
            self._seen = {one["Id"]: "running" if _lives(one["State"]) else one["State"] for one in listed}
        except UNREACHABLE:
            self._seen = None
        self._seen_at = time.monotonic()

    def _owner_alive(self, mark: str, running: set[str]) -> bool:
        """Tell whether a worker's controller lives: as a process seen from here, else by its container."""
        alive = owner.alive(mark)
        container = owner.container(mark)
        if alive is None:
            return not container or container in running
        return alive


def _inside(share: bytes) -> str:
    """Give the path that a share has in a worker."""
    path = os.fsdecode(os.path.normpath(share))
    return SHARE if SYSTEM.match(path) else path


def _lives(state: str) -> bool:
    return state in ("running", "paused", "restarting", "removing")


def _tls() -> dict[str, Any]:
    """Read Docker's own variables for an engine behind TLS."""
    if not os.environ.get("DOCKER_TLS_VERIFY"):
        return {}
    folder = Path(os.environ.get("DOCKER_CERT_PATH", Path.home() / ".docker"))
    pair = (str(folder / "cert.pem"), str(folder / "key.pem"))
    return {"tls": docker.tls.TLSConfig(client_cert=pair, ca_cert=str(folder / "ca.pem"), verify=True)}


def _sentence(error: Exception) -> str:
    """Give the innermost reason of an error that the SDK wrapped three times."""
    reason: BaseException = error
    while inner := reason.__cause__ or reason.__context__:
        reason = inner
    return str(getattr(reason, "strerror", None) or reason)
