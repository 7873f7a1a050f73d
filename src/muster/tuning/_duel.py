"""Whether a changed job is faster: both run in turn, and the ratio within each pair counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from muster.tuning._intervals import Interval, median_interval
from muster.tuning._measured import StepTimes

#: After so many pairs that all speak against it, a challenger is given up.
_FUTILE_AFTER: Final = 2

#: After so many pairs that all show at least such a ratio, it has won: no repetition would change that.
_EVIDENT: Final = {2: 2.0, 3: 1.25}


@dataclass(frozen=True)
class Duel:
    """What came of it.

    Arguments:
        ratio: samples per second of the challenger over those of the champion.
        complete: whether as many pairs were run as it takes; an incomplete duel is no win.
        champion, challenger: of the measurements of each the one with the median speed.
    """

    ratio: Interval
    complete: bool
    champion: StepTimes
    challenger: StepTimes

    @property
    def won(self) -> bool:
        """Whether the challenger is faster: the duel is complete, and the interval of the ratio lies above 1."""
        return self.complete and self.ratio.low > 1


def duel(
    champion: Callable[[], StepTimes],
    challenger: Callable[[], StepTimes],
    *,
    pairs: int,
    time_left: Callable[[], bool] = lambda: True,
) -> Duel | None:
    """Runs both in turn, in alternating order, and compares their samples per second.

    It ends early, without a win, when the first two pairs speak against the challenger, and with one when the first two both
    show it twice as fast or the first three a quarter faster. It is not ended by any smaller lead: looking often until
    something wins finds winners that are none.

    Arguments:
        champion, challenger: measure once.
        pairs: how often each is measured.
        time_left: asked before each pair; False ends the duel.

    Returns:
        None if there was no time for a single pair.
    """
    ratios: list[float] = []
    evident = False
    mine: list[StepTimes] = []
    theirs: list[StepTimes] = []
    for pair in range(pairs):
        if not time_left():
            break
        if pair % 2 == 0:  # the challenger first: if it cannot run, no time is lost
            mine.append(challenger())
            theirs.append(champion())
        else:
            theirs.append(champion())
            mine.append(challenger())
        ratios.append(mine[-1].samples_per_s / theirs[-1].samples_per_s)
        if len(ratios) == _FUTILE_AFTER < pairs and max(ratios) < 1:
            break
        evident = min(ratios) >= _EVIDENT.get(len(ratios), math.inf)
        if evident:
            break
    if not ratios:
        return None
    return Duel(median_interval(ratios), evident or len(ratios) == pairs, _median(theirs), _median(mine))


def _median(measured: list[StepTimes]) -> StepTimes:
    return sorted(measured, key=lambda each: each.samples_per_s)[len(measured) // 2]
