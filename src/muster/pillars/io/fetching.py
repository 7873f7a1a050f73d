"""Threads that fetch samples ahead of their use, in the order of their use."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from muster.errors import DataError
from muster.pillars.io.access_order import Ids
from muster.pillars.io.batches import Form, Origin, Place
from muster.pillars.io.concurrency import Concurrency
from muster.pillars.io.holdings import Holdings, storage_of
from muster.pillars.io.loader_statistics import Tally
from muster.pillars.io.patience import Patience, unreadable
from muster.pillars.io.plan import Placement, StorageClass
from muster.pillars.io.raw_samples import Buffer
from muster.pillars.io.routes import READS_THE_STORE, Job, RankAccesses, Route

Key = tuple[int, int]


class Closed(Exception):
    """The fetcher was closed while somebody waited for it."""


@dataclass(eq=False)
class _Flight:
    job: Job
    attempt: int
    since: float
    overtaken: bool = False


class Fetcher:
    """Fetches what a rank's accesses need, until it is closed.

    Arguments:
        samples: the data set, or None if samples cannot be read apart from their decoding.
        sizes: bytes of each stored sample, of shape ``(samples,)``, or None.
        accesses: of this rank.
        placement: who keeps what.
        holdings: where to put and to find samples.
        replicated: for each storage class which samples of others to keep a second copy of.
        lookahead_bytes: most bytes of samples on their way; what is kept does not count.
        slack: accesses after the one that is waited for which may be fetched beyond ``lookahead_bytes``.
        concurrency: how many requests at once.
        patience: how long to wait.
        tally: the statistics.
        first: an access whose sample is in hand already.
    """

    def __init__(
        self,
        samples: Any,
        sizes: Ids | None,
        accesses: RankAccesses,
        placement: Placement,
        holdings: Holdings,
        replicated: dict[int, StorageClass],
        *,
        lookahead_bytes: int,
        slack: int,
        concurrency: Concurrency,
        patience: Patience,
        tally: Tally,
        first: tuple[Key, Place] | None = None,
    ) -> None:
        self._samples, self._sizes, self._accesses = samples, sizes, accesses
        self._placement, self._holdings, self._replicated = placement, holdings, replicated
        self._lookahead_bytes, self._slack = lookahead_bytes, slack
        self._concurrency, self._patience, self._tally = concurrency, patience, tally
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._staged: dict[Key, Place] = {}
        self._staged_bytes = 0
        self._failed: dict[Key, DataError] = {}
        self._open: set[Key] = set()
        self._flights: set[_Flight] = set()
        self._head: Key = (accesses.epochs.start, 0)
        self._workers = 0
        self._given: Key | None = None
        if first is not None:
            self._given, place = first
            self._take_in(self._given, place)
        self._store_jobs: Iterator[Job] = accesses.jobs(READS_THE_STORE)
        self._next_job: Job | None = None
        if samples is not None:
            self._next_job = next(self._store_jobs, None)
            self._more_threads()
            self._start(self._watch)
        for rank, peer in holdings.peers.items():
            if not peer.shelves:
                self._start(self._fetch_from_peer, rank)

    # ---- for the one who makes batches ---------------------------------------------------------------------------

    def wait(self, key: Key, index: int, route: Route, holder: int, waiting_s: Any) -> Place:
        """Where the sample of an access lies, as soon as it does.

        Arguments:
            key, index, route, holder: of the access.
            waiting_s: a function that tells how long the training loop has been waiting.

        Raises:
            DataError: it cannot be read.
            Closed: meanwhile.
        """
        pause = 0.0
        while True:
            place = self.find(key, index, holder)
            if place is not None:
                self._head = (key[0], key[1] + 1)
                return place
            with self._changed:
                if self._closed.is_set():
                    raise Closed
                if key in self._failed:
                    raise self._failed[key]
                self._head = key
                if pause == 0.0:  # what the look-ahead held back may go now
                    self._changed.notify_all()
                    pause = 0.0005
                if self.find(key, index, holder) is not None:  # it came before the lock did
                    continue
                fetched = self._samples is not None and route in READS_THE_STORE
                if not fetched and key not in self._open and self._overdue(index, route, holder, waiting_s()):
                    self._tally.add(lost_copies=1)
                    if self._samples is None:
                        self._head = (key[0], key[1] + 1)
                        return Place(Form.ABSENT, Origin.STORE)
                    self._open.add(key)
                    self._start(self._fetch, Job(key, index, Route.ONCE, holder))
                if self.find(key, index, holder) is None:
                    self._changed.wait(pause)
            pause = min(0.02, pause * 1.5)

    def release(self, key: Key) -> None:
        """The sample of an access has been used."""
        with self._changed:
            place = self._staged.pop(key, None)
            if place is not None:
                self._staged_bytes -= place.length
                self._holdings.release(place)
                self._changed.notify_all()

    def read_now(self, index: int) -> Place:
        """Reads a sample from the store at once, because the copy that there should be is damaged."""
        self._tally.add(lost_copies=1)
        if self._samples is None:
            return Place(Form.ABSENT, Origin.STORE)
        stored = self._patience.read(
            lambda: self._read(index),
            index,
            on_retry=lambda: self._tally.add(store_retries=1),
            pause=self._closed.wait,
        )
        return Place(Form.STORED, Origin.STORE, inline=stored, length=len(stored))

    def close(self) -> None:
        """Stops fetching; requests under way end on their own."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
            for place in self._staged.values():
                self._holdings.release(place)
            self._staged.clear()

    @property
    def reads_the_store(self) -> bool:
        """Whether samples come as stored bytes; otherwise whoever needs one asks the data set."""
        return self._samples is not None

    def find(self, key: Key, index: int, holder: int) -> Place | None:
        """Where the sample of an access lies now, if it does."""
        return self._staged.get(key) or self._holdings.find(index, holder)

    def _take_in(self, key: Key, place: Place) -> None:
        """Puts a sample that is in hand where its access would have it put."""
        epoch, offset = key
        there = self._accesses.of(epoch)
        index, holder = int(there.ids[offset]), int(there.holders[offset])
        self._staged[key] = place
        self._staged_bytes += place.length
        if place.form is not self._holdings.form:
            return
        if there.routes[offset] == Route.KEEP:
            self._holdings.keep(index, place.inline, storage_of(self._placement, index))
        elif there.routes[offset] == Route.PASS:
            self._start(self.pass_on, index, holder, place.inline)

    def settle(self, timeout_s: float) -> None:
        """Waits, for some time at most, until the requests under way have ended."""
        deadline = time.monotonic() + timeout_s
        while self._flights and time.monotonic() < deadline:
            time.sleep(0.005)

    def _overdue(self, index: int, route: Route, holder: int, waited_s: float) -> bool:
        """Whether to stop waiting for a sample that somebody else was to bring."""
        if waited_s > self._patience.peer_s or self._holdings.refused(index, holder):
            return True
        peer = self._holdings.peers.get(holder)
        return route in (Route.NEIGHBOUR, Route.REMOTE) and (peer is None or not peer.alive())

    # ---- the store -----------------------------------------------------------------------------------------------

    def _more_threads(self) -> None:
        while self._workers < self._concurrency.now:
            self._start(self._fetch_from_store, self._workers)
            self._workers += 1

    def _start(self, target: Any, *arguments: Any) -> None:
        threading.Thread(target=target, args=arguments, daemon=True, name="muster-io-fetch").start()

    def _fetch_from_store(self, number: int) -> None:
        while (job := self._take(number)) is not None:
            if not self._fetch(job):
                return  # this thread was taken for lost, and replaced

    def _take(self, number: int) -> Job | None:
        """The next sample to be read, as soon as it may be; None when there is nothing left to do."""
        with self._changed:
            while not self._closed.is_set():
                job = self._next_job
                if job is None:
                    return None
                if number < self._concurrency.now:
                    if self._allowed(job, self._size(job.index)):
                        self._next_job = next(self._store_jobs, None)
                        self._open.add(job.key)
                        return job
                    self._concurrency.idle()
                self._changed.wait()
        return None

    def _allowed(self, job: Job, size: int) -> bool:
        if job.route is Route.KEEP and self._holdings.form is Form.STORED:
            return True
        if self._staged_bytes + size <= self._lookahead_bytes:
            return True
        epoch, offset = self._head
        return job.key <= (epoch, offset + self._slack)

    def _size(self, index: int) -> int:
        return int(self._sizes[index]) if self._sizes is not None else 0

    def _fetch(self, job: Job, attempt: int = 0) -> bool:
        """Reads one sample, again if need be; False if another thread did so meanwhile."""
        if self._there(job):
            self._arrived(job, None)
            return True
        while not self._closed.is_set():
            flight = _Flight(job, attempt, time.monotonic())
            with self._changed:
                self._flights.add(flight)
            stored, trouble = None, None
            try:
                stored = self._read(job.index)
            except OSError as error:
                trouble = error
            except Exception as error:  # a fault of the data set's own; the training loop shall see it
                self._fail(job.key, DataError(f"sample {job.index}: cannot be read: {error!r}"), error)
                return True
            finally:
                with self._changed:
                    self._flights.discard(flight)
            if stored is not None:
                self._arrived(job, stored)
                self._concurrency.arrived(len(stored))
                self._more_threads()
            if flight.overtaken:
                return False
            if stored is not None:
                return True
            if attempt == self._patience.retries:
                assert trouble is not None
                self._fail(job.key, self._unreadable(job.index, trouble), trouble)
                return True
            self._tally.add(store_retries=1)
            self._closed.wait(self._patience.backoff_s * 2**attempt)
            attempt += 1
        return True

    def _there(self, job: Job) -> bool:
        """Whether a sample that was to be read is kept already, as after a jump to another epoch."""
        if job.key == self._given or job.key in self._staged:
            return True
        return job.route is not Route.ONCE and self._holdings.find(job.index, job.holder) is not None

    def _read(self, index: int) -> bytes:
        stored: bytes = self._samples.read(index)
        if self._sizes is not None and len(stored) != self._sizes[index]:
            raise OSError(f"{len(stored):,} bytes came instead of {self._sizes[index]:,}")
        self._tally.add(store_reads=1, store_bytes=len(stored))
        return stored

    def _arrived(self, job: Job, stored: bytes | None) -> None:
        """Puts a sample where the plan wants it and where its first use finds it."""
        with self._changed:
            if job.key not in self._open:
                return
        stays = False
        if stored is not None and self._holdings.form is Form.STORED and job.route is Route.KEEP:
            stays = self._holdings.keep(job.index, stored, storage_of(self._placement, job.index))
        with self._changed:
            if job.key not in self._open or self._closed.is_set():
                return
            self._open.discard(job.key)
            if stored is not None and not stays:
                self._staged[job.key] = self._holdings.stage(stored, Form.STORED, Origin.STORE)
                self._staged_bytes += len(stored)
            self._changed.notify_all()
        if stored is not None and self._holdings.form is Form.STORED and job.route is Route.PASS:
            self.pass_on(job.index, job.holder, stored)

    def pass_on(self, index: int, holder: int, stored: Buffer) -> None:
        """Hands a sample to the rank that is to keep it."""
        peer = self._holdings.peers.get(holder)
        if peer is not None:
            peer.put(index, stored)

    def will_not_come(self, index: int, holder: int) -> None:
        """Lets the others know that a sample will not be kept: it is corrupt."""
        peer = self._holdings.peers.get(holder)
        if peer is None:
            self._holdings.refuse(index)
        else:
            peer.refuse(index)

    def _fail(self, key: Key, error: DataError, cause: BaseException) -> None:
        error.__cause__ = cause
        with self._changed:
            self._open.discard(key)
            self._failed[key] = error
            self._changed.notify_all()

    def _unreadable(self, index: int, error: OSError) -> DataError:
        return unreadable(index, self._patience.retries + 1, error)

    def _watch(self) -> None:
        """Makes requests again that got no answer."""
        stall_s = self._patience.stall_s
        while not self._closed.wait(min(1.0, stall_s / 4)):
            now = time.monotonic()
            with self._changed:
                late = [each for each in self._flights if not each.overtaken and now - each.since > stall_s]
                for flight in late:
                    flight.overtaken = True
            for flight in late:
                if flight.attempt == self._patience.retries:
                    silence = TimeoutError(f"no answer in {stall_s:g} s")
                    self._fail(flight.job.key, self._unreadable(flight.job.index, silence), silence)
                else:
                    self._tally.add(store_retries=1)
                self._start(self._replace, flight)

    def _replace(self, flight: _Flight) -> None:
        """Does a lost thread's request, and then its work."""
        if flight.attempt < self._patience.retries and not self._fetch(flight.job, flight.attempt + 1):
            return
        self._fetch_from_store(0)

    # ---- peers on other machines ---------------------------------------------------------------------------------

    def _fetch_from_peer(self, rank: int) -> None:
        peer = self._holdings.peers[rank]
        for job in self._accesses.jobs((Route.REMOTE,), rank):
            with self._changed:
                while not self._closed.is_set() and not self._allowed(job, self._size(job.index)):
                    self._changed.wait()
            stored: bytes | None = None
            while not self._closed.is_set() and not peer.lost:
                if self._holdings.find(job.index, job.holder) is not None:
                    break
                stored = peer.get(job.index)
                if stored is not None or job.key < self._head or peer.refuses(job.index):
                    break
                with self._changed:  # its holder has not come to it yet
                    self._changed.wait(0.02)
            if self._closed.is_set():
                return
            if stored is not None:
                self._came_from_peer(job, stored)
            elif (peer.lost or peer.refuses(job.index)) and self._samples is not None:
                with self._changed:
                    if job.key < self._head or job.key in self._open or job.key in self._staged:
                        continue
                    self._open.add(job.key)
                self._tally.add(lost_copies=1)
                self._fetch(job._replace(route=Route.ONCE))

    def _came_from_peer(self, job: Job, stored: bytes) -> None:
        self._tally.add(peer_bytes=len(stored))
        storage = self._replicated.get(job.index)
        stays = storage is not None and self._holdings.keep(job.index, stored, storage)
        with self._changed:
            if not stays and job.key >= self._head and job.key not in self._staged:
                self._staged[job.key] = self._holdings.stage(stored, self._holdings.form, Origin.PEER)
                self._staged_bytes += len(stored)
            self._changed.notify_all()


def replicated(in_memory: Ids, on_disk: Ids) -> dict[int, StorageClass]:
    """Which samples to keep second copies of, by storage class."""
    kept = dict.fromkeys(np.asarray(in_memory).tolist(), StorageClass.MEMORY)
    return kept | dict.fromkeys(np.asarray(on_disk).tolist(), StorageClass.DISK)
