"""Predicted steps against arithmetic by hand, and against real ranks."""

from __future__ import annotations

import pytest

from muster.pillars.comm.link import Link
from muster.pillars.comm.predict import predict_step
from muster.pillars.comm.step_profile import StepProfile


def a_profile() -> StepProfile:
    """Two gradients of 1 MB, ready 0.2 s and 0.3 s into a step; 20 ms of exposed exchange and 10 ms of optimizer."""
    return StepProfile(("b", "a"), (1_000_000, 1_000_000), (0.2, 0.3), 0.1, 0.3, 0.32, 0.33, 2, 5)


def test_a_prediction_is_the_arithmetic_of_a_serial_link() -> None:
    """10 ms a step of latency and 100 MB/s: at 4 ranks, 6 steps and 1.5 MB a bucket, so 75 ms each."""
    link = Link.uniform(2, latency_s=0.01, bytes_per_s=100e6)
    predicted = predict_step(a_profile(), link, 4, [1, 2])
    assert predicted.communication_s == pytest.approx(2 * 0.075)
    assert [flight.start for flight in predicted.flights] == pytest.approx([0.2, 0.3])
    assert predicted.exposed_s == pytest.approx(0.075)  # the second bucket alone
    assert predicted.compute_s == pytest.approx(0.33 - 0.02)
    assert predicted.step_s == pytest.approx(0.31 + 0.075)
    assert predicted.floor_s == pytest.approx(0.31)  # 150 ms would fit into 200 ms of backward pass


def test_a_bus_is_crowded_by_more_ranks_and_one_rank_communicates_nothing() -> None:
    """On a shared medium, 3 times the bytes at 4 ranks: 60 ms a bucket of 1 MB at 100 MB/s."""
    link = Link.uniform(2, latency_s=0.0, bytes_per_s=100e6, shared=1.0)
    predicted = predict_step(a_profile(), link, 4)
    assert predicted.communication_s == pytest.approx(0.12)
    assert predicted.step_s == pytest.approx(0.31 + 0.12)
    assert predict_step(a_profile(), link, 1).step_s == pytest.approx(0.31)


def test_the_profile_it_was_made_from_is_predicted_back() -> None:
    """A link that takes 20 ms for the one bucket: then the prediction for two ranks is the measured step."""
    link = Link.uniform(2, latency_s=0.0, bytes_per_s=100e6)
    assert predict_step(a_profile(), link, 2).step_s == pytest.approx(0.33)
