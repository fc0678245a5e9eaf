"""`plan`: how large a share is, and which chunks that makes.

Touches: what `run` touches; stdout, stderr.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from smartscan import config
from smartscan.cli import _options as options
from smartscan.cli import _request
from smartscan.cli._frame import say
from smartscan.cli._progress import ProgressLine
from smartscan.errors import EXIT_INCOMPLETE, EXIT_OK, UsageError
from smartscan.model import show


@options.command(
    examples=(
        "smartscan plan /mnt/user/Videos",
        "smartscan plan /mnt/user/Videos Videos --from-catalogue --chunk-size 50",
    )
)
@click.argument("mount_path")
@click.argument("mount_name", required=False)
@_request.worker_options
@_request.rule_options
@click.option(
    "--from-catalogue", is_flag=True, help="Use the sizes of the last scan; the share is not touched."
)
@options.json_option
def command(
    mount_path: str,
    mount_name: str | None,
    db: Path | None,
    from_catalogue: bool,
    as_json: bool,
    **wanted: Any,
) -> int:
    """Measure the share at MOUNT_PATH and show the chunks that a scan would make of it, the largest first.

    A directory within the limit is one chunk; one above it is cut into its subdirectories and a chunk for
    the files directly in it; small ones are packed together. Sizes are disk bytes as du(1) counts them, hard
    links once.
    """
    from smartscan import run

    if not mount_path:
        raise UsageError("the path of the share is empty")
    path = os.path.abspath(os.fsencode(mount_path))
    if from_catalogue:
        from smartscan.catalogue import read
        from smartscan.run.course import planned

        with read.open_for_reading(config.catalogue_path(db)) as catalogue:
            known = [m for m in read.mounts(catalogue, mount_name) if m.path == path]
            if not known:
                raise UsageError(
                    f"{show(path)} is not in the catalogue; scan it first, or leave out --from-catalogue"
                )
            made = _request.request(mount_path, known[0].name, db, **wanted)
            chunks, whole = planned(catalogue, known[0].id, made), True
    else:
        made = _request.request(mount_path, mount_name or "share", db, **wanted)
        with ProgressLine() as line:
            watched = made if as_json else line.watch(made)
            chunks, whole = run.survey(_request.loading(watched, "report.page", "report.plan"))

    from smartscan.report import page
    from smartscan.report import plan as report

    if as_json:
        page.show_json(report.as_json(chunks))
    else:
        page.show(report.page(chunks))
    if not whole:
        say("some directories could not be read, so sizes are lower bounds")
    return EXIT_OK if whole else EXIT_INCOMPLETE
