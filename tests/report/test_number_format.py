from __future__ import annotations

import pytest

from muster.report import formatting


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (2.5e-5, "25 µs"),
        (0.01837, "18.4 ms"),
        (0.9999, "1 s"),
        (41.24, "41.2 s"),
        (99.96, "1 min 40 s"),
        (187.2, "3 min 07 s"),
        (7500, "2 h 05 min"),
        (None, "–"),
        (float("nan"), "–"),
    ],
)
def test_durations_have_a_fitting_unit(seconds: float | None, text: str) -> None:
    assert formatting.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (36.0, "36.00"),
        (0, "0"),
        (0.0, "0.000"),
        (-1.25, "−1.250"),
        (0.00012345, "1.234e−04"),
        (12345.6, "12346"),
    ],
)
def test_quantities_have_four_figures(value: float, text: str) -> None:
    assert formatting.quantity(value) == text


def test_differences_sizes_factors_and_shares() -> None:
    assert (formatting.difference(1.234), formatting.difference(-0.5)) == ("+1.23", "−0.500")
    assert (formatting.data_size(999), formatting.data_size(1_048_576), formatting.data_size(7e12)) == (
        "999 B",
        "1.05 MB",
        "7 TB",
    )
    assert (formatting.factor(1.234), formatting.factor(float("inf")), formatting.percent(0.8149)) == (
        "1.23 ×",
        "–",
        "81.5 %",
    )
