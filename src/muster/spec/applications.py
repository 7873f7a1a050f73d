"""Applications, found by their entry points."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from muster.errors import JobError
from muster.spec.suggestion import expected_one_of
from muster.spec.what import What

GROUP: Final = "muster.applications"


def application_names() -> list[str]:
    """The names of all installed applications, sorted; imports none of them."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def full_application_name(name: str) -> str:
    """The full name of an application given in full or by its last part: ``superres`` is ``vision.superres``.

    Raises:
        JobError: no application, or more than one, has that name.
    """
    names = application_names()
    if name in names:
        return name
    matches = [full for full in names if full.rsplit(".", 1)[-1] == name]
    if len(matches) == 1:
        return matches[0]
    raise _unknown(name, matches or names)


def load_application(name: str) -> type[Any]:
    """The class of an application, a subclass of `muster.training.Application`.

    Arguments:
        name: the name of its entry point in the group ``muster.applications``.

    Raises:
        JobError: there is none of that name, it cannot be imported, or it is not an application.
    """
    entries = list({entry.value: entry for entry in entry_points(group=GROUP, name=name)}.values())
    if not entries:
        raise _unknown(name, application_names())
    if len(entries) > 1:
        packages = " and ".join(sorted(_package(entry) for entry in entries))
        raise JobError(f"{name!r} is registered by {packages}", mend="uninstall one of them", key="what.app")
    entry = entries[0]
    try:
        application = entry.load()
    except Exception as error:  # whatever a package's import raises; it is chained, so nothing is lost
        raise JobError(
            f"{name!r} of the package {_package(entry)} cannot be imported ({type(error).__name__}: {error})",
            mend=f"mend or reinstall {_package(entry)}",
            key="what.app",
        ) from error
    model = getattr(application, "What", None)
    if not (isinstance(application, type) and isinstance(model, type) and issubclass(model, What)):
        raise JobError(
            f"{name!r} of the package {_package(entry)} is no application",
            mend=f"make {entry.value} a class with a 'What' that derives from muster.spec.What",
            key="what.app",
        )
    return application


def _unknown(name: str, known: list[str]) -> JobError:
    return JobError(
        f"no application {name!r} is installed", mend=expected_one_of(name, known), key="what.app"
    )


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.module
