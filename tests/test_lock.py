"""One controller per mount, and never two paths to one catalogue."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from disks import fill, small_disk
from smartscan.catalogue.lock import SILENCE_S, Holder, MountLock, holders, is_held, refuse_other_path
from smartscan.catalogue.open import open_catalogue
from smartscan.errors import CatalogueBusy, CatalogueError, CatalogueFull
from smartscan.faults import fault_mount

HOLD = """
import sys, time
from pathlib import Path
from smartscan.catalogue.lock import MountLock
with MountLock(Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "smart_catalog.db"


@pytest.fixture
def hold():
    """Hold the lock of a mount in a process of its own, which ends with the test."""
    started = []

    def start(path: Path, mount: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, path, mount]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def rewrite(path: Path, mount: str, **changes: object) -> Path:
    """Let a lock file tell of another holder."""
    file = path.parent / "locks" / f"{mount}.lock"
    with MountLock(path, mount) as lock:
        told = json.loads(lock.holder.to_json())
    file.write_text(json.dumps(told | changes))
    return file


def test_the_second_scan_of_a_mount_is_told_who_holds_it(path, hold):
    first = hold(path, "usr")
    with pytest.raises(CatalogueBusy, match=rf"'usr' is being scanned by process {first.pid} on .+ since 20"):
        MountLock(path, "usr").__enter__()


def test_two_mounts_may_be_scanned_at_once(path, hold):
    first = hold(path, "usr")
    with MountLock(path, "home") as lock:
        open_catalogue(path, create=True).close()
        found = holders(path)
        assert sorted(found) == ["home", "usr"]
        assert found["usr"].pid == first.pid
        assert not found["usr"].is_me
        assert found["home"] == lock.holder
        assert found["home"].is_me
    assert list(holders(path)) == ["usr"]


def test_a_lock_goes_with_its_process_however_it_ends(path, hold):
    first = hold(path, "usr")
    assert is_held(path, "usr") and is_held(path, "home") is None
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert holders(path) == {} and is_held(path, "usr") is False
    with MountLock(path, "usr"):
        pass


def test_a_lock_is_free_again_after_the_block_also_to_its_own_process(path):
    for _ in range(3):
        with MountLock(path, "usr"):
            with pytest.raises(CatalogueBusy):
                MountLock(path, "usr").__enter__()
    assert holders(path) == {}


def test_a_link_to_the_catalogue_has_its_locks(path, tmp_path):
    link = tmp_path / "elsewhere" / "link.db"
    link.parent.mkdir()
    link.symlink_to(path)
    with MountLock(path, "usr"):
        assert is_held(link, "usr")
        with pytest.raises(CatalogueBusy):
            MountLock(link, "usr").__enter__()


def test_a_worker_does_not_inherit_the_lock(path):
    with MountLock(path, "usr"):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with MountLock(path, "usr"):
            pass
    finally:
        child.kill()
        child.wait()


def test_those_who_look_do_not_keep_a_scan_from_starting(path, tmp_path):
    looking = "import sys; from pathlib import Path; from smartscan.catalogue.lock import holders\n"
    looking += "while True: holders(Path(sys.argv[1]))"
    lookers = [subprocess.Popen([sys.executable, "-c", looking, path]) for _ in range(2)]
    try:
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            with MountLock(path, "usr"):
                pass
    finally:
        for looker in lookers:
            looker.kill()
            looker.wait()


def test_any_name_a_mount_may_have_will_do(path):
    for name in ("with space", "ümlaut", "a:b,c", "$(touch x)", "-x", ".."):
        with MountLock(path, name):
            assert list(holders(path)) == [name]


def test_the_default_directory_is_made_and_another_must_exist(tmp_path, monkeypatch):
    with pytest.raises(CatalogueError, match="missing does not exist"):
        MountLock(tmp_path / "missing" / "x.db", "usr").__enter__()
    monkeypatch.setenv("SMART_SCAN_DIR", str(tmp_path / "data"))
    with MountLock(tmp_path / "data" / "x.db", "usr"):
        pass


@pytest.mark.root
def test_on_a_full_disk_a_known_mount_is_locked_and_a_new_one_is_one_sentence():
    with small_disk(4) as disk:
        path = disk / "smart_catalog.db"
        with MountLock(path, "known"):
            pass
        fill(disk)
        with MountLock(path, "known") as lock:
            assert holders(path) == {"known": lock.holder}
        with pytest.raises(CatalogueFull, match="there is no space left"):
            MountLock(path, "new").__enter__()


# Two paths to one catalogue


@pytest.mark.fuse
def test_a_scan_by_another_path_is_refused_and_told_of_the_first(tmp_path, hold):
    path = tmp_path / "smart_catalog.db"
    open_catalogue(path, create=True).close()
    with fault_mount(tmp_path) as share:  # the same files by another file system, as shfs has them
        other = share.path / "smart_catalog.db"
        first = hold(path, "usr")
        for mount in ("usr", "home"):
            with pytest.raises(CatalogueError, match=rf"process {first.pid} on .* by another path"):
                MountLock(other, mount).__enter__()
        with pytest.raises(CatalogueError, match="by another path"):
            open_catalogue(other, create=False)
        assert list(holders(other)) == ["usr"]
        assert list(holders(path)) == ["usr"]
        first.kill()
        first.wait()
        with MountLock(other, "usr"), closing(open_catalogue(other, create=False)):
            with pytest.raises(CatalogueError, match="by another path"):
                open_catalogue(path, create=False)
        open_catalogue(path, create=False).close()


def test_a_holder_that_cannot_be_seen_lives_as_long_as_it_beats(path):
    file = rewrite(path, "usr", pid_ns="pid:[1]", dev=1)
    with pytest.raises(CatalogueError, match="by another path"):
        refuse_other_path(path)
    assert is_held(path, "usr")
    silent_at = time.time() - SILENCE_S - 1
    os.utime(file, (silent_at, silent_at))
    refuse_other_path(path)
    assert holders(path) == {}
    assert is_held(path, "usr") is None  # it may be busy


def test_a_holder_on_another_host_counts_as_another_path(path):
    rewrite(path, "usr", boot_id="another", host="nas2")
    with pytest.raises(CatalogueError, match="on nas2 since"):
        refuse_other_path(path)


def test_a_holder_whose_process_is_gone_or_another_by_now_is_dead_at_once(path):
    rewrite(path, "usr", dev=1, started=1)
    refuse_other_path(path)
    assert is_held(path, "usr") is False
    rewrite(path, "usr", dev=1, pid=2**22 - 3)
    refuse_other_path(path)
    assert is_held(path, "usr") is False


def test_the_holder_beats(path):
    with MountLock(path, "usr") as lock:
        file = path.parent / "locks" / "usr.lock"
        os.utime(file, (0, 0))
        lock.beat()
        assert abs(file.stat().st_mtime - time.time()) < 5


def test_what_is_no_lock_of_ours_tells_nothing(path, tmp_path):
    with MountLock(path, "usr"):
        pass
    os.mkfifo(path.parent / "locks" / "pipe.lock")
    (path.parent / "locks" / "folder.lock").mkdir()
    (tmp_path / "elsewhere.lock").touch()
    for mount in ("pipe", "folder", "../elsewhere", "a\0b", "x" * 300):
        assert is_held(path, mount) is None, mount
    assert holders(path) == {}
    refuse_other_path(path)


def test_a_link_in_the_place_of_a_lock_overwrites_nothing(path, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (path.parent / "locks").mkdir(exist_ok=True)
    (path.parent / "locks" / "usr.lock").symlink_to(victim)
    os.mkfifo(path.parent / "locks" / "home.lock")
    for mount in ("usr", "home"):
        with pytest.raises(CatalogueError):
            MountLock(path, mount).__enter__()
    assert victim.read_text() == "precious"
    assert is_held(path, "usr") is None


def test_garbage_in_a_lock_file_is_nobody(path):
    for text in ("", "-", "{}", "[1]", '{"pid": 1}', "\0" * 5000, "[" * 4000):
        file = rewrite(path, "usr", dev=1)
        file.write_text(text)
        assert holders(path) == {}
        refuse_other_path(path)
        assert is_held(path, "usr") is False
    for changed in ({"pid": "a\0b"}, {"started": None}, {"since": "x"}, {"since": 1e300}, {"host": []}):
        rewrite(path, "usr", dev=1, **changed)
        assert holders(path) == {}
        refuse_other_path(path)
    assert Holder.from_json(b"\xff") is None
