"""What a function's code is: a digest of all that it does, the same in every process until somebody edits it.

The code of a task is its own instructions and those of all that they name: helpers, classes with their methods, the
values of globals, defaults and closures; of installed packages and of Python only the version. Each of these is a
*part* with a digest of its own, so that a person can be told which one has changed. The parts, and which uses which by
what name, make a graph; the digest of the whole is that of the graph up to bisimulation (refinement of partitions;
Paige and Tarjan, SIAM J. Comput. 16, 1987). So it does not depend on names of modules, and a script has the same
identity whether it is run or imported.

Instructions are compared, not text: comments, formatting and docstrings make no difference, and a function that was
typed at a prompt has an identity too. What cannot be seen in instructions is not followed: ``getattr(module, name)``,
files, the environment. A value without content, such as a lock, counts as its type. A global that is bound anew is
noticed at once; one that is changed in place counts as it was when the function was first asked about. Muster itself
counts by its version, except its applications.
"""

from __future__ import annotations

import builtins
import enum
import functools
import importlib.util
import logging
import types
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from muster.engine.flow.code_owner import PYTHON, imported, owner, package_of, readable, version
from muster.engine.flow.instructions import graph_digest, read_instructions, text_digest
from muster.engine.flow.value_identity import encoding, is_code
from muster.errors import Undigestible

_MOST: Final = 4096  # functions whose identities are kept
_GONE: Final = object()


@dataclass(frozen=True)
class CodeIdentity:
    """What a function's code is.

    Arguments:
        digest: of the whole, 40 hexadecimal digits.
        parts: by a name for people, such as ``helper tasks.flux``: the digest of that part by itself; of a package its
            version.
    """

    digest: str
    parts: Mapping[str, str]


def code_identity(function: Callable[..., Any]) -> CodeIdentity:
    """The identity of a function, a class or another callable.

    Ask when the function is called first, not when it is defined: what it names must be there by then. Identities of
    functions and classes are kept, and checked against what they were made from: as long as all names mean the same
    objects, and all functions have the same code objects, they stay. Those of bound methods, partials and other objects
    are made anew each time, since their content may change.
    """
    held = _held.get(id(function))
    if held is not None and held.of() is function and held.holds():
        return held.identity
    walk = _Walk(function)
    identity = walk.identity()
    if isinstance(function, types.FunctionType | type):
        if len(_held) >= _MOST:
            _held.clear()
        _held[id(function)] = _Held(
            weakref.ref(function),
            identity,
            tuple(walk.names.values()),
            tuple(walk.functions),
            tuple(walk.cells),
        )
    return identity


def code_reference(thing: Any) -> bytes:
    """What stands for a function, class or module in a value's digest: the identity of one's own, the name of any other."""
    thing = _bare(thing)
    if isinstance(thing, types.CodeType):
        return read_instructions(thing).digest.encode()
    if isinstance(thing, types.ModuleType) or owner(_module_of(thing)):
        return _full_name(thing).encode()
    return code_identity(thing).digest.encode()


