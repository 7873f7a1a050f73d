"""The global order of samples."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler

from muster.training.generators import generator_states, restore_generators, untouched_generators
from muster.training.order import GlobalOrder, SampleKey, SeededSamples


def test_each_rank_gets_what_torchs_distributed_sampler_gives_it() -> None:
    samples, batch, world = 96, 8, 4
    for rank in range(world):
        order = GlobalOrder(samples, batch, seed=11)
        ours = [key for step in range(2 * samples // batch) for key in order.share(step, rank, world)]
        sampler = DistributedSampler(range(samples), world, rank, shuffle=True, seed=11)
        theirs = []
        for epoch in (0, 1):
            sampler.set_epoch(epoch)
            theirs += [SampleKey(epoch, index) for index in sampler]
        assert ours == theirs


def test_any_change_of_world_size_leaves_each_epoch_covered_exactly_once() -> None:
    samples, batch = 50, 8  # an epoch ends in the middle of a step
    order = GlobalOrder(samples, batch, seed=3)
    used: list[SampleKey] = []
    for step in range(25):  # 200 uses: four epochs
        world = random.Random(step).choice([1, 2, 3, 5, 8])
        used += [key for rank in range(world) for key in order.share(step, rank, world)]
    assert sorted(used) == [SampleKey(epoch, index) for epoch in range(4) for index in range(samples)]


class Random(Dataset):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.rand()), random.random()


def test_randomness_of_a_sample_depends_on_seed_epoch_and_index_alone() -> None:
    samples = SeededSamples(Random(), seed=5)
    first = samples[SampleKey(0, 3)]
    samples[SampleKey(0, 4)]
    assert samples[SampleKey(0, 3)] == first
    others = {samples[key] for key in (SampleKey(1, 3), SampleKey(0, 4))} | {
        SeededSamples(Random(), 6)[SampleKey(0, 3)]
    }
    assert first not in others
    assert len(others) == 3


def test_generators_go_on_from_where_their_states_were_taken() -> None:
    np.random.standard_normal()  # leaves a cached second value, which is part of the state
    random.gauss(0, 1)
    states = generator_states()

    def draw() -> list[float]:
        return [
            float(torch.rand(())),
            float(np.random.standard_normal()),
            np.random.rand(),
            random.gauss(0, 1),
            random.random(),
        ]

    expected = draw()
    draw()
    restore_generators(states)
    assert draw() == expected


def test_untouched_generators_are_untouched() -> None:
    states = generator_states()
    with untouched_generators():
        torch.rand(5), np.random.rand(), random.random()
    assert all(
        torch.equal(states[name], after) or name.endswith("gauss")
        for name, after in generator_states().items()
    )
