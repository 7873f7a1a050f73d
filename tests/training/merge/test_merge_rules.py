"""Merge rules against closed forms, published fixed points, and oracles written on flat vectors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

import muster.merge
from muster.errors import RefusedInput
from muster.merge import Handed, MergeRule, Trained, Update
from muster.training.merge.robust import GeometricMedian, gram

Vector = np.ndarray
SHAPES = {"conv.weight": (3, 2, 5), "head.bias": (7,), "scale": ()}


def split(vector: Vector, dtype: Any = np.float64) -> dict[str, Vector]:
    """A model of several arrays from a flat vector."""
    arrays, start = {}, 0
    for name, shape in SHAPES.items():
        size = int(np.prod(shape))
        arrays[name] = vector[start : start + size].reshape(shape).astype(dtype)
        start += size
    return arrays


def flat(arrays: Any) -> Vector:
    return np.concatenate([np.ravel(arrays[name]) for name in SHAPES])


SIZE = sum(int(np.prod(shape)) for shape in SHAPES.values())


def models(count: int, seed: int = 0) -> tuple[Vector, Vector]:
    """A model and what was trained from it, flat: ``[SIZE]`` and ``[count, SIZE]``."""
    generator = np.random.default_rng(seed)
    model = generator.standard_normal(SIZE)
    return model, model + 0.3 * generator.standard_normal((count, SIZE))


def updates_of(model: Vector, trained: Vector, **more: Sequence[Any]) -> list[Update]:
    return [
        Update(split(row), split(model), **{name: values[k] for name, values in more.items()})
        for k, row in enumerate(trained)
    ]


def merged(rule: MergeRule, model: Vector, updates: list[Update]) -> Vector:
    return flat(rule.merge(split(model), updates, rule.begin(split(model)))[0])


# ---- algebra --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.7, 0.95, 1.0])
def test_vc_asgd_is_its_closed_form(alpha: float) -> None:
    """All leases from W0: W = alpha^n W0 + (1 - alpha) sum alpha^(n-i) W_i."""
    start, trained = models(12)
    rule = muster.merge.get("vc-asgd", alpha=alpha)
    model, state = split(start), rule.begin(split(start))
    for row in trained:
        model, state = rule.merge(model, [Update(split(row), split(start))], state)
    n = len(trained)
    expected = alpha**n * start + (1 - alpha) * sum(
        alpha ** (n - i) * row for i, row in enumerate(trained, start=1)
    )
    np.testing.assert_allclose(flat(model), expected, rtol=0, atol=1e-12)


def test_vc_asgd_with_e_over_e_plus_one_is_the_running_mean() -> None:
    start, trained = models(30)
    rule = muster.merge.get("vc-asgd", alpha=None)
    model, state = split(start), rule.begin(split(start))
    for count, row in enumerate(trained, start=1):
        model, state = rule.merge(model, [Update(split(row), split(start))], state)
        expected = np.mean([start, *trained[:count]], axis=0)
        np.testing.assert_allclose(flat(model), expected, rtol=0, atol=1e-12)


def quadratic_fixed_point(rule: MergeRule, samples: Sequence[int], rounds: int = 400) -> float:
    """Where rounds of five steps of 0.1 on a/2 (x - b)^2 stop, with a = (1, 4, 0.5) and b = (0, 1, -3)."""
    model: Any = {"x": np.array(5.0)}
    state, own = rule.begin(model), [{} for _ in samples]
    for _ in range(rounds):
        updates = []
        for party, (a, b) in enumerate(zip((1.0, 4.0, 0.5), (0.0, 1.0, -3.0), strict=True)):
            handed = Handed(model, rule.send(model, state))
            weights = rule.start(handed, own[party])
            for _ in range(5):
                gradient = {"x": a * (weights["x"] - b)}
                gradient = rule.gradient(gradient, weights, handed, own[party], 0.1)
                weights = {"x": weights["x"] - 0.1 * gradient["x"]}
            update, own[party] = rule.hand_in(
                handed, Trained(weights, samples=samples[party], steps=5, lr=0.1), own[party]
            )
            updates.append(update)
        model, state = rule.merge(model, updates, state)
    return float(model["x"])


@pytest.mark.parametrize(
    ("name", "samples", "expected"),
    [
        ("fedavg", (1, 1, 1), 0.15635),
        ("scaffold", (1, 1, 1), 0.45455),
        ("fedavg", (50, 30, 20), 0.26761),
        ("scaffold", (50, 30, 20), 0.5),
    ],
)
def test_quadratics_stop_where_they_must(name: str, samples: tuple[int, ...], expected: float) -> None:
    assert quadratic_fixed_point(muster.merge.get(name), samples) == pytest.approx(expected, abs=5e-6)


def test_a_proximal_term_stops_at_the_fixed_point_of_its_own_recursion() -> None:
    """x <- x - 0.1 (a (x - b) + mu (x - W)) five times is affine in W: its fixed point in closed form."""
    mu, lr = 2.0, 0.1
    slopes, shifts = [], []
    for a, b in zip((1.0, 4.0, 0.5), (0.0, 1.0, -3.0), strict=True):
        shrink = (1 - lr * (a + mu)) ** 5
        rest = (1 - shrink) / (a + mu)
        slopes.append(shrink + rest * mu)
        shifts.append(rest * a * b)
    expected = np.mean(shifts) / (1 - np.mean(slopes))
    found = quadratic_fixed_point(muster.merge.get("fedprox", mu=mu), (1, 1, 1))
    assert found == pytest.approx(expected, abs=1e-9)


def test_fed_plus_draws_each_party_to_the_centre_as_its_closed_form_says() -> None:
    """After a step a party is at theta (w - lr g) + (1 - theta) z, theta = 1/(1 + lr mu)."""
    rule = muster.merge.get("fed+", mu=3.0)
    model, trained = models(2)
    gradient = trained[1]
    handed = Handed(split(model))
    own: Any = {"weights": split(trained[0])}
    start = rule.start(handed, own)
    assert np.array_equal(flat(start), trained[0])
    used = rule.gradient(split(gradient), start, handed, own, 0.2)
    theta = 1 / (1 + 0.2 * 3.0)
    expected = theta * (trained[0] - 0.2 * gradient) + (1 - theta) * model
    np.testing.assert_allclose(flat(start) - 0.2 * flat(used), expected, atol=1e-12)


def test_scaffold_of_one_party_without_controls_is_fedavg() -> None:
    model, trained = models(1)
    scaffold, handed = muster.merge.get("scaffold"), Handed(split(model))
    sent = scaffold.send(split(model), scaffold.begin(split(model)))
    update, _ = scaffold.hand_in(
        Handed(split(model), sent), Trained(split(trained[0]), samples=3, steps=4, lr=0.1), {}
    )
    fedavg = muster.merge.get("fedavg")
    plain, _ = fedavg.hand_in(handed, Trained(split(trained[0]), samples=3, steps=4, lr=0.1), {})
    np.testing.assert_allclose(merged(scaffold, model, [update]), merged(fedavg, model, [plain]), atol=1e-15)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fednova_of_equal_steps_is_fedavg(momentum: float) -> None:
    model, trained = models(5)
    updates = updates_of(model, trained, samples=[3, 1, 4, 1, 5], steps=[7] * 5)
    nova, average = muster.merge.get("fednova", momentum=momentum), muster.merge.get("fedavg")
    np.testing.assert_allclose(merged(nova, model, updates), merged(average, model, updates), atol=1e-12)


# ---- each rule beside a few lines of NumPy ----------------------------------------------------------------------------

SAMPLES, STEPS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
P = np.array(SAMPLES) / sum(SAMPLES)


def fedopt(square: Callable[[Vector, Vector], Vector], beta1: float) -> Callable[[Vector, Vector], Vector]:
    def oracle(w: Vector, x: Vector) -> Vector:
        m, v = np.zeros_like(w), np.full_like(w, 1e-6)
        for _ in range(2):
            d = P @ (x - w)
            m, v = beta1 * m + (1 - beta1) * d, square(v, d)
            w = w + 0.1 * m / (np.sqrt(v) + 1e-3)
        return w

    return oracle


def nova(w: Vector, x: Vector) -> Vector:
    a = np.array(
        [sum(0.5**j for j in range(i)) for i in STEPS]
    )  # how often the first, second, ... gradient counts
    a = np.array([sum(sum(0.5**j for j in range(k - i)) for i in range(k)) for k in STEPS])
    return w + (P @ a) * sum(p / each * (row - w) for p, each, row in zip(P, a, x, strict=True))


def diloco(w: Vector, x: Vector) -> Vector:
    import torch

    parameter = torch.nn.Parameter(torch.from_numpy(w.copy()))
    outer = torch.optim.SGD([parameter], lr=0.7, momentum=0.9, nesterov=True)
    for _ in range(2):
        parameter.grad = parameter.detach() - torch.from_numpy(x.mean(0))
        outer.step()
    return parameter.detach().numpy()


def fair(w: Vector, x: Vector) -> Vector:
    f, d = np.array(STEPS, float), (w - x) / 0.1
    h = 2.0 * f * (d * d).sum(1) + 10 * f**2
    return w - (f**2 @ d) / h.sum()


def krum_order(x: Vector, f: int) -> list[int]:
    n = len(x)
    scores = []
    for i in range(n):
        distances = sorted(float(((x[i] - x[j]) ** 2).sum()) for j in range(n) if j != i)
        scores.append(sum(distances[: n - f - 2]))
    return sorted(range(n), key=lambda i: scores[i])


def bulyan(w: Vector, x: Vector, f: int = 2) -> Vector:
    left, chosen = list(range(len(x))), []
    while len(chosen) < len(x) - 2 * f:
        near = max(1, len(left) - f - 2)
        score = {
            i: sum(sorted(float(((x[i] - x[j]) ** 2).sum()) for j in left if j != i)[:near]) for i in left
        }
        best = min(left, key=lambda i: score[i])
        left.remove(best)
        chosen.append(best)
    kept, result = len(chosen) - 2 * f, np.empty_like(w)
    for k in range(len(w)):
        values = x[chosen, k]
        nearest = sorted(values, key=lambda v: abs(v - np.median(values)))[:kept]
        result[k] = np.mean(nearest)
    return result


def clipped(w: Vector, x: Vector) -> Vector:
    d = x - w
    norms = np.linalg.norm(d, axis=1)
    return w + np.mean([row * min(1, 1.5 / norm) for row, norm in zip(d, norms, strict=True)], axis=0)


def bowl(arrays: Any) -> float:
    return float(((flat(arrays) - 0.2) ** 2).sum())


def zeno(w: Vector, x: Vector) -> Vector:
    base = float(((w - 0.2) ** 2).sum())
    scores = [base - ((row - 0.2) ** 2).sum() - 0.01 * ((row - w) ** 2).sum() for row in x]
    return np.mean([x[i] for i in np.argsort(scores)[3:]], axis=0)


def nearest_to_model(w: Vector, x: Vector) -> Vector:
    return x[np.argsort(((x - w) ** 2).sum(1))[:-2]].mean(0)


def geometric(w: Vector, x: Vector) -> Vector:
    found = minimize(
        lambda z: np.linalg.norm(x - z, axis=1).sum(),
        x.mean(0),
        jac=lambda z: ((z - x) / np.linalg.norm(x - z, axis=1)[:, None]).sum(0),
        method="BFGS",
        options={"gtol": 1e-9},
    )
    return found.x


ROUNDS: dict[str, tuple[dict[str, Any], int, Callable[[Vector, Vector], Vector], float]] = {
    # name: options, merges of the same round, oracle, tolerance
    "fedavg": ({}, 1, lambda w, x: P @ x, 1e-12),
    "fedprox": ({"mu": 0.5}, 1, lambda w, x: P @ x, 1e-12),
    "fednova": ({"momentum": 0.5}, 1, nova, 1e-12),
    "diloco": ({}, 2, diloco, 1e-12),
    "fedadagrad": ({}, 2, fedopt(lambda v, d: v + d**2, 0.0), 1e-12),
    "fedadam": ({}, 2, fedopt(lambda v, d: 0.99 * v + 0.01 * d**2, 0.9), 1e-12),
    "fedyogi": ({}, 2, fedopt(lambda v, d: v - 0.01 * d**2 * np.sign(v - d**2), 0.9), 1e-12),
    "q-fedavg": ({"q": 2.0, "lr": 0.1}, 1, fair, 1e-12),
    "fed+": ({"centre": "median"}, 1, lambda w, x: np.median(x, axis=0), 1e-12),
    "median": ({}, 1, lambda w, x: np.median(x, axis=0), 1e-12),
    "trimmed-mean": ({"f": 3}, 1, lambda w, x: np.sort(x, axis=0)[3:-3].mean(0), 1e-12),
    "krum": ({"f": 4}, 1, lambda w, x: x[krum_order(x, 4)[0]], 1e-12),
    "multi-krum": ({"f": 3}, 1, lambda w, x: x[krum_order(x, 3)[:8]].mean(0), 1e-12),
    "bulyan": ({"f": 2}, 1, bulyan, 1e-12),
    "geometric-median": ({}, 1, geometric, 1e-5),
    "norm-clipping": ({"bound": 1.5}, 1, clipped, 1e-12),
    "zeno": ({"loss": bowl, "f": 3, "rho": 0.01}, 1, zeno, 1e-12),
    "comparative-elimination": ({"f": 2}, 1, nearest_to_model, 1e-12),
}  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ROUNDS)
def test_a_round_is_what_a_few_lines_of_numpy_make_of_it(name: str, seed: int) -> None:
    options, merges, oracle, tolerance = ROUNDS[name]
    rule = muster.merge.get(name, **options)
    start, trained = models(11, seed)
    model, state = split(start), rule.begin(split(start))
    for _ in range(merges):
        updates = [
            Update(split(row), model, samples, steps, loss=float(steps))
            for row, samples, steps in zip(trained, SAMPLES, STEPS, strict=True)
        ]
        model, state = rule.merge(model, updates, state)
    np.testing.assert_allclose(flat(model), oracle(start, trained), rtol=0, atol=tolerance)


def asynchronous(alpha: float, freshness: Callable[[int], float]) -> Callable[[Vector, Vector], Vector]:
    def oracle(w: Vector, x: Vector) -> Vector:
        for staleness, row in enumerate(x):
            share = alpha * freshness(staleness)
            w = (1 - share) * w + share * row
        return w

    return oracle


def downpour(w: Vector, x: Vector, base: Vector) -> Vector:
    h = np.zeros_like(w)
    for row in x:
        h = h + (row - base) ** 2
        w = w + 0.5 * (row - base) / (np.sqrt(h) + 1e-8)
    return w


ARRIVALS: dict[str, tuple[str, dict[str, Any], Callable[[Vector, Vector], Vector]]] = {
    "downpour": ("downpour", {"lr": 0.5}, lambda w, x: w + 0.5 * (x - w).sum(0)),
    "downpour, AdaGrad": ("downpour", {"lr": 0.5, "adagrad": True}, lambda w, x: downpour(w, x, w)),
    "easgd": ("easgd", {"alpha": 0.2}, asynchronous(0.2, lambda d: 1.0)),
    "fedasync, constant": ("fedasync", {"staleness": "constant"}, asynchronous(0.6, lambda d: 1.0)),
    "fedasync, polynomial": ("fedasync", {"a": 0.3}, asynchronous(0.6, lambda d: (1 + d) ** -0.3)),
    "fedasync, hinge": (
        "fedasync",
        {"staleness": "hinge", "a": 2.0, "b": 3},
        asynchronous(0.6, lambda d: [1, 1, 1, 1, 1 / 3, 1 / 5, 1 / 7][d]),
    ),
    "fedbuff": (
        "fedbuff",
        {"buffer": 3, "lr": 0.8},
        lambda w, x: (
            w + 0.8 / 3 * sum((row - w) / np.sqrt(1 + d) for d, row in enumerate(x[:6]))
        ),  # the seventh waits
    ),
}


@pytest.mark.parametrize("case", ARRIVALS)
def test_arrivals_are_what_a_few_lines_of_numpy_make_of_them(case: str) -> None:
    name, options, oracle = ARRIVALS[case]
    rule = muster.merge.get(name, **options)
    start, trained = models(7)
    model, state = split(start), rule.begin(split(start))
    for staleness, row in enumerate(trained):
        model, state = rule.merge(model, [Update(split(row), split(start), staleness=staleness)], state)
    np.testing.assert_allclose(flat(model), oracle(start, trained), rtol=0, atol=1e-12)


def test_an_elastic_worker_goes_on_from_its_own_weights() -> None:
    """Two workers, three exchanges: Zhang et al.'s recursion, written out."""
    rule = muster.merge.get("easgd", alpha=0.25)
    generator = np.random.default_rng(4)
    centre = generator.standard_normal(SIZE)
    model, state, own = split(centre), rule.begin(split(centre)), [{}, {}]
    x: list[Vector | None] = [None, None]
    for _, worker in itertools.product(range(3), range(2)):
        held = x[worker]
        begun = centre if held is None else held - 0.25 * (held - centre)
        start = rule.start(Handed(model), own[worker])
        np.testing.assert_allclose(flat(start), begun, atol=1e-14)
        x[worker] = trained = begun + generator.standard_normal(SIZE)
        update, own[worker] = rule.hand_in(Handed(model), Trained(split(trained)), own[worker])
        model, state = rule.merge(model, [update], state)
        centre = centre + 0.25 * (trained - centre)
        np.testing.assert_allclose(flat(model), centre, atol=1e-14)


