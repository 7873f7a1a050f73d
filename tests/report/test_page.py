"""The page itself: what is in it, and what a browser makes of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import Page, opened
from PIL import Image

from muster.engine.records import SCHEMAS, TableWriter
from muster.engine.run_folder import RunFolder
from muster.report import write_report
from muster.report._pictures import strips


@pytest.fixture(scope="module")
def page(finished_run: RunFolder) -> Path:
    return write_report(finished_run)


def check(shown: Page, plots: int) -> dict[str, Any]:
    """Nothing to complain of, nothing fetched, that many plots painted; what is seen."""
    seen = shown.look()
    assert shown.console == []
    assert [url for url in shown.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert sum(url.startswith("file:") for url in shown.requests) == 1
    assert not seen["hacked"]
    assert len(seen["canvases"]) == plots
    assert all(width > 100 and height > 50 for width, height in seen["canvases"])
    assert seen["scroll_width"] <= seen["width"]
    return seen


def test_the_report_is_one_file_of_less_than_2500_kilobytes_without_remote_parts(page: Path) -> None:
    content = page.read_text(encoding="utf-8")
    assert page.name == "report.html"
    assert page.stat().st_size < 2_500_000
    assert not re.search(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"']?(?!data:)[a-z/]", content)
    assert not re.search(r"@import|url\(\s*[\"']?https?:", content)
    assert not list(page.parent.glob(".report*"))


@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_draws_every_plot_and_has_nothing_to_complain_of(
    page: Path, width: int, dark: bool
) -> None:
    with opened(page, width=width, dark=dark) as shown:
        # Loss, learning rate, two metrics, pillars over steps, pillars per rank, timeline.
        seen = check(shown, plots=7)
        assert seen["width"] == width
        assert seen["images"] == [[True, 72], [True, 144], [True, 144], [True, 144]] * 2
        assert seen["background"] == ("rgb(15, 18, 22)" if dark else "rgb(247, 247, 245)")


_AXIS_COLOUR = """
    [...Bokeh.documents[0].all_models].find((model) => model.type === "LinearAxis").axis_label_text_color
