"""The roofline of a run's machine with the run's step as a point under it."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from bokeh.models import ColumnDataSource, HoverTool

from muster.pillars.compute.roofline import Placement
from muster.pillars.compute.roofline_record import RooflineRecord
from muster.report.colours import PILLAR_COLOURS
from muster.report.figures import FAINT, INK, blank_figure

_DECADES: Final = 1.5


def roofline_figure(record: RooflineRecord, placement: Placement) -> Any:
    """FLOP/s against FLOP/byte, both logarithmic: the roof of one rank, the step under it, and a line between the two."""
    peaks = record.mean_peaks
    low = min(placement.intensity, peaks.ridge) / 10**_DECADES
    high = max(placement.intensity, peaks.ridge) * 10**_DECADES
    intensity = np.array([low, peaks.ridge, high])
    roof = np.array([peaks.attainable(value) for value in intensity])
    bottom = min(placement.flops_per_s, roof[0]) / 3
    plot = blank_figure(
        height=300,
        x_label="arithmetic intensity (FLOP per byte that operators move)",
        y_label="GFLOP/s per rank",
        x_axis_type="log",
        y_axis_type="log",
        x_range=(float(low), float(high)),
        y_range=(float(bottom / 1e9), float(roof[2] * 2 / 1e9)),
    )
    plot.line(intensity, roof / 1e9, line_width=1.8, name=INK)
    plot.line(
        [placement.intensity] * 2,
        [placement.flops_per_s / 1e9, placement.attainable_flops_per_s / 1e9],
        line_dash="dashed",
        name=FAINT,
    )
    step = ColumnDataSource(
        {
            "intensity": [placement.intensity],
            "achieved": [placement.flops_per_s / 1e9],
            "share": [f"{100 * placement.share_of_peak:.1f} %"],
        }
    )
    point = plot.scatter(
        "intensity", "achieved", source=step, size=12, color=PILLAR_COLOURS["compute"], name="step"
    )
    tips = [
        ("median step", "@achieved{0.00} GFLOP/s"),
        ("intensity", "@intensity{0.00} FLOP/byte"),
        ("of the peak", "@share"),
    ]
    plot.add_tools(HoverTool(tooltips=tips, renderers=[point]))
    return plot
