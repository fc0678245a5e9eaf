"""The invariants over random trees, limits, deaths, changes and orders: real walker, controller, ingest.

Workers are threads here (tests/inline.py), so that a scan takes some hundredths of a second.
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import inline
from changes import change
from inline import Fate, Inline, random_fates
from smartscan import shard
from smartscan.catalogue import ledger
from smartscan.catalogue import open as opening
from smartscan.catalogue.bulk import Bulk, open_bulk
from smartscan.catalogue.ingest import Ingest, writer
from smartscan.catalogue.tree import mount_usage
from smartscan.errors import EXIT_MOUNT_DEAD
from smartscan.model import Limits, Root, Rules, ScanState
from smartscan.run import Request
from smartscan.run.attempts import give_known
from smartscan.worker.orders import Orders
from trees import Hard, Tree, build, find_listing, random_trees
from truth import Holdings, check_consistent, check_same_tree, differences, holdings

EXAMPLES = int(os.environ.get("SMART_SCAN_EXAMPLES", "12"))  # more for a night of them
quick = functools.partial(settings, deadline=None, suppress_health_check=list(HealthCheck))

# Some files with names in several directories, so that all changes meet hard links.
LINKED: Tree = {
    "one": {"a": 5000, "b": 70, "sub": {"c": 10, "deep": {"d": 1}}},
    "two": {"a again": Hard("one/a"), "sub": {"a, too": Hard("one/a"), "b again": Hard("one/b")}},
    "three": {"d again": Hard("one/sub/deep/d"), **{f"f{n:02}.jpg": 100 * n for n in range(12)}},
}

limits = st.builds(
    Limits()._replace,  # of a tuple, Hypothesis would draw what has a default as well
    chunk_entries=st.sampled_from((1, 3, 7, 20, 10**6)),
    chunk_bytes=st.sampled_from((1, 8192, 50_000, 10**12)),
    threads=st.sampled_from((1, 2, 4)),
)
seeds = st.integers(0, 2**32)
memories = st.sampled_from((1, 3, 8, writer.CACHE_DIRS))


@contextmanager
def remembering(dirs: int) -> Iterator[None]:
    """Let the ingest remember so many directories between two shards, and look up no more at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "CACHE_DIRS", dirs)
        patch.setattr(writer, "SIBLINGS", min(dirs, writer.SIBLINGS))
        yield


@pytest.fixture(autouse=True)
def _deaths_are_quiet() -> Iterator[None]:
    before = threading.excepthook
    threading.excepthook = lambda seen: None if seen.exc_type is inline.Died else before(seen)
    yield
    threading.excepthook = before


@dataclass(frozen=True)
class Home:
    """A share, and catalogues of it."""

    folder: Path

    @property
    def share(self) -> Path:
        return self.folder / "share"

    def request(self, wanted: Limits, *, containers: int = 3, catalogue: str = "data") -> Request:
        data = self.folder / catalogue
        data.mkdir(exist_ok=True)
        rules = Rules(system_dirs=False)  # a random name may be one of theirs
        return Request(data / "smart_catalog.db", os.fsencode(self.share), "Media", wanted, rules,
                       max_containers=containers, engine="local")  # fmt: skip

    def scan(self, wanted: Limits, engine: Inline | None = None, **more: object) -> Holdings:
        request = self.request(wanted, **more)  # type: ignore[arg-type]
        inline.scan(request, engine or Inline())
        assert not (request.work.exists() and list(request.work.iterdir()))
        return holdings(request.db, "Media")

    def check(self, held: Holdings) -> None:
        """It is complete, agrees with itself, and is what find(1) says."""
        assert held.scans[-1]["state"] == "complete", held.scans[-1]["certificate"]
        check_consistent(held)
        check_same_tree(held, find_listing(self.share))


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Callable[[Tree], Home]]:
    """Give a new share for each example."""

    def make(tree: Tree) -> Home:
        made = Home(Path(tempfile.mkdtemp(dir=tmp_path)))
        made.share.mkdir()
        build(made.share, tree or {"only": 1})
        return made

    yield make
    shutil.rmtree(tmp_path, ignore_errors=True)


# Every entry belongs to exactly one chunk, whatever the limits and whoever dies


@quick(max_examples=EXAMPLES)
@example(tree={b"\xc0.\x80": 0, b"\xc3.\xa9x": 0}, wanted=Limits(), again=Limits(), seed=0, remembered=1)
@given(tree=random_trees(), wanted=limits, again=limits, seed=seeds, remembered=memories)
def test_any_tree_is_catalogued_entry_by_entry_and_once_more_by_its_sizes(
    home, tree, wanted, again, seed, remembered
):
    here = home(tree)
    chance = Random(seed)
    with remembering(remembered):
        here.check(here.scan(wanted, Inline(fates=random_fates(chance, death=0))))
        second = here.scan(again, Inline(fates=random_fates(chance, death=0)))
    here.check(second)
    assert second.new_changed_gone() == (0, 0, 0)


