"""`problems`: every path that could not be read.

Touches: the catalogue, for reading; stdout.
"""

from __future__ import annotations

import time
from pathlib import Path

import click

from smartscan import config
from smartscan.cli import _options as options


@options.command(examples=("smartscan problems", "smartscan problems Videos --all --json"))
@click.argument("mount_name", required=False)
@click.option("--all", "cleared", is_flag=True, help="Also those that a later scan could read.")
@options.json_option
def command(mount_name: str | None, db: Path | None, cleared: bool, as_json: bool) -> None:
    """Show every path that could not be read.

    With what was tried, since when, and what is likely behind it. Without MOUNT_NAME, of all mounts.
    """
    from smartscan.catalogue import read
    from smartscan.report import page, problems

    with read.open_for_reading(config.catalogue_path(db)) as catalogue:
        among = read.mounts(catalogue, mount_name)
        found = problems.problems(catalogue, among, cleared=cleared)
        unsettled = problems.unsettled(catalogue, among)
    if as_json:
        page.show_json(problems.as_json(found))
    else:
        page.show(
            problems.page(found, now=time.time(), unsettled=unsettled, commands=options.commands(db))
        )
