"""Simulated parties: fixed points known in closed form, plain gradient descent, and kills."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import muster
from muster import gang
from muster.engine.pool.rules import BelowQuorum
from muster.errors import DataError, RefusedInput
from muster.federated import LocalTraining, simulate


class Scalar(nn.Module):
    """One weight, in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.w.expand(len(inputs)), inputs  # type: ignore[return-value]


def quadratic(outputs: Any, targets: torch.Tensor) -> torch.Tensor:
    """``a/2 (w - b)^2`` with a as input and b as target."""
    weight, curvature = outputs
    return (curvature / 2 * (weight - targets) ** 2).mean()


QUADRATICS = [(np.array([a]), np.array([b])) for a, b in ((1.0, 0.0), (4.0, 1.0), (0.5, -3.0))]


@pytest.mark.parametrize(("rule", "expected"), [("fedavg", 0.15635), ("scaffold", 0.45455)])
def test_the_fixed_points_on_quadratics_are_those_of_the_theory(rule: str, expected: float) -> None:
    """FedAvg stops where K = 5 local steps of rate 0.1 pull it; SCAFFOLD at the optimum (4 - 1.5)/5.5."""
    found = simulate(
        Scalar, QUADRATICS, rule, rounds=400, local=LocalTraining(lr=0.1, steps=5, loss=quadratic)
    )
    assert abs(float(found.weights["w"][0]) - expected) < 1e-5


def regression(parties: int, samples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[Any]]:
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(samples, 5)).astype(np.float32)
    targets = (inputs @ generator.normal(size=(5, 3)) + generator.normal(size=(samples, 3))).argmax(1)
    parts = muster.federated.dirichlet(targets, parties, 0.5, seed=seed)
    return inputs, targets, [(inputs[part], targets[part]) for part in parts]


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(5, 3)


def test_one_full_step_of_every_party_is_a_step_on_all_data() -> None:
    inputs, targets, parties = regression(6, 200)
    found = simulate(linear, parties, rounds=8, local=LocalTraining(batch=1000, lr=0.5))
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(8):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.tensor(inputs)), torch.tensor(targets)).backward()
        optimizer.step()
    for name, tensor in model.state_dict().items():
        np.testing.assert_allclose(found.weights[name], tensor.numpy(), atol=2e-6)


def test_one_party_alone_is_plain_training() -> None:
    inputs, targets, _ = regression(1, 64)
    how = LocalTraining(batch=64, lr=0.3, momentum=0.9, epochs=7)
    found = simulate(linear, [(inputs, targets)], rounds=1, local=how)
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    for _ in range(7):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.tensor(inputs)), torch.tensor(targets)).backward()
        optimizer.step()
    for name, tensor in model.state_dict().items():
        np.testing.assert_allclose(found.weights[name], tensor.numpy(), atol=1e-6)


def test_a_loss_that_is_handed_in_is_that_of_the_model_handed_out() -> None:
    """q-FedAvg's first round from w = 0, by hand: L = 10, d_k = L 0.1 g_k = g_k."""
    quadratics = [(np.array([a]), np.array([b])) for a, b in ((1.0, 2.0), (4.0, 1.0), (0.5, -3.0))]
    rule = muster.merge.get("q-fedavg", q=2.0, lr=0.1)
    found = simulate(Scalar, quadratics, rule, rounds=1, local=LocalTraining(lr=0.1, steps=1, loss=quadratic))
    a, b = np.array([1, 4, 0.5]), np.array([2, 1, -3.0])
    loss, gradient = a / 2 * b**2, -a * b
    expected = -(loss**2 @ gradient) / (2 * loss @ gradient**2 + 10 * (loss**2).sum())
    np.testing.assert_allclose(found.weights["w"], expected, rtol=1e-12)


def test_a_share_of_a_thousand_parties_takes_part_in_each_round() -> None:
    inputs, targets, _ = regression(1, 2000)
    parties = [(inputs[each], targets[each]) for each in muster.federated.even(2000, 1000)]
    events: list[str] = []
    found = simulate(
        linear,
        parties,
        rounds=3,
        fraction=0.1,
        evaluate=lambda model: {"norm": float(sum(p.detach().square().sum() for p in model.parameters()))},
        told=lambda kind, who, detail: events.append(kind),
    )
    assert [row["round"] for row in found.history] == [0, 1, 2, 3]
    assert len({row["norm"] for row in found.history}) == 4
    assert found.short == []
    assert "failed" not in events


