"""One rank's model with all that ``how`` puts around it: precision, memory format, averaging, compilation, exchange."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from muster.engine.gang import RankContext
from muster.errors import JobError
from muster.pillars.compute import Precision, averaged_model, checkpoint_blocks, to_channels_last
from muster.pillars.compute.compiled_forward import CompiledForward
from muster.training.application import Application
from muster.training.communication import GradientExchange
from muster.training.recipe import make_optimizer, make_schedule


class RankModel:
    """A model that ranks train together.

    Arguments:
        context: the rank.
        application: builds the model and gives its loss.
        how: the job's.

    Attributes:
        module: the application's model, which the optimizer changes.
        replica: the same under DistributedDataParallel, which the loss is computed on.
        exchange: of the replica's gradients.
        averaged: the moving average of the weights, or None.
        scaler: of the loss; transparent unless the precision is fp16.
        optimizer, schedule: of the weights.
        compiled: the compiled forward pass, not enabled yet, or None.

    Raises:
        JobError: the device lacks the precision, the model has no blocks to checkpoint, or its buckets cannot be laid
            out anew.
    """

    def __init__(self, context: RankContext, application: Application, how: Any) -> None:
        self._context, self._application, self._how = context, application, how
        self._precision = Precision(how.precision)
        self._precision.check(context.device)
        self.module = application.build_model().to(context.device, self._precision.weights)
        if how.channels_last:
            to_channels_last(self.module)
        self.averaged = None if how.ema_decay is None else averaged_model(self.module, how.ema_decay)
        if how.activation_checkpointing and checkpoint_blocks(self.module) == 0:
            raise JobError(
                "the model has no nn.Sequential or nn.ModuleList whose children are blocks of several layers",
                mend="set it to false, or build the model of such blocks",
                key="how.activation_checkpointing",
            )
        with warnings.catch_warnings():
            # torch 2.13 has a second name for `broadcast_buffers` and deprecates it; 2.11 has only this one.
            warnings.simplefilter("ignore", FutureWarning)
            self.replica = DistributedDataParallel(
                self.module,
                gradient_as_bucket_view=True,
                broadcast_buffers=False,
                bucket_cap_mb=_limit_mib(how),
            )
        self.exchange = GradientExchange(context, self.replica, how.communication, application.what.seed)
        self.compiled = None if how.compile == "off" else CompiledForward(self.module)
        self.scaler = self._precision.scaler(context.device)
        self.optimizer = make_optimizer(self.module, how.optimizer)
        self.schedule = make_schedule(self.optimizer, how.schedule, how.steps)
        self._persistent = self.module.state_dict(keep_vars=True).keys()

    # ---- a step ---------------------------------------------------------------------------------------------------

    def moved(self, batch: Any) -> Any:
        """A collated batch on the device: floating-point tensors in the dtype of the weights, images in the memory format."""
        batch = _moved(batch, self._context.device, self._precision.weights)
        return to_channels_last(batch) if self._how.channels_last else batch

    def loss(self, batch: Any) -> torch.Tensor:
        """The mean loss over a batch that has been moved."""
        with self._context.clock.span("forward"), self._precision.autocast(self._context.device):
            return self._application.loss(self.replica, batch)

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradients of ``loss`` to those that are there."""
        self.scaler.scale(loss).backward()

    def update(self) -> float | None:
        """Changes the weights by the gradients and clears these.

        Returns:
            The scale of the loss with which the gradients overflowed, if they did: the weights have not been changed then.
        """
        scale = self.scaler.get_scale() if self.scaler.is_enabled() else None
        with warnings.catch_warnings():
            if (
                scale is not None
            ):  # a skipped step is a step of the schedule all the same: that is a function of the step alone
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.schedule.step()
        self.optimizer.zero_grad(set_to_none=False)
        overflow = scale if scale is not None and self.scaler.get_scale() < scale else None
        if self.averaged is not None and overflow is None:
            self.averaged.update_parameters(self.module)
        return overflow

    # ---- its result -----------------------------------------------------------------------------------------------

    @contextmanager
    def result(self) -> Iterator[torch.nn.Module]:
        """The model to evaluate, export and show: the averaged one where there is one, and not compiled."""
        if self.averaged is not None:
            yield self.averaged.module
        elif self.compiled is not None:
            with self.compiled.eager():
                yield self.module
        else:
            yield self.module

    def share_buffers(self) -> None:
        """Gives all ranks rank 0's buffers, such as running means.

        They do not influence training, so once before each use is enough, and a broadcast in every forward pass (as
        DistributedDataParallel would do) is communication that nobody needs.
        """
        for module in [self.module] if self.averaged is None else [self.module, self.averaged.module]:
            for name, buffer in module.named_buffers():
                if name in self._persistent:
                    dist.broadcast(buffer, src=0)

    # ---- what a checkpoint holds beside model and optimizer ---------------------------------------------------------

    def extra_state(self) -> dict[str, Any]:
        """State of the schedule, and of averaging and loss scaling where they are used."""
        state: dict[str, Any] = {"schedule": self.schedule.state_dict()}
        if self.averaged is not None:
            state["ema"] = self.averaged.state_dict()
        if self.scaler.is_enabled():
            state["scaler"] = self.scaler.state_dict()
        return state

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Takes up what `extra_state` gave."""
        self.schedule.load_state_dict(state["schedule"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["ema"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])


def _limit_mib(how: Any) -> Any:
    """The size limit of all buckets; None for PyTorch's own two. It is typed as an integer and multiplied as it is."""
    buckets = how.communication.buckets
    return None if isinstance(buckets, str) else buckets


def _moved(batch: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch.to(device, dtype if batch.is_floating_point() else None, non_blocking=True)
    if isinstance(batch, dict):
        return {key: _moved(value, device, dtype) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(_moved(value, device, dtype) for value in batch)
    return batch
