"""The timeline of the sampled steps: spans on lanes per rank, one sampled step at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from bokeh.models import ColumnDataSource, FixedTicker, HoverTool, Range1d

from muster.report._columns import Columns, Floats, Integers
from muster.report.colours import span_colour
from muster.report.figures import blank_figure

MOST_SPANS: Final = 8000
MOST_RANKS: Final = 16


@dataclass(frozen=True)
class Timeline:
    """What page.js draws into the figure called `timeline`.

    Arguments:
        figure: without data: the steps share one source.
        data: ``names`` and ``colours`` of the kinds of spans; ``lanes`` and how many ``rows`` each needs; and
            ``steps``, each its number, its start and its spans as lists: kind, lane, row in the lane, start
            and end in milliseconds since the step's first span.
        legend: name and colour of each kind of span.
        shown_steps: how many sampled steps are in the page.
        sampled_steps: how many there are.
        shown_ranks: how many ranks are in the page.
        ranks: how many there are.
    """

    figure: Any
    data: dict[str, Any]
    legend: tuple[tuple[str, str], ...]
    shown_steps: int
    sampled_steps: int
    shown_ranks: int
    ranks: int


def evenly_chosen(size: int, most: int) -> np.ndarray:
    """Positions of at most ``most`` of ``size`` items, evenly spread, the first and the last among them."""
    if size <= most:
        return np.arange(size)
    return np.unique(np.linspace(0, size - 1, max(most, 1)).round().astype(np.int64))


def pack(start: Floats, end: Floats) -> Integers:
    """Puts intervals into as few rows as can be without overlap: each into the first that is free.

    Arguments:
        start: [intervals].
        end: [intervals].

    Returns:
        The row of each interval, [intervals].
    """
    row = np.zeros(start.size, dtype=np.int64)
    free_from: list[float] = []
    for place in np.argsort(start, kind="stable"):
        free = [number for number, until in enumerate(free_from) if until <= start[place]]
        if not free:
            free = [len(free_from)]
            free_from.append(0.0)
        row[place] = free[0]
        free_from[free[0]] = end[place]
    return row


def timeline(spans: Columns) -> Timeline | None:
    """Lays out the spans of the sampled steps; None where there is none.

    Arguments:
        spans: columns of `spans` of the surviving lineage, [rows] each.
    """
    known = np.isfinite(spans["start"]) & np.isfinite(spans["end"])
    if not known.any():
        return None
    spans = {name: column[known] for name, column in spans.items()}
    all_ranks = np.unique(spans["rank"])
    ranks = all_ranks[evenly_chosen(all_ranks.size, MOST_RANKS)]
    inside = np.isin(spans["rank"], ranks)
    spans = {name: column[inside] for name, column in spans.items()}
    all_steps, per_step = np.unique(spans["step"], return_counts=True)
    steps = all_steps[evenly_chosen(all_steps.size, max(1, MOST_SPANS // int(per_step.max())))]

    lanes = [(int(rank), lane) for rank in ranks for lane in ("loop", "comm")]
    lane_of = {lane: place for place, lane in enumerate(lanes)}
    kinds = sorted(set(zip(spans["lane"], spans["name"], strict=True)), key=_in_order_of_the_step)
    kind_of = {kind: place for place, kind in enumerate(kinds)}
    drawn = []
    most_rows = 1  # of any communication lane, so that all look alike
    for step in steps:
        mine = np.flatnonzero(spans["step"] == step)
        zero = float(spans["start"][mine].min())
        # Long spans first: one that lies inside another, as a wait in a backward pass, is drawn upon it.
        mine = mine[np.argsort(spans["start"][mine] - spans["end"][mine], kind="stable")]
        lane = [lane_of[int(spans["rank"][row]), _lane(spans["lane"][row])] for row in mine]
        row_of = np.zeros(mine.size, dtype=np.int64)
        for each, (_, name) in enumerate(lanes):
            if name == "comm":
                here = np.flatnonzero(np.array(lane) == each)
                row_of[here] = pack(spans["start"][mine[here]], spans["end"][mine[here]])
                most_rows = max(most_rows, int(row_of[here].max(initial=0)) + 1)
        content = [
            [kind_of[spans["lane"][row], spans["name"][row]] for row in mine],
            lane,
            row_of.tolist(),
            [round(1e3 * (float(spans["start"][row]) - zero), 4) for row in mine],
            [round(1e3 * (float(spans["end"][row]) - zero), 4) for row in mine],
        ]
        drawn.append({"step": int(step), "start": round(zero, 3), "spans": content})
    colours = [span_colour(*kind) for kind in kinds]
    data = {
        "names": [name for _, name in kinds],
        "colours": colours,
        "lanes": [f"rank {rank} {lane}" for rank, lane in lanes],
        "rows": [most_rows if lane == "comm" else 1 for _, lane in lanes],
        "steps": drawn,
    }
    legend = dict.fromkeys((_legend_name(*kind), colour) for kind, colour in zip(kinds, colours, strict=True))
    return Timeline(
        _figure(lanes), data, tuple(legend), len(drawn), all_steps.size, ranks.size, all_ranks.size
    )


def _figure(lanes: list[tuple[int, str]]) -> Any:
    plot = blank_figure(
        height=90 + 24 * len(lanes),
        x_label="milliseconds since the step began",
        y_label="",
        name="timeline",
        active_drag="xpan",
    )
    plot.x_range = Range1d(start=0, end=1)
    plot.y_range = Range1d(start=len(lanes) - 0.4, end=-0.6)
    # Labels of a narrow page are short: "0 loop"; the rank's word is in the hover text.
    labels = {place: f"{rank} {lane}" for place, (rank, lane) in enumerate(lanes)}
    plot.yaxis.ticker = FixedTicker(ticks=list(labels))
    plot.yaxis.major_label_overrides = dict(labels)
    plot.yaxis.axis_label = "rank and lane"
    plot.xgrid.visible, plot.ygrid.visible = True, False
    source = ColumnDataSource(
        {name: [] for name in ("left", "right", "bottom", "top", "colour", "name", "lane", "ms")},
        name="timeline spans",
    )
    boxes = plot.quad(
        "left",
        "right",
        "bottom",
        "top",
        source=source,
        fill_color="colour",
        line_width=1,
        name="timeline boxes",
    )
    tips = [
        ("span", "@name"),
        ("of", "@lane"),
        ("takes", "@ms{0.000} ms"),
        ("from", "@left{0.000} ms"),
        ("to", "@right{0.000} ms"),
    ]
    plot.add_tools(HoverTool(tooltips=tips, renderers=[boxes], point_policy="follow_mouse"))
    return plot


_ORDER: Final = ("io", "forward", "backward", "wait", "optimizer", "checkpoint", "evaluate")


def _in_order_of_the_step(kind: tuple[str, str]) -> tuple[bool, int, str]:
    lane, name = kind
    first = name.split(" ")[0]
    return lane == "comm", _ORDER.index(first) if first in _ORDER else len(_ORDER), name


def _lane(name: str) -> str:
    return "comm" if name == "comm" else "loop"


def _legend_name(lane: str, name: str) -> str:
    return name.split(" ")[0].replace("_", "-") if lane == "comm" else name