def explain(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What differs between the parts of two identities, in words; empty where all parts are the same."""
    found = []
    for name in (*(each for each in now if each in before), *(each for each in now if each not in before)):
        if name not in before:
            found.append(f"{name} is used now")
        elif before[name] != now[name]:
            versions = f" from {before[name]} to {now[name]}" if _is_version(name) else ""
            found.append(f"{name} changed{versions}")
    return found + [f"{name} is not used any more" for name in before if name not in now]


def _is_version(name: str) -> bool:
    return name == PYTHON or name.startswith("package ")


# ---- what is kept ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Held:
    """An identity, and what it was made from: it stays as long as these are the same objects."""

    of: weakref.ref[Any]
    identity: CodeIdentity
    names: tuple[tuple[Mapping[str, Any], str, Any], ...]  # a namespace, a name, its object
    functions: tuple[tuple[types.FunctionType, Any, Any, Any], ...]  # with code, defaults, keyword defaults
    cells: tuple[tuple[types.CellType, Any], ...]

    def holds(self) -> bool:
        for space, name, value in self.names:
            if space.get(name, _GONE) is not value:
                return False
        for function, code, defaults, named in self.functions:
            if (
                function.__code__ is not code
                or function.__defaults__ is not defaults
                or function.__kwdefaults__ is not named
            ):
                return False
        for cell, value in self.cells:  # noqa: SIM110  # all() would take as long as the rest
            if _content(cell) is not value:
                return False
        return True


_held: dict[int, _Held] = {}


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing has been assigned yet
        return _GONE


# ---- the parts of a function -----------------------------------------------------------------------------------------


@dataclass
class _Part:
    name: str
    own: str = ""  # its own digest, or its version
    uses: list[tuple[str, int]] = field(default_factory=list)  # by what name, which part


class _Walk:
    """Finds all parts of a function, breadth first.

    Arguments:
        root: the function.
    """

    def __init__(self, root: Any) -> None:
        self.parts: list[_Part] = []
        self.names: dict[tuple[int, str], tuple[Mapping[str, Any], str, Any]] = {}
        self.functions: list[tuple[types.FunctionType, Any, Any, Any]] = []
        self.cells: list[tuple[types.CellType, Any]] = []
        self._numbers: dict[Any, int] = {}
        self._alive: list[Any] = []  # so that no address is used again
        self._left: deque[Callable[[], None]] = deque()
        whole = _Part(_full_name(_bare(root)) if is_code(root) else type(root).__qualname__)
        self.parts.append(whole)
        if is_code(root):
            whole.own = "" if self._is_own(root) else whole.name
            whole.uses.append(("", self._code(root)))
            if not whole.own:
                self.parts[1].name = whole.name
        else:
            whole.uses.append(("", self._value(f"object of {type(root).__qualname__}", root)))
        self._package(PYTHON)
        while self._left:
            self._left.popleft()()

    def identity(self) -> CodeIdentity:
        named: dict[str, str] = {}
        for part in self.parts[1:]:
            name, count = part.name, 1
            while name in named:
                count += 1
                name = f"{part.name} ({count})"
            named[name] = part.own
        own = [f"{part.name} {part.own}" if _is_version(part.name) else part.own for part in self.parts]
        return CodeIdentity(graph_digest(own, [part.uses for part in self.parts]), named)

    # ---- by kind -----------------------------------------------------------------------------------------------------

    def _code(self, thing: Any) -> int:
        """The number of the part that a function, a class and the like is; what it uses follows later."""
        thing = _bare(thing)
        if (known := self._numbers.get(id(thing))) is not None:
            return known
        package = owner(_module_of(thing))
        if isinstance(thing, property):
            name = next((_full_name(each) for each in (thing.fget, thing.fset) if each is not None), "")
            return self._later(thing, f"property {name}", self._property)
        if package and not _leads_home(thing):
            return self._package(package)
        if isinstance(thing, types.ModuleType):
            return self._fixed(f"module {_full_name(thing)}", "")
        if isinstance(thing, types.CodeType):
            return self._fixed(f"code {thing.co_qualname}", read_instructions(thing).digest)
        if isinstance(thing, types.FunctionType):
            if package:
                return self._later(thing, f"wrapper {_full_name(thing)}", self._foreign)
            return self._later(thing, f"helper {_full_name(thing)}", self._function)
        if isinstance(thing, type):
            return self._later(thing, f"class {_full_name(thing)}", self._class)
        return self._later(thing, f"wrapper {_full_name(thing)}", self._wrapper)

    def _is_own(self, thing: Any) -> bool:
        return not owner(_module_of(_bare(thing)))

    def _new(self, name: str, own: str = "") -> int:
        self.parts.append(_Part(name, own))
        return len(self.parts) - 1

    def _fixed(self, name: str, own: str) -> int:
        if name not in self._numbers:
            self._numbers[name] = self._new(name, own)
        return self._numbers[name]

    def _later(self, thing: Any, name: str, fill: Callable[[_Part, Any], None]) -> int:
        number = self._numbers[id(thing)] = self._new(name)
        self._alive.append(thing)
        self._left.append(lambda: fill(self.parts[number], thing))
        return number

    def _package(self, package: str) -> int:
        name = package if package == PYTHON else f"package {package}"
        return self._fixed(name, version(package) or "unknown")

    def _function(self, part: _Part, function: types.FunctionType) -> None:
        code, space = function.__code__, function.__globals__
        read = read_instructions(code)
        part.own = read.digest
        self.functions.append((function, code, function.__defaults__, function.__kwdefaults__))
        for name in read.loads:
            self._name(part, space, name, name, read.attributes, missing=not hasattr(builtins, name))
        for level, name, wanted in read.imports:
            self._import(part, space, level, name, wanted, read.attributes)
        whose = _full_name(function)
        defaults = function.__defaults__ or ()
        positional = code.co_varnames[: code.co_argcount]
        given = dict(zip(positional[len(positional) - len(defaults) :], defaults, strict=True))
        for name, value in (given | (function.__kwdefaults__ or {})).items():
            self._use(part, f"default {name}", f"default {name} of {whose}", value, ())
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            self._cell(part, name, cell, f"captured {name} of {whose}", read.attributes)
        if "__wrapped__" in function.__dict__:
            self._use(part, "wraps", f"wrapped by {whose}", function.__dict__["__wrapped__"], ())

    def _foreign(self, part: _Part, function: types.FunctionType) -> None:
        """A package's function around one of the user's own: of it count the version and what it holds."""
        part.uses.append(("is of", self._package(owner(_module_of(function)))))
        part.own = text_digest(function.__code__.co_qualname)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self._cell(part, name, cell, f"held by {part.name} as {name}", (), objects=False)
        if "__wrapped__" in function.__dict__:
            self._use(part, "wraps", f"wrapped by {part.name}", function.__dict__["__wrapped__"], ())

    def _wrapper(self, part: _Part, thing: Any) -> None:
        """An object around a function, such as a task or what `functools.lru_cache` makes."""
        kind = type(thing)
        part.own = text_digest(kind.__qualname__)
        part.uses.append(("is a", self._code(kind)))
        self._use(part, "wraps", f"wrapped by {part.name}", thing.__wrapped__, ())
        if isinstance(choices := getattr(thing, "targetoptions", None), dict):  # Numba's, such as fastmath
            self._use(part, "options", f"options of {part.name}", choices, (), objects=False)
        if not owner(_module_of(kind)):
            state = {
                name: value
                for name, value in vars(thing).items()
                if not name.startswith("__") and value is not thing.__wrapped__
            }
            self._use(part, "holds", f"held by {part.name}", state, ())

    def _property(self, part: _Part, thing: property) -> None:
        for name in ("fget", "fset", "fdel"):
            if (function := getattr(thing, name)) is not None:
                part.uses.append((name, self._code(function)))

    def _class(self, part: _Part, cls: type) -> None:
        part.uses.extend(("base", self._code(base)) for base in cls.__bases__ if base is not object)
        if type(cls) is not type:
            part.uses.append(("metaclass", self._code(type(cls))))
        data: dict[str, Any] = {}
        space = vars(cls)
        members: Mapping[str, Any] = cls.__members__ if isinstance(cls, enum.EnumMeta) else {}
        for name in sorted(space):
            value = space[name]
            if name in members or isinstance(value, types.GetSetDescriptorType | types.MemberDescriptorType):
                continue
            self.names[id(space), name] = (space, name, value)
            if is_code(value):
                part.uses.append((name, self._code(value)))
            elif name in _DATA or not (
                name.startswith("__") or (members and name.startswith("_")) or name == "_abc_impl"
            ):
                data[name] = value
        self._fill(part, (data, {name: member._value_ for name, member in members.items()}))

    # ---- by how it is reached ----------------------------------------------------------------------------------------

    def _name(
        self,
        part: _Part,
        space: Mapping[str, Any],
        name: str,
        label: str,
        attributes: Sequence[str],
        *,
        missing: bool = True,
    ) -> None:
        """What a name of a module stands for."""
        if name in _OF_MODULES:
            return
        value = space.get(name, _GONE)
        self.names[id(space), name] = (space, name, value)
        if value is not _GONE:
            key = (id(space), name)
            if isinstance(value, types.ModuleType) or is_code(value):
                self._use(part, label, "", value, attributes)
            else:
                if key not in self._numbers:
                    module = readable(space.get("__name__", "__main__"))
                    self._numbers[key] = self._value(f"global {module}.{name}", value)
                part.uses.append((label, self._numbers[key]))
        elif missing:
            part.uses.append((f"{label} is not there", 0))

    def _cell(
        self,
        part: _Part,
        name: str,
        cell: types.CellType,
        whose: str,
        attributes: Sequence[str],
        *,
        objects: bool = True,
    ) -> None:
        value = _content(cell)
        self.cells.append((cell, value))
        if value is _GONE:
            part.uses.append((f"captured {name} is not there", 0))
        else:
            self._use(part, f"captured {name}", whose, value, attributes, objects=objects)

    def _import(
        self,
        part: _Part,
        space: Mapping[str, Any],
        level: int,
        name: str,
        wanted: Sequence[str],
        attributes: Sequence[str],
    ) -> None:
        """An import within the function. The user's own modules are imported, as the function will do anyway."""
        try:
            full = importlib.util.resolve_name("." * level + name, package_of(space)) if level else name
        except ImportError:  # relative to no package
            part.uses.append((f"no module {name}", 0))
            return
        bound = [full, *(f"{full}.{one}" for one in wanted)] if wanted else [full.partition(".")[0], full]
        for each in dict.fromkeys(bound):
            if package := owner(each):
                part.uses.append((f"import {each}", self._package(package)))
                return
            if (module := imported(each)) is not None:
                self._module(part, f"import {name}", module, attributes, set())
            elif each == full:
                part.uses.append((f"no module {name}", 0))

    def _module(
        self, part: _Part, label: str, module: types.ModuleType, attributes: Sequence[str], seen: set[int]
    ) -> None:
        """A module: of the user's own, what any attribute named in the function finds there."""
        if package := owner(module.__name__):
            part.uses.append((label, self._package(package)))
            return
        seen.add(id(module))
        for name in attributes:
            value = vars(module).get(name, _GONE)
            if isinstance(value, types.ModuleType):
                if id(value) not in seen:
                    self._module(part, f"{label}.{name}", value, attributes, seen)
            elif value is not _GONE:
                self._name(part, vars(module), name, f"{label}.{name}", ())

    def _use(
        self,
        part: _Part,
        label: str,
        name: str,
        value: Any,
        attributes: Sequence[str],
        *,
        objects: bool = True,
    ) -> None:
        if isinstance(value, types.ModuleType):
            self._module(part, label, value, attributes, set())
        elif is_code(value):
            part.uses.append((label, self._code(value)))
        else:
            part.uses.append((label, self._value(name, value, objects=objects)))

    def _value(self, name: str, value: Any, *, objects: bool = True) -> int:
        number = self._new(name)
        self._fill(self.parts[number], value, objects=objects)
        return number

    def _fill(self, part: _Part, value: Any, *, objects: bool = True) -> None:
        """The content of a value is the part's own; functions and classes in it are parts that it uses, in their order."""
        met: list[tuple[str, int]] = []

        def code(thing: Any) -> bytes:
            number = self._code(thing)
            does = read_instructions(thing.__code__).digest if isinstance(thing, types.FunctionType) else ""
            met.append((f"{type(thing).__name__} {getattr(thing, '__qualname__', '')} {does}", number))
            return b"own" if self._is_own(thing) else _full_name(_bare(thing)).encode()

        if isinstance(value, logging.Logger):  # named after its module; what it is told changes no result
            part.own = "logger"
            return
        try:
            part.own = text_digest(
                encoding(value, part.name, code, references=met, lenient=True, objects=objects)
            )
        except Undigestible:
            part.own = text_digest(f"{type(value).__module__}.{type(value).__qualname__}")
            met.clear()
        part.uses.extend((f"in it {place}", number) for place, (_, number) in enumerate(met))


# Of a class's names with two underscores those that say what its objects are like; the others follow from these or are text.
_DATA: Final = frozenset({"__slots__", "__match_args__", "__pydantic_fields__", "__attrs_attrs__"})
_OF_MODULES: Final = frozenset(
    ["__name__", "__file__", "__doc__", "__package__", "__spec__", "__loader__", "__builtins__", "__path__", "__cached__"]
)  # fmt: skip


def _bare(thing: Any) -> Any:
    """The function within a static or class method or a cached property."""
    if isinstance(thing, staticmethod | classmethod):
        return _bare(thing.__func__)
    return thing.func if isinstance(thing, functools.cached_property) else thing


def _module_of(thing: Any) -> str:
    """The name of the module whose code a thing is; not where `functools.wraps` says that it comes from."""
    if isinstance(thing, types.ModuleType):
        return thing.__name__
    if isinstance(thing, types.FunctionType):
        return str(thing.__globals__.get("__name__", "__main__"))
    if not isinstance(thing, type) and "__wrapped__" in (getattr(thing, "__dict__", None) or ()):
        return type(thing).__module__
    named = getattr(thing, "__module__", None) or getattr(
        getattr(thing, "__objclass__", None), "__module__", None
    )
    return named if isinstance(named, str) else type(thing).__module__


def _full_name(thing: Any) -> str:
    if isinstance(thing, types.ModuleType):
        return readable(thing.__name__)
    name = (
        getattr(thing, "__qualname__", None) or getattr(thing, "__name__", None) or type(thing).__qualname__
    )
    module = getattr(thing, "__module__", None)
    return f"{readable(module if isinstance(module, str) else _module_of(thing))}.{name}"


def _leads_home(thing: Any, depth: int = 0) -> bool:
    """Whether a package's function or object has code of the user's own in it."""
    inside: list[Any] = []
    if isinstance(thing, types.FunctionType):
        if not owner(_module_of(thing)):
            return True
        inside = [_content(cell) for cell in thing.__closure__ or ()]
    elif isinstance(thing, type):
        return not owner(thing.__module__)
    elif isinstance(thing, list | tuple | set | frozenset):
        inside = list(thing)
    elif isinstance(thing, dict):
        inside = list(thing.values())
    if not isinstance(thing, types.ModuleType) and "__wrapped__" in (getattr(thing, "__dict__", None) or ()):
        inside.append(thing.__wrapped__)
    return depth < 8 and any(_leads_home(_bare(each), depth + 1) for each in inside)
