"""Rules that withstand some updates that are not what they should be: broken, or meant to do harm.

All of them look at *changes* of the model, in float64: trained weights of one model differ in their last digits only, and
distances between them drown in the rounding of float32. Of ``n`` updates up to ``f`` are bad; each counts the same, whatever
samples it claims, since a liar would claim many.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from muster.errors import RefusedInput
from muster.training.merge.rule import Array, Arrays, MergeRule, State, Update, combined
from muster.training.merge.sorting_network import mean_between, sort_columns

Merged = tuple[Mapping[str, Array], State]
Matrix = npt.NDArray[np.float64]
Block = npt.NDArray[Any]

_CACHED = 1 << 19  # bytes of a block that stay in the second-level cache


def blocks(name: str, updates: Sequence[Update]) -> Iterator[tuple[slice, Matrix]]:
    """The changes of an array, some columns at a time: where, and ``[updates, columns]`` in float64.

    The block is overwritten by the next. Where weights are float32 they are subtracted as such: exactly, as long as training
    changes a weight by less than half of it (Sterbenz), and otherwise to the last digit of the change.
    """
    trained = [np.ravel(update.arrays[name]) for update in updates]
    bases = [np.ravel(update.base[name]) for update in updates]
    precise = np.float64 if np.result_type(*trained, *bases).itemsize != 4 else np.float32
    size = trained[0].size
    columns = max(256, _CACHED // (8 * len(updates)))
    whole = np.empty((len(updates), min(size, columns)))
    change = np.empty(whole.shape[1], dtype=precise)
    for start in range(0, size, columns):
        here = slice(start, min(start + columns, size))
        block, short = whole[:, : here.stop - here.start], change[: here.stop - here.start]
        for row, after, before in zip(block, trained, bases, strict=True):
            row[:] = np.subtract(after[here], before[here], out=short, dtype=precise, casting="same_kind")
        yield here, block


def _stacked(name: str, updates: Sequence[Update]) -> Iterator[tuple[slice, Block, Block]]:
    """An array of all updates as they are, some columns at a time: where, the trained values, and their bases.

    Both are ``[updates, columns]`` of float32 or float64, the bases ``[1, columns]`` where all began from the same model. The
    blocks are overwritten by the next.
    """
    sides = [[update.arrays[name] for update in updates], [update.base[name] for update in updates]]
    if _together(updates):
        sides[1] = sides[1][:1]
    precise = np.float32 if np.result_type(*sides[0], *sides[1]).itemsize <= 4 else np.float64
    flat = [[np.ravel(array) for array in side] for side in sides]
    size = flat[0][0].size
    columns = max(256, _CACHED // (np.dtype(precise).itemsize * len(updates)))
    held = [np.empty((len(side), min(size, columns)), dtype=precise) for side in flat]
    for start in range(0, size, columns):
        here = slice(start, min(start + columns, size))
        trained, bases = (
            np.stack([array[here] for array in side], out=block[:, : here.stop - start], casting="same_kind")
            for side, block in zip(flat, held, strict=True)
        )
        yield here, trained, bases


def _together(updates: Sequence[Update]) -> bool:
    """Whether all have begun from the same model."""
    return all(update.base is updates[0].base for update in updates)


def gram(model: Arrays, updates: Sequence[Update]) -> Matrix:
    """Inner products of the changes, each less the mean of all, of shape ``(updates, updates)``."""
    from muster.training.merge.column_kernels import add_products  # numba takes half a second to import

    count = len(updates)
    rows = -(-count // 4) * 4
    products = np.zeros((rows, rows))
    for name in model:
        for _, trained, bases in _stacked(name, updates):
            add_products(trained, bases, products)
    below = np.tril(products[:count, :count])
    return below + np.tril(below, -1).T


def squared_distances(products: Matrix) -> Matrix:
    """Between all pairs, from their inner products, of shape ``(updates, updates)``."""
    squares = np.diag(products)
    found: Matrix = np.maximum(squares[:, None] + squares[None, :] - 2 * products, 0.0)
    np.fill_diagonal(found, 0.0)
    return found


def krum_scores(distances: Matrix, bad: int) -> Matrix:
    """The sum of each update's squared distances to the ``n - f - 2`` others nearest to it, of shape ``(updates,)``."""
    count = len(distances)
    near = max(1, count - bad - 2)
    others = distances[~np.eye(count, dtype=bool)].reshape(count, count - 1)
    scores: Matrix = np.sort(others, axis=1)[:, :near].sum(axis=1)
    return scores


