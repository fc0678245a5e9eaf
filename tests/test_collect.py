"""What an attempt brought is said in words; what no worker writes is not believed, and ends no scan."""

import json
import os
from pathlib import Path

import pytest

from smartscan.model import Op, Outcome, Progress, Root, WalkError, b64
from smartscan.run import collect
from smartscan.run.attempts import give_known, give_order
from smartscan.shard import is_shard, leftover_files
from smartscan.worker.orders import KNOWN


@pytest.mark.parametrize(
    ("where", "wchan", "says"),
    [
        ((b"/mnt/disk5", "xfs", "/dev/md5p1"), "folio_wait_bit", "the disk behind /mnt/disk5 (/dev/md5p1)"),
        ((b"/mnt/user", "fuse.shfs", "shfs"), "", "a disk or server behind /mnt/user (fuse.shfs)"),
        ((b"/mnt/nas", "nfs4", "nas:/films"), "", "the NFS server nas:/films behind /mnt/nas"),
        ((b"/mnt/pc", "cifs", "//pc/c"), "", "the SMB server //pc/c behind /mnt/pc"),
        ((b"", "ext4", "/dev/sdb1"), "", "the disk behind /dev/sdb1"),
        ((b"", "", ""), "rpc_wait_bit_killable", "the NFS server"),
        ((b"/mnt/\xff\n", "ext4", ""), "", "the disk behind /mnt/\\xff\\n"),
    ],
)
def test_what_did_not_answer_is_named(where, wchan, says):
    error = WalkError(b"d", Op.READDIR, 110, 90.2, wchan)
    assert collect.cause(error, *where) == f"{says} did not answer for 90 s"


GOOD = {
    "result.json": {
        "outcome": "sealed", "shards": ["000001.shard"], "leftover": [], "stuck": [],
        "fs": {"total_bytes": 2**70, "used_bytes": -1}, "share_id": [2**63 + 1, 2**64 - 1], "walker": "ended",
        "fs_type": "", "source": "", "message": "", "entries": 1, "dirs": 1, "bytes": 2**65, "disk_bytes": 1,
    },
    "progress.json": {
        "beat": 1, "entries": 1, "dirs": 1, "bytes": 2**65, "disk_bytes": 1, "readings": [], "share_id": None,
    },
}  # fmt: skip
STUCK = {"path_b64": "YQ==", "op": 1, "errno": 110, "waited_s": 1.0, "wchan": ""}
LIES = [
    ("shards", [["a"]]), ("shards", ["../000001.shard"]), ("shards", ["a\0.shard"]),
    ("shards", ["\udcff.shard"]),
    ("leftover", [{"path_b64": b64(b"../../etc"), "scope": "subtree"}]),
    ("leftover", [{"path_b64": b64(b"/etc"), "scope": "subtree"}]),
    ("leftover", [{"path_b64": b64(b"a\0b"), "scope": "subtree"}]), ("leftover", [7]), ("stuck", [7]),
    ("stuck", [{**STUCK, "errno": 1e999}]), ("stuck", [{**STUCK, "errno": 2**70}]),
    ("stuck", [{**STUCK, "waited_s": 1e999}]), ("stuck", [{**STUCK, "waited_s": "x"}]),
    ("fs", []), ("fs", "x"), ("fs", {"total_bytes": 1}), ("fs", {"total_bytes": "x", "used_bytes": 1}),
    ("share_id", [1e999, 1]), ("share_id", [2**70, 1]),
    ("entries", 2**70), ("entries", "x"), ("entries", -1), ("dirs", None), ("bytes", 1e999),
    ("beat", 2**70), ("beat", []), ("readings", [7]),
    ("readings", [{"path_b64": "", "op": 1, "for_s": "x"}]),
    ("readings", [{"path_b64": "", "op": 1, "for_s": 1e999}]),
]  # fmt: skip


