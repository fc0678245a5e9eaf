"""What is counted at the end of a scan, and what is made of the leftover of a chunk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smartscan.catalogue import ledger, tree
from smartscan.catalogue import open as opening
from smartscan.catalogue.bulk import Bulk
from smartscan.catalogue.ingest import Ingest
from smartscan.model import UNREAD, DirState, Root
from smartscan.plan import MAX_ROOTS
from smartscan.run.chunks import ROOTS_A_CHUNK, ChunkMaker


class Row(NamedTuple):
    mount: int
    state: DirState
    scan: int | None
    own_entries: int
    own_dirs: int


ROWS = st.builds(
    Row,
    st.integers(1, 2),
    st.sampled_from(DirState),
    st.sampled_from([None, 1, 2]),
    st.integers(0, 2),
    st.integers(0, 2),
)


@pytest.fixture
def ingest(db: Path) -> Iterator[Ingest]:
    """The ingest of the second scan of the first of two mounts."""
    with closing(opening.open_catalogue(db, create=True)) as conn:
        with opening.transaction(conn):
            first, second = (ledger.mount(conn, name, name.encode(), 0.0) for name in ("/a", "/b"))
            for mount in (second, first):
                scan = ledger.begin(conn, mount, engine="local", controller="{}", options={}, at=0.0)
        made = Ingest(Bulk(conn, 0), first, scan, rescan=False)
        with opening.transaction(conn):
            yield made


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROWS, max_size=12))
def test_every_directory_is_counted_once(ingest: Ingest, rows: list[Row]) -> None:
    ingest.conn.execute("DELETE FROM dir")
    ingest.conn.executemany(
        "INSERT INTO dir (mount_id, name, state, scan_id, own_entries, own_dirs) VALUES (?, ?, ?, ?, ?, ?)",
        [(r.mount, f"{i}", r.state, r.scan, r.own_entries, r.own_dirs) for i, r in enumerate(rows)],
    )
    mine = [r for r in rows if r.mount == ingest.mount_id]
    now = [r for r in mine if r.scan == ingest.scan_id]
    account = tree.account(ingest.conn, ingest.mount_id, ingest.scan_id)
    assert account.states == Counter(r.state for r in now)
    assert account.found == 1 + sum(r.own_dirs for r in now)
    known_before = [r for r in now if r.state in UNREAD and r.own_entries]
    assert account.stale == len(mine) - len(now) + len(known_before)


@pytest.mark.parametrize("at_a_time", [1, 8, 1000])
@pytest.mark.parametrize("roots", [1, ROOTS_A_CHUNK, ROOTS_A_CHUNK + 1, 1000 * ROOTS_A_CHUNK])
def test_leftover_makes_no_more_workers_than_can_run(ingest: Ingest, roots: int, at_a_time: int) -> None:
    parent = ledger.add_chunk(ingest.conn, ingest.scan_id, [Root(b"")], "plan", 0.0)
    maker = ChunkMaker(ingest, at_a_time=at_a_time, cpus=2.0, event=lambda *_: None)
    left = [Root(b"%06d" % n) for n in range(roots)]
    made = maker.of_leftover(left, parent.id, parent)
    assert sorted(r for chunk in made for r in chunk.roots) == left
    most = min(at_a_time, 2, -(-roots // ROOTS_A_CHUNK))
    assert len(made) == max(most, -(-roots // MAX_ROOTS))