@dataclass(frozen=True)
class _Robust(MergeRule):
    """``W <- W + A(D_1, ..., D_n)``."""

    robust: ClassVar[bool] = True

    def _least(self) -> int:
        """The fewest updates that the rule can do with."""
        return 1

    def _refuse_too_few(self, count: int) -> None:
        if count < self._least():
            raise RefusedInput(
                f"merge rule {self.name}: {count} updates are too few to withstand {getattr(self, 'f', 0)} bad ones; "
                f"it needs {self._least()}"
            )

    def __post_init__(self) -> None:
        bad = getattr(self, "f", 0)
        if bad < 0:
            raise RefusedInput(f"{self.name}: f: found {bad}; expected at least 0")


@dataclass(frozen=True)
class _ByCoordinate(_Robust):
    """Each coordinate by itself."""

    @abstractmethod
    def _kept(self, count: int) -> tuple[int, int]:
        """Of ``count`` values in ascending order the first whose mean is taken, and the first after them."""

    def _merge(self, model: Arrays, updates: Sequence[Update], state: State) -> Merged:
        self._refuse_too_few(len(updates))
        first, last = self._kept(len(updates))
        return _by_coordinate(model, updates, lambda block: mean_between(block, first, last)), state


def _by_coordinate(
    model: Arrays, updates: Sequence[Update], of_block: Callable[[Block], Matrix]
) -> dict[str, Array]:
    """``W + A(D_1, ..., D_n)`` for a function of each coordinate's values that follows when all are shifted.

    Updates that began from the same model are in the order of their weights, which need not be subtracted first.
    """
    together = _together(updates)
    merged: dict[str, Array] = {}
    for name, array in model.items():
        whole, before = np.empty_like(array, order="C"), np.ravel(array)
        after = whole.reshape(-1)
        for here, trained, bases in _stacked(name, updates):
            if together:
                change = of_block(trained) - bases[0]
            else:
                change = of_block(trained.astype(np.float64) - bases)
            np.add(before[here], change, out=after[here], casting="same_kind")
        merged[name] = whole
    return merged


def _mean_of_rows(rows: Sequence[Block]) -> Matrix:
    total = np.zeros(len(rows[0]))
    for row in rows:
        total += row
    total /= len(rows)
    return total


def _middle(count: int) -> tuple[int, int]:
    """The one or two positions in the middle of ``count`` values, as the first and the first after them."""
    return (count - 1) // 2, count // 2 + 1


@dataclass(frozen=True)
class CoordinateMedian(_ByCoordinate):
    """The median of each coordinate. Source: Yin et al., "Byzantine-robust distributed learning" (ICML 2018)."""

    name: ClassVar[str] = "median"

    def _kept(self, count: int) -> tuple[int, int]:
        return _middle(count)


@dataclass(frozen=True)
class TrimmedMean(_ByCoordinate):
    """The mean of each coordinate without its f largest and f smallest values.

    Source: Yin et al., "Byzantine-robust distributed learning" (ICML 2018).

    Arguments:
        f: bad updates; at least ``2f + 1`` are needed.
    """

    name: ClassVar[str] = "trimmed-mean"
    f: int = 1

    def _least(self) -> int:
        return 2 * self.f + 1

    def _kept(self, count: int) -> tuple[int, int]:
        return self.f, count - self.f


@dataclass(frozen=True)
class Krum(_Robust):
    """The one update that is nearest to its ``n - f - 2`` nearest others, in squared distance.

    Source: Blanchard et al., "Machine learning with adversaries: Byzantine tolerant gradient descent" (NIPS 2017).

    Arguments:
        f: bad updates; at least ``2f + 3`` are needed.
    """

    name: ClassVar[str] = "krum"
    f: int = 1

    def _least(self) -> int:
        return 2 * self.f + 3

    def select(self, model: Arrays, updates: Sequence[Update]) -> list[int]:
        """Positions of the updates whose mean is taken, best first.

        Raises:
            RefusedInput: too few updates.
        """
        self._refuse_too_few(len(updates))
        scores = krum_scores(squared_distances(gram(model, updates)), self.f)
        return np.argsort(scores, kind="stable")[: self._wanted(len(updates))].tolist()  # type: ignore[no-any-return]

    def _wanted(self, count: int) -> int:
        return 1

    def _merge(self, model: Arrays, updates: Sequence[Update], state: State) -> Merged:
        chosen = [updates[position] for position in self.select(model, updates)]
        return _mean_of(model, chosen), state


