"""The machines that a pool's job describes: when they are there, and how often they are taken away."""

from __future__ import annotations

from typing import Final

from muster.errors import JobError, RefusedInput
from muster.fleet import Availability, generated, read_trace
from muster.spec import PoolHow
from muster.spec.pool_how import GENERATED

_LIVES: Final = 1000  # of each generated instance, until it all begins again


def availability(how: PoolHow) -> Availability | None:
    """When there are machines for the workers, in the time of the run; None: always.

    Raises:
        JobError: the trace is none, or has no instances; says what would be right.
    """
    told = how.chaos.availability
    if told is None:
        return None
    notice_s = told.notice.seconds if told.notice else 0.0
    try:
        if told.trace == GENERATED:
            assert told.interrupted_every is not None
            assert told.absent is not None
            stays_s, absent_s = told.interrupted_every.seconds, told.absent.seconds
            made = generated(
                how.workers,
                interruptions_per_s=1 / stays_s,
                absent_s=absent_s,
                length_s=_LIVES * (stays_s + absent_s),
                seed=how.chaos.seed,
                notice_s=notice_s,
            )
        else:
            made = read_trace(told.trace).availability(notice_s=notice_s)
            made = made.begun_with_an_instance().scaled(how.workers)
        return made.compressed(told.compress)
    except RefusedInput as error:
        found, _, mend = str(error).partition("; ")
        raise JobError(
            found, mend=mend or "expected a trace as docs/fleet.md says", key="how.chaos.availability.trace"
        ) from None


def interruptions_per_s(how: PoolHow) -> float:
    """How often a worker is taken away while it is there.

    Raises:
        JobError: as `availability`.
    """
    killed = 1 / how.chaos.kill_every.seconds if how.chaos.kill_every else 0.0
    machines = availability(how)
    return killed + (machines.interruptions_per_s if machines else 0.0)
