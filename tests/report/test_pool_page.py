"""The page of a pool's run, from a folder written by hand: its figures, and what a browser makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import opened

from muster.engine.records import TableWriter
from muster.engine.run_folder import RunFolder
from muster.report import write_report
from muster.report._pool import pool_figures

JOB = """\
name: volunteers
what: {app: vision.classification, seed: 3}
how:
  shape: pool
  price:
    per_hour: 36.0
    on_demand: 72.0
    currency: EUR
    classes: [{name: big, workers: 1, per_hour: 360.0, on_demand: 720.0}]
"""  # fmt: skip


def lease(unit: int, worker: str, begin: float, outcome: str, **columns: object) -> dict[str, object]:
    """A second of waiting and two of holding; of those, an accepted one computes for one and a half."""
    done = outcome == "accepted"
    return {
        "lease": f"{unit:012x}", "unit": unit, "worker": worker, "attempt": 1, "base_version": 0, "number": None,
        "start": begin, "granted": begin + 1, "deadline": begin + 9, "ended": begin + 3, "outcome": outcome, "reason": "",
        "wall": 3.0, "idle": 1.0, "io": 0.25 * done, "compute": 1.5 * done, "comm": 0.25 * done, "lost": 2.0 * (not done),
        "samples": 50 * done, "bytes_in": 10, "bytes_out": 10 * done,
    } | columns  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    made = RunFolder.create(
        tmp_path, "volunteers", app="vision.classification", steps=0, job_yaml=JOB, environment={}
    )
    made.update(shape="pool", world_size=2, step=3, steps=4, status="done")
    leases = TableWriter(made.tables, "leases", "pool")
    leases.append(**lease(0, "worker 0", 2.0, "accepted", number=1))
    leases.append(**lease(1, "worker 1", 2.0, "accepted", number=2))
    leases.append(**lease(2, "worker 0", 5.0, "failed"))
    leases.append(**lease(3, "worker 1", 5.0, "accepted", number=3, base_version=2))
    leases.append(**lease(4, "worker 1", 8.0, "refused"))
    leases.close()
    metrics = TableWriter(made.tables, "metrics", "pool")
    for step, time, value in ((0, 1.0, 0.1), (2, 5.0, 0.5), (3, 9.0, 0.75)):
        metrics.append(
            attempt=0, step=step, time=time, name="accuracy", value=value, split="evaluation", item=""
        )
    metrics.close()
    events = TableWriter(made.tables, "events", "pool")
    for time, kind, detail in (
        (1.0, "pool_started", '{"workers": 2, "rule": "vc-asgd", "arrival": "each", "lease": 50, "resumed": false}'),
        (2.0, "joined", '{"worker": "worker 0", "what": "process 101"}'),
        (2.0, "joined", '{"worker": "worker 1", "what": "process 102"}'),
        (8.0, "killed", '{"worker": "worker 0", "what": "SIGKILL to process 101"}'),
        (8.5, "worker_lost", '{"worker": "worker 0", "what": "it was killed"}'),
        (11.0, "refused", '{"worker": "worker 1", "what": "unit 4: <b>not</b> finite"}'),
        (12.0, "left", '{"worker": "worker 1", "what": "the pool is done"}'),
    ):  # fmt: skip
        events.append(attempt=0, time=time, kind=kind, who="pool", detail=detail)
    events.close()
    return made


def test_the_figures_of_a_pool_are_sums_over_its_leases_and_lives(run: RunFolder) -> None:
    found = pool_figures(run)
    assert found is not None
    assert found.totals == {"io": 0.75, "compute": 4.5, "comm": 0.75, "idle": 5.0, "lost": 4.0}
    assert found.told["leases"] == {"accepted": 3, "failed": 1, "refused": 1}
    assert found.told["samples"] == 150
    # Updates 1 and 3 were fresh; one had been merged since the model of update 2 was handed out.
    assert found.told["staleness"] == pytest.approx(1 / 3)
    assert [(life.state, life.pid) for life in found.workers] == [("killed", 101), ("left", 102)]
    cost = found.told["cost"]
    # Worker 0 is of the big class and was there for 6 s, worker 1 for 10 s; accepted leases held 2 s each.
    assert cost["cost"] == pytest.approx(6 * 0.1 + 10 * 0.01)
    assert cost["on_demand"] == pytest.approx(2 * 0.2 + 4 * 0.02)
    assert cost["per_update"] == pytest.approx(0.7 / 3)
    assert found.samples_per_s == pytest.approx(150 / 5)
    assert found.evidence == [("refused", "worker 1", 1, "unit 4: <b>not</b> finite")]


def test_a_browser_draws_the_page_of_a_pool(run: RunFolder) -> None:
    page = write_report(run)
    content = page.read_text()
    assert "&lt;b&gt;not&lt;/b&gt; finite" in content
    assert "0.700 EUR for 16 s of machines" in content
    with opened(page, width=1200) as shown:
        seen = shown.look()
        assert shown.console == []
        # Accuracy over merges and over time, leases, pillars per worker, staleness.
        assert len(seen["canvases"]) == 5
        assert seen["scroll_width"] <= seen["width"]
