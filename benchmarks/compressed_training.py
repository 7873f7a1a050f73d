"""What compression does to training: a small ResNet on CIFAR-10 (JPEG), two ranks, equal steps.

    python benchmarks/compressed_training.py --data DIR [--quick] [--steps N] [--seeds N]

`DIR` holds `cifar10/*.tar.xz` with members `train/<class>/NNNN.jpg`. All methods start from the same weights, see the
same batches in the same order and use the same recipe; only the exchange of gradients differs. Compared is the training
loss, averaged over ranks and over the last tenth of the steps, method against dense of the same seed.

Top-k is used as Lin et al. ("Deep gradient compression", ICLR 2018) recommend: the momentum is each rank's own, before
selection, and in the first fifth of the steps the density falls from 25 % to 1 %. The plain form stands beside it: in
trainings that are only some ten times as long as an element waits (1 / density steps), it ends clearly above dense.

Expected (Stich et al., "Sparsified SGD with memory", NeurIPS 2018; Vogels et al., 2019): with error feedback top-k at 1
% ends where dense does, the delay of an element being short beside the run; without, nearly all of the gradient is
thrown away and training is clearly worse. Bars: top-k with error feedback within 5 % of dense; without, at least 10 %
above it; all ranks' parameters have the same hash after every step.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from muster.apps.vision.labelled_pictures import archived_pictures

RANKS = 2
BATCH = 64  # of all ranks together
LEARNING_RATE, MOMENTUM = 0.3, 0.7

Method = tuple[str, dict[str, Any]]


def methods(steps: int) -> dict[str, Method]:
    """Compressors and their options for a training of so many steps."""
    warm = {"density": 0.01, "warm_up_steps": steps // 5}
    return {
        "dense fp32": ("none", {}),
        "topk 1 %": ("topk", warm | {"momentum": MOMENTUM}),
        "topk 1 %, no error feedback": ("topk", warm | {"error_feedback": False}),
        "topk 1 %, optimizer's momentum, no warm-up": ("topk", {"density": 0.01}),
        "oktopk 1 %": ("oktopk", {"density": 0.01}),
        "powersgd rank 4": ("powersgd", {"rank": 4}),
        "int8": ("int8", {}),
        "bf16": ("bf16", {}),
    }


class Block(nn.Module):
    """Two 3 x 3 convolutions beside an identity or a projection (He et al., CVPR 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(images) + self.shortcut(images))


