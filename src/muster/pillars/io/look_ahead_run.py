"""One uninterrupted run through the rest of the plan: batches in order, made ahead of their use."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

from muster.errors import DataError
from muster.pillars.io.batches import BatchMaker, Entry, Form, Made, Origin, Place
from muster.pillars.io.fetching import Closed, Fetcher, Key
from muster.pillars.io.holdings import Holdings, storage_of
from muster.pillars.io.loader_statistics import Tally
from muster.pillars.io.plan import NOBODY, Placement
from muster.pillars.io.routes import READS_THE_STORE, RankAccesses, Route
from muster.pillars.io.worker_pool import WorkerPool

_COUNTERS = {
    Origin.MEMORY: "from_memory",
    Origin.DISK: "from_disk",
    Origin.PEER: "from_peers",
    Origin.STORE: "from_store",
}

_runs = itertools.count()


class LookAheadRun:
    """Batches of one rank from some position of some epoch on.

    Arguments:
        accesses: what the rank uses.
        fetcher: brings it.
        holdings, placement: where it is kept.
        maker: makes batches where there are no workers.
        prefetch: batches to be made ahead, where there are workers.
        rank: for the seeds of the workers.
        finish: called with every batch last of all, such as to pin its memory.
        tally: the statistics.
    """

    def __init__(
        self,
        accesses: RankAccesses,
        fetcher: Fetcher,
        holdings: Holdings,
        placement: Placement,
        maker: BatchMaker,
        *,
        prefetch: int,
        rank: int,
        finish: Callable[[Any], Any],
        tally: Tally,
    ) -> None:
        self.accesses, self.fetcher = accesses, fetcher
        self._holdings, self._placement, self._maker = holdings, placement, maker
        self._prefetch, self._rank = prefetch, rank
        self._finish, self._tally = finish, tally
        self.epoch, self.offset = accesses.epochs.start, 0  # of the next batch to be handed out
        self._waiting_since: float | None = None
        self._pool: WorkerPool | None = None
        self._ready: dict[int, Made] = {}
        self._under_way: dict[int, tuple[int, list[Key], list[Entry]]] = {}
        self._error: BaseException | None = None
        self._errors: dict[int, BaseException] = {}
        self._first_number = (
            next(_runs) << 40
        )  # so that a result of an earlier run is not taken for one of this
        self._taken = self._first_number
        self._changed = threading.Condition()
        self._closed = False

    def use(self, pool: WorkerPool) -> None:
        """Lets worker processes make the batches, from now on."""
        self._pool = pool
        pool.listener = self
        threading.Thread(target=self._dispatch, daemon=True, name="muster-io-dispatch").start()

    def stands_at(self, epoch: int, position: int) -> bool:
        """Whether the next batch is the first of a pass that begins there."""
        begins_at = self.accesses.position if epoch == self.accesses.epochs.start else 0
        here = (self.epoch, self.offset) == (epoch, 0) and epoch in self.accesses.epochs
        return here and begins_at == position

    def next(self) -> Any:
        """The next batch; `epoch` and `offset` move on.

        Raises:
            DataError: a sample of it cannot be read, or is corrupt, or all of them are.
        """
        began = self._waiting_since = time.monotonic()
        epoch, offset = self.epoch, self.offset
        try:
            made = self._make_here(epoch, offset) if self._pool is None else self._made_by_workers()
        finally:
            self._waiting_since = None
        waited = time.monotonic() - began
        there = self.accesses.of(epoch)
        size = there.end_of_batch(offset) - offset
        self._tally.add(samples=size - len(made.corrupt), waited_s=waited, stalls=int(waited > 1e-3))
        self.offset += size
        if self.offset >= len(there.ids):
            self.epoch, self.offset = epoch + 1, 0
        if made.batch is None:
            raise DataError(f"all samples of a batch are corrupt: {'; '.join(made.corrupt)}")
        return made.batch

    def close(self) -> None:
        """Stops everything that runs ahead; the pool stays."""
        self._closed = True
        self.fetcher.close()
        with self._changed:
            self._changed.notify_all()

    # ---- entries of a batch ----------------------------------------------------------------------------------------

    def _entries(self, epoch: int, offset: int) -> tuple[list[Key], list[Entry]]:
        """The samples of a batch, once all of them are somewhere."""
        there = self.accesses.of(epoch)
        end = there.end_of_batch(offset)
        keys: list[Key] = [(epoch, position) for position in range(offset, end)]
        entries = []
        for key, index, route, holder, used_in in zip(
            keys,
            there.ids[offset:end].tolist(),
            there.routes[offset:end].tolist(),
            there.holders[offset:end].tolist(),
            there.epochs[offset:end].tolist(),
            strict=True,
        ):
            place = self._place(key, index, Route(route), holder)
            # What is cached in another form than it is stored in goes to its holder once it has been made.
            keep = place.form is not self._holdings.form and holder != NOBODY
            entries.append(Entry(index, place, used_in, keep and route in (Route.KEEP, Route.PASS)))
        return keys, entries

    def _place(self, key: Key, index: int, route: Route, holder: int) -> Place:
        if route in READS_THE_STORE and not self.fetcher.reads_the_store:
            found = self.fetcher.find(key, index, holder)
            return found if found is not None else Place(Form.ABSENT, Origin.STORE)
        return self.fetcher.wait(key, index, route, holder, self._waiting_s)

    def _waiting_s(self) -> float:
        since = self._waiting_since
        return 0.0 if since is None else time.monotonic() - since

    def _account(self, epoch: int, keys: list[Key], entries: list[Entry], made: Made) -> None:
        """Counts a batch's samples, gives their room back, and keeps what is to be kept."""
        routes = self.accesses.of(epoch).routes
        counts = dict.fromkeys(_COUNTERS.values(), 0)
        for key, entry in zip(keys, entries, strict=True):
            first = routes[key[1]] in READS_THE_STORE
            counts[_COUNTERS[Origin.STORE if first else entry.place.origin]] += 1
            self.fetcher.release(key)
        absent = sum(entry.place.form is Form.ABSENT for entry in entries)
        self._tally.add(**counts, store_reads=absent)
        if made.corrupt:
            self._tally.corrupt(made.corrupt)
        kept = {index for index, _ in made.kept}
        for entry in entries:
            if entry.keep and entry.index not in kept:
                self.fetcher.will_not_come(entry.index, int(self._placement.holder[entry.index]))
        for index, raw in made.kept:
            holder = int(self._placement.holder[index])
            if holder == self._rank:
                self._holdings.keep(index, raw, storage_of(self._placement, index))
            else:
                self.fetcher.pass_on(index, holder, raw)

    def _repaired(self, entries: list[Entry], damaged: list[int]) -> list[Entry]:
        """The same samples, the damaged ones read from the store anew."""
        entries = list(entries)
        for position in damaged:
            index = entries[position].index
            self._holdings.forget(index)
            place = self.fetcher.read_now(index)
            own = self._placement.holder[index] == self._rank
            if own and place.form is self._holdings.form:
                self._holdings.keep(index, place.inline, storage_of(self._placement, index))
            keep = own and place.form is not self._holdings.form
            entries[position] = entries[position]._replace(place=place, keep=keep)
        return entries

    # ---- batches made here -----------------------------------------------------------------------------------------

    def _make_here(self, epoch: int, offset: int) -> Made:
        keys, entries = self._entries(epoch, offset)
        made = self._maker.make(entries)
        if made.damaged:
            entries = self._repaired(entries, made.damaged)
            made = self._maker.make(entries)
        self._account(epoch, keys, entries, made)
        if made.batch is not None:
            made.batch = self._finish(made.batch)
        return made

    # ---- batches made by workers -----------------------------------------------------------------------------------

    def _made_by_workers(self) -> Made:
        number = self._taken
        with self._changed:
            self._changed.wait_for(
                lambda: number in self._ready or number in self._errors or self._error is not None
            )
            if number in self._errors:
                raise self._errors[number]
            if number not in self._ready:
                assert self._error is not None
                raise self._error
            self._taken += 1
            made = self._ready.pop(number)
            self._changed.notify_all()
        return made

    def _dispatch(self) -> None:
        """Hands batches to the workers as their samples arrive, some batches ahead of the training loop."""
        assert self._pool is not None
        number = self._first_number
        for epoch in self.accesses.epochs:
            ends = self.accesses.of(epoch).ends.tolist()
            for offset in [0, *ends[:-1]]:
                with self._changed:
                    while not self._closed and number >= self._taken + self._prefetch:
                        self._changed.wait()
                if self._closed:
                    return
                try:
                    keys, entries = self._entries(epoch, offset)
                except Closed:
                    return
                except Exception as error:
                    self.failed(number, error)
                    return
                with self._changed:
                    self._under_way[number] = (epoch, keys, entries)
                self._pool.make(number, entries, (epoch, self._rank, offset))
                number += 1

    def done(self, number: int, made: Made) -> None:
        """A worker has made a batch, or found its cached samples damaged."""
        if self._closed or number not in self._under_way:
            return
        epoch, keys, entries = self._under_way[number]
        if made.damaged:
            # Not in this thread: it must go on taking results, or a worker could wait for it and it for the worker.
            threading.Thread(target=self._make_again, args=(number, made.damaged), daemon=True).start()
            return
        try:
            self._account(epoch, keys, entries, made)
            if made.batch is not None:
                made.batch = self._finish(made.batch)
        except Exception as error:
            self.failed(number, error)
            return
        with self._changed:
            del self._under_way[number]
            self._ready[number] = made
            self._changed.notify_all()

    def _make_again(self, number: int, damaged: list[int]) -> None:
        assert self._pool is not None
        epoch, keys, entries = self._under_way[number]
        try:
            entries = self._repaired(entries, damaged)
        except DataError as error:
            self.failed(number, error)
            return
        self._under_way[number] = (epoch, keys, entries)
        self._pool.make(number, entries, (epoch, self._rank, keys[0][1]))

    def failed(self, number: int | None, error: BaseException) -> None:
        """A batch cannot be made; or, without a number, nothing can any more."""
        with self._changed:
            if number is None:
                self._error = self._error or error
            else:
                self._errors[number] = error
            self._changed.notify_all()
