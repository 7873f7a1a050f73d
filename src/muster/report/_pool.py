"""The figures of a pool's run: leases on lanes per worker, pillars, staleness, what was refused, what it cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from bokeh.models import ColumnDataSource, FixedTicker, HoverTool, Range1d

from muster.engine.run_folder import RunFolder
from muster.report._metrics import Metric
from muster.report.colours import LOST_COLOUR, OUTCOME_COLOURS, PILLAR_COLOURS, PILLAR_LABELS, STACKED
from muster.report.figures import FAINT, INK, blank_figure
from muster.training.pool.account import (
    PILLARS,
    Life,
    account,
    is_pool,
    leases,
    lives,
    price_of,
    slot_of,
)

MOST_LANES: Final = 64
MOST_LEASES: Final = 20_000
MOST_WORKERS: Final = 64
_EVIDENCE: Final = ("refused", "late", "expired", "failed", "short", "caught", "retracted")


@dataclass(frozen=True)
class Slot:
    """One place of the pool: the worker there and those that came after it."""

    number: int
    workers: int
    killed: int
    lost: int
    alive_s: float
    accepted: int
    samples: int
    seconds: dict[str, float]


@dataclass(frozen=True)
class PoolFigures:
    """What a pool has come to.

    Arguments:
        rule: the merge rule.
        told: `muster.training.pool.account.account`.
        rows: of `leases`.
        workers: all that there were.
        slots: sums by place.
        totals: seconds of all workers by pillar.
        samples_per_s: in accepted updates, from the first lease to the last update; None before that.
        median_lease_s: of accepted leases.
        start_up_s: until the first lease was granted.
        evidence: (kind, worker, count, last detail) of what was not as it should be.
        sentence: what limits the pool.
        currency: of prices.
    """

    rule: str
    told: dict[str, Any]
    rows: Sequence[dict[str, Any]]
    workers: Sequence[Life]
    slots: Sequence[Slot]
    totals: dict[str, float]
    samples_per_s: float | None
    median_lease_s: float | None
    start_up_s: float | None
    evidence: Sequence[tuple[str, str, int, str]]
    sentence: str
    currency: str

    @property
    def shares(self) -> dict[str, float]:
        """Each pillar's share of the workers' time."""
        whole = sum(self.totals.values())
        return {name: value / whole for name, value in self.totals.items()} if whole else {}


def pool_figures(run: RunFolder) -> PoolFigures | None:
    """Computes them; None where the run is no pool's."""
    if not is_pool(run):
        return None
    rows, workers, told = leases(run), lives(run), account(run)
    accepted = [row for row in rows if row["outcome"] == "accepted"]
    totals = {name: float(sum(row[name] for row in rows)) for name in PILLARS}
    price = price_of(run)
    span = max((row["ended"] for row in accepted), default=0.0) - min(
        (row["granted"] for row in rows), default=0.0
    )
    return PoolFigures(
        rule=_rule(run),
        told=told,
        rows=rows,
        workers=workers,
        slots=_slots(rows, workers),
        totals=totals,
        samples_per_s=told["samples"] / span if accepted and span > 0 else None,
        median_lease_s=float(np.median([row["ended"] - row["granted"] for row in accepted]))
        if accepted
        else None,
        start_up_s=min((row["granted"] for row in rows), default=None),
        evidence=_evidence(run),
        sentence=_sentence(totals),
        currency=price.currency if price else "",
    )


def _rule(run: RunFolder) -> str:
    for event in run.events():
        if event["kind"] == "pool_started":
            return str(event["detail"].get("rule", ""))
    return ""


def _slots(rows: Sequence[dict[str, Any]], workers: Sequence[Life]) -> list[Slot]:
    numbers = sorted({life.slot for life in workers} | {slot_of(row["worker"]) for row in rows})
    end = max([row["ended"] for row in rows] + [life.ended or life.joined for life in workers], default=0.0)
    found = []
    for number in numbers:
        here = [life for life in workers if life.slot == number]
        mine = [row for row in rows if slot_of(row["worker"]) == number]
        done = [row for row in mine if row["outcome"] == "accepted"]
        found.append(
            Slot(
                number,
                len(here),
                sum(life.state == "killed" for life in here),
                sum(life.state == "lost" for life in here),
                sum((end if life.ended is None else life.ended) - life.joined for life in here),
                len(done),
                sum(row["samples"] for row in done),
                {name: float(sum(row[name] for row in mine)) for name in PILLARS},
            )
        )
    return found


