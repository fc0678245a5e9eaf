"""Take shards into the catalogue: rows, totals and what is done, one transaction per shard.

Touches: the catalogue, shards in attempt folders.

A shard is ingested whole or not at all; a second time it is skipped; the order does not matter, because
a directory whose ancestors are not there yet gets them as placeholders (state "found"). A directory with
the digest it had costs one small update. One that changed is replaced, and what is new, changed and gone
in it is counted. Rows go only when their directory was read to the end.

`writer` has the transactions and what is remembered from shard to shard, `window` what happens to each
directory, `totals` and `largest` what is kept up with it.
"""

from smartscan.catalogue.ingest.largest import refill_largest
from smartscan.catalogue.ingest.writer import Ingest

__all__ = ["Ingest", "refill_largest"]
