"""A coordinator begins, or goes on after a kill: what it keeps in mind, from what is in its folder.

No other thread knows the coordinator yet, so nothing here takes its lock.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from pathlib import Path
from typing import Any

from muster.engine.pool.book import Book
from muster.engine.pool.course import Arrived, Version, contents, loaded_version
from muster.engine.pool.delivery import OWN, known_manifest
from muster.engine.pool.desk import Desk
from muster.engine.pool.fold import Fold
from muster.engine.pool.judging import Judge
from muster.engine.pool.ledger import Ledger
from muster.engine.pool.progress import Progress
from muster.engine.pool.updates import Arrays, flattened, pack
from muster.errors import DataError


def check_about(ledger: Ledger, folder: Path, about: dict[str, Any], arrival: str) -> None:
    """Puts on record what a pool is of, or holds it against the record.

    Raises:
        DataError: the folder is of another pool.
    """
    about = json.loads(json.dumps(about))
    known = ledger.noted("about")
    if known is None:
        ledger.note("about", about)
        ledger.note("arrival", arrival)
        return
    for key in dict.fromkeys([*about, *known]):
        if known.get(key) != about.get(key):
            raise DataError(
                f"{folder} is of a pool with {key} {known.get(key)!r}, and this is one with {about.get(key)!r}; give "
                "another folder, or go on as it was begun"
            )


def restore(
    folder: Path,
    model: Arrays,
    *,
    fold: Fold,
    desk: Desk,
    book: Book,
    progress: Progress,
    judge: Judge | None,
    silence_s: float,
) -> None:
    """The newest model, from the last snapshot and what was accepted since, and who began from which.

    Arguments:
        folder: of the pool.
        model: the first one.
        fold: how updates change it.
        desk: with the ledger and the blobs of the folder.
        book: is filled.
        progress: is filled.
        judge: is filled; None where everybody is believed.
        silence_s: so much more time is given to every lease.

    Raises:
        DataError: the pool began with another model, or is damaged.
    """
    ledger = desk.ledger
    first = desk.blobs.put_whole(pack(flattened(weights={"": model})))
    if ledger.noted("first") is None:
        ledger.note("first", first.to_json())
    elif ledger.noted("first") != first.to_json():
        raise DataError(f"{folder} is of a pool that began with another model; give another folder")
    progress.opened = ledger.noted("opened", [])
    progress.retractions = ledger.retractions()
    if judge is not None:
        judge.recall()
    _load(model, desk, book, progress)
    progress.on_version(book.version)
    book.kept |= set(first.chunks)
    for each in ledger.accepted():
        book.kept.update(known_manifest(each.detail["update"]).chunks)
    for name, told in ledger.noted_below(OWN).items():
        book.own[name.removeprefix(OWN)] = known_manifest(told)
    _merge_since(folder, fold, desk, book, progress)
    deadline = desk.now() + silence_s  # nobody could hear a sign of life meanwhile
    ledger.extend_all(deadline=deadline)
    book.spare(deadline)
    if progress.opened:
        progress.fill()
    if judge is not None:
        for unit in list(book.claims):
            judge.compare(unit)
    progress.go_on()


def _load(model: Arrays, desk: Desk, book: Book, progress: Progress) -> None:
    """The model of the last snapshot; of one that knows nothing of a retraction, the course is walked again instead."""
    snapshot = desk.ledger.noted("snapshot")
    outdated = len(progress.retractions) > (0 if snapshot is None else snapshot.get("retractions", 0))
    if outdated:
        progress.walk_again()
    elif snapshot is None:
        book.bases = {0: model}
    else:
        versions = {
            int(number): loaded_version(desk.blobs, int(number), told)
            for number, told in snapshot["models"].items()
        }
        book.version, progress.taken = versions[snapshot["version"]], snapshot["taken"]
        book.bases = {number: each.model for number, each in versions.items()}
        progress.struck = len(progress.retractions)
    if not outdated:
        progress.ahead = book.version
    progress.snapshot_of = book.version.number


def _merge_since(folder: Path, fold: Fold, desk: Desk, book: Book, progress: Progress) -> None:
    """Merges what was accepted since, and pins what the leases and claims that are still open began from."""
    ledger, opened = desk.ledger, progress.opened
    active, since = ledger.active(), ledger.accepted(after=progress.taken)
    pending = [claim for claims in book.claims.values() for claim in claims]
    needed = {lease.base_version for lease in active} | {each.base_version for each in since}
    needed |= {claim.base_version for claim in pending}
    gone = frozenset().union(*(each.numbers for each in progress.retractions))
    book.pins.update(needed)  # until all of them have been merged
    for each in since:
        round_ = bisect_right(opened, each.unit)
        if progress.arrived and round_ > bisect_right(opened, progress.arrived[0].accepted.unit):
            progress.merge()
        progress.taken = each.number
        base = book.bases.get(each.base_version)
        if base is None and fold.arrival == "round":
            base = book.version.model
        if base is None:
            raise DataError(
                f"{folder}: the snapshot lacks version {each.base_version}; the ledger is damaged"
            )
        if each.number not in gone:  # in an open round only: other retractions are behind the snapshot
            progress.arrived.append(Arrived(each, contents(desk.blobs, fold, each, base), base))
        if fold.arrival == "each":
            progress.merge()
            if book.version.number in needed:
                book.bases[book.version.number] = book.version.model
    if progress.arrived and bisect_right(opened, progress.arrived[0].accepted.unit) < len(opened):
        progress.merge()
    book.pins.subtract(needed)
    for lease in active:
        _pin(book, lease.base_version, lease.model)
        book.hold(lease)
    for claim in pending:
        _pin(book, claim.base_version, claim.model)
    book.pins = +book.pins
    for number in list(book.bases):
        book.drop(number)


def _pin(book: Book, number: int, handed: str) -> None:
    """Somebody began from a version, which had been handed out as such a manifest says."""
    book.pin(Version(number, book.bases.setdefault(number, book.version.model), {}))
    book.handed[number] = known_manifest(handed)
