"""How a model came about: the first one, and the accepted updates in their order. The same course gives the same bits."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from muster.engine.pool.blobs import BlobStore, Manifest
from muster.engine.pool.ledger import Accepted, Ledger
from muster.engine.pool.updates import Array, Arrays, State, Update, flattened, pack, parted, unpack
from muster.errors import DataError


class Fold(Protocol):
    """How accepted updates change a model; `muster.merge.MergeRule` is one."""

    @property
    def arrival(self) -> Literal["each", "round"]:
        """Whether every update is merged as it arrives, or those of a round together."""
        ...

    def begin(self, model: Arrays) -> State: ...

    def send(self, model: Arrays, state: State) -> State: ...

    def expects(self, model: Arrays) -> State: ...

    def merge(
        self, model: Arrays, updates: Sequence[Update], state: State
    ) -> tuple[dict[str, Array], State]: ...


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
    ordered = sorted(arrived, key=lambda each: each.accepted.unit)
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
        accepted, standing = ledger.accepted(), ledger.standing()
    if first is None:
        raise DataError(f"{folder} is not the folder of a pool: its ledger names no first model")
    version = Version(0, *_first(blobs, first, fold))
    if fold.arrival == "round":
        for group in _rounds(accepted, opened, complete=not standing.open):
            arrived = [Arrived(each, contents(blobs, each), version.model) for each in group]
            version = merged(fold, version, arrived)
        return version
    bases = {0: version.model}
    last_use = {each.base_version: position for position, each in enumerate(accepted)}
    for position, each in enumerate(accepted):
        base = bases[each.base_version]
        if last_use[each.base_version] == position:
            del bases[each.base_version]
        version = merged(fold, version, [Arrived(each, contents(blobs, each), base)])
        if version.number in last_use:
            bases[version.number] = version.model
    return version


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


def contents(blobs: BlobStore, accepted: Accepted) -> dict[str, Array]:
    """The arrays of an accepted result.

    Raises:
        DataError: they are damaged or missing.
    """
    manifest = Manifest.from_json(accepted.detail["update"], most_bytes=1 << 62)
    try:
        return unpack(blobs.get_whole(manifest))
    except KeyError as error:
        raise DataError(
            f"of the accepted update {accepted.number} a chunk is missing: {error.args[0]}"
        ) from None


def _first(blobs: BlobStore, first: str, fold: Fold) -> tuple[Arrays, State]:
    try:
        content = blobs.get_whole(Manifest.from_json(first, most_bytes=1 << 62))
    except KeyError as error:
        raise DataError(f"of the first model a chunk is missing: {error.args[0]}") from None
    model = parted(unpack(content), "weights").get("", {})
    return model, fold.begin(model)


def _rounds(accepted: Iterable[Accepted], opened: Sequence[int], *, complete: bool) -> list[list[Accepted]]:
    """Accepted results by round; the last round only if it is complete."""
    groups: list[list[Accepted]] = [[] for _ in opened]
    for each in accepted:
        groups[bisect_right(opened, each.unit) - 1].append(each)
    return groups if complete else groups[:-1]


def shape_of(fold: Fold, model: Arrays) -> dict[str, Any]:
    """What an update of this model must have, as `muster.engine.pool.updates.examined` wants it."""
    return flattened(weights={"": model}, extra=fold.expects(model))
