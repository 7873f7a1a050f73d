"""What a run on preemptible machines has cost, and what the same work would have cost on demand: never without the prices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from muster.errors import RefusedInput


@dataclass(frozen=True)
class Price:
    """Of one machine of a class, in any one currency.

    Arguments:
        per_hour: as it is had here, such as preemptible.
        on_demand_per_hour: of the same machine when it cannot be taken away.
        source: where both are from, in words.

    Raises:
        RefusedInput: a price is negative or no number.
    """

    per_hour: float
    on_demand_per_hour: float
    source: str = "as given"

    def __post_init__(self) -> None:
        for name in ("per_hour", "on_demand_per_hour"):
            if not 0 <= getattr(self, name) < math.inf:
                raise RefusedInput(f"price: {name}: found {getattr(self, name):g}; expected 0 or more")


@dataclass(frozen=True)
class Bill:
    """The cost of a run.

    Each machine is paid for all the time that it is there: while it starts, works, waits, and for work that is lost.
    On demand the same work is paid for as long as an undisturbed machine takes for it.

    Arguments:
        prices: by class of machine.
        alive_s: seconds that machines of each class were there, together.
        work_s: seconds that undisturbed machines of each class would take for the accepted work, together.
        accepted: updates.

    Raises:
        RefusedInput: a class has no price, or a time is negative.
    """

    prices: Mapping[str, Price]
    alive_s: Mapping[str, float]
    work_s: Mapping[str, float]
    accepted: int

    def __post_init__(self) -> None:
        for seconds in (self.alive_s, self.work_s):
            for name, value in seconds.items():
                if name not in self.prices:
                    raise RefusedInput(
                        f"price: none for machines of class {name!r}; there are {', '.join(self.prices) or 'none'}"
                    )
                if not 0 <= value < math.inf:
                    raise RefusedInput(f"seconds of class {name!r}: found {value:g}; expected 0 or more")

    @property
    def cost(self) -> float:
        """Of the run."""
        return math.fsum(s / 3600 * self.prices[name].per_hour for name, s in self.alive_s.items())

    @property
    def on_demand(self) -> float:
        """Of the same work on machines that stay."""
        return math.fsum(s / 3600 * self.prices[name].on_demand_per_hour for name, s in self.work_s.items())

    @property
    def per_update(self) -> float | None:
        """Of the run, for each accepted update; None if there is none."""
        return self.cost / self.accepted if self.accepted else None

    @property
    def saving(self) -> float | None:
        """The share of the cost on demand that was not spent, negative where more was; None where that cost is 0."""
        return 1 - self.cost / self.on_demand if self.on_demand else None

    def text(self, currency: str = "USD") -> str:
        """All of it in words, with the prices."""
        prices = "; ".join(
            f"{name} {price.per_hour:g} per hour, on demand {price.on_demand_per_hour:g} ({price.source})"
            for name, price in self.prices.items()
        )
        each = "no update was accepted" if self.per_update is None else f"{self.per_update:.3g} an update"
        saving = "no saving to tell" if self.saving is None else f"{self.saving:+.1%} saved"
        return (
            f"{self.cost:.4g} {currency} for {sum(self.alive_s.values()):,.0f} s of machines, {each}; on demand "
            f"{self.on_demand:.4g} {currency} for {sum(self.work_s.values()):,.0f} s; {saving}, at prices in {currency}: "
            f"{prices}"
        )
