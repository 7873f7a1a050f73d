"""The same pictures dealt evenly and unevenly: CIFAR-10 (JPEG) at ten parties, under several merge rules.

    python benchmarks/partitions.py --data DIR [--quick] [--seeds N] [--rounds N]

`DIR` holds `cifar10/*.tar.xz`. The first 1,000 training pictures of each class are dealt to ten parties twice: evenly and at
random (IID), and by a Dirichlet distribution of every class with concentration 0.1 (Hsu, Qi and Brown, arXiv:1909.06335),
which leaves a party with two or three classes and some with several times the pictures of others. A small convolutional
network without batch normalization is trained in rounds; half of the parties take part in each, an epoch of SGD on their own
pictures.

Expected: every rule is worse on the uneven partition, because parties drift towards their own classes and half of them are
away. FedProx with a small mu changes little; a server's momentum (`diloco`, whose outer step is Nesterov's; with plain SGD at
the parties it is FedAvgM) and FedAdam smooth what absent parties do to a round; SCAFFOLD corrects the drift, but from control
variates that are as old as a party's last turn. Nothing is judged: the table is reported. Settings are usual ones, none was
tuned to the held-out pictures.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from printed_results import print_heading, print_table
from torch import nn

import muster
from muster.apps.vision.labelled_pictures import Pictures
from muster.federated import LocalTraining, simulate
from muster.merge import MergeRule
from muster.vision import LabelledPictures, PictureFiles, SmallCNN, read_pictures

PARTIES, FRACTION, ALPHA, BATCH, RATE = 10, 0.5, 0.1, 50, 0.1
LEAST = 10  # pictures of a party
TRAINING = 10_000  # pictures: the first archive, which has 1,000 of each class


def rules() -> dict[str, MergeRule]:
    """The rules to compare."""
    return {
        "fedavg": muster.merge.get("fedavg"),
        "fedprox, mu = 0.01": muster.merge.get("fedprox", mu=0.01),
        "scaffold": muster.merge.get("scaffold", parties=PARTIES),
        "diloco, lr = 0.7, momentum = 0.9": muster.merge.get("diloco"),
        "fedadam, lr = 0.01": muster.merge.get("fedadam", lr=0.01),
    }


def shares(labels: np.ndarray, partition: str, seed: int) -> list[np.ndarray]:
    """Positions of the pictures of each party."""
    if partition == "IID":
        return muster.federated.even(len(labels), PARTIES, seed=seed)
    return muster.federated.dirichlet(labels, PARTIES, ALPHA, seed=seed, least=LEAST)


def accuracy(model: nn.Module, pictures: LabelledPictures) -> float:
    """The share of the held-out pictures that are recognized, in percent."""
    right = 0
    with torch.no_grad():
        for start in range(0, len(pictures.test), 500):
            part = slice(start, start + 500)
            scores = model(torch.from_numpy(pictures.test.pixels[part].transpose(0, 3, 1, 2).copy()))
            right += int((scores.argmax(1).numpy() == pictures.test.labels[part]).sum())
    return 100 * right / len(pictures.test)


def trained(
    pictures: LabelledPictures, rule: MergeRule, dealt: list[np.ndarray], rounds: int, seed: int
) -> float:
    """Accuracy after all rounds."""
    pixels, labels = pictures.train.pixels, torch.from_numpy(pictures.train.labels)
    parties = [(torch.from_numpy(pixels[mine].transpose(0, 3, 1, 2).copy()), labels[mine]) for mine in dealt]

    def make() -> nn.Module:
        torch.manual_seed(seed)
        return SmallCNN(mean=pictures.mean, deviation=pictures.deviation)

    local = LocalTraining(epochs=1, batch=BATCH, lr=RATE)
    found = simulate(make, parties, rule, rounds, local=local, fraction=FRACTION, seed=seed)
    return accuracy(found.model, pictures)


def main() -> int:
    """Trains and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, type=Path, help="the folder that holds cifar10/")
    parser.add_argument("--quick", action="store_true", help="a smoke run; its figures mean nothing")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    seeds, rounds = (1, 1) if arguments.quick else (arguments.seeds, arguments.rounds)
    torch.set_num_threads(1)
    print_heading(
        "Partitions of CIFAR-10 (JPEG)",
        parties=PARTIES,
        in_a_round=FRACTION,
        rounds=rounds,
        seeds=seeds,
        batch=BATCH,
        lr=RATE,
    )
    pictures = read_pictures(PictureFiles(arguments.data / "cifar10"))
    every = 10 if arguments.quick else 1
    train = Pictures(pictures.train.pixels[:TRAINING:every], pictures.train.labels[:TRAINING:every])
    test = Pictures(pictures.test.pixels[::every], pictures.test.labels[::every])
    pictures = replace(pictures, train=train, test=test)
    partitions = ("IID", f"Dirichlet({ALPHA})")
    dealt = {
        (partition, seed): shares(pictures.train.labels, partition, seed)
        for partition in partitions
        for seed in range(seeds)
    }
    for partition in partitions:
        sizes = [len(mine) for seed in range(seeds) for mine in dealt[partition, seed]]
        classes = [
            int((np.bincount(pictures.train.labels[mine]) >= len(mine) / 20).sum())
            for seed in range(seeds)
            for mine in dealt[partition, seed]
        ]
        print(
            f"{partition}: {min(sizes):,} to {max(sizes):,} pictures a party, median {int(np.median(sizes)):,}; "
            f"classes with at least 5 % of them: {np.mean(classes):.1f} on average"
        )
    found = {
        name: {
            partition: np.array(
                [trained(pictures, rule, dealt[partition, seed], rounds, seed) for seed in range(seeds)]
            )
            for partition in partitions
        }
        for name, rule in rules().items()
    }
    print_table(
        f"accuracy in % on {len(test):,} held-out pictures, mean ± s.d. over {seeds} seeds",
        ["rule", *partitions, "lost"],
        [
            [
                name,
                *(f"{each.mean():.1f} ± {each.std(ddof=min(1, seeds - 1)):.1f}" for each in row.values()),
                f"{(row[partitions[0]] - row[partitions[1]]).mean():.1f}",
            ]
            for name, row in found.items()
        ],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
