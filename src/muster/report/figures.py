"""The plots of a report: curves over steps, pillars over steps, pillars per rank.

Colours of text, axes and grids are set in the browser (page.js), which follows the reader's colour scheme.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from bokeh.models import ColumnDataSource, HoverTool, NumeralTickFormatter, Range1d, WheelZoomTool
from bokeh.plotting import figure

from muster.report._columns import Columns, Floats, bin_means, bins, step_means
from muster.report._metrics import Metric
from muster.report._pillars import PILLARS, RankTime
from muster.report.colours import PILLAR_COLOURS, PILLAR_LABELS, STACKED

MOST_CURVE_POINTS: Final = 1000
MOST_AREA_BINS: Final = 160
MOST_RANK_BARS: Final = 512

#: Renderers whose colour is the text's: page.js looks for these names.
INK: Final = "ink"
FAINT: Final = "faint"

_FONT: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def blank_figure(*, height: int, x_label: str, y_label: str, **settings: Any) -> Any:
    """A figure as wide as its column, transparent, that leaves the page's scrolling alone."""
    plot = figure(
        height=height,
        sizing_mode="stretch_width",
        tools="xpan,xbox_zoom,reset",
        active_drag=settings.pop("active_drag", None),
        toolbar_location="above",
        background_fill_alpha=0,
        border_fill_alpha=0,
        outline_line_color=None,
        min_border_left=4,
        min_border_right=12,
        x_axis_label=x_label,
        y_axis_label=y_label,
        **settings,
    )
    plot.add_tools(WheelZoomTool(dimensions="width", modifiers={"ctrl": True}))
    plot.toolbar.logo = None
    plot.toolbar.autohide = True
    plot.xgrid.visible = False
    for axis in plot.axis:
        axis.axis_label_text_font = axis.major_label_text_font = _FONT
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_font_size = axis.major_label_text_font_size = "12px"
        axis.minor_tick_line_color = None
        axis.major_tick_line_color = None
    return plot


