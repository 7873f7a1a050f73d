"""How a step's wall time is cut into pillars; pure arithmetic on times in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class Bucket:
    """One collective of one step on one rank; times are seconds on the run-wide clock.

    Arguments:
        index: order within the step.
        bytes: size of this rank's contribution.
        ready: when its input was complete.
        enter: when this rank called it.
        end: when its result was there.
        last_enter: when the last rank called it.
        kind: ``all_reduce``, or the name of what compressed it.
        wire_bytes: what this rank sent for it; None for what an all-reduce of ``bytes`` sends.
    """

    index: int
    bytes: int
    ready: float
    enter: float
    end: float
    last_enter: float
    kind: str = "all_reduce"
    wire_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Pillars:
    """A step's wall time, partitioned: ``io + compute + comm + idle == wall``; all in seconds.

    ``comm_hidden`` is the time a collective was in flight while this rank computed; it is part of ``compute``, as
    ``stall`` (checkpoints, evaluation) is part of ``idle``.
    """

    wall: float
    io: float
    compute: float
    comm: float
    idle: float
    comm_hidden: float
    stall: float


def partition(
    *,
    wall: float,
    io: float,
    stall: float,
    blocked: tuple[float, float] | None,
    buckets: Sequence[Bucket],
) -> Pillars:
    """Cuts one rank's step into pillars.

    The wait at the end of a backward pass is one wait, for the last bucket: until the last rank has entered that bucket the
    wait is *idle* (a faster network would not shorten it), afterwards it is *comm*.

    Arguments:
        wall: length of the step.
        io: time the loop waited for a batch.
        stall: time in checkpoints and evaluation.
        blocked: from when to when the rank waited for its collectives, if it did.
        buckets: the collectives that it waited for.
    """
    idle_wait = comm = 0.0
    if blocked is not None and buckets:
        begin, end = blocked
        last = max(buckets, key=lambda bucket: bucket.index)
        idle_wait = min(max(last.last_enter - begin, 0.0), end - begin)
        comm = (end - begin) - idle_wait
    idle = idle_wait + stall
    return Pillars(
        wall=wall,
        io=io,
        compute=wall - io - comm - idle,
        comm=comm,
        idle=idle,
        comm_hidden=_in_flight_outside(buckets, blocked),
        stall=stall,
    )


def _in_flight_outside(buckets: Sequence[Bucket], blocked: tuple[float, float] | None) -> float:
    """Length of the union of the buckets' flights, without what lies inside ``blocked``."""
    begin, end = blocked or (float("inf"), float("inf"))
    total, reached = 0.0, float("-inf")
    for start, stop in sorted((max(bucket.enter, bucket.last_enter), bucket.end) for bucket in buckets):
        start = max(start, reached)
        if stop > start:
            total += (stop - start) - max(0.0, min(stop, end) - max(start, begin))
            reached = stop
    return total
