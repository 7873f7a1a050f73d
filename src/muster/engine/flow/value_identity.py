"""What a value is: a digest of its content, the same in every process.

A task's result may be taken from the journal when its arguments are what they were, so a digest must differ whenever a
task could tell two values apart, and should be the same whenever it could not. Where both cannot be had, values differ:
a task that runs once more costs time, a wrong result costs trust. In particular

- types count: ``1``, ``True``, ``1.0`` and ``np.float64(1)`` are four values; ``0.0`` and ``-0.0`` are two; NaN is one,
  except in arrays, which are their bits;
- the order of a list and of a dict's items counts, that of a set and of an object's attributes does not;
- arrays are their dtype, shape and items; the memory layout, and whether they are writable, do not count;
- whether two parts of a value are one object or two equal ones does not count, except within what refers back to itself;
- a function or class of the user's own is its code (`code_identity`), any other its name;
- an object is what `pickle` would make it from, less what `functools.cached_property` has put there.

Digests are Merkle trees of BLAKE2b (20 bytes): every container is hashed once, over the encodings of its items.
"""

from __future__ import annotations

import copyreg
import datetime
import functools
import hashlib
import marshal
import operator
import pathlib
import pickle
import struct
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np

from muster.errors import Undigestible

DIGEST_BYTES: Final = 20
_SHORT: Final = 64  # bytes of a leaf that stand for themselves
_FLAT: Final = 16  # items from which on a list of numbers and text is encoded at once
_BLOCK: Final = 1 << 16  # items of an array that is not in C order, copied at a time
# Of an x87 long double's 16 bytes six are padding, which holds anything.
_PADDED: Final = np.dtype(np.longdouble).itemsize == 16 and np.finfo(np.longdouble).nmant == 63


def value_digest(value: Any, where: str = "value") -> str:
    """The digest of a value, 40 hexadecimal digits.

    Arguments:
        value: anything that is plain data, has a `pickle` protocol, or is a function or a class.
        where: how a person calls the value, for the error.

    Raises:
        Undigestible: a part of it is a lock, an open file, a generator and the like; says where.
    """
    return _hashed(encoding(value, where, _standalone)).hex()


def encoding(
    value: Any,
    where: str,
    code: Callable[[Any], bytes],
    *,
    references: list[tuple[str, int]] | None = None,
    lenient: bool = False,
    objects: bool = True,
) -> bytes:
    """The bytes that stand for a value, by a `Digester` with these choices.

    Raises:
        Undigestible: as `value_digest`; never if `lenient`, but for what is nested too deep.
    """
    met = [] if references is None else references
    before = len(met)
    try:
        try:
            return Digester(code, met, lenient=lenient, objects=objects).encode(value)
        except _Cycle:
            del met[before:]
            return Digester(code, met, lenient=lenient, objects=objects, by_number=True).encode(value)
    except _Stuck as stuck:
        raise Undigestible(where + "".join(reversed(stuck.steps)), stuck.found) from None
    except RecursionError:
        raise Undigestible(where, f"nested more than {sys.getrecursionlimit() // 4} levels deep") from None


def is_code(value: Any) -> bool:
    """Whether a value is what it does: a function, a class, a module, or what wraps a function."""
    if isinstance(value, _CODE):
        return True
    if isinstance(
        value, types.BuiltinFunctionType
    ):  # a bound one, such as a list's append, is its list as well
        return value.__self__ is None or isinstance(value.__self__, types.ModuleType | type)
    if not callable(value) or isinstance(
        value, functools.partial
    ):  # a partial is its function and its arguments
        return False
    return "__wrapped__" in (getattr(value, "__dict__", None) or ())


