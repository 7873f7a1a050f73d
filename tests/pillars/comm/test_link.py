"""The link model: analytic costs, the model through points, predictions for other world sizes, and real links."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from muster.pillars.comm.link import KINDS, Curve, Link

MEGA = 1e6


def test_an_alpha_beta_link_is_reproduced_between_and_beyond_its_points() -> None:
    """Hockney's model is its own piecewise model: 50 us + n / 125 MB/s."""
    sizes = [1024.0 * 4**power for power in range(7)]
    curve = Curve.fitted(sizes, [50e-6 + size / 125e6 for size in sizes])
    for size in (0.0, 100.0, 5000.0, 3e6, 1e8):
        assert float(curve.at(np.array(size))) == pytest.approx(50e-6 + size / 125e6, rel=1e-6)
    assert curve.alpha == pytest.approx(50e-6)
    assert 1 / curve.beta == pytest.approx(125e6)


def test_a_dip_is_noise_and_is_pooled_with_its_neighbours() -> None:
    curve = Curve.fitted([1, 2, 4, 8], [1.0, 4.0, 1.0, 8.0])
    assert curve.seconds == pytest.approx((1.0, 2.0, 2.0, 8.0))  # sqrt(4 * 1)


def test_costs_follow_the_algorithms_of_thakur_rabenseifner_and_gropp() -> None:
    """Ring and tree costs at 8 ranks predicted from a 2-rank link: latency 10 us a step, 100 MB/s each way."""
    alpha, beta, size = 10e-6, 1 / (100 * MEGA), 8 * MEGA
    expected = {
        "all_reduce": 14 * alpha + 2 * 7 / 8 * size * beta,
        "all_gather": 7 * alpha + 7 * size * beta,
        "reduce_scatter": 7 * alpha + 7 / 8 * size * beta,
        "all_to_all": 7 * alpha + 7 / 8 * size * beta,
        "broadcast": 3 * alpha + 3 * size * beta,
    }
    link = Link.uniform(2, latency_s=alpha, bytes_per_s=100 * MEGA)
    assert sorted(expected) == sorted(KINDS)
    for kind, seconds in expected.items():
        assert link.seconds(kind, size, 8) == pytest.approx(seconds, rel=1e-6), kind


def test_on_a_shared_medium_every_byte_counts_whoever_sends_it() -> None:
    """P ranks put 2(P-1)n bytes of an all-reduce on the wire: three times as many at 4 as at 2."""
    link = Link.uniform(2, latency_s=0.0, bytes_per_s=50 * MEGA, shared=1.0)
    assert link.seconds("all_reduce", MEGA) == pytest.approx(2 * MEGA / (50 * MEGA))
    assert link.seconds("all_reduce", MEGA, 4) == pytest.approx(6 * MEGA / (50 * MEGA))
    switched = Link.uniform(2, latency_s=0.0, bytes_per_s=50 * MEGA)
    assert switched.seconds("all_reduce", MEGA, 4) == pytest.approx(1.5 * MEGA / (50 * MEGA))


def test_arrays_of_sizes_and_single_sizes_agree_and_one_rank_costs_nothing() -> None:
    link = Link.uniform(4, latency_s=1e-5, bytes_per_s=1e8)
    sizes = np.array([1.0, 1e3, 1e6])
    assert link.seconds("all_reduce", sizes).tolist() == [link.seconds("all_reduce", size) for size in sizes]
    assert link.seconds("all_reduce", 1e6, 1) == 0.0
    assert link.slower(2.0).seconds("broadcast", 1e6) == pytest.approx(2 * link.seconds("broadcast", 1e6))