"""


def test_plots_follow_the_colour_scheme_also_when_it_changes(page: Path) -> None:
    with opened(page) as shown:
        assert shown.run(_AXIS_COLOUR) == "#626b77"
        dark = {"name": "prefers-color-scheme", "value": "dark"}
        shown.send("Emulation.setEmulatedMedia", features=[dark])
        shown.run("new Promise((done) => setTimeout(done, 100))")
        assert shown.run(_AXIS_COLOUR) == "#98a2af"


def test_the_reader_can_switch_to_shares_and_step_through_the_timeline(page: Path) -> None:
    with opened(page) as shown:
        shown.run(
            "window.named = (name) => "
            "[...Bokeh.documents[0].all_models].find((model) => model.name === name); null"
        )
        shown.run('document.querySelector("[data-pillars=share]").click()')
        assert shown.run('named("pillars").y_range.end') == 1
        assert shown.run('named("pillar idle").glyph.top.field') == "idle_share_high"
        shown.run(
            """{
              const step = document.getElementById("timeline-step");
              step.value = "0";
              step.dispatchEvent(new Event("change"));
            }"""
        )
        names = shown.run('[...named("timeline spans").data.name]')
        loop = ["backward", "forward", "io", "optimizer", "wait"]
        assert sorted(names) == sorted(2 * [*loop, "all_reduce 0", "all_reduce 1"])
        width = "named('timeline').x_range.end - named('timeline').x_range.start"
        whole = shown.run(width)
        assert 60 < whole < 120  # milliseconds
        shown.run('document.querySelector("[data-timeline=closer]").click()')
        assert shown.run(width) == pytest.approx(whole / 2)
        shown.run('document.querySelector("[data-timeline=next]").click()')
        assert shown.run('document.getElementById("timeline-step").selectedOptions[0].textContent') == "2"
        assert shown.console == []


def test_pointing_at_a_span_tells_what_it_is(page: Path) -> None:
    with opened(page, height=1200) as shown:
        x, y = shown.run(
            """(() => {
              const view = [...Bokeh.index].find((each) => each.model.name === "timeline");
              view.el.scrollIntoView({ block: "center" });
              const box = view.el.getBoundingClientRect();
              return [box.left + view.frame.bbox.left + 200, box.top + view.frame.bbox.top + 14];
            })()"""
        )
        shown.point_at(x, y)
        tip = shown.run(
            """(() => {
              let found = "";
              (function walk(node) {
                for (const each of node.querySelectorAll("*")) {
                  if (each.classList.contains("bk-tooltip-content")) found += each.textContent;
                  if (each.shadowRoot) walk(each.shadowRoot);
                }
              })(document);
              return found;
            })()"""
        )
        assert "rank 0 loop" in tip
        assert "forward" in tip
        assert " ms" in tip


def test_names_that_look_like_markup_stay_text(new_run: Callable[..., RunFolder], tmp_path: Path) -> None:
    evil = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>"
    run = new_run(
        evil, steps=60, killed_at=None, metric_names=[evil, "'\"`${window.hacked=1}"], trace_every=10
    )
    writer = TableWriter(run.tables, "events", "other")
    writer.append(
        attempt=0, time=1.0, kind=evil, who=evil, detail=json.dumps({evil: {evil: [evil]}, "n": None})
    )
    writer.append(attempt=0, time=2.0, kind="odd", who=None, detail=json.dumps([evil]))
    writer.close()
    writer = TableWriter(run.tables, "spans", "other")
    writer.append(attempt=0, rank=0, step=1, lane=evil, name=evil, start=4.2, end=4.3)
    writer.close()
    line = {"title": evil, "panels": [{"label": evil, "caption": evil, "file": "00-low.png"}]}
    (run.path / "pictures" / "strips.jsonl").write_text(json.dumps(line), encoding="utf-8")
    (run.path / "job.yaml").write_text(f"name: {evil}\n", encoding="utf-8")
    (run.path / "environment.json").write_text(json.dumps({evil: {"a": [1, {evil: evil}]}}), encoding="utf-8")
    with opened(write_report(run)) as shown:
        assert check(shown, plots=7)["title"].startswith(evil)


def test_a_run_without_a_step_has_a_page(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "empty", app="none", steps=5, job_yaml="name: empty\n", environment={})
    page = write_report(run, tmp_path / "elsewhere.html")
    assert page == tmp_path / "elsewhere.html"
    with opened(page) as shown:
        check(shown, plots=0)
    content = page.read_text(encoding="utf-8")
    assert "No step has been recorded yet" in content
    assert ">crashed<" in content


def test_a_crashed_run_with_torn_records_has_a_page(new_run: Callable[..., RunFolder]) -> None:
    run = new_run(status="running", close=False, steps=60, killed_at=30, back_to=20)
    for file in run.tables.glob("*/*.jsonl"):
        file.write_bytes(file.read_bytes()[:-7])
    (run.path / "environment.json").write_text('{"torn', encoding="utf-8")
    with opened(write_report(run), width=400) as shown:
        check(shown, plots=7)


def test_a_hundred_thousand_steps_of_many_ranks_stay_below_four_megabytes(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "long", app="none", steps=100_000, job_yaml="", environment={})
    draw = np.random.default_rng(0)
    step, rank = np.repeat(np.arange(1, 100_001), 2), np.tile([0, 1], 100_000)
    parts = draw.exponential(0.01, (4, step.size))
    wall = parts.sum(axis=0)
    columns = dict(zip(("io", "compute", "comm", "idle"), parts, strict=True))
    columns |= {"step": step, "rank": rank, "wall": wall, "start": 0.05 * step, "loss": 1 / step}
    columns |= {"attempt": 0 * step, "samples": 0 * step + 8, "learning_rate": 1e-3 / step, "stall": 0 * wall}
    columns |= {"comm_hidden": 0 * wall, "flops": 0 * wall, "world_size": 0 * step + 2}
    schema = SCHEMAS["steps"]
    pq.write_table(pa.table(columns).select(schema.names).cast(schema), run.tables / "steps.parquet")
    # 2,000 sampled steps of 64 ranks, ten spans each, are more than a page should hold.
    count = 2_000 * 64 * 10
    spans = {
        "attempt": np.zeros(count, dtype=np.int64),
        "rank": np.tile(np.repeat(np.arange(64), 10), 2_000),
        "step": np.repeat(np.arange(50, 100_050, 50), 640),
        "lane": np.tile(["loop"] * 5 + ["comm"] * 5, 128_000),
        "name": np.tile(
            ["io", "forward", "backward", "wait", "optimizer"] + [f"all_reduce {b}" for b in range(5)],
            128_000,
        ),
        "start": draw.random(count),
    }
    spans["end"] = spans["start"] + 0.1
    schema = SCHEMAS["spans"]
    pq.write_table(pa.table(spans).select(schema.names).cast(schema), run.tables / "spans.parquet")
    page = write_report(run)
    assert page.stat().st_size < 2_500_000
    assert "16 of 64 ranks" in page.read_text(encoding="utf-8")


def test_pictures_are_fitted_into_their_budget_and_stay_in_their_folder(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    panels = []
    for number in range(6):
        noise = draw.integers(0, 256, (400, 500, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number}.png")
        panels.append({"label": str(number), "caption": "", "file": f"{number}.png"})
    outside = tmp_path.parent / f"{tmp_path.name}-outside.png"
    Image.new("RGB", (8, 8)).save(outside)
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    panels += [
        {"label": "outside", "caption": "", "file": f"../{outside.name}"},
        {"label": "broken", "caption": "", "file": "broken.png"},
        {"label": "gone", "caption": "", "file": "gone.png"},
        {"label": "no file"},
    ]
    (tmp_path / "strips.jsonl").write_text(
        json.dumps({"title": "noise", "panels": panels}) + "\n{torn", encoding="utf-8"
    )
    (strip,) = strips(tmp_path, budget=300_000)
    assert strip.compressed
    assert sum(len(panel.uri) for panel in strip.panels) * 3 / 4 <= 300_000 + 1000
    assert all(panel.uri.startswith("data:image/webp;base64,") for panel in strip.panels[:6])
    assert [panel.width for panel in strip.panels[:6]] == [500] * 6
    assert [(panel.uri, panel.flaw) for panel in strip.panels[6:]] == [
        ("", "this picture is missing"),
        ("", "this picture cannot be read"),
        ("", "this picture is missing"),
        ("", "this picture is missing"),
    ]
    assert strips(tmp_path / "nowhere") == ()
