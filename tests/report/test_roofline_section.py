"""The roofline of a run in its report and in `muster show`."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from muster.engine.run_folder import RunFolder
from muster.pillars.compute.roofline import Peaks
from muster.pillars.compute.roofline_record import RooflineRecord
from muster.report import summary, write_report
from muster.report._roofline import roofline_figure


@pytest.fixture
def run(new_run: Callable[..., RunFolder]) -> RunFolder:
    """A run whose median step does what the peaks say would take 60 % of its time."""
    run = new_run(pictures=False)
    rows = [row for row in run.table("steps").to_pylist() if row["step"] > 1]
    flops, compute = (float(np.median([row[name] for row in rows])) for name in ("flops", "compute"))
    record = RooflineRecord(
        attempt=1,
        world_size=2,
        device="cpu",
        compiled=False,
        bytes_per_sample=flops / 8 / 40,
        operators_per_sample=10.0,
        bytes_per_update=0.0,
        operators_per_update=0.0,
        peaks=(Peaks(flops / compute / 0.6, flops / compute / 8, 1e-6, "fp32", "2026-01-01T00:00:00Z"),) * 2,
    )
    record.write(run.path)
    return run


def test_the_summary_says_what_bounds_the_step(run: RunFolder) -> None:
    found = summary(run).roofline
    assert found is not None
    assert found.bound == "compute"
    assert found.share_of_peak == pytest.approx(0.6, rel=0.1)
    assert found.intensity == pytest.approx(40.0, rel=0.1)
    assert "compute-bound: " in found.sentence


def test_the_page_draws_it_and_says_the_sentence(run: RunFolder) -> None:
    page = write_report(run).read_text()
    found = summary(run).roofline
    assert found is not None
    assert found.sentence.replace("'", "&#39;") in page
    assert "arithmetic intensity" in page


def test_the_roof_bends_at_the_ridge_and_the_step_lies_under_it(run: RunFolder) -> None:
    record, found = RooflineRecord.read(run.path), summary(run).roofline
    assert record is not None
    assert found is not None
    plot = roofline_figure(record, found)
    roof = plot.renderers[0].data_source.data
    slopes = np.diff(np.log(roof["y"])) / np.diff(np.log(roof["x"]))
    assert slopes == pytest.approx([1.0, 0.0])
    assert roof["x"][1] == pytest.approx(record.mean_peaks.ridge)
    point = plot.renderers[2].data_source.data
    height = math.exp(np.interp(math.log(point["intensity"][0]), np.log(roof["x"]), np.log(roof["y"])))
    assert point["achieved"][0] == pytest.approx(0.6 * height, rel=0.1)


def test_show_has_stable_keys_for_it(run: RunFolder) -> None:
    answer = subprocess.run(
        ["muster", "show", str(run.path), "--json"], capture_output=True, text=True, check=True, timeout=60
    )
    found = json.loads(answer.stdout)["roofline"]
    assert found["bound"] == "compute"
    documented = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    assert all(f"`{key}`" in documented for key in found)
    words = subprocess.run(
        ["muster", "show", str(run.path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert "compute-bound" in words.stdout


def test_a_run_without_a_record_has_no_such_section(new_run: Callable[..., RunFolder]) -> None:
    run = new_run(pictures=False)
    assert summary(run).roofline is None
    assert "<h2>Roofline</h2>" not in write_report(run).read_text()
    (run.path / "roofline.json").write_text("{")
    assert "<h2>Roofline</h2>" not in write_report(run).read_text()
