"""The generator of availability against the theory of what it draws."""

from __future__ import annotations

import math

import pytest

from muster.errors import RefusedInput
from muster.fleet import generated


@pytest.mark.parametrize(("rate", "absent"), [(1 / 30, 5.0), (0.2, 20.0), (1e-3, 1.0)])
def test_instances_go_at_the_rate_and_are_away_as_long_as_asked(rate: float, absent: float) -> None:
    made = generated(20, interruptions_per_s=rate, absent_s=absent, length_s=1000 / rate, seed=0)
    # In so many instance-seconds as there are, interruptions are Poisson: one standard deviation is the root of their number.
    expected = rate * made.instance_seconds()
    assert abs(made.interruptions - expected) < 4 * math.sqrt(expected)
    # An alternating renewal process is there for a share 1/(1 + lambda d) of a long time; its standard deviation over n
    # cycles of two exponential times is about lambda d/(1 + lambda d)^2 * sqrt(2/n) (the delta method).
    share, load = made.instance_seconds() / (20 * made.length_s), rate * absent
    spread = load / (1 + load) ** 2 * math.sqrt(2 / expected)
    assert abs(share - 1 / (1 + load)) < 4 * spread + 1e-3  # all of them are there at first
    assert made.most == 20


def test_times_between_interruptions_are_exponential() -> None:
    """Of one instance: their mean and standard deviation are equal, and 1/e of them are longer than the mean."""
    made = generated(1, interruptions_per_s=0.1, absent_s=3.0, length_s=200_000, seed=4)
    pairs = list(zip(made.times_s, made.times_s[1:], made.instances, strict=False))
    there = [end - begin for begin, end, count in pairs if count == 1]
    mean = sum(there) / len(there)
    deviation = math.sqrt(sum((each - mean) ** 2 for each in there) / len(there))
    assert mean == pytest.approx(10, rel=4 / math.sqrt(len(there)))
    assert deviation / mean == pytest.approx(1, rel=0.05)
    assert sum(each > mean for each in there) / len(there) == pytest.approx(math.exp(-1), abs=0.02)


def test_a_seed_gives_one_result() -> None:
    def made(seed: int, instances: int = 8) -> object:
        return generated(instances, interruptions_per_s=0.1, absent_s=5, length_s=500, seed=seed)

    assert made(1) == made(1)
    assert made(1) != made(2)


def test_without_interruptions_all_stay() -> None:
    for rate, absent in ((0.0, 5.0), (0.1, 0.0)):
        made = generated(3, interruptions_per_s=rate, absent_s=absent, length_s=100, seed=0, notice_s=2)
        assert (made.instances, made.notice_s) == ((3,), 2)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"instances": 0}, "instances: found 0"),
        ({"interruptions_per_s": -1.0}, "interruptions_per_s: found -1"),
        ({"absent_s": math.nan}, "absent_s: found nan"),
        ({"length_s": 0.0}, "length_s: found 0"),
        ({"interruptions_per_s": 1e12}, "gives more than"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, float], told: str) -> None:
    whole = {"instances": 2, "interruptions_per_s": 0.1, "absent_s": 5.0, "length_s": 100.0} | change
    with pytest.raises(RefusedInput, match=told):
        generated(**whole, seed=0)  # type: ignore[arg-type]
