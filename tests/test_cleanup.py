"""What `cleanup` leaves alone because a scan began between looking and removing."""

from __future__ import annotations

from pathlib import Path

from command import run
from smartscan import cleanup
from smartscan.catalogue.lock import MountLock
from smartscan.run.request import namespace


def test_of_a_mount_whose_scan_began_meanwhile_nothing_goes_and_of_others_all(tmp_path: Path) -> None:
    db = tmp_path / "work" / "Media" / "smart_catalog.db"  # a path that looks like that of an attempt
    for folder in ("Media/1-1", "Photos/2-1"):
        (db.parent / "work" / folder).mkdir(parents=True)
    (db.parent / "survey-x").mkdir()
    found, kept = cleanup.leftovers(db, namespace(db))
    removed: list[str] = []

    def remove() -> bool:
        removed.append("worker")
        return True

    found += [cleanup.Leftover("process 1:2 (chunk 3, attempt 1)", remove, "Media")]
    with MountLock(db, "Media"):
        gone, stays = cleanup.clean(found, db)
    assert gone == [str(db.parent / "work/Photos/2-1"), str(db.parent / "survey-x")]
    assert (kept, removed) == ([], [])  # the scan may have taken that worker over
    assert len(stays) == 1 and "mount 'Media' is being scanned by" in stays[0]
    assert (db.parent / "work/Media/1-1").is_dir()
    run("cleanup", "--db", db)
    assert not (db.parent / "work").exists()