@dataclass(frozen=True)
class MultiKrum(Krum):
    """The mean of the m updates of the best Krum scores.

    Source: Blanchard et al. (NIPS 2017).

    Arguments:
        f: bad updates; at least ``2f + 3`` are needed.
        m: how many are averaged; by default ``n - f``.
    """

    name: ClassVar[str] = "multi-krum"
    m: int | None = None

    def _wanted(self, count: int) -> int:
        return count - self.f if self.m is None else min(self.m, count)


@dataclass(frozen=True)
class Bulyan(_Robust):
    """Krum picks ``n - 2f`` updates one by one; of each coordinate the ``n - 4f`` values nearest the median are averaged.

    Source: El Mhamdi, Guerraoui and Rouault, "The hidden vulnerability of distributed learning in Byzantium" (ICML 2018).

    Arguments:
        f: bad updates; at least ``4f + 3`` are needed.
    """

    name: ClassVar[str] = "bulyan"
    f: int = 1

    def _least(self) -> int:
        return 4 * self.f + 3

    def select(self, model: Arrays, updates: Sequence[Update]) -> list[int]:
        """Positions of the updates that Krum picks, in the order in which it does.

        Raises:
            RefusedInput: too few updates.
        """
        self._refuse_too_few(len(updates))
        distances = squared_distances(gram(model, updates))
        left, chosen = list(range(len(updates))), list[int]()
        while len(chosen) < len(updates) - 2 * self.f:
            scores = krum_scores(distances[np.ix_(left, left)], self.f)
            chosen.append(left.pop(int(np.argmin(scores))))
        return chosen

    def _merge(self, model: Arrays, updates: Sequence[Update], state: State) -> Merged:
        chosen = [updates[position] for position in sorted(self.select(model, updates))]
        kept = len(chosen) - 2 * self.f

        def nearest_to_median(block: Block) -> Matrix:
            rows, count = sort_columns(block), len(block)
            median = _mean_of_rows(rows[slice(*_middle(count))])
            # Sorted values that are nearest to a point lie side by side: the window whose farther end is nearest.
            farther = np.stack(
                [
                    np.maximum(median - rows[first], rows[first + kept - 1] - median)
                    for first in range(count - kept + 1)
                ]
            )
            first = np.argmin(farther, axis=0)
            mean = np.empty(len(median))
            for window in range(count - kept + 1):
                here = first == window
                if here.any():
                    mean[here] = _mean_of_rows([row[here] for row in rows[window : window + kept]])
            return mean

        return _by_coordinate(model, chosen, nearest_to_median), state


@dataclass(frozen=True)
class GeometricMedian(_Robust):
    """The point with the least sum of distances to all updates, by the smoothed Weiszfeld algorithm.

    All iterates are weighted means of the updates, so their distances follow from inner products that are computed once.

    Source: Pillutla, Kakade and Harchaoui, "Robust aggregation for federated learning" (IEEE TSP 2022).

    Arguments:
        smoothing: distances count as at least this share of the median distance from the mean.
        tolerance: ends when no weight changes by more.
        most: iterations.
    """

    name: ClassVar[str] = "geometric-median"
    smoothing: float = 1e-6
    tolerance: float = 1e-10
    most: int = 1000

    def weights(self, products: Matrix) -> Matrix:
        """The weight of each update in the geometric median, of shape ``(updates,)``; their sum is 1.

        Arguments:
            products: inner products of the centred updates, as `gram` gives them.
        """
        squares = np.diag(products)
        weights = np.full(len(products), 1 / len(products))
        least = self.smoothing * float(np.median(np.sqrt(np.maximum(squares, 0.0))))
        for _ in range(self.most):
            towards = products @ weights
            away = np.sqrt(np.maximum(weights @ towards - 2 * towards + squares, 0.0))
            inverse = 1 / np.maximum(away, max(least, np.finfo(np.float64).tiny))
            following = inverse / inverse.sum()
            settled = float(np.abs(following - weights).max()) <= self.tolerance
            weights = following
            if settled:
                break
        return weights

    def _merge(self, model: Arrays, updates: Sequence[Update], state: State) -> Merged:
        weights = self.weights(gram(model, updates))
        return {
            name: array + combined([update.delta(name) for update in updates], weights)
            for name, array in model.items()
        }, state


