"""The two copies of each stage that a bidirectional pipeline has: their gradients are summed, their buffers kept equal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from muster.training.pipeline._schedule import Schedule

_Gradients = list[tuple[nn.Parameter, Tensor]]

_FLAG: Final = 1


class ReplicaPair:
    """This rank and the one that holds the other copies of its stages; all ranks make theirs together.

    Arguments:
        schedule: of two replicas.
        rank: this one.
        stages: this rank's modules by (replica, stage).
    """

    def __init__(self, schedule: Schedule, rank: int, stages: Mapping[tuple[int, int], nn.Module]) -> None:
        # both ranks of a pair go through the stages in the same order
        self._modules = [
            (stages[key], schedule.rank_of(key[1])) for key in sorted(stages, key=lambda key: key[1])
        ]
        for low in range(schedule.ranks // 2):
            pair = [low, schedule.ranks - 1 - low]
            group = dist.new_group(pair)
            if rank in pair:
                self._group = group

    def set_gradients_aside(self) -> _Gradients:
        """Takes the gradients of earlier steps away, so that only this step's are summed."""
        kept = [(parameter, parameter.grad) for parameter in self._parameters() if parameter.grad is not None]
        for parameter, _ in kept:
            parameter.grad = None
        return kept

    def add(self, earlier: _Gradients) -> None:
        """Adds what was set aside."""
        with torch.no_grad():
            for parameter, gradient in earlier:
                parameter.grad = gradient if parameter.grad is None else gradient.add_(parameter.grad)

    def exchange(self) -> None:
        """Sums the gradients of both copies, and takes the first replica's buffers.

        A parameter that no micro-batch used keeps no gradient, as in the sequential model. The sum of two is the same
        on both ranks to the bit, so that equal copies stay equal.
        """
        by_type: dict[torch.dtype, list[nn.Parameter]] = {}
        for parameter in self._parameters():
            by_type.setdefault(parameter.dtype, []).append(parameter)
        for parameters in by_type.values():
            self._sum(parameters)
        for module, owner in self._modules:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=owner, group=self._group)

    def _parameters(self) -> list[nn.Parameter]:
        return [
            parameter
            for module, _ in self._modules
            for parameter in module.parameters()
            if parameter.requires_grad
        ]

    def _sum(self, parameters: list[nn.Parameter]) -> None:
        parts: list[Tensor] = []
        for parameter in parameters:
            gradient = parameter.grad
            used = parameter.new_full((_FLAG,), 0 if gradient is None else 1)
            parts += [used, (torch.zeros_like(parameter) if gradient is None else gradient).flatten()]
        summed = torch.cat([part.detach() for part in parts])
        dist.all_reduce(summed, group=self._group)
        place = 0
        for parameter in parameters:
            end = place + _FLAG + parameter.numel()
            used, total = summed[place : place + _FLAG], summed[place + _FLAG : end]
            parameter.grad = total.view_as(parameter).clone() if bool(used) else None
            place = end
