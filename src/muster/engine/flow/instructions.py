"""What the instructions of a function are, whatever the lines they were written on.

Comments, formatting and docstrings make no difference, and neither does what the interpreter has specialised meanwhile.
"""

from __future__ import annotations

import dis
import hashlib
import inspect
import re
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from muster.engine.flow.value_identity import DIGEST_BYTES, encoding

_MOST: Final = 4096  # code objects that are kept
Uses = list[tuple[str, int]]  # by what name, which


def text_digest(content: str | bytes) -> str:
    raw = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return hashlib.blake2b(raw, digest_size=DIGEST_BYTES).hexdigest()


@dataclass(frozen=True)
class Instructions:
    """What a code object does, and the names in it and in the functions within it.

    Arguments:
        digest: of the instructions.
        loads: names looked up in the module.
        attributes: names looked up in objects.
        imports: level, module, and what is wanted from it.
    """

    digest: str
    loads: tuple[str, ...]
    attributes: tuple[str, ...]
    imports: tuple[tuple[int, str, tuple[str, ...]], ...]


_SILENT: Final = frozenset({"NOP", "NOT_TAKEN", "EXTENDED_ARG", "CACHE"})
_GLOBAL: Final = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_LAST: Final = frozenset({"RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE", "INTERPRETER_EXIT"})
_PASSED: Final = frozenset({"JUMP", "JUMP_NO_INTERRUPT"})
_JUMPS: Final = frozenset(dis.hasjrel) | frozenset(dis.hasjabs)
_DIRECTION: Final = re.compile("_FORWARD|_BACKWARD")
_PAIR: Final = re.compile(
    "(LOAD|STORE)_FAST(?:_BORROW)?_(LOAD|STORE)_FAST(?:_BORROW)?"
)  # two instructions in one
_ASKED: Final = re.compile("POP_JUMP_IF_(TRUE|FALSE|NONE|NOT_NONE)")
_OPPOSITE: Final = {"TRUE": "FALSE", "FALSE": "TRUE", "NONE": "NOT_NONE", "NOT_NONE": "NONE"}
# Of the body of a class within a function: text, and lines.
_TOLD: Final = frozenset({"__doc__", "__firstlineno__", "__static_attributes__"})
_BEHAVIOUR: Final = (
    inspect.CO_VARARGS
    | inspect.CO_VARKEYWORDS
    | inspect.CO_GENERATOR
    | inspect.CO_COROUTINE
    | inspect.CO_ITERABLE_COROUTINE
    | inspect.CO_ASYNC_GENERATOR
)
_texts: dict[int, tuple[types.CodeType, Instructions]] = {}


def read_instructions(code: types.CodeType) -> Instructions:
    """Reads a code object, without docstrings and what the interpreter has specialised meanwhile.

    The compiler lays instructions out, joins and copies them according to the lines that they are on. So what counts is
    the graph of which instruction can follow which, up to bisimulation, and not their places.
    """
    held = _texts.get(id(code))
    if held is not None:
        return held[1]
    steps, places = _steps(code)
    loads: dict[str, None] = {}
    attributes: set[str] = set()
    imports: dict[tuple[int, str, tuple[str, ...]], None] = {}
    for place, (name, found, _) in enumerate(steps):
        if isinstance(found, types.CodeType):
            within = read_instructions(found)
            loads |= dict.fromkeys(within.loads)
            attributes.update(within.attributes)
            imports |= dict.fromkeys(within.imports)
        elif name == "IMPORT_NAME":
            imports[steps[place - 2][1], found, steps[place - 1][1] or ()] = None
        elif name in _GLOBAL:
            loads[found] = None
        elif name in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "IMPORT_FROM"):
            attributes.add(found)
    arguments = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & inspect.CO_VARARGS)
    arguments += bool(code.co_flags & inspect.CO_VARKEYWORDS)
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & _BEHAVIOUR)
    texts, following = _flow(code, steps, places)
    texts.append(repr((counts, code.co_varnames[:arguments])))
    following.append([("begins", _passed(0, steps))])
    digest = graph_digest(texts, following, root=len(steps))
    found = Instructions(digest, tuple(loads), tuple(sorted(attributes)), tuple(imports))
    if len(_texts) >= _MOST:
        _texts.clear()
    _texts[id(code)] = (code, found)
    return found


_Step = tuple[str, Any, int | None]  # name, argument, and where it jumps


