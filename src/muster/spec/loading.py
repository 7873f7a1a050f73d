"""From a job file, the environment and ``--set`` to a `Job`.

Later wins: the file, then the environment's ``MUSTER_SET_<PART>__<KEY>``, then ``--set part.key=value``. All
three are YAML values and validated alike; a message names the one that a value came from.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from muster.errors import JobError
from muster.spec.job import Job
from muster.spec.parsing import Origin, parse_job
from muster.spec.suggestion import nearest
from muster.spec.yaml_reading import LARGEST_BYTES, KeyPath, read_yaml, readable_key

ENVIRONMENT_PREFIX: Final = "MUSTER_SET_"


def load_job(
    path: str | os.PathLike[str],
    overrides: Iterable[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Job:
    """Reads and validates a job file; imports the application's module, starts nothing.

    Arguments:
        path: the job file.
        overrides: ``key.path=value`` texts, as given to ``--set``.
        environ: the environment to take ``MUSTER_SET_*`` from; by default that of this process. Pass ``{}``
            to read a resolved job back exactly.

    Raises:
        JobError: names file, line, key path, what was found and what would be right.
    """
    path = Path(path)
    content, origin = _gather(path, overrides, os.environ if environ is None else environ)
    return parse_job(content, source=str(path), origin=origin, default_name=_name_of(path))


@contextmanager
def located(
    path: str | os.PathLike[str],
    overrides: Iterable[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """Names the file and line in a `JobError` that an application or a preflight check raises inside.

    Those know the key that is wrong, not where it stands. Arguments as for `load_job`.

    Raises:
        JobError: as raised inside, with its source.
    """
    try:
        yield
    except JobError as error:
        if error.source != "job" or not error.key:
            raise
        _, origin = _gather(Path(path), overrides, os.environ if environ is None else environ)
        source, line = origin(tuple(error.key.split(".")))
        raise JobError(
            error.found, mend=error.mend, key=error.key, source=source, line=line
        ) from error.__cause__


def _gather(path: Path, overrides: Iterable[str], environ: Mapping[str, str]) -> tuple[Any, Origin]:
    """The merged data, and where each of its keys came from."""
    document = read_yaml(_read(path), str(path))
    content = {} if document.content is None else document.content
    origins: dict[KeyPath, tuple[str, int | None]] = {
        place: (str(path), line) for place, line in document.lines.items()
    }
    settings = [*_from_environment(environ), *map(_from_option, overrides)]
    for source, keys, text in settings:
        try:
            value = read_yaml(text.encode("utf-8", "surrogatepass"), source).content
        except JobError as error:  # its line says nothing here; its key does
            key = readable_key(keys) + (f".{error.key}" if error.key else "")
            raise JobError(error.found, mend=error.mend, key=key, source=source) from error.__cause__
        _set(content, origins, keys, value, source)
    if document.content is None and not settings:
        content = None  # for the message that says so

    def origin(place: KeyPath) -> tuple[str, int | None]:
        for depth in range(len(place), 0, -1):
            if place[:depth] in origins:
                return origins[place[:depth]]
        below = next(
            (where for known, where in origins.items() if place and known[: len(place)] == place), None
        )
        return below or (str(path), 1)

    return content, origin


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(LARGEST_BYTES + 1)
    except FileNotFoundError:
        neighbours = [one.name for one in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        guess = nearest(path.name, neighbours)
        mend = (
            f"did you mean {path.parent / guess}?" if guess else "`muster init superres > my.yaml` writes one"
        )
        raise JobError("no such file", mend=mend, source=str(path)) from None
    except IsADirectoryError:
        raise JobError("is a folder", mend="name the job file in it", source=str(path)) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise JobError(
            f"cannot be read ({reason})", mend="name a readable job file", source=str(path)
        ) from None


def _name_of(path: Path) -> str:
    """The file's name as a job's name, or nothing if too little of it is left."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._")[:64]


def _from_environment(environ: Mapping[str, str]) -> list[tuple[str, KeyPath, str]]:
    found: list[tuple[str, KeyPath, str]] = []
    for name in sorted(environ):
        if name.startswith(ENVIRONMENT_PREFIX):
            keys = tuple(name[len(ENVIRONMENT_PREFIX) :].lower().split("__"))
            if not all(re.fullmatch("[a-z0-9_]+", key) for key in keys):
                mend = f"write {ENVIRONMENT_PREFIX}HOW__RANKS for how.ranks"
                raise JobError("names no key", mend=mend, source=_printable(name))
            found.append((name, keys, environ[name]))
    return found


def _printable(text: str) -> str:
    return "".join(sign if sign.isprintable() else "�" for sign in text[:100])


def _from_option(text: str) -> tuple[str, KeyPath, str]:
    key, sign, value = text.partition("=")
    keys = tuple(part.strip() for part in key.split("."))
    if not sign or not all(keys):
        raise JobError(
            f"found {text[:60]!r}", mend="write key=value, such as --set how.ranks=4", source="--set"
        )
    return "--set", keys, value


def _set(
    content: Any, origins: dict[KeyPath, tuple[str, int | None]], keys: KeyPath, value: Any, source: str
) -> None:
    """Puts a value at a key path, and records where it came from."""
    place = content
    for depth, key in enumerate(keys[:-1], start=1):
        if not isinstance(place, dict):
            break
        if place.get(key) is None:
            place[key] = {}
            origins[keys[:depth]] = (source, None)
        place = place[key]
    if not isinstance(place, dict):
        raise JobError(
            f"there is no key {readable_key(keys)} to set",
            mend="name a key below what, how or where",
            key=readable_key(keys),
            source=source,
        )
    for known in [known for known in origins if known[: len(keys)] == keys]:
        del origins[known]
    place[keys[-1]] = value
    origins[keys] = (source, None)