# ---- robustness of the arithmetic -----------------------------------------------------------------------------------


def test_krum_selects_by_the_true_distances_where_updates_are_tiny_beside_the_weights() -> None:
    """A million float32 weights and changes of 1e-5 of them, ten times: against distances of differences in float64."""
    rule: Any = muster.merge.get("krum", f=2)
    for seed in range(10):
        generator = np.random.default_rng(seed)
        base = generator.standard_normal(1_000_000).astype(np.float32)
        trained = [
            base + np.float32(1e-5) * generator.standard_normal(base.size, np.float32) for _ in range(9)
        ]
        updates = [Update({"w": each}, {"w": base}) for each in trained]
        assert rule.select({"w": base}, updates)[0] == krum_order(np.array(trained, np.float64), 2)[0]


def test_the_geometric_median_has_no_descent_direction_left_and_a_far_point_moves_it_little() -> None:
    _, points = models(9, seed=1)
    zero = np.zeros(SIZE)
    honest = merged(GeometricMedian(), zero, updates_of(zero, points))
    away = points - honest
    gradient = (away / np.linalg.norm(away, axis=1)[:, None]).sum(0)
    assert np.linalg.norm(gradient) < 1e-6
    far = points.copy()
    far[0] = 1e6
    moved = merged(GeometricMedian(), zero, updates_of(zero, far))
    assert np.linalg.norm(moved - honest) < np.linalg.norm(away, axis=1).max()
    assert np.linalg.norm(far.mean(0) - honest) > 1e4  # which the mean does not withstand


