"""`plan` and the rules of the user's document: within the limit one chunk, above it cut, largest first.

Sizes of ext4 and of others differ a little (a directory has blocks of its own or none), so the known answers
are made of files much larger than that.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import gold
from command import check_nothing_is_left, command_of, ended_at_last, run, scan, start, until, workers_of
from trees import File, Hard, Tree, build, find_listing
from truth import du, holdings
from users import NOBODY

KB = 1000
# By the limit of 0.5 MB: `big` is cut, `leaf` is not to be cut, the small ones are packed.
TREE: Tree = {
    "big": {"a": {"f": File(300 * KB)}, "b": {"f": File(350 * KB), "deeper": {"f": File(10)}},
            "own": File(100 * KB)},
    "leaf": {"one": File(600 * KB), "two": File(300 * KB)},
    "s1": {"f": File(10)}, "s2": {"f": File(20)}, "s3": {"deep": {"er": {"f": File(30)}}},
    "direct": File(5),
    ".hidden": {"f": File(150 * KB)},
}  # fmt: skip


def test_a_scan_that_measures_first_says_once_who_its_workers_are(share: Path, db: Path) -> None:
    said = scan(share, db, "--analyze").stderr.splitlines()
    assert len(said) == len(set(said)) > 0


def planned(share: Path, db: Path, *words: object) -> list[dict[str, Any]]:
    return list(json.loads(run("plan", share, "--db", db, "--engine", "local", "--json", *words).stdout))


def roots(chunks: list[dict[str, Any]]) -> list[set[str]]:
    """Give the roots of each chunk; a FILES root as path/*."""
    return [
        {(root["path"] or ".") + ("/*" if root["scope"] == "files" else "") for root in chunk["roots"]}
        for chunk in chunks
    ]


def below(share: Path, *paths: str) -> tuple[int, int]:
    """Give disk bytes, as du(1), and entries of some subtrees; of path/* what lies directly in it."""
    disk = entries = 0
    listing = find_listing(share)
    for path in paths:
        top = path.removesuffix("/*").encode() if path not in (".", "./*") else b""
        inside = [p for p in listing if p and (not top or p.startswith(top + b"/"))]
        if path.endswith("/*"):
            inside = [p for p in inside if b"/" not in p[len(top) + bool(top) :]]
            own = [listing[p].blocks for p in inside if listing[p].type != "d"] + [listing[top].blocks]
            disk += 512 * sum(own)
        else:
            disk += du(share / path)
        entries += len(inside)
    return disk, entries


# The rules


def test_within_the_limit_it_is_one_chunk(share, db):
    (chunk,) = planned(share, db)
    assert chunk["roots"] == [{"path": "", "scope": "subtree"}]
    assert chunk["disk_bytes"] == du(share)
    assert chunk["entries"] == len(find_listing(share)) - 1


def test_above_the_limit_it_is_cut_and_the_largest_comes_first(share, db):
    chunks = planned(share, db, "--chunk-size", "0.0005")
    assert roots(chunks) == [
        {"leaf/*"},  # larger than the limit, and nothing in it to cut: scanned anyway
        *[c for c in roots(chunks) if "big/b" in c],
        *[c for c in roots(chunks) if "big/a" in c],
        *[c for c in roots(chunks) if not c & {"leaf/*", "big/a", "big/b"}],
    ]
    every = [root for chunk in roots(chunks) for root in chunk]
    assert sorted(every) == [
        "./*", ".hidden", "big/*", "big/a", "big/b", "leaf/*", "s1", "s2", "s3",
    ]  # fmt: skip
    for chunk, names in zip(chunks, roots(chunks), strict=True):
        assert (chunk["disk_bytes"], chunk["entries"]) == below(share, *names), names
        assert chunk["disk_bytes"] <= 500 * KB or len(names) == 1
    assert [c["disk_bytes"] for c in chunks] == sorted((c["disk_bytes"] for c in chunks), reverse=True)
    small = [names for names in roots(chunks) if "s1" in names]
    assert {"s1", "s2", "s3", "./*"} <= small[0], "small siblings are packed together"


def test_the_limit_of_entries_cuts_as_well(share, db):
    chunks = planned(share, db, "--chunk-entries", 4)
    for chunk, names in zip(chunks, roots(chunks), strict=True):
        assert chunk["entries"] <= 4 or names == {"./*"}
        assert (chunk["disk_bytes"], chunk["entries"]) == below(share, *names)
    assert sum(c["entries"] for c in chunks) == len(find_listing(share)) - 1
    assert sum(c["disk_bytes"] for c in chunks) == du(share)


def test_hard_links_count_once_as_du_counts_them(tmp_path, db):
    share = tmp_path / "share"
    share.mkdir()
    build(share, {"a": {"f": File(400 * KB)}, "b": {"f": Hard("a/f")}, "c": {"f": Hard("a/f"), "g": File(5)}})
    assert planned(share, db)[0]["disk_bytes"] == du(share)
    chunks = planned(share, db, "--chunk-size", "0.0003")
    assert sum(c["disk_bytes"] for c in chunks) == du(share)


def test_a_plan_touches_no_catalogue_and_leaves_nothing(share, db):
    planned(share, db)
    check_nothing_is_left(db)
    assert list(db.parent.iterdir()) == []


@pytest.mark.parametrize("words", [("plan",), ("scan", "--analyze")], ids=" ".join)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_measurement_that_is_stopped_leaves_nothing_and_one_that_is_killed_leaves_it_to_cleanup(
    share, db, words, number
):
    name = () if words == ("plan",) else ("Media",)
    command = (words[0], share, *name, *words[1:], "--db", db, "--engine", "local", "--chunk-entries", 1)
    with ended_at_last(start(*command)) as measuring:
        until(lambda: list(db.parent.glob("survey-*/work/*/*/*.shard")) or measuring.poll() is not None)
        measuring.send_signal(number)
        out, err = measuring.communicate(timeout=30)
    assert measuring.returncode == (130 if number == signal.SIGTERM else -number), err
    assert out == ""
    assert (number == signal.SIGTERM) == ("stopped while sizes were measured" in err)
    left = list(db.parent.glob("survey-*"))
    if number == signal.SIGKILL:
        (folder,) = left
        until(lambda: not workers_of(folder / db.name), 5)
        run("cleanup", "--db", db)
    check_nothing_is_left(db)
    if words[0] == "scan":
        scan(share, db)
        assert holdings(db, "Media").scans[-1]["state"] == "complete"


