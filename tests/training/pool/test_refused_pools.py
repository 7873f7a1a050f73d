"""Job files of pools that are refused: one sentence that says what is wrong, where, and what would be right."""

from __future__ import annotations

from typing import Any

import pytest

from muster.errors import JobError
from muster.spec import PoolHow, load_application, load_job, parse_job, template
from muster.spec.writing import dump_job
from muster.training.pool.attempt import plan
from muster.training.pool.check import check_pool
from muster.training.preflight import refuse_pool

CASES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {}, "how.epochs: neither epochs nor rounds is given; set epochs for a rule that merges each"),
    ({"epochs": 1, "rounds": 1}, {}, "how.rounds: epochs and rounds are both given; set epochs"),
    ({"epochs": 0}, {}, "how.epochs: found 0; expected a whole number from 1"),
    ({"epochs": 1, "workers": 0}, {}, "how.workers: found 0; expected a whole number from 1 to 1024"),
    ({"epochs": 1, "ranks": 2}, {}, "how.ranks: unknown key; the keys here are shape, workers"),
    ({"epochs": 1, "lease": 0}, {}, "how.lease: found 0; expected auto, or a number of samples"),
    ({"epochs": 1, "lease": "full"}, {}, "how.lease: found 'full'; expected auto, or a number of samples"),
    ({"epochs": 1, "rule": 3}, {}, "how.rule: found 3; expected the name of a rule, or a mapping"),
    (
        {"epochs": 1, "rule": {"alpha": 0.5}},
        {},
        'how.rule: found {"alpha": 0.5}; expected the name of a rule',
    ),
    ({"epochs": 1, "rule": "vcasgd"}, {}, "how.rule: no rule 'vcasgd'; did you mean vc-asgd?"),
    (
        {"epochs": 1, "rule": {"name": "vc-asgd", "alfa": 1}},
        {},
        "how.rule: merge rule vc-asgd: no option 'alfa'; did you mean alpha?",
    ),
    (
        {"epochs": 1, "rule": {"name": "vc-asgd", "alpha": 2}},
        {},
        "how.rule: vc-asgd: alpha: found 2; expected 0 to 1",
    ),
    (
        {"epochs": 1, "rule": "fedavg"},
        {},
        "how.epochs: fedavg merges the updates of a round together; set how.rounds",
    ),
    (
        {"rounds": 1},
        {},
        "how.rounds: vc-asgd merges each update as it arrives and knows no rounds; set how.epochs",
    ),
    (
        {"rounds": 1, "rule": "scaffold"},
        {},
        "how.rule: under scaffold each party keeps something from round to round",
    ),
    (
        {"rounds": 1, "rule": "q-fedavg"},
        {},
        "how.rule: q-fedavg weighs parties by their losses; set how.parties",
    ),
    (
        {"epochs": 1, "parties": {"count": 2}},
        {},
        "how.epochs: parties come in rounds; set how.rounds in its place",
    ),
    (
        {"rounds": 1, "rule": "vc-asgd", "parties": {"count": 2}},
        {},
        "how.rule: vc-asgd merges each update as it arrives, and parties come in rounds; name a rule of rounds",
    ),
    (
        {"rounds": 1, "parties": {"count": 2}, "lease": 4},
        {},
        "how.lease: a party's lease is all of its data; remove",
    ),
    (
        {"rounds": 1, "parties": {"count": 2}, "local": {"optimizer": "adam"}},
        {},
        "how.local.optimizer: found 'adam'; expected sgd",
    ),
    (
        {"rounds": 1, "parties": {"count": 2, "alpha": 1}},
        {},
        "how.parties.alpha: the partition even has no alpha",
    ),
    (
        {"rounds": 1, "parties": {"count": 2, "partition": "evn"}},
        {},
        "how.parties.partition: found 'evn'; did you mean even?",
    ),
    (
        {"rounds": 1, "parties": {}},
        {},
        "how.parties.count: is missing; add it: a whole number from 1 to 100000",
    ),
    (
        {"rounds": 1, "parties": {"count": 2, "fraction": 0}},
        {},
        "how.parties.fraction: found 0; expected a number above 0",
    ),
    (
        {"epochs": 1, "local": {"steps": 3}},
        {},
        "how.local.steps: without parties, a lease's samples say how many steps",
    ),
    (
        {"epochs": 1, "local": {"optimizer": "adam", "momentum": 0.9}},
        {},
        "how.local.momentum: adam has no momentum",
    ),
    ({"epochs": 1, "local": {"lr": 0}}, {}, "how.local.lr: found 0; expected a number above 0"),
    ({"epochs": 1, "round_leases": 3}, {}, "how.round_leases: there are no rounds; remove the key"),
    ({"epochs": 1, "quorum": 1.5}, {}, "how.quorum: found 1.5; expected a number above 0 to 1"),
    ({"epochs": 1, "silence": "10"}, {}, "how.silence: found '10'; expected a duration with its unit"),
    ({"epochs": 1, "pace": 0}, {}, "how.pace: found 0; expected a number above 0"),
    (
        {"epochs": 1, "price": {"per_hour": -1, "on_demand": 1}},
        {},
        "how.price.per_hour: found -1; expected a number",
    ),
    ({"epochs": 1, "price": {"per_hour": 1}}, {}, "how.price.on_demand: is missing; add it: a number"),
    (
        {"epochs": 1, "chaos": {"kill_evry": "3s"}},
        {},
        "how.chaos.kill_evry: unknown key; did you mean kill_every?",
    ),
    (
        {"epochs": 1, "chaos": {"notice": "3s"}},
        {},
        "how.chaos.notice: nothing is killed; remove the key, or set kill_every",
    ),
    (
        {"epochs": 1, "communication": {"density": 0.1}},
        {},
        "how.communication.density: none has no density; remove the key, or set compression: topk",
    ),
    (
        {"epochs": 1, "communication": {"compression": "bf16"}},
        {},
        "how.communication.compression: found 'bf16'; expected one of: none, int8, topk",
    ),
    (
        {"epochs": 1, "communication": {"compression": "int8"}, "trust": {"trusted": [0]}},
        {},
        "how.communication: what a volunteer has left out of its updates makes its results its own",
    ),
    (
        {"epochs": 1, "trust": {}},
        {},
        "how.workers: found 2; expected at least 3: how.trust has workers check each other, and others settle",
    ),
    (
        {"epochs": 1, "trust": {"quorum": 3, "trusted": [0]}},
        {},
        "how.workers: found 2; expected at least 3: how.trust has workers check each other, and others settle",
    ),
    (
        {"epochs": 1, "trust": {"quorum": 1}},
        {},
        "how.trust.quorum: found 1; expected a whole number from 2 to 9",
    ),
    (
        {"epochs": 1, "trust": {"trusted": [2]}},
        {},
        "how.trust.trusted: no worker has place 2; expected 0 to 1",
    ),
    (
        {"epochs": 1, "trust": {"audit": True}},
        {},
        "how.trust.audit: checks by trusted workers need some; list their places in trusted",
    ),
    (
        {"epochs": 1, "rule": "easgd", "trust": {"trusted": [0]}},
        {},
        "how.trust: under easgd each worker keeps something of its own, so that no two results can be compared",
    ),
    (
        {"epochs": 1, "chaos": {"lies": 0}},
        {},
        "how.chaos.lies: found 0; expected a number above 0 to 1",
    ),
    ({"epochs": 1, "chaos": {"slow": [0.5]}}, {}, "how.chaos.slow: found 0.5; expected factors of 1 or more"),
    (
        {"epochs": 1, "chaos": {"corrupt": 1}},
        {},
        "how.chaos.corrupt: found 1; expected a number from 0 to below 1",
    ),
    (
        {"epochs": 1},
        {"min_ranks": 1},
        "where.min_ranks: a pool has workers, which come and go, and no ranks; remove",
    ),
    (
        {"epochs": 1},
        {"max_ranks": 9},
        "where.max_ranks: a pool has workers, which come and go, and no ranks; remove",
    ),
    (
        {"epochs": 1},
        {"device": "cuda"},
        "where.device: the workers of a pool train on the CPU; set device: cpu or auto",
    ),
    (
        {"epochs": 1},
        {"engine": "cluster", "address": "a:1"},
        "where.engine: found 'cluster'; expected embedded or local",
    ),
    (
        {"epochs": 1},
        {"engine": "local"},
        "where.engine: a pool without an engine has one worker, in the process",
    ),
    (
        {"epochs": 1, "workers": 1, "chaos": {"kill_every": "9s"}},
        {"engine": "local"},
        "where.engine: the only worker is the process that you start, which chaos can neither kill nor replace",
    ),
]