@quick(max_examples=EXAMPLES // 2)
@given(tree=random_trees(max_leaves=20), wanted=limits, seed=seeds)
def test_attempts_that_die_lose_and_repeat_nothing(home, tree, wanted, seed):
    here = home({"random": tree, **LINKED})
    chance, deaths = Random(seed), 0
    fates = random_fates(chance, death=0.5)

    def mortal(job):
        nonlocal deaths
        deaths += 1
        return fates(job) if deaths < 8 else Fate()  # or it would be given up in the end

    held = here.scan(wanted, Inline(fates=mortal))
    check_consistent(held, stale=True)
    if held.scans[-1]["state"] == "complete":
        check_same_tree(held, find_listing(here.share))
    else:  # one that brought nothing twice is given up, named, and read another time
        assert held.chunk_states["quarantined"]
        here.check(here.scan(wanted))


# A second scan


@quick(max_examples=EXAMPLES)
@given(tree=random_trees(max_leaves=20), wanted=st.lists(limits, min_size=3, max_size=3), seed=seeds,
       changes=st.lists(st.integers(0, 12), min_size=2, max_size=2))  # fmt: skip
def test_after_any_changes_it_equals_a_fresh_catalogue(home, tree, wanted, seed, changes):
    here = home({"random": tree, **LINKED})
    chance = Random(seed)
    here.scan(wanted[0])
    for number, some in zip(changes, wanted[1:], strict=True):
        change(here.share, chance, number)
        before = holdings(here.request(some).db, "Media").listed()
        held = here.scan(some)
        here.check(held)
        _check_counts(held, before)
    assert differences(held, here.scan(wanted[0], catalogue="fresh")) == []


def _check_counts(held: Holdings, before: dict[bytes, tuple]) -> None:
    """Compare what a scan calls new, changed and gone with two listings."""
    now = held.listed()
    new, gone = now.keys() - before.keys(), before.keys() - now.keys()
    changed = {path for path in now.keys() & before.keys() if now[path] != before[path]}
    # A directory in place of a file is a changed entry; that it is empty inside is not another change.
    assert held.new_changed_gone() == (len(new), len(changed), len(gone))


@quick(max_examples=EXAMPLES)
@given(wanted=limits, seed=seeds, containers=st.integers(1, 4), rescan=st.booleans())
def test_what_changes_while_it_runs_is_right_the_next_time(home, wanted, seed, containers, rescan):
    here = home(LINKED)
    chance, one_at_a_time = Random(seed), threading.Lock()

    def before(_job):
        with one_at_a_time:
            change(here.share, chance, chance.randrange(3))

    if rescan:
        here.scan(wanted)
        change(here.share, chance, 5)
    busy = here.scan(wanted, Inline(before=before), containers=containers)
    check_consistent(busy, stale=True)
    certificate = busy.scans[-1]["certificate"]
    assert busy.scans[-1]["state"] == "complete", certificate
    here.check(here.scan(wanted))


# Shards: in any order, any number of times


@quick(max_examples=EXAMPLES)
@given(tree=random_trees(max_leaves=20), wanted=limits, seed=seeds, changes=st.none() | st.integers(0, 10),
       remembered=memories)  # fmt: skip
@example(tree={}, wanted=Limits(chunk_entries=1), seed=0, changes=8, remembered=writer.CACHE_DIRS)
def test_shards_may_come_in_any_order_and_twice(home, tree, wanted, seed, changes, remembered):
    here = home({"random": tree, **LINKED})
    chance = Random(seed)
    known = None
    if changes is not None:
        for catalogue, by in (("one", Limits()), ("other", wanted)):  # where directories get other numbers
            here.scan(by, catalogue=catalogue)
        known = chance.choice((None, _known(here.request(wanted, catalogue="one"))))
        change(here.share, chance, changes)
    shards = _walk(here, wanted, known)
    mixed = [chance.choice(shards) for _ in range(chance.randrange(5))] + chance.sample(shards, len(shards))
    found = []
    for catalogue, order in (("one", shards), ("other", mixed + shards[:1])):
        request = here.request(wanted, catalogue=catalogue)
        with remembering(writer.CACHE_DIRS if catalogue == "one" else remembered):
            _ingest(request, order)
        found.append(holdings(request.db, "Media"))
        check_consistent(found[-1])
        check_same_tree(found[-1], find_listing(here.share))
    assert differences(*found) == []
    assert found[0].new_changed_gone() == found[1].new_changed_gone()


def _walk(here: Home, wanted: Limits, known: bytes | None) -> list[tuple[int, Path]]:
    """Have the whole share walked, attempt by attempt; give the shards with the number of their attempt."""
    todo, shards, number = [Root(b"")], [], 0
    while todo:
        number += 1
        folder = here.folder / "attempts" / str(number)
        folder.mkdir(parents=True)
        some, todo = todo[:2], todo[2:]
        share, told = os.fsencode(here.share), known is not None
        Orders(share, 1, number, 1, tuple(some), wanted, (), False, known=told).write(folder)
        if known is not None:
            give_known(folder, known)
        assert inline.attempt(folder, Fate(yields=number == 1)) == (0, "")
        shards += [(number, path) for path in sorted(folder.glob("*.shard"))]
        todo += inline.left_of(folder)
    return shards


@pytest.mark.parametrize("name", [b"\xff.shard", b"x.shard", b"\n.shard", b"leftover-\xff.json"])
def test_a_file_that_no_worker_of_ours_writes_ends_no_scan(home, name):
    here = home(LINKED)
    held = here.scan(Limits(), Inline(before=lambda job: (job.folder / os.fsdecode(name)).touch()))
    here.check(held)


def test_a_directory_far_below_all_that_is_known_gets_everything_above_it(home):
    here = home({})
    part = shard.Part(here.folder, 1)
    part.write(shard.record(shard.KIND_DIR, b"/".join([b"d"] * 5000), state=shard.LISTED))
    part.seal()
    request = here.request(Limits())
    _ingest(request, [(1, part.path.with_suffix(".shard"))])
    with closing(_bulk(request).conn) as conn:
        states = conn.execute("SELECT state, count(*) FROM dir GROUP BY state ORDER BY state").fetchall()
    assert states == [("found", 5000), ("listed", 1)]


def _ingest(request: Request, shards: list[tuple[int, Path]]) -> None:
    """Take shards in as a new scan of the mount."""
    bulk = _bulk(request)
    with closing(bulk.conn) as conn:
        with opening.transaction(conn):
            mount_id = ledger.mount(conn, request.name, request.path, 0.0)
            rescan = mount_usage(conn, mount_id) is not None
            scan_id = ledger.begin(conn, mount_id, engine="local", controller="{}", options={}, at=0.0)
            chunks = {
                number: ledger.add_chunk(conn, scan_id, [Root(b"")], "plan", 0.0).id
                for number in sorted({number for number, _ in shards})
            }
        ingest = Ingest(bulk, mount_id, scan_id, rescan=rescan)
        for number, path in shards:
            known = conn.execute("SELECT count(*) FROM shard").fetchone()
            counts = ingest.shard(chunks[number], 1, path, 0.0)
            taken_in = conn.execute("SELECT count(*) FROM shard").fetchone() != known
            assert taken_in == (counts is not None)
        with opening.transaction(conn):
            ledger.end(conn, scan_id, ScanState.CANCELLED, None, mount_dead=False, at=1.0)


def _known(request: Request) -> bytes:
    """Give what a worker is told of the whole mount."""
    bulk = _bulk(request)
    with closing(bulk.conn) as conn:
        (mount_id,) = conn.execute("SELECT id FROM mount").fetchone()
        return Ingest(bulk, mount_id, 0, rescan=True).known(Root(b""))


def _bulk(request: Request) -> Bulk:
    return open_bulk(functools.partial(opening.open_catalogue, request.db, create=True))


# A row may be called deleted only if its directory was read to the end


@quick(max_examples=EXAMPLES // 2)
@given(wanted=limits, seed=seeds)
def test_nothing_is_called_deleted_where_nothing_was_read(home, wanted, seed):
    here = home(LINKED)
    before = here.scan(Limits())
    chance = Random(seed)
    change(here.share, chance, 6)
    dying = {job: chance.random() < 0.4 for job in range(1000)}
    engine = Inline(fates=lambda job: Fate(0 if dying[job.chunk_id % 1000] else None, survived=True))
    held = here.scan(wanted, engine)
    check_consistent(held, stale=True)
    scan_id = held.scans[-1]["id"]
    for path in before.entries.keys() - held.entries.keys():
        above = path
        while above == path or above not in held.dirs:  # the nearest directory that is still there
            above = above.rpartition(b"/")[0]
        assert (held.dirs[above].state, held.dirs[above].scan_id) == ("listed", scan_id), path
    here.check(here.scan(wanted))


# Memory that a reboot changed


@quick(max_examples=EXAMPLES // 3)
@given(seed=seeds, wanted=limits)
def test_names_of_one_file_are_known_after_a_reboot_renumbered_the_device(home, seed, wanted):
    here = home(LINKED)
    here.scan(Limits())
    request = here.request(wanted)
    with closing(opening.open_catalogue(request.db, create=False)) as conn, opening.transaction(conn):
        conn.execute("UPDATE dir SET dev = 12345")
    change(here.share, Random(seed), 8)
    here.check(here.scan(wanted))


def test_an_emptied_share_is_an_error_in_the_middle_of_a_scan_too(home):
    here = home(LINKED)
    before = here.scan(Limits())
    hidden = here.folder / "hidden"

    def unmount(job):
        if job.chunk_id > before.chunk_states.total() + 2 and not hidden.exists():
            here.share.rename(hidden)
            here.share.mkdir()

    one = Limits(chunk_entries=1)
    report = inline.scan(here.request(one, containers=1), Inline(before=unmount))
    assert report.exit_status == EXIT_MOUNT_DEAD
    assert hidden.exists()
    held = holdings(here.request(one).db, "Media")
    assert held.listed().keys() == before.listed().keys()
    assert held.scans[-1]["state"] == "incomplete"
    here.share.rmdir()
    hidden.rename(here.share)
    here.check(here.scan(one))
