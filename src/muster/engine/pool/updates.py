"""Models and updates as bytes, and the examination of what came from somebody else's machine.

The format is safetensors: names, dtypes, shapes and bytes, nothing that could be executed. An update is believed nothing: it
must have the very arrays of the model, every number finite, no more bytes than such a model takes, and claim no more
samples than its lease was given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from muster.errors import DataError

Array = npt.NDArray[Any]

Arrays = Mapping[str, Array]
"""Parameters and buffers by name; their shapes and dtypes are the model's."""

State = Mapping[str, Arrays]
"""What somebody remembers or sends beside a model: named groups of arrays."""

#: Room for the header beside the arrays themselves: names, dtypes and shapes, as JSON.
_HEADER: Final = 4096
_HEADER_PER_ARRAY: Final = 512

_JOINT: Final = "\x1f"  # ASCII's unit separator


@dataclass(frozen=True)
class Update:
    """What a worker hands in.

    Arguments:
        arrays: the trained model.
        base: the model that training began from.
        samples: that it was trained on; the weight of the update where a rule weighs.
        steps: of the local optimizer.
        staleness: merges that the coordinator has made since ``base`` was handed out.
        loss: mean loss of ``base`` on the party's data, where a rule wants it.
        extra: what else a rule wants, by its own names.
    """

    arrays: Arrays
    base: Arrays
    samples: int = 1
    steps: int = 1
    staleness: int = 0
    loss: float | None = None
    extra: State = field(default_factory=dict)

    def delta(self, name: str) -> Array:
        """How training has changed an array, as float64."""
        changed: Array = np.subtract(self.arrays[name], self.base[name], dtype=np.float64)
        return changed


class RefusedUpdate(DataError):
    """An update is not what it should be; says in what."""


def pack(arrays: Arrays) -> bytes:
    """Arrays as bytes; equal arrays give equal bytes."""
    ordered = {name: np.asarray(arrays[name], order="C") for name in sorted(arrays)}
    packed: bytes = save(ordered)
    return packed


def unpack(content: bytes) -> dict[str, Array]:
    """The arrays of `pack`, from bytes of one's own.

    Raises:
        DataError: the bytes are no safetensors file.
    """
    try:
        arrays: dict[str, Array] = load(content)
    except (SafetensorError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise DataError(f"not a safetensors file: {error}") from None
    return arrays


def flattened(**groups: State) -> dict[str, Array]:
    """Groups of groups of arrays as one mapping, for `pack`: ``weights=..., extra=...``; see `parted`.

    Names are joined by a character that no name of an array has.
    """
    return {
        f"{kind}{_JOINT}{group}{_JOINT}{name}": array
        for kind, state in groups.items()
        for group, arrays in state.items()
        for name, array in arrays.items()
    }


def parted(arrays: Arrays, kind: str) -> dict[str, dict[str, Array]]:
    """The groups of one kind, as `flattened` was given them; groups without an array are gone."""
    found: dict[str, dict[str, Array]] = {}
    for whole, array in arrays.items():
        told, group, name = whole.split(_JOINT, 2)
        if told == kind:
            found.setdefault(group, {})[name] = array
    return found


def most_bytes(model: Arrays) -> int:
    """What an update of this model may take."""
    return _HEADER + sum(array.nbytes + _HEADER_PER_ARRAY + 8 * len(name) for name, array in model.items())


def examined(content: bytes, model: Arrays, *, samples: int, most_samples: int) -> dict[str, Array]:
    """The arrays of an update that came from elsewhere.

    Arguments:
        content: the bytes.
        model: whose names, shapes and dtypes it must have.
        samples: what it claims to be made of.
        most_samples: what its lease was given.

    Raises:
        RefusedUpdate: something is not as it should be; nothing of it may be used.
    """
    if type(samples) is not int or not 0 <= samples <= most_samples:
        raise RefusedUpdate(f"claims {samples!r:.40} samples; its lease was given {most_samples:,}")
    if len(content) > most_bytes(model):
        raise RefusedUpdate(f"has {len(content):,} bytes; this model's have at most {most_bytes(model):,}")
    _refuse_other_types(content)
    try:
        arrays = unpack(content)
    except DataError as error:
        raise RefusedUpdate(str(error)[:300]) from None
    if missing := model.keys() - arrays.keys():
        raise RefusedUpdate(f"lacks the array {min(missing)!r}")
    if surplus := arrays.keys() - model.keys():
        raise RefusedUpdate(f"has an array {min(surplus)[:80]!r} that the model has not")
    for name, array in model.items():
        found = arrays[name]
        if found.dtype != array.dtype:
            raise RefusedUpdate(f"{name!r} is {found.dtype}; expected {array.dtype}")
        if found.shape != array.shape:
            raise RefusedUpdate(f"{name!r} has shape {list(found.shape)[:8]}; expected {list(array.shape)}")
        if np.issubdtype(found.dtype, np.floating) and not np.isfinite(found).all():
            bad = int(found.size - np.count_nonzero(np.isfinite(found)))
            raise RefusedUpdate(f"{name!r} has {bad:,} values that are not finite")
    return {name: arrays[name] for name in model}


def _refuse_other_types(content: bytes) -> None:
    """Dtypes that NumPy has not would be an error of the reader's own; they are told like the rest."""
    try:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        kinds = {str(each.get("dtype")) for name, each in header.items() if name != "__metadata__"}
    except (ValueError, AttributeError, RecursionError):
        raise RefusedUpdate("not a safetensors file: its header is no JSON object") from None
    if other := kinds - {"F64", "F32", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}:
        raise RefusedUpdate(f"holds arrays of {min(other)[:20]!r}, which no model here has")
