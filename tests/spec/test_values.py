"""Durations, sizes and intervals are read and spelled one way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.spec import Duration, Interval, Size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("5m", 300),
        ("1.5h", 5400),
        ("500ms", 0.5),
        ("0.25 s", 0.25),
        ("90m", 5400),
        ("1ms", 0.001),
    ],
)
def test_a_duration_is_its_seconds(text: str, seconds: float) -> None:
    assert Duration.parse(text).seconds == seconds


@pytest.mark.parametrize(
    ("text", "amount"),
    [("4GB", 4_000_000_000), ("4GiB", 4_294_967_296), ("512MiB", 536_870_912), ("1.5kB", 1500), ("7 B", 7)],
)
def test_a_size_is_its_bytes(text: str, amount: int) -> None:
    assert Size.parse(text).bytes == amount


@pytest.mark.parametrize(
    "text", ["", "30", "s", "-1s", "0s", "0.1ms", "1e3s", "30 sec", "9000h", "٣s", "30s\n5m", "nan s"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        Duration.parse(text)


@pytest.mark.parametrize("text", ["", "4", "4gb", "GB", "0B", "1.5B", "-1GB", "1e9B", "99999999999TB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        Size.parse(text)


@pytest.mark.parametrize("text", ["", "200", "0 steps", "-5 steps", "1.5 steps", "steps", "0s"])
def test_what_is_no_interval_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration|steps"):
        Interval.parse(text)


def test_an_interval_is_time_or_steps_and_never_both() -> None:
    assert (Interval.parse("5m").seconds, Interval.parse("5m").steps) == (300.0, None)
    assert (Interval.parse("200 steps").seconds, Interval.parse("200 steps").steps) == (None, 200)


@given(st.integers(1, 365 * 24 * 3_600_000))
def test_the_canonical_spelling_of_a_duration_reads_back(milliseconds: int) -> None:
    assert Duration.parse(str(Duration(milliseconds))) == Duration(milliseconds)


@given(st.integers(1, 10**14))
def test_the_canonical_spelling_of_a_size_reads_back(amount: int) -> None:
    assert Size.parse(str(Size(amount))) == Size(amount)
