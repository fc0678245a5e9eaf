"""units: what people write comes in exactly; what they read has few digits and no surprise."""

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartscan import units


@pytest.mark.parametrize(
    ("text", "expected"),
    [("100", 10**11), ("50", 5 * 10**10), ("0.000001", 1000), ("1.5GB", 15 * 10**8), (" 2 gb ", 2 * 10**9)],
)
def test_chunk_size_is_decimal_gigabytes(text: str, expected: int) -> None:
    assert units.parse_gigabytes(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12g", 12 * 2**30), ("512m", 512 * 2**20), ("1.5T", 3 * 2**39), ("4096", 4096), ("4096b", 4096),
        ("12GB", 12 * 2**30), ("12GiB", 12 * 2**30), ("64k", 2**16),
    ],
)
def test_memory_is_binary_as_dockers(text: str, expected: int) -> None:
    assert units.parse_memory(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("90", 90), ("1.5s", 1.5), ("5m", 300), ("2h", 7200), ("1d", 86400)]
)
def test_durations(text: str, expected: float) -> None:
    assert units.parse_duration(text) == expected


@pytest.mark.parametrize("text", ["", "-1", "0", "x", "1e9", "12q", "1 2", "nan", "inf", "٣", "1i"])
@pytest.mark.parametrize("parse", [units.parse_gigabytes, units.parse_memory, units.parse_duration])
def test_what_is_no_number_is_refused_in_words(parse: Callable[[str], float], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse(text)


def test_what_no_file_can_hold_is_refused() -> None:
    for parse, text in ((units.parse_gigabytes, "99999999999"), (units.parse_memory, "9999p")):
        with pytest.raises(ValueError, match="too large"):
            parse(text)


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (1500, "1.50 kB"), (9_994, "9.99 kB"),
        (9_996, "10.0 kB"), (99_960, "100 kB"), (999_400, "999 kB"), (999_501, "1.00 MB"),
        (12_345_678_901, "12.3 GB"),
        (2**62, "4.61 EB"), (10**22, "10000 EB"), (-1500, "-1.50 kB"), (None, "?"),
    ],
)
def test_sizes(n: int | None, expected: str) -> None:
    assert units.size(n) == expected


@given(st.integers(0, 2**63 - 1))
def test_a_size_has_at_most_three_digits_and_is_true_to_one_percent(n: int) -> None:
    text, unit = units.size(n).split()
    assert len(text.replace(".", "")) <= 3
    power = ("B", "kB", "MB", "GB", "TB", "PB", "EB").index(unit)
    assert abs(float(text) * 1000**power - n) <= n / 100


@pytest.mark.parametrize(("n", "expected"), [(12 * 2**30, "12.0 GiB"), (512 * 2**20, "512 MiB"), (None, "?")])
def test_memory(n: int | None, expected: str) -> None:
    assert units.memory(n) == expected


@pytest.mark.parametrize(
    ("s", "expected"),
    [
        (0, "0.0 s"), (0.44, "0.4 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"), (7800, "2 h 10 min"), (273_600, "3 d 4 h"), (-5, "0.0 s"), (None, "?"),
    ],
)
def test_how_long(s: float | None, expected: str) -> None:
    assert units.duration(s) == expected


@pytest.mark.parametrize(
    ("s", "expected"),
    [
        (0.5, "now"), (-3, "now"), (12.9, "12 s ago"), (300, "5 min ago"), (90_000, "25 h ago"),
        (3 * 86400, "3 days ago"), (2.5 * units.YEAR, "2.5 years ago"), (None, "?"),
    ],
)
def test_how_long_ago(s: float | None, expected: str) -> None:
    assert units.age(s) == expected


def test_counts_and_rates() -> None:
    assert units.count(1234567) == "1,234,567"
    assert units.count(None) == "?"
    assert units.rate(12345.6, "files") == "12,346 files/s"
    assert units.rate(0.52, "files") == "0.5 files/s"
    assert units.rate(None, "files") == "? files/s"
    assert units.byte_rate(1.2e8) == "120 MB/s"
    assert units.byte_rate(None) == "?/s"
    assert units.per_second(10, 4) == 2.5
    assert units.per_second(10, 0) is None


def test_a_lower_bound_says_so() -> None:
    assert units.at_least("12 GB", True) == "≥ 12 GB"
    assert units.at_least("12 GB", False) == "12 GB"
