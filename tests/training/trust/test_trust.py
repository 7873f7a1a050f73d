"""Whom to believe: probabilities against enumeration, rounding that real kernels do, lies that are found."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from muster.engine.pool.trust import Result, Wanted
from muster.engine.pool.updates import flattened
from muster.errors import RefusedInput
from muster.federated import simulate
from muster.training.trust import survival
from muster.training.trust.agreement import agreeing, difference, groups
from muster.training.trust.audits import Audits, Record, draw
from muster.training.trust.tolerance import Bounds, Tolerances
from muster.trust import Replication

# ---- what checks are worth -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("leases", "lying", "checked"), [(6, 0.3, 0.25), (8, 0.1, 0.5), (5, 0.9, 0.1)])
def test_the_closed_forms_are_those_of_every_possible_course(
    leases: int, lying: float, checked: float
) -> None:
    """Each lease is honest or a lie, checked or not: all 4^n courses with their probabilities."""
    odds = {(lie, seen): (lying if lie else 1 - lying) * (checked if seen else 1 - checked)
            for lie in (0, 1) for seen in (0, 1)}  # fmt: skip
    never = told = survived = redone = 0.0
    for course in itertools.product(odds, repeat=leases):
        probability = math.prod(odds[step] for step in course)
        catching = next((place for place, step in enumerate(course) if step == (1, 1)), None)
        if catching is None:
            never += probability
            told += probability * sum(lie for lie, _ in course)
            survived += probability * sum(lie for lie, _ in course)
        else:
            told += probability * sum(lie for lie, _ in course[: catching + 1])
            redone += probability * sum(1 - seen for _, seen in course[:catching])
    arguments = (leases, lying, checked)
    np.testing.assert_allclose(survival.never_caught(*arguments), never)
    np.testing.assert_allclose(survival.surviving_lies(*arguments), survived)
    np.testing.assert_allclose(survival.lies_told(*arguments), told)
    np.testing.assert_allclose(survival.leases_redone(*arguments), redone)


def test_audits_of_a_tenth_leave_a_seventh_of_the_lies_and_peers_a_fiftieth() -> None:
    """Of a worker that lies in 1 % of 3,000 leases: 14.1 % by a machine that looks at a tenth, 12.8 % in one simulation."""
    assert 0.128 < survival.survival(3000, 0.01, 0.10) < 0.15
    assert survival.survival(3000, 0.01, survival.seen_by_peers(Audits().share)) < 0.025
    peers = survival.seen_by_peers(Audits().share)
    assert survival.leases_redone(3000, 0.01, peers) / 3000 < 0.25


def test_draws_are_uniform_and_need_the_secret() -> None:
    drawn = np.array([draw(b"key", unit, "worker 3") for unit in range(4000)])
    counts, _ = np.histogram(drawn, bins=20, range=(0, 1))
    chi_square = float(((counts - 200) ** 2 / 200).sum())
    assert chi_square < 45.3  # 99.9th percentile of chi-square with 19 degrees of freedom is 43.8
    assert drawn[0] == draw(b"key", 0, "worker 3") != draw(b"other", 0, "worker 3")
    assert abs(np.corrcoef(drawn, [draw(b"key", unit, "worker 4") for unit in range(4000)])[0, 1]) < 0.06


def test_a_new_worker_is_always_checked_and_a_known_one_never_less_than_the_share() -> None:
    audits = Audits(share=0.1, probation=2)
    chances = [audits.probability(Record(confirmed=confirmed, alone=1000)) for confirmed in range(200)]
    assert chances[:4] == [1.0, 1.0, 2 / 3, 0.5]
    assert chances[19:] == [0.1] * 181
    assert chances == sorted(chances, reverse=True)


# ---- when two results agree ------------------------------------------------------------------------------------------


def result(worker: str, weights: dict[str, Any], **options: Any) -> Result:
    arrays = flattened(weights={"": {name: np.asarray(array) for name, array in weights.items()}})
    return Result(worker, options.pop("hardware", ""), arrays, {"samples": 10, "steps": 2} | options)


def test_a_difference_is_relative_to_how_far_training_went() -> None:
    base = flattened(weights={"": {"w": np.full(4, 1e6), "n": np.array(3)}})
    one = result("a", {"w": 1e6 + np.array([1.0, 0, 0, 0]), "n": np.array(4)})
    two = result("b", {"w": 1e6 + np.array([1.0, 0.01, 0, 0]), "n": np.array(4)})
    np.testing.assert_allclose(difference(base, one, two), 0.01 / ((1 + math.hypot(1, 0.01)) / 2), rtol=1e-6)
    assert difference(base, one, one) == 0
    counted = result("c", {"w": 1e6 + np.array([1.0, 0, 0, 0]), "n": np.array(5)})
    assert difference(base, one, counted) == math.inf
    assert (
        difference(base, one, result("d", {"w": one.arrays["weights\x1f\x1fw"], "n": 4}, steps=3)) == math.inf
    )


def trained(threads: int, precision: torch.dtype, start: dict[str, np.ndarray], seed: int) -> dict[str, Any]:
    """Some steps of SGD on made data, from `start`; large sums depend on how they are split and how they are rounded."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = network()
        model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in start.items()})
        model.to(precision)
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(128, 300, generator=generator).to(precision)
        labels = torch.randint(5, (128,), generator=generator)
        for _ in range(5):
            loss = nn.functional.cross_entropy(model(inputs), labels)
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter -= 0.05 * gradient
        return {name: tensor.detach().float().numpy() for name, tensor in model.state_dict().items()}
    finally:
        torch.set_num_threads(before)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(300, 40), nn.ReLU(), nn.Linear(40, 5))