def test_inner_products_are_those_of_centred_changes() -> None:
    model, trained = models(6)
    updates = updates_of(model, trained)
    centred = trained - trained.mean(0)
    np.testing.assert_allclose(gram(split(model), updates), centred @ centred.T, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "f", "least"), [("krum", 2, 7), ("bulyan", 1, 7), ("trimmed-mean", 2, 5), ("multi-krum", 1, 5)]
)
def test_too_few_updates_for_so_many_bad_ones_are_refused(name: str, f: int, least: int) -> None:
    rule = muster.merge.get(name, f=f)
    model, trained = models(least)
    merged(rule, model, updates_of(model, trained))
    with pytest.raises(RefusedInput, match=f"{least - 1} updates are too few .* it needs {least}"):
        merged(rule, model, updates_of(model, trained[1:]))


# ---- all rules ----------------------------------------------------------------------------------------------------------

REQUIRED = {"zeno": {"loss": bowl}, "fedper": {"personal": ("head.*",)}}


def given(name: str) -> MergeRule:
    return muster.merge.get(name, **REQUIRED.get(name, {}))


@pytest.mark.parametrize("name", muster.merge.rules())
def test_every_rule_keeps_dtypes_counters_and_what_it_was_given(name: str) -> None:
    rule = given(name)
    model, trained = models(9)
    counter = {"bn.num_batches_tracked": np.array(40, np.int64)}
    before = split(model, np.float32) | counter
    handed = Handed(before, rule.send(before, rule.begin(before)))
    updates = []
    for number, row in enumerate(trained if rule.arrival == "round" else trained[:1]):
        weights = split(row, np.float32) | {"bn.num_batches_tracked": np.array(40 + number, np.int64)}
        update, _ = rule.hand_in(handed, Trained(weights, samples=2, steps=3, lr=0.1, loss=1.0), {})
        updates.append(update)
    copies = [{key: value.copy() for key, value in update.arrays.items()} for update in updates]
    state = rule.begin(before)
    after, _ = rule.merge(before, updates, state)
    again, _ = rule.merge(before, updates, state)
    for key, value in after.items():
        assert value.dtype == before[key].dtype
        assert value.shape == before[key].shape
        assert np.array_equal(value, again[key])  # neither model nor state was changed
    kept = name == "fedbn"
    assert after["bn.num_batches_tracked"] == (40 if kept else 40 + len(updates) - 1)
    for update, copy in zip(updates, copies, strict=True):
        assert all(np.array_equal(update.arrays[key], copy[key]) for key in copy)
    assert np.array_equal(before["scale"], split(model, np.float32)["scale"])


