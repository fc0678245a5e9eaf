"""The outer program: opens a scan, drives the supervisor, closes the account.

Touches: the catalogue, attempt folders, the engine. Never the share, not even with stat: a dead mount would
hang it. The doors are here; `course` opens and closes, `controller` is the loop, `attempts` has the folders
of attempts, `workers` asks the engine, `chunks` makes chunks, `collect` takes in what attempts brought,
`patience` waits for our own disk, `story` has the words of events.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from smartscan import engine as engines
from smartscan.catalogue import directory
from smartscan.plan import PlannedChunk
from smartscan.run.request import Request, namespace

if TYPE_CHECKING:
    from smartscan.run.course import Report

__all__ = ["Request", "retry", "scan", "survey"]


def scan(request: Request) -> Report:
    """Catalogue a share, going on with an unfinished scan of it where there is one."""
    return _run(request, only_failed=False)


def retry(request: Request) -> Report:
    """Try again what the last scan of a share could not read, and settle its account anew."""
    return _run(request, only_failed=True)


def _run(request: Request, *, only_failed: bool) -> Report:
    with opened(request) as (engine, why):
        from smartscan.run import course

        return course.run(request, engine, why, only_failed=only_failed)


def survey(request: Request, *, told: bool = False) -> tuple[list[PlannedChunk], bool]:
    """Measure a share; give the chunks that it is cut into, and whether all of it could be read.

    The catalogue is not touched: what is measured goes into one of its own in the data directory, which is
    removed at the end. `told`: the user knows already who the workers are.
    Cost: one scan. MountError where the share cannot be read.
    """
    import tempfile  # every start would wait for it, and only a survey needs it

    directory.prepare(request.db, create=True)
    with tempfile.TemporaryDirectory(prefix="survey-", dir=request.db.parent) as folder:
        scratch = replace(request, db=Path(folder) / request.db.name, analyze=False, sizes_only=True)
        with opened(scratch) as (engine, why):
            from smartscan.run import course

            return course.measured(scratch, engine, why, told=told)


@contextmanager
def opened(request: Request) -> Iterator[tuple[engines.Engine, str]]:
    """Open the engine of a request; with it comes the sentence that says why it is this one.

    A local engine loads its first worker from now on: what only the controller needs is imported after this.
    """
    # Two starts that hang are as long as one path that does.
    start_s = max(engines.START_LEAST_S, min(engines.START_S, request.limits.stall_s / 2))
    engine, why = engines.choose(
        request.engine, namespace=namespace(request.db), image=request.image, start_s=start_s
    )
    try:
        engine.check()
        engine.prepare()
        yield engine, why
    finally:
        engine.close()
