"""Counts the bytes that PyTorch's operators read and write, for the arithmetic intensity of a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: Allocate and write nothing, or only look.
_NO_TRAFFIC: Final = frozenset(
    {
        "aten::empty",
        "aten::empty_like",
        "aten::empty_strided",
        "aten::new_empty",
        "aten::new_empty_strided",
        "aten::_local_scalar_dense",
        "aten::is_same_size",
        "aten::_has_compatible_shallow_copy_type",
        "aten::set_",
        "aten::resize_",
    }
)
#: In-place operators that overwrite their first argument without reading it.
_OVERWRITE: Final = frozenset(
    {
        "aten::copy_",
        "aten::_foreach_copy_",
        "aten::fill_",
        "aten::zero_",
        "aten::_foreach_zero_",
        "aten::normal_",
        "aten::uniform_",
        "aten::bernoulli_",
        "aten::random_",
        "aten::exponential_",
    }
)


class TrafficCounter(TorchDispatchMode):
    """A context that counts bytes and operators while it is open, as `torch.utils.flop_counter.FlopCounterMode` counts FLOPs.

    Each operator of the ATen level counts every distinct input tensor once as read and every output tensor once as
    written; an in-place result counts as both unless it is only overwritten. Views and allocations count nothing, and a
    dimension of stride 0 (an expanded tensor) counts once. That is the traffic if no operator finds in a cache what the one
    before it left there, and if each reads its inputs once: above the true traffic for tensors that fit into a cache and for
    code that `torch.compile` fuses, below it for kernels that read their inputs several times.

    Attributes:
        read, written: bytes.
        operators: how many operators moved bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.read = self.written = self.operators = 0

    @property
    def bytes(self) -> int:
        """Read and written."""
        return self.read + self.written

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self._count(func, args, kwargs, result)
        return result

    def _count(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        schema = func._schema  # type: ignore[attr-defined]
        if schema.name in _NO_TRAFFIC or _is_view(schema):
            return
        overwritten = _overwritten(schema, args, kwargs)
        mutated = _mutated(schema, args, kwargs)
        inputs = _tensors((args, kwargs))
        outputs = _tensors(result) | mutated
        read = sum(size for key, size in inputs.items() if key not in overwritten)
        written = sum(outputs.values())
        if read or written:
            self.operators += 1
            self.read += read
            self.written += written


def _is_view(schema: Any) -> bool:
    """Whether every result is another look at an argument's memory."""
    aliases = [result.alias_info for result in schema.returns]
    return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)


def _tensors(structure: Any) -> dict[tuple[int, ...], int]:
    """Bytes of each distinct tensor of a nested structure."""
    found: dict[tuple[int, ...], int] = {}
    for leaf in tree_leaves(structure):
        if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided:
            found[_key(leaf)] = _bytes(leaf)
    return found


def _key(tensor: torch.Tensor) -> tuple[int, ...]:
    """Equal for tensors that show the same memory in the same way."""
    try:
        address = tensor.data_ptr()
    except RuntimeError:  # a tensor without memory, such as a fake one
        address = id(tensor)
    return (address, tensor.element_size(), *tensor.shape, *tensor.stride())


def _bytes(tensor: torch.Tensor) -> int:
    sizes = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride != 0]
    return 0 if tensor.numel() == 0 else tensor.element_size() * math.prod(sizes)


def _written_arguments(schema: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Description and value of each argument that the operator writes."""
    found = []
    for place, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            found.append((argument, value))
    return found


def _mutated(schema: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[tuple[int, ...], int]:
    return _tensors([value for _, value in _written_arguments(schema, args, kwargs)])


def _overwritten(schema: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> set[tuple[int, ...]]:
    """Arguments that are written and not read: ``out=`` and those of the operators that only overwrite."""
    return set(
        _tensors(
            [
                value
                for argument, value in _written_arguments(schema, args, kwargs)
                if argument.kwarg_only or schema.name in _OVERWRITE
            ]
        )
    )
