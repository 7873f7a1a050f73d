"""A commented job file to start from, written from the models' own descriptions."""

from __future__ import annotations

import re
import textwrap
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from muster.spec.applications import full_application_name, load_application
from muster.spec.job import SHAPES, Job
from muster.spec.where import Where
from muster.spec.wording import describe, describe_type, section_of
from muster.spec.writing import flow

_WIDTH = 100
_OF_GANGS = ("address", "min_ranks", "max_ranks", "cpus_per_rank", "gpus_per_rank", "memory_per_rank")


def template(app: str, shape: str = "gang") -> str:
    """A commented job file for an application; it loads as it stands.

    Keys that most jobs set are live; the others are commented out and show their defaults.

    Arguments:
        app: the application, in full or by the last part of its name.
        shape: the shape of parallel work.

    Raises:
        JobError: no application has that name.
    """
    name = full_application_name(app)
    fixed = {"app": name, "shape": shape}
    lines = [
        f"# A job for {name}: what to run, how to spread it, where.",
        "# `muster check FILE` validates it, `muster run FILE` runs it; every key: docs/job-file.md.",
        "# A line that is commented out shows a default, or an example where there is none.",
        "",
        *_comment(describe(Job.model_fields["name"]), ""),
        f"name: {name.rsplit('.', 1)[-1]}",
    ]
    for part, model in (("what", load_application(name).What), ("how", SHAPES[shape]), ("where", Where)):
        lines += ["", *_comment(describe(Job.model_fields[part]), ""), f"{part}:"]
        left_out = _OF_GANGS if part == "where" and shape != "gang" else ()
        lines += _section(model, "  ", fixed, everything=part == "what", left_out=left_out)
    return "\n".join(lines) + "\n"


def _section(
    model: type[BaseModel],
    indent: str,
    fixed: dict[str, str],
    *,
    everything: bool,
    left_out: tuple[str, ...] = (),
) -> list[str]:
    """A section's lines; live are required keys, those with examples, and with ``everything`` all defaults."""
    lines: list[str] = []
    for key, field in model.model_fields.items():
        if key in left_out:
            continue
        default = None if field.is_required() else _plain(field, field.get_default(call_default_factory=True))
        inner = section_of(field.annotation)
        lines += _comment(describe(field), indent)
        if inner is not None and (default is not None or field.is_required()):
            body = [f"{key}:", *_section(inner, "  ", {}, everything=True)]
            body = [line for line in body if not line.lstrip().startswith("#")] if not everything else body
            lines += [f"{indent}{'' if everything else '# '}{line}" for line in body]
            continue
        value: Any
        if key in fixed:
            value, live = fixed[key], True
        elif everything:
            value, live = default, default is not None or field.is_required()
        else:
            value, live = None, bool(field.examples) or field.is_required()
        if value is None:
            value = field.examples[0] if field.examples else default
        if value is None and field.is_required():
            lines.append(f"{indent}{key}:  # required: {describe_type(field)}")
            continue
        lines.append(f"{indent}{'' if live else '# '}{key}: {flow(value)}")
    return lines


def _plain(field: FieldInfo, value: Any) -> Any:
    if value is None or value is PydanticUndefined:
        return None
    return TypeAdapter(field.annotation or Any).dump_python(value, mode="json")


def _comment(text: str, indent: str) -> list[str]:
    text = re.sub("`+", "", text)
    return textwrap.wrap(
        text, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ", break_on_hyphens=False
    )
