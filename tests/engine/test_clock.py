"""The partition of a step's wall time, on cases worked out by hand."""

from __future__ import annotations

import pytest

from muster.engine.clock import Bucket, partition


def bucket(index: int, enter: float, end: float, last_enter: float) -> Bucket:
    return Bucket(index=index, bytes=8, ready=enter, enter=enter, end=end, last_enter=last_enter)


def test_a_wait_is_idle_until_the_last_rank_has_entered_and_communication_afterwards() -> None:
    pillars = partition(
        wall=1.0,
        io=0.1,
        stall=0.05,
        blocked=(0.5, 0.9),
        buckets=[bucket(0, enter=0.4, end=0.9, last_enter=0.7)],
    )
    assert pillars.idle == pytest.approx(0.2 + 0.05)
    assert pillars.comm == pytest.approx(0.2)
    assert pillars.compute == pytest.approx(1.0 - 0.1 - 0.25 - 0.2)
    assert pillars.io + pillars.compute + pillars.comm + pillars.idle == pytest.approx(pillars.wall)


def test_flight_during_compute_is_hidden_and_counted_once() -> None:
    # Bucket 0 flies 0.2-0.5, bucket 1 0.4-0.8; the rank computes until 0.6: hidden is 0.2-0.6.
    buckets = [bucket(0, 0.2, 0.5, 0.2), bucket(1, 0.4, 0.8, 0.4)]
    pillars = partition(wall=1.0, io=0.0, stall=0.0, blocked=(0.6, 0.8), buckets=buckets)
    assert pillars.comm_hidden == pytest.approx(0.4)
    assert pillars.comm == pytest.approx(0.2)
    assert pillars.idle == 0.0


def test_the_wait_of_many_buckets_is_judged_by_the_last_of_them() -> None:
    # The straggler enters bucket 0 at 0.5 and bucket 1 at 0.7: this rank was idle until 0.7, whatever flew before.
    buckets = [bucket(0, 0.1, 0.55, 0.5), bucket(1, 0.2, 0.75, 0.7)]
    pillars = partition(wall=1.0, io=0.0, stall=0.0, blocked=(0.3, 0.75), buckets=buckets)
    assert pillars.idle == pytest.approx(0.4)
    assert pillars.comm == pytest.approx(0.05)


def test_a_peer_that_entered_earlier_causes_no_idle_time() -> None:
    pillars = partition(wall=1.0, io=0.0, stall=0.0, blocked=(0.5, 0.6), buckets=[bucket(0, 0.5, 0.6, 0.5)])
    assert (pillars.idle, pillars.comm) == (0.0, pytest.approx(0.1))


def test_without_collectives_all_but_io_and_stalls_is_compute() -> None:
    pillars = partition(wall=1.0, io=0.25, stall=0.25, blocked=None, buckets=[])
    assert (pillars.compute, pillars.comm, pillars.idle) == (0.5, 0.0, 0.25)
