"""Cuts a mount into chunks where sizes are known, and a leftover where they are not.

Pure. Sizes are disk bytes, as du(1). Every directory below the planned one belongs to exactly one chunk:
to the SUBTREE root above it, or to the FILES root of its own; one that nobody knew when the plan was
made comes back as the leftover of the FILES root above it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from smartscan.model import Root, Scope, Usage

MAX_ROOTS = 10_000  # a chunk file of as many long paths has some MB, and a bisect takes 14 steps
OPEN_BINS = 16  # chunks that are filled at once: few, so that neighbours stay together


class PlannedChunk(NamedTuple):
    """A chunk to be made, with what it is expected to hold."""

    roots: tuple[Root, ...]
    est_bytes: int
    est_entries: int


@dataclass(slots=True)
class _Bin:
    """A chunk being filled."""

    disk_bytes: int = 0
    entries: int = 0
    roots: list[Root] = field(default_factory=list)


def plan(
    root: Usage,
    children: Callable[[bytes], Iterable[Usage]],
    *,
    limit_bytes: int,
    limit_entries: int,
    most_entries: int,
    max_roots: int = MAX_ROOTS,
) -> list[PlannedChunk]:
    """Cut the subtree of `root` into chunks within both limits, the largest first.

    A directory within the limits is one root, and so is one of at most `most_entries`. One above them is
    cut into its subdirectories and a FILES root for what lies directly in it, even where that alone is
    above the limits. Small roots share a chunk, those near each other first.

    `children(path)` gives the usage of the subdirectories of `path`, in any order. It is called once
    for each directory above the limits and for no other, so 25,000,000 directories cost nothing where
    they are small; memory is the roots of the plan. Nothing given for a directory that has more entries
    than its own means that only its top is known: it becomes one chunk, and the worker cuts it.
    """
    full: list[_Bin] = []
    filling: list[_Bin] = []
    for piece, disk_bytes, entries in _pieces(root, children, limit_bytes, most_entries):
        for bin_ in filling:
            if (
                bin_.disk_bytes + disk_bytes <= limit_bytes
                and bin_.entries + entries <= limit_entries
                and len(bin_.roots) < max_roots
            ):
                break
        else:
            bin_ = _Bin()
            filling.append(bin_)
        bin_.disk_bytes += disk_bytes
        bin_.entries += entries
        bin_.roots.append(piece)
        if len(filling) > OPEN_BINS:
            # The fullest goes; it could take the least of what is to come.
            fullest = max(filling, key=lambda b: max(b.disk_bytes / limit_bytes, b.entries / limit_entries))
            filling.remove(fullest)
            full.append(fullest)
    chunks = [PlannedChunk(tuple(b.roots), b.disk_bytes, b.entries) for b in full + filling]
    chunks.sort(key=lambda chunk: (-chunk.est_bytes, -chunk.est_entries, chunk.roots[0].path))
    return chunks


def pack(roots: Iterable[Root], *, parts: int) -> list[tuple[Root, ...]]:
    """Split roots of unknown size into at most `parts` chunks of as many roots each, give or take one.

    Neighbours in the tree stay together; a root given twice counts once. The order is the tree's.
    """
    ordered = sorted(set(roots), key=lambda root: (tree_order(root.path), root.scope))
    parts = max(1, min(parts, len(ordered)))
    cuts = [len(ordered) * part // parts for part in range(parts + 1)]
    return [tuple(ordered[a:b]) for a, b in pairwise(cuts) if b > a]


def tree_order(path: bytes) -> bytes:
    """Give a sort key that puts a directory right before everything below it."""
    return path.replace(b"/", b"\0")  # no name holds a NUL, and nothing sorts before it


def _pieces(
    root: Usage, children: Callable[[bytes], Iterable[Usage]], limit_bytes: int, most_entries: int
) -> Iterator[tuple[Root, int, int]]:
    """Yield the roots of the plan with their disk bytes and entries, in tree order."""
    stack = [root]
    while stack:
        usage = stack.pop()
        if usage.disk_bytes <= limit_bytes and usage.entries <= most_entries:
            yield Root(usage.path), usage.disk_bytes, usage.entries
            continue
        below = sorted(children(usage.path), key=lambda child: tree_order(child.path), reverse=True)
        if not below and usage.entries > usage.own_entries:
            yield Root(usage.path), usage.disk_bytes, usage.entries
            continue
        yield Root(usage.path, Scope.FILES), usage.own_disk_bytes, usage.own_entries
        stack += below
