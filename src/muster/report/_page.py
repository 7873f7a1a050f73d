"""The page: figures, tables and text of a run put into one HTML file that needs nothing else."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bokeh.embed import components
from bokeh.resources import Resources
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from muster.engine.run_folder import RunFolder
from muster.pillars.compute.roofline_record import RooflineRecord
from muster.report import formatting
from muster.report._metrics import Metric
from muster.report._pictures import strips
from muster.report._pool import (
    MOST_WORKERS,
    gantt,
    pillars_per_slot,
    pool_figures,
    quality_over_time,
    staleness_figure,
)
from muster.report._roofline import roofline_figure
from muster.report._summary import Summary, summary, surviving_columns
from muster.report._timeline import Timeline, timeline
from muster.report.colours import LOST_COLOUR, OUTCOME_COLOURS, PILLAR_COLOURS, PILLAR_LABELS, STACKED
from muster.report.figures import (
    learning_rate_figure,
    loss_figure,
    metric_figure,
    pillars_over_steps,
    pillars_per_rank,
)

MOST_EVENTS: Final = 200
MOST_ROWS: Final = 64


def write_report(run: RunFolder, path: Path | None = None) -> Path:
    """Writes the report of a run in whatever state it is; a reader never sees half a page.

    Arguments:
        run: its folder; only read, apart from the report in it.
        path: where to, `run.report_path` if not given.

    Returns:
        Where it is.

    Raises:
        OSError: the file cannot be written.
    """
    path = run.report_path if path is None else Path(path)
    draft = path.with_name(f".{path.name}.tmp")
    draft.write_text(_page(run), encoding="utf-8")
    draft.replace(path)
    return path


def _page(run: RunFolder) -> str:
    figures = summary(run)
    steps = surviving_columns(run, "steps")
    drawn_timeline = timeline(surviving_columns(run, "spans"))
    pillars = pillars_over_steps(steps)
    record = RooflineRecord.read(run.path)
    metric_plots = [metric_figure(metric) for metric in figures.metrics]
    pool = pool_figures(run)
    if pool is not None:
        for plot in metric_plots:
            plot.xaxis.axis_label = "merges"
    drawn = {
        "loss": loss_figure(steps),
        "learning_rate": learning_rate_figure(steps),
        "pillars": pillars[0] if pillars else None,
        "ranks": pillars_per_rank(figures.ranks),
        "timeline": drawn_timeline.figure if drawn_timeline else None,
        "roofline": roofline_figure(record, figures.roofline) if record and figures.roofline else None,
    } | {f"metric {place}": plot for place, plot in enumerate(metric_plots)}
    if pool is not None:
        drawn |= {
            "gantt": gantt(pool),
            "slots": pillars_per_slot(pool.slots),
            "staleness": staleness_figure(pool.rows) if pool.told["staleness"] is not None else None,
        } | {
            f"over time {place}": quality_over_time(metric, run)
            for place, metric in enumerate(figures.metrics)
        }
    plots: dict[str, Any] = {name: plot for name, plot in drawn.items() if plot is not None}
    script, divisions = components(plots) if plots else ("", {})
    environment = _environment(run)
    events: Sequence[dict[str, Any]] = run.events()
    template = _templates().get_template("page.html")
    return template.render(
        run=figures,
        pool=pool,
        lost_colour=LOST_COLOUR,
        outcome_colours=OUTCOME_COLOURS,
        most_workers=MOST_WORKERS,
        seed=figures.seed,
        plots={name: Markup(division) for name, division in divisions.items()},
        plot_script=Markup(script),
        plot_library=Markup("\n".join(Resources(mode="inline", components=["bokeh"]).js_raw))
        if plots
        else "",
        peaks=record.mean_peaks if record else None,
        compiled=record.compiled if record else False,
        timeline=drawn_timeline,
        timeline_data=_timeline_data(drawn_timeline),
        steps_per_bin=pillars[1] if pillars else 1,
        order=STACKED,
        pillar_colours=PILLAR_COLOURS,
        pillar_labels=PILLAR_LABELS,
        totals=_totals(figures),
        items=_items(figures.item_metrics),
        hidden_items=max(0, len({metric.item for metric in figures.item_metrics}) - MOST_ROWS),
        strips=strips(run.path / "pictures"),
        events=[*events[: MOST_EVENTS // 2], *events[-MOST_EVENTS // 2 :]]
        if len(events) > MOST_EVENTS
        else events,
        events_left_out=max(0, len(events) - MOST_EVENTS),
        environment=environment,
        machine=_machine(environment),
        job=_text(run.path / "job.yaml"),
        written=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC",
    )


def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("muster.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    for reader in (
        formatting.duration,
        formatting.data_size,
        formatting.quantity,
        formatting.difference,
        formatting.factor,
        formatting.percent,
    ):
        templates.filters[reader.__name__] = reader
    loader = templates.loader
    assert loader is not None
    templates.globals["style"] = Markup(loader.get_source(templates, "page.css")[0])
    templates.globals["behaviour"] = Markup(loader.get_source(templates, "page.js")[0])
    return templates


def _timeline_data(drawn: Timeline | None) -> Markup:
    """JSON that may stand in a script element: no `<` is left in it."""
    content = json.dumps(drawn.data, separators=(",", ":")) if drawn else "null"
    return Markup(content.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _totals(figures: Summary) -> dict[str, float]:
    """Seconds over all ranks by column."""
    columns = ("io", "compute", "comm", "idle", "comm_hidden", "stall", "wall")
    return {name: sum(getattr(rank, name) for rank in figures.ranks) for name in columns}


def _items(metrics: tuple[Metric, ...]) -> list[tuple[str, list[Metric]]]:
    """Metrics of each item, in order of item, of the first `MOST_ROWS` items."""
    found: dict[str, list[Metric]] = {}
    for metric in metrics:
        found.setdefault(metric.item, []).append(metric)
    return sorted(found.items())[:MOST_ROWS]


def _environment(run: RunFolder) -> Any:
    try:
        return run.environment()
    except (OSError, ValueError):  # a run folder copied without it, or cut short by a full disk
        return {}


def _machine(environment: Any) -> list[str]:
    """Host, processor, cores, memory and GPUs, as far as the environment names them."""
    if not isinstance(environment, dict):
        return []
    found = [str(environment[key]) for key in ("host", "cpu") if environment.get(key)]
    if isinstance(cores := environment.get("cores"), int):
        found.append(f"{cores} core{'s' if cores != 1 else ''}")
    if isinstance(memory := environment.get("memory_bytes"), int):
        found.append(f"{memory / 2**30:.0f} GiB memory")
    if isinstance(gpus := environment.get("gpus"), list):
        found += [str(gpu) for gpu in gpus]
    return found


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
