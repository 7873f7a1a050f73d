"""Carries out any order of whole forward and backward passes over point-to-point messages.

It is here for Chimera's bidirectional schedule, which torch's runtime cannot carry out: there the stages are one chain, each
is on one rank, and two neighbours in the chain on the same rank hand tensors over without a message. In Chimera each stage
is on two ranks, and a rank has the end of one chain and the beginning of another. It also evaluates, whatever the schedule.

Deadlock-free: a send is never waited for before the end of the step, and what goes to the right and what goes to the left
travels in groups of its own, received in the order in which the sender, whose order is known, sends it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from muster.training.pipeline._layer_profile import Edge
from muster.training.pipeline._recorder import Recorder
from muster.training.pipeline._replicas import ReplicaPair
from muster.training.pipeline._schedule import Schedule
from muster.training.pipeline._timeline import Action


class MessageExecutor:
    """One rank of a schedule; all ranks of the default process group make it together.

    Arguments:
        schedule: Chimera's, or another one of which only the forward passes are carried out.
        rank: this one.
        stages: this rank's modules by (replica, stage).
        edges: what goes into each stage, and last what the model returns, of one micro-batch.
        loss: of one micro-batch, already divided by their number.
        device: of the stages.
        recorder: told of everything computed.
    """

    def __init__(
        self,
        schedule: Schedule,
        rank: int,
        stages: Mapping[tuple[int, int], nn.Module],
        edges: Sequence[Edge],
        loss: Callable[[Tensor, Tensor], Tensor],
        device: torch.device,
        recorder: Recorder,
    ) -> None:
        self._schedule, self._rank, self._stages, self._edges = schedule, rank, stages, edges
        self._loss, self._device, self._recorder = loss, device, recorder
        self._to_right, self._to_left = dist.new_group(), dist.new_group()
        self._pair = ReplicaPair(schedule, rank, stages) if schedule.name == "chimera" else None
        last = schedule.stages - 1
        self._last = [replica for replica, stage in stages if stage == last]
        # what each other rank sends here, in its order
        self._incoming = {
            peer: [action for action in order if self._goes_to(action) == rank]
            for peer, order in enumerate(schedule.orders)
            if peer != rank
        }

    def run(self, batch: Tensor | None, target: Tensor | None) -> Tensor | None:
        """One step: gradients are added to the parameters'; returns this rank's part of the loss, if it has a last stage."""
        assert self._pair is not None, "torch carries out the other schedules"
        earlier = self._pair.set_gradients_aside()
        loss = self._carry_out(batch, target, "FB")
        self._pair.exchange()
        self._pair.add(earlier)
        return loss

    def evaluate(self, batch: Tensor | None, target: Tensor | None) -> Tensor | None:
        """The forward half of a step, without gradients; returns as `run`."""
        with torch.no_grad():
            return self._carry_out(batch, target, "F")

    def _carry_out(self, batch: Tensor | None, target: Tensor | None, kinds: str) -> Tensor | None:
        micro_batches = self._schedule.micro_batches
        self._inputs = () if batch is None else batch.chunk(micro_batches)
        self._targets = () if target is None else target.chunk(micro_batches)
        self._graphs: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}
        self._arriving: dict[Action, tuple[dist.Work, Tensor]] = {}
        self._unposted = {
            peer: deque(action for action in actions if action.kind in kinds)
            for peer, actions in self._incoming.items()
        }
        self._handed: dict[Action, Tensor] = {}
        self._sent: list[tuple[dist.Work, Tensor]] = []
        self._losses: list[Tensor] = []
        order = [action for action in self._schedule.orders[self._rank] if action.kind in kinds]
        for action, following in zip(order, (*order[1:], None), strict=True):
            given = self._receive(action)
            if following is not None:
                self._post(following)  # so that it travels while this action computes
            with self._recorder.computing(action):
                result = self._forward(action, given) if action.kind == "F" else self._backward(action, given)
            self._send(action, result)
        for work, _ in self._sent:
            work.wait()
        self._graphs, self._sent = {}, []
        return torch.stack(self._losses).sum() if self._losses else None

    # ---- computing ----------------------------------------------------------------------------------------------------

    def _forward(self, action: Action, given: Tensor | None) -> Tensor:
        key = action.replica, action.stage, action.micro_batch
        if given is None:
            given = self._inputs[action.micro_batch]
        else:
            given.requires_grad_(self._edges[action.stage].requires_grad and torch.is_grad_enabled())
        output = self._stages[key[:2]](given)
        if action.stage == self._schedule.stages - 1:
            output = self._loss(output, self._targets[action.micro_batch])
            self._losses.append(output.detach())
        if torch.is_grad_enabled():
            self._graphs[key] = given, output
        return output.detach()

    def _backward(self, action: Action, given: Tensor | None) -> Tensor | None:
        value, output = self._graphs.pop((action.replica, action.stage, action.micro_batch))
        if output.requires_grad:
            torch.autograd.backward(output, given)
        if self._goes_to(action) is None:
            return None
        return torch.zeros_like(value) if value.grad is None else value.grad

    # ---- messages -----------------------------------------------------------------------------------------------------

    def _goes_to(self, action: Action) -> int | None:
        """The rank that needs an action's result, or None."""
        stage = action.stage + 1 if action.kind == "F" else action.stage - 1
        if not 0 <= stage < self._schedule.stages:
            return None
        if action.kind == "B" and not self._edges[action.stage].requires_grad:
            return None
        return self._schedule.rank_of(stage, action.replica)

    def _source(self, action: Action) -> Action | None:
        source = action.feeds_on(self._schedule.stages)
        return None if source is None or self._goes_to(source) is None else source

    def _post(self, action: Action) -> None:
        """Begins to receive what an action needs, after everything that its sender sends before."""
        source = self._source(action)
        if source is None or source in self._arriving:
            return
        peer = self._schedule.rank_of(source.stage, source.replica)
        if peer == self._rank:
            return
        group = self._to_right if peer < self._rank else self._to_left
        while source not in self._arriving:
            coming = self._unposted[peer].popleft()
            edge = self._edges[coming.stage + 1 if coming.kind == "F" else coming.stage]
            room = edge.empty(self._device)
            work = dist.irecv(room, src=peer, group=group)
            assert work is not None
            self._arriving[coming] = work, room

    def _receive(self, action: Action) -> Tensor | None:
        source = self._source(action)
        if source is None:
            return None
        if source in self._handed:
            return self._handed.pop(source)
        self._post(action)
        work, room = self._arriving.pop(source)
        work.wait()
        return room

    def _send(self, action: Action, result: Tensor | None) -> None:
        peer = self._goes_to(action)
        if peer is None or result is None:
            return
        if peer == self._rank:
            self._handed[action] = result
            return
        self._sent = [(work, tensor) for work, tensor in self._sent if not work.is_completed()]
        result = result.contiguous()
        work = dist.isend(result, dst=peer, group=self._to_right if peer > self._rank else self._to_left)
        assert work is not None
        self._sent.append((work, result))
