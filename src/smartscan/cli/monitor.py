"""`monitor`: watch running scans.

Touches: the catalogue and the locks beside it, for reading; stdout.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from smartscan import config
from smartscan.cli import _options as options


@options.command(examples=("smartscan monitor", "smartscan monitor --once --json"))
@click.option("--once", is_flag=True, help="Print it once; so it is where stdout is no terminal.")
@click.option(
    "--interval", type=click.FloatRange(min=0.1), default=1.0, show_default=True, help="Seconds between."
)
@options.json_option
def command(db: Path | None, once: bool, interval: float, as_json: bool) -> None:
    """Watch running scans: chunks, rates, what each worker reads.

    Reads the catalogue and the locks beside it only, so it may be started and stopped at any time, from any
    terminal. --json prints one look, as --once does.
    """
    from smartscan import monitor
    from smartscan.report import page

    catalogue = config.catalogue_path(db)
    if not (once or as_json) and sys.stdout.isatty():
        return monitor.watch(catalogue, interval_s=interval, commands=options.commands(db))
    found, last, now = monitor.look(catalogue, monitor.Meter())
    if as_json:
        page.show_json(monitor.as_json(found, last, now=now))
    else:
        page.show(monitor.page(found, last, now=now, commands=options.commands(db)))
    return None
