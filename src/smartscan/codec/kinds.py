"""The keys under which a regular file is counted; the C twin is `measure` in _native.c.

Pure.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

DIMENSIONS = ("extension", "owner", "month", "size")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EXTENSION = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789_-") | frozenset(range(128, 256))
_CLASSES = (
    (1, b"0"),
    (4096, b"1-4K"),
    (65536, b"4K-64K"),
    (1 << 20, b"64K-1M"),
    (1 << 24, b"1M-16M"),
    (1 << 28, b"16M-256M"),
    (1 << 32, b"256M-4G"),
)


def extension(name: bytes) -> bytes:
    """After the last dot but leading ones: 1 to 16 letters, digits, _, - or non-ASCII bytes, lower case."""
    stem = name.lstrip(b".")
    _, dot, ext = stem.rpartition(b".")
    ext = ext.lower()
    return ext if dot and stem[0:1] and 0 < len(ext) <= 16 and _EXTENSION.issuperset(ext) else b""


def month(mtime_ns: int) -> bytes:
    """YYYY-MM in UTC; times end where 64 bits of nanoseconds do, in 1677 and 2262."""
    seconds = min(max(mtime_ns, -(1 << 63)), (1 << 63) - 1) // 10**9
    when = _EPOCH + timedelta(seconds=seconds)
    return f"{when.year:04}-{when.month:02}".encode()


def size_class(size: int) -> bytes:
    """The class of sizes a file falls in; a negative size is one above 2^63, as SQLite gives it back."""
    if size < 0:
        return b"4G+"
    return next((key for limit, key in _CLASSES if size < limit), b"4G+")


def keys(name: bytes, size: int, mtime_ns: int, uid: int) -> tuple[bytes, bytes, bytes, bytes]:
    """One key per dimension, in the order of DIMENSIONS."""
    return extension(name), str(uid).encode(), month(mtime_ns), size_class(size)
