"""Engines that are slow, gone, or do things later: rows 1, 3 and 15 to 18 on a real Docker daemon."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from line import STALL_S, Line, until

from containers import WORKER_IMAGE, docker_command, engine_url
from smartscan.engine import Job, docker
from smartscan.errors import EngineError, MountError
from smartscan.faults import fault_mount, hang, latency
from smartscan.model import Limits, Resources, Root
from smartscan.run.request import namespace
from smartscan.worker.orders import Orders
from test_engine_docker import private_engine
from trees import find_listing

pytestmark = pytest.mark.docker

TREE = {f"d{n:02d}": {**{f"f{m}": m for m in range(6)}, "below": {"file": n}} for n in range(24)}
NO_CACHE = {"entry_cache_s": 0, "attr_cache_s": 0}
SMALL = ("--chunk-entries", 60, "--max-containers", 3)


@pytest.fixture
def boxes(line: Line) -> Iterator[Line]:
    """The command line on the Docker engine; its containers are gone when the test ends."""
    url = engine_url()
    line.engine = "docker"
    line.environment["DOCKER_HOST"] = url
    line.build(TREE)
    yield line
    engine = docker.Docker(namespace(line.db), url=url, image=WORKER_IMAGE)
    for worker in engine.find(namespace(line.db)):
        engine.kill(worker.worker_id, grace_s=10)
        until(lambda worker=worker: engine.remove(worker.worker_id), bool, 30)


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short name: the path of a socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="engine-") as folder:
        yield Path(folder)


def containers(line: Line) -> list[str]:
    mark = f"label={docker.LABEL}namespace={namespace(line.db)}"
    return docker_command("ps", "-aq", "--filter", mark).stdout.split()


def exact(line: Line, without: tuple[bytes, ...] = ()) -> None:
    want = {
        p for p in find_listing(line.real) if p and not any(p.startswith(top + b"/") for top in without)
    }
    assert line.listing().keys() == want


class Ingests:
    """When shards appeared in the folders of attempts, to be compared with when they were taken in."""

    def __init__(self, line: Line) -> None:
        self.line, self.seen, self.over = line, {}, False
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while not self.over:
            for path in self.line.data.glob("work/*/*/*.shard"):
                chunk, number = path.parent.name.split("-")
                self.seen.setdefault((int(chunk), int(number), path.name), time.time())
            time.sleep(0.02)

    def delay_s(self) -> float:
        """Give the longest time from a shard's appearance to its rows in the catalogue."""
        self.over = True
        self.thread.join()
        rows = self.line.query("SELECT chunk_id, attempt, name, ingested_at FROM shard")
        taken = {(chunk, number, name.decode()): at for chunk, number, name, at in rows}
        waits = [taken[key] - at for key, at in self.seen.items() if key in taken]
        return max(waits, default=0.0)


@pytest.mark.row(1, 15)
@pytest.mark.fuse
def test_a_container_that_cannot_be_killed_delays_nobody(boxes, figure):
    with fault_mount(boxes.real, rules=[hang("d05", "opendir"), latency(10)], **NO_CACHE) as share:
        ingests = Ingests(boxes)
        done = boxes.command(*boxes.words(share.path, *SMALL), code=3)
        figure("longest wait of a shard for the catalogue", ingests.delay_s(), "s", at_most=2)
        figure("whole scan in containers", done.took_s, "s", at_most=STALL_S + 40)
        assert done.dirs["timed out"] == 1
        assert done.dirs["listed"] == 1 + 2 * 24 - 2
        abandoned = done.data["certificate"]["abandoned"]
        assert len(abandoned) == 1
        left = containers(boxes)
        assert [worker["worker_id"][:12] for worker in abandoned] == left
        assert share.asked("opendir", b"d05") == 1
        exact(boxes, (b"d05",))
        share.end()
        until(lambda: docker_command("ps", "-q", "--filter", f"id={left[0]}").stdout, lambda out: not out, 40)
        boxes.command("cleanup", "--db", boxes.db, code=0)
        assert containers(boxes) == []
        boxes.at_rest()
    figure("containers left when the storage answers again", 0)


@pytest.mark.row(16)
@pytest.mark.root
@pytest.mark.fuse
@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "away_s"), [(signal.SIGTERM, 25), (signal.SIGKILL, 6)], ids=["stopped", "killed"]
)
def test_an_engine_that_goes_away_and_comes_back(line, figure, short, number, away_s):
    engine_url()
    if not shutil.which("dockerd"):
        pytest.skip("there is no dockerd here to restart")
    line.build(TREE)
    line.engine = "docker"
    with private_engine(short, False) as daemon:
        line.environment["DOCKER_HOST"] = daemon.url
        with fault_mount(line.real, rules=[latency(25)], **NO_CACHE) as share:
            scanning = line.start(share.path, *SMALL)
            until(lambda: share.asked("opendir"), lambda n: n > 8, 40)
            daemon.process.send_signal(number)
            daemon.process.wait(40)
            time.sleep(away_s)
            (short / "pid").unlink(missing_ok=True)
            daemon.start()
            _, err = scanning.communicate(timeout=120)
            assert scanning.returncode == 0, err
        exact(line)
        line.at_rest()
        paused = line.events("paused")
        failed = line.query("SELECT count(*) FROM chunk WHERE state = 'quarantined'")
        assert failed == [(0,)]
        listed = docker_command("--host", daemon.url, "ps", "-aq").stdout.split()
        assert listed == []
    how = "stopped" if number == signal.SIGTERM else "killed"
    figure(f"engine {how} for {away_s} s: rows missing or twice", 0)
    figure(f"engine {how}: times that the scan said it waits", len(paused))


