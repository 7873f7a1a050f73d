"""What happens before the first counted step: buckets settle, FLOPs and bytes are counted, what is left open is decided.

Compiling is tried first and the exchange of gradients is chosen then: for the passes that the steps will run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.flop_counter import FlopCounterMode

from muster.engine.gang import RankContext
from muster.pillars.compute import TrafficCounter, try_compiling
from muster.pillars.compute.compiled_forward import CompileTrial
from muster.training.communication_record import Measured
from muster.training.rank_model import RankModel


@dataclass(frozen=True)
class WarmUp:
    """What the warm-up found.

    Arguments:
        flops, bytes, operators: of one forward and backward pass, per sample.
        buckets: of gradients.
        trial: of compiling, None where it was not tried; on record already if ``decided_before``.
        decided_before: whether an earlier attempt of this run tried it.
        exchange: what the choice of buckets and compressors rests on, None where nothing was measured now.
    """

    flops: float
    bytes: float
    operators: float
    buckets: int
    trial: CompileTrial | None = None
    decided_before: bool = False
    exchange: Measured | None = None


def warm_up(context: RankContext, model: RankModel, batch: Any, samples: int, compile: str) -> WarmUp:
    """Passes whose gradients are thrown away; all ranks call it together.

    DistributedDataParallel rebuilds its buckets after the first backward pass. Having that behind us before the first
    counted step, after a start and after a resume alike, keeps the order of summation, and so the bits, the same. That pass
    is always an eager one, so that compiling changes nothing in it.

    Arguments:
        batch: moved to the device.
        samples: in it.
        compile: ``off``, ``on`` or ``auto``.

    Raises:
        JobError: compiling is on and fails.
        DataError: the record of an earlier choice of buckets is damaged.
    """
    buffers = {name: buffer.clone() for name, buffer in model.module.named_buffers()}

    def together() -> None:
        model.backward(model.loss(batch))

    def cleared() -> None:
        together()
        model.optimizer.zero_grad(set_to_none=False)  # what is compressed must not grow from pass to pass
        context.heartbeat()

    def alone() -> None:
        with model.replica.no_sync():
            together()

    with FlopCounterMode(display=False) as flops, TrafficCounter() as traffic:
        alone()
    context.heartbeat()
    with model.exchange.uncompressed():
        together()  # the next forward pass rebuilds the buckets
        context.clock.begin_step(0)
        together()
        passed = context.clock.end_step()
        trial, decided_before = _compile(context, model, alone, together, compile)
    model.optimizer.zero_grad(set_to_none=False)
    exchange = model.exchange.choose(cleared)
    with torch.no_grad():
        for name, buffer in model.module.named_buffers():
            buffer.copy_(buffers[name])
    model.optimizer.zero_grad(set_to_none=False)
    context.heartbeat()
    assert passed is not None
    return WarmUp(
        flops=flops.get_total_flops() / samples,
        bytes=traffic.bytes / samples,
        operators=traffic.operators / samples,
        buckets=model.exchange.buckets or len(passed.flights),
        trial=trial,
        decided_before=decided_before,
        exchange=exchange,
    )


def _compile(
    context: RankContext, model: RankModel, alone: Any, together: Any, compile: str
) -> tuple[CompileTrial | None, bool]:
    """Tries compiling, or does as this run decided before on as many ranks: its bits must not hang on another measurement."""
    if model.compiled is None:
        return None, False
    before: list[bool | None] = [_decided_before(context) if context.rank == 0 else None]
    dist.broadcast_object_list(before, src=0, group=context.control)
    if before[0] is False:
        return CompileTrial(False, "decided before"), True
    trial = try_compiling(
        model.compiled,
        alone,
        together,
        must=compile == "on" or before[0] is True,
        device=context.device,
        group=context.control,
        alive=context.heartbeat,
    )
    return trial, before[0] is True and trial.kept


def _decided_before(context: RankContext) -> bool | None:
    events = context.run.events() if context.run is not None else []
    decisions = [event["detail"] for event in events if event["kind"] == "compile"]
    same = [detail["kept"] for detail in decisions if detail.get("world_size") == context.world_size]
    return same[-1] if same else None
