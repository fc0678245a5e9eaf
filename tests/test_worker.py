"""A worker as the controller knows it: a process, a folder, and a tree that is listed exactly once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from smartscan import shard, walk
from smartscan.codec import python as codec
from smartscan.model import Limits, Root, Scope, join
from smartscan.run.attempts import give_known
from smartscan.shard import BIG, KIND_DIR, LAST, UNCHANGED
from smartscan.worker.orders import Orders
from trees import build, find_listing, odd_tree
from twins import needs_native

FAST = Limits(threads=4, stall_s=20)


@pytest.fixture(params=["0", pytest.param("1", marks=needs_native)], ids=["python", "native"])
def environment(request) -> dict[str, str]:
    return os.environ | {"SMART_SCAN_NATIVE": request.param}


@dataclass
class Sums:
    """What several attempts brought together, kept as a controller does."""

    entries: dict[bytes, int] = field(default_factory=dict)  # path: mode
    decided: set[bytes] = field(default_factory=set)
    roots: set[bytes] = field(default_factory=set)

    def take(self, folder: Path, names: list[str]) -> None:
        """Take shards in; an entry or a directory that was there before is an error."""
        for name in names:
            for window in shard.windows(folder / name):
                for r in window.records:
                    if r.kind != KIND_DIR:
                        continue
                    if r.flags & LAST:
                        assert r.path not in self.decided, f"{r.path!r} a second time"
                        self.decided.add(r.path)
                    for entry, mode, *_ in shard.rows(window, r.offset):
                        path = join(r.path, entry)
                        assert path not in self.entries, f"{path!r} a second time"
                        self.entries[path] = mode

    def next_roots(self, parent: tuple[Root, ...], left: list[Root]) -> list[Root]:
        """Leave out what a FILES root names and is decided or a root elsewhere."""
        listed = {r.path for r in parent if r.scope is Scope.FILES}
        kept = []
        for root in left:
            named = bool(root.path) and root.path.rpartition(b"/")[0] in listed
            if named and (root.path in self.decided or root.path in self.roots - {r.path for r in parent}):
                continue
            kept.append(root)
        self.roots |= {r.path for r in kept}
        return kept


class Attempt:
    """A worker on a folder of its own."""

    def __init__(self, folder: Path, share: Path, environment: dict[str, str], *roots: Root,
                 **orders: Any) -> None:
        folder.mkdir(parents=True)
        self.folder, self.roots = folder, roots or (Root(b""),)
        told = Orders(os.fsencode(share), 1, 1, 1, self.roots, FAST, (), False)
        told._replace(**orders).write(folder)
        # Less urgent than the test, which has to meet it in the middle of its walk on a busy machine too.
        command = ["nice", "-n", "10", sys.executable, "-m", "smartscan.worker", folder]
        out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.process = subprocess.Popen(command, env=environment, **out)

    def wait(self) -> dict[str, Any]:
        out, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, out.decode()
        return dict(json.loads((self.folder / "result.json").read_bytes()))

    def children(self) -> list[int]:
        pid = self.process.pid
        try:
            return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except FileNotFoundError:
            return []

    def until(self, seen: Callable[[], Any]) -> bool:
        """Wait until something is so; False where the worker ended before."""
        while not seen():
            if self.process.poll() is not None:
                return False
            time.sleep(0.001)
        return True

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Stop the walker in the middle of its walk, for what the guard shall do meanwhile."""
        self.until(lambda: self.children() and list(self.folder.glob("*.part")))
        walkers = self.children()
        for pid in walkers:
            os.kill(pid, signal.SIGSTOP)
        yield
        for pid in walkers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def ask_for_half(self) -> None:
        """Let the walker find the order when it goes on."""
        with self.held():
            (self.folder / "yield").touch()
            self.until(lambda: not (self.folder / "yield").exists())

    def given(self) -> list[Root]:
        return [root for _, roots in shard.leftover_files(self.folder) for root in roots]


def left_of(result: dict[str, Any]) -> list[Root]:
    return [Root.from_json(r) for r in result["leftover"]]


