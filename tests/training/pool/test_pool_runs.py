"""Pools from job files, on the local engine: samples count once, and the bits are those of the ledger and of simulate."""

from __future__ import annotations

import copy
import math
import sqlite3
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from muster_test_applications import Labels
from safetensors.numpy import load_file
from torch.utils.data import Subset
from typer.testing import CliRunner

import muster
from muster._run import Run
from muster.cli.command_line import app
from muster.engine.pool.blobs import Manifest
from muster.engine.pool.coordinator import Coordinator
from muster.engine.pool.course import replayed, saved_version
from muster.engine.pool.ledger import Ledger
from muster.engine.pool.worker import Outcome, Task, Worker
from muster.federated import LocalTraining, by_class, dirichlet, simulate
from muster.report import write_report
from muster.spec import Job, load_application, parse_job
from muster.training.merge.registry import get
from muster.training.pool.account import bill_of, leases, lives, pool_folder
from muster.training.pool.attempt import plan
from muster.training.pool.lease_size import lease_samples


def job(tmp_path: Path, how: dict[str, Any], app: str = "tests.counting", **what: Any) -> Job:
    return parse_job(
        {
            "name": "t",
            "what": {"app": app, **what},
            "how": {"shape": "pool", "workers": 1, **how},
            "where": {"engine": "local", "runs": str(tmp_path / "runs")},
        }
    )


def run(tmp_path: Path, how: dict[str, Any], app: str = "tests.counting", **what: Any) -> Run:
    return muster.run(job(tmp_path, how, app, **what), progress=False)


def accepted_stretches(done: Run) -> list[tuple[int, int]]:
    """Begin and samples of every accepted result, from the ledger."""
    with sqlite3.connect(pool_folder(done.folder) / "ledger.sqlite") as connection:
        rows = connection.execute(
            "SELECT json_extract(u.work, '$.begin'), a.samples FROM accepted AS a JOIN units AS u USING (unit) ORDER BY 1"
        ).fetchall()
    return [(int(begin), int(samples)) for begin, samples in rows]


COUNTED = {"rule": "downpour", "epochs": 3, "lease": 20, "local": {"batch": 4, "lr": 4}}


def test_every_sample_counts_once_in_each_epoch_and_spoilt_updates_not_at_all(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        COUNTED | {"chaos": {"corrupt": 0.2}, "price": {"per_hour": 1.0, "on_demand": 3.0}},
        samples=84,
    )
    # Downpour adds what a worker has done, and the counting application's weights count the uses of each sample.
    np.testing.assert_array_equal(load_file(done.folder.model_path)["uses"], np.full(84, -3.0, np.float32))
    reached = 0
    for begin, samples in accepted_stretches(done):
        assert begin == reached
        reached += samples
    assert reached == 3 * 84
    rows = done.table("leases").to_pylist()
    refused = [row for row in rows if row["outcome"] == "refused"]
    assert len(refused) >= 1
    assert sum(event["kind"] == "refused" for event in done.folder.events()) == len(refused)
    for row in rows:
        parts = [row[name] for name in ("io", "compute", "comm", "idle", "lost")]
        assert min(parts) >= 0
        assert math.fsum(parts) == pytest.approx(row["wall"], abs=1e-6)
        assert row["granted"] - row["idle"] == pytest.approx(row["start"], abs=1e-6)
    again = replayed(pool_folder(done.folder), get("downpour"))
    saved = saved_version(pool_folder(done.folder))
    assert saved is not None
    assert saved.packed() == again.packed()
    np.testing.assert_array_equal(again.model["uses"], load_file(done.folder.model_path)["uses"])
    bill = bill_of(done.folder, lives(done.folder), leases(done.folder))
    assert bill is not None
    (life,) = lives(done.folder)
    assert bill.cost == pytest.approx((life.ended - life.joined) / 3600)
    assert bill.accepted == len(rows) - len(refused)
    assert bill.on_demand == pytest.approx(
        3 * sum(row["ended"] - row["granted"] for row in rows if row["outcome"] == "accepted") / 3600
    )
    page = write_report(done.folder).read_text()
    for words in ("Leases", "Evidence", "refused", "Cost", "downpour", "leases that brought nothing"):
        assert words in page


