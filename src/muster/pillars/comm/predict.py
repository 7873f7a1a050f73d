"""What a training step would take on another number of ranks: from a profile of few, predicted.

The computing of a rank is taken as it was measured, so it must be measured under the conditions it is predicted for: the same
batch per rank, and the same share of a machine (two ranks that share one core predict four that share two). The
exchange is laid on the link as `layout.fly` does: serial, a bucket leaves when it is ready and the one before has arrived.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from muster.pillars.comm.layout import Flight, cost_by_bytes, fly
from muster.pillars.comm.link import Link
from muster.pillars.comm.step_profile import StepProfile


@dataclass(frozen=True)
class Prediction:
    """A predicted step; seconds.

    Arguments:
        world_size: ranks it is predicted for.
        step_s: the step.
        compute_s: forward and backward pass, optimizer and whatever else the loop does: all but exposed communication.
        communication_s: how long the link is busy.
        exposed_s: how long the backward pass waits for it.
        floor_s: the step if nothing but the last byte were ever exposed: all overlap that is possible.
        flights: the buckets on the link.
    """

    world_size: int
    step_s: float
    compute_s: float
    communication_s: float
    exposed_s: float
    floor_s: float
    flights: tuple[Flight, ...]


def predict_step(
    profile: StepProfile, link: Link, world_size: int, ends: Sequence[int] | None = None
) -> Prediction:
    """A step on ``world_size`` ranks whose gradients are all-reduced in fp32.

    Arguments:
        profile: of a step on few ranks (`Attached.profile`, or `step_profile.StepRecorder`).
        link: measured with those ranks.
        world_size: of the prediction.
        ends: where buckets end in the profile's order; one bucket by default.
    """
    busy_link = link.sustained()
    cost = cost_by_bytes(profile.bytes, lambda sizes: busy_link.seconds("all_reduce", sizes, world_size))
    flights = tuple(fly(profile.ready_s, ends or [len(profile.bytes)], cost))
    exposed = max(0.0, flights[-1].end - profile.backward_s)
    compute = profile.step_s - profile.exposed_s
    busy = sum(flight.end - flight.start for flight in flights)
    floor = compute + max(0.0, busy - (profile.backward_s - profile.forward_s))
    return Prediction(world_size, compute + exposed, compute, busy, exposed, floor, flights)
