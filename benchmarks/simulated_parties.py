"""What a simulated round costs beside the plain Python loop that does the same training.

    python benchmarks/simulated_parties.py [--parts rounds flower thousand] [--rounds N] [--pairs N] [--quick]

Ten parties share the digits of scikit-learn unevenly (Dirichlet, 0.5), a small convolutional network, one local epoch of
batches of 16, FedAvg. The plain loop is what one would write by hand: a `state_dict` for each party, gradient descent, a
weighted mean. Muster runs the same through its coordinator: leases, examined updates, a ledger, merge rules; once in the same
process (nothing is kept on the disk), once with two worker processes on an embedded Ray, whose start is not counted.

- `rounds`: what a round takes beside the loop.
- `flower`: the same parties in Flower's simulation (FedAvg, two clients at a time with a core each; `peer_flower.py`, in an
  environment of its own that is made on demand), beside Muster with two processes: seconds of a round, of the start until the
  first round is done, and the most memory that the command and all its processes take (PSS, so that shared pages count once).
- `thousand`: a thousand parties, of which a tenth takes part in each round, on two worker processes; how many processes there
  are in all.

Physics expects: the training itself is the floor. In process the coordinator adds some milliseconds for each party and
round; two processes could halve the time on two cores, but each message between processes costs about a millisecond.
Quality is the accuracy on held-out digits after the last round. Bars: in process at most 1.2 times the plain loop, on two
processes at most 2.0 times; memory at most half of Flower's; a thousand parties without a thousand processes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
from digits_network import make  # noqa: E402
from peer_environment import FLOWER, PeerUnavailable, flower_python  # noqa: E402
from printed_results import Verdicts, print_heading, print_table  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from statistics_of_pairs import median_interval  # noqa: E402
from torch import nn  # noqa: E402
from tree_memory import output_and_peak  # noqa: E402

import muster  # noqa: E402
from muster.federated import LocalTraining, simulate  # noqa: E402

PARTIES, HELD_OUT = 10, 297
MANY, COPIES = 1000, 12  # parties, and how often each digit is dealt to them
MOST_MEMORY = 0.5  # of Flower's
HOW = LocalTraining(epochs=1, batch=16, lr=0.1)

Data = tuple[torch.Tensor, torch.Tensor]


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


def simulated(
    parties: list[Data], rounds: int, workers: int, fraction: float = 1.0
) -> tuple[list[float], nn.Module]:
    """When each model of `muster.federated.simulate` was there, the first one and one a round, and the last model."""
    stamps: list[float] = []

    def stamp(model: nn.Module) -> dict[str, float]:
        stamps.append(time.perf_counter())
        return {}

    found = simulate(
        make, parties, "fedavg", rounds + 1, local=HOW, workers=workers, evaluate=stamp, fraction=fraction
    )
    return stamps, found.model


def paced(parties: list[Data], rounds: int, workers: int) -> tuple[float, nn.Module]:
    """Seconds a round, and the model; the first round, with its starts, is not counted."""
    stamps, model = simulated(parties, rounds, workers)
    return (stamps[-1] - stamps[1]) / rounds, model


def accuracy(model: nn.Module, held: Data) -> float:
    """On digits that no party has."""
    with torch.no_grad():
        return float((model(held[0]).argmax(1) == held[1]).float().mean())


def alone(parties: list[Data], held: Data, rounds: int, workers: int, fraction: float) -> None:
    """A simulation in a process of its own, whose parent looks at its memory; prints what it has come to."""
    began = time.perf_counter()
    stamps, model = simulated(parties, rounds, workers, fraction)
    told = {
        "rounds_s": np.diff(stamps[1:]).tolist(),
        "first_s": stamps[1] - began,
        "accuracy": accuracy(model, held),
    }
    print("RESULT " + json.dumps(told), flush=True)


def measured(command: list[str]) -> tuple[dict[str, Any], float, int]:
    """What a command prints of its rounds, the most memory it takes, bytes, and its processes."""
    output, _, memory = output_and_peak(command)
    (line,) = [line for line in output.splitlines() if line.startswith("RESULT ")]
    return json.loads(line.removeprefix("RESULT ")), float(memory.bytes), memory.processes


def beside_flower(parties: list[Data], held: Data, rounds: int, repeats: int, verdicts: Verdicts) -> None:
    """Muster's two processes and Flower's two clients, in turn."""
    try:
        python = flower_python()
    except PeerUnavailable as error:
        print(f"Flower skipped: it cannot be installed: {error}")
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "parties.npz"
        arrays = {f"inputs_{number}": inputs.numpy() for number, (inputs, _) in enumerate(parties)}
        arrays |= {f"labels_{number}": labels.numpy() for number, (_, labels) in enumerate(parties)}
        np.savez(
            file,
            held_inputs=held[0].numpy(),
            held_labels=held[1].numpy(),
            steps=[HOW.batch, HOW.lr],
            **arrays,
        )
        peer = str(Path(__file__).with_name("peer_flower.py"))
        ways = {
            "muster, two processes": [sys.executable, __file__, "--alone", "2", "--rounds", str(rounds)],
            f"flower {FLOWER}": [str(python), peer, str(file), str(rounds)],
        }
        found: dict[str, list[tuple[dict[str, Any], float, int]]] = {name: [] for name in ways}
        for repeat in range(repeats):
            for name, command in list(ways.items())[:: 1 if repeat % 2 else -1]:
                found[name].append(measured(command))
    rows, (ours, theirs) = [], found.values()
    for name, values in found.items():
        rows.append(
            [
                name,
                median_interval([1e3 * float(np.median(told["rounds_s"])) for told, _, _ in values]).text(1),
                median_interval([told["first_s"] for told, _, _ in values]).text(1),
                median_interval([memory / 1e6 for _, memory, _ in values]).text(0),
                str(max(count for _, _, count in values)),
                f"{values[-1][0]['accuracy']:.3f}",
            ]
        )
    columns = ["", "round, ms", "until the first round is done, s", "memory, MB", "processes", "accuracy"]
    print_table("Ten parties beside Flower", columns, rows)
    pairs = list(zip(ours, theirs, strict=True))
    memory = median_interval([one[1] / other[1] for one, other in pairs])
    bar = f"memory at most {MOST_MEMORY} x Flower's"
    verdicts.judge(bar, memory.median <= MOST_MEMORY, memory.text())
    pace = median_interval(
        [float(np.median(t[0]["rounds_s"]) / np.median(o[0]["rounds_s"])) for o, t in pairs]
    )
    print(f"Flower's round takes {pace.text(1)} times as long as Muster's on two processes")


def thousand(rounds: int, verdicts: Verdicts) -> None:
    """A thousand parties on two worker processes."""
    told, memory, processes = measured(
        [sys.executable, __file__, "--alone", "2", "--many", "--rounds", str(rounds)]
    )
    rows = [
        [
            str(MANY),
            str(MANY // 10),
            f"{float(np.median(told['rounds_s'])):.2f}",
            f"{memory / 1e6:.0f}",
            str(processes),
            f"{told['accuracy']:.3f}",
        ]
    ]
    columns = ["parties", "in a round", "round, s", "memory, MB", "processes", "accuracy"]
    print_table("A thousand parties on two worker processes", columns, rows)
    verdicts.judge("a thousand parties without a thousand processes", processes < 50, str(processes))


def many_parties() -> tuple[list[Data], Data]:
    """A thousand parties that have the digits dealt evenly among them, each digit several times."""
    parties, held = digits()
    pictures, targets = (
        torch.cat([party[which] for party in parties]).repeat_interleave(COPIES, 0) for which in (0, 1)
    )
    parts = muster.federated.even(len(targets), MANY, seed=0)
    return [(pictures[mine], targets[mine]) for mine in map(torch.from_numpy, parts)], held


def beside_the_loop(parties: list[Data], held: Data, rounds: int, pairs: int, verdicts: Verdicts) -> None:
    """Rounds by hand, in process and on two processes, in turn."""
    ways: dict[str, Any] = {
        "plain loop": lambda: plain(parties, rounds),
        "in process": lambda: paced(parties, rounds, 0),
        "two processes": lambda: paced(parties, rounds, 2),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    quality: dict[str, float] = {}
    draws = np.random.default_rng(0)
    for _ in range(pairs):
        for name in draws.permutation(list(ways)).tolist():
            took, model = ways[name]()
            seconds[name].append(took)
            quality[name] = accuracy(model, held)
    rows = []
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


def main() -> int:
    """Measures, prints, judges."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", default=["rounds", "flower", "thousand"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a smoke run; its figures mean nothing")
    parser.add_argument(
        "--alone", type=int, metavar="WORKERS", help=argparse.SUPPRESS
    )  # this script, by itself
    parser.add_argument("--many", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone is not None:
        torch.set_num_threads(1)
        dealt, fraction = (many_parties(), 0.1) if arguments.many else (digits(), 1.0)
        alone(*dealt, arguments.rounds, arguments.alone, fraction)
        return 0
    rounds, pairs = (2, 1) if arguments.quick else (arguments.rounds, arguments.pairs)
    torch.set_num_threads(1)
    print_heading("Simulated parties", parties=PARTIES, rounds=rounds, pairs=pairs)
    parties, held = digits()
    verdicts = Verdicts()
    if "rounds" in arguments.parts:
        beside_the_loop(parties, held, rounds, pairs, verdicts)
    if "flower" in arguments.parts:
        beside_flower(parties, held, rounds, 1 if arguments.quick else 5, verdicts)
    if "thousand" in arguments.parts:
        thousand(rounds, verdicts)
    return verdicts.exit_code()


if __name__ == "__main__":
    sys.exit(main())
