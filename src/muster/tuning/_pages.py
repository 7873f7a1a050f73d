"""The pages of a profile, a scaling study and a tuning: one HTML file each that needs nothing else, in the report's style."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bokeh.embed import components
from bokeh.resources import Resources
from jinja2 import ChoiceLoader, Environment, PackageLoader
from markupsafe import Markup

from muster.engine import hardware
from muster.report import formatting
from muster.report.colours import PILLAR_COLOURS, PILLAR_LABELS, STACKED
from muster.tuning import _figures

if TYPE_CHECKING:
    from muster.tuning._scaling import Scaling
    from muster.tuning.profile import Profile
    from muster.tuning.scale import Study
    from muster.tuning.tune import Tuning


def write_scaling_page(study: Study, found: Sequence[Scaling]) -> Path:
    """Writes a study's page into its folder; a reader never sees half of it.

    Arguments:
        study: the study.
        found: its figures, from `muster.tuning.scale.result`.

    Returns:
        Where it is.
    """
    plots: dict[str, Any] = {}
    for one in found:
        plots[f"{one.mode} throughput"] = _figures.throughput(one)
        plots[f"{one.mode} steps"] = _figures.pillars_by_ranks(one)
    return _write(
        study.page, "scale.html", plots, title=f"{study.job.name}: scaling", study=study, found=found
    )


def write_profile_page(profile: Profile) -> Path:
    """Writes ``profile.html`` into the run folder of a profile; returns where it is."""
    plots = {"classes": _figures.size_classes(profile.classes)} if profile.classes else {}
    return _write(profile.page, "profile.html", plots, title=f"{profile.name}: profile", profile=profile)


def write_tuning_page(found: Tuning) -> Path:
    """Writes the before/after page of a tuning into its folder; returns where it is."""
    from muster.tuning.tune import change, times

    plots = {"steps": _figures.pillars_before_and_after(found.before, found.after)}
    title = f"{found.job.name}: tuning"
    return _write(found.page, "tune.html", plots, title=title, found=found, change=change, times=times)


def _write(path: Path, template: str, plots: dict[str, Any], **content: Any) -> Path:
    script, divisions = components(plots) if plots else ("", {})
    text = (
        _templates()
        .get_template(template)
        .render(
            plots={name: Markup(division) for name, division in divisions.items()},
            plot_script=Markup(script),
            plot_library=Markup("\n".join(Resources(mode="inline", components=["bokeh"]).js_raw))
            if plots
            else "",
            order=STACKED,
            pillar_colours=PILLAR_COLOURS,
            pillar_labels=PILLAR_LABELS,
            environment=hardware.environment(),
            written=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC",
            **content,
        )
    )
    draft = path.with_name(f".{path.name}.tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
    return path


def _templates() -> Environment:
    """Templates of this package; the style sheet and the script are the report's."""
    templates = Environment(
        loader=ChoiceLoader([PackageLoader("muster.tuning", "."), PackageLoader("muster.report", ".")]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for reader in (
        formatting.duration,
        formatting.data_size,
        formatting.quantity,
        formatting.factor,
        formatting.percent,
    ):
        templates.filters[reader.__name__] = reader
    loader = templates.loader
    assert loader is not None
    templates.globals["style"] = Markup(loader.get_source(templates, "page.css")[0])
    templates.globals["behaviour"] = Markup(loader.get_source(templates, "page.js")[0])
    return templates
