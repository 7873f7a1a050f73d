"""Local SGD: ranks train alone and average their parameters every H steps (Stich, ICLR 2019; Lin et al., ICLR 2020).

The link carries the parameters once in H steps instead of the gradients in each; what that costs in convergence
depends on the problem, and grows with H.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.algorithms.model_averaging.utils import average_parameters_or_parameter_groups
from torch.nn.parallel import DistributedDataParallel

from muster.errors import RefusedInput


def local_sgd(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    every: int,
    warm_up: int = 0,
    group: dist.ProcessGroup | None = None,
) -> LocalSGD:
    """Lets an existing loop train by local SGD: parameters are averaged after every ``every``-th ``optimizer.step()``.

    All ranks begin with rank 0's parameters and buffers, and must do the same number of steps. Averaging is torch's
    `PeriodicModelAverager`. Only parameters are averaged: buffers (running statistics) and the optimizer's state stay local.

    Arguments:
        model: the bare model, not wrapped in DistributedDataParallel.
        optimizer: over its parameters.
        every: the period H; 1 averages after every step.
        warm_up: so many steps are averaged one by one first ("post-local SGD").
        group: whose ranks average; None for all.

    Raises:
        RefusedInput: the model exchanges gradients already, or a number makes no sense.
    """
    if isinstance(model, DistributedDataParallel):
        raise RefusedInput(
            "local_sgd: DistributedDataParallel exchanges every gradient already; give the model inside it"
        )
    if every < 1 or warm_up < 0:
        raise RefusedInput(
            f"local_sgd: every={every}, warm_up={warm_up}; use a period of 1 or more and no negative warm-up"
        )
    return LocalSGD(model, optimizer, every, warm_up, group)


class LocalSGD:
    """What `local_sgd` returns.

    Attributes:
        step: steps done.
        averaged: how often the parameters have been averaged.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        every: int,
        warm_up: int,
        group: dist.ProcessGroup | None,
    ) -> None:
        self._optimizer, self._warm_up = optimizer, warm_up
        ranks = group if group is not None else dist.group.WORLD
        assert ranks is not None
        self._group = ranks
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # advises against a period of one, which is asked for
            # torch averages after the first step of a period; what is asked for is after its last.
            self._averager = PeriodicModelAverager(every, warm_up + every - 1, self._group)
        self._every = every
        self.step = self.averaged = 0
        source = dist.get_process_group_ranks(self._group)[0]
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor, src=source, group=self._group)
        self._handle = optimizer.register_step_post_hook(self._stepped)

    def _stepped(self, *_: Any) -> None:
        self.step += 1
        if self.step <= self._warm_up:
            self._average()
            self._averager.step += 1
            return
        self._averager.average_parameters(self._optimizer.param_groups)
        self.averaged += (self.step - self._warm_up) % self._every == 0

    def _average(self) -> None:
        average_parameters_or_parameter_groups(self._optimizer.param_groups, self._group)
        self.averaged += 1

    def finish(self) -> None:
        """Averages what has been trained since, and ends: all ranks hold the same parameters then. All together."""
        self._average()
        self._handle.remove()

    def state_dict(self) -> dict[str, int]:
        """Where in its period the loop is; parameters and optimizer are each rank's own and belong into its checkpoint."""
        return {"step": self.step, "averaged": self.averaged}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on from a state; each rank loads its parameters after `local_sgd`, which made all begin with rank 0's."""
        self.step = self._averager.step = state["step"]
        self.averaged = state["averaged"]
