"""What is asked of the Docker engine alone: limits, names, hung storage, a controller in a container."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import textwrap
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from containers import CONTROLLER_IMAGE, WORKER_IMAGE, docker_command, engine_url, until
from smartscan.engine import Job, docker, host
from smartscan.errors import EngineError, MountError
from smartscan.faults import fault_mount, hang
from smartscan.model import Resources

pytestmark = pytest.mark.docker

SMALL = Resources(1.0, 64 * 2**20)
SLEEP = "import time; print('here', flush=True); time.sleep(60)"


class Rig:
    """An engine with a namespace of its own, and jobs for it."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self.namespace = uuid.uuid4().hex[:12]
        self.share = folder / "share"
        self.share.mkdir()

    def engine(self, program: str, image: str = WORKER_IMAGE, **more: Any) -> docker.Docker:
        command = ("python3", "-c", program)
        return docker.Docker(self.namespace, url=self.url, image=image, command=command, **more)

    def job(self, chunk_id: int = 1, attempt: int = 1, share: Path | None = None) -> Job:
        folder = self.folder / "work" / f"{chunk_id}-{attempt}"
        folder.mkdir(parents=True)
        return Job(1, "Media", chunk_id, attempt, os.fsencode(share or self.share), folder, SMALL)

    def inspect(self, engine: docker.Docker, worker_id: str) -> dict[str, Any]:
        return dict(engine._api.inspect_container(worker_id))


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(engine_url(), tmp_path)
    yield rig
    engine = rig.engine("")
    for found in engine.find(rig.namespace):
        engine.kill(found.worker_id, grace_s=10)
        until(lambda: engine.remove(found.worker_id), bool)  # noqa: B023 - called before the loop goes on


