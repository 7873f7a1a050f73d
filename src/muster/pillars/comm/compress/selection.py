"""Finding the largest elements of a vector without sorting it.

The threshold is estimated from a random sample, one vectorised pass finds what reaches it, and the few candidates are
cut to the wanted number exactly: hierarchical selection as in Lin et al., "Deep gradient compression" (ICLR 2018). The
estimate aims at a quarter more candidates than wanted, so the result nearly always is the exact top k.
"""

from __future__ import annotations

import numpy as np
import torch

# The sample holds about this many of the largest elements: the number of candidates then scatters by 1/16, and falling
# short of a target of 1.25 k is an event of four standard deviations.
_SAMPLED_LARGEST = 256
_AIM = 1.25
_BLOCK = 1 << 16  # elements per pass: its intermediates stay in the cache


def largest(values: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Indices, ascending int64, of the ``count`` elements of largest magnitude; what is not a number counts as infinite.

    A zero is never among them, so there may be fewer; and when the sample misled, down to three quarters of ``count``.

    Arguments:
        values: floating point, ``[n]``.
        count: 1 to n.
        generator: draws the sample; on the CPU.
    """
    numel = values.numel()
    sample_size = -(-_SAMPLED_LARGEST * numel // count)
    if sample_size > numel // 4 or _AIM * count >= numel:
        return _cut(values, reaching(values, _kth_largest(values.abs(), count)), count)
    positions = torch.randint(numel, (sample_size,), generator=generator).to(values.device)
    rank = max(1, round(_AIM * sample_size * count / numel))
    found = reaching(values, _kth_largest(values[positions].abs(), rank))
    if found.numel() < 0.75 * count:
        found = reaching(values, _kth_largest(values.abs(), count))
    return _cut(values, found, count)


def reaching(values: torch.Tensor, threshold: float) -> torch.Tensor:
    """Indices, ascending int64, of the elements whose magnitude is at least ``threshold`` or not a number; never of zeros."""
    threshold = max(threshold, torch.finfo(values.dtype).tiny)
    if values.device.type != "cpu":
        return values.abs().lt(threshold).logical_not_().nonzero().view(-1)
    found = []
    for start in range(0, values.numel(), _BLOCK):
        block = values[start : start + _BLOCK]
        # "Not less" rather than "at least": a comparison with what is not a number is false. NumPy finds the few that are
        # set some ten times faster than torch does.
        mask = block.abs().lt(threshold).logical_not_()
        found.append(np.flatnonzero(mask.numpy()) + start)
    return torch.from_numpy(np.concatenate(found)) if found else values.new_empty(0, dtype=torch.int64)


def smallest_magnitude(values: torch.Tensor) -> float:
    """The least magnitude among ``values``, ``[n]``; 0 if there are none."""
    return float(values.abs().min()) if values.numel() else 0.0


def _kth_largest(magnitudes: torch.Tensor, count: int) -> float:
    threshold = float(magnitudes.kthvalue(magnitudes.numel() - count + 1).values)
    return threshold if threshold == threshold else torch.inf


def _cut(values: torch.Tensor, found: torch.Tensor, count: int) -> torch.Tensor:
    """The ``count`` largest of the candidates ``found``; of equal ones the first."""
    if found.numel() <= count:
        return found
    magnitudes = values[found].abs_()
    threshold = _kth_largest(magnitudes, count)
    above = magnitudes.le(threshold).logical_not_().nonzero().view(-1)[:count]
    equal = magnitudes.eq(threshold).nonzero().view(-1)[: count - above.numel()]
    return found[torch.cat([above, equal]).sort().values]
