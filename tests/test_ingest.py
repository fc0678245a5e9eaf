"""Whatever a worker may hand over: it is taken in, or refused in our own words, and never ends the scan."""

from __future__ import annotations

import functools
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from records import directory, records
from smartscan import shard
from smartscan.catalogue import ledger
from smartscan.catalogue import open as opening
from smartscan.catalogue.bulk import Bulk, open_bulk
from smartscan.catalogue.ingest import Ingest
from smartscan.codec import NATIVE
from smartscan.codec.python import unchanged_record
from smartscan.errors import MountError, ShardError
from smartscan.model import Root

shards = st.lists(st.lists(records, min_size=1, max_size=5).map(b"".join), min_size=1, max_size=3)


@pytest.mark.parametrize("quick", [pytest.param(True, id="columns"), pytest.param(False, id="rows")])
@settings(max_examples=60, deadline=None, phases=[Phase.generate])  # to shrink one would take minutes
@given(scans=st.tuples(shards, shards), sizes_only=st.booleans())
def test_what_lies_does_not_break_the_controller(
    quick: bool, scans: tuple[list[bytes], ...], sizes_only: bool
) -> None:
    if quick and not NATIVE:
        pytest.skip("the C extension is not built")
    with tempfile.TemporaryDirectory() as folder:
        connect = functools.partial(opening.open_catalogue, Path(folder) / "smart.db", create=True)
        bulk = open_bulk(connect) if quick else Bulk(connect(), 0)
        with closing(bulk.conn) as conn:
            for given_in in scans:
                ingest, chunk_id = begin(bulk, sizes_only=sizes_only)
                for n, data in enumerate(given_in):
                    path = sealed(Path(folder) / f"{n:06d}.shard", data)
                    try:
                        ingest.shard(chunk_id, 1, path, 0.0)
                    except (MountError, ShardError) as e:
                        assert "is empty" in str(e) or "an end in the middle" in str(e)
                with opening.transaction(conn):
                    ingest.sweep()
            assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("numbers", ["right", "mixed up"])
def test_what_a_worker_recognised_is_one_update_by_its_number_or_found_by_its_path(
    tmp_path: Path, numbers: str
) -> None:
    full = {
        b"": directory(b"", {b"a": 0o040755, b"b": 0o040755}),
        b"a": directory(b"a", {b"f": 0o100644}),
        b"b": directory(b"b", {b"f": 0o100644, b"g": 0o100644}),
    }
    bulk = open_bulk(functools.partial(opening.open_catalogue, tmp_path / "smart.db", create=True))
    with closing(bulk.conn) as conn:
        ingest, chunk_id = begin(bulk)
        ingest.shard(chunk_id, 1, sealed(tmp_path / "000001.shard", *full.values()), 0.0)
        ids = {path.encode(): id_ for id_, path in conn.execute("SELECT id, name FROM dir")}
        if numbers != "right":
            ids[b"a"], ids[b"b"] = ids[b"b"], ids[b"a"]
        ingest, chunk_id = begin(bulk)
        again = [unchanged_record(data, ids[path]) for path, data in full.items()]
        counts = ingest.shard(chunk_id, 1, sealed(tmp_path / "000002.shard", *again), 0.0)
        assert counts is not None
        assert (counts.dirs, counts.entries, counts.new, counts.changed, counts.gone) == (3, 5, 0, 0, 0)
        assert counts.bytes == 3 * 10
        assert counts.disk_bytes == 3 * 8 * 512 + 3 * 512, "those of the directories as well"
        assert conn.execute("SELECT DISTINCT scan_id, state FROM dir").fetchall() == [(2, "listed")]
        assert bool(ingest.cache) == (numbers != "right"), "nothing is looked up"
        counts = ingest.shard(chunk_id, 1, sealed(tmp_path / "000003.shard", *again), 0.0)
        assert counts is not None
        assert (counts.dirs, counts.entries, counts.bytes) == (0, 0, 0), "what comes twice counts once"


def sealed(path: Path, *records: bytes) -> Path:
    """Write a shard of these records."""
    data = b"".join(records)
    path.write_bytes(data + shard.record(shard.KIND_END, b"", dir_digest=len(data)))
    return path


def begin(bulk: Bulk, *, sizes_only: bool = False) -> tuple[Ingest, int]:
    """Begin a scan of one mount with one chunk; gives who takes in, and the chunk's number."""
    conn = bulk.conn
    with opening.transaction(conn):
        mount = ledger.mount(conn, "Media", b"/mnt/user/Media", 0.0)
        scan = ledger.begin(conn, mount, engine="local", controller="{}", options={}, at=0.0)
        chunk = ledger.add_chunk(conn, scan, [Root(b"")], "plan", 0.0)
        ledger.start_attempt(conn, chunk.id, 1, 0.0)
    return Ingest(bulk, mount, scan, rescan=scan > 1, sizes_only=sizes_only), chunk.id
