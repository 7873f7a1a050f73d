"""Measured qualities over the run: which belong together, where they began and where they ended."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from muster.report._columns import Columns


@dataclass(frozen=True)
class Metric:
    """One metric of one split, the mean over its items or one item.

    Arguments:
        name: as recorded.
        split: such as `held-out`; may be empty.
        item: empty for the mean over the items.
        steps: [points], rising.
        values: [points].
        baselines: metrics to compare with: those named ``<name>_<something>``, such as `psnr_y_bicubic`; one that
            ends in ``_gain`` is a difference, on a scale of its own, and stands alone.
    """

    name: str
    split: str
    item: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    baselines: tuple[Metric, ...] = field(default=())

    @property
    def last(self) -> float:
        """The value at the last step at which it was measured."""
        return self.values[-1]

    @property
    def untrained(self) -> float | None:
        """The value at step 0, of the untrained model; None where it was not measured."""
        return self.values[0] if self.steps[0] == 0 else None

    @property
    def gain(self) -> float | None:
        """Last value minus that at step 0."""
        return None if self.untrained is None or len(self.values) < 2 else self.last - self.untrained


def metrics(table: Columns) -> tuple[Metric, ...]:
    """All metrics in order of name, each with its baselines; at each step the last attempt's value.

    Arguments:
        table: columns of `metrics`, [rows] each.
    """
    order = np.lexsort((np.nan_to_num(table["time"]), table["attempt"]))
    curves: dict[tuple[str, str, str], dict[int, float]] = {}
    for row in order:
        if np.isfinite(table["value"][row]):
            key = (str(table["split"][row]), str(table["name"][row]), str(table["item"][row]))
            curves.setdefault(key, {})[int(table["step"][row])] = float(table["value"][row])
    found = []
    for (split, name, item), curve in sorted(curves.items()):
        steps = sorted(curve)
        found.append(Metric(name, split, item, tuple(steps), tuple(curve[step] for step in steps)))
    return tuple(_with_baselines(metric, found) for metric in found if _leader(metric, found) is None)


def _leader(metric: Metric, among: list[Metric]) -> Metric | None:
    """The metric of the same split and item whose name this one extends by ``_<something>``."""
    leaders = [
        other
        for other in among
        if (other.split, other.item) == (metric.split, metric.item)
        and metric.name.startswith(f"{other.name}_")
        and not metric.name.endswith("_gain")
    ]
    return min(leaders, key=lambda other: len(other.name), default=None)


def _with_baselines(metric: Metric, among: list[Metric]) -> Metric:
    followers = tuple(other for other in among if _leader(other, among) is metric)
    return Metric(metric.name, metric.split, metric.item, metric.steps, metric.values, followers)
