"""Makes chunks: of leftover, of what a running worker gives back, of a chunk that is cut in two.

Touches: the catalogue, in the caller's transaction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from smartscan.catalogue import ledger, tree
from smartscan.catalogue.ingest import Ingest
from smartscan.model import Chunk, Root, Scope, show
from smartscan.plan import MAX_ROOTS, pack

ROOTS_A_CHUNK = 64  # leftover roots that are worth a worker of their own
SIZES_ASKED = 1000  # roots of one chunk whose sizes are looked up: a look-up per component of each path


class ChunkMaker:
    """Makes the chunks of one scan; `event` notes each of them."""

    def __init__(
        self, ingest: Ingest, *, at_a_time: int, cpus: float, event: Callable[[str, str, int], None]
    ) -> None:
        self.conn, self.scan_id, self.mount_id = ingest.conn, ingest.scan_id, ingest.mount_id
        self.rescan, self.at_a_time, self.cpus, self.event = ingest.rescan, at_a_time, cpus, event

    def of_leftover(self, roots: Sequence[Root], parent_id: int, parent: Chunk | None) -> list[Chunk]:
        """Make chunks of what an attempt left, without the subdirectories that others hold already."""
        listed = {r.path for r in parent.roots if r.scope is Scope.FILES} if parent else set()
        kept = [
            r
            for r in roots
            if not (
                listed
                and r.path.rpartition(b"/")[0] in listed
                and r.path
                and self._held(r.path, parent_id)
            )
        ]
        # More workers than processors cost their starts and, where storage is fast, gain nothing. Where it is
        # slow, sharing makes more of them some seconds later.
        most = int(min(self.at_a_time, self.cpus))
        parts = max(-(-len(kept) // MAX_ROOTS), min(most, -(-len(kept) // ROOTS_A_CHUNK)))
        return [self.make(some, "leftover", parent_id) for some in pack(kept, parts=parts)] if kept else []

    def of_given(self, roots: Sequence[Root], parent_id: int, *, idle: int) -> list[Chunk]:
        """Make chunks of what a running worker gave back: one for each slot that is idle.

        More would be smaller, and a worker's start is the same for a small one.
        """
        parts = max(1, min(idle, len(roots)))
        return [self.make(some, "leftover", parent_id) for some in pack(roots, parts=parts)]

    def make(self, roots: tuple[Root, ...], origin: str, parent_id: int | None) -> Chunk:
        """Make one chunk of these roots, with what is known of its size."""
        sizes = (
            [tree.usage_of(self.conn, self.mount_id, r) for r in roots]
            if self.rescan and len(roots) <= SIZES_ASKED
            else [None]
        )
        known = [s for s in sizes if s is not None]
        whole = len(known) == len(sizes)
        chunk = ledger.add_chunk(
            self.conn,
            self.scan_id,
            roots,
            origin,
            time.time(),
            parent_id=parent_id,
            est_bytes=sum(s[0] for s in known) if whole else None,
            est_entries=sum(s[1] for s in known) if whole else None,
        )
        where = show(roots[0].path) or "the whole share"
        more = f" and {len(roots) - 1} more" if len(roots) > 1 else ""
        self.event(
            "created",
            f"made ({origin}) of {where}{more}" + (f", given back by chunk {parent_id}" if parent_id else ""),
            chunk.id,
        )
        return chunk

    def _held(self, path: bytes, parent_id: int) -> bool:
        return (
            tree.is_decided(self.conn, self.mount_id, self.scan_id, path)
            or ledger.is_root_elsewhere(self.conn, self.scan_id, path, parent_id)
        )