class Digester:
    """Encodes values so that equal encodings mean equal content.

    Arguments:
        code: encodes what `is_code` finds.
        references: what `code` notes here stays in the order of the value: a name to sort by where the value has no order,
            and a number.
        lenient: what has no content counts as its type only, instead of an error.
        objects: whether objects are looked into; otherwise they count as their type only.
        by_number: for values that refer back to themselves: an object that comes again is the number of its first coming.
        around: addresses of what the value is a part of.
    """

    def __init__(
        self,
        code: Callable[[Any], bytes],
        references: list[tuple[str, int]],
        *,
        lenient: bool = False,
        objects: bool = True,
        by_number: bool = False,
        around: set[int] | None = None,
    ) -> None:
        self._code, self._references = code, references
        self._lenient, self._objects, self._by_number = lenient, objects, by_number
        # By address, with the object, so that no other gets its address meanwhile.
        self._known: dict[int, tuple[Any, bytes]] = {}
        self._numbers: dict[int, tuple[Any, int]] = {}
        self._around: set[int] = set() if around is None else around

    def encode(self, value: Any) -> bytes:
        """The encoding; no encoding is the beginning of another."""
        leaf = _LEAVES.get(type(value))
        if leaf is not None:
            return leaf(value)
        key = id(value)
        if (known := self._known.get(key)) is not None:
            return known[1]
        if (numbered := self._numbers.get(key)) is not None:
            return _leaf(b"@", numbered[1].to_bytes(8, "little"))
        if key in self._around:
            raise _Cycle
        if self._by_number:
            self._numbers[key] = (value, len(self._numbers))
        self._around.add(key)
        try:
            found = self._composite(value)
        finally:
            self._around.discard(key)
        if not self._by_number:
            self._known[key] = (value, found)
        return found

    def _composite(self, value: Any) -> bytes:
        kind = type(value)
        if kind is tuple or kind is list:
            return self._sequence(b"(" if kind is tuple else b"[", value)
        if kind is dict or kind is types.MappingProxyType:
            return self._mapping(b"{", value)
        if is_code(value):
            return _node(b"C", [self._code(value)])
        if isinstance(value, set | frozenset):
            return self._members(value)
        if isinstance(value, np.ndarray):
            return self._array(value)
        if isinstance(value, np.generic):
            return _node(b"g", [self._array(np.asarray(value))])
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(value, getattr(torch, "Tensor", ())):
            return self._tensor(value, torch)
        special = _SPECIAL.get(kind)
        if special is not None:
            return special(self, value)
        if isinstance(value, pathlib.PurePath):
            return _node(b"p", [_leaf(b"s", kind.__name__.encode()), _leaf(b"s", str(value).encode())])
        return self._object(value)

    def _part(self, value: Any, form: str, step: Any) -> bytes:
        """The encoding of a part; `form` and `step` say where in the whole it is, should that have to be told."""
        try:
            return self.encode(value)
        except _Stuck as stuck:
            stuck.steps.append(form.format(step))
            raise

    def _sequence(self, tag: bytes, values: tuple[Any, ...] | list[Any]) -> bytes:
        if len(values) >= _FLAT and _plain(values) and (flat := _flat(tag, values)) is not None:
            return flat
        return _node(tag, [self._part(each, "[{}]", place) for place, each in enumerate(values)])

    def _mapping(self, tag: bytes, pairs: Any) -> bytes:
        flat = type(pairs) is dict and len(pairs) >= _FLAT and _plain(pairs) and _plain(pairs.values())
        if flat and (encoded := _flat(tag, pairs)) is not None:
            return encoded
        parts = []
        for key, value in pairs.items():
            parts.append(self._part(key, "[{!r}]", key))
            parts.append(self._part(value, "[{!r}]", key))
        return _node(tag, parts)

    def _members(self, values: Any) -> bytes:
        """A set: its members have no order, so each is encoded by itself and the encodings are sorted."""
        kind, met = type(values), self._references
        found: list[tuple[bytes, list[tuple[str, int]]]] = []
        for each in values:
            before = len(met)
            try:
                alone = self._alone().encode(each)
            except _Cycle:
                if not self._lenient:
                    raise _Stuck(
                        "in a set and refers back to itself, so that it has no place in an order"
                    ) from None
                alone = _named(b"?", type(each))
            except _Stuck as stuck:
                stuck.steps.append("{…}")
                raise
            found.append((alone, met[before:]))
            del met[before:]
        found.sort(key=lambda member: (member[0], [name for name, _ in member[1]]))
        for _, references in found:
            met.extend(references)
        content = _node(b"<", [alone for alone, _ in found])
        if kind is set or kind is frozenset:
            return _node(kind.__name__.encode(), [content])
        return _node(b"S", [self.encode(kind), content, self._state(getattr(values, "__dict__", {}), kind)])

    def _alone(self) -> Digester:
        choices = {"lenient": self._lenient, "objects": self._objects}
        return Digester(self._code, self._references, around=self._around, **choices)

    def _array(self, array: np.ndarray[Any, Any]) -> bytes:
        kind = type(array)
        if kind is np.ndarray or kind is np.memmap:
            return self._items(array)
        if isinstance(array, np.ma.MaskedArray):
            parts = [array.data, np.ma.getmaskarray(array), array.fill_value]
            return _node(b"M", [self.encode(kind), *(self.encode(np.asarray(each)) for each in parts)])
        state = self._state(getattr(array, "__dict__", {}), kind)
        return _node(b"a", [self.encode(kind), self._items(array.view(np.ndarray)), state])

    def _items(self, array: np.ndarray[Any, Any]) -> bytes:
        dtype, shape = array.dtype, array.shape
        header = _leaf(b"s", f"{dtype.str} {shape}".encode())
        if dtype.names is not None:  # by field, since the padding between them holds anything
            fields = [self._part(array[name], "[{!r}]", name) for name in dtype.names]
            names = [_leaf(b"s", name.encode()) for name in dtype.names]
            return _node(b"f", [header, *names, *fields])
        if dtype.hasobject or dtype.kind == "T":
            items = [self._part(each, "[{}]", place) for place, each in enumerate(array.ravel().tolist())]
            return _node(b"o", [header, *items])
        content = hashlib.blake2b(digest_size=DIGEST_BYTES)
        if array.nbytes == 0:
            pass
        elif dtype.char in "gG" and _PADDED:
            numbers = np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(-1, 16)[:, :10]
            content.update(np.ascontiguousarray(numbers).data)
        elif array.flags.c_contiguous:
            content.update(array.reshape(-1).view(np.uint8).data)
        else:
            flags = ["external_loop", "buffered"]
            for block in np.nditer(array, flags=flags, order="C", buffersize=_BLOCK):  # type: ignore[call-overload]
                content.update(np.ascontiguousarray(block).view(np.uint8).data)
        return _node(b"A", [header, content.digest()])

    def _tensor(self, tensor: Any, torch: Any) -> bytes:
        kind = type(tensor)
        header = f"{tensor.dtype} {tuple(tensor.shape)} {tensor.device.type} {tensor.layout} {tensor.requires_grad}"
        parts = [_leaf(b"s", header.encode()), self.encode(kind)]
        plain = tensor.detach()
        if tensor.layout is torch.sparse_coo:
            plain = plain.coalesce()
            return _node(b"T", [*parts, self.encode(plain.indices()), self.encode(plain.values())])
        try:
            content = plain.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
            raw = content.view(torch.uint8).numpy() if content.numel() else np.empty(0, np.uint8)
        except Exception as error:
            if self._lenient:
                return _node(b"T", parts)
            raise _Stuck(f"a tensor whose content is not to be had ({_first_line(error)})") from None
        return _node(b"T", [*parts, self._items(raw)])

    def _object(self, value: Any) -> bytes:
        """Any other object: what `pickle` would make it from."""
        kind = type(value)
        if not self._objects:
            return _named(b"?", kind)
        reducer = copyreg.dispatch_table.get(kind)
        try:
            reduced: Any = value.__reduce_ex__(pickle.HIGHEST_PROTOCOL) if reducer is None else reducer(value)
        except RecursionError:
            raise
        except Exception as error:
            if self._lenient:
                return _named(b"?", kind)
            raise _Stuck(f"a {kind.__module__}.{kind.__qualname__} ({_first_line(error)})") from None
        if isinstance(reduced, str):  # an object that a module has under this name
            return _leaf(b"n", f"{getattr(value, '__module__', None) or kind.__module__}.{reduced}".encode())
        function, arguments = reduced[:2]
        state, items, pairs = (*reduced[2:5], None, None, None)[:3]
        parts = [self.encode(function), self._sequence(b"(", tuple(arguments)), self._state(state, kind)]
        if items is not None:
            parts.append(self._sequence(b"[", list(items)))
        if pairs is not None:
            parts.append(self._sequence(b"{", [part for pair in pairs for part in pair]))
        return _node(b"O", parts)

    def _state(self, state: Any, kind: type) -> bytes:
        """An object's attributes: by name, since the order in which they were set says nothing."""
        if (
            type(state) is tuple and len(state) == 2 and type(state[1]) is dict
        ):  # attributes, and those in slots
            return _node(b"t", [self._state(each, kind) for each in state])
        if type(state) is not dict or not all(type(name) is str for name in state):
            return self.encode(state)
        parts = []
        for name in sorted(state):
            if isinstance(getattr(kind, name, None), functools.cached_property):
                continue  # follows from the rest; whether somebody has asked for it yet makes no difference
            parts.append(_leaf(b"s", name.encode()))
            parts.append(self._part(state[name], ".{}", name))
        return _node(b"d", parts)


