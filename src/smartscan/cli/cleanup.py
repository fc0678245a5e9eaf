"""`cleanup`: remove what this program left behind.

Touches: what the room `cleanup` touches; stdout.
"""

from __future__ import annotations

from pathlib import Path

import click

from smartscan import config, interrupts
from smartscan.cli import _options as options


@options.command(examples=("smartscan cleanup --dry-run", "smartscan cleanup"))
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@click.option("--image", default=config.WORKER_IMAGE, show_default=True, help="Image of worker containers.")
def command(db: Path | None, dry_run: bool, image: str) -> int:
    """Remove workers whose controller is gone, and the folders of ended attempts.

    Only what carries this program's mark is touched, and never the catalogue, a volume, or anything of a
    scan that runs or can go on. What cannot be removed yet (a worker that hangs on dead storage) is named;
    exit status 3 then.
    """
    from smartscan import cleanup
    from smartscan.run.request import namespace

    path = config.catalogue_path(db)
    found: list[cleanup.Leftover] = []
    kept: list[str] = []
    for each in (*cleanup.drilled(path), path):
        items, stays_as_is = cleanup.leftovers(each, namespace(each), image=image)
        found += items
        kept += [text for text in stays_as_is if each == path]
    interrupts.check()
    for text in kept:
        print(f"kept: {text}")
    if dry_run:
        for item in found:
            print(f"would remove: {item.what}")
        if not found:
            print("There is nothing to remove.")
        return 0
    gone, stays = cleanup.clean(found, path)
    for text in gone:
        print(f"removed: {text}")
    for text in stays:
        print(f"not removed: {text}")
    if not found:
        print("There is nothing to remove.")
    return 3 if stays else 0
