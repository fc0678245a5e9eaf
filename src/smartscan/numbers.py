"""Numbers of 64 bits as SQLite holds them: signed, and without an error where a sum goes beyond them.

Pure. A file may claim 2^63 - 1 bytes, and two of them are more than an integer of SQLite. Sums are therefore
kept modulo 2^64, as inode numbers are: adding and taking away stay exact, and read as unsigned they are right
up to 18 EB.
"""

from __future__ import annotations

_HALF, _WHOLE = 1 << 63, 1 << 64


def signed(value: int) -> int:
    """Give a number, of whatever size, as SQLite can hold it."""
    return value if -_HALF <= value < _HALF else (value + _HALF) % _WHOLE - _HALF


def unsigned(value: int) -> int:
    """Give what `signed` made of a number that is not negative."""
    return value % _WHOLE


def plus(a: int, b: int) -> int:
    """Add as SQLite does, but without overflow; statements know it by this name."""
    return signed(a + b)
