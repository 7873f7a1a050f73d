"""The arguments of a call: which of them other tasks still have to make, and the values once they have.

A call keeps its arguments as they were given, with a `Slot` in place of each thing that a task makes or changes. One thing
has one slot however often it is passed, so what was one object in the caller's program is one object in the task.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from muster.engine.flow.data import IMMUTABLE, Datum, Turns
from muster.engine.flow.directions import IN_DELETE, Access
from muster.engine.flow.files import FileUse
from muster.engine.flow.future import Future
from muster.errors import TaskRefused

if TYPE_CHECKING:
    from muster.engine.flow.session import Flow

LEAVES: Final = IMMUTABLE | {np.float64, np.float32, np.int64, np.int32, np.bool_}
_CONTAINERS: Final = frozenset({list, tuple, dict})


class Slot:
    """Stands in the arguments for input number ``index`` of the call."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index


class Nested:
    """A list, tuple or dict of the arguments that has slots somewhere inside."""

    __slots__ = ("content",)

    def __init__(self, content: Any) -> None:
        self.content = content


class Call:
    """What a task was called with.

    Arguments:
        args, kwargs: with `Slot` and `Nested` where something is filled in; the caller's own objects else.
        inputs: by slot: a future, `Turns`, or the caller's own object that the task changes.
        outputs: by slot, of those that the task changes: the future of the version that it makes, or the `Turns` that it
            takes part in.
        files: by slot, of those that are files or directories.
    """

    __slots__ = ("args", "files", "inputs", "kwargs", "outputs")

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args, self.kwargs = args, kwargs
        self.inputs: list[Any] = []
        self.outputs: dict[int, Future | Turns] = {}
        self.files: dict[int, FileUse] | None = None

    def is_settled(self) -> bool:
        """Whether all that it needs is there, it changes nothing, and nothing of it is to be forgotten after it."""
        return not self.outputs and all(
            type(each) is Future
            and each.done()
            and each.failed is None
            and not each.cancelled()
            and each.datum is None
            for each in self.inputs
        )

    def filled(self, values: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with these values of the slots."""
        if not self.inputs:
            return self.args, self.kwargs
        args = tuple([_fill(each, values) for each in self.args])
        return args, {name: _fill(each, values) for name, each in self.kwargs.items()} if self.kwargs else {}


NO_CALL: Final = Call((), {})


def _fill(value: Any, values: list[Any]) -> Any:
    if type(value) is Slot:
        return values[value.index]
    if type(value) is Nested:
        return map_items(value.content, lambda each: _fill(each, values))
    return value


def map_items(value: Any, each: Callable[[Any], Any]) -> Any:
    """A list, tuple or dict of the same kind with ``each`` of its items."""
    if isinstance(value, dict):
        return {key: each(item) for key, item in value.items()}
    items = [each(item) for item in value]
    if isinstance(value, list):
        return items
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)


def private(value: Any) -> Any:
    """A copy that a task may change."""
    return value.copy() if type(value) is np.ndarray and value.dtype != object else copy.deepcopy(value)


def sealed(value: Any) -> Any:
    """What a task returned, its arrays made read-only: others get the same ones, as they would from shared memory."""
    kind = type(value)
    if kind is np.ndarray:
        value.flags.writeable = False
    elif kind is tuple or kind is list:
        for each in value:
            sealed(each)
    elif kind is dict:
        for each in value.values():
            sealed(each)
    return value


class Binding:
    """Finds the inputs and outputs of one call; nothing has a new version until all of them are found right.

    Arguments:
        flow: that the call belongs to.
        function: the function's name, for errors.
        accesses: of the parameters that are not plainly read, by name.
    """

    __slots__ = ("_accesses", "_data", "_flow", "_function", "_slots", "_writes", "call")

    def __init__(self, flow: Flow, function: str, accesses: dict[str, Access]) -> None:
        self._flow, self._data = flow, flow.data
        self._function, self._accesses = function, accesses
        self._slots: dict[int, int] = {}
        self._writes: dict[int, tuple[Datum, Access]] = {}
        self.call = Call((), {})

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any], names: Sequence[str]) -> Call:
        """The call, with new versions of what it changes.

        Arguments:
            args, kwargs: as given.
            names: of the parameters of `args`, in order.

        Raises:
            TaskRefused: an argument cannot be what its direction says, or shares memory with what a task changes.
        """
        accesses = self._accesses
        filled: dict[Any, Any] = {}
        plain: list[tuple[Any, str, Any]] = []
        given: list[tuple[Any, str, Any]] = [
            (place, names[min(place, len(names) - 1)], value) for place, value in enumerate(args)
        ]
        given += [(name, name, value) for name, value in kwargs.items()]
        for key, name, value in given:
            access = accesses.get(name)
            if access is not None and access.kind in ("file", "directory"):
                filled[key] = self._file(value, name, access)
            elif access is None or not access.writes:
                plain.append((key, name, value))
            elif access.kind == "collection":
                filled[key] = self._written_elements(value, name, access)
            else:
                filled[key] = self._written(value, name, access)
        # Only now what is read: a second mention of a thing that this call changes is that thing, as in plain Python.
        for key, name, value in plain:
            filled[key] = self._read(value, name)
        for _, name, value in plain:
            if (access := accesses.get(name)) is not None and access.word == "IN_DELETE":
                self._delete(value, name, access)
        for index, (datum, access) in self._writes.items():
            self._new_version(index, datum, access)
        self.call.args = tuple([filled[key] for key in range(len(args))])
        self.call.kwargs = {key: filled[key] for key in kwargs}
        return self.call

    def _written(self, value: Any, name: str, access: Access) -> Slot:
        datum = self._data.written(value, name, self._function)
        self._refuse_deleted(datum, name)
        if not access.reads and type(value) is Future:
            raise TaskRefused(
                f"{name} of {self._function}() is OUT: pass the object that is to be filled, or INOUT"
            )
        index = self._index(datum)
        known = self._writes.get(index)
        if known is None or (known[1].shared and not access.shared):
            self._writes[index] = (datum, access)
        return Slot(index)

    def _written_elements(self, value: Any, name: str, access: Access) -> Nested:
        if type(value) not in _CONTAINERS:
            raise TaskRefused(
                f"{name} of {self._function}() is a Collection: should be a list, tuple or dict, not {type(value).__name__}"
            )

        def each(item: Any) -> Any:
            if type(item) in _CONTAINERS:
                return self._written_elements(item, name, access)
            return self._written(item, f"an element of {name}", access)

        return Nested(map_items(value, each))

    def _file(self, value: Any, name: str, access: Access) -> Slot:
        if not isinstance(value, str | os.PathLike):
            raise TaskRefused(
                f"{name} of {self._function}() is a {access.kind}: should be its path, not {type(value).__name__}"
            )
        path = os.path.realpath(os.fspath(value))
        datum = self._data.file(path, access, name, self._function)
        if access.writes:
            index = self._index(datum)
            self._writes[index] = (datum, access)
        else:
            index = self._read_datum(datum, name).index
        if self.call.files is None:
            self.call.files = {}
        known = self.call.files.get(index)
        if known is not None and (known.writes or access.writes):
            raise TaskRefused(f"{self._function}() is given {path} twice, and changes it; give it once")
        self.call.files[index] = FileUse(path, not isinstance(value, str), access.reads, access.writes)
        return Slot(index)

    def _new_version(self, index: int, datum: Datum, access: Access) -> None:
        call = self.call
        if access.shared:
            turns = datum.turns
            if turns is None or (type(turns.before) is Future and turns.before.cancelled()):
                before = datum.read()
                datum.latest = Future(self._flow, None)
                datum.latest.datum = datum
                datum.turns = turns = Turns(before, datum.latest)
            turns.left += 1
            call.inputs[index] = call.outputs[index] = turns
        else:
            call.inputs[index] = datum.read() if access.reads else datum.owner()
            datum.close_turns()  # also where what they make is not read
            datum.latest = version = call.outputs[index] = Future(self._flow, None)
            version.datum = datum

    def _delete(self, value: Any, name: str, access: Access) -> None:
        if access.kind == "collection":
            for each in value.values() if isinstance(value, dict) else value:
                self._delete(each, name, access if type(each) in _CONTAINERS else IN_DELETE)
        elif type(value) not in LEAVES:
            self._data.written(value, name, self._function).deleted = True

    def _index(self, source: Any) -> int:
        found = self._slots.get(id(source))
        if found is None:
            found = self._slots[id(source)] = len(self.call.inputs)
            self.call.inputs.append(source)
        return found

    def _read(self, value: Any, name: str) -> Any:
        kind = type(value)
        if kind in LEAVES:
            return value
        if kind is Future:
            if value.flow is not self._flow:
                raise TaskRefused(
                    f"{name} of {self._function}() is a future of another flow; pass what its result() gives"
                )
            if (datum := value.datum) is None:
                return Slot(self._index(value))
            return self._read_datum(datum, name)
        if self._data and (datum := self._data.find(value)) is not None:
            return self._read_datum(datum, name)
        if kind in _CONTAINERS or (issubclass(kind, tuple) and hasattr(kind, "_fields")):
            return self._read_container(value, name)
        if kind is set or kind is frozenset:
            if any(type(each) is Future for each in value):
                raise TaskRefused(f"{name} of {self._function}() is a set with futures in it; use a list")
        elif self._data:
            self._data.check(value, name, self._function)
        return value

    def _read_container(self, value: Any, name: str) -> Any:
        items = list(value.values()) if isinstance(value, dict) else value
        if all(type(each) in LEAVES for each in items):
            if self._data:
                self._data.check(value, name, self._function)
            return value
        read = [self._read(each, name) for each in items]
        if all(new is old for new, old in zip(read, items, strict=True)):
            return value
        if isinstance(value, dict):
            return Nested(dict(zip(value, read, strict=True)))
        if hasattr(value, "_fields"):
            return Nested(type(value)(*read))
        return Nested(read if isinstance(value, list) else tuple(read))

    def _read_datum(self, datum: Datum, name: str) -> Slot:
        self._refuse_deleted(datum, name)
        known = id(datum) in self._slots
        index = self._index(datum)
        if not known:
            self.call.inputs[index] = datum.read()
        return Slot(index)

    def _refuse_deleted(self, datum: Datum, name: str) -> None:
        if datum.deleted:
            raise TaskRefused(
                f"{name} of {self._function}() was given to a task as IN_DELETE before ({datum.name}): it is no more"
            )
