"""How rules of arrivals train at equal samples: the same leases in the same order for all of them, by `volunteer_turns`."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from printed_results import Verdicts, print_table
from volunteer_turns import in_turns

from muster.apps.vision.classifiers import make_classifier
from muster.apps.vision.digits import read_digits
from muster.apps.vision.labelled_pictures import LabelledPictures, PictureFiles, Pixels, read_pictures
from muster.engine.pool.worker import Outcome, Task
from muster.merge import Handed, MergeRule, get
from muster.training.federated.local_training import (
    LocalTraining,
    Party,
    load_weights,
    train_party,
    weights_of,
)

WORKERS = 8
ARRIVALS = 200

VC_ASGD = {
    "alpha 0.7": get("vc-asgd", alpha=0.7),
    "alpha 0.95": get("vc-asgd", alpha=0.95),
    "alpha 0.999": get("vc-asgd", alpha=0.999),
    "alpha e/(e+1)": get("vc-asgd", alpha=None),
}
OTHERS = {
    "fedasync, polynomial": get("fedasync"),
    "downpour, lr 0.5": get("downpour", lr=0.5),
    "fedbuff, K = 8, lr 4": get("fedbuff", buffer=8, lr=4.0),
}


@dataclass(frozen=True)
class Recipe:
    """What is trained.

    Arguments:
        arch: of the network.
        pictures: to train on and to be measured by.
        shards: that the training pictures are dealt into; leases take them in turn.
        local: the training of a lease.
    """

    arch: str
    pictures: LabelledPictures
    shards: int
    local: LocalTraining

    def accuracy(self, rule: MergeRule, seed: int, arrivals: int) -> float:
        """On the held-out pictures, after so many arrivals, in percent."""
        torch.manual_seed(seed)
        pictures = self.pictures
        model = make_classifier(
            self.arch,
            len(pictures.classes),
            pictures.shape,
            mean=pictures.mean,
            deviation=pictures.deviation,
        )
        inputs, labels = _channels_first(pictures.train.pixels), torch.from_numpy(pictures.train.labels)
        order = np.random.default_rng([seed, 1]).permutation(len(labels))
        shards = [Party((inputs[mine], labels[mine])) for mine in np.array_split(order, self.shards)]
        units = [
            ({"shard": unit % self.shards, "unit": unit}, len(shards[unit % self.shards]))
            for unit in range(arrivals)
        ]

        def work(task: Task) -> Outcome:
            update, _, _ = train_party(
                model,
                shards[task.work["shard"]],
                rule,
                self.local,
                Handed(task.model, task.sent),
                task.own,
                seed=(seed, 2, task.work["unit"]),
            )
            return Outcome(update.arrays, task.samples, update.steps, update.loss, update.extra)

        first = weights_of(model)
        with tempfile.TemporaryDirectory() as folder:
            final = in_turns(Path(folder), first, rule, units, work, workers=WORKERS, seed=seed)
        load_weights(model, final.model)
        model.eval()
        with torch.no_grad():
            parts = [model(part).argmax(1) for part in _channels_first(pictures.test.pixels).split(500)]
        return 100 * float((torch.cat(parts).numpy() == pictures.test.labels).mean())


def _channels_first(pixels: Pixels) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def rules(asked: argparse.Namespace, verdicts: Verdicts) -> None:
    """The part `alpha` of the benchmark."""
    torch.set_num_threads(1)
    arrivals = 20 if asked.quick else ARRIVALS
    seeds = range(1 if asked.quick else asked.seeds)
    digits = Recipe("mlp", read_digits(), 10, LocalTraining(batch=32, lr=0.05))
    title = f"digits, perceptron: accuracy in % after {arrivals} arrivals, learning rate {{}}"
    found = _table(title.format(0.05), digits, seeds, arrivals)
    high, middle, low = (found[name] for name in ("alpha 0.7", "alpha 0.95", "alpha 0.999"))
    verdicts.judge(
        "digits: alpha 0.7 above 0.95 above 0.999",
        high > middle > low,
        f"{high:.1f}, {middle:.1f}, {low:.1f} %",
    )
    best = max(found, key=lambda name: found[name])
    verdicts.judge(
        "digits: a best rule at least 1 point above alpha 0.7",
        found[best] >= high + 1,
        f"{best} {found[best]:.1f} %, {found[best] - high:+.1f} points",
    )
    faster = replace(digits, local=LocalTraining(batch=32, lr=0.1))
    _table(title.format(0.1), faster, seeds, arrivals)
    if asked.data is None:
        print("CIFAR-10: left out, since --data names no folder with cifar10/", flush=True)
        return
    cifar = read_pictures(PictureFiles(asked.data / "cifar10"), None)
    recipe = Recipe("cnn-small", cifar, 50, LocalTraining(batch=32, lr=0.05))
    few = range(1 if asked.quick else min(asked.seeds, asked.cifar_seeds))
    _table(
        f"CIFAR-10 (JPEG, 30,000 pictures), small convolutional network: accuracy in % after {arrivals} arrivals",
        recipe,
        few,
        arrivals,
    )


def _table(title: str, recipe: Recipe, seeds: Sequence[int], arrivals: int) -> dict[str, float]:
    """Trains by every rule with every seed; returns the means."""
    means, rows = {}, []
    for name, rule in (VC_ASGD | OTHERS).items():
        found = [recipe.accuracy(rule, seed, arrivals) for seed in seeds]
        means[name] = float(np.mean(found))
        spread = f"{np.std(found, ddof=1):.1f}" if len(found) > 1 else "-"
        rows.append([name, f"{means[name]:.1f}", spread, ", ".join(f"{each:.1f}" for each in found)])
    print_table(title, ["rule", "mean", "s.d.", "by seed"], rows)
    return means