# From the catalogue


def test_from_the_catalogue_it_is_the_same_and_the_share_is_not_touched(share, db):
    fresh = planned(share, db, "--chunk-size", "0.0005")
    scan(share, db)
    share.rename(share.with_name("gone"))
    known = planned(share, db, "--from-catalogue", "--chunk-size", "0.0005")
    assert known == fresh
    assert planned(share, db, "--from-catalogue", "--chunk-entries", 4)
    named = ("plan", share, "Other", "--from-catalogue", "--db", db)
    assert "no mount is named 'Other'" in run(*named, code=2).stderr


def test_the_chunks_of_a_second_scan_are_those_of_the_plan(share, db):
    scan(share, db)
    known = planned(share, db, "--from-catalogue", "--chunk-size", "0.0005")
    scan(share, db, "--chunk-size", "0.0005")
    with closing(sqlite3.connect(db)) as conn:
        made = conn.execute(
            "SELECT est_bytes, est_entries, "
            "group_concat(iif(path = '', '.', path) || iif(scope = 'files', '/*', ''), '|') "
            "FROM chunk JOIN root ON chunk_id = id WHERE scan_id = 2 AND origin = 'plan' "
            "GROUP BY id ORDER BY id"
        ).fetchall()
    assert [(c["disk_bytes"], c["entries"]) for c in known] == [row[:2] for row in made]
    for names, (_, _, together) in zip(roots(known), made, strict=True):
        assert names == set(together.split("|"))


# What is printed


def test_the_table(share, db):
    scan(share, db)
    shown = run("plan", share, "--from-catalogue", "--chunk-size", "0.0005", "--db", db).stdout
    # The blocks of directories, which other file systems do not have, are left out of the gold file.
    gold.check("plan.txt", re.sub(r"\d+(\.\d+)? [kM]?B", lambda seen: "SIZE".rjust(len(seen[0])), shown))
    one = run("plan", share, "--from-catalogue", "--db", db).stdout
    assert re.search(r"1 chunk, .* on disk, 22 entries", one)


def test_names_that_are_no_text_come_back_exactly(tmp_path, db):
    share = tmp_path / "share"
    share.mkdir()
    build(share, {b"\xff\n": {"f": File(90 * KB)}, b"\xfe": {"f": File(80 * KB)}})
    chunks = planned(share, db, "--chunk-size", "0.0001")
    encoded = [root["path_b64"] for chunk in chunks for root in chunk["roots"] if "path_b64" in root]
    found = [base64.b64decode(path) for path in encoded]
    assert found == [b"\xff\n", b"\xfe"]
    shown = run("plan", share, "--chunk-size", "0.0001", "--db", db, "--engine", "local").stdout
    assert r"\xff\n" in shown


@pytest.mark.root
def test_what_cannot_be_read_makes_the_sizes_lower_bounds(share, db, tmp_path):
    ordinary = command_of(NOBODY)
    if not ordinary:
        pytest.skip("no Python that an ordinary user may run")
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(0o755)
    os.chown(db.parent, NOBODY, NOBODY)
    (share / "big").chmod(0)
    done = run("plan", share, "--db", db, "--engine", "local", "--json", code=3, **ordinary)
    assert "lower bounds" in done.stderr
    assert 0 < json.loads(done.stdout)[0]["disk_bytes"] < du(share) - 700 * KB
