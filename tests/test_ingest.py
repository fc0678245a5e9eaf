"""Whatever a worker may hand over: it is taken in, or refused in our own words, and never ends the scan."""

from __future__ import annotations

import functools
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from records import records
from smartscan import shard
from smartscan.catalogue import ledger
from smartscan.catalogue import open as opening
from smartscan.catalogue.bulk import Bulk, open_bulk
from smartscan.catalogue.ingest import Ingest
from smartscan.codec import NATIVE
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
            for number, given_in in enumerate(scans):
                with opening.transaction(conn):
                    mount = ledger.mount(conn, "Media", b"/mnt/user/Media", 0.0)
                    scan = ledger.begin(conn, mount, engine="local", controller="{}", options={}, at=0.0)
                    chunk = ledger.add_chunk(conn, scan, [Root(b"")], "plan", 0.0)
                    ledger.start_attempt(conn, chunk.id, 1, 0.0)
                ingest = Ingest(bulk, mount, scan, rescan=number > 0, sizes_only=sizes_only)
                for n, data in enumerate(given_in):
                    path = Path(folder) / f"{n:06d}.shard"
                    path.write_bytes(data + shard.record(shard.KIND_END, b"", dir_digest=len(data)))
                    try:
                        ingest.shard(chunk.id, 1, path, 0.0)
                    except (MountError, ShardError) as e:
                        assert "is empty" in str(e) or "an end in the middle" in str(e)
                with opening.transaction(conn):
                    ingest.sweep()
            assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)
