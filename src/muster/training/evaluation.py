"""Distributed evaluation that counts every item exactly once, whatever the number of ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from muster.engine.gang import RankContext


@dataclass(frozen=True)
class Evaluation:
    """Qualities of held-out items.

    Arguments:
        items: for each item in order, its qualities by name.
    """

    items: Sequence[dict[str, float]]

    def means(self) -> dict[str, float]:
        """Mean of each quality over the items that have it, summed in the items' order."""
        names = dict.fromkeys(name for item in self.items for name in item)
        return {
            name: math.fsum(values) / len(values)
            for name in names
            if (values := [item[name] for item in self.items if name in item])
        }


def evaluate_exact(
    context: RankContext,
    model: torch.nn.Module,
    items: Sequence[Any],
    evaluate: Callable[[torch.nn.Module, Any], dict[str, float]],
) -> Evaluation:
    """Evaluates ``items``, shared out over the ranks without padding; the result is the same on all ranks and world sizes.

    Arguments:
        context: the rank; all ranks must call this together.
        model: put into evaluation mode for the while.
        items: any sequence, also one shorter than the number of ranks.
        evaluate: gives the qualities of one item.
    """
    was_training = model.training
    model.eval()
    mine: list[tuple[int, dict[str, float]]] = []
    with torch.no_grad():
        for index in range(context.rank, len(items), context.world_size):
            mine.append((index, evaluate(model, items[index])))
            context.heartbeat()
    model.train(was_training)
    gathered: list[list[tuple[int, dict[str, float]]]] = [[] for _ in range(context.world_size)]
    with context.clock.in_a_collective():
        dist.all_gather_object(gathered, mine, group=context.control)
    by_index = dict(pair for share in gathered for pair in share)
    return Evaluation([by_index[index] for index in range(len(items))])
