"""A job file with some values changed and everything else, comments too, as the user wrote it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from muster.spec import Job, load_job


def write_tuned(source: Path, target: Path, changes: Mapping[str, Any], remarks: Sequence[str]) -> Job:
    """Writes ``target``: the job of ``source`` with ``changes``, below ``remarks`` as comments.

    Arguments:
        source: a job file.
        target: where to; a file that is there is replaced, as a whole.
        changes: values by key path.
        remarks: lines.

    Returns:
        The job that ``target`` holds.

    Raises:
        OSError: it cannot be written.
    """
    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    yaml.width = 10_000  # a long line stays one
    content = yaml.load(source.read_text(encoding="utf-8"))
    for path, value in changes.items():
        place = content
        *parents, last = path.split(".")
        for key in parents:
            if place.get(key) is None:
                place[key] = {}
            place = place[key]
        place[last] = value
    text = io.StringIO()
    yaml.dump(content, text)
    head = "".join(f"# {line}\n" for line in remarks)
    draft = target.with_name(f".{target.name}.tmp")
    draft.write_text(head + text.getvalue(), encoding="utf-8")
    draft.replace(target)
    return load_job(target, environ={})
