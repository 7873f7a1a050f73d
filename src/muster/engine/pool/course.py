"""How a model came about: the first one, and the accepted updates in their order. The same course gives the same bits.

Where results were retracted, their worker having been caught lying, the model is what the same course gives without them.
The others keep the bases that they were really made from, lies and all: what an honest worker has found in a model that
was wrong then is still what it has found. So the course is walked once for every retraction, all at the same time: as far
as each lane goes, it has been handed out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from muster.engine.pool.blobs import BlobStore, Manifest
from muster.engine.pool.fold import Fold, decoded
from muster.engine.pool.ledger import Accepted, Claim, Ledger, Retraction
from muster.engine.pool.updates import Array, Arrays, State, Update, flattened, pack, parted, unpack
from muster.errors import DataError


@dataclass(frozen=True)
class Version:
    """A model, and what its rule remembers.

    Arguments:
        number: merges that made it.
        model: its arrays.
        state: of the rule.
    """

    number: int
    model: Arrays
    state: State

    def packed(self) -> bytes:
        """Both, as bytes."""
        return pack(flattened(weights={"": self.model}, state=self.state))

    @classmethod
    def unpacked(cls, number: int, content: bytes) -> Version:
        """Of `packed`."""
        arrays = unpack(content)
        return cls(number, parted(arrays, "weights").get("", {}), parted(arrays, "state"))


@dataclass(frozen=True)
class Arrived:
    """An accepted result with its contents.

    Arguments:
        accepted: from the ledger.
        arrays: the update, as `muster.engine.pool.updates.flattened` packs it.
        base: the model it began from.
    """

    accepted: Accepted
    arrays: Arrays
    base: Arrays

    @property
    def place(self) -> int:
        """The number of its unit, or of the one that it stands in for: work that is done again keeps its place."""
        place: int = self.accepted.detail.get("place", self.accepted.unit)
        return place

    def update(self, version: int) -> Update:
        """As a merge rule takes it, when the model is of that version."""
        told = self.accepted.detail
        return Update(
            parted(self.arrays, "weights").get("", {}),
            self.base,
            self.accepted.samples,
            told["steps"],
            version - self.accepted.base_version,
            told["loss"],
            parted(self.arrays, "extra"),
        )


def merged(fold: Fold, version: Version, arrived: Sequence[Arrived]) -> Version:
    """The next version: one update, or those of a round in the order of their units, whenever each has come."""
    ordered = sorted(arrived, key=lambda each: each.place)
    model, state = fold.merge(version.model, [each.update(version.number) for each in ordered], version.state)
    return Version(version.number + 1, model, state)


def replayed(folder: Path, fold: Fold) -> Version:
    """The model of a pool's folder, computed again from the first one and every accepted update.

    Arguments:
        folder: of the pool; nothing in it is changed.
        fold: as the pool had it.

    Raises:
        DataError: the folder is no pool's, or something in it is damaged or missing; names it.
    """
    if not (folder / "ledger.sqlite").is_file():
        raise DataError(f"{folder} is not the folder of a pool: it has no ledger.sqlite")
    blobs = BlobStore(folder / "blobs")
    with Ledger(folder / "ledger.sqlite") as ledger:
        first, opened = ledger.noted("first"), ledger.noted("opened", [])
        accepted, standing, retractions = ledger.accepted(), ledger.standing(), ledger.retractions()
    if first is None:
        raise DataError(f"{folder} is not the folder of a pool: its ledger names no first model")
    model = _first(blobs, first)
    if fold.arrival == "round" and standing.open:
        accepted = [each for each in accepted if not opened or each.unit < opened[-1]]
    return retold(
        blobs, fold, model, accepted, retractions, opened if fold.arrival == "round" else None
    ).version


@dataclass(frozen=True)
class Retold:
    """Where a course has come to.

    Arguments:
        version: as it is handed out.
        ahead: what the next merge goes on from: another one where results were retracted in the middle of a round.
        bases: the models of the versions that were asked for, as they were handed out.
    """

    version: Version
    ahead: Version
    bases: dict[int, Arrays] = field(default_factory=dict)


def retold(
    blobs: BlobStore,
    fold: Fold,
    model: Arrays,
    accepted: Sequence[Accepted],
    retractions: Sequence[Retraction],
    opened: Sequence[int] | None,
    *,
    keep: Collection[int] = (),
) -> Retold:
    """Walks a course from its first model.

    Arguments:
        blobs: with the updates.
        fold: as the pool had it.
        model: the first one.
        accepted: results in their order; where they come in rounds, those of complete rounds.
        retractions: in their order.
        opened: numbers of the first unit of each round; None where every result is merged by itself.
        keep: versions whose models are wanted.
    """
    groups = [[each] for each in accepted] if opened is None else _rounds(accepted, opened)
    gone: list[frozenset[int]] = [frozenset()]
    for retraction in retractions:
        gone.append(gone[-1] | retraction.numbers)
    last_use = {each.base_version: place for place, group in enumerate(groups) for each in group}
    handed = Version(0, model, fold.begin(model))
    lanes, current = [handed] * len(gone), 0
    bases, kept = {0: model}, {0: model} if 0 in keep else {}
    for place, group in enumerate(groups):
        begun = [bases[each.base_version] for each in group]
        arrived = [
            Arrived(each, contents(blobs, fold, each, base), base)
            for each, base in zip(group, begun, strict=True)
        ]
        for lane in range(current, len(gone)):
            counting = [each for each in arrived if each.accepted.number not in gone[lane]]
            before = replace(lanes[lane], number=handed.number)
            lanes[lane] = (
                merged(fold, before, counting) if counting else replace(before, number=before.number + 1)
            )
        number, before_jump = handed.number + 1, current
        while current < len(retractions) and retractions[current].after <= group[-1].number:
            current += 1
        if opened is None:  # in the middle of a round the model stays as it was until the round is complete
            number += current - before_jump
        handed = replace(lanes[current], number=number)
        for version in {each.base_version for each in group}:
            if last_use[version] == place:
                del bases[version]
        if handed.number in last_use:
            bases[handed.number] = handed.model
        if handed.number in keep:
            kept[handed.number] = handed.model
    return Retold(handed, replace(lanes[-1], number=handed.number), kept)


def saved_version(folder: Path) -> Version | None:
    """The newest model that a coordinator has put on the disk whole; None if there is none.

    Raises:
        DataError: it is damaged or missing; names it.
    """
    with Ledger(folder / "ledger.sqlite") as ledger:
        snapshot = ledger.noted("snapshot")
    if snapshot is None:
        return None
    number = snapshot["version"]
    return loaded_version(BlobStore(folder / "blobs"), number, snapshot["models"][str(number)])


def loaded_version(blobs: BlobStore, number: int, manifest: str) -> Version:
    """A version from the blobs.

    Raises:
        DataError: it is damaged or missing; names it.
    """
    try:
        return Version.unpacked(number, blobs.get_whole(Manifest.from_json(manifest, most_bytes=1 << 62)))
    except KeyError as error:
        raise DataError(f"of the snapshot of version {number} a chunk is missing: {error.args[0]}") from None


def contents(blobs: BlobStore, fold: Fold, accepted: Accepted | Claim, base: Arrays) -> dict[str, Array]:
    """The arrays of a result, as they are merged.

    Arguments:
        blobs: with the result as it has travelled.
        fold: that it is for.
        accepted: from the ledger.
        base: the model that it began from.

    Raises:
        DataError: they are damaged or missing.
    """
    manifest = Manifest.from_json(accepted.detail["update"], most_bytes=1 << 62)
    try:
        arrays = unpack(blobs.get_whole(manifest))
    except KeyError as error:
        told = (
            f"accepted update {accepted.number}"
            if isinstance(accepted, Accepted)
            else f"claim on unit {accepted.unit}"
        )
        raise DataError(f"of the {told} a chunk is missing: {error.args[0]}") from None
    return decoded(fold, arrays, base)


def _first(blobs: BlobStore, first: str) -> Arrays:
    try:
        content = blobs.get_whole(Manifest.from_json(first, most_bytes=1 << 62))
    except KeyError as error:
        raise DataError(f"of the first model a chunk is missing: {error.args[0]}") from None
    return parted(unpack(content), "weights").get("", {})


def _rounds(accepted: Iterable[Accepted], opened: Sequence[int]) -> list[list[Accepted]]:
    """Accepted results by round; rounds without any were never merged."""
    groups: list[list[Accepted]] = [[] for _ in opened]
    for each in accepted:
        groups[bisect_right(opened, each.unit) - 1].append(each)
    return [group for group in groups if group]
