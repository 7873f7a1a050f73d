"""From plain data to a `Job`: finds the classes of ``what`` and ``how`` by name and turns what pydantic
refuses into one `JobError`.

Validation is strict: a quoted number is text, ``true`` is no number, and ``2.0`` is no whole number.
(pydantic's strict mode for *JSON* is the one that still takes a list for a tuple and text for a path.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from muster.errors import JobError
from muster.spec.applications import application_names, load_application
from muster.spec.job import SHAPES, Job
from muster.spec.section import Section
from muster.spec.suggestion import expected_one_of, nearest
from muster.spec.what import What
from muster.spec.where import Where
from muster.spec.wording import describe, expectation, field_at, known_keys, model_at, shown, summary
from muster.spec.yaml_reading import KeyPath, readable_key

#: Where a value came from: its source and, if that has lines, the line.
Origin = Callable[[KeyPath], tuple[str, int | None]]

_PARTS: Final = ("name", "what", "how", "where")


def parse_job(
    content: Any, *, source: str = "job", origin: Origin | None = None, default_name: str = ""
) -> Job:
    """The job that plain data describes.

    Arguments:
        content: a mapping with ``what``, ``how`` and, if it differs from the default, ``where`` and ``name``.
        source: names the data in messages.
        origin: the source and line of a key path, where they are known better.
        default_name: the name of a job that gives none; by default the application's.

    Raises:
        JobError: names source, line, key path, what was found and what would be right.
    """
    return _Parser(content, origin or (lambda path: (source, None))).job(default_name)


class _Parser:
    def __init__(self, content: Any, origin: Origin) -> None:
        self._content, self._origin = content, origin

    def job(self, default_name: str) -> Job:
        content = self._content
        if not isinstance(content, dict):
            found = "it is empty" if content is None else f"found {_kind(content)} at the top"
            raise self._error((), found, "a job file is a mapping with the parts what, how and where")
        self._refuse_unknown((), content, _PARTS)
        models: dict[str, type[Section]] = {
            "what": self._what_model(self._part("what")),
            "how": self._how_model(self._part("how")),
            "where": Where,
        }
        if content.get("where") is None:  # also a part whose keys are all commented out
            content = {**content, "where": {}}
        elif not isinstance(content["where"], dict):
            self._part("where")
        parts: dict[str, Section] = {}
        refused: list[tuple[KeyPath, ErrorDetails, type[Section]]] = []
        for part, model in models.items():
            try:
                text = json.dumps(content[part])
                parts[part] = model.model_validate_json(text, strict=True)
            except ValidationError as error:
                refused += [
                    ((part, *details["loc"]), details, model) for details in error.errors(include_url=False)
                ]
        if refused:
            raise min((self._translate(*one) for one in refused), key=_urgency)
        name = content.get("name")
        if name is None:
            name = default_name or re.sub(r"[^A-Za-z0-9._-]+", "-", content["what"]["app"].rsplit(".", 1)[-1])
        try:
            return Job.model_validate({"name": name, **parts})
        except ValidationError as error:
            raise min(
                (self._translate(d["loc"], d, Job) for d in error.errors(include_url=False)), key=_urgency
            ) from None

    def _part(self, part: str) -> dict[str, Any]:
        if part not in self._content:
            raise self._error((), f"the part {part!r} is missing", f"add it: {summary(part)}", key=part)
        value = self._content[part]
        if not isinstance(value, dict):
            raise self._error((part,), f"found {_kind(value)}", f"expected {summary(part)}")
        return value

    def _what_model(self, what: dict[str, Any]) -> type[What]:
        if "app" not in what:
            installed = ", ".join(application_names()) or "none"
            if (guess := nearest("app", what)) is not None:
                raise self._error(("what", guess), "unknown key", "did you mean app?")
            raise self._error(
                ("what",), "is missing", f"name the application (installed: {installed})", key="what.app"
            )
        if not isinstance(what["app"], str):
            installed = ", ".join(application_names()) or "none"
            raise self._error(("what", "app"), f"found {shown(what['app'])}", f"expected one of: {installed}")
        try:
            return load_application(what["app"]).What
        except JobError as error:
            source, line = self._origin(("what", "app"))
            raise JobError(
                error.found, mend=error.mend, key=error.key, source=source, line=line
            ) from error.__cause__

    def _how_model(self, how: dict[str, Any]) -> type[Section]:
        shape = how.get("shape", "gang")
        if not isinstance(shape, str) or shape not in SHAPES:
            raise self._error(("how", "shape"), f"found {shown(shape)}", expected_one_of(shape, SHAPES))
        return SHAPES[shape]

    def _refuse_unknown(self, path: KeyPath, content: Mapping[str, Any], known: tuple[str, ...]) -> None:
        for key in content:
            if key not in known:
                raise self._error((*path, key), "unknown key", self._meant(path, key, known))

    def _meant(self, path: KeyPath, key: str, known: tuple[str, ...]) -> str:
        """The mend of an unknown key: its neighbour, its namesake in another part, or the list of keys."""
        if (guess := nearest(key, known)) is not None:
            return f"did you mean {guess}?"
        sections: list[tuple[str, type[Section]]] = [("where", Where), ("what", What)]
        sections += [("how", shape) for shape in SHAPES.values()]
        for part, model in sections:
            if key in model.model_fields and path != (part,):
                return f"did you mean {part}.{key}?"
        return f"the keys here are {', '.join(known)}"

    def _translate(self, path: KeyPath, error: ErrorDetails, model: type[BaseModel]) -> JobError:
        kind, context = error["type"], error.get("ctx", {})
        loc = error["loc"]
        real = self._existing(path)
        if kind == "refused":
            if key := context["key"]:
                path = (*real, *key.split("."))
            else:
                path = real
            return self._error(path, context["found"], context["mend"])
        if kind == "extra_forbidden":
            keys = known_keys(model_at(model, loc[:-1]))
            return self._error(path, "unknown key", self._meant(path[:-1], str(path[-1]), keys))
        if kind == "missing" and isinstance(loc[-1], int):  # a list that is too short
            return self._error(real, f"found {shown(self._at(real))}", f"expected {expectation(model, loc)}")
        if kind == "missing":
            return self._error(path, "is missing", f"add it: {expectation(model, loc)}")
        if kind == "value_error":  # a validator of a third party's, which need not know `refuse`
            return self._error(real, f"found {shown(error['input'])}", str(context["error"]))
        found = shown(error["input"])
        if kind == "literal_error":
            choices = [choice.strip("'") for choice in context["expected"].replace(" or ", ", ").split(", ")]
            return self._error(real, f"found {found}", expected_one_of(error["input"], choices))
        mend = f"expected {expectation(model, loc) or error['msg']}"
        if kind == "string_pattern_mismatch":
            field = field_at(model, loc)
            mend = f"expected {describe(field) if field is not None else error['msg']}"
        if isinstance(error["input"], str) and kind in ("int_type", "float_type", "bool_type"):
            mend += ", without quotes" if _is_plain_number(error["input"]) else ""
        return self._error(real, f"found {found}", mend)

    def _existing(self, path: KeyPath) -> KeyPath:
        """The part of a pydantic location that is in the data; the rest names branches of unions."""
        content = self._content.get(path[0])
        for depth, part in enumerate(path[1:], start=1):
            inside = (isinstance(content, dict) and part in content) or (
                isinstance(content, list) and isinstance(part, int) and part < len(content)
            )
            if not inside:
                return path[:depth]
            content = content[part]
        return path

    def _at(self, path: KeyPath) -> Any:
        content = self._content
        for part in path:
            content = content[part]
        return content

    def _error(self, path: KeyPath, found: str, mend: str, *, key: str = "") -> JobError:
        source, line = self._origin(path)
        return JobError(found, mend=mend, key=key or readable_key(path), source=source, line=line)


def _urgency(error: JobError) -> tuple[int, int]:
    """A misspelt key explains a missing one, so it is reported first; otherwise the first line is."""
    order = {"unknown key": 0, "is missing": 2}.get(error.found, 1)
    return order, error.line or 0


def _kind(value: Any) -> str:
    return {dict: "a mapping", list: "a list", type(None): "nothing"}.get(type(value), shown(value))


def _is_plain_number(text: str) -> bool:
    from muster.spec.yaml_reading import resolve_scalar

    return not isinstance(resolve_scalar(text), str)
