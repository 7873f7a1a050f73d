"""Carries out torch's own schedules with torch's own classes, and records what they do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage

from muster.training.pipeline._layer_profile import Edge
from muster.training.pipeline._recorder import Recorder
from muster.training.pipeline._schedule import Schedule, torch_schedule_class
from muster.training.pipeline._timeline import Action, Kind


class _RecordedStage(PipelineStage):
    """A stage whose computations are timed, and whose errors are those of the user's module."""

    def __init__(self, recorder: Recorder, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._recorder = recorder

    def forward_maybe_with_nosync(self, *args: Any, **options: Any) -> Any:
        output = super().forward_maybe_with_nosync(*args, **options)
        # A split backward detaches its output in place, which torch forbids for views, such as a flatten's result.
        return output.clone() if output._is_view() else output

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **options: Any) -> Any:
        with self._computing("F", fwd_chunk_id):
            return super().forward_one_chunk(fwd_chunk_id, *args, **options)

    def backward_one_chunk(
        self, bwd_chunk_id: int, loss: Any = None, full_backward: bool = True, last_backward: bool = False
    ) -> Any:
        with self._computing("B" if full_backward else "I", bwd_chunk_id):
            return super().backward_one_chunk(bwd_chunk_id, loss, full_backward, last_backward)

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> Any:
        with self._computing("W", bwd_chunk_id):
            return super().backward_weight_one_chunk(bwd_chunk_id, last_backward)

    @contextmanager
    def _computing(self, kind: Kind, micro_batch: int) -> Iterator[None]:
        with self._recorder.computing(Action(kind, self.stage_index, micro_batch)):
            try:
                yield
            except (
                RuntimeError
            ) as wrapped:  # torch's, with all tensors in its text; the module's own says more
                if wrapped.__cause__ is not None:
                    raise wrapped.__cause__ from None
                raise


class TorchExecutor:
    """One rank of a schedule of `torch.distributed.pipelining`.

    Arguments:
        schedule: any but Chimera's.
        stages: this rank's modules by (replica, stage).
        edges: what goes into each stage, and last what the model returns, of one micro-batch.
        loss: of one micro-batch, already divided by their number.
        device: of the stages.
        recorder: told of everything computed.
    """

    def __init__(
        self,
        schedule: Schedule,
        stages: Mapping[tuple[int, int], nn.Module],
        edges: Sequence[Edge],
        loss: Callable[[Tensor, Tensor], Tensor],
        device: torch.device,
        recorder: Recorder,
    ) -> None:
        def recorded_loss(output: Tensor, target: Tensor) -> Tensor:
            with recorder.prolonging():
                return loss(output, target)

        own = [
            _RecordedStage(
                recorder,
                module,
                index,
                schedule.stages,
                device,
                input_args=_placeholder(edges[index]),
                output_args=_placeholder(edges[index + 1]),
            )
            for (_, index), module in stages.items()
        ]
        single = schedule.name in ("gpipe", "1f1b")
        self._schedule = torch_schedule_class(
            schedule.name
        )(
            own[0] if single else own,
            schedule.micro_batches,
            loss_fn=recorded_loss,
            scale_grads=False,  # torch would divide what earlier steps have accumulated, too; the loss is divided
        )
        indices = [index for _, index in stages]
        self._first, self._last = 0 in indices, schedule.stages - 1 in indices

    def run(self, batch: Tensor | None, target: Tensor | None) -> Tensor | None:
        """One step: gradients are added to the parameters'; returns the loss on the rank that has the last stage."""
        losses: list[Tensor] = []
        self._schedule.step(
            *((batch,) if self._first else ()),
            target=target if self._last else None,
            losses=losses,
            return_outputs=False,
        )
        return torch.stack([loss.detach() for loss in losses]).sum() if self._last else None


def _placeholder(edge: Edge) -> Tensor:
    """Tells torch shape and type, so that it need not send a micro-batch of arbitrary numbers through the model."""
    return edge.empty("meta").requires_grad_(edge.requires_grad)
