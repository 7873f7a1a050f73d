"""Distributed evaluation that counts every item exactly once, whatever the number of ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Evaluation:
    """Qualities of held-out items.

    Arguments:
        items: for each item in order, its qualities by name.
        samples: how much each item counts.
    """

    items: Sequence[dict[str, float]]
    samples: Sequence[int]

    def means(self) -> dict[str, float]:
        """Mean of each quality over the items that have it, weighed by their samples, summed in the items' order."""
        means = {}
        for name in dict.fromkeys(name for item in self.items for name in item):
            having = [
                (item[name], count)
                for item, count in zip(self.items, self.samples, strict=True)
                if name in item
            ]
            means[name] = math.fsum(value * count for value, count in having) / sum(
                count for _, count in having
            )
        return means


def evaluate_exact(
    model: torch.nn.Module,
    items: Sequence[Any],
    evaluate: Callable[[torch.nn.Module, Any], dict[str, float]],
    group: dist.ProcessGroup | None = None,
    *,
    after_each: Callable[[], None] = lambda: None,
    gathering: AbstractContextManager[object] | None = None,
) -> Evaluation:
    """Evaluates ``items``, shared out over the ranks without padding; for a plain PyTorch loop as well as for Muster's.

    Each item is evaluated by exactly one rank, and the qualities are gathered and averaged in the items' order with
    correctly rounded sums: all ranks get the same result, and so do all world sizes, to the bit, as far as ``evaluate``
    computes the same for the same item::

        result = evaluate_exact(model, test_set, lambda model, item: {"accuracy": ...})
        print(result.means())

    Arguments:
        model: on this rank, with the same weights and buffers on all; in evaluation mode for the while.
        items: any sequence, also one shorter than the number of ranks, or empty; the same on all ranks. One that has
            ``samples`` counts as that many.
        evaluate: gives the qualities of one item, by name; called without gradients.
        group: the ranks that share the items and all call this; None: the default group, or this process alone where
            torch.distributed has not been initialised.
        after_each: called after each item, such as for a sign of life.
        gathering: a context in which this rank waits for the others.

    Returns:
        The qualities of all items.
    """
    rank, world_size = 0, 1
    if group is not None or dist.is_initialized():
        rank, world_size = dist.get_rank(group), dist.get_world_size(group)
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    mine: list[tuple[int, dict[str, float]]] = []
    try:
        with torch.no_grad():
            for index in range(rank, len(items), world_size):
                mine.append((index, evaluate(model, items[index])))
                after_each()
    finally:
        for module, mode in was_training.items():
            module.training = mode
    gathered: list[list[tuple[int, dict[str, float]]]] = [mine]
    if world_size > 1:
        gathered = [[] for _ in range(world_size)]
        with gathering or nullcontext():
            dist.all_gather_object(gathered, mine, group=group)
    by_index = dict(pair for share in gathered for pair in share)
    return Evaluation(
        [by_index[index] for index in range(len(items))], [getattr(item, "samples", 1) for item in items]
    )