def run_to_the_end(path: Path, share: Path, environment: dict[str, str], sums: Sums, todo: list[Root],
                   **orders: Any) -> int:
    """Attempt after attempt until nothing is left; gives their number."""
    number = 0
    sums.roots |= {r.path for r in todo}
    while todo:
        number += 1
        assert number < 100
        attempt = Attempt(path / f"{number}", share, environment, *todo, **orders)
        result = attempt.wait()
        sums.take(attempt.folder, result["shards"])
        todo = sums.next_roots(attempt.roots, [*left_of(result), *attempt.given()])
    return number


def check_whole(share: Path, sums: Sums) -> None:
    found = find_listing(share)
    assert sums.decided == {p for p, e in found.items() if e.type == "d"}
    assert sums.entries.keys() == found.keys() - {b""}


def bushy(depth: int, width: int) -> dict[str, Any]:
    tree: dict[str, Any] = {"file": 1}
    for _ in range(depth):
        tree = {f"d{i}": tree for i in range(width)} | {"file": 1}
    return tree


LARGE = {"large": {f"f{i:05}": 0 for i in range(9000)} | {f"s{i}": {"x": {"y": 1}} for i in range(20)}}


@pytest.fixture(scope="session")
def share(tmp_path_factory) -> Path:
    """Some 400 directories, one of which is large and has subdirectories."""
    path = tmp_path_factory.mktemp("share")
    build(path, bushy(4, 4) | LARGE)
    return path


@pytest.fixture(scope="session")
def wide_share(tmp_path_factory) -> Path:
    """Some 5,500 directories: enough that a walker can be stopped in the middle."""
    path = tmp_path_factory.mktemp("wide-share")
    build(path, bushy(6, 4) | LARGE)
    return path


# To the end


def test_a_whole_share_in_one_attempt(tmp_path, share, environment):
    attempt = Attempt(tmp_path / "1", share, environment)
    result = attempt.wait()
    sums = Sums()
    sums.take(attempt.folder, result["shards"])
    check_whole(share, sums)
    assert (result["outcome"], result["leftover"], result["stuck"]) == ("sealed", [], [])
    assert (result["walker"], result["message"]) == ("ended", "")
    st = os.stat(share)
    assert result["share_id"] == [st.st_dev, st.st_ino]
    assert result["entries"] == len(sums.entries)
    assert result["fs"]["total_bytes"] > 0
    assert not list(attempt.folder.glob("*.part"))


def test_everything_odd(tmp_path, environment):
    with odd_tree(tmp_path / "share", big=False) as odd:
        result = Attempt(tmp_path / "1", odd.path, environment).wait()
        sums = Sums()
        sums.take(tmp_path / "1", result["shards"])
        found = find_listing(odd.path)
        bind = {odd.bind} if odd.bind else set()
        assert sums.entries.keys() == found.keys() - {b""} | bind
        assert sums.decided == {p for p, e in found.items() if e.type == "d"} | bind


def test_a_chunk_limit_gives_the_rest_back_and_all_attempts_make_the_tree_once(tmp_path, share, environment):
    sums = Sums()
    limits = FAST._replace(chunk_entries=100)
    number = run_to_the_end(tmp_path, share, environment, sums, [Root(b"")], limits=limits)
    check_whole(share, sums)
    assert number > 1


def test_known_digests_are_used(tmp_path, share, environment):
    first = Attempt(tmp_path / "1", share, environment).wait()
    rows = []
    for name in first["shards"]:
        for window in shard.windows(tmp_path / "1" / name):
            rows += [(r.path, r.dir_digest, len(r.path) + 7) for r in window.records if r.flags & LAST]
    known = codec.known(rows)
    roots = (Root(b"d0"), Root(b"large", Scope.FILES))
    folder = tmp_path / "2"
    folder.mkdir()
    (folder / "known.bin").write_bytes(known)
    told = Orders(os.fsencode(share), 1, 1, 1, roots, FAST, (), False, known=True)
    told.write(folder)
    command = [sys.executable, "-m", "smartscan.worker", folder]
    subprocess.run(command, env=environment, check=True, timeout=60)
    result = json.loads((folder / "result.json").read_bytes())
    records = [r for name in result["shards"] for w in shard.windows(folder / name) for r in w.records]
    assert all(r.flags & (UNCHANGED | BIG) for r in records)
    again = {(r.path, r.dir_digest, r.known_id or len(r.path) + 7) for r in records if r.flags & LAST}
    assert again <= set(rows), "the large one too"
    assert all(r.known_id for r in records if r.flags & UNCHANGED)
    assert {r.path for r in map(Root.from_json, result["leftover"])} == {b"large/s%d" % i for i in range(20)}


