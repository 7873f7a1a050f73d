"""Aligns the clocks of ranks on different machines by a minimum-round-trip exchange (Cristian 1989)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from muster.engine.gang._context import Place, RankContext

ROUNDS = 32


def align_clock(context: RankContext, here: Place) -> None:
    """Shifts this rank's clock onto rank 0's, and records the shift and its uncertainty.

    Ranks on rank 0's machine share its clock: nothing is exchanged and the uncertainty is zero.
    """
    places: list[Any] = [None] * context.world_size
    dist.all_gather_object(places, here.machine, group=context.control)
    for peer in range(1, context.world_size):
        if places[peer] == places[0]:
            continue
        if context.rank == 0:
            _answer(context, peer)
        elif context.rank == peer:
            offset, uncertainty = _ask(context)
            context.clock.shift_s += offset
            if context.events is not None:
                context.events("clock_aligned", offset_s=offset, uncertainty_s=uncertainty, rounds=ROUNDS)


def _answer(context: RankContext, peer: int) -> None:
    message = torch.zeros(1, dtype=torch.float64)
    for _ in range(ROUNDS):
        dist.recv(message, peer, group=context.control)
        message[0] = context.clock.now()
        dist.send(message, peer, group=context.control)


def _ask(context: RankContext) -> tuple[float, float]:
    """Offset to rank 0's clock from the fastest of several round trips, and half that trip as uncertainty (s)."""
    message = torch.zeros(1, dtype=torch.float64)
    best_trip, best_offset = float("inf"), 0.0
    for _ in range(ROUNDS):
        sent = context.clock.now()
        dist.send(message, 0, group=context.control)
        dist.recv(message, 0, group=context.control)
        received = context.clock.now()
        if received - sent < best_trip:
            best_trip = received - sent
            best_offset = float(message[0]) - (sent + received) / 2
    return best_offset, best_trip / 2
