"""What a key wants, in words, from its model: for messages, templates and the reference page."""

from __future__ import annotations

import json
import types
from enum import Enum
from pathlib import Path
from typing import Any, Final, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from muster.spec.values import Duration, Interval, Size

_NOUNS: Final[dict[Any, str]] = {
    int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path",
    Duration: Duration.expected, Size: Size.expected, Interval: Interval.expected,
}  # fmt: skip


def summary(part: str) -> str:
    """One of the parts of a job in a few words."""
    return {
        "what": "a mapping with the application and its data, such as 'what: {app: vision.superres}'",
        "how": "a mapping with the shape and the recipe, such as 'how: {ranks: 2, steps: 600, batch: 16}'",
        "where": "a mapping with the machines, such as 'where: {engine: embedded}'",
    }[part]


def shown(value: Any) -> str:
    """A value as it would stand in a job file, cut to a readable length."""
    if value is None:
        return "nothing"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = text if len(text) <= 60 else text[:59] + "…"
    return repr(text) if isinstance(value, str) else text


def model_at(model: type[BaseModel], loc: tuple[str | int, ...]) -> type[BaseModel] | None:
    """The section that a pydantic location leads to, or None where the way is not a plain one."""
    current: Any = model
    for part in loc:
        field = current.model_fields.get(part) if isinstance(part, str) else None
        current = section_of(field.annotation) if field is not None else None
        if current is None:
            return None
    return current


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model in an annotation such as ``Optimizer`` or ``Optimizer | None``."""
    for candidate in _members(annotation):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def known_keys(model: type[BaseModel] | None) -> tuple[str, ...]:
    return tuple(model.model_fields) if model is not None else ()


def field_at(model: type[BaseModel], loc: tuple[str | int, ...]) -> FieldInfo | None:
    """The field that a pydantic location leads to; its tail may name an item or the branch of a union."""
    for depth in range(len(loc), 0, -1):
        parent, name = model_at(model, loc[: depth - 1]), loc[depth - 1]
        if parent is not None and isinstance(name, str) and name in parent.model_fields:
            return parent.model_fields[name]
    return None


def expectation(model: type[BaseModel], loc: tuple[str | int, ...]) -> str:
    """What the key at a location wants: ``a whole number from 1 to 4096``; empty if that is not plain."""
    field = field_at(model, loc)
    return describe_type(field) if field is not None else ""


def describe_type(field: FieldInfo) -> str:
    """The type and range of a field in words."""
    names = [_noun(member) for member in _members(field.annotation) if member is not type(None)]
    text = " or ".join(dict.fromkeys(names))
    return f"{text}{_range(field.metadata)}"


def describe(field: FieldInfo) -> str:
    """The meaning of a field, on one line."""
    return " ".join((field.description or "").split())


def _members(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) in (Union, types.UnionType):
        return get_args(annotation)
    return (annotation,)


def _noun(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return "one of " + ", ".join(str(choice.value) for choice in annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a mapping with the keys {', '.join(annotation.model_fields)}"
    if get_origin(annotation) in (list, tuple, set, frozenset):
        items = [item for item in get_args(annotation) if item is not Ellipsis]
        nouns = dict.fromkeys(_noun(item) for item in items)
        plural = " or ".join(
            f"{noun[2:]}s" if noun.startswith("a ") else f"values ({noun})" for noun in nouns
        )
        counted = get_origin(annotation) is tuple and Ellipsis not in get_args(annotation)
        return f"a list of {f'{len(items)} ' if counted else ''}{plural}"
    if get_origin(annotation) is dict:
        return "a mapping"
    return _NOUNS.get(annotation, getattr(annotation, "__name__", "a value"))


def _range(metadata: list[Any]) -> str:
    least = next((f"from {_number(m.ge)}" for m in metadata if isinstance(m, Ge)), "")
    least = least or next((f"above {_number(m.gt)}" for m in metadata if isinstance(m, Gt)), "")
    most = next((f"to {_number(m.le)}" for m in metadata if isinstance(m, Le)), "")
    most = most or next((f"below {_number(m.lt)}" for m in metadata if isinstance(m, Lt)), "")
    shortest = next((f"of at least {m.min_length}" for m in metadata if isinstance(m, MinLen)), "")
    longest = next((f"of at most {m.max_length}" for m in metadata if isinstance(m, MaxLen)), "")
    if least and not most:
        least = least.replace("from", "of at least")
    if most and not least:
        most = most.replace("to ", "of at most ")
    if least and most.startswith("below"):
        most = f"to {most}"
    parts = [part for part in (least, most) if part] or [
        part for part in (shortest, longest) if part and part != "of at least 1"
    ]
    return " " + " ".join(parts) if parts else ""


def _number(value: Any) -> str:
    """Powers of two are what the largest ones are; written out they say nothing."""
    if isinstance(value, int) and value >= 2**31 and value & (value - 1) == 0:
        return f"2^{value.bit_length() - 1}"
    return str(value)
