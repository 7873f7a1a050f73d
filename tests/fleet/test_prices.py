"""Money by hand."""

from __future__ import annotations

import math

import pytest

from muster.errors import RefusedInput
from muster.fleet import Bill, Price

PRICES = {
    "v100": Price(0.918, 3.06, "trace; list price"),
    "t4": Price(0.20, 0.50),
}


def test_a_bill_is_hours_times_prices() -> None:
    """Two hours of a V100 and half an hour of a T4 for what takes one hour and a quarter of an hour undisturbed."""
    bill = Bill(PRICES, {"v100": 7200, "t4": 1800}, {"v100": 3600, "t4": 900}, accepted=97)
    assert bill.cost == pytest.approx(2 * 0.918 + 0.5 * 0.20)  # 1.936
    assert bill.on_demand == pytest.approx(3.06 + 0.25 * 0.50)  # 3.185
    assert bill.per_update == pytest.approx(1.936 / 97)
    assert bill.saving == pytest.approx(1 - 1.936 / 3.185)


def test_a_machine_that_is_always_useful_saves_what_the_prices_differ_by() -> None:
    assert Bill(PRICES, {"v100": 500}, {"v100": 500}, 3).saving == pytest.approx(0.7)


def test_lost_work_can_make_the_cheap_machine_the_dear_one() -> None:
    saving = Bill(PRICES, {"v100": 4000}, {"v100": 1000}, 3).saving
    assert saving == pytest.approx(1 - 4 * 0.3)
    assert saving is not None
    assert saving < 0


def test_nothing_is_divided_by_nothing() -> None:
    idle = Bill(PRICES, {"v100": 60}, {}, 0)
    assert (idle.per_update, idle.saving) == (None, None)
    assert "no update was accepted" in idle.text()
    assert "no saving to tell" in idle.text()


def test_a_saving_comes_with_all_its_prices() -> None:
    text = Bill(PRICES, {"v100": 500}, {"v100": 400}, 3).text("USD")
    for number in ("0.918", "3.06", "0.2", "0.5", "trace; list price", "+62.5% saved"):
        assert number in text


def test_what_has_no_price_is_refused() -> None:
    with pytest.raises(RefusedInput, match="none for machines of class 'h100'; there are v100, t4"):
        Bill(PRICES, {"h100": 1.0}, {}, 0)
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(RefusedInput, match="expected 0 or more"):
            Price(wrong, 1.0)
        with pytest.raises(RefusedInput, match="seconds of class 't4'"):
            Bill(PRICES, {}, {"t4": wrong}, 0)
