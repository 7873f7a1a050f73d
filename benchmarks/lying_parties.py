"""Parties that lie: what is left of the accuracy when some of the updates of every round do harm.

    python benchmarks/lying_parties.py [--quick] [--bars] [--seeds N] [--rounds N]

Ten parties share the handwritten digits that scikit-learn carries, evenly and at random; the first two lie. A perceptron
with 64 hidden units in each of two layers is trained in ten rounds, in each of which a party does one epoch of SGD with
momentum, under every rule that withstands bad updates and under FedAvg, which does not. Accuracy is that on the digits held
out, after the last round; a model that lies have thrown so far that no party's training ends in finite numbers stays as it
is, since the pool takes no other updates. The seeds draw the shares, the first weights and the order of samples.

What a liar hands in, for the change D that it would have made honestly:

- sign flip x 10: -10 D. Sign flip: -D.
- noise x 100: Gaussian noise, as long as 100 D on average, in place of D.
- label flip: it trains honestly on wrong labels, 9 - y.
- a little is enough (Baruch, Baruch and Goldberg, NeurIPS 2019): the liars' mean less z of their standard deviations, by
  coordinate, with the z at which just as many honest parties lie beyond as a majority with them needs. With 2 of 10 that z
  is 0, so it is shown with 12 of 50.

The lie is told where a party's update enters the merge rule: `Lying` is a rule around another.

Expected: sign flip x 10 alone turns FedAvg around (8 D - 20 D) and noise drowns it; the median, the geometric median and
Krum see two outliers. Krum takes one party's update, a tenth of the data, and is noisier for it. Bulyan needs 4f + 3
updates, which are not there. Bars: median and geometric median within 3 points of the honest run (FedAvg, nobody lies), Krum
within 6, and FedAvg at least 20 below it, under both strong attacks. The others are reported.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, ClassVar

import numpy as np
import torch
from printed_results import Verdicts, print_heading, print_table
from torch import nn

import muster
from muster.engine.pool.rules import BelowQuorum
from muster.errors import RefusedInput
from muster.federated import LocalTraining, simulate
from muster.merge import MergeRule, Update
from muster.vision import LabelledPictures, Perceptron, read_digits

JUDGED = ("fedavg", "median", "geometric-median", "krum")
STRONG = ("sign flip x 10", "noise x 100")
Attack = Callable[[Sequence[Update], list[int], np.random.Generator], list[Update]]


def changed(update: Update, change: Callable[[np.ndarray], np.ndarray]) -> Update:
    """An update with other changes of the model, array by array."""
    return replace(
        update,
        arrays={
            name: (update.base[name] + change(update.delta(name))).astype(array.dtype)
            for name, array in update.arrays.items()
        },
    )


def scaled(factor: float) -> Attack:
    """Liars hand in that multiple of their honest change."""
    return lambda updates, liars, _: [changed(updates[liar], lambda delta: factor * delta) for liar in liars]


def noise(times: float) -> Attack:
    """Liars hand in Gaussian noise that many times as long as their honest change."""

    def attack(updates: Sequence[Update], liars: list[int], draws: np.random.Generator) -> list[Update]:
        found = []
        for liar in liars:
            deltas = [updates[liar].delta(name).ravel() for name in updates[liar].arrays]
            deviation = times * float(np.sqrt(np.mean(np.concatenate(deltas) ** 2)))
            found.append(
                changed(updates[liar], lambda delta, each=deviation: draws.normal(0.0, each, delta.shape))
            )
        return found

    return attack


def supporters(parties: int, liars: int) -> float:
    """z of "a little is enough": equation 2 of the paper, with s = floor(n/2 + 1) - m honest parties to be won over."""
    honest = parties - liars
    return NormalDist().inv_cdf((honest - (parties // 2 + 1 - liars)) / honest)


def little(updates: Sequence[Update], liars: list[int], draws: np.random.Generator) -> list[Update]:
    """All liars hand in the same: their mean less z of their standard deviations."""
    z = supporters(len(updates), len(liars))
    deltas = {name: np.stack([updates[liar].delta(name) for liar in liars]) for name in updates[0].arrays}
    arrays = {
        name: (updates[0].base[name] + delta.mean(axis=0) - z * delta.std(axis=0)).astype(
            updates[0].base[name].dtype
        )
        for name, delta in deltas.items()
    }
    return [replace(updates[liar], arrays=arrays) for liar in liars]


ATTACKS: dict[str, Attack] = {
    "sign flip x 10": scaled(-10),
    "noise x 100": noise(100),
    "sign flip": scaled(-1),
    "a little is enough": little,
}


@dataclass(frozen=True)
class Lying(MergeRule):
    """A rule whose first updates of every round are lies; all parties take part, so they are those of the first parties.

    Arguments:
        rule: what merges.
        attack: what the liars hand in.
        liars: how many.
        seed: of what they draw.
    """

    name: ClassVar[str] = "lying"
    rule: MergeRule
    attack: Attack
    liars: int
    seed: int

    def begin(self, model: Any) -> Any:
        return self.rule.begin(model) | {"round": {"": np.zeros(1, dtype=np.int64)}}

    def merge(self, model: Any, updates: Sequence[Update], state: Any) -> Any:
        number = int(state["round"][""][0])
        lies = self.attack(updates, list(range(self.liars)), np.random.default_rng([self.seed, number]))
        model, after = self.rule.merge(model, [*lies, *updates[self.liars :]], state)
        return model, {**after, "round": {"": np.array([number + 1])}}

    def _merge(self, model: Any, updates: Sequence[Update], state: Any) -> Any:
        raise NotImplementedError  # the other rule's is used


def rules(f: int) -> dict[str, MergeRule]:
    """The rules to compare, set up for that many liars."""
    made = {
        name: muster.merge.get(name) for name in ("fedavg", "median", "geometric-median", "norm-clipping")
    }
    for name in ("trimmed-mean", "krum", "multi-krum", "bulyan", "comparative-elimination"):
        made[name] = muster.merge.get(name, f=f)
    return made


def trained(
    digits: LabelledPictures,
    rule: MergeRule,
    attack: str | None,
    parties: int,
    liars: int,
    rounds: int,
    seed: int,
) -> float | None:
    """Accuracy in % on held-out digits after the last round that could be merged; None where the rule wants more parties."""
    pixels = torch.from_numpy(digits.train.pixels.transpose(0, 3, 1, 2).copy())
    labels = torch.from_numpy(digits.train.labels)
    shares = []
    for number, mine in enumerate(muster.federated.even(len(labels), parties, seed=seed)):
        flipped = attack == "label flip" and number < liars
        shares.append((pixels[mine], 9 - labels[mine] if flipped else labels[mine]))
    name = rule.name
    if attack in ATTACKS:
        rule = Lying(rule, ATTACKS[attack], liars, seed)

    def make() -> nn.Module:
        torch.manual_seed(seed)
        return Perceptron(mean=digits.mean, deviation=digits.deviation)

    pictures = torch.from_numpy(digits.test.pixels.transpose(0, 3, 1, 2).copy())
    measured: list[float] = []

    def accuracy(model: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            measured.append(100 * float((model(pictures).argmax(1).numpy() == digits.test.labels).mean()))
        return {}

    local = LocalTraining(epochs=1, batch=16, lr=0.1, momentum=0.9)
    try:
        simulate(make, shares, rule, rounds, local=local, seed=seed, evaluate=accuracy)
    except RefusedInput:
        return None
    except BelowQuorum:
        print(f"{name}, {attack}, seed {seed}: no finite update after round {len(measured) - 1}", flush=True)
    return measured[-1]


def compared(
    digits: LabelledPictures,
    attacks: Sequence[str | None],
    parties: int,
    liars: int,
    rounds: int,
    seeds: int,
    only: Sequence[str] = (),
) -> dict[str, list[np.ndarray | None]]:
    """Accuracies over the seeds, under each attack, by rule; the first row is FedAvg when nobody lies. Printed as a table."""
    found: dict[str, list[np.ndarray | None]] = {}
    for name, rule in rules(liars).items():
        if only and name not in only:
            continue
        found[name] = []
        for attack in attacks:
            each = [trained(digits, rule, attack, parties, liars, rounds, seed) for seed in range(seeds)]
            found[name].append(None if None in each else np.array(each))
    print_table(
        f"accuracy in % on held-out digits, {liars} of {parties} parties lie: mean ± s.d. over {seeds} seeds",
        ["rule", *(attack or "nobody lies" for attack in attacks)],
        [
            [
                name,
                *(
                    "too few parties"
                    if each is None
                    else f"{each.mean():.1f} ± {each.std(ddof=min(1, seeds - 1)):.1f}"
                    for each in row
                ),
            ]
            for name, row in found.items()
        ],
    )
    return found


def main() -> int:
    """Trains, prints, judges."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run; its figures mean nothing")
    parser.add_argument("--bars", action="store_true", help="only the rules and attacks that are judged")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    seeds, rounds = (1, 2) if arguments.quick else (arguments.seeds, arguments.rounds)
    torch.set_num_threads(1)
    print_heading("Lying parties: digits, dealt evenly", seeds=seeds, rounds=rounds)
    digits = read_digits()
    attacks = (None, *STRONG) if arguments.bars else (None, *STRONG, "sign flip", "label flip")
    found = compared(digits, attacks, 10, 2, rounds, seeds, only=JUDGED if arguments.bars else ())
    verdicts, honest = Verdicts(), found["fedavg"][0]
    assert honest is not None
    for number, attack in enumerate(STRONG, start=1):
        for rule, most in (("median", 3), ("geometric-median", 3), ("krum", 6)):
            below = honest - found[rule][number]
            verdicts.judge(
                f"{attack}: {rule} within {most} points of the honest run",
                float(below.mean()) <= most,
                f"{below.mean():.1f} ± {below.std(ddof=min(1, seeds - 1)):.1f} below",
            )
        below = honest - found["fedavg"][number]
        verdicts.judge(
            f"{attack}: fedavg falls by at least 20", float(below.mean()) >= 20, f"{below.mean():.1f} below"
        )
    if not arguments.bars:
        compared(digits, (None, "a little is enough", "sign flip"), 50, 12, rounds, seeds)
    return verdicts.exit_code()


if __name__ == "__main__":
    sys.exit(main())
