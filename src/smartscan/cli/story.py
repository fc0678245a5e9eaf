"""`story`: what happened to a chunk.

Touches: the catalogue and the locks beside it, for reading; stdout.
"""

from __future__ import annotations

from pathlib import Path

import click

from smartscan import config
from smartscan.cli import _options as options


@options.command(examples=("smartscan story 42", "smartscan story 42 --json"))
@click.argument("chunk", type=click.IntRange(min=1))
@options.json_option
def command(chunk: int, db: Path | None, as_json: bool) -> None:
    """Show everything that happened to CHUNK, in order.

    CHUNK is a number as `smartscan monitor` and the log name it.
    """
    from smartscan.catalogue import read
    from smartscan.report import page, story

    with read.open_for_reading(config.catalogue_path(db)) as catalogue:
        found = story.story(catalogue, chunk)
    if as_json:
        page.show_json(story.as_json(found))
    else:
        page.show(story.page(found))
