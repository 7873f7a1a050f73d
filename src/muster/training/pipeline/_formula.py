"""The bubble of each schedule in closed form, as its authors give it."""

from __future__ import annotations

from fractions import Fraction

from muster.training.pipeline._schedule import Costs, Schedule


def bubble_formula(schedule: Schedule, cost: Costs = Costs()) -> Fraction | None:  # noqa: B008
    """The share of the ranks' time that is idle, by the published formula; None where there is none.

    With D ranks, N micro-batches, v stages per rank, and f, b, w the times of a stage's forward, of its whole backward and of
    the part of it for the weights:

    ============================ =========================================== ===========================================
    schedule                     idle time of a rank                         source
    ============================ =========================================== ===========================================
    gpipe, 1f1b                  (D-1)(f+b)                                  Huang et al. 2019; Narayanan et al. 2021
    interleaved, looped-bfs      (D-1)(f+b); N >= D                          Narayanan et al. 2021; Lamy-Poirier 2023
    zero-bubble (ZB1P)           (D-1)(f+b-2w); N >= D                       Qi et al. 2024
    zbv                          (D-1)f; f = b-w = w, N >= 2D                Qi et al. 2024
    chimera                      (D-2)(b+(N/D-1)(b-f)); b >= f, D divides N  Li and Hoefler 2021 (for N = D)
    ============================ =========================================== ===========================================

    The share is that time over itself plus the computing, Nv(f+b). With v stages per rank a stage is a v-th as long, so that
    the same model's idle time is divided by v. For GPipe and 1F1B the share is (D-1)/(N+D-1) whatever f and b are; for
    Chimera (D-2)/(2N+D-2) with b = f, and (D-2)/(1.5N+D-2) with b = 2f and N = D. Where N is a larger multiple of D and
    b > f, a gap remains between Chimera's concatenated units: the term with N/D-1, which follows from the order here and is
    not in the paper. What zbv's authors call zero is from a rank's own first action to its own last one; over the whole
    step D-1 forwards remain.

    Arguments:
        schedule: with its ranks and micro-batches.
        cost: of a stage.
    """
    d, n, v = schedule.ranks, schedule.micro_batches, schedule.stages_per_rank
    f, b, w = Fraction(cost.forward), Fraction(cost.backward), Fraction(cost.weight)
    if not cost.first_input:
        return None
    match schedule.name:
        case "gpipe" | "1f1b":
            idle = (d - 1) * (f + b)
        case "interleaved" | "looped-bfs" if n >= d or v == 1:
            idle = (d - 1) * (f + b)
        case "zero-bubble" if n >= d and f + b >= 2 * w:
            idle = (d - 1) * (f + b - 2 * w)
        case "zbv" if f == w == b - w and n >= 2 * d:
            idle = (d - 1) * f
        case "chimera" if n % d == 0 and b >= f:
            idle = (d - 2) * (b + (n // d - 1) * (b - f))
        case _:
            return None
    return idle / (n * v * (f + b) + idle)
