"""Stores that fail, stall or come short, samples that are corrupt, caches that are damaged or full: never a wrong sample."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from muster.errors import DataError, MusterError
from muster.io import LookAheadLoader
from muster.pillars.io.shelf import Shelf
from pillars.io.counted_store import CountedStore

SAMPLES = 40


@pytest.fixture
def store(tmp_path: Path) -> CountedStore:
    return CountedStore.made(tmp_path / "s", SAMPLES, 3000, 3001)


def loader(store: Any, epochs: int = 2, **options: Any) -> LookAheadLoader:
    defaults = {"cache": "stored", "memory_bytes": 1 << 20, "backoff_s": 0.02, "retries": 3}
    return LookAheadLoader(store, 8, seed=1, epochs=epochs, **(defaults | options))


def rows(loader: LookAheadLoader, passes: int = 2) -> list[list[int]]:
    return [row for _ in range(passes) for batch in loader for row in batch.tolist()]


def check(store: CountedStore, seen: list[list[int]], left_out: set[int] = frozenset()) -> None:  # type: ignore[assignment]
    assert sorted(row[0] for row in seen) == sorted(
        2 * [each for each in range(SAMPLES) if each not in left_out]
    )
    assert all(row == store.expected(row[0]) for row in seen)


# ---- the store -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_cannot_be_read_stops_with_one_sentence(store: CountedStore, workers: int) -> None:
    store.path(17).unlink()
    with loader(store, workers=workers) as reader:
        with pytest.raises(
            DataError, match=r"^sample 17: the store failed 4 times.*No such file.*/17"
        ) as caught:
            rows(reader)
        assert "\n" not in str(caught.value)
        assert reader.statistics().store_retries == 3


def test_a_store_that_comes_back_is_read_again(store: CountedStore) -> None:
    hidden = store.path(17).rename(store.folder / "elsewhere")
    mend = threading.Timer(0.3, lambda: hidden.rename(store.path(17)))
    mend.start()
    with loader(store, retries=6, backoff_s=0.05) as reader:
        check(store, rows(reader))
        assert reader.statistics().store_retries > 0
    mend.join()
    assert set(store.reads().values()) == {1}


def test_a_short_read_is_not_taken_for_a_sample(store: CountedStore) -> None:
    whole = store.path(5).read_bytes()
    store.path(5).write_bytes(whole[:1000])
    with (
        loader(store) as reader,
        pytest.raises(DataError, match=r"sample 5: .*1,000 bytes came instead of 3,000"),
    ):
        rows(reader)
    mend = threading.Timer(0.3, lambda: store.path(5).write_bytes(whole))
    mend.start()
    with loader(store, retries=6, backoff_s=0.05) as reader:
        check(store, rows(reader))
    mend.join()


def test_a_request_without_an_answer_is_made_again(store: CountedStore) -> None:
    """Sample 9 is a pipe that nobody writes to: who opens it waits, for ever if need be."""
    content = store.path(9).read_bytes()
    store.path(9).unlink()
    os.mkfifo(store.path(9))
    waiting = store.path(9).rename(store.folder / "pipe")
    os.symlink(waiting, store.path(9))

    def mend() -> None:
        store.path(9).unlink()
        store.path(9).write_bytes(content)

    timer = threading.Timer(0.4, mend)
    timer.start()
    with loader(store, stall_timeout_s=0.8) as reader:
        check(store, rows(reader))
        assert reader.statistics().store_retries == 1
    timer.join()
    os.close(os.open(waiting, os.O_RDWR | os.O_NONBLOCK))  # lets the thread that waits end


def test_a_store_that_never_answers_stops_with_one_sentence(store: CountedStore) -> None:
    store.path(9).unlink()
    os.mkfifo(store.path(9))
    with (
        loader(store, stall_timeout_s=0.2, retries=1) as reader,
        pytest.raises(DataError, match=r"sample 9: the store failed 2 times.*no answer in 0.2 s"),
    ):
        rows(reader)
    os.close(os.open(store.path(9), os.O_RDWR | os.O_NONBLOCK))  # lets the threads that wait end


# ---- samples -------------------------------------------------------------------------------------------------------


def corrupt(store: CountedStore, *samples: int) -> None:
    for sample in samples:
        store.path(sample).write_bytes(b"\xff" * 3000)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_sample_stops_by_default_and_is_named(store: CountedStore, workers: int) -> None:
    corrupt(store, 21)
    with (
        loader(store, workers=workers) as reader,
        pytest.raises(DataError, match=r"samples/21: not sample 21"),
    ):
        rows(reader)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("cache", ["stored", "decoded"])
def test_corrupt_samples_are_left_out_counted_and_named_if_asked(
    store: CountedStore, workers: int, cache: str
) -> None:
    corrupt(store, 3, 30)
    with loader(store, workers=workers, cache=cache, on_corrupt="skip") as reader:
        check(store, rows(reader), {3, 30})
        statistics = reader.statistics()
    assert sorted(statistics.corrupt) == sorted(
        2 * [f"{store.path(sample)}: not sample {sample}" for sample in (3, 30)]
    )
    assert statistics.samples == 2 * (SAMPLES - 2)


def test_a_batch_of_nothing_but_corrupt_samples_stops(store: CountedStore) -> None:
    corrupt(store, *range(SAMPLES))
    with loader(store, on_corrupt="skip") as reader, pytest.raises(DataError, match="all samples of a batch"):
        next(iter(reader))


class Positions(torch.utils.data.Dataset[torch.Tensor]):
    """A plain map-style data set, with one sample that cannot be read."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 13:
            raise OSError("file 13 is truncated")
        return torch.tensor([index])


