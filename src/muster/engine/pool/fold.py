"""What a coordinator knows of a merge rule, and of updates that travel in fewer bytes than the model has.

What is accepted stays on the disk as it has travelled, and is decoded whenever it is read. So decoding must give the same
bits whenever and wherever it is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from muster.engine.pool.updates import Array, Arrays, State, Update, flattened


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


class Codec(Protocol):
    """How the arrays of an update travel. `muster.training.merge.compressed_updates` has implementations.

    Updates are those of `muster.engine.pool.updates.flattened`, with the groups ``weights`` and ``extra``; encoded ones may
    have groups of other kinds besides. The names, shapes and dtypes of an encoded update follow from those of the update.
    """

    def shape(self, wanted: Arrays) -> dict[str, Array]:
        """What an encoded update must have, where a plain one must have ``wanted``; shapes and dtypes count, not values."""
        ...

    def decoded(self, arrays: Arrays, base: Arrays) -> dict[str, Array]:
        """The update.

        Arguments:
            arrays: an encoded one, of the right names, shapes and dtypes, and finite.
            base: the model that it began from.

        Raises:
            RefusedUpdate: it makes no sense; says why.
        """
        ...


@dataclass(frozen=True)
class Coded:
    """A merge rule whose updates come encoded.

    Arguments:
        fold: the rule.
        codec: of the updates.
    """

    fold: Fold
    codec: Codec

    @property
    def arrival(self) -> Literal["each", "round"]:
        """The rule's."""
        return self.fold.arrival

    def begin(self, model: Arrays) -> State:
        """The rule's."""
        return self.fold.begin(model)

    def send(self, model: Arrays, state: State) -> State:
        """The rule's."""
        return self.fold.send(model, state)

    def expects(self, model: Arrays) -> State:
        """The rule's."""
        return self.fold.expects(model)

    def merge(self, model: Arrays, updates: Sequence[Update], state: State) -> tuple[dict[str, Array], State]:
        """The rule's, of decoded updates."""
        return self.fold.merge(model, updates, state)


def plain_shape(fold: Fold, model: Arrays) -> dict[str, Array]:
    """What an update of this model has before it is encoded; shapes and dtypes count, not values."""
    return flattened(weights={"": model}, extra=fold.expects(model))


def shape_of(fold: Fold, model: Arrays) -> dict[str, Array]:
    """What an update of this model must have as it travels, as `muster.engine.pool.updates.examined` wants it."""
    wanted = plain_shape(fold, model)
    return fold.codec.shape(wanted) if isinstance(fold, Coded) else wanted


def decoded(fold: Fold, arrays: dict[str, Array], base: Arrays) -> dict[str, Array]:
    """An update as it is merged.

    Arguments:
        fold: the rule it is for.
        arrays: as it has travelled, examined.
        base: the model that it began from.

    Raises:
        RefusedUpdate: it is an encoded one that makes no sense; says why.
    """
    return fold.codec.decoded(arrays, base) if isinstance(fold, Coded) else arrays
