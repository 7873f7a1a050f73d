"""Plans: the compressor of each bucket by predicted time, and where sending few elements cannot pay."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from muster.pillars.comm.compress.compressor import ComputeRates
from muster.pillars.comm.link import Link
from muster.pillars.comm.plan import Costs, make_plan, plan_for, sparse_pays
from muster.pillars.comm.step_profile import StepProfile

RATES = ComputeRates(5e9, 5e8, 2e8, 1e10, 2e-6)


def a_profile(count: int = 7) -> tuple[StepProfile, dict[str, torch.Size]]:
    generator = torch.Generator().manual_seed(3)
    numels = torch.randint(200, 200_000, (count,), generator=generator).tolist()
    names = tuple(f"layer{index}" for index in range(count))
    ready = tuple(0.1 + 0.02 * index for index in range(count))
    end = ready[-1]
    profile = StepProfile(
        names, tuple(4 * numel for numel in numels), ready, 0.09, end, end + 0.1, end + 0.12, 2, 5
    )
    return profile, {name: torch.Size([numel]) for name, numel in zip(names, numels, strict=True)}


@pytest.mark.parametrize("megabytes_per_s", [3, 50, 2000])
def test_a_plan_over_layouts_and_compressors_is_the_best_of_all_of_them(megabytes_per_s: float) -> None:
    profile, shapes = a_profile()
    link = Link.uniform(2, latency_s=3e-4, bytes_per_s=megabytes_per_s * 1e6, shared=1.0)
    costs = Costs(profile, shapes, link, RATES)
    best = min(
        plan_for(profile, costs, [name], (*cuts, 7)).end_s
        for size in range(7)
        for cuts in combinations(range(1, 7), size)
        for name in ("none", "bf16")
    )
    plan = make_plan(profile, costs, ["none", "bf16"], slack=0.0)
    assert plan.end_s <= best + 1e-12
    # It may mix compressors, and then be better; but nothing beats all bytes on the way without a break.
    assert plan.end_s >= profile.ready_s[0] + plan.communication_s - 1e-9


def test_a_slow_link_is_worth_bf16_and_a_fast_one_is_not() -> None:
    profile, shapes = a_profile()
    slow = Link.uniform(2, latency_s=1e-4, bytes_per_s=5e6, shared=1.0)
    fast = Link.uniform(2, latency_s=1e-4, bytes_per_s=5e10)
    assert set(make_plan(profile, Costs(profile, shapes, slow, RATES), ["none", "bf16"]).compressors) == {
        "bf16"
    }
    assert set(make_plan(profile, Costs(profile, shapes, fast, RATES), ["none", "bf16"]).compressors) == {
        "none"
    }


def test_a_plan_is_never_slower_than_fp32_by_its_own_prediction() -> None:
    for bytes_per_s in (1e6, 1e7, 1e8, 1e9, 1e10):
        profile, shapes = a_profile()
        costs = Costs(profile, shapes, Link.uniform(2, latency_s=1e-4, bytes_per_s=bytes_per_s), RATES)
        plain = make_plan(profile, costs, ["none"], slack=0.0)
        assert make_plan(profile, costs, ["none", "bf16"], slack=0.0).end_s <= plain.end_s + 1e-12


def test_a_plan_for_a_given_layout_names_each_bucket() -> None:
    profile, shapes = a_profile()
    plan = plan_for(
        profile,
        Costs(profile, shapes, Link.uniform(2, latency_s=0, bytes_per_s=1e6), RATES),
        ["none"],
        [2, 7],
    )
    assert plan.by_bucket() == {profile.names[:2]: "none", profile.names[2:]: "none"}
    assert plan.flights[1].ready == profile.ready_s[-1]


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_sparse_bounds_are_where_the_words_on_the_wire_balance(ranks: int) -> None:
    """Words per rank: dense 2n(P-1)/P, half of it in bf16; gathered pairs 2k(P-1); Ok-Topk 6k(P-1)/P."""
    n = 1_000_000
    dense = 2 * n * (ranks - 1) / ranks
    for percent in range(1, 100):
        density = percent / 100
        k = density * n
        for against, words in (("fp32", dense), ("bf16", dense / 2)):
            gathered, oktopk = 2 * k * (ranks - 1), 6 * k * (ranks - 1) / ranks
            if abs(gathered - words) > 1e-6 * words:
                assert sparse_pays("topk", density, ranks, against) == (gathered < words)
            if abs(oktopk - words) > 1e-6 * words:
                assert sparse_pays("oktopk", density, ranks, against) == (oktopk < words)
