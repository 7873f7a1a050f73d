"""The JSON Schema of job files, for editors."""

from __future__ import annotations

import warnings
from typing import Any

from pydantic.errors import PydanticInvalidForJsonSchema

from muster.errors import JobError
from muster.spec.applications import application_names, load_application
from muster.spec.job import SHAPES, Job
from muster.spec.what import What
from muster.spec.where import Where


def job_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a job file, with the ``what`` of every installed application.

    An application that cannot be imported or described is left out with a warning.
    """
    definitions: dict[str, Any] = {}
    applications = []
    for name in application_names():
        try:
            _define(definitions, name, load_application(name).What, {"app": {"const": name}})
            applications.append(name)
        except (JobError, PydanticInvalidForJsonSchema) as error:
            warnings.warn(f"left out of the schema: {error}", stacklevel=2)
    for shape, model in SHAPES.items():
        _define(definitions, shape, model, {"shape": {"const": shape}})
    _define(definitions, "where", Where, {})
    base = What.model_json_schema()["properties"]
    job = Job.model_fields
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Muster job file",
        "type": "object",
        "additionalProperties": False,
        "required": ["what", "how"],
        "properties": {
            "name": {
                "type": "string",
                "pattern": next(m.pattern for m in job["name"].metadata if hasattr(m, "pattern")),
                "description": job["name"].description,
            },
            "what": {
                "type": "object",
                "description": job["what"].description,
                "required": ["app"],
                "properties": {"app": {**base["app"], "enum": applications}},
                "allOf": [_when("app", name, name) for name in applications],
            },
            "how": {
                "type": "object",
                "description": job["how"].description,
                "properties": {"shape": {"enum": list(SHAPES)}},
                "allOf": [_when("shape", shape, shape, default=shape == "gang") for shape in SHAPES],
            },
            "where": {"$ref": "#/$defs/where", "description": job["where"].description},
        },
        "$defs": definitions,
    }


def _define(definitions: dict[str, Any], name: str, model: type[Any], narrow: dict[str, Any]) -> None:
    """Adds a model's schema under its name, and those that it refers to below that name."""
    schema = model.model_json_schema(ref_template=f"#/$defs/{name}.{{model}}")
    for inner, definition in schema.pop("$defs", {}).items():
        definitions[f"{name}.{inner}"] = definition
    for key, constraint in narrow.items():
        schema["properties"][key] |= constraint
    definitions[name] = schema


def _when(key: str, value: str, definition: str, *, default: bool = False) -> dict[str, Any]:
    condition: dict[str, Any] = {"properties": {key: {"const": value}}}
    if not default:  # a default holds for an absent key too
        condition["required"] = [key]
    return {"if": condition, "then": {"$ref": f"#/$defs/{definition}"}}
