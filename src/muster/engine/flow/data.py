"""Data that tasks change, and their versions.

A *datum* is an object (or a future) that some task took as `OUT`, `INOUT` or `COMMUTATIVE`. Each such task makes a new
version and leaves the old one alone, so a task that reads the old one needs no order with it (renaming, as in the registers
of a processor; Tomasulo, IBM J. Res. Dev. 11, 1967). The caller's own object is the first version and never changes.

What the caller holds is a name of the datum: an object that is passed again stands for its newest version. That holds for
the object itself only. A part of it (``state.velocity``, a view of an array) is what it was before any task; to pass it on
would silently be wrong, and is refused.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from muster.engine.flow.future import Future
from muster.errors import TaskRefused

if TYPE_CHECKING:
    from muster.engine.flow.directions import Access
    from muster.engine.flow.journal import Key
    from muster.engine.flow.node import Node
    from muster.engine.flow.session import Flow

# Values that cannot change, so nothing can be a version of them.
IMMUTABLE: Final = frozenset(
    {
        int,
        float,
        complex,
        bool,
        str,
        bytes,
        type(None),
        type(...),
        range,
        slice,
        type,
        type(len),
        type(lambda: 0),
    }
)


class Turns:
    """Tasks that change one datum in any order, one at a time: the version before them and the one after.

    Arguments:
        before: the version they begin from; a future, or the first value itself.
        after: the version once all of them are done.
    """

    __slots__ = (
        "after",
        "before",
        "busy",
        "closed",
        "failure",
        "included",
        "joined",
        "key",
        "left",
        "number",
        "parked",
        "place",
        "started",
        "successors",
        "unknown",
        "value",
    )

    name = "tasks in any order"

    def __init__(self, before: Any, after: Future) -> None:
        self.before, self.after = before, after
        self.value: Any = None
        self.started = False  # whether `value` holds what the tasks so far have made
        self.busy = False
        self.closed = False  # no task joins any more
        self.left = 0
        self.number = 0  # of one of them that is done, 0 before; of files: later versions have higher ones
        self.parked: list[Node] = []
        self.failure: Any = None
        self.successors: list[Node] = []
        # In the record of the flow:
        self.key: Key | None = None
        self.unknown = False  # whether somebody changes it whose changes cannot be told from those on record
        self.place = 0  # how many turns are on record
        self.included: set[bytes] = set()  # keys of those whose changes were on record at the start
        self.joined: list[bytes] = []  # keys of those that take part


def future_of(source: Any) -> Future | None:
    """The future that an input of a call waits for, if it waits for one."""
    if type(source) is Turns:
        source = source.before
    return source if type(source) is Future else None


class Datum:
    """One thing that tasks change.

    Arguments:
        first: the caller's own object; a future whose task makes it, or the object.
        name: for errors, as ``state of advance()``.
    """

    __slots__ = ("deleted", "first", "latest", "name", "owner", "parts", "turns")

    def __init__(self, first: Any, name: str) -> None:
        self.name = name
        self.latest: Future | None = None
        self.turns: Turns | None = None
        self.deleted = False
        self.parts: list[Any] = []
        self.first: Any = None
        try:
            self.owner: Any = weakref.ref(first)
        except TypeError:
            self.owner, self.first = (lambda: first), first

    def read(self) -> Any:
        """The newest version: a future, or the caller's object where there is no other."""
        self.close_turns()
        # What was cancelled has not happened.
        while (latest := self.latest) is not None and latest.cancelled() and latest is not self.owner():
            self.latest = latest._result
        return self.owner() if self.latest is None else self.latest

    def close_turns(self) -> None:
        """No more tasks change it in any order; what comes next, comes after them."""
        if (turns := self.turns) is not None:
            self.turns = None
            turns.closed = True
            turns.after.flow.end_turns(turns)