def _steps(code: types.CodeType) -> tuple[list[_Step], dict[int, int]]:
    """The instructions that count, and by offset the place among them of the first from there on."""
    all_of_it = list(dis.get_instructions(code))
    steps: list[_Step] = []
    places: dict[int, int] = {}
    jumps: list[tuple[int, int]] = []
    told = False
    for step, after in zip(all_of_it, [*all_of_it[1:], None], strict=True):
        places[step.offset] = len(steps)
        stores = after is not None and after.opname == "STORE_NAME" and after.argval in _TOLD
        if not (told or stores or step.opname in _SILENT):
            if (pair := _PAIR.fullmatch(step.opname)) is not None:
                steps.extend(
                    (f"{kind}_FAST", each, None)
                    for kind, each in zip(pair.groups(), step.argval, strict=True)
                )
            elif step.opcode in _JUMPS:
                jumps.append((len(steps), step.argval))
                steps.append((_DIRECTION.sub("", step.opname), None, None))
            else:
                named = step.opcode in _NAMED
                steps.append((step.opname.replace("_BORROW", ""), step.argval if named else step.arg, None))
        told = stores and not told
    for place, offset in jumps:
        steps[place] = (steps[place][0], None, places[offset])
    return steps, places


_NAMED: Final = frozenset([*dis.hasconst, *dis.hasname, *dis.haslocal, *dis.hasfree, *dis.hascompare])


def _flow(code: types.CodeType, steps: list[_Step], places: dict[int, int]) -> tuple[list[str], list[Uses]]:
    """The text of each instruction, and which can follow it: by itself, by a jump, by an exception."""
    texts: list[str] = []
    following: list[Uses] = []
    for place, (name, found, to) in enumerate(steps):
        after = _passed(place + 1, steps)
        if to is None:
            texts.append(f"{name} {_text(found)}")
            following.append([] if name in _LAST else [("then", after)])
            continue
        name, to = _asked_again(name, _passed(to, steps), steps)
        if (asked := _ASKED.fullmatch(name)) is not None:
            texts.append("POP_JUMP_IF")
            following.append(sorted([(asked[1], to), (_OPPOSITE[asked[1]], after)]))
        else:
            texts.append(name)
            following.append([("to", to), ("then", after)])
    for entry in dis.Bytecode(code).exception_entries:  # type: ignore[attr-defined]  # not in typeshed
        to = _passed(places[entry.target], steps)
        for place in range(places[entry.start], places.get(entry.end, len(steps))):
            following[place].append((f"raises {entry.depth} {entry.lasti}", to))
    return texts, following


def _passed(place: int, steps: list[_Step]) -> int:
    """The place where one ends up that is to go on from there: not at a mere jump, unless it is an endless one."""
    for _ in steps:
        if place >= len(steps) or steps[place][0] not in _PASSED:
            break
        place = steps[place][2] or 0
    return min(place, len(steps) - 1)


def _asked_again(name: str, to: int, steps: list[_Step]) -> tuple[str, int]:
    """In Python 3.11 a jump that keeps the value that it asked may lead to one that asks that value again."""
    while name.endswith("_OR_POP"):
        asked = name.removesuffix("_OR_POP").removeprefix("JUMP_")
        after, _, further = steps[to]
        if further is None or not after.endswith(("IF_TRUE", "IF_FALSE", "_OR_POP")):
            break
        if not after.endswith(f"{asked}_OR_POP"):
            name = f"POP_JUMP_{asked}"
        to = _passed(further if asked in after else to + 1, steps)
    return name, to


def _text(found: Any) -> str:
    """An instruction's argument: of a constant its digest."""
    if isinstance(found, types.CodeType):
        return read_instructions(found).digest
    if found is None or type(found) in (int, bool, str):
        return repr(found)
    return text_digest(encoding(found, "a constant", lambda _: b"", lenient=True))


def graph_digest(own: Sequence[str], uses: Sequence[Uses], root: int = 0) -> str:
    """The digest of what can be told by walking a graph from its root; not of how it is numbered.

    Arguments:
        own: the text of each node.
        uses: the edges that leave it.
        root: where it begins.
    """
    first: dict[Any, int] = {}
    kinds = [
        first.setdefault((text, tuple(name for name, _ in edges)), len(first))
        for text, edges in zip(own, uses, strict=True)
    ]
    count = len(first)
    while True:  # nodes of one kind become several, as long as their edges lead to different kinds
        finer: dict[Any, int] = {}
        kinds = [
            finer.setdefault((kind, *(kinds[to] for _, to in edges)), len(finer))
            for kind, edges in zip(kinds, uses, strict=True)
        ]
        if len(finer) == count:
            break
        count = len(finer)
    numbers = {kinds[root]: 0}
    reached = [root]
    lines = []
    for node in reached:  # which grows
        for _, to in uses[node]:
            if kinds[to] not in numbers:
                numbers[kinds[to]] = len(reached)
                reached.append(to)
        lines.append(repr((own[node], [(name, numbers[kinds[to]]) for name, to in uses[node]])))
    return text_digest("\n".join(lines))
