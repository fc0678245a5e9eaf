"""`stats`: what the catalogue holds.

Touches: the catalogue and the locks beside it, for reading; stdout.
"""

from __future__ import annotations

import time
from pathlib import Path

import click

from smartscan import config
from smartscan.cli import _options as options


@options.command(
    examples=(
        "smartscan stats",
        "smartscan stats Videos --top 20",
        "smartscan stats Videos --json | jq .kinds",
    )
)
@click.argument("mount_name", required=False)
@click.option("--top", type=click.IntRange(1, 100), default=10, show_default=True, help="Rows of each list.")
@options.json_option
def command(mount_name: str | None, db: Path | None, top: int, as_json: bool) -> None:
    """Show what is catalogued, and what is missing.

    By kind of file, extension, owner, age and size; the largest; the scans so far. Without MOUNT_NAME, all
    mounts together. Totals are kept while scanning, so the answer is immediate.
    """
    from smartscan.catalogue import read
    from smartscan.report import page, stats

    with read.open_for_reading(config.catalogue_path(db)) as catalogue:
        found = stats.stats(catalogue, read.mounts(catalogue, mount_name), limit=top, now=time.time())
    if as_json:
        page.show_json(stats.as_json(found))
    else:
        page.show(stats.page(found, limit=top, commands=options.commands(db)))
