"""`retry`: try again what a scan could not read.

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


@options.command(examples=("smartscan retry Videos",))
@click.argument("mount_name")
@_request.worker_options
@options.json_option
def command(mount_name: str, db: Path | None, as_json: bool, **wanted: Any) -> int:
    """Try now what the last scan of MOUNT_NAME could not read.

    What answers is catalogued and its problems are cleared; the account of that scan is settled anew. The
    rules of that scan hold: what it left out is not entered.
    """
    from smartscan.catalogue import read
    from smartscan.run import retry

    with read.open_for_reading(config.catalogue_path(db)) as catalogue:
        (mount,) = read.mounts(catalogue, mount_name)
    made = _request.request(os.fsdecode(mount.path), mount.name, db, **wanted)
    return _request.carry_out(retry, made, as_json=as_json)
