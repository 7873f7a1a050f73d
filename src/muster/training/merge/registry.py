"""Merge rules by name: those that come with Muster, and those of the entry-point group ``muster.merge_rules``."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, Final

from muster.errors import RefusedInput
from muster.spec.suggestion import expected_one_of
from muster.training.merge.rule import MergeRule

GROUP: Final = "muster.merge_rules"

_BUILT_IN: Final = {
    "arriving": ("VCASGD", "Downpour", "EASGD", "FedAsync", "FedBuff"),
    "rounds": (
        "FedAvg", "FedProx", "Scaffold", "FedNova", "DiLoCo", "FedAdagrad", "FedAdam", "FedYogi", "QFedAvg", "FedPlus",
    ),
    "robust": (
        "CoordinateMedian", "TrimmedMean", "Krum", "MultiKrum", "Bulyan", "GeometricMedian", "NormClipping", "Zeno",
        "ComparativeElimination",
    ),
    "personal": ("FedPer", "FedBN", "Ditto"),
}  # fmt: skip


def rules() -> dict[str, type[MergeRule]]:
    """All rules by name, sorted.

    Raises:
        RefusedInput: the package of one cannot be imported, or what it registers is no rule.
    """
    found: dict[str, type[MergeRule]] = {}
    for module, names in _BUILT_IN.items():
        for attribute in names:
            rule = getattr(importlib.import_module(f"muster.training.merge.{module}"), attribute)
            found[rule.name] = rule
    for entry in entry_points(group=GROUP):
        try:
            rule = entry.load()
        except ImportError as error:
            raise RefusedInput(
                f"merge rule {entry.name!r} comes from {entry.value}, which cannot be imported ({error}); install its package"
            ) from error
        if not (isinstance(rule, type) and issubclass(rule, MergeRule)):
            raise RefusedInput(f"merge rule {entry.name!r}: {entry.value} is no muster.merge.MergeRule")
        found[entry.name] = rule
    return dict(sorted(found.items()))


def described(rule: MergeRule) -> dict[str, Any]:
    """A rule as JSON values, from which `from_description` makes it again."""
    options = {each.name: getattr(rule, each.name) for each in dataclasses.fields(rule)}  # type: ignore[arg-type]
    return {"rule": rule.name, "options": {name: _plain(value) for name, value in options.items()}}


def from_description(told: Mapping[str, Any]) -> MergeRule:
    """A rule from what `described` says of it.

    Raises:
        RefusedInput: it cannot be made here: it comes from a package that is not installed, or has an option that is a
            function.
    """
    options = {
        name: tuple(value) if isinstance(value, list) else value for name, value in told["options"].items()
    }
    for name, value in options.items():
        if isinstance(value, dict):
            raise RefusedInput(
                f"merge rule {told['rule']}: its option {name} is {value['value']}, which was not kept"
            )
    return get(told["rule"], **options)


def _plain(value: Any) -> Any:
    """JSON values as they are, what is none by its description."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return {"value": getattr(value, "__qualname__", type(value).__name__)}


def get(name: str, **options: Any) -> MergeRule:
    """A rule with its options::

        rule = muster.merge.get("krum", f=2)

    Raises:
        RefusedInput: no such rule, no such option, or a value that makes no sense; says what would be right.
    """
    known = rules()
    if name not in known:
        raise RefusedInput(f"merge rule: no rule {name!r}; {expected_one_of(name, known)}")
    rule = known[name]
    fields = {each.name: each for each in dataclasses.fields(rule)}  # type: ignore[arg-type] # rules are dataclasses
    for option in options:
        if option not in fields:
            raise RefusedInput(f"merge rule {name}: no option {option!r}; {expected_one_of(option, fields)}")
    for each in fields.values():
        required = each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
        if required and each.name not in options:
            raise RefusedInput(f"merge rule {name}: give {each.name}; it has no default")
    return rule(**options)
