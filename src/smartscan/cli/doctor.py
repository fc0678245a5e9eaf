"""`doctor`: check the installation as it is.

Touches: what the room `doctor` touches; stdout.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from smartscan import config, interrupts
from smartscan.cli import _options as options
from smartscan.errors import UsageError

if TYPE_CHECKING:  # what a command needs is imported when it is called
    from smartscan.doctor import Finding


@options.command(
    examples=("smartscan doctor", "smartscan doctor /mnt/user/Videos", "sudo smartscan doctor --drill")
)
@click.argument("mount_path", required=False)
@click.option(
    "--engine",
    type=click.Choice(config.ENGINES),
    default="auto",
    show_default=True,
    help="Which one to check.",
)
@click.option("--image", default=config.WORKER_IMAGE, show_default=True, help="Image of worker containers.")
@click.option("--drill", is_flag=True, help="Scan a small share that hangs, refuses and never ends.")
@options.json_option
def command(
    mount_path: str | None, db: Path | None, engine: str, image: str, drill: bool, as_json: bool
) -> int:
    """Check what a scan needs: engine, image, limits, data directory, catalogue; with MOUNT_PATH, a share.

    One line each, with what to do where something is amiss; exit status 1 then. The share is looked at by
    a process of its own, with a deadline.

    With --drill it proves that a scan ends on this machine whatever the storage does: it mounts a small share
    of which a directory and a file hang for ever, scans it with the engine in use, and removes all of it
    again. That takes about half a minute, root, and /dev/fuse.
    """
    from smartscan import doctor
    from smartscan.run.request import namespace

    path = config.catalogue_path(db)
    if drill:
        return _drill(path.parent, mount_path, engine, image, as_json=as_json)
    share = os.path.abspath(os.fsencode(mount_path)) if mount_path else None
    found = doctor.examine(path, namespace=namespace(path), engine=engine, image=image, share=share)
    return _show("Smart Scanner on this machine", found, as_json=as_json)


def _drill(data: Path, mount_path: str | None, engine: str, image: str, *, as_json: bool) -> int:
    from smartscan.doctor.drill import check_may, drill

    if mount_path is not None:
        raise UsageError("a drill makes its own share; leave MOUNT_PATH out")
    check_may()
    if not as_json:
        print("A scan of a share that hangs; this takes about half a minute.", file=sys.stderr)
    found = drill(data, engine=engine, image=image)
    return _show("A share that hangs, scanned on this machine", found, as_json=as_json)


def _show(title: str, findings: Generator[Finding, None, None], *, as_json: bool) -> int:
    from smartscan.report import page

    found = []
    with closing(findings):
        for finding in findings:
            interrupts.check()
            found.append(finding)
    if as_json:
        page.show_json([{"what": f.what, "says": f.says, "ok": not f.bad} for f in found])
    else:
        rows = [["!!" if f.bad else "ok", f.what, f.says] for f in found]
        page.show([page.Table(title, ("", "What", "Finding"), rows)])
    return int(any(f.bad for f in found))
