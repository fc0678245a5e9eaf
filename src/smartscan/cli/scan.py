"""`scan`: catalogue a share.

Touches: what `run` touches; stdout, stderr.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from smartscan.cli import _options as options
from smartscan.cli import _request


@options.command(
    examples=(
        "smartscan scan /mnt/user/LargeMountPoint LargeMountPoint",
        "smartscan scan /mnt/user/Videos Videos --chunk-size 50 --max-containers 4",
    )
)
@click.argument("mount_path")
@click.argument("mount_name")
@_request.worker_options
@_request.rule_options
@click.option("--analyze", is_flag=True, help="Measure all sizes first, then scan the largest chunk first.")
@options.json_option
def command(
    mount_path: str, mount_name: str, db: Path | None, analyze: bool, as_json: bool, **wanted: Any
) -> int:
    """Catalogue the share at MOUNT_PATH under the name MOUNT_NAME.

    The first time, the share is cut into chunks while it is read; later, by the sizes of the last scan,
    largest first. A scan that was stopped goes on with the same command.

    Exit status: 0 complete, 3 something could not be read, 4 the mount stopped answering, 130 stopped.
    """
    from smartscan.run import scan

    made = _request.request(mount_path, mount_name, db, analyze=analyze, **wanted)
    return _request.carry_out(scan, made, as_json=as_json)
