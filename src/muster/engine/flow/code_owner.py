"""Whose code a module is: the user's own, whose instructions count, or a package's, whose version does."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import sys
import sysconfig
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

PYTHON: Final = "Python"

# Of Muster all counts by its version but what people edit to change results.
_ENGINE: Final = (
    "muster.engine",
    "muster.spec",
    "muster.errors",
    "muster.flow",
    "muster.report",
    "muster.cli",
    "muster.tuning",
)


@functools.cache
def owner(module: str) -> str:
    """The package whose version stands for a module; empty for the user's own.

    A package is what an installed distribution has brought: it lies beside its metadata, or where packages are put, and
    has a version. What was installed to be edited lies elsewhere and is one's own.
    """
    top = module.partition(".")[0]
    if top in sys.builtin_module_names:
        return PYTHON
    if module == "muster" or module.startswith(_ENGINE):
        return "muster"
    found = [(name, place) for name in (module, top) if (place := _place(name)) is not None]
    if not found:
        return PYTHON if top in sys.stdlib_module_names else ""
    name, place = found[0]
    if {"site-packages", "dist-packages"}.isdisjoint(place.parts):
        libraries = [Path(sysconfig.get_path(each)).resolve() for each in ("stdlib", "platstdlib")]
        if any(place.resolve().is_relative_to(each) for each in libraries):
            return PYTHON
        above = name.count(".") + (place.stem == "__init__")
        if above >= len(place.parents) or not any(place.parents[above].glob("*.dist-info")):
            return ""
    return top if version(top) else ""


def _place(module: str) -> Path | None:
    """The file of a module, or the folder of a package without one, whether it has been imported or not."""
    loaded = sys.modules.get(module)
    if loaded is not None:
        paths = [getattr(loaded, "__file__", None), *list(getattr(loaded, "__path__", []))[:1]]
    elif "." in module:
        return None
    else:
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError, AttributeError):
            return None
        if spec is None:
            return None
        paths = [spec.origin if spec.has_location else None, *list(spec.submodule_search_locations or [])[:1]]
    return next((Path(path).absolute() for path in paths if isinstance(path, str)), None)


@functools.cache
def version(package: str) -> str | None:
    """The version of the distribution that brings a package; several, where they share a name."""
    if package == PYTHON:
        return f"{sys.version_info.major}.{sys.version_info.minor}"
    try:
        return importlib.metadata.version(package)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        pass
    names = sorted(set(importlib.metadata.packages_distributions().get(package, ())))
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names) or None


def readable(module: str) -> str:
    """A module's name; of a script the one under which it would be imported."""
    if module not in ("__main__", "__mp_main__"):
        return module
    main = sys.modules.get(module)
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    return spec.name if spec is not None else Path(file).stem if file else "__main__"


def package_of(space: Mapping[str, Any]) -> str:
    package = space.get("__package__")
    if package is None:
        name = str(space.get("__name__", ""))
        package = name if "__path__" in space else name.rpartition(".")[0]
    return str(package)


def imported(module: str) -> types.ModuleType | None:
    try:
        return importlib.import_module(module)
    except Exception:  # whatever a module raises: the function will meet it too, if it comes that far
        return None
