"""State of the compressors, apart from the buckets they live in: it survives other buckets, compressors and world sizes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from muster.errors import RefusedInput
from muster.pillars.comm.compress.compressor import Compressor, CompressorState, Part

FORMAT = 1


class Carried:
    """State that waits for the compressor that will take it up.

    Attributes:
        parameters: by parameter name, the compressor's name and its tensors.
        buckets: by bucket key, tensors that mean something for that bucket only.
    """

    def __init__(self) -> None:
        self.parameters: dict[str, tuple[str, dict[str, torch.Tensor]]] = {}
        self.buckets: dict[str, dict[str, torch.Tensor]] = {}
        self._owed: dict[str, torch.Tensor] = {}

    def copy(self) -> Carried:
        """Another one with the same tensors."""
        other = Carried()
        other.parameters, other.buckets = dict(self.parameters), dict(self.buckets)
        other._owed = dict(self._owed)
        return other

    def take(self, names: tuple[str, ...], compressor_name: str, compressor: Compressor) -> None:
        """Takes a copy of a bucket's state in."""
        state = compressor.state()
        for name, tensors in zip(names, state.parts, strict=True):
            self.parameters[name] = compressor_name, _cloned(tensors)
        if state.bucket:
            self.buckets[_bucket_key(names, compressor_name)] = _cloned(state.bucket)

    def give(self, names: tuple[str, ...], compressor_name: str, compressor: Compressor) -> None:
        """Gives a new compressor what its parameters have; a residual it has no place for is owed to the next gradient."""
        keeps = compressor.state()
        parts = []
        for name, part, kept in zip(names, compressor.parts, keeps.parts, strict=True):
            had, tensors = self.parameters.pop(name, (compressor_name, {}))
            residual = tensors.get("residual")
            if residual is not None and residual.numel() != part.numel:
                raise RefusedInput(
                    f"state of the exchange: the residual of {name} has {residual.numel()} elements and the parameter "
                    f"{part.numel}; load the state of a run of the same model"
                )
            if residual is not None and "residual" not in kept:
                self._owed[name] = residual
            usable = tensors if had == compressor_name else {"residual": residual}
            parts.append(
                {key: tensor for key, tensor in usable.items() if key in kept and tensor is not None}
            )
        bucket = self.buckets.pop(_bucket_key(names, compressor_name), {})
        compressor.load_state(CompressorState(parts, bucket))

    def flush(self, parts: Sequence[Part], bucket: torch.Tensor) -> None:
        """Adds to a bucket of gradients what is owed to its parameters."""
        if self._owed:
            for part in parts:
                owed = self._owed.pop(part.name, None)
                if owed is not None:
                    part.of(bucket).add_(owed.to(bucket))

    def state_dict(self) -> dict[str, Any]:
        """As nested dictionaries of tensors, strings and numbers."""
        parameters = {
            name: {"compressor": had, **tensors} for name, (had, tensors) in self.parameters.items()
        }
        for name, owed in self._owed.items():
            parameters.setdefault(name, {"compressor": "none"})["residual"] = owed
        return {"format": FORMAT, "parameters": parameters, "buckets": dict(self.buckets)}

    @classmethod
    def from_state_dict(
        cls, state: Mapping[str, Any], rank: int, world_size: int, names: set[str]
    ) -> Carried:
        """The inverse of `state_dict`.

        Raises:
            RefusedInput: it does not belong to this rank and these parameters.
        """
        where = "state of the exchange"
        if state.get("format") != FORMAT:
            raise RefusedInput(
                f"{where}: format {state.get('format')} is unknown; this version reads {FORMAT}"
            )
        if (state["rank"], state["world_size"]) != (rank, world_size):
            raise RefusedInput(
                f"{where}: it is of rank {state['rank']} of {state['world_size']} and this is rank {rank} of {world_size}; "
                "make it fit with exchange_state.reshard first"
            )
        strange = sorted(state["parameters"].keys() - names)
        if strange:
            raise RefusedInput(
                f"{where}: the model has no parameter {strange[0]}; load the state of its own run"
            )
        carried = cls()
        for name, entry in state["parameters"].items():
            tensors = {key: tensor for key, tensor in entry.items() if key != "compressor"}
            carried.parameters[name] = entry["compressor"], tensors
        carried.buckets = {key: dict(tensors) for key, tensors in state["buckets"].items()}
        return carried


def reshard(states: Sequence[Mapping[str, Any]], rank: int, world_size: int) -> dict[str, Any]:
    """One rank's state for another world size, from the states of all old ranks.

    What the ranks have not sent yet is worth the mean of their residuals. New rank r takes the residuals of the old
    ranks r, r + W', r + 2W' ... times W'/W (old world size W, new W'), so that mean is kept and each old state is read
    once. State that is equal on all ranks is taken over; what belongs to one rank or one bucket (thresholds, partitions)
    begins afresh.

    Arguments:
        states: of all old ranks, in order of rank.
        rank, world_size: of the new rank.

    Raises:
        RefusedInput: the states are not those of all ranks of one run.
    """
    old = len(states)
    found = [(state["rank"], state["world_size"]) for state in states]
    if not found or found != [(index, old) for index in range(old)]:
        raise RefusedInput(
            f"state of the exchange: {old} states that are not those of all ranks of one run; give all, in order of rank"
        )
    scale = world_size / old
    parameters: dict[str, dict[str, Any]] = {}
    for name, entry in states[0]["parameters"].items():
        kept = {
            key: value for key, value in entry.items() if key == "compressor" or key.startswith("shared_")
        }
        for key in entry.keys() & {"residual", "velocity"}:
            total = torch.zeros_like(entry[key])
            for source in range(rank, old, world_size):
                total.add_(states[source]["parameters"][name][key], alpha=scale)
            kept[key] = total
        parameters[name] = kept
    return {
        "format": FORMAT,
        "rank": rank,
        "world_size": world_size,
        "parameters": parameters,
        "buckets": {},
    }


def _cloned(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: tensor.detach().clone() for key, tensor in tensors.items()}


def _bucket_key(names: tuple[str, ...], compressor_name: str) -> str:
    """Short, and different for different buckets; names cannot contain a line feed that anybody would type."""
    return hashlib.blake2b("\n".join((compressor_name, *names)).encode(), digest_size=8).hexdigest()