def test_counters_are_kept_and_personal_layers_stay_at_home() -> None:
    def make() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

    _, _, parties = regression(4, 120)
    how = LocalTraining(batch=16, lr=0.1)
    shared = simulate(make, parties, "fedavg", rounds=2, local=how).weights
    most = max(-(-len(inputs) // 16) for inputs, _ in parties)
    assert int(shared["1.num_batches_tracked"]) == 2 * most  # the largest, not a mean
    rule = muster.merge.get("fedbn", personal=("1.*",))
    kept = simulate(make, parties, rule, rounds=2, local=how).weights
    first = {name: tensor.numpy() for name, tensor in make().state_dict().items()}
    for name in first:
        assert np.array_equal(kept[name], first[name]) == name.startswith("1.")


def test_a_party_that_fails_ends_the_simulation_by_name() -> None:
    _, _, parties = regression(3, 60)
    parties[1] = (parties[1][0][:, :4], parties[1][1])  # four features instead of five
    with pytest.raises(
        BelowQuorum, match="round 0: 1 of 3 units were set aside after 5 attempts each: party 1"
    ):
        simulate(linear, parties, rounds=2)
    found = simulate(linear, parties, rounds=2, quorum=0.5)
    assert len(found.short) == 2


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"rule": "fedavk"}, "no rule 'fedavk'; did you mean fedavg"),
        ({"rule": "vc-asgd"}, "merges updates one by one"),
        ({"parties": []}, "parties: found none"),
        ({"parties": [(np.zeros((0, 5)), np.zeros(0))]}, "party 0 has no samples"),
        ({"parties": [(np.zeros((2, 5)), np.zeros(3))]}, "2 inputs and 3 targets"),
        ({"rounds": -1}, "rounds: found -1"),
        ({"fraction": 0.0}, "fraction: found 0.0"),
        ({"quorum": 1.5}, "quorum: found 1.5"),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence(arguments: dict[str, Any], why: str) -> None:
    _, _, parties = regression(2, 20)
    with pytest.raises(RefusedInput, match=why):
        simulate(linear, **({"parties": parties} | arguments))


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[2])
from test_simulation import linear, regression
from muster.federated import LocalTraining, simulate
import numpy as np, torch
torch.set_num_threads(1)
print("ready", flush=True)
found = simulate(
    linear, regression(5, 300)[2], "fedadam", rounds=12, local=LocalTraining(batch=8), fraction=0.6, folder=sys.argv[1]
)
np.savez(sys.argv[3], **found.weights)
"""


@pytest.mark.kill
def test_a_simulation_that_is_killed_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    def start(folder: str, out: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SCRIPT, tmp_path / folder, Path(__file__).parent, tmp_path / out]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    began = time.monotonic()
    assert start("straight", "straight.npz").wait(120) == 0
    took = time.monotonic() - began
    for part in (0.3, 0.6):
        process = start("killed", "killed.npz")
        time.sleep(part * took / 2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start("killed", "killed.npz").wait(120) == 0
    straight, killed = np.load(tmp_path / "straight.npz"), np.load(tmp_path / "killed.npz")
    for name in straight:
        np.testing.assert_array_equal(straight[name], killed[name])


@pytest.mark.parametrize("rule", ["fedavg", "scaffold"])
def test_workers_in_processes_of_their_own_come_to_the_same_bits(
    rule: str, tmp_path: Path, ray_engine: gang.Engine
) -> None:
    _, _, parties = regression(4, 200)
    options: dict[str, Any] = {"rounds": 3, "local": LocalTraining(batch=8), "seed": 5}
    rows = {"evaluate": lambda model: {"norm": float(model.weight.detach().norm())}}
    here = simulate(linear, parties, rule, **options, **rows)
    there = simulate(linear, parties, rule, **options, **rows, workers=2, engine=ray_engine, folder=tmp_path)
    for name, array in here.weights.items():
        np.testing.assert_array_equal(there.weights[name], array)
    assert here.history == there.history
    assert [row["round"] for row in here.history] == [0, 1, 2, 3]
    again = simulate(linear, parties, rule, **options, **rows, folder=tmp_path)
    assert again.history == here.history


def test_an_engine_without_ray_has_no_workers(local_engine: gang.Engine) -> None:
    _, _, parties = regression(2, 20)
    with pytest.raises(RefusedInput, match="engine: found a local one"):
        simulate(linear, parties, workers=2, engine=local_engine)


def test_a_second_engine_in_a_process_is_refused(ray_engine: gang.Engine) -> None:
    _, _, parties = regression(2, 20)
    with pytest.raises(RefusedInput, match="has an engine already"):
        simulate(linear, parties, workers=2)


def test_a_folder_goes_on_only_as_it_was_begun(tmp_path: Path) -> None:
    _, _, parties = regression(2, 40)
    simulate(linear, parties, "fedavg", rounds=2, folder=tmp_path)
    for change, why in (
        ({"rule": "fedadam"}, "rule 'fedavg', and this is one with 'fedadam'"),
        ({"rounds": 3}, "rounds 2, and this is one with 3"),
        ({"seed": 1}, "seed 0, and this is one with 1"),
    ):
        with pytest.raises(DataError, match=why):
            simulate(linear, parties, **({"rule": "fedavg", "rounds": 2, "folder": tmp_path} | change))  # type: ignore[arg-type]
