"""Random programs for the tests of flows, and what plain sequential Python makes of them."""

from __future__ import annotations

import copy
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from muster.flow import COMMUTATIVE, IN_DELETE, INOUT, OUT, Collection, task, wait_on


@dataclass
class Box:
    """Something that tasks change: an array, a list that grows, a count."""

    array: np.ndarray
    seen: list[int] = field(default_factory=list)
    total: int = 0

    def digest(self) -> int:
        return zlib.crc32(repr((self.array.tolist(), self.seen, self.total)).encode()) & 0xFFFF


def combine(*values: Any) -> int:
    return sum((place + 1) * _number(value) for place, value in enumerate(values)) % 10_007


def _number(value: Any) -> int:
    if isinstance(value, Box):
        return value.digest()
    if isinstance(value, list | tuple):
        return combine(*value)
    if isinstance(value, dict):
        return combine(*value.values())
    return int(value)


def advance(box: Box, step: int) -> int:
    box.array += step
    box.seen.append(step)
    return box.digest()


def mix(one: Box, other: Box) -> int:
    one.array += other.array
    other.seen.append(len(one.seen))
    one.total += other.total
    return combine(one, other)


def add(box: Box, number: int) -> None:
    box.total += number


def shift_all(boxes: list[Box], step: int) -> int:
    for place, box in enumerate(boxes):
        box.array -= step + place
    return combine(*boxes)


def pair(box: Box, number: int) -> tuple[int, int]:
    return combine(box, number), number % 7


def clear(box: Box, number: int) -> None:
    box.array = np.full(3, number)
    box.seen = [number]
    box.total = 0


def last_of(box: Box) -> int:
    return box.digest()


TASKS = {
    "combine": task(combine),
    "advance": task(box=INOUT)(advance),
    "mix": task(one=INOUT, other=INOUT)(mix),
    "add": task(box=COMMUTATIVE)(add),
    "shift_all": task(boxes=Collection(INOUT))(shift_all),
    "pair": task(returns=2)(pair),
    "clear": task(box=OUT)(clear),
    "last_of": task(box=IN_DELETE)(last_of),
}
PLAIN = {
    "combine": combine,
    "advance": advance,
    "mix": mix,
    "add": add,
    "shift_all": shift_all,
    "pair": pair,
    "clear": clear,
    "last_of": last_of,
}

BOXES = 4
Step = tuple[str, tuple[int, ...]]

_box = st.integers(0, BOXES - 1)
_any = st.integers(0, 1000)
steps: st.SearchStrategy[list[Step]] = st.lists(
    st.one_of(
        st.tuples(st.just("combine"), st.tuples(_any, _any, _box)),
        st.tuples(st.just("advance"), st.tuples(_box, _any)),
        st.tuples(st.just("mix"), st.tuples(_box, _box)),
        st.tuples(st.just("add"), st.tuples(_box, _any)),
        st.tuples(st.just("shift_all"), st.tuples(_box, _box, _any)),
        st.tuples(st.just("nested"), st.tuples(_any, _box, _box)),
        st.tuples(st.just("pair"), st.tuples(_box, _any)),
        st.tuples(st.just("clear"), st.tuples(_box, _any)),
        st.tuples(st.just("wait"), st.tuples(_box)),
    ),
    min_size=1,
    max_size=25,
)


def run(program: list[Step], functions: dict[str, Any]) -> tuple[list[Any], list[Box]]:
    """Runs a program with tasks or with the plain functions; they are called alike.

    Returns:
        all values that came back, and the boxes as they are at the end.
    """
    tasks = functions is TASKS
    boxes = [Box(np.arange(3) + place) for place in range(BOXES)]
    untouched = copy.deepcopy(boxes)
    results: list[Any] = [1]

    def number(choice: int) -> Any:
        return results[choice % len(results)]

    for name, choices in program:
        if name == "combine":
            results.append(functions[name](number(choices[0]), number(choices[1]), boxes[choices[2]]))
        elif name == "advance" or name == "add" or name == "clear":
            value = functions[name](boxes[choices[0]], number(choices[1]))
            if name == "advance":
                results.append(value)
        elif name == "mix":
            results.append(functions[name](boxes[choices[0]], boxes[choices[1]]))
        elif name == "shift_all":
            chosen = [boxes[each] for each in sorted(set(choices[:2]))]
            results.append(functions[name](chosen, number(choices[2])))
        elif name == "nested":
            value = {
                "a": [boxes[choices[1]], number(choices[0])],
                "b": (number(choices[0]), boxes[choices[2]]),
            }
            results.append(functions["combine"](value, 5))
        elif name == "pair":
            results.extend(functions[name](boxes[choices[0]], number(choices[1])))
        elif name == "wait" and tasks:
            wait_on(boxes[choices[0]])
    if tasks:
        at_the_end = [wait_on(box) for box in boxes]
        assert [box.digest() for box in boxes] == [box.digest() for box in untouched]
        return wait_on(results), at_the_end
    return results, boxes