def test_a_burst_that_passes_at_once_is_not_taken_for_the_rate() -> None:
    """A bucket of 64 KiB tokens at 50 MB/s: what fits into it takes the latency when it is sent alone after a pause."""
    sizes = [1024.0 * 4**power for power in range(7)]
    alone = [1e-4 + max(0.0, size - 65536) / 50e6 for size in sizes]
    busy = Link(2, {"all_reduce": Curve.fitted(sizes, alone)}).sustained()
    for size in (16384, 65536, 1 << 20, 1 << 22):
        assert busy.seconds("all_reduce", size) == pytest.approx(1e-4 + size / 50e6, rel=0.1)
    affine = Link.uniform(2, latency_s=1e-4, bytes_per_s=5e7)
    for size in (100, 1e5, 1e7):
        assert affine.sustained().seconds("all_reduce", size) == pytest.approx(
            affine.seconds("all_reduce", size)
        )


def test_a_link_survives_json() -> None:
    link = Link(2, {"all_reduce": Curve((1e3, 1e6), (1e-4, 1e-2))}, 0.25, "gloo")
    assert Link.from_json(link.to_json()) == link


def test_what_was_not_measured_is_named() -> None:
    link = Link(2, {"all_to_all": Curve((1e3,), (1e-4,))})
    assert link.seconds("reduce_scatter", 10) == 1e-4  # the same steps and volume
    with pytest.raises(KeyError, match="all_to_all"):
        link.seconds("broadcast", 10)


def _measured(context) -> tuple[str, float]:
    import time

    import torch.distributed as dist

    from muster.pillars.comm.link_probe import measure_link

    begin = time.perf_counter()
    text = measure_link(dist.group.WORLD, budget_s=1.0).to_json()
    return text, time.perf_counter() - begin


@pytest.mark.parametrize("ranks", [2, 3])
def test_all_ranks_hold_the_same_link_and_larger_messages_never_take_less(local_engine, ranks: int) -> None:
    results = local_engine.run(_measured, ranks=ranks)
    assert len({text for text, _ in results}) == 1
    link = Link.from_json(results[0][0])
    assert link.world_size == ranks
    assert sorted(link.curves) == sorted(KINDS)
    assert 0.0 <= link.shared <= 1.0
    sizes = np.geomspace(16, 1e8, 50)
    for kind in KINDS:
        times = link.seconds(kind, sizes)
        assert np.all(np.diff(times) >= 0)
        assert times[0] > 0


def test_a_token_bucket_of_400_mbit_is_seen_as_shared_50_megabytes_a_second(tmp_path: Path) -> None:
    """A real slow link: loopback of a namespace of its own behind `tc tbf`; both directions share its rate."""
    import subprocess

    from engine.namespaces import empty, why_not

    if reason := why_not("tc"):
        pytest.skip(reason)
    program = tmp_path / "probe.py"
    program.write_text(
        "from muster import gang\n"
        "def probe(context):\n"
        "    from muster.pillars.comm.link_probe import measure_link\n"
        "    return measure_link(kinds=('all_reduce', 'broadcast')).to_json()\n"
        "if __name__ == '__main__':\n"
        "    with gang.engine('local') as engine:\n"
        "        print(engine.run(probe, ranks=2)[0])\n"
    )
    with empty() as namespace:
        shape = ["dev", "lo", "root", "tbf", "rate", "400mbit", "burst", "64kb", "latency", "500ms"]
        subprocess.run(["ip", "-n", namespace.name, "link", "set", "lo", "mtu", "1500"], check=True)
        subprocess.run(namespace.within("tc", "qdisc", "add", *shape), check=True)
        link = Link.from_json(namespace.output(sys.executable, str(program)).splitlines()[-1])
    assert link.shared > 0.7
    # One megabyte all-reduced by two ranks puts two on the wire, and headers on top: 40 to 46 ms at 50 MB/s.
    assert link.seconds("all_reduce", MEGA) == pytest.approx(0.042, rel=0.2)
    assert link.seconds("broadcast", MEGA) == pytest.approx(0.021, rel=0.25)
    assert link.seconds("all_reduce", MEGA, 4) == pytest.approx(0.126, rel=0.25)
