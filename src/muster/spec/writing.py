"""From a `Job` to a job file that loads back to an equal one."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from muster.spec.job import Job
from muster.spec.yaml_reading import resolve_scalar

_PLAIN: Final = re.compile(r"[A-Za-z0-9_~/.][A-Za-z0-9_~/.+-]*( [A-Za-z0-9_~/.+-]+)*")
_ESCAPED: Final = re.compile(r"[^\x20-\x7e\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


def dump_job(job: Job) -> str:
    """The job as YAML, every default filled in; `load_job` with an empty environment reads an equal one."""
    return "".join(_block(job.model_dump(mode="json"), 0))


def _block(section: dict[str, Any], indent: int) -> list[str]:
    lines: list[str] = []
    for key, value in section.items():
        if isinstance(value, dict) and value:
            lines += [f"{' ' * indent}{flow(key)}:\n", *_block(value, indent + 2)]
        else:
            lines.append(f"{' ' * indent}{flow(key)}: {flow(value)}\n")
    return lines


def flow(value: Any) -> str:
    """A JSON-like value on one line of YAML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{flow(key)}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(flow(item) for item in value) + "]"
    if isinstance(value, str):
        if _PLAIN.fullmatch(value) and resolve_scalar(value) == value:
            return value
        # a JSON string is a double-quoted YAML scalar, but for characters that YAML wants escaped
        return _ESCAPED.sub(_escape, json.dumps(value, ensure_ascii=False))
    return json.dumps(value)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
