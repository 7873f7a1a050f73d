"""A sequential model, cut into stages over the ranks of a gang and trained as if it were whole."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from muster.engine.gang import RankContext
from muster.errors import RefusedInput
from muster.training.pipeline._layer_profile import Edge, LayerProfile, profile_layers
from muster.training.pipeline._message_executor import MessageExecutor
from muster.training.pipeline._partition import balanced_partition
from muster.training.pipeline._recorder import Recorder
from muster.training.pipeline._schedule import make_schedule
from muster.training.pipeline._timeline import Timeline
from muster.training.pipeline._torch_executor import TorchExecutor


class Pipeline:
    """A model cut into stages, of which each rank of the gang has one or a few; all ranks make it and call `step` together.

    ::

        def train(context):
            pipeline = Pipeline(model, context, example=batch, loss_fn=F.mse_loss, micro_batches=8, schedule="1f1b")
            optimizer = torch.optim.AdamW(pipeline.parameters())
            for batch, target in loader:  # the same on every rank
                loss = pipeline.step(batch, target)
                optimizer.step()
                optimizer.zero_grad()

    The gradients are those of the sequential model on the whole batch, if the loss is a mean over samples and no layer mixes
    samples (batch normalisation sees a micro-batch at a time) or draws at random. Rank 0's weights become everyone's.

    Arguments:
        model: an `nn.Sequential` or its layers, whole on every rank; each takes the one tensor that the one before returns. A
            rank keeps and moves to its device only its stages; the caller drops the rest by dropping ``model``.
        context: the rank. The pipeline is as long as the gang: D is ``context.world_size``.
        example: a batch like those of `step`, of their shape and dtype, ``[N · micro-batch, ...]``.
        loss_fn: ``loss_fn(output, target)``, the mean over the samples of a micro-batch, a scalar.
        micro_batches: into how many equal parts a batch is cut (N).
        schedule: see `make_schedule`.
        stages_per_rank: see `make_schedule`.
        balance: how many layers each stage has, or ``"measured"``: rank 0 times forward and backward of every layer on a
            micro-batch of ``example``, and the costliest stage costs as little as a contiguous cut allows.

    Attributes:
        schedule: the `Schedule`.
        sizes: how many layers each stage has.
        layer_seconds: forward plus backward of each layer, if it was measured.
        stages: this rank's modules.

    Raises:
        RefusedInput: a schedule, a number of stages or micro-batches, or a balance that cannot be; two stages that share a
            parameter.
    """

    def __init__(
        self,
        model: nn.Sequential | Sequence[nn.Module],
        context: RankContext,
        *,
        example: Tensor,
        loss_fn: Callable[[Tensor, Tensor], Tensor],
        micro_batches: int,
        schedule: str = "1f1b",
        stages_per_rank: int | None = None,
        balance: str | Sequence[int] = "measured",
    ) -> None:
        whole = model if isinstance(model, nn.Sequential) else nn.Sequential(*model)
        self._context, self._recorder = context, Recorder(context)
        self.schedule = make_schedule(
            schedule, context.world_size, micro_batches, stages_per_rank=stages_per_rank
        )
        layers = list(whole)
        _check_balance(balance, len(layers), self.schedule.stages)
        if len(example) % micro_batches or not len(example):
            raise RefusedInput(
                f"micro_batches: a batch of {len(example)} cannot be cut into {micro_batches} equal parts; "
                f"right would be a divisor of {len(example)}"
            )
        self._batch_shape = tuple(example.shape)
        self.sizes, profiles = self._plan(whole, example[: len(example) // micro_batches], balance)
        self.layer_seconds = [profile.forward_s + profile.backward_s for profile in profiles]

        bounds = [0, *accumulate(self.sizes)]
        first = Edge(
            (len(example) // micro_batches, *example.shape[1:]), example.dtype, example.requires_grad
        )
        edges = [first, *(profiles[bound - 1].output for bound in bounds[1:])]
        # not named_children: it leaves out a layer that comes again
        named = list(zip(whole._modules, layers, strict=True))
        cut = [nn.Sequential(OrderedDict(named[begin:end])) for begin, end in pairwise(bounds)]
        _check_sharing(cut)
        own = {key: cut[key[1]].to(context.device) for key in self.schedule.stages_of(context.rank)}
        self.stages: list[nn.Module] = list(own.values())
        self._spread(cut)

        def scaled(output: Tensor, target: Tensor) -> Tensor:
            return loss_fn(output, target) / micro_batches

        self._evaluator = MessageExecutor(
            self.schedule, context.rank, own, edges, scaled, context.device, self._recorder
        )
        self._executor: TorchExecutor | MessageExecutor = self._evaluator
        if self.schedule.name != "chimera":
            self._executor = TorchExecutor(self.schedule, own, edges, scaled, context.device, self._recorder)
        indices = [stage for _, stage in own]
        self.needs_input = 0 in indices
        self.needs_target = self.schedule.stages - 1 in indices

    # ---- training -----------------------------------------------------------------------------------------------------

    def step(self, batch: Tensor | None, target: Tensor | None) -> Tensor:
        """Forward and backward of one batch; gradients are added to those of the parameters.

        Arguments:
            batch: ``[N · micro-batch, ...]`` as ``example``; may be None on a rank where `needs_input` is false.
            target: ``[N · micro-batch, ...]``; may be None where `needs_target` is false.

        Returns:
            The mean loss, a detached float64 scalar on the CPU, equal on all ranks.

        Raises:
            RefusedInput: a batch of another shape than the example's.
        """
        return self._pass(self._executor.run, batch, target)

    def evaluate(self, batch: Tensor | None, target: Tensor | None) -> Tensor:
        """The loss of one batch with the stages in evaluation mode, without gradients; arguments and result as of `step`."""
        modes = [(module, module.training) for stage in self.stages for module in stage.modules()]
        self.train(False)
        loss = self._pass(self._evaluator.evaluate, batch, target)
        for module, mode in modes:
            module.training = mode
        return loss

    def _pass(
        self,
        function: Callable[[Tensor | None, Tensor | None], Tensor | None],
        batch: Tensor | None,
        target: Tensor | None,
    ) -> Tensor:
        batch = self._checked(batch, "batch") if self.needs_input else None
        target = self._checked(target, "target") if self.needs_target else None
        with self._recorder.step():
            part = function(batch, target)
            total = torch.zeros((), dtype=torch.float64)
            if part is not None:
                total += part.double().cpu()
            dist.all_reduce(total, group=self._context.control)
        return total

    def timeline(self) -> Timeline:
        """What all ranks did in the last step, on the run-wide clock; all ranks call it together."""
        gathered: list[Any] = [None] * self._context.world_size
        dist.all_gather_object(gathered, self._recorder.spans, group=self._context.control)
        return Timeline(
            self.schedule.ranks, self.schedule.stages, [span for spans in gathered for span in spans]
        )

    # ---- state --------------------------------------------------------------------------------------------------------

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """This rank's parameters, by their names in the sequential model."""
        for stage in self.stages:
            yield from stage.named_parameters()

    def parameters(self) -> Iterator[nn.Parameter]:
        """This rank's parameters; there may be none, and torch's optimizers refuse an empty list."""
        return (parameter for _, parameter in self.named_parameters())

    def train(self, mode: bool = True) -> None:
        """Sets this rank's stages to training or evaluation mode."""
        for stage in self.stages:
            stage.train(mode)

    def state_dict(self) -> dict[str, Any]:
        """This rank's part of the sequential model's state, by its names there.

        The parts of all ranks together are that model's whole state: `torch.distributed.checkpoint` saves them as one
        checkpoint, which the sequential model or a pipeline of any length and schedule loads.
        """
        state: dict[str, Any] = {}
        for stage in self.stages:
            state.update(stage.state_dict())
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes this rank's part from a state of the sequential model, or from what `state_dict` returned here.

        Raises:
            RefusedInput: something that this rank needs is missing.
        """
        missing = sorted(self.state_dict().keys() - state.keys())
        if missing:
            raise RefusedInput(
                f"state: {missing[0]} is missing, as are {len(missing) - 1} more; "
                "right would be a state of the sequential model"
            )
        for stage in self.stages:
            stage.load_state_dict({name: state[name] for name in stage.state_dict()})

    def full_state_dict(self) -> dict[str, Any] | None:
        """The sequential model's whole state on rank 0, on the CPU, None elsewhere; all ranks call it together."""
        context = self._context
        own = {
            name: value.cpu() if isinstance(value, Tensor) else value
            for name, value in self.state_dict().items()
        }
        parts: list[Any] | None = [None] * context.world_size if context.rank == 0 else None
        dist.gather_object(own, parts, group=context.control)
        if parts is None:
            return None
        return {name: value for part in reversed(parts) for name, value in part.items()}

    # ---- construction -------------------------------------------------------------------------------------------------

    def _plan(
        self, whole: nn.Sequential, micro_batch: Tensor, balance: str | Sequence[int]
    ) -> tuple[list[int], list[LayerProfile]]:
        """Rank 0 measures and decides, so that all ranks cut alike."""
        plan: list[Any] = [None]
        if self._context.rank == 0:
            measured = isinstance(balance, str)
            micro_batch = micro_batch.to(self._context.device)
            profiles = profile_layers(list(whole), micro_batch, repeats=5 if measured else 0)
            costs = [profile.forward_s + profile.backward_s for profile in profiles]
            sizes = balanced_partition(costs, self.schedule.stages) if measured else list(balance)
            plan = [(sizes, profiles)]
        with self._context.clock.in_a_collective():
            dist.broadcast_object_list(plan, src=0, group=self._context.control)
        self._context.heartbeat()
        return plan[0]  # type: ignore[no-any-return]

    def _spread(self, cut: Sequence[nn.Sequential]) -> None:
        """Sends each stage's weights and buffers from rank 0 to whoever has it; every stage once to each."""
        context = self._context
        with context.clock.in_a_collective(), torch.no_grad():
            for stage, module in enumerate(cut):
                owners = [self.schedule.rank_of(stage)]
                if self.schedule.name == "chimera":
                    owners.append(self.schedule.rank_of(stage, 1))
                for owner in owners:
                    if owner == 0 or context.rank not in (0, owner):
                        continue
                    for tensor in (*module.parameters(), *module.buffers()):
                        if context.rank == 0:
                            dist.send(tensor.detach().to(context.device), dst=owner)
                        else:
                            dist.recv(tensor.detach(), src=0)

    def _checked(self, tensor: Tensor | None, name: str) -> Tensor:
        wanted = self._batch_shape if name == "batch" else self._batch_shape[:1]
        if tensor is None:
            raise RefusedInput(f"{name}: rank {self._context.rank} needs it and got None")
        if tuple(tensor.shape[: len(wanted)]) != wanted:
            raise RefusedInput(
                f"{name}: its shape is {list(tensor.shape)}; right would be {list(wanted)}, as the example's"
            )
        return tensor.to(self._context.device)


def _check_balance(balance: str | Sequence[int], layers: int, stages: int) -> None:
    if isinstance(balance, str):
        if balance != "measured":
            raise RefusedInput(
                f"balance: {balance!r} is none; right would be 'measured' or the number of layers of each stage"
            )
        if layers < stages:
            raise RefusedInput(
                f"model: {layers} layers cannot make {stages} stages; right would be at least {stages} layers"
            )
    elif len(balance) != stages or sum(balance) != layers or min(balance) < 1:
        raise RefusedInput(
            f"balance: {list(balance)} does not deal {layers} layers to {stages} stages; "
            f"right would be {stages} numbers of at least 1 whose sum is {layers}"
        )


def _check_sharing(cut: Sequence[nn.Module]) -> None:
    holders = Counter(id(parameter) for stage in cut for parameter in set(stage.parameters()))
    for index, stage in enumerate(cut):
        for name, parameter in stage.named_parameters():
            if holders[id(parameter)] > 1:
                raise RefusedInput(
                    f"model: stage {index} shares {name} with another stage; "
                    "right would be a balance that keeps them together"
                )
