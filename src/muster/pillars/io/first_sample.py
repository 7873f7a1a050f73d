"""A look at the first sample: how large it is once decoded, what decoding costs, whether it draws random numbers.

What draws random numbers is different each time it is used, so it must not be cached in its final form. The sample that was
looked at is the first that the rank uses, and is not read a second time for that use.
"""

from __future__ import annotations

import random
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from muster.errors import DataError
from muster.pillars.io.access_order import Ids, Order
from muster.pillars.io.batches import Form, Origin, Place, seed_generators
from muster.pillars.io.loader_statistics import Tally
from muster.pillars.io.raw_samples import Buffer, RawSample
from muster.pillars.io.samples import StoredSamples

if TYPE_CHECKING:
    from muster.pillars.io.session import Settings

_COPY_BYTES_PER_S = 2e9  # of a cached sample into its batch; below what any machine does
_WORTH = 3.0  # decoding must cost this many times the copy for `auto` to cache decoded samples


@dataclass(frozen=True)
class FirstSample:
    """What was found.

    Arguments:
        key: the access that it was read for.
        index: of the sample.
        cache: what this rank would cache.
        raw_bytes: its size as a `RawSample`.
        form, content: its bytes, to be used for that access.
    """

    key: tuple[int, int]
    index: int
    cache: str
    raw_bytes: int
    form: Form
    content: Buffer

    def as_place(self) -> tuple[tuple[int, int], Place]:
        """The access, and where its sample is."""
        place = Place(self.form, Origin.STORE, inline=self.content, length=len(self.content))  # type: ignore[arg-type]
        return self.key, place


def look_at_first_sample(
    samples: Any,
    stored: StoredSamples | None,
    order: Order,
    rank: int,
    epoch: int,
    position: int,
    settings: Settings,
    sizes: Ids | None,
    tally: Tally,
) -> FirstSample | None:
    """Reads and decodes this rank's first sample; None where nothing depends on it.

    Raises:
        DataError: it cannot be read, and corrupt samples are not to be skipped.
    """
    if settings.cache == "none" or (stored is not None and settings.cache == "stored"):
        return None
    share = order.share(epoch, rank, position)
    if not len(share):
        return None
    index, key = int(share[0]), (epoch, 0)
    states = _generator_states()
    if settings.seed_each_sample:
        seed_generators([order.seed, int(order.epochs_of(epoch, rank, position)[0]), index])
    before = _generator_states()
    content = b""
    try:
        if stored is not None:
            content = _read(stored, index, sizes, settings, tally)
        began = time.perf_counter()
        try:
            sample = stored.decode(index, content) if stored is not None else samples[index]
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"sample {index}: {error}") from error
        took = time.perf_counter() - began
    except DataError:
        if not settings.skip_corrupt:
            raise
        return None if stored is None else FirstSample(key, index, "stored", 0, Form.STORED, content)
    random_drawn = not _same(before, _generator_states())
    if settings.seed_each_sample or stored is not None:
        _restore(states)
    raw = RawSample(sample)
    if stored is None:
        tally.add(store_reads=1)
        cache = "decoded"
        if random_drawn and settings.cache == "auto":
            cache = "none"
            warnings.warn(
                "reading a sample draws random numbers, so whole samples are not cached; give a StoredSamples data set, "
                "of which the stored bytes are cached, or cache='decoded' if they may be frozen",
                RuntimeWarning,
                stacklevel=2,
            )
        return FirstSample(key, index, cache, raw.size, Form.RAW, raw.to_bytes())
    worth = took > _WORTH * raw.size / _COPY_BYTES_PER_S
    decoded = settings.cache == "decoded" or (worth and not random_drawn)
    return FirstSample(key, index, "decoded" if decoded else "stored", raw.size, Form.STORED, content)


def _read(stored: StoredSamples, index: int, sizes: Ids | None, settings: Settings, tally: Tally) -> bytes:
    def request() -> bytes:
        content = stored.read(index)
        if sizes is not None and len(content) != sizes[index]:
            raise OSError(f"{len(content):,} bytes came instead of {sizes[index]:,}")
        return content

    content: bytes = settings.patience.read(request, index, on_retry=lambda: tally.add(store_retries=1))
    tally.add(store_reads=1, store_bytes=len(content))
    return content


def _generator_states() -> tuple[Any, Any, Any]:
    import torch

    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def _same(before: tuple[Any, Any, Any], after: tuple[Any, Any, Any]) -> bool:
    import torch

    of_numpy = all(np.array_equal(one, other) for one, other in zip(before[1], after[1], strict=True))
    return torch.equal(before[0], after[0]) and of_numpy and before[2] == after[2]


def _restore(states: tuple[Any, Any, Any]) -> None:
    import torch

    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])
