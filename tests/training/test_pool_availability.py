"""Pools on machines that come and go as a trace says: refused when it is none, followed for real when it is one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import muster
from muster.engine.pool.ledger import Ledger
from muster.errors import JobError
from muster.spec import PoolHow, parse_job
from muster.training.pool.check import check_pool
from muster.training.pool.lease_size import lease_samples
from muster.training.pool.machines import availability, interruptions_per_s


def job(folder: Path, told: dict[str, object], **how: object) -> dict[str, object]:
    return {
        "name": "t",
        "what": {"app": "vision.classification", "seed": 1},
        "how": {"shape": "pool", "workers": 2, "epochs": 1, "chaos": {"availability": told}, **how},
        "where": {"engine": "embedded", "runs": str(folder / "runs")},
    }


def parsed(folder: Path, told: dict[str, object], **how: object) -> PoolHow:
    made = parse_job(job(folder, told, **how)).how
    assert isinstance(made, PoolHow)
    return made


def trace(folder: Path, data: list[int], gap: float = 60.0) -> str:
    path = folder / "trace.json"
    path.write_text(json.dumps({"metadata": {"gap_seconds": gap}, "data": data}))
    return str(path)


def test_a_trace_is_scaled_to_the_workers_and_compressed(tmp_path: Path) -> None:
    told = {"trace": trace(tmp_path, [0, 4, 4, 1, 0, 4]), "compress": 10, "notice": "20s"}
    made = availability(parsed(tmp_path, told))
    assert made is not None
    assert (made.times_s, made.instances, made.length_s) == ((0, 12, 18, 24, 30), (2, 1, 0, 2, 0), 36)
    assert made.notice_s == 2
    # Four are taken away in a length: 2 to 1, 1 to 0, 2 to 0.
    assert interruptions_per_s(parsed(tmp_path, told)) == pytest.approx(4 / (2 * 12 + 6 + 2 * 6))


def test_generated_machines_stay_as_long_as_asked_on_average(tmp_path: Path) -> None:
    told = {"trace": "generated", "compress": 60, "interrupted_every": "30m", "absent": "5m"}
    how = parsed(tmp_path, told, pace=50.0, local={"batch": 10})
    rate = interruptions_per_s(how)
    assert 1 / rate == pytest.approx(30, rel=0.1)  # 2,000 lives: one standard deviation is 2.2 %
    # Young's rule for an overhead of 0.1 s: sqrt(2 * 0.1 * 30) s = 2.4 s of 50 samples, about, in whole batches of 10.
    assert lease_samples(how, 10_000) == pytest.approx(50 * (2 * 0.1 * 30) ** 0.5, abs=15)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"trace": "nowhere.json"}, "cannot be read"),
        ({"trace": "empty"}, "data: found a list of 0"),
        ({"trace": "never"}, "never any instance"),
        ({"trace": "trace", "interrupted_every": "1h"}, "the trace says when instances go"),
        ({"trace": "generated", "absent": "1h"}, "generated machines need it"),
        ({"trace": "trace", "compress": 0}, "compress"),
    ],
)
def test_what_describes_no_machines_is_refused(tmp_path: Path, told: dict[str, object], words: str) -> None:
    data = {"empty": [], "never": [0, 0], "trace": [1]}
    if (name := str(told["trace"])) in data:
        told = told | {"trace": trace(tmp_path, data[name])}
    with pytest.raises(JobError, match=words):
        check_pool(parse_job(job(tmp_path, told)))


def test_extra_workers_have_no_machines(tmp_path: Path) -> None:
    described = job(tmp_path, {"trace": trace(tmp_path, [1])})
    described["how"]["chaos"]["extra"] = 1  # type: ignore[index]
    with pytest.raises(JobError, match="all workers' machines are in availability"):
        parse_job(described)


@pytest.mark.kill
def test_a_job_starts_no_more_workers_than_its_trace_has_machines(tmp_path: Path) -> None:
    """Half of the machines in the first hour: the job is done by worker 0 alone."""
    told = {"trace": trace(tmp_path, [0, 1, 2], gap=3600.0)}
    run = muster.run(parse_job(job(tmp_path, told, lease=400)), progress=False)
    joined = [event["detail"]["worker"] for event in run.folder.events() if event["kind"] == "joined"]
    assert (run.status(), joined) == ("done", ["worker 0"])
    with Ledger(run.path / "pool" / "ledger.sqlite") as ledger:
        assert sum(each.samples for each in ledger.accepted()) == 1442
