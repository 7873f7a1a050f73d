"""Updates in fewer bytes: what training has changed, in 8 bits or its largest elements alone, with error feedback.

The methods are those of the communication pillar (`muster.pillars.comm.compress`). A worker sends the change of each large
array and keeps what was left out for the next time; what an update changes beside is then right on average over its worker's
updates, as in Stich et al., "Sparsified SGD with memory" (NeurIPS 2018). Small arrays, whole numbers and what a rule wants
beside the weights travel as they are.

With ``e`` what was left out before: ``c = (w - base) + e``, and ``sent + (next e) = c``, bit for bit in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np

from muster.engine.pool.fold import Coded, Fold
from muster.engine.pool.updates import Array, Arrays, RefusedUpdate, flattened, parted
from muster.engine.pool.worker import Outcome, Task
from muster.errors import RefusedInput

#: An array with fewer elements travels as it is: all of them together are a few per cent of a model.
_LEAST: Final = 1024
_BLOCK: Final = 256  # elements that share a scale

#: Group of what a party keeps that holds what was left out.
RESIDUAL: Final = "residual"

Method = Literal["int8", "topk"]


@dataclass(frozen=True)
class UpdateCompression:
    """How the change of an array travels; a `muster.engine.pool.fold.Codec`.

    Arguments:
        method: ``int8``, signed 8-bit codes and an fp32 scale for each 256 elements (1.02 bytes an element), or ``topk``, the
            largest elements of each array with their indices (8 bytes each).
        density: share of the elements that ``topk`` sends.
        error_feedback: whether what was left out is sent later.

    Raises:
        RefusedInput: no such method, or the density is no share.
    """

    method: Method
    density: float = 0.01
    error_feedback: bool = True

    def __post_init__(self) -> None:
        if self.method not in ("int8", "topk"):
            raise RefusedInput(f"compression: no method {self.method!r}; expected int8 or topk")
        if not 0 < self.density <= 1:
            raise RefusedInput(f"compression: density: found {self.density}; expected above 0, up to 1")

    def about(self) -> dict[str, Any]:
        """Its options, as JSON values."""
        density = {"density": self.density} if self.method == "topk" else {}
        return {"method": self.method, **density, "error_feedback": self.error_feedback}

    # ---- at a worker ----------------------------------------------------------------------------------------------------

    def encoded(
        self, outcome: Outcome, base: Arrays, residual: Arrays, *, seed: int
    ) -> tuple[Outcome, dict[str, Array]]:
        """A result as it travels, and what was left out.

        Arguments:
            outcome: with all weights.
            base: the model that they began from.
            residual: what was left out before, fp32, by the names of arrays; empty at first.
            seed: of the sample that finds the largest elements.
        """
        plain: dict[str, Array] = {}
        parts: dict[str, dict[str, Array]] = {part: {} for part in self._parts}
        left: dict[str, Array] = {}
        for name, array in outcome.weights.items():
            if not _is_large(array):
                plain[name] = array
                continue
            exact = np.subtract(array, base[name], dtype=np.result_type(array, np.float32))
            change = exact.astype(np.float32).reshape(-1)
            if name in residual:
                change += residual[name]
            sent = self._sent(change, parts, name, seed)
            if self.error_feedback:
                left[name] = np.where(np.isfinite(sent), change - sent, np.float32(0))
        return replace(
            outcome, weights=plain, coded={part: {"": arrays} for part, arrays in parts.items()}
        ), left

    def of_party(self, outcome: Outcome, task: Task) -> Outcome:
        """As `encoded`; the party itself keeps what was left out."""
        residual = task.own.get(RESIDUAL, {})
        outcome, left = self.encoded(outcome, task.model, residual, seed=task.unit)
        return replace(outcome, own={**outcome.own, RESIDUAL: left}) if left else outcome

    def _sent(self, change: Array, parts: Mapping[str, dict[str, Array]], name: str, seed: int) -> Array:
        """Puts the encoded change with the others; returns what a coordinator will make of it."""
        import torch  # a coordinator, which decodes, has no use for it

        from muster.pillars.comm.compress.int8 import quantise
        from muster.pillars.comm.compress.selection import largest

        if self.method == "int8":
            padded = np.zeros(-(-change.size // _BLOCK) * _BLOCK, np.float32)
            padded[: change.size] = change
            codes, scales = quantise(torch.from_numpy(padded), _BLOCK)
            parts["codes"][name], parts["scales"][name] = codes.numpy(), scales.numpy()
            return _from_codes(codes.numpy(), scales.numpy())[: change.size]
        count = self._count(change.size)
        generator = torch.Generator().manual_seed(seed)
        indices = largest(torch.from_numpy(change), count, generator).numpy()
        if len(indices) < count:  # as many as always, even where fewer elements are not zero
            others = np.setdiff1d(np.arange(change.size), indices, assume_unique=True)
            indices = np.sort(np.concatenate([indices, others[: count - len(indices)]]))
        parts["indices"][name], parts["values"][name] = indices.astype(np.int32), change[indices]
        sent = np.zeros_like(change)
        sent[indices] = change[indices]
        return sent

    # ---- at the coordinator ---------------------------------------------------------------------------------------------

    @property
    def _parts(self) -> tuple[str, str]:
        return ("codes", "scales") if self.method == "int8" else ("indices", "values")

    def _count(self, size: int) -> int:
        """Elements of an array that are sent."""
        return min(size, max(1, round(self.density * size)))

    def shape(self, wanted: Arrays) -> dict[str, Array]:
        """See `muster.engine.pool.fold.Codec`."""
        weights = parted(wanted, "weights").get("", {})
        large = {name: array.size for name, array in weights.items() if _is_large(array)}
        if self.method == "int8":
            counts = {name: -(-size // _BLOCK) for name, size in large.items()}
            each: tuple[int, type[np.generic]] = _BLOCK, np.int8
        else:
            counts = {name: self._count(size) for name, size in large.items()}
            each = 1, np.int32
        first: dict[str, Array] = {name: np.zeros(each[0] * count, each[1]) for name, count in counts.items()}
        second: dict[str, Array] = {name: np.zeros(count, np.float32) for name, count in counts.items()}
        return flattened(
            weights={"": {name: array for name, array in weights.items() if name not in large}},
            extra=parted(wanted, "extra"),
            **{part: {"": arrays} for part, arrays in zip(self._parts, (first, second), strict=True)},
        )

    def decoded(self, arrays: Arrays, base: Arrays) -> dict[str, Array]:
        """See `muster.engine.pool.fold.Codec`."""
        weights = dict(parted(arrays, "weights").get("", {}))
        first, second = (parted(arrays, part).get("", {}) for part in self._parts)
        for name, told in first.items():
            start = base[name].reshape(-1)
            with np.errstate(over="ignore", invalid="ignore"):
                if self.method == "int8":
                    new = start + _from_codes(told, second[name])[: start.size]
                else:
                    if told[0] < 0 or told[-1] >= start.size or (np.diff(told) <= 0).any():
                        raise RefusedUpdate(
                            f"{name!r} has indices that do not rise from 0 to below {start.size:,}"
                        )
                    new = start.astype(np.result_type(start, np.float32))
                    new[told] += second[name]
                new = new.astype(base[name].dtype)
            if not np.isfinite(new).all():
                raise RefusedUpdate(f"{name!r} has changes that are too large for {base[name].dtype}")
            weights[name] = new.reshape(base[name].shape)
        ordered = {name: weights[name] for name in base}
        return flattened(weights={"": ordered}, extra=parted(arrays, "extra"))


def compression_of(about: Mapping[str, Any]) -> UpdateCompression | None:
    """From what a pool says of itself, the codec of its updates."""
    told = about.get("compression")
    return None if told is None else UpdateCompression(**told)


def fold_of(rule: Fold, compression: UpdateCompression | None) -> Fold:
    """A rule as a coordinator takes it."""
    return rule if compression is None else Coded(rule, compression)


def _from_codes(codes: Array, scales: Array) -> Array:
    """What `muster.pillars.comm.compress.int8.dequantise` gives."""
    with np.errstate(over="ignore", invalid="ignore"):
        change: Array = codes.reshape(len(scales), -1) * scales[:, None]
    return change.reshape(-1)


def _is_large(array: Array) -> bool:
    return bool(np.issubdtype(array.dtype, np.floating)) and array.size >= _LEAST