def _evidence(run: RunFolder) -> list[tuple[str, str, int, str]]:
    counts: Counter[tuple[str, str]] = Counter()
    last: dict[tuple[str, str], str] = {}
    for event in run.events():
        if event["kind"] in _EVIDENCE and isinstance(event["detail"], dict):
            key = (event["kind"], str(event["detail"].get("worker", "")))
            counts[key] += 1
            last[key] = str(event["detail"].get("what", ""))
    return [(kind, who, count, last[kind, who]) for (kind, who), count in sorted(counts.items())]


def _sentence(totals: dict[str, float]) -> str:
    whole = sum(totals.values())
    if not whole:
        return "no lease has ended yet."
    name = max(totals, key=lambda each: totals[each])
    of = {
        "io": "waiting for data",
        "compute": "computing",
        "comm": "with models and updates on their way",
        "idle": "waiting for a lease",
        "lost": "on leases that brought nothing",
    }
    return (
        f"workers spent most of their time {of[name]}: {totals[name] / whole:.1%} of {whole:,.0f} s in all."
    )


# ---- plots ----------------------------------------------------------------------------------------------------------


def quality_over_time(metric: Metric, run: RunFolder) -> Any | None:
    """A metric over the seconds of the run; None with a single point."""
    rows = [
        row
        for row in run.table("metrics").to_pylist()
        if row["name"] == metric.name and row["split"] == metric.split and not row["item"]
    ]
    rows.sort(key=lambda row: row["time"])
    if len(rows) < 2:
        return None
    plot = blank_figure(height=260, x_label="seconds since the run began", y_label=metric.name)
    source = ColumnDataSource(
        {"time": [row["time"] for row in rows], "value": [row["value"] for row in rows]}
    )
    plot.line("time", "value", source=source, line_width=1.8, name=INK)
    dots = plot.scatter("time", "value", source=source, size=6, name=INK)
    tips = [("at", "@time{0.0} s"), (metric.name, "@value{0.0000}")]
    plot.add_tools(HoverTool(tooltips=tips, renderers=[dots]))
    return plot


def gantt(figures: PoolFigures) -> Any | None:
    """Leases on a lane for each place of the pool, coloured by how they ended, with kills marked; None without leases."""
    rows = [row for row in figures.rows if slot_of(row["worker"]) < MOST_LANES][-MOST_LEASES:]
    if not rows:
        return None
    lanes = sorted({slot_of(row["worker"]) for row in rows} | {life.slot for life in figures.workers})
    lanes = lanes[:MOST_LANES]
    plot = blank_figure(
        height=110 + 24 * len(lanes),
        x_label="seconds since the run began",
        y_label="worker",
        active_drag="xpan",
    )
    end = max(row["ended"] for row in rows)
    begin = min([life.joined for life in figures.workers] + [row["granted"] for row in rows])
    margin = 0.02 * (end - begin)
    plot.x_range = Range1d(start=max(0.0, begin - margin), end=end + margin, bounds="auto")
    plot.y_range = Range1d(start=max(lanes) + 0.6, end=-0.6)
    plot.yaxis.ticker = FixedTicker(ticks=lanes)
    plot.ygrid.visible = False
    alive = [life for life in figures.workers if life.slot in lanes]
    plot.hbar(
        y=[life.slot for life in alive],
        left=[life.joined for life in alive],
        right=[end if life.ended is None else life.ended for life in alive],
        height=0.16,
        fill_alpha=0.4,
        line_color=None,
        name=FAINT,
    )
    source = ColumnDataSource(
        {
            "slot": [slot_of(row["worker"]) for row in rows],
            "left": [row["granted"] for row in rows],
            "right": [row["ended"] for row in rows],
            "seconds": [row["ended"] - row["granted"] for row in rows],
            "colour": [OUTCOME_COLOURS.get(row["outcome"], LOST_COLOUR) for row in rows],
            "worker": [row["worker"] for row in rows],
            "outcome": [row["outcome"] for row in rows],
            "unit": [row["unit"] for row in rows],
            "samples": [row["samples"] for row in rows],
            "reason": [(row["reason"] or "–")[:120] for row in rows],
        }
    )
    boxes = plot.hbar(
        y="slot",
        left="left",
        right="right",
        height=0.62,
        source=source,
        fill_color="colour",
        line_width=1,
        name="timeline boxes",
    )
    tips = [
        ("worker", "@worker"),
        ("unit", "@unit"),
        ("outcome", "@outcome"),
        ("takes", "@seconds{0.000} s"),
        ("samples", "@samples"),
        ("because", "@reason"),
    ]
    plot.add_tools(HoverTool(tooltips=tips, renderers=[boxes], point_policy="follow_mouse"))
    killed = [life for life in alive if life.state in ("killed", "lost") and life.ended is not None]
    if killed:
        marks = ColumnDataSource(
            {
                "time": [life.ended for life in killed],
                "slot": [life.slot for life in killed],
                "worker": [life.worker for life in killed],
                "state": [life.state for life in killed],
            }
        )
        crosses = plot.scatter("time", "slot", source=marks, marker="x", size=13, line_width=2.5, name=INK)
        plot.add_tools(
            HoverTool(tooltips=[("worker", "@worker"), ("", "@state at @time{0.0} s")], renderers=[crosses])
        )
    return plot


