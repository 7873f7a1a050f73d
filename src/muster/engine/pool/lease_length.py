"""How long a lease should be on machines that vanish: long enough to be worth its transfers, short enough to be finished."""

from __future__ import annotations

import math

from muster.errors import RefusedInput


def expected_s(work_s: float, *, interruptions_per_s: float, restart_s: float = 0.0) -> float:
    """The expected time to finish a piece of work that every interruption begins anew, in seconds.

    ``E[T] = (1/lambda + R) (exp(lambda s) - 1)``: interruptions are a Poisson process of rate lambda, each costs the work so
    far and R until a machine is there again; a renewal argument gives the formula (Daly, "A higher order estimate of the
    optimum checkpoint interval for restart dumps", FGCS 2006, with one segment).

    Arguments:
        work_s: the length of the piece, s.
        interruptions_per_s: lambda.
        restart_s: R.

    Raises:
        RefusedInput: a negative number.
    """
    for name, value in (
        ("work_s", work_s),
        ("interruptions_per_s", interruptions_per_s),
        ("restart_s", restart_s),
    ):
        if not value >= 0:
            raise RefusedInput(f"{name}: found {value}; expected at least 0")
    if interruptions_per_s == 0:
        return work_s
    return (1 / interruptions_per_s + restart_s) * math.expm1(interruptions_per_s * work_s)


def best_length_s(overhead_s: float, *, interruptions_per_s: float) -> float:
    """The useful work of a lease that takes the least expected time for each second of it, in seconds.

    Of a lease of ``s`` useful seconds and ``o`` of transfers and merging the cost is ``E[T](s + o)/s``. Its least value is
    where ``1 - x = exp(-x - lambda o)`` with ``x = lambda s``, whatever a restart costs; for rare interruptions that is
    about ``sqrt(2 o/lambda)``, Young's rule.

    Arguments:
        overhead_s: o, above 0.
        interruptions_per_s: lambda, above 0.

    Raises:
        RefusedInput: a number that is not above 0.
    """
    for name, value in (("overhead_s", overhead_s), ("interruptions_per_s", interruptions_per_s)):
        if not 0 < value < math.inf:
            raise RefusedInput(f"{name}: found {value}; expected above 0")
    shift = interruptions_per_s * overhead_s
    low, high = 0.0, 1.0
    while high - low > 1e-15 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        # 1 - x - exp(-x - shift), without cancellation where both are small
        if -math.expm1(-middle - shift) > middle:
            low = middle
        else:
            high = middle
    return high / interruptions_per_s
