"""How far a pool has come: the newest model, what waits to be merged into it, and the round that is open.

The model is no record: it follows from the first one and the accepted updates. What is here can therefore be computed again,
from the last snapshot on, and where results were retracted from the first model on.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from muster.engine.pool import course
from muster.engine.pool.blobs import Manifest
from muster.engine.pool.book import Book
from muster.engine.pool.course import Arrived, Version
from muster.engine.pool.delivery import OWN, known_manifest
from muster.engine.pool.desk import Desk
from muster.engine.pool.fold import Fold
from muster.engine.pool.ledger import Accepted, Retraction, Unit
from muster.engine.pool.rules import BelowQuorum, Rounds, Rules
from muster.engine.pool.updates import Arrays, parted, unpack
from muster.errors import MusterError

_SNAPSHOT_EVERY: Final = 64  # merges


class Progress:
    """Merges what was accepted, and opens round after round.

    It has no lock of its own: whoever calls it holds the coordinator's.

    Arguments:
        desk: to write with.
        book: whose version is the newest model; this changes it.
        fold: how updates change the model.
        rounds: what is to be done.
        rules: for workers.
        on_version: is called with every new version, in order.
    """

    def __init__(
        self,
        desk: Desk,
        book: Book,
        fold: Fold,
        rounds: Rounds,
        rules: Rules,
        on_version: Callable[[Version], None],
    ) -> None:
        self._desk, self._book, self._fold, self._rounds, self._rules = desk, book, fold, rounds, rules
        self.on_version = on_version
        self.ahead = book.version  # what the next merge goes on from; see `muster.engine.pool.course.Retold`
        self.failure: MusterError | None = None
        self.done = False
        self._waiting: dict[int, Arrived] = {}  # accepted, while a lower number is still on its way here
        self.arrived: list[Arrived] = []  # accepted, while their round is not complete
        self.taken = 0  # number of the last accepted update among them
        self.retractions: list[Retraction] = []
        self.struck = 0  # of them, how many the model knows
        self.snapshot_of = 0  # number of the version that the last one holds
        self.opened: list[int] = []  # number of the first unit of each round

    @property
    def over(self) -> bool:
        """Whether everything is done, or nothing can be any more."""
        return self.done or self.failure is not None

    # ---- merging --------------------------------------------------------------------------------------------------------

    def count(self, accepted: Accepted, arrays: Arrays, base: Arrays, own: Manifest | None) -> None:
        """A result is on record as accepted: merges it."""
        book = self._book
        book.kept.update(known_manifest(accepted.detail["update"]).chunks)
        if own is not None:
            keeper = accepted.detail["keeper"].removeprefix(OWN)
            outdated, book.own[keeper] = book.own.get(keeper), own
            book.discard(outdated.chunks if outdated else ())
        self._take(Arrived(accepted, arrays, base))
        for token in [each for each, held in book.leases.items() if held.lease.unit.number == accepted.unit]:
            book.let_go(token)
        self.go_on()

    def _take(self, arrived: Arrived) -> None:
        """Takes accepted updates in, by their numbers, in whatever order their threads come."""
        self._waiting[arrived.accepted.number] = arrived
        while self.taken + 1 in self._waiting:
            self.taken += 1
            self.arrived.append(self._waiting.pop(self.taken))
            if self._fold.arrival == "each":
                self.merge()
            while self.struck < len(self.retractions) and self.retractions[self.struck].after == self.taken:
                self._strike(self.struck + 1)

    def merge(self) -> None:
        """Merges what has arrived."""
        if self.failure is not None:
            return
        book, before = self._book, self._book.version
        try:
            book.version = course.merged(self._fold, replace(self.ahead, number=before.number), self.arrived)
        except MusterError as error:
            self.fail(error)
            return
        except Exception as error:  # a rule is anybody's code
            self.fail(MusterError(f"the merge rule {self._fold} failed: {type(error).__name__}: {error}"))
            return
        self.arrived.clear()
        self.ahead = book.version
        book.drop(before.number)
        self.on_version(book.version)
        if book.version.number - self.snapshot_of >= _SNAPSHOT_EVERY:
            self.snapshot()

    def fail(self, error: MusterError) -> None:
        """Nothing can be done any more."""
        self.failure = error
        self._desk.told("failed", "", str(error))

    # ---- rounds ---------------------------------------------------------------------------------------------------------

    def go_on(self) -> None:
        """Merges the round if it is complete, and opens the next one."""
        try:
            while not self.over:
                standing = self._desk.ledger.standing()
                if standing.open or standing.accepted != self.taken:
                    return
                if self.opened and not self._complete():
                    return
                if len(self.opened) == self._batches:
                    self.done = True
                    return
                self._open(standing.following)
        except sqlite3.OperationalError as error:
            self._desk.unable(error)

    def _complete(self) -> bool:
        """Ends the round all of whose units are done or set aside; False if that is the end of all."""
        ledger, rules, first = self._desk.ledger, self._rules, self.opened[-1]
        aside = [unit for unit in ledger.set_aside() if unit.number >= first]
        if aside:
            total = ledger.standing().following - first
            names = ", ".join(str(unit.work.get("keeper", unit.number)) for unit in aside[:10])
            told = (
                f"round {len(self.opened) - 1}: {len(aside)} of {total} units were set aside after "
                f"{rules.attempts} attempts each: {names}{' ...' if len(aside) > 10 else ''}"
            )
            if total - len(aside) < rules.quorum * total or len(aside) == total:
                self.fail(BelowQuorum(f"{told}; the quorum is {rules.quorum:.0%}"))
                return False
            self._desk.testify("short", "", told)
        if self.arrived:
            self.merge()
        return self.failure is None

    @property
    def _batches(self) -> int:
        return self._rounds.count if self._fold.arrival == "round" else min(1, self._rounds.count)

    def _open(self, first: int) -> None:
        """Adds the units of the next round."""
        opened = [*self.opened, first]
        self._desk.ledger.note("opened", opened)
        self.opened = opened
        self.fill()

    def fill(self) -> None:
        """Makes sure that the units of the open round are there; a kill may have come between its note and them."""
        numbers = [len(self.opened) - 1] if self._fold.arrival == "round" else range(self._rounds.count)
        work = [unit for number in numbers for unit in self._rounds.units(number)]
        first = self.opened[-1]
        self._desk.ledger.add(
            [Unit(first + place, told, samples) for place, (told, samples) in enumerate(work)]
        )

    # ---- snapshots ------------------------------------------------------------------------------------------------------

    def snapshot(self) -> None:
        """Puts the newest model on the disk, and those that leases began from; the ledger then points at them."""
        book, version = self._book, self._book.version
        if self.arrived or self._waiting or self.ahead is not version:
            return  # in the middle of a round, the one after the last will do
        try:
            manifests = {
                number: self._desk.blobs.put_whole(Version(number, model, {}).packed())
                for number, model in book.bases.items()
            }
            manifests[version.number] = self._desk.blobs.put_whole(version.packed())
            self._desk.ledger.note(
                "snapshot",
                {
                    "taken": self.taken,
                    "version": version.number,
                    "retractions": self.struck,
                    "models": {str(number): each.to_json() for number, each in manifests.items()},
                },
            )
        except (OSError, sqlite3.OperationalError) as error:
            self._desk.unable(error)
            return
        before, book.saved = book.saved, {name for each in manifests.values() for name in each.chunks}
        book.discard(before)
        self.snapshot_of = version.number

    # ---- retractions ----------------------------------------------------------------------------------------------------

    def _strike(self, count: int) -> None:
        """Takes the results of the first retractions out of the model."""
        book, ledger = self._book, self._desk.ledger
        try:
            self.walk_again(self.retractions[:count], taken=self.taken)
        except MusterError as error:
            self.fail(error)
            return
        gone = self.retractions[count - 1].numbers
        self.arrived = [each for each in self.arrived if each.accepted.number not in gone]
        if self._fold.arrival == "each":
            self.on_version(book.version)
        deadline = self._desk.now() + self._rules.silence_s  # nobody could hear a sign of life meanwhile
        try:
            ledger.extend_all(deadline=deadline)
        except sqlite3.OperationalError as error:
            self._desk.unable(error)
        book.spare(deadline)
        for name, told in list(book.own.items()):
            known = ledger.noted(f"{OWN}{name}")
            if known is None or known_manifest(known) != told:
                del book.own[name]

    def walk_again(self, retractions: Sequence[Retraction] | None = None, taken: int | None = None) -> None:
        """The model from the first one on, without what was retracted.

        Arguments:
            retractions: those to heed; None: all of them.
            taken: number of the last accepted update to heed; None where a pool is opened again, whose leases and claims then
                say which other versions are wanted.
        """
        book, ledger, rounds = self._book, self._desk.ledger, self._fold.arrival == "round"
        retractions = self.retractions if retractions is None else retractions
        accepted = [each for each in ledger.accepted() if taken is None or each.number <= taken]
        if rounds:
            accepted = [each for each in accepted if each.unit < self.opened[-1]]
        opening = taken is None
        keep = set(book.pins)
        if opening:
            keep = {lease.base_version for lease in ledger.active()}
            keep |= {claim.base_version for claims in book.claims.values() for claim in claims}
        first = unpack(self._desk.blobs.get_whole(known_manifest(ledger.noted("first"))))
        told = course.retold(
            self._desk.blobs,
            self._fold,
            parted(first, "weights").get("", {}),
            accepted,
            retractions,
            self.opened if rounds else None,
            keep=keep,
        )
        before, self.struck = book.version, len(retractions)
        book.version, self.ahead = told.version, told.ahead
        if rounds and not opening:
            book.version = before  # until the round is complete
        elif not rounds:
            self.ahead = book.version
        if opening:
            book.bases = {**told.bases, book.version.number: book.version.model}
            self.taken = accepted[-1].number if accepted else 0
        else:
            book.drop(before.number)