@pytest.mark.parametrize("partition", ["even", "dirichlet", "by_class"])
def test_parties_of_a_job_are_those_of_simulate_bit_for_bit(tmp_path: Path, partition: str) -> None:
    how = {
        "rule": "scaffold" if partition == "dirichlet" else "fedadam",
        "rounds": 3,
        "parties": {"count": 6, "partition": partition, "fraction": 0.5},
        "local": {"batch": 4, "lr": 0.05, "momentum": 0.9, "epochs": 2},
    }
    done = run(tmp_path, how, "tests.labelled", seed=3)
    data = Labels(60, True)
    if partition == "even":
        dealt = muster.federated.even(60, 6, seed=3)
    else:
        deal = {
            "dirichlet": lambda: dirichlet(data.labels, 6, 0.5, seed=3),
            "by_class": lambda: by_class(data.labels, 6, seed=3),
        }
        dealt = deal[partition]()
    torch.manual_seed(3)
    model = done.model()  # rebuilt by the application: only its structure counts here
    torch.manual_seed(3)
    model = load_application("tests.labelled")(
        job(tmp_path, how, "tests.labelled", seed=3).what
    ).build_model()
    found = simulate(
        lambda: model,
        [Subset(data, mine.tolist()) for mine in dealt],
        how["rule"],
        rounds=3,
        local=LocalTraining(epochs=2, batch=4, lr=0.05, momentum=0.9),
        fraction=0.5,
        seed=3,
    )
    trained = load_file(done.folder.model_path)
    for name, array in found.weights.items():
        np.testing.assert_array_equal(trained[name], array)
    rounds = [row["step"] for row in done.metrics().to_pylist() if not row["item"]]
    assert rounds == [0, 1, 2, 3]


def test_volunteers_under_a_rule_of_rounds_take_the_next_leases(tmp_path: Path) -> None:
    how = {"rule": "fedavg", "rounds": 4, "round_leases": 3, "lease": 10, "local": {"batch": 5}}
    done = run(tmp_path, how, "tests.labelled")
    assert accepted_stretches(done) == [(10 * place, 10) for place in range(12)]
    assert done.folder.state()["step"] == done.folder.state()["steps"] == 4


def test_a_worker_that_must_go_hands_in_what_it_has_and_the_rest_is_leased_again(tmp_path: Path) -> None:
    parsed = job(tmp_path, COUNTED, samples=84)
    planned = plan(load_application("tests.counting")(parsed.what), parsed.how)
    stop = threading.Event()
    part = planned.coordination
    pool = Coordinator(tmp_path / "pool", model=part.model, fold=part.rule, rounds=part.rounds)

    def interrupted(task: Task) -> Outcome:
        task.progress = lambda samples: stop.set() if samples >= 8 else None  # type: ignore[method-assign]
        return planned.work(task)

    assert Worker(pool, "first", interrupted, stop=stop).run() == "told to stop"
    assert pool.accepted == 1
    gone = threading.Event()
    gone.set()
    assert Worker(pool, "second", planned.work, stop=gone).run() == "told to stop"
    Worker(pool, "third", planned.work).run()
    final = pool.wait(0)
    pool.close()
    np.testing.assert_array_equal(final.model["uses"], np.full(84, -3.0, np.float32))
    with Ledger(tmp_path / "pool" / "ledger.sqlite") as ledger:
        first = ledger.accepted()[0]
    assert (first.worker, first.samples) == ("first", 8)