def test_a_worker_may_do_little(rig: Rig) -> None:
    engine = rig.engine(SLEEP)
    worker_id = engine.start(rig.job(chunk_id=5))
    seen = rig.inspect(engine, worker_id)
    settings = seen["HostConfig"]
    assert seen["Name"] == "/smart-scan-Media-5"
    assert settings["NetworkMode"] == "none"
    assert settings["ReadonlyRootfs"]
    assert [cap.removeprefix("CAP_") for cap in settings["CapAdd"]] == ["DAC_READ_SEARCH"]
    assert "no-new-privileges" in settings["SecurityOpt"]
    assert settings["PidsLimit"] == 512
    assert settings["Memory"] == settings["MemorySwap"] == SMALL.memory_bytes
    assert settings["NanoCpus"] == 10**9
    assert settings["CpuShares"] == 256, "less than the controller, which has the default of 1024"
    assert settings["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "1"}}
    assert not settings["AutoRemove"]
    assert {(mount["Destination"], mount["RW"]) for mount in seen["Mounts"]} == {
        (str(rig.share), False),
        ("/attempt", True),
    }


def test_a_worker_reads_everything_and_writes_only_in_its_folder(rig: Rig) -> None:
    secret = rig.share / "secret"
    secret.write_text("read\n")
    secret.chmod(0)
    if os.geteuid() == 0:
        os.chown(secret, 99, 100)
    program = f"""
        print(open({str(secret)!r}).read(), end="")
        for place in ({str(rig.share)!r}, "/", "/tmp", "/etc", "/attempt"):
            try:
                open(place + "/new", "w").close()
                print("wrote in", place)
            except OSError as error:
                print(error.strerror)
    """
    engine = rig.engine(textwrap.dedent(program))
    worker_id = engine.start(rig.job())
    status = until(lambda: engine.status(worker_id), lambda status: status.state == "exited")
    assert status.log_tail.splitlines() == ["read", *["Read-only file system"] * 4, "wrote in /attempt"]


@pytest.mark.root
def test_an_ordinary_users_folder_can_be_written_and_removed_by_that_user(rig: Rig) -> None:
    engine = rig.engine("open('/attempt/out', 'w').write('x')")
    job = rig.job()
    job.folder.chmod(0o755)
    os.chown(job.folder, 1234, 1234)
    worker_id = engine.start(job)
    status = until(lambda: engine.status(worker_id), lambda status: status.state == "exited")
    assert (status.exit_code, status.log_tail) == (0, "")
    assert (job.folder / "out").read_text() == "x"
    assert job.folder.stat().st_uid == 1234  # so that this user may remove what is in it


@pytest.mark.parametrize("share", ["/usr", "/opt", "/"])
def test_a_share_does_not_cover_what_its_worker_lives_on(rig: Rig, share: str) -> None:
    program = "import os, smartscan; print(sorted(os.listdir(os.environ['SMART_SCAN_SHARE'])))"
    engine = rig.engine(program)
    worker_id = engine.start(rig.job(share=Path(share)))
    status = until(lambda: engine.status(worker_id), lambda status: status.state == "exited")
    assert status.log_tail == f"{sorted(os.listdir(share))}\n"
    assert rig.inspect(engine, worker_id)["HostConfig"]["Init"]  # which lies in /sbin


def test_a_share_that_is_missing_is_said_and_not_made(rig: Rig) -> None:
    engine = rig.engine(SLEEP)
    with pytest.raises(MountError, match=r"no directory .*/nowhere"):
        engine.start(rig.job(share=rig.folder / "nowhere"))
    assert not (rig.folder / "nowhere").exists()
    assert engine.find(rig.namespace) == []


def test_an_image_that_is_missing_or_another_is_said(rig: Rig) -> None:
    with pytest.raises(EngineError, match=r"image no-such-image:9 is missing; ./run_smart_scan.sh setup"):
        rig.engine(SLEEP, image="no-such-image:9").check()
    with pytest.raises(EngineError, match="no-such-image:9 is missing"):
        rig.engine(SLEEP, image="no-such-image:9").start(rig.job())
    foreign = f"smart-scan-tests-foreign-{rig.namespace}"
    subprocess.run(
        ["docker", "build", "-q", "-t", foreign, "-"],
        input=f"FROM {WORKER_IMAGE}\nLABEL org.opencontainers.image.version=0.0.1\n",
        text=True,
        check=True,
        capture_output=True,
    )
    try:
        with pytest.raises(EngineError, match=r"of version 0\.0\.1, this program of"):
            rig.engine(SLEEP, image=foreign).check()
    finally:
        docker_command("rmi", foreign)


def test_a_worker_that_was_started_while_others_were_asked_after_is_running(rig: Rig) -> None:
    engine = rig.engine(SLEEP)
    first, over = engine.start(rig.job(1)), threading.Event()

    def ask() -> None:
        while not over.is_set():
            engine.status(first)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for number in range(2, 8):
            assert engine.status(engine.start(rig.job(number))).state == "running"
    finally:
        over.set()
        asking.join()


def test_a_strangers_container_keeps_its_name(rig: Rig) -> None:
    name = "smart-scan-Media-77"
    docker_command("run", "--detach", "--name", name, "--entrypoint", "sleep", WORKER_IMAGE, "60")
    try:
        engine = rig.engine(SLEEP)
        worker_id = engine.start(rig.job(chunk_id=77))
        assert rig.inspect(engine, worker_id)["Name"] == f"/{name}-1"
        assert docker_command("inspect", "-f", "{{.State.Running}}", name).stdout.strip() == "true"
    finally:
        docker_command("rm", "-f", name)


@pytest.mark.fuse
@pytest.mark.slow
def test_a_worker_that_cannot_be_killed_holds_nobody_up(rig: Rig) -> None:
    (rig.share / "stuck").mkdir()
    (rig.share / "fine").mkdir()
    with fault_mount(rig.share, rules=[hang("stuck", "opendir")]) as mount:
        engine = rig.engine(f"import os; print('in', flush=True); os.listdir({str(mount.path / 'stuck')!r})")
        other = rig.engine(SLEEP)
        stuck = engine.start(rig.job(1, share=mount.path))
        until(lambda: mount.asked("opendir", b"stuck"), bool)
        begun = time.monotonic()
        assert not engine.kill(stuck, grace_s=1.0)
        assert time.monotonic() - begun < 3
        assert engine.status(stuck).state == "running"
        fine = other.start(rig.job(2, share=mount.path))
        assert other.status(fine).state == "running"
        assert other.kill(fine, grace_s=5)
        assert other.remove(fine)
        assert not engine.remove(stuck)
        mount.end()
        until(lambda: engine.status(stuck).state, lambda state: state == "exited", 40)


@pytest.mark.fuse
@pytest.mark.slow
def test_a_start_that_hangs_is_given_up_and_fenced(rig: Rig) -> None:
    with fault_mount(rig.share) as mount:
        late = rig.job(1, share=mount.path)
        engine = rig.engine("print('late')", start_s=3.0)
        engine.start(rig.job(2))  # the first start of all also finds out what this engine cannot do
        mount.set(rules=[hang("*")])
        time.sleep(1.2)  # what the kernel still knew of the root
        begun = time.monotonic()
        with pytest.raises(EngineError, match="did not start a worker within 3 s"):
            engine.start(late)
        assert time.monotonic() - begun < 8
        assert (late.folder / "stop").exists()
        begun = time.monotonic()
        assert engine.find(rig.namespace)
        engine.start(rig.job(3))  # the engine goes on for others
        assert time.monotonic() - begun < 5
        mount.set()
        until(lambda: engine.find(rig.namespace), lambda found: all(one.state == "exited" for one in found))


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("live_restore", [False, True])
def test_the_engine_stops_and_comes_back(tmp_path: Path, live_restore: bool) -> None:
    engine_url()
    if not shutil.which("dockerd"):
        pytest.skip("there is no dockerd here to restart")
    with contextlib.ExitStack() as stack:
        # The path of a socket has at most 107 bytes.
        short = stack.enter_context(tempfile.TemporaryDirectory(prefix="engine-"))
        daemon = stack.enter_context(private_engine(Path(short), live_restore))
        rig = Rig(daemon.url, tmp_path)
        engine = rig.engine(SLEEP)
        worker_id = engine.start(rig.job(1))
        assert engine.status(worker_id).state == "running"
        daemon.stop(signal.SIGTERM)
        until(lambda: engine.status(worker_id).state, lambda state: state == "unknown", 5)  # no snapshot
        assert not engine.kill(worker_id, grace_s=0.2)
        assert not engine.remove(worker_id)
        with pytest.raises(EngineError, match="does not answer"):
            engine.start(rig.job(2))
        with pytest.raises(EngineError, match="does not answer"):
            engine.find(rig.namespace)
        daemon.start()
        time.sleep(0.3)
        assert engine.status(worker_id).state == ("running" if live_restore else "exited")
        again = engine.start(rig.job(3))
        assert engine.status(again).state == "running"
        for found in engine.find(rig.namespace):
            engine.kill(found.worker_id, grace_s=5)
            assert engine.remove(found.worker_id)


class PrivateEngine:
    """A dockerd of the test's own, to be rough with."""

    def __init__(self, folder: Path, live_restore: bool) -> None:
        self.url = f"unix://{folder}/docker.sock"
        self.command = [
            # In a network of its own: without a bridge it would take away that of another dockerd here.
            "unshare", "--net", "dockerd", "--host", self.url, "--data-root", f"{folder}/data",
            "--exec-root", f"{folder}/exec", "--pidfile", f"{folder}/pid",
            "--bridge", "none", "--iptables=false",
            *(["--live-restore"] if live_restore else []),
        ]  # fmt: skip
        self.log = folder / "dockerd.log"
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until(lambda: docker_command("--host", self.url, "version").returncode, lambda code: code == 0)

    def stop(self, number: int) -> None:
        self.process.send_signal(number)
        self.process.wait(40)


@contextlib.contextmanager
def private_engine(folder: Path, live_restore: bool) -> Iterator[PrivateEngine]:
    engine = PrivateEngine(folder, live_restore)
    try:
        image = folder / "image.tar"
        docker_command("save", "--output", str(image), WORKER_IMAGE, check=True)
        docker_command("--host", engine.url, "load", "--input", str(image), check=True)
        image.unlink()
        yield engine
    finally:
        engine.stop(signal.SIGTERM)
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            if line.split()[4].startswith(str(folder)):
                subprocess.run(["umount", "--lazy", line.split()[4]], check=False)


CONTROLLER = """
import os, sys, time
from pathlib import Path
from smartscan.engine import Job, choose
from smartscan.errors import EngineError
from smartscan.model import Resources
program = "open('/attempt/out', 'w').write('written by the worker')"
engine, why = choose("docker", namespace=sys.argv[1], command=("python3", "-c", program))
def job(folder):
    folder.mkdir(parents=True)
    return Job(1, "Media", 1, 1, os.fsencode(sys.argv[2]), folder, Resources(1.0, 2**26))
folder = Path("/elsewhere/work: 'a', b/1-1")
worker_id = engine.start(job(folder))
while engine.status(worker_id).state == "running":
    time.sleep(0.02)
(found,) = engine.find(sys.argv[1])
print((folder / "out").read_text(), found.owner_alive, engine.status(worker_id).log_tail)
engine.remove(worker_id)
try:
    engine.start(job(Path("/tmp/1-1")))
except EngineError as error:
    print(error)
"""


@pytest.mark.parametrize("named", [True, False])
def test_a_controller_in_a_container_and_its_worker_mean_the_same_folder(rig: Rig, named: bool) -> None:
    data = rig.folder / 'data dir: "x"'
    data.mkdir()
    name = f"smart-scan-tests-{rig.namespace}"
    socket = rig.url.removeprefix("unix://")
    ran = docker_command(
        "run", "--rm", "--name", name, "--hostname", "other", "--tmpfs", "/tmp", "--network", "none",
        *(["--env", f"{host.SELF}={name}"] if named else []),
        "--mount", f"type=bind,source={socket},target=/var/run/docker.sock",
        "--mount", 'type=bind,"source={}",target=/elsewhere'.format(str(data).replace('"', '""')),
        "--entrypoint", "python3", CONTROLLER_IMAGE, "-c", CONTROLLER, rig.namespace, str(rig.share),
    )  # fmt: skip
    assert ran.stdout.splitlines() == [
        "written by the worker True ",
        "/tmp/1-1 lies in no mount of the controller's container; mount the data directory into it.",
    ], ran.stderr
    assert (data / "work: 'a', b" / "1-1" / "out").read_text() == "written by the worker"


def test_a_controller_that_is_gone_is_seen_to_be(rig: Rig) -> None:
    program = CONTROLLER.partition("while ")[0].replace('"open(', '"import time; time.sleep(60); open(')
    ran = docker_command(
        "run", "--rm", "--mount", f"type=bind,source={rig.url.removeprefix('unix://')},target=/var/run/docker.sock",
        "--mount", f"type=bind,source={rig.folder},target=/elsewhere",
        "--entrypoint", "python3", CONTROLLER_IMAGE, "-c", program, rig.namespace, str(rig.share),
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    (found,) = rig.engine(SLEEP).find(rig.namespace)
    assert (found.state, found.owner_alive) == ("running", False)


def test_translating_paths_by_the_innermost_mount() -> None:
    mounts = [
        {"Source": "/srv", "Destination": "/data"},
        {"Source": "/ssd/work", "Destination": "/data/work"},
        {"Destination": "/tmp"},
    ]
    assert host.translate(b"/data/a:b/\xff", mounts) == b"/srv/a:b/\xff"
    assert host.translate(b"/data/work/1-1", mounts) == b"/ssd/work/1-1"
    assert host.translate(b"/data/works", mounts) == b"/srv/works"
    assert host.translate(b"/tmp/x", mounts) is None