@pytest.mark.parametrize("name", muster.merge.rules())
def test_what_is_not_the_models_is_refused_by_name(name: str) -> None:
    rule = given(name)
    model, trained = models(1)
    whole = split(model)
    state = rule.begin(whole)
    lacking = {key: value for key, value in split(trained[0]).items() if key != "scale"}
    with pytest.raises(RefusedInput, match="update 0 lacks the array 'scale'"):
        rule.merge(whole, [Update(lacking, whole)], state)
    with pytest.raises(RefusedInput, match="has an array 'more' that the model has not"):
        rule.merge(whole, [Update(split(trained[0]) | {"more": np.zeros(2)}, whole)], state)
    with pytest.raises(RefusedInput, match=r"'head.bias' of update 0 has shape \[8\]; expected \[7\]"):
        rule.merge(whole, [Update(split(trained[0]) | {"head.bias": np.zeros(8)}, whole)], state)
    with pytest.raises(RefusedInput, match="no updates to merge"):
        rule.merge(whole, [], state)


def test_personal_layers_never_leave_a_party_and_come_back_to_it() -> None:
    rule = muster.merge.get("fedper", personal=("head.*",))
    model, trained = models(2)
    handed = Handed(split(model))
    updates, own = [], []
    for row in trained:
        update, kept = rule.hand_in(handed, Trained(split(row)), {})
        assert np.array_equal(update.arrays["head.bias"], handed.model["head.bias"])
        updates.append(update)
        own.append(kept)
    after, _ = rule.merge(split(model), updates, {})
    np.testing.assert_allclose(after["scale"], trained.mean(0)[-1])
    assert np.array_equal(after["head.bias"], split(model)["head.bias"])
    again = rule.start(Handed(after), own[1])
    assert np.array_equal(again["head.bias"], split(trained[1])["head.bias"])
    assert np.array_equal(again["scale"], after["scale"])