def test_workers_of_a_job_check_each_other_and_nothing_of_a_lie_is_left(tmp_path: Path) -> None:
    parsed = parse_job(
        {
            "what": {"app": "tests.counting", "samples": 84},
            "how": COUNTED
            | {"shape": "pool", "workers": 3, "trust": {"share": 0.3}}
            | {"chaos": {"lying": [2], "lies": 0.2, "seed": 5}},
        }
    )
    planned = plan(load_application("tests.counting")(parsed.what), parsed.how)
    events: list[tuple[str, str, str]] = []
    pool = planned.coordination.open(
        tmp_path / "pool", lambda *event: events.append(event), lambda version: None
    )
    works = [copy.deepcopy(planned.work) for _ in range(3)]
    workers = [Worker(pool, f"worker {slot}", works[slot], slot=slot) for slot in range(3)]
    with ThreadPoolExecutor(3) as threads:
        ended = list(threads.map(lambda worker: worker.run(), workers))
    final = pool.wait(0)
    pool.close()
    assert [who for kind, who, _ in events if kind == "lie"] == ["worker 2"]
    assert "worker 2 was caught lying" in ended[2]
    np.testing.assert_array_equal(final.model["uses"], np.full(84, -3.0, np.float32))
    again = planned.coordination.open(tmp_path / "pool", lambda *event: None, lambda version: None)
    assert again.caught.keys() == {"worker 2"}
    np.testing.assert_array_equal(again.wait(0).model["uses"], final.model["uses"])
    again.close()


@pytest.mark.parametrize("communication", [{"compression": "int8"}, {"compression": "topk", "density": 0.05}])
def test_volunteers_send_fewer_bytes_and_learn_as_much(tmp_path: Path, communication: dict[str, Any]) -> None:
    how = {
        "rule": "downpour",
        "epochs": 40,
        "lease": 60,
        "local": {"batch": 20, "lr": 0.1},
        "chaos": {"corrupt": 0.1, "seed": 1},
    }
    done = run(tmp_path, how | {"communication": communication}, "tests.labelled", hidden=512)
    dense = run(tmp_path, how, "tests.labelled", hidden=512)
    last = [found.metrics().to_pylist()[-1]["value"] for found in (done, dense)]
    assert last[1] > 0.7
    assert last[0] >= last[1] - 0.1
    sizes = []
    for found in (done, dense):
        with Ledger(pool_folder(found.folder) / "ledger.sqlite") as ledger:
            sizes += [Manifest.from_json(ledger.accepted()[0].detail["update"], most_bytes=1 << 40).size]
    assert sizes[0] < 0.4 * sizes[1]
    refused = [row for row in done.table("leases").to_pylist() if row["outcome"] == "refused"]
    assert refused
    told = CliRunner().invoke(app, ["pool", "replay", str(done.folder.path / "pool")])
    assert told.exit_code == 0, told.output
    assert "bit for bit" in told.output


def test_leases_are_as_long_as_the_renewal_model_says(tmp_path: Path) -> None:
    how = {"epochs": 1, "workers": 1, "pace": 100, "chaos": {}, "local": {"batch": 10}}
    stated = job(tmp_path, how).how.model_copy(
        update={
            "chaos": parse_job(
                {
                    "what": {"app": "tests.counting"},
                    "how": {"shape": "pool", "epochs": 1, "chaos": {"kill_every": "30s"}},
                }
            ).how.chaos
        }
    )
    # Brute force: the useful seconds that cost least each, for E[T] = (1/lambda + R)(exp(lambda s) - 1) and 0.1 s beside.
    lengths = np.arange(0.1, 10, 0.001)
    best = lengths[np.argmin(np.expm1((lengths + 0.1) / 30) / lengths)]
    assert abs(lease_samples(stated, 10**6) - 100 * best) <= 10
    assert lease_samples(job(tmp_path, {"epochs": 1, "local": {"batch": 10}}).how, 804) == 100
    assert lease_samples(job(tmp_path, {"epochs": 1, "local": {"batch": 32}}).how, 20) == 20


def test_deals_by_class_give_everything_once_and_few_classes_to_each() -> None:
    labels = np.arange(600) % 10
    dealt = by_class(labels, 20, stretches=2, seed=1)
    assert Counter(np.concatenate(dealt).tolist()) == Counter(range(600))
    assert {len(mine) for mine in dealt} == {30}
    # A stretch of 15 lies in one class of 60, so a party has two at most.
    assert max(len(set(labels[mine].tolist())) for mine in dealt) == 2
