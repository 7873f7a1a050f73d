"""The JSON Schema agrees with the validation, as far as a schema can say it; judged by the package jsonschema."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from muster.spec import dump_job, job_schema, load_job, template
from muster.spec.yaml_reading import read_yaml

jsonschema = pytest.importorskip("jsonschema", reason="the package jsonschema judges the schema")
EXAMPLE = Path(__file__).parents[2] / "examples" / "superres.yaml"


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = job_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_it_accepts_the_example_the_template_and_a_resolved_job(validator: Any) -> None:
    for text in (EXAMPLE.read_text(), template("superres"), dump_job(load_job(EXAMPLE, environ={}))):
        assert not list(validator.iter_errors(read_yaml(text.encode(), "x").content))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("hwo",), {}),
        (("what", "app"), "vision.superes"),
        (("what", "sed"), 1),
        (("what", "seed"), -1),
        (("what", "model", "scale"), 5),
        (("what", "model", "arch"), "edsr"),
        (("how", "rnaks"), 2),
        (("how", "ranks"), "2"),
        (("how", "ranks"), True),
        (("how", "ranks"), 0),
        (("how", "shape"), "gnag"),
        (("how", "checkpoint_every"), 30),
        (("how", "checkpoint_every"), "30 minutes"),
        (("how", "optimizer"), {"name": "adma"}),
        (("how", "optimizer"), {"lr": 0}),
        (("where", "engine"), "ray"),
        (("where", "memory_per_rank"), "4 gigs"),
        (("name",), "a/b"),
    ],
)
def test_it_rejects_what_validation_rejects(validator: Any, path: tuple[str, ...], value: Any) -> None:
    content = copy.deepcopy(read_yaml(EXAMPLE.read_bytes(), "x").content)
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert list(validator.iter_errors(content))


@pytest.mark.parametrize("part", ["what", "how"])
def test_it_wants_what_and_how(validator: Any, part: str) -> None:
    content = read_yaml(EXAMPLE.read_bytes(), "x").content
    del content[part]
    assert list(validator.iter_errors(content))


def test_it_describes_the_keys_for_an_editor(validator: Any) -> None:
    definitions = validator.schema["$defs"]
    assert definitions["gang"]["properties"]["ranks"]["description"]
    assert definitions["vision.superres"]["properties"]["model"]
