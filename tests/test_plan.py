"""The plan covers the tree exactly, within the limits, largest first."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartscan.model import Limits, Root, Scope, Usage, join
from smartscan.plan import PlannedChunk, pack, plan, tree_order

GB = 10**9
Tree = dict[str, Any]  # a name: a subdirectory; "": (disk bytes, files) of the own files


class Share:
    """A tree written as nested dicts, with the usage of each directory."""

    def __init__(self, tree: Tree) -> None:
        self.usages: dict[bytes, Usage] = {}
        self.below: dict[bytes, list[bytes]] = {}
        self.asked: list[bytes] = []
        self._measure(b"", tree)

    def _measure(self, path: bytes, tree: Tree) -> Usage:
        own_bytes, own_files = tree.get("", (0, 0))
        paths = [(join(path, name.encode()), child) for name, child in tree.items() if name]
        children = [self._measure(*pair) for pair in paths]
        self.below[path] = [child.path for child in children]
        disk_bytes = own_bytes + sum(child.disk_bytes for child in children)
        own_entries = own_files + len(children)
        entries = own_entries + sum(child.entries for child in children)
        self.usages[path] = Usage(path, disk_bytes, disk_bytes, entries, own_bytes, own_entries)
        return self.usages[path]

    def children(self, path: bytes) -> list[Usage]:
        self.asked.append(path)
        return [self.usages[child] for child in self.below[path]]

    def plan(
        self, limit_bytes: int = 100 * GB, limit_entries: int = 10**6, max_roots: int = 10_000
    ) -> list[PlannedChunk]:
        return plan(
            self.usages[b""],
            self.children,
            limit_bytes=limit_bytes,
            limit_entries=limit_entries,
            most_entries=limit_entries * 11 // 10,
            max_roots=max_roots,
        )


def roots(chunks: list[PlannedChunk]) -> list[set[tuple[str, str]]]:
    return [{(root.path.decode(), root.scope.value) for root in chunk.roots} for chunk in chunks]


def owners(path: bytes, of: dict[Root, Any]) -> list[Root]:
    """List the roots a directory belongs to."""
    found = [root for root in (Root(path), Root(path, Scope.FILES)) if root in of]
    while path:
        path = path.rpartition(b"/")[0]
        found += [root for root in (Root(path),) if root in of]
    return found


# The user's document, rule by rule.


def test_a_directory_of_at_most_the_limit_is_one_chunk() -> None:
    assert roots(Share({"": (1, 1), "films": {"": (100 * GB - 1, 5)}}).plan()) == [{("", "subtree")}]


def test_a_directory_above_the_limit_is_analysed_recursively() -> None:
    films = {"old": {"": (90 * GB, 9)}, "new": {"": (80 * GB, 8)}}
    assert roots(Share({"films": films, "music": {"": (95 * GB, 7)}}).plan()) == [
        {("music", "subtree")},
        {("films/old", "subtree")},
        {("", "files"), ("films", "files"), ("films/new", "subtree")},
    ]


def test_a_tenth_more_entries_are_no_reason_to_cut() -> None:
    share = Share({"a": {"": (1, 60)}, "b": {"": (1, 47)}})  # 109 entries, with the two directories
    assert roots(share.plan(limit_entries=100)) == [{("", "subtree")}]
    assert len(share.plan(limit_entries=99)) == 2


def test_a_worker_may_do_all_of_a_chunk_that_has_little_more() -> None:
    limits = Limits(chunk_entries=100)
    expected = (None, 7, 100, 101, 110, 111, 900)
    fitting = {entries: limits.fitting(entries).chunk_entries for entries in expected}
    assert fitting == {None: 100, 7: 100, 100: 100, 101: 101, 110: 110, 111: 100, 900: 100}


def test_a_leaf_above_the_limit_is_scanned_anyway() -> None:
    share = Share({"": (1, 1), "raw": {"": (5000 * GB, 3)}})
    assert roots(share.plan()) == [{("raw", "files")}, {("", "files")}]


def test_the_largest_chunk_comes_first() -> None:
    share = Share({str(size): {"": (size * GB, 1)} for size in (60, 99, 70)})
    assert [chunk.est_bytes // GB for chunk in share.plan()] == [99, 70, 60]


def test_the_chunk_size_can_be_chosen() -> None:
    share = Share({"a": {"": (40 * GB, 1)}, "b": {"": (40 * GB, 1)}})
    assert len(share.plan()) == 1
    assert len(share.plan(limit_bytes=50 * GB)) == 2


# What an earlier scanner lost.


def test_files_beside_split_directories_belong_to_a_chunk() -> None:
    share = Share({"": (2, 2), ".hidden": {"": (99 * GB, 1)}, "split": {"": (3, 3), "a": {"": (99 * GB, 1)}}})
    covered = {root for chunk in roots(share.plan()) for root in chunk}
    assert covered == {("", "files"), (".hidden", "subtree"), ("split", "subtree")}
    share = Share({"": (2, 2), "split": {"": (3 * GB, 3), "a": {"": (99 * GB, 1)}}})
    covered = {root for chunk in roots(share.plan()) for root in chunk}
    assert covered == {("", "files"), ("split", "files"), ("split/a", "subtree")}


def test_small_siblings_share_a_chunk_across_parents() -> None:
    small = {str(n): {"": (GB, 1)} for n in range(60)}
    chunks = Share({"a": small, "b": small}).plan()
    assert len(chunks) == 2
    small = {str(n): {"": (9 * GB, 1)} for n in range(12)}
    assert len(Share({"a": small, "b": small}).plan()) <= 3


def test_many_small_files_are_cut_by_their_number() -> None:
    share = Share({"a": {"": (1, 600_000)}, "b": {"": (1, 600_000)}})
    assert [chunk.est_entries for chunk in share.plan()] == [600_002, 600_000]


def test_many_large_directories_are_as_many_chunks() -> None:
    chunks = Share({f"{n:03}": {"": (60 * GB + n, 1)} for n in range(100)}).plan()
    assert [chunk.est_bytes for chunk in chunks] == [60 * GB + n for n in reversed(range(100))]
    assert {root for chunk in chunks for root in chunk.roots} == {
        Root(b"", Scope.FILES),
        *(Root(b"%03d" % n) for n in range(100)),
    }


def test_a_chunk_has_a_bounded_number_of_roots() -> None:
    share = Share({"": (101 * GB, 0)} | {str(n): {} for n in range(95)})
    sizes = [len(chunk.roots) for chunk in share.plan(max_roots=10)]
    assert max(sizes) == 10
    assert sum(sizes) == 96


def test_a_subtree_known_only_by_its_top_is_one_chunk_and_the_first() -> None:
    share = Share({"a": {"": (60 * GB, 1)}, "deep": {"x": {"": (70 * GB, 1)}, "y": {"": (70 * GB, 1)}}})
    share.below[b"deep"] = []
    assert roots(share.plan())[0] == {("deep", "subtree")}


def test_an_empty_share_is_one_chunk() -> None:
    assert Share({}).plan() == [PlannedChunk((Root(b""),), 0, 0)]


def test_only_directories_above_the_limit_are_asked_for_children() -> None:
    share = Share({"big": {"": (101 * GB, 1), "in": {"deep": {}}}, "small": {"a": {}, "b": {}}})
    share.plan()
    assert share.asked == [b"", b"big"]


# Properties.

names = st.sampled_from(["a", "b", "c", "a b", "a-", "é", ".h"])
own = st.tuples(st.integers(0, 40), st.integers(0, 12))


def directory(below: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
    return st.builds(lambda files, dirs: dirs | {"": files}, own, st.dictionaries(names, below, max_size=5))


trees = st.recursive(own.map(lambda files: {"": files}), directory, max_leaves=40)


@given(trees, st.integers(1, 200), st.integers(1, 60), st.integers(1, 5), st.data())
def test_the_plan_is_exact(
    tree: Tree, limit_bytes: int, limit_entries: int, max_roots: int, data: st.DataObject
) -> None:
    share = Share(tree)
    unknown = data.draw(st.sets(st.sampled_from(sorted(share.usages)), max_size=2))
    for path in unknown:
        share.below[path] = []
    chunks = share.plan(limit_bytes, limit_entries, max_roots=max_roots)
    of = {root: chunk for chunk in chunks for root in chunk.roots}
    assert len(of) == sum(len(chunk.roots) for chunk in chunks)
    for path in share.usages:
        held = owners(path, of)
        if not held:  # it comes back as leftover of the FILES root above it
            while not (held := owners(path, of)):
                path = path.rpartition(b"/")[0]
            assert path in unknown
            assert held == [Root(path, Scope.FILES)]
        else:
            assert len(held) == 1
    for chunk in chunks:
        (first, *more) = chunk.roots
        if chunk.est_bytes > limit_bytes or chunk.est_entries > limit_entries:
            assert not more
            little_more = chunk.est_bytes <= limit_bytes and chunk.est_entries <= limit_entries * 11 // 10
            assert first.scope is Scope.FILES or first.path in unknown or little_more
        assert len(chunk.roots) <= max_roots
        parts = [share.usages[root.path] for root in chunk.roots]
        subtree = [root.scope is Scope.SUBTREE for root in chunk.roots]
        pairs = list(zip(parts, subtree, strict=True))
        assert chunk.est_bytes == sum(u.disk_bytes if whole else u.own_disk_bytes for u, whole in pairs)
        assert chunk.est_entries == sum(u.entries if whole else u.own_entries for u, whole in pairs)
    sizes = [chunk.est_bytes for chunk in chunks]
    assert sizes == sorted(sizes, reverse=True)
    if not unknown:
        assert sum(sizes) == share.usages[b""].disk_bytes


@given(trees, st.integers(1, 200), st.randoms())
def test_the_plan_does_not_depend_on_the_order_of_the_input(tree: Tree, limit: int, random: Any) -> None:
    share = Share(tree)
    first = share.plan(limit, 50)
    for below in share.below.values():
        random.shuffle(below)
    assert share.plan(limit, 50) == first


@given(trees, st.integers(1, 200))
def test_chunks_are_filled(tree: Tree, limit: int) -> None:
    """No two chunks of the plan would fit into one, as long as few are being filled at once."""
    chunks = Share(tree).plan(limit, 10**6)
    if len(chunks) <= 16:
        sizes = sorted(chunk.est_bytes for chunk in chunks)
        assert len(sizes) < 2 or sizes[0] + sizes[1] > limit


paths = st.lists(st.sampled_from([b"a", b"b", b"a-b", b"a b"]), max_size=4).map(b"/".join)


@given(st.lists(st.builds(Root, paths, st.sampled_from(Scope))), st.integers(1, 9))
def test_pack_splits_evenly_in_tree_order(leftover: list[Root], parts: int) -> None:
    packed = pack(leftover, parts=parts)
    assert len(packed) == min(parts, len(set(leftover)))
    flat = [root for chunk in packed for root in chunk]
    assert len(flat) == len(set(flat))
    assert set(flat) == set(leftover)
    components = [root.path.split(b"/") for root in flat if root.path]
    assert components == sorted(components)
    counts = [len(chunk) for chunk in packed]
    assert not counts or max(counts) - min(counts) <= 1


def test_pack_takes_a_hundred_thousand_roots() -> None:
    packed = pack((Root(b"dir/%d" % n) for n in range(100_000)), parts=8)
    assert [len(chunk) for chunk in packed] == [12_500] * 8


@pytest.mark.parametrize(
    ("before", "after"), [(b"a", b"a/b"), (b"a/z", b"a b"), (b"a/b/c", b"a/c"), (b"", b"a")]
)
def test_tree_order(before: bytes, after: bytes) -> None:
    assert tree_order(before) < tree_order(after)
