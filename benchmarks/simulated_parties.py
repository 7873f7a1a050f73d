"""What a simulated round costs beside the plain Python loop that does the same training.

    python benchmarks/simulated_parties.py [--rounds N] [--pairs N] [--quick]

Ten parties share the digits of scikit-learn unevenly (Dirichlet, 0.5), a small convolutional network, one local epoch of
batches of 16, FedAvg. The plain loop is what one would write by hand: a `state_dict` for each party, gradient descent, a
weighted mean. Muster runs the same through its coordinator: leases, examined updates, a ledger, merge rules; once in the same
process (nothing is kept on the disk), once with two worker processes on an embedded Ray, whose start is not counted.

Physics expects: the training itself is the floor. In process the coordinator adds some milliseconds for each party and
round; two processes could halve the time on two cores, but each message between processes costs about a millisecond.
Quality is the accuracy on held-out digits after the last round. Bars: in process at most 1.2 times the plain loop, on two
processes at most 2.0 times.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
from printed_results import Verdicts, print_heading, print_table  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from statistics_of_pairs import median_interval  # noqa: E402
from torch import nn  # noqa: E402

import muster  # noqa: E402
from muster.federated import LocalTraining, simulate  # noqa: E402

PARTIES, HELD_OUT = 10, 297
HOW = LocalTraining(epochs=1, batch=16, lr=0.1)

Data = tuple[torch.Tensor, torch.Tensor]


def make() -> nn.Module:
    """Two convolutions and a linear layer for 8 x 8 pictures; 30 thousand weights."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def digits() -> tuple[list[Data], Data]:
    """The parties' digits, and those that none of them has."""
    inputs, labels = load_digits(return_X_y=True)
    pictures = torch.tensor(inputs / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    targets = torch.tensor(labels)
    held = pictures[:HELD_OUT], targets[:HELD_OUT]
    pictures, targets = pictures[HELD_OUT:], targets[HELD_OUT:]
    parts = muster.federated.dirichlet(targets.numpy(), PARTIES, 0.5, seed=0, least=HOW.batch)
    return [(pictures[mine], targets[mine]) for mine in map(torch.from_numpy, parts)], held


def plain(parties: list[Data], rounds: int) -> tuple[float, nn.Module]:
    """Seconds a round, and the model, of a loop by hand."""
    model = make()
    whole = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    total = sum(len(targets) for _, targets in parties)
    generator = torch.Generator().manual_seed(0)
    began = time.perf_counter()
    for _ in range(rounds):
        mean = {name: torch.zeros_like(tensor) for name, tensor in whole.items()}
        for inputs, targets in parties:
            model.load_state_dict(whole)
            optimizer = torch.optim.SGD(model.parameters(), lr=HOW.lr)
            for batch in torch.randperm(len(inputs), generator=generator).split(HOW.batch):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs[batch]), targets[batch]).backward()
                optimizer.step()
            for name, tensor in model.state_dict().items():
                mean[name] += len(targets) / total * tensor
        whole = mean
    took = (time.perf_counter() - began) / rounds
    model.load_state_dict(whole)
    return took, model


def simulated(parties: list[Data], rounds: int, workers: int) -> tuple[float, nn.Module]:
    """Seconds a round, and the model, of `muster.federated.simulate`; the first round, with its starts, is not counted."""
    times: list[float] = []

    def stamp(model: nn.Module) -> dict[str, float]:
        times.append(time.perf_counter())
        return {}

    found = simulate(make, parties, "fedavg", rounds + 1, local=HOW, workers=workers, evaluate=stamp)
    return (times[-1] - times[1]) / rounds, found.model


def accuracy(model: nn.Module, held: Data) -> float:
    """On digits that no party has."""
    with torch.no_grad():
        return float((model(held[0]).argmax(1) == held[1]).float().mean())


def main() -> int:
    """Measures, prints, judges."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a smoke run; its figures mean nothing")
    arguments = parser.parse_args()
    rounds, pairs = (2, 1) if arguments.quick else (arguments.rounds, arguments.pairs)
    torch.set_num_threads(1)
    print_heading("Simulated parties", parties=PARTIES, rounds=rounds, pairs=pairs)
    parties, held = digits()
    ways: dict[str, Any] = {
        "plain loop": lambda: plain(parties, rounds),
        "in process": lambda: simulated(parties, rounds, 0),
        "two processes": lambda: simulated(parties, rounds, 2),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    quality: dict[str, float] = {}
    draws = np.random.default_rng(0)
    for _ in range(pairs):
        for name in draws.permutation(list(ways)).tolist():
            took, model = ways[name]()
            seconds[name].append(took)
            quality[name] = accuracy(model, held)
    verdicts, rows = Verdicts(), []
    for name, values in seconds.items():
        ratio = median_interval(
            [one / other for one, other in zip(values, seconds["plain loop"], strict=True)]
        )
        rows.append(
            [
                name,
                median_interval([1e3 * each for each in values]).text(1),
                ratio.text(),
                f"{quality[name]:.3f}",
            ]
        )
        for limited, limit in (("in process", 1.2), ("two processes", 2.0)):
            if name == limited:
                verdicts.judge(
                    f"{name}: a round at most {limit} x the plain loop's", ratio.median <= limit, ratio.text()
                )
    print_table("A round of ten parties", ["", "ms", "of the plain loop", "accuracy"], rows)
    return verdicts.exit_code()


if __name__ == "__main__":
    sys.exit(main())