def loss_figure(steps: Columns) -> Any | None:
    """The loss over steps, binned, with the range inside each bin; None without a loss."""
    step, loss = step_means(steps["step"], steps["loss"])
    if not np.isfinite(loss).any():
        return None
    edges = bins(step.size, MOST_CURVE_POINTS // 2)
    plot = blank_figure(height=260, x_label="step", y_label="loss (mean over the global batch)")
    source = ColumnDataSource(
        {
            "step": bin_means(step.astype(np.float64), edges),
            "value": bin_means(loss, edges),
            "low": _bin_extremes(loss, edges, np.fmin),
            "high": _bin_extremes(loss, edges, np.fmax),
        }
    )
    if edges.size - 1 < step.size:
        plot.varea("step", "low", "high", source=source, fill_alpha=0.15, name=FAINT)
    _ink_line(plot, source, "value")
    tips = [("step", "@step{0}"), ("loss", "@value{0.0000e+0}")]
    plot.add_tools(HoverTool(tooltips=tips, mode="vline", renderers=[plot.renderers[-1]]))
    return plot


def learning_rate_figure(steps: Columns) -> Any | None:
    """The learning rate over steps, as stairs; None where none is recorded."""
    step, rate = step_means(steps["step"], steps["learning_rate"])
    known = np.isfinite(rate)
    if not known.any():
        return None
    step, rate = step[known], rate[known]
    edges = bins(step.size, MOST_CURVE_POINTS)
    at = edges[:-1]
    plot = blank_figure(height=260, x_label="step", y_label="learning rate")
    plot.y_range.start = 0
    source = ColumnDataSource({"step": step[at].astype(np.float64), "value": rate[at]})
    plot.step("step", "value", source=source, mode="after", line_width=1.8, name=INK)
    plot.scatter("step", "value", source=source, size=7, alpha=0, name=INK)
    tips = [("step", "@step{0}"), ("learning rate", "@value{0.00e+0}")]
    plot.add_tools(HoverTool(tooltips=tips, mode="vline", renderers=[plot.renderers[-1]]))
    return plot


def metric_figure(metric: Metric) -> Any:
    """One metric over steps with its baselines, dashed, beside it."""
    plot = blank_figure(height=260, x_label="step", y_label=metric.name)
    dashes = ("dashed", "dotted", "dotdash")
    for place, baseline in enumerate(metric.baselines):
        source = _metric_source(baseline)
        dash = dashes[place % len(dashes)]
        plot.line("step", "value", source=source, line_width=1.6, line_dash=dash, name=FAINT)
    source = _metric_source(metric)
    _ink_line(plot, source, "value")
    # One point per measurement, of the baselines too, so that each can be read off.
    dots = [plot.scatter("step", "value", source=source, size=6, name=INK)]
    dots += [
        plot.scatter("step", "value", source=_metric_source(baseline), size=4, name=FAINT)
        for baseline in metric.baselines
    ]
    plot.add_tools(
        HoverTool(
            tooltips=[("metric", "@name"), ("step", "@step{0}"), ("value", "@value{0.0000}")],
            mode="mouse",
            renderers=dots,
        )
    )
    return plot


def pillars_over_steps(steps: Columns) -> tuple[Any, int] | None:
    """The mean over ranks of the four pillars, stacked, binned where there are many steps.

    The source has each pillar's edges in seconds (``io_low``, ``io_high``) and as a share
    (``io_share_low``...); page.js switches between them.

    Returns:
        The figure and the number of steps in a bin; None without steps.
    """
    if steps["step"].size == 0:
        return None
    step, _ = step_means(steps["step"], steps["wall"])
    edges = bins(step.size, MOST_AREA_BINS)
    first, last = step[edges[:-1]], step[edges[1:] - 1]
    data: dict[str, Any] = {"left": first - 0.5, "right": last + 0.5}
    seconds = {
        name: np.nan_to_num(bin_means(step_means(steps["step"], steps[name])[1], edges)) for name in PILLARS
    }
    total: Floats = np.sum(list(seconds.values()), axis=0)
    share = {
        name: np.divide(value, total, where=total > 0, out=np.zeros_like(total))
        for name, value in seconds.items()
    }
    for suffix, parts in (("", seconds), ("_share", share)):
        below = np.zeros_like(total)
        for name in STACKED:
            data[f"{name}{suffix}_low"] = below
            below = below + parts[name]
            data[f"{name}{suffix}_high"] = below
    data |= {f"{name}_ms": 1e3 * value for name, value in seconds.items()}
    data |= {f"{name}_percent": 100 * value for name, value in share.items()}
    data["steps"] = [str(a) if a == b else f"{a} – {b}" for a, b in zip(first, last, strict=True)]
    # Bins whose right edge meets the next left edge even where steps are missing between them.
    data["right"] = np.append(np.maximum(data["right"][:-1], data["left"][1:]), data["right"][-1])
    source = ColumnDataSource(data)
    plot = blank_figure(
        height=300, x_label="step", y_label="seconds per step (mean over ranks)", name="pillars"
    )
    plot.x_range = Range1d(start=float(data["left"][0]), end=float(data["right"][-1]), bounds="auto")
    plot.y_range = Range1d(start=0, end=float(total.max() or 1.0) * 1.03)
    drawn = [
        plot.quad(
            "left",
            "right",
            f"{name}_high",
            f"{name}_low",
            source=source,
            fill_color=PILLAR_COLOURS[name],
            line_color=PILLAR_COLOURS[name],
            line_width=1,
            line_join="miter",
            name=f"pillar {name}",
        )
        for name in STACKED
    ]
    tips = [("steps", "@steps")] + [
        (PILLAR_LABELS[name], f"@{name}_ms{{0.00}} ms, @{name}_percent{{0.0}} %")
        for name in reversed(STACKED)
    ]
    plot.add_tools(HoverTool(tooltips=tips, mode="vline", renderers=drawn[:1]))
    return plot, int(np.diff(edges).max())


def pillars_per_rank(ranks: tuple[RankTime, ...]) -> Any | None:
    """A stacked bar per rank in seconds; the first `MOST_RANK_BARS` ranks. None without steps."""
    if not ranks:
        return None
    ranks = ranks[:MOST_RANK_BARS]
    data: dict[str, Any] = {"rank": [rank.rank for rank in ranks]}
    below = np.zeros(len(ranks))
    for name in STACKED:
        data[f"{name}_low"] = below
        data[name] = np.array([getattr(rank, name) for rank in ranks])
        below = below + data[name]
        data[f"{name}_high"] = below
    data |= {
        name: np.array([getattr(rank, name) for rank in ranks]) for name in ("comm_hidden", "stall", "wall")
    }
    height = int(np.clip(26 * len(ranks), 150, 700)) + 70
    plot = blank_figure(height=height, x_label="seconds in steps", y_label="rank")
    source = ColumnDataSource(data)
    drawn = [
        plot.hbar(
            y="rank",
            left=f"{name}_low",
            right=f"{name}_high",
            height=0.7,
            source=source,
            fill_color=PILLAR_COLOURS[name],
            line_color=None,
        )
        for name in STACKED
    ]
    plot.x_range = Range1d(start=0, end=float(below.max() or 1.0) * 1.02)
    plot.y_range = (
        Range1d(start=len(ranks) - 0.4, end=-0.6) if ranks[-1].rank == len(ranks) - 1 else plot.y_range
    )
    plot.xgrid.visible, plot.ygrid.visible = True, False
    if len(ranks) <= 24:
        plot.yaxis.ticker = data["rank"]
    plot.yaxis.formatter = NumeralTickFormatter(format="0")
    tips = [("rank", "@rank")]
    tips += [(PILLAR_LABELS[name], f"@{name}{{0.00}} s") for name in STACKED]
    tips += [("hidden communication", "@comm_hidden{0.00} s"), ("of idle: stalls", "@stall{0.00} s")]
    plot.add_tools(HoverTool(tooltips=tips, mode="hline", renderers=drawn[:1]))
    return plot


def _ink_line(plot: Any, source: ColumnDataSource, column: str) -> None:
    plot.line("step", column, source=source, line_width=1.8, name=INK)
    if len(source.data["step"]) == 1:  # a line of one point draws nothing
        plot.scatter("step", column, source=source, size=6, name=INK)


def _metric_source(metric: Metric) -> ColumnDataSource:
    edges = bins(len(metric.steps), MOST_CURVE_POINTS)
    at = np.append(edges[:-1], len(metric.steps) - 1) if edges.size - 1 < len(metric.steps) else edges[:-1]
    values = np.array(metric.values)[at]
    return ColumnDataSource(
        {
            "step": np.array(metric.steps, dtype=np.float64)[at],
            "value": values,
            "name": [metric.name] * values.size,
        }
    )


def _bin_extremes(value: Floats, edges: Any, extreme: Any) -> Floats:
    return np.asarray(extreme.reduceat(value, edges[:-1]))
