"""The plots of the pages. Colours of text, axes and grids are set in the browser, as in a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bokeh.models import ColumnDataSource, FixedTicker, HoverTool, NumeralTickFormatter
from bokeh.models.annotations import Whisker

from muster.report.colours import PILLAR_COLOURS, PILLAR_LABELS, STACKED
from muster.report.figures import FAINT, INK, blank_figure
from muster.tuning._measured import StepTimes
from muster.tuning._scaling import Scaling
from muster.tuning._size_classes import SizeClass


def throughput(found: Scaling) -> Any:
    """Samples per second over ranks with their intervals, and perfect scaling from the fewest ranks, dashed."""
    points = found.points
    ranks = [float(point.ranks) for point in points]
    first = points[0]
    plot = blank_figure(height=300, x_label="ranks", y_label="samples per second")
    plot.y_range.start = 0
    plot.xaxis.ticker = FixedTicker(ticks=ranks)
    source = ColumnDataSource(
        {
            "ranks": ranks,
            "value": [point.samples_per_s.median for point in points],
            "low": [point.samples_per_s.low for point in points],
            "high": [point.samples_per_s.high for point in points],
            "ideal": [first.samples_per_s.median * point.ranks / first.ranks for point in points],
            "efficiency": [100 * point.efficiency.median for point in points],
        }
    )
    plot.line("ranks", "ideal", source=source, line_width=1.6, line_dash="dashed", name=FAINT)
    plot.line("ranks", "value", source=source, line_width=1.8, name=INK)
    dots = plot.scatter("ranks", "value", source=source, size=8, name=INK)
    plot.add_layout(
        Whisker(base="ranks", lower="low", upper="high", source=source, line_color=PILLAR_COLOURS["compute"])
    )
    tips = [
        ("ranks", "@ranks{0}"),
        ("samples/s", "@value{0.0} [@low{0.0}, @high{0.0}]"),
        ("perfect", "@ideal{0.0}"),
        ("efficiency", "@efficiency{0} %"),
    ]
    plot.add_tools(HoverTool(tooltips=tips, mode="vline", renderers=[dots]))
    return plot


def pillars_by_ranks(found: Scaling) -> Any:
    """Where the time of a step goes at each number of ranks, stacked."""
    return _stacked("ranks", {str(point.ranks): point.pillars for point in found.points})


def pillars_before_and_after(before: StepTimes, after: StepTimes) -> Any:
    """Where the time of a step goes before and after tuning, stacked."""
    return _stacked("", {"before": before.pillars, "after": after.pillars})


def _stacked(label: str, bars: dict[str, dict[str, float]]) -> Any:
    """A bar of the four pillars (seconds) for each name."""
    names = list(bars)
    data: dict[str, Any] = {"bar": names}
    data |= {pillar: [1e3 * bar[pillar] for bar in bars.values()] for pillar in STACKED}
    data |= {
        f"{pillar}_share": [100 * bar[pillar] / (sum(bar.values()) or 1.0) for bar in bars.values()]
        for pillar in STACKED
    }
    plot = blank_figure(height=300, x_label=label, y_label="ms per step (mean over ranks)", x_range=names)
    plot.y_range.start = 0
    colours = [PILLAR_COLOURS[name] for name in STACKED]
    drawn = plot.vbar_stack(
        list(STACKED), x="bar", width=0.6, source=ColumnDataSource(data), color=colours, line_color=None
    )
    tips = [(label, "@bar")]
    tips += [
        (PILLAR_LABELS[name], f"@{name}{{0.00}} ms, @{name}_share{{0.0}} %") for name in reversed(STACKED)
    ]
    plot.add_tools(HoverTool(tooltips=tips, mode="vline", renderers=drawn[:1]))
    return plot


def size_classes(classes: Sequence[SizeClass]) -> Any:
    """For each size class the seconds that were exposed, waited for the last rank, and hidden, stacked."""
    names = [f"{each.kind} {each.label}" for each in classes]
    parts = {"exposed": "exposed_s", "waited": "waited_s", "hidden": "hidden_s"}
    colours = [PILLAR_COLOURS["comm"], PILLAR_COLOURS["idle"], PILLAR_COLOURS["compute"]]
    data: dict[str, Any] = {"size": names}
    data |= {part: [1e3 * getattr(each, column) for each in classes] for part, column in parts.items()}
    plot = blank_figure(
        height=90 + 34 * len(names),
        x_label="ms per rank over the counted steps",
        y_label="",
        y_range=names[::-1],
    )
    plot.x_range.start = 0
    plot.xaxis.formatter = NumeralTickFormatter(format="0.[000]")
    drawn = plot.hbar_stack(
        list(parts), y="size", height=0.6, source=ColumnDataSource(data), color=colours, line_color=None
    )
    tips = [("", "@size")] + [(part, f"@{part}{{0.000}} ms") for part in parts]
    plot.add_tools(HoverTool(tooltips=tips, mode="hline", renderers=drawn[:1]))
    return plot