class _Cycle(Exception):
    """A value refers back to itself."""


class _Stuck(Exception):
    """There is no content; `steps` lead there, the innermost first."""

    def __init__(self, found: str) -> None:
        self.found = found
        self.steps: list[str] = []


def _standalone(value: Any) -> bytes:
    # Functions are values and the globals of functions are values: of the two modules one must import the other late.
    from muster.engine.flow.code_identity import code_reference

    return code_reference(value)


def _hashed(content: Any) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


def _leaf(tag: bytes, content: bytes) -> bytes:
    """Bytes as they are, or where they are many, as their digest."""
    if len(content) > _SHORT:
        return b"#" + tag + b":" + _hashed(content)
    return tag + b":" + len(content).to_bytes(1, "little") + content


def _node(tag: bytes, parts: Iterable[bytes]) -> bytes:
    return tag + b"/" + _hashed(b"".join(parts))


def _named(tag: bytes, kind: type) -> bytes:
    return _leaf(tag, f"{kind.__module__}.{kind.__qualname__}".encode())


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _plain(values: Any) -> bool:
    """Whether all are numbers and text, without NaN."""
    return _PLAIN.issuperset(map(type, values)) and not any(map(operator.ne, values, values))


def _flat(tag: bytes, values: Any) -> bytes | None:
    """Numbers and text in a list, tuple or dict, all at once; None where that cannot be.

    In `marshal`'s second format types and bits are told apart, and what is one object twice is written twice.
    """
    try:
        return b"~" + tag + b"/" + _hashed(marshal.dumps(values, 2))
    except ValueError:  # one of them has more than 2 GiB
        return None