@pytest.mark.row(17)
@pytest.mark.fuse
def test_a_start_that_happens_later_brings_nothing(boxes, figure):
    folder = boxes.data / "work" / "m" / "1-1"
    folder.mkdir(parents=True)
    with fault_mount(boxes.real, **NO_CACHE) as share:
        engine = docker.Docker(
            namespace(boxes.db), url=boxes.environment["DOCKER_HOST"], image=WORKER_IMAGE, start_s=3.0
        )
        Orders(os.fsencode(share.path), 1, 1, 1, (Root(b""),), Limits(), (), False).write(folder)
        job = Job(1, "m", 1, 1, os.fsencode(share.path), folder, Resources(1.0, 2**28))
        share.set(rules=[hang("*")])
        began = time.monotonic()
        with pytest.raises((EngineError, MountError)):
            engine.start(job)
        figure("a start that hangs is given up after", time.monotonic() - began, "s", at_most=3 + 5)
        assert (folder / "stop").exists()
        share.set()
        found = until(
            lambda: engine.find(namespace(boxes.db)),
            lambda found: found and all(one.state == "exited" for one in found),
            30,
        )
        result = json.loads((folder / "result.json").read_text()) if (folder / "result.json").exists() else {}
        assert result.get("outcome", "cancelled") == "cancelled"
        assert engine.remove(found[0].worker_id)
    figure("entries from the start that happened later", result.get("entries", 0), at_most=0)
    shutil.rmtree(boxes.data / "work")


@pytest.mark.row(3)
@pytest.mark.fuse
@pytest.mark.slow
def test_a_share_that_hangs_is_dead_and_the_engine_is_not(boxes, figure):
    with fault_mount(boxes.real, rules=[hang("*")], attr_cache_s=0) as share:
        time.sleep(1.1)
        done = boxes.command(*boxes.words(share.path), code=4, timeout_s=170)
        figure("whole scan of a dead share, in containers", done.took_s, "s", at_most=120)
        assert done.data["mount_dead"]
        began = time.monotonic()
        assert docker_command("version").returncode == 0
        figure("the engine answers after", time.monotonic() - began, "s", at_most=5)
        share.set()
        until(lambda: docker_command("ps", "-q", "--filter",
              f"label={docker.LABEL}namespace={namespace(boxes.db)}").stdout, lambda out: not out, 40)
        boxes.command(*boxes.words(share.path), code=0)
    exact(boxes)


@pytest.mark.row(18)
def test_what_an_engine_cannot_do_is_one_sentence_and_burns_no_attempt(boxes, figure):
    words = boxes.words(boxes.real, "--cpus", 512, "--memory", "9999g")
    many = boxes._popen(word for word in words if word != "--json")
    _, said = many.communicate(timeout=60)
    assert many.returncode == 0, said
    assert "CPUs: a worker gets" in said and "of memory: a worker gets" in said
    boxes.db = boxes.data / "y.db"
    sentences = 0
    for words, env, says in (
        (("--image", "no-such-image:9"), {}, "is missing; ./run_smart_scan.sh setup builds it"),
        ((), {"DOCKER_HOST": f"unix://{boxes.folder}/no.sock"}, "does not exist"),
        ((), {"DOCKER_HOST": "tcp://127.0.0.1:1"}, "nothing answers at"),
    ):
        before = dict(boxes.environment)
        boxes.environment |= env
        refused = boxes.command(*boxes.words(boxes.real, *words), code=11)
        boxes.environment = before
        assert says in refused.err
        assert len(refused.err.strip().splitlines()) == 1
        sentences += 1
    assert not boxes.db.exists() or boxes.query("SELECT count(*) FROM attempt") == [(0,)]
    name = "smart-scan-m-1"
    docker_command("rm", "-f", name)
    docker_command("run", "--detach", "--name", name, "--entrypoint", "sleep", WORKER_IMAGE, "60")
    try:
        boxes.command(*boxes.words(boxes.real), code=0)
        assert docker_command("inspect", "-f", "{{.State.Running}}", name).stdout.strip() == "true"
    finally:
        docker_command("rm", "-f", name)
    exact(boxes)
    figure("refusals said in one sentence before the scan", f"{sentences} of 3")
    figure("attempts burnt", 0)
