"""What checks are worth and what they cost, in closed form.

A worker takes ``n`` leases and lies in each with probability ``q``. Each of its results is checked with probability
``p``, and who is caught loses all that was believed at its word. A lie then survives only if none of all its lies was
checked, so with ``L`` lies, binomial in ``n`` and ``q``:

    P(never caught)  = E[(1 - p)^L] = (1 - pq)^n
    E[survivors]     = E[L (1 - p)^L] = n q (1 - p) (1 - pq)^(n-1)
    E[lies told]     = (1 - (1 - pq)^n) / p                    (it stops when it is caught: one in p lies catches it)
    E[leases redone] = (1 - p) (1 - (1 - a)^m (1 + m a)) / a   with a = pq and m = n - 1: its unconfirmed results then

Every policy that draws its checks blindly has the first two, whatever the order in which it spends them: with a share
``p`` of all results checked, no more than that can be seen. What helps is to see more for the same work. A recomputation
on a trusted machine looks at one result. A second result by another worker that does not know which of the two it is
looks at two, so a worker is seen in ``2p / (1 + p)`` of its leases where the extra work is ``p``.
"""

from __future__ import annotations


def never_caught(leases: int, lying: float, checked: float) -> float:
    """The probability that a worker is not caught in so many leases."""
    return float((1 - lying * checked) ** leases)


def surviving_lies(leases: int, lying: float, checked: float) -> float:
    """How many lies stay in the model, on average."""
    return leases * lying * (1 - checked) * never_caught(leases - 1, lying, checked)


def lies_told(leases: int, lying: float, checked: float) -> float:
    """How many lies are told before the worker is caught, on average."""
    return (1 - never_caught(leases, lying, checked)) / checked


def survival(leases: int, lying: float, checked: float) -> float:
    """The share of the lies told that stays in the model."""
    return surviving_lies(leases, lying, checked) / lies_told(leases, lying, checked)


def leases_redone(leases: int, lying: float, checked: float) -> float:
    """How many leases are done again after the worker was caught, on average."""
    each = lying * checked
    others = leases - 1
    before = 1 - (1 - each) ** others * (1 + others * each)
    return (1 - checked) * before / each


def seen_by_peers(share: float) -> float:
    """The share of a worker's leases that is compared, where peers check each other and a share of all units is checked."""
    return 2 * share / (1 + share)