def test_digests_may_come_late_or_never(tmp_path, wide_share, environment):
    records, told = {}, b""
    for number, known in ("first", False), ("late", True), ("never", True):
        attempt = Attempt(tmp_path / number, wide_share, environment, known=known)
        if number == "late":
            with attempt.held():
                give_known(attempt.folder, told)
        found = attempt.wait()["shards"]
        windows = (w for name in found for w in shard.windows(attempt.folder / name))
        records[number] = {r.path: r for w in windows for r in w.records}
        if number == "first":
            made = records[number].values()
            told = codec.known([(r.path, r.dir_digest, 1) for r in made])
    # A signal in the middle of a large listing makes other blocks of it, and so another digest.
    digests = [{p: r.dir_digest for p, r in seen.items() if not r.flags & BIG} for seen in records.values()]
    assert digests[0] == digests[1] == digests[2]
    assert not any(r.flags & UNCHANGED for r in records["never"].values())
    if environment["SMART_SCAN_NATIVE"] == "0":  # the other may be done before it looks again
        assert {bool(r.flags & UNCHANGED) for r in records["late"].values() if r.n} == {False, True}


def test_a_root_in_a_files_root_is_listed_once(tmp_path, share, environment):
    sums = Sums()
    roots = [Root(b"", Scope.FILES), Root(b"d0"), Root(b"large", Scope.FILES), Root(b"large/s3")]
    run_to_the_end(tmp_path, share, environment, sums, roots, limits=FAST._replace(chunk_entries=150))
    check_whole(share, sums)


# Orders


def test_stop_gives_back_what_is_not_begun(tmp_path, wide_share, environment):
    for number in range(5):  # on a busy host it may be at its end before it is held
        sums = Sums()
        attempt = Attempt(tmp_path / f"{number}", wide_share, environment, limits=FAST._replace(threads=1))
        progress = attempt.folder / "progress.json"
        with attempt.held():
            (attempt.folder / "stop").touch()
            for _ in range(2):  # the guard passes orders on before it writes how far it is
                seen = progress.stat().st_ino
                attempt.until(lambda seen=seen, progress=progress: progress.stat().st_ino != seen)
        result = attempt.wait()
        sums.take(attempt.folder, result["shards"])
        if left := left_of(result):
            break
        check_whole(wide_share, sums)
    assert left and result["outcome"] == "cancelled"
    sums.roots.add(b"")
    run_to_the_end(tmp_path / "then", wide_share, environment, sums, sums.next_roots(attempt.roots, left))
    check_whole(wide_share, sums)


def test_it_says_what_cpu_time_its_walker_has_used(tmp_path, wide_share, environment):
    attempt = Attempt(tmp_path / "1", wide_share, environment)
    with attempt.held():
        (walker,) = attempt.children()
        fields = Path(f"/proc/{walker}/stat").read_bytes().rpartition(b")")[2].split()
        used_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        progress = attempt.folder / "progress.json"
        attempt.until(lambda: json.loads(progress.read_bytes())["cpu_s"] == used_s)
    attempt.wait()


def test_yield_gives_half_of_what_waits_and_goes_on(tmp_path, wide_share, environment):
    sums = Sums()
    attempt = Attempt(tmp_path / "first", wide_share, environment, limits=FAST._replace(threads=1))
    attempt.ask_for_half()
    attempt.ask_for_half()
    result = attempt.wait()
    given = attempt.given()
    assert result["outcome"] == "sealed"
    assert given
    sums.take(attempt.folder, result["shards"])
    sums.roots |= {b""} | {r.path for r in given}
    run_to_the_end(tmp_path / "then", wide_share, environment, sums, [*given, *left_of(result)])
    check_whole(wide_share, sums)