class Data:
    """The data of one flow, found by the objects that name them.

    Arguments:
        flow: whose they are.
    """

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._by_id: dict[int, Datum] = {}
        self._parts: dict[int, tuple[Any, Datum]] = {}
        self._memory: dict[int, list[Datum]] = {}  # by what owns the memory of an array or a tensor
        self._sweep_at = 64
        self._files: dict[str, Datum] = {}
        self._within: dict[str, list[Datum]] = {}  # by the directories above them

    def __bool__(self) -> bool:
        return bool(self._by_id)

    def find(self, value: Any) -> Datum | None:
        """The datum that an object names."""
        if type(value) is Future:
            return value.datum
        found = self._by_id.get(id(value))
        if found is None:
            return None
        if found.owner() is value:
            return found
        self._forget(id(value), found)  # another object had that address before
        return None

    def written(self, value: Any, parameter: str, function: str) -> Datum:
        """The datum that an object names, made if it is none yet.

        Raises:
            TaskRefused: it cannot change, or shares memory with another one.
        """
        if (found := self.find(value)) is not None:
            return found
        name = f"{parameter} of {function}()"
        if type(value) is Future:
            value.datum = Datum(value, name)
            value.datum.latest = value
            return value.datum
        if type(value) in IMMUTABLE or type(value) is tuple or isinstance(value, frozenset | np.generic):
            raise TaskRefused(
                f"{name}: {type(value).__name__} cannot change, so it cannot be OUT, INOUT or COMMUTATIVE; return a new one"
            )
        self.check(value, parameter, function)
        datum = Datum(value, name)
        if len(self._by_id) >= self._sweep_at:
            self._sweep()
        self._by_id[id(value)] = datum
        for part in (value, *reachable(value)):
            if part is not value:
                self._parts[id(part)] = (part, datum)
                datum.parts.append(part)
            if (memory := _memory(part)) is not None:
                self._memory.setdefault(memory, []).append(datum)
        if isinstance(value, np.ndarray) and _owner(value) is not value:
            datum.parts.append(_owner(value))  # the view may go; what it changed stays changed
        return datum

    def file(self, path: str, access: Access, parameter: str, function: str) -> Datum:
        """The datum that a file or directory is.

        Arguments:
            path: absolute, without links.
            access: what is done with it.
            parameter, function: for errors.

        Raises:
            TaskRefused: it lies in a directory that is a datum, or is such a directory, and one of the two is changed.
            DataError: it is to be read, and is not there.
        """
        datum = self._files.get(path)
        if datum is None:
            name = f"{path} ({parameter} of {function}())"
            datum = self._files[path] = Datum(None, name)
            for above in Path(path).parents:
                self._within.setdefault(str(above), []).append(datum)
        for other in (
            *(self._files.get(str(above)) for above in Path(path).parents),
            *self._within.get(path, ()),
        ):
            if other is not None and (access.writes or other.latest is not None):
                raise TaskRefused(
                    f"{parameter} of {function}(): {path} and {other.name} lie within each other, and one of them "
                    "is changed; name one of the two only"
                )
        if access.reads and datum.read() is None:
            found = self._flow.files.adopt(path)
            if found.kind != access.kind:
                raise TaskRefused(
                    f"{parameter} of {function}(): {path} is a {found.kind}, not a {access.kind}"
                )
            datum.owner = lambda: found
        return datum

    def check(self, value: Any, parameter: str, function: str) -> None:
        """Refuses what shares memory with a datum, or is a part of one, or has one as a part.

        Arguments:
            value: no datum itself.
            parameter: its name.
            function: that is to get it.

        Raises:
            TaskRefused: says which datum.
        """
        self._check_one(value, "", parameter, function)
        for part in reachable(value):
            datum = None if type(part) is Future else self.find(part)
            if datum is not None and datum.latest is not None:
                raise TaskRefused(
                    f"{parameter} of {function}() contains the {datum.name}, which a task has changed since; "
                    "pass that as an argument of its own, or in a list, tuple or dict"
                )
            self._check_one(part, "contains a part that ", parameter, function)

    def _check_one(self, value: Any, how: str, parameter: str, function: str) -> None:
        if (held := self._parts.get(id(value))) is not None and held[0] is value:
            raise TaskRefused(
                f"{parameter} of {function}() {how}is a part of {held[1].name}, which a task changes as a whole; "
                "pass the whole, or the part that wait_on() of the whole gives"
            )
        if (memory := _memory(value)) is None:
            return
        for datum in self._memory.get(memory, ()):
            other = datum.owner()
            if other is value:
                continue
            if any(_overlap(value, each) for each in ([] if other is None else [other]) + datum.parts):
                raise TaskRefused(
                    f"{parameter} of {function}() {how}shares memory with {datum.name}, which a task changes; "
                    "pass the same array, a copy, or a view of what wait_on() gives"
                )

    def _forget(self, key: int, datum: Datum) -> None:
        self._by_id.pop(key, None)
        for part in datum.parts:
            held = self._parts.get(id(part))
            if held is not None and held[1] is datum:
                del self._parts[id(part)]

    def _sweep(self) -> None:
        """Forgets the data that nobody holds any more."""
        for key, datum in list(self._by_id.items()):
            if datum.owner() is None:
                self._forget(key, datum)
        for memory, data in list(self._memory.items()):
            left = [each for each in data if each.owner() is not None or each.parts]
            if left:
                self._memory[memory] = left
            else:
                del self._memory[memory]
        self._sweep_at = 2 * len(self._by_id) + 64

    def close_turns(self) -> None:
        """Ends all groups of tasks that may still be joined."""
        for datum in [*self._by_id.values(), *self._files.values()]:
            datum.close_turns()


def _owner(array: np.ndarray) -> Any:
    """The array at the end of a view's chain of bases: whose memory it is."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _memory(value: Any) -> int | None:
    """The same number for whatever shares memory; None for what is no array or tensor."""
    if isinstance(value, np.ndarray):
        return id(_owner(value))
    return value.untyped_storage().data_ptr() if _is_tensor(value) else None


def _overlap(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return _owner(one) is _owner(other) and np.may_share_memory(one, other)
    return _is_tensor(one) and _is_tensor(other) and _memory(one) == _memory(other)


def reachable(value: Any) -> Iterator[Any]:
    """The mutable parts of an object: items of containers, attributes, slots; not the object itself.

    Only what Python objects are made of is followed; what an extension's object holds inside is its own.
    """
    seen, stack = {id(value)}, list(_parts(value))
    while stack:
        part = stack.pop()
        if id(part) in seen or type(part) in IMMUTABLE:
            continue
        seen.add(id(part))
        if type(part) is not tuple:
            yield part
        stack.extend(_parts(part))


def _parts(value: Any) -> Iterator[Any]:
    kind = type(value)
    if kind in IMMUTABLE or kind is Future or isinstance(value, np.ndarray):
        return
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value
    if isinstance(value, type) or kind.__module__ == "builtins":
        return
    yield from getattr(value, "__dict__", {}).values()
    for above in kind.__mro__:
        slots = above.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if slot not in ("__dict__", "__weakref__") and hasattr(value, slot):
                yield getattr(value, slot)