def test_honest_rounding_passes_and_a_lie_of_a_thousandth_does_not() -> None:
    """Float32 on one thread and on two, and computed in float64; the lie makes the change longer by a thousandth."""
    trust = Replication(secret=b"k")
    torch.manual_seed(0)
    start = {name: tensor.numpy().copy() for name, tensor in network().state_dict().items()}
    base = flattened(weights={"": start})
    for seed in range(24):
        one = result("a", trained(1, torch.float32, start, seed), hardware="float32")
        exact = result("b", trained(1, torch.float64, start, seed), hardware="float64")
        verdict = trust.judged(base, [one, exact])
        assert (verdict.believed, dict(verdict.lies)) == (0, {})
        assert verdict.differences[0][2] > 0
        trust.believed(["a", "b"], verdict.differences)
    two = result("c", trained(2, torch.float32, start, 23), hardware="float32")
    assert trust.judged(base, [one, two]).believed == 0
    allowed = trust.tolerances.of("float32", "float64")
    assert 1e-6 <= allowed < 2e-4  # learned: below what is allowed at first
    longer = {
        name: start[name] + 1.001 * (one.arrays[f"weights\x1f\x1f{name}"] - start[name]) for name in start
    }
    lie = result(
        "liar", {name: array.astype(np.float32) for name, array in longer.items()}, hardware="float64"
    )
    judged = trust.judged(base, [one, lie, exact])
    assert (judged.believed, set(judged.lies)) == (0, {1})
    assert "by 0.001 of the change" in judged.lies[1]


# ---- the tolerance ---------------------------------------------------------------------------------------------------


def test_the_tolerance_is_a_quantile_of_what_was_seen_for_each_two_classes() -> None:
    known = Tolerances(Bounds(first=1e-3, least=1e-8, most=1e-1, margin=10, enough=20))
    generator = np.random.default_rng(0)
    seen = np.exp(generator.normal(-14, 0.5, size=300))
    for apart in seen[:19]:
        known.learn("x", "y", float(apart), vouched=False)
    assert known.of("y", "x") == 1e-3
    for apart in seen[19:]:
        known.learn("y", "x", float(apart), vouched=False)
    np.testing.assert_allclose(known.of("x", "y"), 10 * np.sort(seen)[297])
    assert known.of("x", "x") == 1e-3
    more = np.exp(generator.normal(-14, 0.5, size=10_000))
    assert (more > known.of("x", "y")).mean() < 1e-3