def _number(value: float) -> bytes:
    return struct.pack("<d", value) if value == value else b"nan"


def _integer(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)


_PLAIN: Final = frozenset({type(None), bool, int, float, str, bytes})
_LEAVES: Final[dict[type, Callable[[Any], bytes]]] = {
    type(None): lambda _: b"N:",
    type(...): lambda _: b"E:",
    type(NotImplemented): lambda _: b"I:",
    bool: lambda value: b"T:" if value else b"F:",
    int: lambda value: _leaf(b"i", _integer(value)),
    float: lambda value: _leaf(b"f", _number(value)),
    complex: lambda value: _leaf(b"c", _number(value.real) + b" " + _number(value.imag)),
    str: lambda value: _leaf(b"s", value.encode("utf-8", "surrogatepass")),
    bytes: lambda value: _leaf(b"b", value),
}


def _range(_: Digester, value: range) -> bytes:
    """As ``==`` has it: ``range(0, 3, 2)`` and ``range(0, 4, 2)`` are the same numbers."""
    steps = (len(value), *([value.start] if len(value) else []), *([value.step] if len(value) > 1 else []))
    return _leaf(b"r", repr(steps).encode())


def _method(digester: Digester, value: types.MethodType) -> bytes:
    return _node(b"m", [digester.encode(value.__func__), digester._part(value.__self__, ".{}", "__self__")])


def _buffer(_: Digester, value: Any) -> bytes:
    return _node(b"B", [type(value).__name__.encode(), _hashed(value)])


def _out_of_band(_: Digester, value: pickle.PickleBuffer) -> bytes:
    return _node(b"P", [_hashed(value.raw())])


def _view(_: Digester, value: memoryview) -> bytes:
    return _node(b"V", [f"{value.format} {value.shape} ".encode(), _hashed(value.tobytes())])


def _slice(digester: Digester, value: slice) -> bytes:
    return _node(b"l", [digester.encode(each) for each in (value.start, value.stop, value.step)])


def _moment(digester: Digester, value: Any) -> bytes:
    """Dates and times: as `repr` shows them, with the zone by its own content."""
    zone = getattr(value, "tzinfo", None)
    plain = value if zone is None else value.replace(tzinfo=None)
    return _node(b"D", [_leaf(b"s", repr(plain).encode()), digester.encode(zone)])


_SPECIAL: Final[dict[type, Callable[[Digester, Any], bytes]]] = {
    range: _range,
    slice: _slice,
    bytearray: _buffer,
    memoryview: _view,
    pickle.PickleBuffer: _out_of_band,
    types.MethodType: _method,
    datetime.date: _moment,
    datetime.time: _moment,
    datetime.datetime: _moment,
    datetime.timedelta: _moment,
}
_CODE: Final = (
    types.FunctionType,
    types.CodeType,
    types.ModuleType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
    type,
    staticmethod,
    classmethod,
    property,
    functools.cached_property,
    np.ufunc,
)
