"""Samples and batches as raw buffers: what an array, a tensor or a tree of them becomes in a cache or between processes.

The form is a header, which says what there is, and the buffers, each aligned to 64 bytes, so that arrays and tensors can be
made of them in place. Whatever is no array, tensor, number, text or container of such is pickled; it only ever
comes from the processes of the job itself.
"""

from __future__ import annotations

import pickle
import struct
from typing import Any

import numpy as np

Buffer = bytes | bytearray | memoryview

_ALIGNMENT = 64
_PREFIX = struct.Struct("<QQ")
_PLAIN = (int, float, complex, bool, str, type(None))


class RawSample:
    """A tree taken apart into a header and buffers, not yet copied.

    Arguments:
        tree: tensors, arrays, numbers, texts and containers of them.
    """

    def __init__(self, tree: Any) -> None:
        self._buffers: list[memoryview] = []
        self._offsets: list[int] = []
        self._end = 0
        shape = self._taken_apart(tree)
        self._header = pickle.dumps((shape, self._offsets), protocol=5)
        self._start = _aligned(_PREFIX.size + len(self._header))
        self.size = self._start + self._end

    def write_into(self, target: memoryview) -> None:
        """Copies everything into ``target``, of at least ``size`` bytes."""
        _PREFIX.pack_into(target, 0, len(self._header), self._start)
        target[_PREFIX.size : _PREFIX.size + len(self._header)] = self._header
        for offset, buffer in zip(self._offsets, self._buffers, strict=True):
            begin = self._start + offset
            # NumPy copies large blocks without the lock that Python's slices hold.
            np.frombuffer(target, np.uint8, len(buffer), begin)[:] = np.frombuffer(buffer, np.uint8)

    def to_bytes(self) -> bytearray:
        """All of it in one piece."""
        target = bytearray(self.size)
        self.write_into(memoryview(target))
        return target

    def _add(self, buffer: memoryview) -> int:
        self._offsets.append(self._end)
        self._buffers.append(buffer)
        self._end = _aligned(self._end + len(buffer))
        return len(self._buffers) - 1

    def _taken_apart(self, tree: Any) -> tuple[Any, ...]:
        if type(tree) in _PLAIN:
            return ("plain", tree)
        if isinstance(tree, np.ndarray) and type(tree) is np.ndarray and not tree.dtype.hasobject:
            return ("array", self._add(_bytes_of(tree)), tree.dtype.str, tree.shape)
        if type(tree) is bytes:
            return ("bytes", self._add(memoryview(tree)), len(tree))
        if type(tree) in (list, tuple):
            return (type(tree).__name__, [self._taken_apart(item) for item in tree])
        if type(tree) is dict:
            return ("dict", list(tree.keys()), [self._taken_apart(item) for item in tree.values()])
        if isinstance(tree, tuple) and hasattr(tree, "_fields"):
            return ("named", type(tree), [self._taken_apart(item) for item in tree])
        import torch

        if (
            type(tree) is torch.Tensor
            and tree.layout is torch.strided
            and tree.device.type == "cpu"
            and not tree.requires_grad
            and not tree.is_quantized
            and not tree.is_complex()
        ):
            flat = tree.detach().contiguous().reshape(-1).view(torch.uint8) if tree.numel() else None
            buffer = memoryview(b"") if flat is None else _bytes_of(flat.numpy())
            return ("tensor", self._add(buffer), str(tree.dtype).removeprefix("torch."), tuple(tree.shape))
        return ("pickled", self._add(memoryview(pickle.dumps(tree, protocol=5))))


def from_raw(stored: Buffer, *, copy: bool = True) -> Any:
    """The tree that `RawSample` took apart.

    Arguments:
        stored: its bytes.
        copy: False: tensors lie in ``stored`` itself, which must then be writable and theirs alone; each keeps that very
            object alive.
    """
    view = stored if isinstance(stored, memoryview) else memoryview(stored)
    length, start = _PREFIX.unpack_from(view, 0)
    shape, offsets = pickle.loads(view[_PREFIX.size : _PREFIX.size + length])
    return _put_together(shape, [start + offset for offset in offsets], view, copy)


def _put_together(shape: tuple[Any, ...], starts: list[int], view: memoryview, copy: bool) -> Any:
    kind = shape[0]
    if kind == "plain":
        return shape[1]
    if kind in ("list", "tuple"):
        items = [_put_together(item, starts, view, copy) for item in shape[1]]
        return items if kind == "list" else tuple(items)
    if kind == "dict":
        values = (_put_together(item, starts, view, copy) for item in shape[2])
        return dict(zip(shape[1], values, strict=True))
    if kind == "named":
        return shape[1](*(_put_together(item, starts, view, copy) for item in shape[2]))
    start = starts[shape[1]]
    if kind == "bytes":
        return bytes(view[start : start + shape[2]])
    if kind == "pickled":
        return pickle.loads(view[start:])
    if kind == "array":
        dtype = np.dtype(shape[2])
        count = int(np.prod(shape[3], dtype=np.int64))
        array = np.frombuffer(view, dtype, count, start) if count else np.empty(0, dtype)
        return array.copy().reshape(shape[3])
    import torch

    tensor_dtype = getattr(torch, shape[2])
    count = int(np.prod(shape[3], dtype=np.int64))
    if count == 0:
        return torch.empty(shape[3], dtype=tensor_dtype)
    if copy:
        length = count * tensor_dtype.itemsize
        own = torch.empty(shape[3], dtype=tensor_dtype)
        own.view(-1).view(torch.uint8).numpy()[:] = np.frombuffer(view, np.uint8, length, start)
        return own
    return torch.frombuffer(view, dtype=tensor_dtype, count=count, offset=start).reshape(shape[3])


def _bytes_of(array: np.ndarray[Any, Any]) -> memoryview:
    if not array.size:
        return memoryview(b"")
    flat: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return memoryview(flat)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
