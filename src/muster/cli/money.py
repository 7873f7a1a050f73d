"""What a run has cost, in a sentence that names the prices."""

from __future__ import annotations

from typing import Any


def sentence(cost: dict[str, Any]) -> str:
    """A bill of `muster.training.pool.account` in words.

    What the same work would cost on demand is predicted: it is the time of the accepted leases, on machines that stay.
    """
    currency = cost["currency"]
    prices = "; ".join(
        f"{name} {each['per_hour']:g} an hour, on demand {each['on_demand']:g}"
        for name, each in cost["prices"].items()
    )
    update = "" if cost["per_update"] is None else f", {cost['per_update']:.3g} an accepted update"
    saving = "" if cost["saving"] is None else f" ({cost['saving']:+.1%} saved)"
    return (
        f"{cost['cost']:.4g} {currency}{update}; on demand {cost['on_demand']:.4g} {currency} predicted{saving}; "
        f"prices in {currency} of how.price: {prices}"
    )
