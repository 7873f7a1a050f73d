"""What samples become in caches and between processes, and which form `auto` picks."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from muster.io import LookAheadLoader
from muster.pillars.io.concurrency import Concurrency
from muster.pillars.io.raw_samples import RawSample, from_raw
from muster.pillars.io.staging import StagingArea
from pillars.io.counted_store import CountedStore


class Pair(NamedTuple):
    image: torch.Tensor
    label: int


TREES: list[Any] = [
    torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4),
    torch.randn(5, 7).bfloat16().t(),
    torch.empty(0, 3),
    torch.tensor(2.5, dtype=torch.float64),
    torch.randn(3, dtype=torch.complex64),
    np.arange(6, dtype=np.int16).reshape(2, 3)[:, ::2],
    np.array("text"),
    Pair(torch.ones(3), 4),
    {"image": torch.ones(2, 2), "more": [1, None, "two", b"three", (4.0, True)]},
    {1, 2, 3},
    np.float32(1.5),
]


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("tree", TREES, ids=lambda tree: type(tree).__name__)
def test_a_tree_comes_back_as_it_was(tree: Any, copy: bool) -> None:
    back = from_raw(memoryview(RawSample(tree).to_bytes()), copy=copy)
    assert type(back) is type(tree)
    if isinstance(tree, torch.Tensor):
        assert back.dtype == tree.dtype
        assert torch.equal(back, tree)
    elif isinstance(tree, np.ndarray):
        assert back.dtype == tree.dtype
        np.testing.assert_array_equal(back, tree)
    else:
        assert repr(back) == repr(tree)


def test_tensors_are_made_in_place_only_if_asked() -> None:
    stored = RawSample(torch.zeros(4)).to_bytes()
    own, shared = from_raw(stored), from_raw(stored, copy=False)
    shared += 1
    assert own.tolist() == [0, 0, 0, 0]
    assert from_raw(stored).tolist() == [1, 1, 1, 1]


def test_the_staging_area_never_gives_the_same_bytes_twice() -> None:
    """Random takes and returns, against a list of who has what."""
    area, generator = StagingArea(10_000), random.Random(0)
    taken: dict[int, bytes] = {}
    for _ in range(3000):
        if taken and generator.random() < 0.5:
            area.give_back(next(iter(taken)))
            del taken[next(iter(taken))]
            continue
        content = generator.randbytes(generator.randint(1, 900))
        start = area.put(content)
        if start is None:
            assert sum(map(len, taken.values())) + len(content) > 10_000 - 900 * (len(taken) + 1)
            continue
        for other, held in taken.items():
            assert start + len(content) <= other or other + len(held) <= start
        taken[start] = content
        assert all(bytes(area._view[at : at + len(held)]) == held for at, held in taken.items())
    for start in list(taken):
        area.give_back(start)
    assert area.put(bytes(10_000)) == 0  # one gap again


class RandomlyFlipped(CountedStore):
    """Decoding draws a random number."""

    def decode(self, index: int, stored: bytes | memoryview) -> torch.Tensor:
        return super().decode(index, stored) + torch.randint(0, 2, (1,)) * 1000


class SlowlyDecoded(CountedStore):
    """Decoding costs far more than a copy of its result."""

    def decode(self, index: int, stored: bytes | memoryview) -> torch.Tensor:
        np.linalg.svd(np.ones((200, 200)))
        return super().decode(index, stored)


@pytest.mark.parametrize(
    ("kind", "memory", "cache"),
    [
        (SlowlyDecoded, 1 << 20, "decoded"),
        (SlowlyDecoded, 1000, "stored"),
        (RandomlyFlipped, 1 << 20, "stored"),
    ],
    ids=["costly and fits", "does not fit", "draws random numbers"],
)
def test_auto_caches_decoded_samples_where_that_is_right(
    tmp_path: Path, kind: type[CountedStore], memory: int, cache: str
) -> None:
    store = kind.made(tmp_path / "s", 20, 500, 501)
    before = torch.get_rng_state()
    with LookAheadLoader(store, 4, seed=1, epochs=2, memory_bytes=memory) as loader:
        iter(loader)
        assert loader.statistics().cache == cache
        assert torch.equal(torch.get_rng_state(), before)  # having looked at a sample leaves no trace


class RandomSamples(torch.utils.data.Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.rand(1) + index


def test_whole_samples_that_draw_random_numbers_are_not_frozen() -> None:
    with LookAheadLoader(RandomSamples(), 12, seed=1, epochs=2, workers=0) as loader:
        with pytest.warns(RuntimeWarning, match="draws random numbers"):
            first = next(iter(loader))
        second = next(iter(loader))
        assert loader.statistics().cache == "none"
    assert not torch.equal(first.sort(dim=0).values, second.sort(dim=0).values)


@pytest.mark.parametrize("workers", [1, 2])
def test_samples_seeded_one_by_one_do_not_depend_on_the_workers(tmp_path: Path, workers: int) -> None:
    store = RandomlyFlipped.made(tmp_path / "s", 20, 500, 501)
    rows = []
    for number in (0, workers):
        with LookAheadLoader(store, 4, seed=1, epochs=2, workers=number, seed_each_sample=True) as loader:
            rows.append([row for _ in range(2) for batch in loader for row in batch.tolist()])
    assert rows[0] == rows[1]


def test_a_batch_in_shared_memory_is_not_overwritten_while_somebody_holds_it(tmp_path: Path) -> None:
    store = CountedStore.made(tmp_path / "s", 200, 100, 101)
    with LookAheadLoader(store, 4, seed=1, epochs=3, workers=2) as loader:
        held = [(batch, batch.clone()) for _ in range(3) for batch in loader]
        views = [batch[1:, :1].t() for batch, _ in held]
        assert all(torch.equal(batch, copy) for batch, copy in held)
        copies = [view.clone() for view in views]
        del held
        for batch in loader:
            batch += 1
        assert all(torch.equal(view, copy) for view, copy in zip(views, copies, strict=True))


def test_requests_at_once_grow_while_throughput_does() -> None:
    """A store that gives each of up to 8 clients 1 MB/s, by a clock of its own."""
    now = 0.0
    concurrency = Concurrency(most=64, clock=lambda: now)
    for _ in range(20_000):
        now += 10_000 / (1e6 * min(concurrency.now, 8))
        concurrency.arrived(10_000)
        if concurrency.settled:
            break
    assert concurrency.best == 8
    assert concurrency.bytes_per_s[8] == pytest.approx(8e6, rel=0.01)
    assert concurrency.bytes_per_s[16] == pytest.approx(8e6, rel=0.01)
