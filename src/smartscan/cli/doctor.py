"""`doctor`: check the installation as it is.

Touches: what the room `doctor` touches; stdout.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

from smartscan import config
from smartscan.cli import _options as options


@options.command(examples=("smartscan doctor", "smartscan doctor /mnt/user/Videos"))
@click.argument("mount_path", required=False)
@click.option(
    "--engine",
    type=click.Choice(config.ENGINES),
    default="auto",
    show_default=True,
    help="Which one to check.",
)
@click.option("--image", default=config.WORKER_IMAGE, show_default=True, help="Image of worker containers.")
@options.json_option
def command(mount_path: str | None, db: Path | None, engine: str, image: str, as_json: bool) -> int:
    """Check what a scan needs: engine, image, limits, data directory, catalogue; with MOUNT_PATH, a share.

    One line each, with what to do where something is amiss; exit status 1 then. The share is looked at by
    a process of its own, with a deadline.
    """
    from smartscan import doctor
    from smartscan.report import page
    from smartscan.run.request import namespace

    path = config.catalogue_path(db)
    share = os.path.abspath(os.fsencode(mount_path)) if mount_path else None
    found = list(doctor.examine(path, namespace=namespace(path), engine=engine, image=image, share=share))
    if as_json:
        page.show_json([{"what": f.what, "says": f.says, "ok": not f.bad} for f in found])
    else:
        rows = [["!!" if f.bad else "ok", f.what, f.says] for f in found]
        page.show([page.Table("Smart Scanner on this machine", ("", "What", "Finding"), rows)])
    return int(any(f.bad for f in found))