@dataclass(frozen=True)
class NormClipping(_Robust):
    """The mean of all changes, those longer than a bound scaled down to it.

    Source: Sun et al., "Can you really backdoor federated learning?" (arXiv:1911.07963).

    Arguments:
        bound: of the Euclidean norm; None: the median norm of the round.
    """

    name: ClassVar[str] = "norm-clipping"
    bound: float | None = None

    def _merge(self, model: Arrays, updates: Sequence[Update], state: State) -> Merged:
        norms = np.sqrt(_squared_norms(model, updates))
        bound = float(np.median(norms)) if self.bound is None else self.bound
        scales = np.minimum(1.0, bound / np.maximum(norms, np.finfo(np.float64).tiny)) / len(updates)
        return {
            name: array + combined([update.delta(name) for update in updates], scales)
            for name, array in model.items()
        }, state


@dataclass(frozen=True)
class Zeno(_Robust):
    """The mean without the b updates of the worst scores ``l(W) - l(W + D) - rho |D|^2``.

    Source: Xie, Koyejo and Gupta, "Zeno: distributed stochastic gradient descent with suspicion-based fault-tolerance" (ICML
    2019). ``l`` is measured where the rule runs, on data that the coordinator has itself.

    Arguments:
        loss: of a model, on some data of the coordinator's.
        f: how many updates are dropped, b.
        rho: how much length counts against an update.
    """

    name: ClassVar[str] = "zeno"
    loss: Callable[[Arrays], float]
    f: int = 1
    rho: float = 1e-3

    def _least(self) -> int:
        return self.f + 1

    def scores(self, model: Arrays, updates: Sequence[Update]) -> Matrix:
        """The score of each update, of shape ``(updates,)``."""
        before = self.loss(model)
        after = np.array(
            [
                self.loss({name: array + update.delta(name) for name, array in model.items()})
                for update in updates
            ]
        )
        found: Matrix = before - after - self.rho * _squared_norms(model, updates)
        return np.where(np.isfinite(found), found, -np.inf)

    def _merge(self, model: Arrays, updates: Sequence[Update], state: State) -> Merged:
        self._refuse_too_few(len(updates))
        best = np.argsort(-self.scores(model, updates), kind="stable")[: len(updates) - self.f]
        return _mean_of(model, [updates[position] for position in sorted(best.tolist())]), state


@dataclass(frozen=True)
class ComparativeElimination(_Robust):
    """The mean without the f updates that lie farthest from the model.

    Source: Gupta, Doan and Vaidya, "Byzantine fault-tolerance in federated local SGD under 2f-redundancy" (IEEE TCNS 2023).

    Arguments:
        f: bad updates; at least ``2f + 1`` are needed.
    """

    name: ClassVar[str] = "comparative-elimination"
    f: int = 1

    def _least(self) -> int:
        return 2 * self.f + 1

    def _merge(self, model: Arrays, updates: Sequence[Update], state: State) -> Merged:
        self._refuse_too_few(len(updates))
        near = np.argsort(_squared_norms(model, updates), kind="stable")[: len(updates) - self.f]
        return _mean_of(model, [updates[position] for position in sorted(near.tolist())]), state


def _squared_norms(model: Arrays, updates: Sequence[Update]) -> Matrix:
    total = np.zeros(len(updates))
    for name in model:
        for _, block in blocks(name, updates):
            total += np.einsum("ij,ij->i", block, block)
    return total


def _mean_of(model: Arrays, chosen: Sequence[Update]) -> dict[str, Array]:
    even = np.full(len(chosen), 1 / len(chosen))
    return {
        name: array + combined([update.delta(name) for update in chosen], even)
        for name, array in model.items()
    }