def test_ditto_trains_a_second_model_that_is_drawn_to_the_first() -> None:
    """On a/2 (v - b)^2 + strength/2 (v - W)^2 the optimum is (a b + strength W)/(a + strength)."""
    rule: Any = muster.merge.get("ditto", strength=3.0)
    handed = Handed({"x": np.array(2.0)})
    personal = rule.personal(handed, {})
    for _ in range(300):
        gradient = rule.personal_gradient({"x": 4.0 * (personal["x"] - 1.0)}, personal, handed)
        personal = {"x": personal["x"] - 0.1 * gradient["x"]}
    assert float(personal["x"]) == pytest.approx((4.0 * 1.0 + 3.0 * 2.0) / 7.0, abs=1e-12)


# ---- by name ------------------------------------------------------------------------------------------------------------


def test_a_rule_of_another_package_is_found_by_its_entry_point() -> None:
    rule = muster.merge.get("tests.halfway")
    model, trained = models(1)
    np.testing.assert_allclose(
        merged(rule, model, updates_of(model, trained)), (model + trained[0]) / 2, atol=1e-15
    )


def test_mistakes_in_names_and_options_are_told_with_what_would_be_right() -> None:
    with pytest.raises(RefusedInput, match="no rule 'fedagv'; did you mean fedavg"):
        muster.merge.get("fedagv")
    with pytest.raises(RefusedInput, match=r"merge rule krum: no option 'g'; .*one of.* f"):
        muster.merge.get("krum", g=2)
    with pytest.raises(RefusedInput, match="merge rule zeno: give loss; it has no default"):
        muster.merge.get("zeno")
    with pytest.raises(RefusedInput, match=r"vc-asgd: alpha: found 1\.5; expected 0 to 1"):
        muster.merge.get("vc-asgd", alpha=1.5)
