"""The order of samples is `DistributedSampler`'s, across epochs, kills and world sizes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from muster.errors import DataError
from muster.io import LookAheadLoader
from pillars.io.counted_store import CountedStore


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CountedStore:
    return CountedStore.made(tmp_path_factory.mktemp("store") / "s", samples=101, low=100, high=900)


def sampler(store: Any, ranks: int, rank: int, seed: int = 3, **more: Any) -> Any:
    return DistributedSampler(store, ranks, rank, seed=seed, **more)


def ids(batches: Any) -> list[list[int]]:
    return [batch[:, 0].tolist() for batch in batches]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "more", [{}, {"drop_last": True}, {"shuffle": False}], ids=["padded", "dropped", "unshuffled"]
)
def test_every_rank_gets_the_batches_that_dataloader_gives_it(
    store: CountedStore, ranks: int, more: dict[str, bool]
) -> None:
    for rank in range(ranks):
        theirs, ours = sampler(store, ranks, rank, **more), sampler(store, ranks, rank, **more)
        plain = DataLoader(store, 8, sampler=theirs)
        with LookAheadLoader(store, 8, sampler=ours, epochs=3, memory_bytes=1 << 20) as loader:
            assert len(loader) == len(plain)
            for epoch in range(3):
                theirs.set_epoch(epoch)
                loader.set_epoch(epoch)
                for one, other in zip(plain, loader, strict=True):
                    assert torch.equal(one, other)


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_are_what_their_files_say(store: CountedStore, workers: int) -> None:
    with LookAheadLoader(
        store,
        8,
        sampler=sampler(store, 1, 0),
        epochs=2,
        workers=workers,
        cache="stored",
        memory_bytes=1 << 20,
    ) as loader:
        for epoch in range(2):
            loader.set_epoch(epoch)
            seen = [row for batch in loader for row in batch.tolist()]
            assert sorted(row[0] for row in seen) == list(range(101))
            assert all(row == store.expected(row[0]) for row in seen)


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_last_batch_that_is_not_full_is_kept_or_left_out(store: CountedStore, drop_last: bool) -> None:
    with LookAheadLoader(store, 8, seed=1, drop_last=drop_last, memory_bytes=1 << 20) as loader:
        sizes = [len(batch) for batch in loader]
    assert sizes == [8] * 12 + ([] if drop_last else [5])
    assert len(loader) == len(sizes)


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_without_padding_every_sample_is_used_once(store: CountedStore, ranks: int) -> None:
    generator = torch.Generator().manual_seed(3 + 1)
    permutation = torch.randperm(101, generator=generator).tolist()
    for rank in range(ranks):
        with LookAheadLoader(
            store, 8, sampler=sampler(store, ranks, rank), epochs=2, padding=False
        ) as loader:
            loader.set_epoch(1)
            assert [index for batch in ids(loader) for index in batch] == permutation[rank::ranks]


def test_a_loader_without_a_sampler_goes_on_to_the_next_epoch(store: CountedStore) -> None:
    with LookAheadLoader(store, 101, seed=9, epochs=2) as loader:
        for epoch in range(3):  # one more than was planned
            generator = torch.Generator().manual_seed(9 + epoch)
            assert ids(loader) == [torch.randperm(101, generator=generator).tolist()]


def test_a_pass_that_is_broken_off_begins_again(store: CountedStore) -> None:
    with LookAheadLoader(store, 8, sampler=sampler(store, 1, 0), epochs=2) as loader:
        broken_off = next(iter(loader))[:, 0].tolist()
        whole = ids(loader)
        assert whole[0] == broken_off
        assert whole == ids(DataLoader(store, 8, sampler=sampler(store, 1, 0)))
        loader.set_epoch(7)  # far from the plan
        theirs = sampler(store, 1, 0)
        theirs.set_epoch(7)
        assert ids(loader) == ids(DataLoader(store, 8, sampler=theirs))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_loader_gives_the_batches_that_were_left(store: CountedStore, workers: int) -> None:
    def made() -> LookAheadLoader:
        return LookAheadLoader(store, 8, sampler=sampler(store, 1, 0), epochs=3, workers=workers)

    with made() as whole:
        wanted = []
        for epoch in range(3):
            whole.set_epoch(epoch)
            wanted += ids(whole)
    with made() as first:
        first.set_epoch(1)
        for step, _ in enumerate(first):
            if step == 4:
                break
        state = first.state_dict()
    assert state == {"epoch": 1, "position": 40, "samples": 101, "seed": 3}
    with made() as second:
        second.load_state_dict(state)
        left = []
        for epoch in range(second.epoch, 3):
            second.set_epoch(epoch)
            left += ids(second)
    assert left == wanted[13 + 5 :]


def test_a_state_at_the_end_of_an_epoch_is_the_beginning_of_the_next(store: CountedStore) -> None:
    with LookAheadLoader(store, 8, sampler=sampler(store, 1, 0), drop_last=True) as loader:
        assert sum(1 for _ in loader) == 12
        assert loader.state_dict() == {"epoch": 1, "position": 0, "samples": 101, "seed": 3}


def test_a_state_of_other_data_is_refused(store: CountedStore) -> None:
    with LookAheadLoader(store, 8, seed=3) as loader, pytest.raises(DataError, match="seed 4"):
        loader.load_state_dict({"epoch": 0, "position": 8, "samples": 101, "seed": 4})


def test_a_change_of_world_size_deals_the_rest_to_the_new_ranks(store: CountedStore) -> None:
    """1 rank, then 2, then 3: nothing twice, nothing left out, and the order stays that of the seed."""
    used: list[int] = []
    state = None
    for ranks, batches in ((1, 3), (2, 2), (3, None)):
        shares, states = [], []
        for rank in range(ranks):
            with LookAheadLoader(
                store, 8, sampler=sampler(store, ranks, rank), epochs=2, padding=False
            ) as loader:
                if state is not None:
                    loader.load_state_dict(state)
                share: list[int] = []
                for number, batch in enumerate(loader):
                    share += batch[:, 0].tolist()
                    if number + 1 == batches:
                        break
                states.append(loader.state_dict())
                shares.append(share)
        state = states[0]
        assert all(each == state for each in states)
        longest = max(len(share) for share in shares)
        used += [share[turn] for turn in range(longest) for share in shares if turn < len(share)]
    assert Counter(used) == Counter(range(101))
    assert used == torch.randperm(101, generator=torch.Generator().manual_seed(3)).tolist()


def test_an_order_that_cannot_be_foreseen_is_refused(store: CountedStore) -> None:
    with pytest.raises(ValueError, match="RandomSampler"):
        LookAheadLoader(store, 8, sampler=torch.utils.data.RandomSampler(store))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size is 0"):
        LookAheadLoader(store, 0)
