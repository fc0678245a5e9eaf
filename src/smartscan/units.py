"""Numbers as people write and read them: sizes, durations, counts, rates, ages.

Pure. Sizes are shown in decimal units, as disks are sold and as --chunk-size counts; memory is binary,
as Docker counts. An unknown number (None) is shown as "?". Parsers raise ValueError with words that
complete "the value ...".
"""

from __future__ import annotations

import re

UNKNOWN = "?"
MINUTE, HOUR, DAY = 60, 3600, 86_400
YEAR = 365.25 * DAY

_DECIMAL = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_SECONDS = {"": 1, "s": 1, "m": MINUTE, "min": MINUTE, "h": HOUR, "d": DAY}
_NUMBER_AND_UNIT = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", re.IGNORECASE | re.ASCII)
_LARGEST = 2**63 - 1  # what SQLite and the kernel can count


def parse_gigabytes(text: str) -> int:
    """Read --chunk-size: gigabytes of 10^9 bytes, decimals allowed, "GB" after it allowed; bytes."""
    number, unit = _split(text, "100 or 0.5")
    if unit not in ("", "g", "gb"):
        raise ValueError(f"{text!r} has a unit other than GB")
    return _positive(text, number * 10**9)


def parse_memory(text: str) -> int:
    """Read SIZE as Docker's --memory does (512m, 12g, 1.5T; binary, bytes without a unit); bytes."""
    number, unit = _split(text, "512m or 12g")
    power = _POWERS.get(unit.removesuffix("b").removesuffix("i"))
    if power is None or unit == "i":
        raise ValueError(f"{text!r} has no unit of b, k, m, g, t or p")
    return _positive(text, number * 1024**power)


def parse_duration(text: str) -> float:
    """Read a duration (90, 90s, 5m, 2h, 1d; seconds without a unit); seconds."""
    number, unit = _split(text, "60, 5m or 2h")
    if unit not in _SECONDS:
        raise ValueError(f"{text!r} has no unit of s, m, h or d")
    if number <= 0:
        raise ValueError(f"{text!r} is not above zero")
    return number * _SECONDS[unit]


def size(n: int | None) -> str:
    """Show bytes with three digits: 0 B, 1.50 kB, 12.3 GB, 123 TB."""
    return _scaled(n, 1000, _DECIMAL)


def memory(n: int | None) -> str:
    """Show bytes of memory: 512 MiB, 12.0 GiB."""
    return _scaled(n, 1024, _BINARY)


def count(n: int | None) -> str:
    """Show a count: 1,234,567."""
    return UNKNOWN if n is None else f"{n:,}"


def at_least(text: str, incomplete: bool) -> str:
    """Mark a size or count as a lower bound while something below is missing."""
    return f"≥ {text}" if incomplete else text


def duration(s: float | None) -> str:
    """Show a length of time in at most two units: 0.4 s, 42 s, 3 min 05 s, 2 h 10 min, 3 d 4 h."""
    if s is None:
        return UNKNOWN
    s = max(s, 0.0)
    if s < 9.95:
        return f"{s:.1f} s"
    whole = round(s)
    if whole < MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return f"{whole // MINUTE} min {whole % MINUTE:02} s"
    if whole < DAY:
        return f"{whole // HOUR} h {whole % HOUR // MINUTE:02} min"
    return f"{whole // DAY} d {whole % DAY // HOUR} h"


def age(s: float | None) -> str:
    """Show how long ago something was, in one unit: now, 12 s ago, 5 min ago, 3 days ago, 2.5 years ago."""
    if s is None:
        return UNKNOWN
    if s < 1:
        return "now"
    if s < MINUTE:
        return f"{int(s)} s ago"
    if s < HOUR:
        return f"{int(s // MINUTE)} min ago"
    if s < 2 * DAY:
        return f"{int(s // HOUR)} h ago"
    if s < YEAR:
        return f"{int(s // DAY)} days ago"
    return f"{s / YEAR:.1f} years ago"


def rate(n: float | None, what: str) -> str:
    """Show things per second: 12,345 entries/s, 0.5 entries/s."""
    if n is None:
        return f"{UNKNOWN} {what}/s"
    return f"{n:,.0f} {what}/s" if n >= 10 else f"{n:.1f} {what}/s"


def byte_rate(n: float | None) -> str:
    """Show bytes per second: 120 MB/s."""
    return f"{size(None if n is None else round(n))}/s"


def per_second(n: int, s: float) -> float | None:
    """Divide, where there was time at all."""
    return n / s if s > 0 else None


def _scaled(n: int | None, base: int, units: tuple[str, ...]) -> str:
    if n is None:
        return UNKNOWN
    if abs(n) < base:
        return f"{n} {units[0]}"
    value = float(n)
    for unit in units:
        # The limits are where rounding would show a fourth digit.
        if abs(value) < 9.995:
            return f"{value:.2f} {unit}"
        if abs(value) < 99.95:
            return f"{value:.1f} {unit}"
        if round(abs(value)) < base or unit == units[-1]:
            return f"{value:.0f} {unit}"
        value /= base
    raise AssertionError("the last unit takes every number")


def _split(text: str, example: str) -> tuple[float, str]:
    match = _NUMBER_AND_UNIT.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a number like {example}")
    return float(match[1]), match[2].lower()


def _positive(text: str, number: float) -> int:
    whole = round(number)
    if whole <= 0:
        raise ValueError(f"{text!r} is not above zero")
    if whole > _LARGEST:
        raise ValueError(f"{text!r} is too large")
    return whole