def job(
    how: dict[str, Any], where: dict[str, Any] | None = None, app: str = "tests.counting", **what: Any
) -> Any:
    content = {"what": {"app": app, **what}, "how": {"shape": "pool", **how}, "where": where or {}}
    return parse_job(content)


@pytest.mark.parametrize(("how", "where", "sentence"), CASES, ids=[case[2].split(";")[0] for case in CASES])
def test_what_cannot_be_is_refused_in_one_sentence(
    how: dict[str, Any], where: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(JobError) as caught:
        check_pool(job(how, where))
    assert str(caught.value).startswith(f"job: {sentence}")
    assert "\n" not in str(caught.value)


def test_uneven_parties_need_classes_and_enough_samples() -> None:
    how = {"rounds": 1, "parties": {"count": 5, "partition": "dirichlet"}}
    with pytest.raises(
        JobError, match=r"how\.parties\.partition: the training data of Labelled name no classes to deal by"
    ):
        planned(job(how, app="tests.labelled", named=False))
    with pytest.raises(
        JobError, match=r"how\.parties: 60 samples cannot be dealt to 90 parties; give each at least one"
    ):
        planned(job({"rounds": 1, "parties": {"count": 90}}, app="tests.labelled"))


def planned(parsed: Any) -> Any:
    return plan(load_application(parsed.what.app)(parsed.what), parsed.how)


def test_measuring_the_steps_of_a_pool_is_refused() -> None:
    with pytest.raises(
        JobError, match=r"how\.shape: muster tune measures the steps of a gang, and a pool has none"
    ):
        refuse_pool(job({"epochs": 1}), "tune")


def test_a_dumped_pool_and_a_template_load_again(tmp_path: Any) -> None:
    content = {
        "epochs": 2,
        "rule": {"name": "fedasync", "staleness": "hinge"},
        "chaos": {"slow": [5, 100]},
        "price": {"per_hour": 1, "on_demand": 2, "classes": [{"name": "a", "workers": 1, "per_hour": 1, "on_demand": 3}]},
    }  # fmt: skip
    parsed = job(content)
    path = tmp_path / "job.yaml"
    path.write_text(dump_job(parsed))
    assert load_job(path, environ={}) == parsed
    path.write_text(template("tests.counting", "pool"))
    loaded = load_job(path, environ={})
    assert isinstance(loaded.how, PoolHow)
    check_pool(loaded)