def test_a_plain_data_sets_unreadable_sample_is_left_out_too() -> None:
    with loader(Positions(), cache="auto", on_corrupt="skip") as reader:
        assert sorted(row[0] for row in rows(reader, 1)) == [each for each in range(SAMPLES) if each != 13]
        assert reader.statistics().corrupt == ["sample 13: file 13 is truncated"]


# ---- caches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_disk_cache_is_noticed_and_the_store_is_read_again(
    store: CountedStore, workers: int
) -> None:
    with loader(store, memory_bytes=0, disk=(store.folder / "cache", 1 << 20), workers=workers) as reader:
        first = rows(reader, 1)
        # The last of the second epoch, which no worker has in hand yet.
        damaged = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(2)).tolist()[-3:]
        shelf = reader._session._holdings.shelves[1]  # type: ignore[union-attr]
        for sample in damaged:
            start, length, _ = shelf.where(sample)  # type: ignore[misc]
            os.pwrite(shelf.files.data, bytes(16), start + length // 2)
        check(store, first + rows(reader, 1))
        assert reader.statistics().lost_copies == 3
    assert sorted(sample for sample, count in store.reads().items() if count == 2) == sorted(damaged)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("a small file system needs root to mount it")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("this machine mounts no file systems")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_stops_growing_and_says_so_once(store: CountedStore, small_disk: Path) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with loader(store, memory_bytes=0, disk=(small_disk, 1 << 20)) as reader:
            check(store, rows(reader))
            kept = reader.statistics().disk_bytes
    assert kept <= 64 << 10
    told = [str(each.message) for each in said if "disk cache" in str(each.message)]
    assert len(told) == 1
    assert "No space left on device" in told[0]
    assert (
        0 < sum(count == 1 for count in store.reads().values()) < SAMPLES
    )  # some were kept, some read again


def test_a_folder_that_cannot_be_written_is_refused(store: CountedStore) -> None:
    with (
        loader(store, disk=(Path("/proc/none"), 1000)) as reader,
        pytest.raises(DataError, match="/proc/none"),
    ):
        rows(reader)


def test_a_shelf_gives_back_what_was_put_and_notices_every_changed_bit(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for folder in (None, tmp_path):
        shelf = Shelf(100_000, 50, folder)
        contents = {index: generator.bytes(int(generator.integers(0, 2000))) for index in range(50)}
        for index, content in contents.items():
            assert shelf.put(index, content)
        assert all(
            bytes(shelf.get(index, check=True) or b"") == content for index, content in contents.items()
        )
        start, length, _ = shelf.where(7)  # type: ignore[misc]
        for bit in range(0, 8 * length, 997):
            byte = contents[7][bit // 8] ^ (1 << bit % 8)
            os.pwrite(shelf.files.data, bytes([byte]), start + bit // 8)
            assert shelf.get(7, check=True) is None
            os.pwrite(shelf.files.data, contents[7][bit // 8 : bit // 8 + 1], start + bit // 8)
        assert shelf.get(7, check=True) is not None
        assert not Shelf(10, 5, folder).put(0, b"more than ten bytes")
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_is_killed_ends_the_pass_with_one_sentence(store: CountedStore) -> None:
    with loader(store, workers=1, epochs=50) as reader:
        passes = iter(reader)
        next(passes)
        os.kill(reader._session.worker_processes[0], 9)  # type: ignore[union-attr]
        with pytest.raises(MusterError, match=r"worker process of the loader .* was killed by signal 9"):
            rows(reader, 49)