def resnet8(width: int = 16) -> nn.Module:
    """ResNet-8 for 32 x 32 images: three stages of one block; 78 thousand parameters at width 16."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        Block(width, width, 1),
        Block(width, 2 * width, 2),
        Block(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, 10),
    )


@dataclass(frozen=True)
class Outcome:
    """One training.

    Arguments:
        loss: mean over ranks of each step's training loss.
        equal: whether all ranks' parameters had the same hash at every step.
        megabytes: payload that one rank sent, per step.
    """

    loss: list[float]
    equal: bool
    megabytes: float

    @property
    def final(self) -> float:
        """The mean loss of the last tenth of the steps."""
        return float(np.mean(self.loss[-max(1, len(self.loss) // 10) :]))


def load_images(folder: Path, archives: int) -> tuple[np.ndarray, np.ndarray]:
    """Training images, uint8 ``[n, 3, 32, 32]``, and classes, int64 ``[n]``, from that many of the archives."""
    pictures = archived_pictures(sorted((folder / "cifar10").glob("train_*.tar.xz"))[:archives])
    return np.ascontiguousarray(pictures.pixels.transpose(0, 3, 1, 2)), pictures.labels


def train(engine: Any, data: Path, chosen: Sequence[Method], steps: int, seed: int) -> list[Outcome]:
    """Trains once with each method.

    Arguments:
        engine: a `muster.gang.Engine`.
        data: an `.npz` file with `images` and `classes`.
        chosen: names and options of compressors.
        steps, seed: of each training.
    """

    def rank_main(context: Any) -> list[tuple[list[float], list[str], float]]:
        return [train_rank(context, data, name, options, steps, seed) for name, options in chosen]

    ranks = engine.run(rank_main, ranks=RANKS, threads=1)
    return [
        Outcome(
            loss=np.mean([losses for losses, _, _ in found], axis=0).tolist(),
            equal=len({tuple(hashes) for _, hashes, _ in found}) == 1,
            megabytes=found[0][2],
        )
        for found in zip(*ranks, strict=True)
    ]


def train_rank(
    context: Any, data: Path, name: str, options: dict[str, Any], steps: int, seed: int
) -> tuple[list[float], list[str], float]:
    """One rank of one training; returns its losses, a hash of its parameters per step, megabytes sent per step."""
    from torch.nn.parallel import DistributedDataParallel

    from muster.pillars.comm.exchange import Choice, Exchange

    stored = np.load(data)
    images, classes = torch.from_numpy(stored["images"]), torch.from_numpy(stored["classes"])
    torch.manual_seed(seed)
    model = resnet8()
    with warnings.catch_warnings():
        # torch 2.13 deprecates this name, and older ones have no other.
        warnings.simplefilter("ignore", FutureWarning)
        replica = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
    # A compressor with a momentum applies it itself.
    momentum = 0.0 if options.get("momentum") else MOMENTUM
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=momentum, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=LEARNING_RATE, total_steps=steps, cycle_momentum=False
    )
    order = torch.Generator().manual_seed(seed)
    losses, hashes = [], []
    with Exchange(model.named_parameters(), Choice(name, options), seed=seed) as exchange:
        replica.register_comm_hook(None, exchange.hook)
        for _ in range(steps):
            mine = torch.randint(len(images), (BATCH,), generator=order)[context.rank :: RANKS]
            flip = torch.rand(1, generator=order) < 0.5  # the same for all methods
            batch = (images[mine].float() / 255 - 0.47) / 0.25
            loss = nn.functional.cross_entropy(replica(batch.flip(3) if flip else batch), classes[mine])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            words = nn.utils.parameters_to_vector(model.parameters()).detach().numpy()
            hashes.append(hashlib.blake2b(words.tobytes(), digest_size=8).hexdigest())
        sent = exchange.wire.sent_bytes / steps / 1e6
    return losses, hashes, sent


def main() -> int:
    from printed_results import Verdicts, print_heading, print_table
    from statistics_of_pairs import median_interval

    from muster import gang

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds cifar10/")
    parser.add_argument("--quick", action="store_true", help="a smoke run; its figures mean nothing")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--bars", action="store_true", help="only the three methods that bars are about")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    steps, seeds = (20, 1) if arguments.quick else (arguments.steps, arguments.seeds)
    print_heading(
        "Training with compressed gradients: ResNet-8, CIFAR-10 (JPEG)",
        ranks=RANKS,
        batch=BATCH,
        steps=steps,
        seeds=seeds,
    )
    images, classes = load_images(arguments.data, 1 if arguments.quick else 3)
    chosen = dict(list(methods(steps).items())[: 3 if arguments.bars else None])
    outcomes: dict[str, list[Outcome]] = {label: [] for label in chosen}
    with tempfile.TemporaryDirectory() as folder, gang.engine("local", preload=["torch"]) as engine:
        stored = Path(folder) / "images.npz"
        np.savez(stored, images=images, classes=classes)
        for seed in range(seeds):
            for label, outcome in zip(
                chosen, train(engine, stored, list(chosen.values()), steps, seed), strict=True
            ):
                outcomes[label].append(outcome)

    dense = np.array([outcome.final for outcome in outcomes["dense fp32"]])
    ratios = {
        label: median_interval(np.array([outcome.final for outcome in found]) / dense)
        for label, found in outcomes.items()
    }
    print_table(
        f"training loss over the last {max(1, steps // 10)} of {steps} steps, medians [95 %] over {seeds} seeds",
        ["method", "loss", "times dense", "MB sent per rank and step", "ranks equal"],
        [
            [
                label,
                median_interval([outcome.final for outcome in found]).text(3),
                ratios[label].text(3),
                f"{found[0].megabytes:.4f}",
                "yes" if all(outcome.equal for outcome in found) else "NO",
            ]
            for label, found in outcomes.items()
        ],
    )
    verdicts = Verdicts()
    kept, thrown = ratios["topk 1 %"], ratios["topk 1 %, no error feedback"]
    verdicts.judge(
        "top-k at 1 % with error feedback: loss within 5 % of dense", kept.median <= 1.05, kept.text(3)
    )
    verdicts.judge("without error feedback clearly worse (10 %)", thrown.median >= 1.1, thrown.text(3))
    verdicts.judge(
        "parameters equal on all ranks at every step",
        all(outcome.equal for found in outcomes.values() for outcome in found),
        "all methods, all seeds",
    )
    return verdicts.exit_code()


if __name__ == "__main__":
    sys.exit(main())