def pillars_per_slot(slots: Sequence[Slot]) -> Any | None:
    """A stacked bar for each place of the pool, in seconds; None without leases."""
    slots = [slot for slot in slots if sum(slot.seconds.values()) > 0][:MOST_LANES]
    if not slots:
        return None
    names = (*STACKED, "lost")
    data: dict[str, Any] = {"slot": [slot.number for slot in slots]}
    below = np.zeros(len(slots))
    for name in names:
        data[f"{name}_low"] = below
        data[name] = np.array([slot.seconds[name] for slot in slots])
        below = below + data[name]
        data[f"{name}_high"] = below
    height = int(np.clip(26 * len(slots), 150, 700)) + 70
    plot = blank_figure(height=height, x_label="seconds", y_label="worker")
    source = ColumnDataSource(data)
    drawn = [
        plot.hbar(
            y="slot",
            left=f"{name}_low",
            right=f"{name}_high",
            height=0.7,
            source=source,
            fill_color=PILLAR_COLOURS.get(name, LOST_COLOUR),
            line_color=None,
            hatch_pattern="right_diagonal_line" if name == "lost" else None,
            hatch_color="white",
            hatch_alpha=0.5,
        )
        for name in names
    ]
    plot.x_range = Range1d(start=0, end=float(below.max() or 1.0) * 1.02)
    last = max(slot.number for slot in slots)
    plot.y_range = Range1d(start=last + 0.6, end=-0.6)
    plot.xgrid.visible, plot.ygrid.visible = True, False
    plot.yaxis.ticker = FixedTicker(ticks=data["slot"])
    tips = [("worker", "@slot")]
    tips += [(PILLAR_LABELS.get(name, "lost"), f"@{name}{{0.00}} s") for name in names]
    plot.add_tools(HoverTool(tooltips=tips, mode="hline", renderers=drawn[:1]))
    return plot


def staleness_figure(rows: Sequence[dict[str, Any]]) -> Any | None:
    """Merges between an update's model and its own merge, over arrivals; None where every update was fresh."""
    accepted = sorted(
        (row for row in rows if row["outcome"] == "accepted" and row["number"] is not None),
        key=lambda row: row["number"],
    )[-MOST_LEASES:]
    stale = [row["number"] - 1 - row["base_version"] for row in accepted]
    if not any(stale):
        return None
    plot = blank_figure(height=260, x_label="arrival", y_label="staleness (merges)")
    source = ColumnDataSource(
        {
            "arrival": [row["number"] for row in accepted],
            "stale": stale,
            "worker": [row["worker"] for row in accepted],
        }
    )
    dots = plot.scatter("arrival", "stale", source=source, size=5, alpha=0.6, name=INK)
    plot.y_range.start = 0
    tips = [("arrival", "@arrival"), ("staleness", "@stale"), ("worker", "@worker")]
    plot.add_tools(HoverTool(tooltips=tips, renderers=[dots]))
    return plot
