"""What a loader has done, in numbers that can be compared with the plan."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


@dataclass
class LoaderStatistics:
    """Counts of one rank since its loader was made; times in seconds.

    Arguments:
        cache: what is cached: ``stored`` bytes, ``decoded`` samples, or ``none``.
        samples: handed to the training loop.
        from_memory, from_disk, from_peers, from_store: where they came from; they sum to ``samples`` and the corrupt ones.
        store_reads, store_bytes: requests of the store that succeeded, and what they brought.
        store_retries: requests that failed, came short or stalled, and were made again.
        planned_store_reads: what the whole job needs by its plan, in its next 256 epochs at most.
        peer_bytes: that came from other ranks, without counting what is read in place.
        lost_copies: samples that a cache or a peer should have had and that were read from the store instead.
        lost_peers: ranks that were given up, and why.
        corrupt: samples that were left out, by name.
        waited_s: time that the training loop waited for batches.
        stalls: how many batches it waited for longer than a millisecond.
        store_bytes_per_s: throughput of the store by number of requests at a time.
        requests_at_once: the number that was found best.
        memory_bytes, disk_bytes: kept now.
        decode_workers: processes that decode.
    """

    cache: str = "stored"
    samples: int = 0
    from_memory: int = 0
    from_disk: int = 0
    from_peers: int = 0
    from_store: int = 0
    store_reads: int = 0
    store_bytes: int = 0
    store_retries: int = 0
    planned_store_reads: int = 0
    peer_bytes: int = 0
    lost_copies: int = 0
    lost_peers: dict[int, str] = field(default_factory=dict)
    corrupt: list[str] = field(default_factory=list)
    waited_s: float = 0.0
    stalls: int = 0
    store_bytes_per_s: dict[int, float] = field(default_factory=dict)
    requests_at_once: int = 1
    memory_bytes: int = 0
    disk_bytes: int = 0
    decode_workers: int = 0


class Tally:
    """The statistics while threads add to them."""

    def __init__(self) -> None:
        self.now = LoaderStatistics()
        self._lock = threading.Lock()

    def add(self, **counts: float) -> None:
        """Adds to counts by name."""
        with self._lock:
            for name, count in counts.items():
                setattr(self.now, name, getattr(self.now, name) + count)

    def lost_peer(self, rank: int, reason: str) -> None:
        """A rank was given up."""
        with self._lock:
            self.now.lost_peers[rank] = reason

    def corrupt(self, names: list[str]) -> None:
        """Samples were left out."""
        with self._lock:
            self.now.corrupt.extend(names)
