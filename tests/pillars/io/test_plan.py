"""The plan covers first, and reads the store far less than a rule that looks at a rank's own frequencies."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from muster.pillars.io.access_order import AccessOrder
from muster.pillars.io.plan import HORIZON, NOBODY, Speeds, count_accesses, epoch_is_feasible, place, replicas
from muster.pillars.io.simulation import reads_by_own_frequency, reads_covering_first


def replayed(order: AccessOrder, epochs: int, holders: dict[int, set[int]], *, handed_over: bool) -> int:
    """Store reads, counted one access after the other: the slow and plain way."""
    cached: set[int] = set()
    reads = 0
    for epoch in range(epochs):
        shares = order.shares(epoch)
        for turn in range(max(len(share) for share in shares)):
            for rank, share in enumerate(shares):
                if turn < len(share) and int(share[turn]) not in cached:
                    sample = int(share[turn])
                    reads += 1
                    if holders.get(sample) and (handed_over or rank in holders[sample]):
                        cached.add(sample)
    return reads


def test_caches_as_large_as_the_data_read_the_store_at_most_0_40_times_as_often_as_nopfs_rule() -> None:
    order = AccessOrder(20_000, world_size=4, batch_size=32, seed=0)
    sizes = np.full(20_000, 100, dtype=np.int64)
    capacities = [int(sizes.sum()) // 4] * 4
    ours = reads_covering_first(order, 10, sizes, capacities)
    theirs = reads_by_own_frequency(order, 10, sizes, capacities)
    assert ours == 20_000  # once each, and never again
    assert ours / theirs <= 0.40


def test_the_own_frequency_rule_leaves_out_as_many_samples_as_probability_says() -> None:
    """A rank uses a sample k of 10 times with probability Binomial(10, 1/4); it keeps the quarter with the largest k.

    P(k >= 4) = 0.2241 and P(k = 3) = 0.2503, so all with k >= 4 are kept and 10.3 % of those with k = 3.
    Over the four ranks' multinomial counts a sample is then kept nowhere with probability 0.162.
    """
    missing = 0.0
    share_of_threes = (0.25 - 0.22412) / 0.25028
    for counts in itertools.product(range(4), repeat=4):
        if sum(counts) == 10:
            ways = 3_628_800 / np.prod([[1, 1, 2, 6][count] for count in counts])
            missing += ways / 4**10 * (1 - share_of_threes) ** counts.count(3)
    order = AccessOrder(50_000, world_size=4, batch_size=1, seed=5)
    kept: set[int] = set()
    for rank in range(4):
        uses = count_accesses(order, rank, range(10)).own_uses
        ties = np.random.default_rng(rank).random(50_000)
        kept |= set(np.lexsort((ties, -uses))[:12_500].tolist())
    assert 1 - len(kept) / 50_000 == pytest.approx(missing, abs=0.01)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_the_bound_is_what_a_replay_of_all_accesses_counts(share: float) -> None:
    order = AccessOrder(97, world_size=3, batch_size=4, seed=2)
    sizes = np.random.default_rng(0).integers(1, 50, 97)
    capacities = [int(share * sizes.sum()) // 3 + 1] * 3
    accesses = count_accesses(order, 0, range(4))
    placement = place(accesses, sizes, capacities)
    holders = {
        sample: {holder} for sample, holder in enumerate(placement.holder.tolist()) if holder != NOBODY
    }
    replay = replayed(order, 4, holders, handed_over=True)
    assert placement.store_reads(accesses) == replay
    assert reads_covering_first(order, 4, sizes, capacities) == replay


def test_nopfs_rule_is_counted_as_a_replay_counts_it() -> None:
    order = AccessOrder(60, world_size=3, batch_size=4, seed=1)
    sizes = np.ones(60, dtype=np.int64)
    holders: dict[int, set[int]] = {}
    for rank in range(3):
        stream = np.concatenate([order.share(epoch, rank) for epoch in range(5)]).tolist()
        ranked = sorted(set(stream), key=lambda sample: (-stream.count(sample), stream.index(sample)))
        for sample in ranked[:20]:
            holders.setdefault(sample, set()).add(rank)
    assert reads_by_own_frequency(order, 5, sizes, [20] * 3) == replayed(order, 5, holders, handed_over=False)


def test_counts_agree_with_counting_one_by_one() -> None:
    order = AccessOrder(50, world_size=4, batch_size=3, seed=8, tail="pad", drop_last=True)
    accesses = count_accesses(order, 2, range(1, 4), position=13)
    uses, own, first = [0] * 50, [0] * 50, {}
    before = 0
    for epoch in range(1, 4):
        shares = order.shares(epoch, 13 if epoch == 1 else 0)
        for turn in range(max(map(len, shares))):
            for rank, share in enumerate(shares):
                if turn < len(share):
                    sample = int(share[turn])
                    uses[sample] += 1
                    own[sample] += rank == 2
                    first.setdefault(sample, ((before + turn) * 4 + rank, rank))
        before += max(map(len, shares))
    assert accesses.uses.tolist() == uses
    assert accesses.own_uses.tolist() == own
    for sample, (turn, rank) in first.items():
        assert (accesses.first_turn[sample], accesses.first_user[sample]) == (turn, rank)


def test_memory_is_filled_before_disk_and_no_capacity_is_exceeded() -> None:
    order = AccessOrder(1000, world_size=2, batch_size=1, seed=0)
    sizes = np.random.default_rng(3).integers(1, 1000, 1000)
    accesses = count_accesses(order, 0, range(3))
    placement = place(accesses, sizes, [100_000, 50_000], [60_000, 0])
    for rank, kind, capacity in ((0, 0, 100_000), (1, 0, 50_000), (0, 1, 60_000), (1, 1, 0)):
        kept = (placement.holder == rank) & (placement.storage == kind)
        assert int(sizes[kept].sum()) + placement.free[rank, kind] == capacity
        assert placement.free[rank, kind] >= 0
    smallest_left = int(sizes[placement.holder == NOBODY].min())
    assert (placement.free < smallest_left).all()  # nothing that would fit was left out


def test_what_is_used_once_is_not_kept() -> None:
    order = AccessOrder(100, world_size=2, batch_size=1, seed=0)
    accesses = count_accesses(order, 0, range(1))
    placement = place(accesses, np.ones(100, dtype=np.int64), [1000, 1000])
    assert (placement.holder == NOBODY).all()


def test_room_that_is_left_holds_what_a_rank_uses_most_of_other_machines() -> None:
    order = AccessOrder(400, world_size=2, batch_size=1, seed=4)
    sizes = np.full(400, 10, dtype=np.int64)
    accesses = count_accesses(order, 0, range(8))
    placement = place(accesses, sizes, [2500, 2000])
    memory, disk = replicas(placement, accesses, sizes, 0, ["here", "there"])
    assert len(memory) == (2500 - 2000) // 10
    assert len(disk) == 0
    others = (placement.holder == 1) & (accesses.own_uses >= 2)
    worst_kept = accesses.own_uses[memory].min()
    left_out = np.setdiff1d(np.flatnonzero(others), memory)
    assert (accesses.own_uses[left_out] <= worst_kept).all()
    assert not len(replicas(placement, accesses, sizes, 0, ["here", "here"])[0])  # they map each other's


def test_a_million_samples_are_planned_in_seconds() -> None:
    order = AccessOrder(1_000_000, world_size=4, batch_size=32, seed=0)
    sizes = np.full(1_000_000, 100_000, dtype=np.int64)
    began = time.monotonic()
    accesses = count_accesses(order, 0, range(10))
    placement = place(accesses, sizes, [25_000_000_000] * 4)
    assert time.monotonic() - began < 300  # about 1 s when nothing else runs
    assert placement.store_reads(accesses) == 1_000_000


def test_an_epoch_is_feasible_when_each_source_keeps_up() -> None:
    speeds = Speeds(store=10.0, peers=100.0, consumed=20.0)
    assert epoch_is_feasible(from_store=50.0, from_peers=50.0, total=100.0, speeds=speeds)
    assert not epoch_is_feasible(from_store=51.0, from_peers=49.0, total=100.0, speeds=speeds)


def test_a_plan_for_very_many_epochs_is_that_for_some_hundreds_and_takes_no_longer() -> None:
    """A full shuffle uses each sample once an epoch: who keeps what is settled by the first ones."""
    order = AccessOrder(300, world_size=2, batch_size=4, seed=3)
    sizes = np.full(300, 10, dtype=np.int64)
    plans = [place(count_accesses(order, 0, range(epochs)), sizes, [900, 900]) for epochs in (HORIZON, 10**9)]
    assert np.array_equal(plans[0].holder, plans[1].holder)
    assert np.count_nonzero(plans[0].holder == NOBODY) == 300 - 180
