"""What of a flow outlives its process: which calls are done, and what they gave.

Each call has a key as soon as it is made: its code, its arguments, and which of identical calls it is. An argument that
another task makes counts as that task's key, so the keys of a program are known before anything has run (a Merkle tree of
calls; Acar, "Self-adjusting computation", 2005, calls such a trace the dynamic dependence graph). A call whose key is on
record is not run again. What a task gave is on record before any task that needs it begins.

A datum that tasks change in any order has a record of its own, a state for each task that had its turn: what of it is on
record, and whose changes that holds, is one transaction.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from muster.engine.flow.arguments import Call, Nested, Slot, map_items, private
from muster.engine.flow.code_identity import code_identity
from muster.engine.flow.data import Turns, future_of
from muster.engine.flow.future import Future
from muster.engine.flow.journal import Entry, Journal, Key, Occurrences, Output
from muster.engine.flow.result_store import ResultStore
from muster.engine.flow.value_identity import value_digest
from muster.engine.run_folder import RunLock
from muster.errors import BlobDamaged, NotStorable, Undigestible

if TYPE_CHECKING:
    from muster.engine.flow.executor import Executor
    from muster.engine.flow.node import Node
    from muster.engine.flow.task import Task

_TURNS: Final = "in any order"


@dataclass(frozen=True)
class Found:
    """What is on record of a call.

    Arguments:
        results: what it returned.
        changed: by slot, what it changed.
    """

    results: tuple[Any, ...]
    changed: dict[int, Any]


class Record:
    """The record of one flow in a folder; the same folder goes on with it.

    Arguments:
        folder: made if it is not there.

    Raises:
        RunLocked: another live process works on it.
        DataError: its journal is damaged or of a newer format.
        CannotStore: the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(RunLock(folder))
        self._journal = self._stack.enter_context(Journal(folder))
        self._store = ResultStore(folder / "results")
        self._occurrences = Occurrences()
        self._began = time.time() - time.monotonic()
        self._unkept: set[Key] = set()
        self._damaged: set[Key] = set()  # whose results were on record, and are spoiled
        self.resumed = 0  # calls that were not run, since they are on record

    def close(self) -> None:
        """Ends; what is on record stays."""
        self._stack.close()

    def key(self, task: Task[..., Any], call: Call, parent: Node | None) -> Key | None:
        """The key of a call; None if its arguments cannot be compared with others, so that it is run each time.

        Called once for each call, in the order of the program.
        """
        above = ""
        if parent is not None:
            if parent.key is None:
                return None
            above = parent.key.name.hex()
        try:
            arguments = tuple(
                (name, self._digest(value, call, name)) for name, value in _named(task.parameters, call)
            )
        except Undigestible:
            return None
        code = code_identity(task.function).digest
        return self._occurrences.key(code, arguments, above)

    def find(self, task: Task[..., Any], call: Call, key: Key | None) -> Found | None:
        """What is on record of a call, read and compared with its digests; None if it has to be run.

        Its turns are opened on the way: they begin with what is on record of them.
        """
        turns = {index: each for index, each in call.outputs.items() if type(each) is Turns}
        for each in turns.values():
            if each.key is None and not each.unknown:
                self._open_turns(each, key)
            if key is None:
                each.unknown = True  # its changes could not be told from those on record
            else:
                each.joined.append(key.name)
        entry = None if key is None else self._journal.find(key)
        if key is None or entry is None:
            return None
        if any(key.name not in each.included for each in turns.values()):
            return None
        slots = [index for index in call.outputs if index not in turns]
        blobs = [output.blob for output in entry.outputs]
        try:
            returned = tuple([self._store.get(blob) for blob in blobs[: task.returns]])
            versions = zip(slots, blobs[task.returns :], strict=True)
            changed = {index: self._store.get(blob) for index, blob in versions}
        except BlobDamaged:
            self._damaged.add(key)
            for (
                index,
                each,
            ) in turns.items():  # its changes are in the state: only what it returned is made again
                call.inputs[index] = private(each.value)
                del call.outputs[index]
                each.left -= 1
                self._unkept.add(key)
            return None
        self.resumed += 1
        return Found(returned, changed)

    def keep(
        self,
        node: Node,
        executor: Executor,
        results: Sequence[Any],
        values: Sequence[Any],
        took_s: float | None,
    ) -> None:
        """Puts on record what a task gave; what needs it may begin then.

        Arguments:
            node: the task, which still has its turns.
            executor: that fetches values which are elsewhere.
            results: what it returned.
            values: of its inputs, as it has left them.
            took_s: its function took; None where that is the time since it was taken into work.

        Raises:
            CannotStore: the disk is full.
        """
        key = node.key
        if key is None or key in self._unkept:
            return
        if any(future.key is None for future in map(future_of, node.call.inputs) if future is not None):
            node.key = None  # it was made of what stands in for a failed task's outputs
            return
        turns = {index: each for index, each in node.call.outputs.items() if type(each) is Turns}
        if any(each.key is None or each.unknown for each in turns.values()):
            return
        now = time.time()
        states = []
        try:
            outputs = [self._put(executor.fetch(value)) for value in results]
            for index in node.call.outputs:
                if index not in turns:
                    outputs.append(self._put(executor.fetch(values[index])))
            for index, each in turns.items():
                assert each.key is not None
                state = self._put(executor.fetch(values[index]))
                place = self._place(each.key, each.place + 1)
                states.append(Entry(place, node.number, _TURNS, key.name.hex(), outputs=(state,), end=now))
        except NotStorable:
            return  # it is run again by the next start
        times = [self._began + each for each in (*node.times, time.monotonic())]
        entry = Entry(
            key,
            node.number,
            f"{node.task.__module__}.{node.task.__qualname__}",
            label=node.name,
            outputs=tuple(outputs),
            attempt=node.attempt,
            ready=times[0],
            start=times[-2],
            end=now,
            compute=times[-1] - times[-2] if took_s is None else took_s,
            reason="its stored result was damaged" if key in self._damaged else "",
            parts=code_identity(node.task.function).parts,
        )
        self._journal.commit([*states, entry])
        for each in turns.values():
            each.place += 1

    def _open_turns(self, turns: Turns, member: Key | None) -> None:
        """Gives turns a key, and the state of the last of them that is on record and whole."""
        before = turns.before
        try:
            identity = before.key if type(before) is Future else value_digest(before)
        except Undigestible:
            identity = None
        if identity is None or member is None:
            turns.unknown = True
            return
        turns.key = self._occurrences.key(_TURNS, (("before", identity),))
        found: list[Entry] = []
        while (entry := self._journal.find(self._place(turns.key, len(found) + 1))) is not None:
            found.append(entry)
        while found:
            with contextlib.suppress(BlobDamaged):
                turns.value = self._store.get(found[-1].outputs[0].blob)
                turns.started = True
                break
            found.pop()
        turns.place = len(found)
        turns.included = {bytes.fromhex(entry.label) for entry in found}

    @staticmethod
    def _place(turns: Key, place: int) -> Key:
        return Key(turns.code, turns.arguments, f"turn {place}", turns.occurrence)

    def _put(self, value: Any) -> Output:
        stored = self._store.put(value)
        return Output(stored.name, stored.name, stored.size)

    def _digest(self, value: Any, call: Call, name: str) -> str:
        if type(value) is Slot:
            return self._source(call, value.index, name)
        if type(value) is Nested:
            return value_digest(self._marked(value.content, call, name), name)
        return value_digest(value, name)

    def _marked(self, value: Any, call: Call, name: str) -> Any:
        if type(value) is Slot:
            return _Made(self._source(call, value.index, name))
        if type(value) is Nested:
            return map_items(value.content, lambda each: self._marked(each, call, name))
        return value

    def _source(self, call: Call, index: int, name: str) -> str:
        source = call.inputs[index]
        if type(source) is Turns:
            source = source.before
        if type(source) is not Future:
            return value_digest(source, name)
        if source.key is None:
            raise Undigestible(name, "made by a task that is run each time")
        return source.key


@dataclass(frozen=True)
class _Made:
    """Stands in a list or dict of the arguments for what another task makes."""

    key: str


def key_of_turns(turns: Turns) -> str | None:
    """What the version that several calls make in any order is called in other keys, once it is known which take part."""
    if turns.key is None or turns.unknown:
        return None
    together = hashlib.blake2b(b"".join([turns.key.name, *sorted(turns.joined)]), digest_size=20)
    return f"{together.hexdigest()} {_TURNS}"


def _named(parameters: Sequence[str], call: Call) -> Iterator[tuple[str, Any]]:
    for place, value in enumerate(call.args):
        yield (parameters[place] if place < len(parameters) else f"{parameters[-1]}[{place}]"), value
    yield from sorted(call.kwargs.items())