def test_liars_cannot_stretch_the_tolerance_and_trusted_machines_can() -> None:
    stretched = Tolerances()
    for _ in range(2000):
        stretched.learn("x", "y", stretched.of("x", "y"), vouched=False)
    assert stretched.of("x", "y") <= Bounds().first
    for _ in range(20):
        stretched.learn("x", "y", 1e-3, vouched=True)
    np.testing.assert_allclose(stretched.of("x", "y"), 1e-2)


# ---- whom to believe -------------------------------------------------------------------------------------------------


def test_groups_and_quorums_against_every_way_of_agreeing() -> None:
    """All assignments of up to five results to three answers: the answer with most votes, at least two, alone."""
    for count in range(1, 6):
        for answers in itertools.product(range(3), repeat=count):
            found = groups(count, lambda one, two, answers=answers: answers[one] == answers[two])
            group = agreeing(found, quorum=2, deciding=[])
            votes = sorted((answers.count(answer) for answer in set(answers)), reverse=True)
            clear = votes[0] >= 2 and (len(votes) == 1 or votes[0] > votes[1])
            assert (group is not None) == clear
            if group is not None:
                assert len(group) == votes[0]
                assert {answers[place] for place in group} == {answers[group[0]]}
            decided = agreeing(found, quorum=2, deciding=[count - 1])
            assert decided is not None
            assert {answers[place] for place in decided} == {answers[count - 1]}


def verdict_of(trust: Replication, values: Sequence[tuple[str, float]]) -> Any:
    base = flattened(weights={"": {"w": np.zeros(2)}})
    return trust.judged(base, [result(worker, {"w": np.array([1.0, value])}) for worker, value in values])


def test_liars_at_the_quorum_are_believed_and_the_honest_one_is_blamed() -> None:
    """The limit of every vote, written down: two that tell the same lie outvote one, three honest ones outvote two."""
    framed = verdict_of(Replication(), [("honest", 1.0), ("liar 1", 5.0), ("liar 2", 5.0)])
    assert (framed.believed, set(framed.lies)) == (1, {0})
    outvoted = verdict_of(
        Replication(quorum=3), [("a", 1.0), ("l1", 5.0), ("b", 1.0), ("l2", 5.0), ("c", 1.0)]
    )
    assert (outvoted.believed, set(outvoted.lies)) == (0, {1, 3})
    undecided = verdict_of(Replication(quorum=3), [("a", 1.0), ("l1", 5.0), ("b", 1.0), ("l2", 5.0)])
    assert (undecided.believed, undecided.wanted) == (None, Wanted(5))
    rescued = verdict_of(
        Replication(trusted=["lab"]), [("honest", 1.0), ("l1", 5.0), ("l2", 5.0), ("lab", 1.0)]
    )
    assert (rescued.believed, set(rescued.lies)) == (3, {1, 2})


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"share": 0.0}, "share: found 0.0"),
        ({"share": 1.1}, "share: found 1.1"),
        ({"quorum": 1}, "quorum: found 1"),
        ({"probation": -1}, "probation: found -1"),
        ({"audit": True}, "need some; name them"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(RefusedInput, match=why):
        Replication(**options)


def test_one_worker_cannot_check_itself() -> None:
    parties = [(np.zeros((4, 3), np.float32), np.zeros(4, np.int64))]
    with pytest.raises(RefusedInput, match="trust: workers: found 0; expected at least 2"):
        simulate(lambda: nn.Linear(3, 2), parties, trust=Replication())
