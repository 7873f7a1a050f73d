"""How a data set is dealt to parties: evenly, or unevenly as federated data are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from muster.errors import RefusedInput

Positions = list[npt.NDArray[np.int64]]


def even(samples: int, parties: int, *, seed: int = 0) -> Positions:
    """Positions of the samples of each party: shuffled and dealt in equal parts, to one sample.

    Raises:
        RefusedInput: fewer samples than parties, or no party.
    """
    _check(samples, parties)
    order = np.random.default_rng([seed, 0]).permutation(samples)
    return [np.sort(part) for part in np.array_split(order, parties)]


def dirichlet(
    labels: Sequence[int] | npt.NDArray[np.integer],
    parties: int,
    alpha: float,
    *,
    seed: int = 0,
    least: int = 1,
) -> Positions:
    """Positions of the samples of each party, whose shares of every class follow a Dirichlet distribution.

    The smaller alpha, the fewer classes a party sees; 0.1 is a common choice for very uneven data.

    Source: Hsu, Qi and Brown, "Measuring the effects of non-identical data distribution for federated visual
    classification" (arXiv:1909.06335); by class as in Yurochkin et al. (ICML 2019).

    Arguments:
        labels: of all samples.
        parties: how many.
        alpha: concentration, above 0.
        seed: of the draw.
        least: samples that each party must get; it is drawn again until they do.

    Raises:
        RefusedInput: arguments that make no sense, or a thousand draws leave a party with fewer.
    """
    classes = np.asarray(labels)
    _check(len(classes), parties * max(1, least))
    if not alpha > 0:
        raise RefusedInput(f"dirichlet: alpha: found {alpha}; expected a number above 0")
    generator = np.random.default_rng([seed, 1])
    for _ in range(1000):
        parts: list[list[npt.NDArray[np.int64]]] = [[] for _ in range(parties)]
        for label in np.unique(classes):
            members = generator.permutation(np.flatnonzero(classes == label))
            ends = np.cumsum(generator.dirichlet(np.full(parties, alpha)))[:-1]
            for part, dealt in zip(
                parts, np.split(members, np.round(ends * len(members)).astype(int)), strict=True
            ):
                part.append(dealt)
        dealt_out = [np.sort(np.concatenate(part)) for part in parts]
        if min(map(len, dealt_out)) >= least:
            return dealt_out
    raise RefusedInput(
        f"dirichlet: no draw of a thousand gives each of {parties} parties {least} samples; take a larger alpha or "
        "fewer parties"
    )


def by_class(
    labels: Sequence[int] | npt.NDArray[np.integer], parties: int, *, stretches: int = 2, seed: int = 0
) -> Positions:
    """Positions of the samples of each party: sorted by class, cut into equal stretches, a few of which go to each party.

    With two stretches most parties see two classes.

    Source: McMahan et al., "Communication-efficient learning of deep networks from decentralized data" (AISTATS 2017),
    section 3.

    Arguments:
        labels: of all samples.
        parties: how many.
        stretches: that each party gets.
        seed: of the deal.

    Raises:
        RefusedInput: fewer samples than stretches, or no party.
    """
    classes = np.asarray(labels)
    if stretches < 1:
        raise RefusedInput(f"by_class: stretches: found {stretches}; expected at least 1")
    _check(len(classes), parties * stretches)
    generator = np.random.default_rng([seed, 2])
    shuffled = generator.permutation(len(classes))  # which samples of a class come together is drawn, too
    cut = np.array_split(shuffled[np.argsort(classes[shuffled], kind="stable")], parties * stretches)
    dealt = generator.permutation(parties * stretches).reshape(parties, stretches)
    return [np.sort(np.concatenate([cut[each] for each in mine])) for mine in dealt]


def _check(samples: int, parties: int) -> None:
    if parties < 1 or samples < parties:
        raise RefusedInput(f"{samples} samples cannot be dealt to {parties} parties; give each at least one")
