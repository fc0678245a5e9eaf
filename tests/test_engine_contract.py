"""What every engine promises, asked of each one that can run here, with tiny programs as workers."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from containers import WORKER_IMAGE, engine_url, podman_url, until
from smartscan.engine import Engine, Job, Status, cgroups, choose, local
from smartscan.errors import EngineError, MountError, UsageError
from smartscan.model import Limits, Resources, Root
from smartscan.worker.orders import Orders

SMALL = Resources(1.0, 64 * 2**20)

WRITE_PROGRESS = """
import json, os, sys, time
folder = sys.argv[1]
with open(os.path.join(folder, "new"), "w") as file:
    json.dump({"beat": 1}, file)
os.rename(os.path.join(folder, "new"), os.path.join(folder, "progress.json"))
print("reading")
"""
SLEEP = WRITE_PROGRESS + "sys.stdout.flush()\ntime.sleep(60)\n"
FAMILY = """
import subprocess, sys, time, os
code = "import os, sys, time; open(sys.argv[1], 'w').write('x'); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", code, os.path.join(sys.argv[1], "child")])
child.wait()
"""


@dataclass
class Rig:
    """An engine under test, and what a test needs around it."""

    open: Callable[[str, str], Engine]
    folder: Path
    odd: str
    reports_oom: bool  # Podman's monitor does not see it under control groups v1
    namespace: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    engines: list[Engine] = field(default_factory=list)

    def engine(self, program: str, namespace: str | None = None) -> Engine:
        engine = self.open(program, namespace or self.namespace)
        self.engines.append(engine)
        return engine

    def job(self, chunk_id: int = 1, attempt: int = 1, name: str = "Media") -> Job:
        share = self.folder / self.odd
        share.mkdir(exist_ok=True)
        folder = self.folder / f"{self.odd} {uuid.uuid4().hex[:6]}" / f"{chunk_id}-{attempt}"
        folder.mkdir(parents=True)
        return Job(7, name, chunk_id, attempt, os.fsencode(share), folder, SMALL)


def local_engine(program: str, namespace: str) -> Engine:
    return local.Local(namespace, command=(sys.executable, "-c", program))


def plain_engine(program: str, namespace: str) -> Engine:
    return local.Local(namespace, command=(sys.executable, "-c", program), groups=False)


def container_engine(url: str) -> Callable[[str, str], Engine]:
    from smartscan.engine import docker

    def start(program: str, namespace: str) -> Engine:
        return docker.Docker(namespace, url=url, image=WORKER_IMAGE, command=("python3", "-c", program))

    return start


def docker_engine() -> Callable[[str, str], Engine]:
    return container_engine(engine_url())


def podman_engine() -> Callable[[str, str], Engine]:
    return container_engine(podman_url())


ENGINES: dict[str, Callable[[], Callable[[str, str], Engine]]] = {
    "local": lambda: local_engine,
    "local-without-groups": lambda: plain_engine,
    "docker": docker_engine,
    "podman": podman_engine,
}


@pytest.fixture(
    params=[
        "local",
        "local-without-groups",
        pytest.param("docker", marks=pytest.mark.docker),
        pytest.param("podman", marks=pytest.mark.docker),
    ]
)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    odd = "odd: 'x' $(touch z) %s \\" + (', "y"\n' if request.param != "podman" else "")
    rig = Rig(ENGINES[request.param](), tmp_path, odd, reports_oom=request.param != "podman")
    yield rig
    for engine in rig.engines:
        with contextlib.suppress(EngineError):
            for found in engine.find(rig.namespace):
                engine.kill(found.worker_id, grace_s=10)
                engine.remove(found.worker_id)
        engine.close()


def end_of(engine: Engine, worker_id: str) -> Status:
    return until(lambda: engine.status(worker_id), lambda status: status.state not in ("running", "unknown"))


def test_a_worker_runs_writes_in_its_folder_and_is_forgotten(rig: Rig) -> None:
    engine = rig.engine(WRITE_PROGRESS)
    job = rig.job()
    worker_id = engine.start(job)
    status = end_of(engine, worker_id)
    assert status == Status("exited", 0, False, "reading\n")
    assert json.loads((job.folder / "progress.json").read_text()) == {"beat": 1}
    assert [found.state for found in engine.find(rig.namespace)] == ["exited"]
    assert engine.remove(worker_id)
    assert engine.find(rig.namespace) == []
    assert engine.status(worker_id).state == "gone"
    assert engine.remove(worker_id)
    assert engine.kill(worker_id)


def test_a_running_worker_is_seen_found_and_killed(rig: Rig) -> None:
    engine = rig.engine(SLEEP)
    job = rig.job(chunk_id=12, attempt=3)
    worker_id = engine.start(job)
    until((job.folder / "progress.json").exists, bool)
    assert engine.status(worker_id).state == "running"
    assert not engine.remove(worker_id)
    (found,) = engine.find(rig.namespace)
    assert (found.worker_id, found.scan_id, found.chunk_id, found.attempt) == (worker_id, 7, 12, 3)
    assert (found.folder, found.state, found.owner_alive) == (job.folder, "running", True)
    assert engine.kill(worker_id, grace_s=5)
    status = end_of(engine, worker_id)
    assert (status.exit_code, status.oom) == (128 + signal.SIGKILL, False)
    assert "reading" in status.log_tail
    assert engine.remove(worker_id)


def test_children_die_with_their_worker(rig: Rig) -> None:
    engine = rig.engine(FAMILY)
    job = rig.job()
    worker_id = engine.start(job)
    until((job.folder / "child").exists, bool)
    assert engine.kill(worker_id, grace_s=5)
    assert [found.state for found in engine.find(rig.namespace)] == ["exited"]
    assert engine.remove(worker_id)


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("raise SystemExit(10)", 10),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", 128 + signal.SIGSEGV),
        ("1 / 0", 1),
    ],
)
def test_exit_codes(rig: Rig, program: str, code: int) -> None:
    engine = rig.engine(program)
    status = end_of(engine, engine.start(rig.job()))
    assert (status.state, status.exit_code, status.oom) == ("exited", code, False)
    assert ("ZeroDivisionError" in status.log_tail) == (code == 1)


def test_out_of_memory_is_told(rig: Rig) -> None:
    engine = rig.engine("kept = [b'x' * 2**20 for _ in range(300)]; print(len(kept))")
    job = rig.job()
    status = end_of(engine, engine.start(job))
    assert status.state == "exited"
    assert status.exit_code != 0
    if rig.reports_oom:
        assert status.oom


def test_the_log_is_read_from_its_end_and_bounded(rig: Rig) -> None:
    engine = rig.engine("print('x' * 50_000); print('the end')")
    status = end_of(engine, engine.start(rig.job()))
    assert status.log_tail.endswith("the end\n")
    assert len(status.log_tail) <= 8192


def test_workers_see_the_share_under_its_own_name(rig: Rig) -> None:
    job = rig.job()
    share = Path(os.fsdecode(job.share))
    (share / "file").write_text("hello")
    engine = rig.engine(f"print(open({os.fspath(share / 'file')!r}).read())")
    assert end_of(engine, engine.start(job)).log_tail == "hello\n"


ODD_NAMES = ["Fotos: 'été' \"x\"", "$(touch x)", "-rf /", "日本", "a/b", " " * 3, "x" * 300]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_at_once(rig: Rig, name: str) -> None:
    engine = rig.engine(SLEEP)
    jobs = [rig.job(chunk_id=1, name=name), rig.job(chunk_id=2, name=name), rig.job(1, 2, name)]
    ids = [engine.start(job) for job in jobs]
    assert len(set(ids)) == 3
    assert {engine.status(worker_id).state for worker_id in ids} == {"running"}
    found = engine.find(rig.namespace)
    assert {(one.chunk_id, one.attempt, one.folder) for one in found} == {
        (job.chunk_id, job.attempt, job.folder) for job in jobs
    }


def test_the_same_chunk_in_two_data_directories(rig: Rig) -> None:
    mine, other = rig.engine(SLEEP), rig.engine(SLEEP, rig.namespace + "-2")
    jobs = rig.job(), rig.job()
    my_id, other_id = mine.start(jobs[0]), other.start(jobs[1])
    for job in jobs:  # a process that has just begun shows no environment yet
        until((job.folder / "progress.json").exists, bool)
    assert [found.worker_id for found in mine.find(rig.namespace)] == [my_id]
    assert [found.worker_id for found in mine.find(rig.namespace + "-2")] == [other_id]
    assert mine.kill(my_id, grace_s=5)
    assert other.status(other_id).state == "running"
    assert other.kill(other_id, grace_s=5)
    assert other.remove(other_id)


def test_a_chunk_tried_again_beside_its_dead_attempt(rig: Rig) -> None:
    engine = rig.engine(WRITE_PROGRESS)
    first = engine.start(rig.job(attempt=1))
    end_of(engine, first)
    second = engine.start(rig.job(attempt=2))
    assert end_of(engine, second).exit_code == 0


def test_another_engine_finds_and_ends_what_this_one_started(rig: Rig) -> None:
    worker_id = rig.engine(SLEEP).start(rig.job())
    other = rig.engine(SLEEP)
    (found,) = until(lambda: other.find(rig.namespace), bool)
    assert found.worker_id == worker_id
    assert other.status(worker_id).state == "running"
    assert other.kill(worker_id, grace_s=5)
    assert other.status(worker_id).state in ("exited", "gone")


def test_eight_at_once_from_eight_threads(rig: Rig) -> None:
    engine = rig.engine(WRITE_PROGRESS)
    jobs = [rig.job(chunk_id=number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(engine.start, jobs))
        ends = list(pool.map(lambda worker_id: end_of(engine, worker_id), ids))
        assert [end.exit_code for end in ends] == [0] * 8
        assert all(pool.map(engine.remove, ids))
    assert engine.find(rig.namespace) == []


def test_wishes_above_the_host_are_cut_and_said(rig: Rig) -> None:
    engine = rig.engine("")
    got, said = engine.clamp(Resources(4096.0, 2**60))
    assert got.cpus <= 4096
    assert got.memory_bytes < 2**60
    assert len(said) == 2
    assert engine.clamp(got) == (got, [])
    same, said = engine.clamp(got, at_a_time=2)
    assert same == got
    assert [sentence.partition(" may use ")[0] for sentence in said] == ["2 workers at a time"]
    assert engine.start(rig.job()._replace(resources=got))
    assert engine.describe()


def test_a_folder_that_is_missing_is_no_worker(rig: Rig) -> None:
    engine = rig.engine(WRITE_PROGRESS)
    job = rig.job()._replace(folder=rig.folder / "nowhere")
    with pytest.raises((EngineError, MountError)):
        engine.start(job)
    assert engine.find(rig.namespace) == []


def test_a_path_that_an_engine_cannot_mount_is_refused(rig: Rig) -> None:
    engine = rig.engine(WRITE_PROGRESS)
    if engine.name == "local":
        pytest.skip("local processes need no mount")
    with pytest.raises(EngineError, match="use --engine local"):
        engine.start(rig.job()._replace(share=os.fsencode(rig.folder) + b"/\xff"))
    assert engine.find(rig.namespace) == []


def test_local_workers_die_with_their_controller(tmp_path: Path) -> None:
    job_folder = tmp_path / "1-1"
    job_folder.mkdir()
    (tmp_path / "sleeper.py").write_text(SLEEP)
    program = textwrap.dedent(
        f"""
        import sys, time
        from pathlib import Path
        from smartscan.engine import Job, leash, local
        from smartscan.model import Resources
        engine = local.Local("orphans", command=(sys.executable, "-m", leash.__name__, "sleeper"))
        folder = Path({os.fspath(job_folder)!r})
        print(engine.start(Job(1, "x", 1, 1, b"/", folder, Resources(1.0, 2**28))), flush=True)
        time.sleep(60)
        """
    )
    environment = {**os.environ, "PYTHONPATH": f"{local.PACKAGES}{os.pathsep}{tmp_path}"}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
    ) as controller:
        assert controller.stdout
        worker_id = controller.stdout.readline().strip()
        until((job_folder / "progress.json").exists, bool)
        watcher = local.Local("orphans")
        assert [found.worker_id for found in watcher.find("orphans")] == [worker_id]
        controller.kill()
    until(lambda: watcher.status(worker_id).state, lambda state: state == "gone", 5.0)
    assert watcher.find("orphans") == []
    watcher.close()


def readies() -> list[int]:
    """Find the processes that wait for an order of this one."""
    mine = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and b"--ready" in (folder / "cmdline").read_bytes().split(b"\0"):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                mine += [int(folder.name)] * (parent == os.getpid())
    return mine


def test_a_worker_made_ready_is_found_and_ended_like_any_other(tmp_path: Path) -> None:
    folder = tmp_path / "odd: $x \n ü" / "3-1"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "chunk.json")  # the worker waits in it
    engine, watcher = local.Local("ready"), local.Local("ready")
    engine.prepare()
    (pid,) = until(readies, bool)
    worker_id = engine.start(Job(7, "x", 3, 1, b"/", folder, SMALL))
    assert worker_id.partition(":")[0] == str(pid)
    assert readies() == [pid]  # this is it, and no other was made
    until(lambda: watcher.find("ready"), bool)
    assert [(w.worker_id, w.scan_id, w.chunk_id, w.folder) for w in watcher.find("ready")] == [
        (worker_id, 7, 3, folder)
    ]
    (folder / "chunk.json").write_text("{}")
    assert until(lambda: engine.status(worker_id), lambda s: s.state == "exited").exit_code == 2
    assert "chunk.json cannot be used" in engine.status(worker_id).log_tail
    assert engine.remove(worker_id)
    engine.close()
    watcher.close()


def test_one_made_ready_that_was_killed_is_replaced_and_one_not_needed_ends(tmp_path: Path) -> None:
    engine = local.Local("unready")
    engine.prepare()
    (pid,) = until(readies, bool)
    os.kill(pid, signal.SIGKILL)
    until(readies, lambda left: not left)
    worker_id = engine.start(Job(7, "x", 1, 1, b"/", tmp_path, SMALL))
    assert until(lambda: engine.status(worker_id), lambda s: s.state == "exited").exit_code == 2
    engine.close()
    other = local.Local("unready")
    other.prepare()
    until(readies, bool)
    other.close()
    until(readies, lambda left: not left)
    assert not groups_of(os.getpid())


def groups_of(pid: int) -> list[Path]:
    """Find the control groups that a process has made for its workers."""
    parent = cgroups.parent()
    return [g for folder in set(parent.dirs.values()) for g in folder.glob(f"*-{pid}.*")] if parent else []


@pytest.mark.parametrize("groups", [True, False])
@pytest.mark.parametrize("ready", [True, False])
def test_what_reads_has_the_limits_of_its_worker(tmp_path: Path, groups: bool, ready: bool) -> None:
    """It is started by the worker, as early as that can, and has the limits that its starter had by then."""
    engine, enough = local.Local("limits", groups=groups), Resources(1.0, 2**28)
    for number in range(5):
        folder = tmp_path / f"1-{number}"
        folder.mkdir()
        Orders(b"/usr", 7, 1, number, (Root(b""),), Limits(), (), False).write(folder)
        if ready:
            engine.prepare()
            until(readies, bool)
            time.sleep(0.2)  # its program is loaded
        worker_id = engine.start(Job(7, "x", 1, number, b"/usr", folder, enough))
        guard = worker_id.partition(":")[0]
        (walker,) = until(Path(f"/proc/{guard}/task/{guard}/children").read_text, bool).split()
        assert limits_of(walker) == limits_of(guard)
        assert limits_of(guard) != limits_of("self")
        assert engine.kill(worker_id)
        assert engine.remove(worker_id)
    engine.close()


@pytest.mark.parametrize("ready", [True, False])
def test_where_the_kernel_refuses_a_group_a_worker_has_other_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ready: bool
) -> None:
    monkeypatch.setattr(cgroups, "parent", lambda: cgroups.Parent(1, {"memory": Path("/proc")}))
    engine = local.Local("refused")
    assert "control groups v1" in engine.describe()[0]
    if ready:
        engine.prepare()
        until(readies, bool)
    Orders(b"/usr", 7, 1, 1, (Root(b""),), Limits(), (), False).write(tmp_path)
    guard = engine.start(Job(7, "x", 1, 1, b"/usr", tmp_path, SMALL)).partition(":")[0]
    assert resource.prlimit(int(guard), resource.RLIMIT_DATA)[0] == SMALL.memory_bytes
    assert "RLIMIT_DATA" in engine.describe()[0]
    engine.close()


def limits_of(pid: str) -> tuple[str, int, int, list[str]]:
    """Give what holds a process: out-of-memory score, niceness, data limit, CPUs and control groups."""
    mine = Path("/proc", pid)
    number = 0 if pid == "self" else int(pid)
    return (
        (mine / "oom_score_adj").read_text(),
        os.getpriority(os.PRIO_PROCESS, number),
        resource.prlimit(number, resource.RLIMIT_DATA)[0],
        [*map(str, os.sched_getaffinity(number)), (mine / "cgroup").read_text()],
    )


def test_a_recycled_pid_is_left_alone() -> None:
    engine = local.Local("recycled")
    me = f"{os.getpid()}:1"
    assert engine.status(me).state == "gone"
    assert engine.kill(me)
    engine.close()


def test_choosing_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    engine, why = choose("auto", namespace="x")
    assert engine.name == "local"
    assert "/nowhere/docker.sock" in why
    engine.close()
    with pytest.raises(EngineError, match="/nowhere/docker"):
        choose("docker", namespace="x")
    with pytest.raises(UsageError, match="'kubernetes'"):
        choose("kubernetes", namespace="x")