def test_what_names_a_directory_is_sealed_before_it_is_given_back(tmp_path, wide_share, environment):
    attempt = Attempt(tmp_path / "1", wide_share, environment, limits=FAST._replace(threads=1))
    attempt.ask_for_half()
    assert attempt.until(lambda: shard.leftover_files(attempt.folder))
    named = set()
    for path in attempt.folder.glob("*.shard"):
        for window in shard.windows(path, subdirs=True):
            named |= {join(r.path, s) for r in window.records for s in r.subdir_names or ()}
    given = {r.path for r in attempt.given()}
    in_large = {b"large/s%d" % i for i in range(20)}  # which has no record before its end
    assert given - named <= in_large
    attempt.wait()


# Deaths


@pytest.mark.parametrize("after", [0, 1, 2])
def test_what_a_killed_walker_leaves_is_salvaged(tmp_path, wide_share, environment, after):
    sums = Sums()
    attempt = Attempt(tmp_path / "first", wide_share, environment, limits=FAST._replace(threads=2))
    for _ in range(after):
        attempt.ask_for_half()
    with attempt.held():
        for pid in attempt.children():
            os.kill(pid, signal.SIGKILL)
    result = attempt.wait()
    assert (result["outcome"], result["message"]) == ("failed", "the walker died: signal 9")
    assert not list(attempt.folder.glob("*.part"))
    sums.take(attempt.folder, result["shards"])
    given = attempt.given()
    sums.roots |= {b""} | {r.path for r in given}
    left = left_of(result)
    assert not {r.path for r in given} & {r.path for r in left}
    run_to_the_end(tmp_path / "then", wide_share, environment, sums, [*given, *left])
    check_whole(wide_share, sums)


def test_what_a_killed_worker_leaves_is_salvaged(tmp_path, wide_share, environment):
    sums = Sums()
    attempt = Attempt(tmp_path / "first", wide_share, environment)
    attempt.ask_for_half()
    with attempt.held():
        attempt.process.kill()
        attempt.process.wait()
    walkers_end = time.monotonic() + 5
    while time.monotonic() < walkers_end and any(
            os.fsencode(attempt.folder) in line for line in commands()):  # it notices that its guard is gone
        time.sleep(0.02)
    given = attempt.given()
    got = shard.salvage(attempt.folder, attempt.roots, given)
    sums.take(attempt.folder, list(got.shards))
    sums.roots |= {b""} | {r.path for r in given}
    run_to_the_end(tmp_path / "then", wide_share, environment, sums, [*given, *got.leftover])
    check_whole(wide_share, sums)


def commands() -> list[bytes]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found.append((entry / "cmdline").read_bytes())
            except OSError:
                continue
    return found


# What cannot be walked


def test_a_missing_root_is_exit_10(tmp_path, environment):
    (tmp_path / "file").touch()
    for number, name in enumerate(("gone", "file")):
        attempt = Attempt(tmp_path / str(number), tmp_path / name, environment)
        out, _ = attempt.process.communicate(timeout=60)
        assert attempt.process.returncode == 10
        assert out.count(b"\n") == 1
        assert os.fsencode(tmp_path / name) in out
        assert not (attempt.folder / "result.json").exists()


def test_another_share_at_its_place_is_exit_10(tmp_path, share, environment):
    attempt = Attempt(tmp_path / "1", share, environment, share_id=(1, 2))
    out, _ = attempt.process.communicate(timeout=60)
    assert (attempt.process.returncode, b"unmounted or replaced" in out) == (10, True)
    fs_type = Attempt(tmp_path / "2", share, environment, fs_type="nfs-that-is-not-mounted")
    fs_type.process.communicate(timeout=60)
    assert fs_type.process.returncode == 10


@pytest.mark.parametrize("text", [b"", b"{", b"{}", b'{"version": 1}', b"[]", b"\xff"])
def test_orders_that_nobody_wrote_are_refused(tmp_path, environment, text):
    (tmp_path / "chunk.json").write_bytes(text)
    command = [sys.executable, "-m", "smartscan.worker", tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)


def test_orders_are_read_as_they_were_written(tmp_path):
    roots = (Root(b"a\xfe", Scope.FILES), Root(b""))
    told = Orders(
        b"/mnt/\xff", 1, 2, 3, roots, FAST, (b"*.x", b"\xff"), True, (b"s",), (b"h",), True, "nfs", (5, 6)
    )
    told.write(tmp_path)
    assert Orders.read(tmp_path) == told
    assert walk.job_root(walk.job(told.roots[0])) == told.roots[0]