@pytest.mark.parametrize(("member", "lie"), LIES)
def test_a_worker_that_lies_is_not_believed_and_ends_nothing(tmp_path, member, lie):
    for name, data in GOOD.items():
        (tmp_path / name).write_text(json.dumps(data))
    assert collect.read_result(tmp_path).totals.bytes == collect.read_progress(tmp_path).bytes == 2**65
    for name, data in GOOD.items():
        (tmp_path / name).write_text(json.dumps({**data, member: lie}))
    if member in GOOD["result.json"] and lie:
        assert collect.read_result(tmp_path) is None
    if member in GOOD["progress.json"] and member != "share_id":
        assert collect.read_progress(tmp_path) == Progress(0)
    collect.read_share_id(tmp_path)


def test_words_of_a_worker_are_such_as_a_catalogue_can_hold(tmp_path):
    data = GOOD["result.json"] | {"message": "\ud800\0" + "x" * 10**6, "fs_type": "\udcff", "source": 7}
    (tmp_path / "result.json").write_text(json.dumps(data))
    result = collect.read_result(tmp_path)
    assert len(result.message.encode()) < 10**5
    assert (result.fs_type, result.source) == ("\\udcff", "7")


def deep(path: Path) -> None:
    path.write_text("[" * 10**6)


def too_large(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 42)


def link_out(path: Path) -> None:
    path.symlink_to("/etc/passwd")


@pytest.mark.parametrize(
    "name", ["result.json", "progress.json", "leftover-000001.json", "000001.shard", "000001.part"]
)
@pytest.mark.parametrize("make", [deep, too_large, link_out, os.mkfifo, os.mkdir])
def test_what_no_worker_writes_is_as_if_it_were_not_there(tmp_path, name, make):
    make(tmp_path / name)
    assert collect.read_result(tmp_path) is None
    assert collect.read_progress(tmp_path) == Progress(0)
    assert collect.read_share_id(tmp_path) is None
    assert leftover_files(tmp_path) == []
    result = collect.salvaged(tmp_path, (Root(b"a"),), Outcome.LOST, stall_s=1.0)
    assert (result.shards, result.leftover) == ((), (Root(b"a"),))


def test_names_that_no_worker_gives_are_no_shards(tmp_path):
    for name in (b"\xff.shard", b"leftover-\xff.json", b"leftover-x.json"):
        (tmp_path / os.fsdecode(name)).write_text('{"roots": []}')
    assert leftover_files(tmp_path) == []
    assert collect.salvaged(tmp_path, (), Outcome.FAILED, stall_s=1.0).shards == ()


@pytest.mark.parametrize("order", ["stop", "yield"])
def test_an_order_follows_no_link_that_a_worker_has_laid(tmp_path, order):
    folder = tmp_path / "attempt"
    folder.mkdir()
    give_order(folder, order)
    assert (folder / order).is_file()
    (folder / order).unlink()
    (folder / order).symlink_to(tmp_path / "outside")
    with pytest.raises(OSError):
        give_order(folder, order)
    assert not (tmp_path / "outside").exists()


def test_what_is_known_follows_no_link_that_a_worker_has_laid(tmp_path):
    folder, outside = tmp_path / "attempt", tmp_path / "outside"
    folder.mkdir()
    (folder / KNOWN).symlink_to(outside)
    give_known(folder, b"pairs")
    assert (folder / KNOWN).read_bytes() == b"pairs" and not (folder / KNOWN).is_symlink()
    for laid in (lambda at: at.symlink_to(outside), os.mkfifo, os.mkdir):
        laid(folder / f"{KNOWN}.tmp")
        with pytest.raises(OSError):
            give_known(folder, b"others")
        (folder / f"{KNOWN}.tmp").rename(tmp_path / f"laid {len(list(tmp_path.iterdir()))}")
    assert not outside.exists()


@pytest.mark.parametrize("name", ["x.shard", "../000001.shard", "\udcff.shard", "1.part"])
def test_only_names_of_ours_are_shards(name):
    assert is_shard("000001.shard") and is_shard("1000000.shard")
    assert not is_shard(name)
