"""Writes docs/job-file.md from the models of `muster.spec`; with ``--check`` fails if that page is stale."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from muster.errors import JobError, MusterError
from muster.spec import What, Where, load_application, load_job
from muster.spec.applications import GROUP
from muster.spec.job import SHAPES, Job
from muster.spec.wording import describe, describe_type, section_of
from muster.spec.writing import flow

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "job-file.md"
EXAMPLE = ROOT / "examples" / "superres.yaml"

INTRODUCTION = """\
# The job file

<!-- Written by scripts/generate_docs.py from the models in src/muster/spec; change those. -->

A job file says what to run (`what`), how to spread it (`how`) and on which machines (`where`). Changing only `where` moves
a job from a laptop to a cluster. `muster init superres > my.yaml` writes a commented one, `muster check my.yaml` validates it
without starting anything, `muster schema > job.schema.json` describes it to an editor.

```yaml
{example}```
"""

RULES = """\
## Values

- A file is one YAML document of plain values in UTF-8, at most 64 KiB. Scalars are read by YAML 1.2's core
schema: `yes` and `on` are
  text, `1e-3` is a number. Tags, anchors and aliases, duplicate keys and unknown keys are refused.
- Nothing is converted: `"4"` in quotes is text and no number, `true` is no number, `2.0` is no whole number. A whole number
  does where a number is wanted.
- A *duration* has a unit, `h`, `m`, `s` or `ms`: `30s`, `5m`, `1.5h`. A *size* has one too: `4GB` is 4·10⁹
bytes, `4GiB` is 4·2³⁰. An
  *interval* is a duration or a number of steps: `30s`, `200 steps`.
- `null`, or nothing after the colon, does where the tables above show no default.

## Settings from outside

A key can be set without touching the file. Later wins:

1. the file;
2. the environment: `MUSTER_SET_HOW__RANKS=4` sets `how.ranks` (upper case, two underscores for each dot);
3. the command line: `--set how.ranks=4`, as often as wanted.

The value is read as YAML (`--set how.optimizer='{{name: sgd, momentum: 0.9}}'`) and validated like the
file's; a message names `--set` or the variable that it came from. A run folder's `job.yaml` holds the result
with every default filled in; resuming reads it alone.

## Errors

The first thing that is wrong is said in one sentence: file, line, key, what was found and what would be
right. The exit code is 2 and nothing has been started. With `rnaks: 4` in the fourth line of a file, and with
`--set how.optimizer.name=adma`:

```
{errors}```

## Exit codes

| code | meaning |
|---|---|
{codes}
An exception that Muster does not raise on purpose is a defect: it shows its traceback and exits with 1.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is stale")
    wanted = page()
    if parser.parse_args().check:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != wanted:
            print(f"{PAGE.relative_to(ROOT)} is stale; run scripts/generate_docs.py", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION.format(example=EXAMPLE.read_text(encoding="utf-8"))]
    parts.append(f"`name`: {describe(Job.model_fields['name'])}\n")
    parts.append("## `what`: the application and its data\n\n" + table(What))
    for name in own_applications():
        model = load_application(name).What
        own = set(model.model_fields) - set(What.model_fields)
        parts.append(f"### `what` of `{name}`\n\n" + table(model, only=own))
    for shape, how in SHAPES.items():
        parts.append(f"## `how` of the shape `{shape}`\n\n{summary(how)}\n\n" + table(how))
    parts.append("## `where`: the machines\n\n" + table(Where))
    parts.append(RULES.format(errors=example_errors(), codes=exit_codes()))
    return "\n".join(parts)


def own_applications() -> list[str]:
    """Muster's own applications; what else is installed does not belong on the page."""
    return sorted(entry.name for entry in entry_points(group=GROUP) if entry.value.startswith("muster."))


def table(model: type[BaseModel], *, only: set[str] | None = None) -> str:
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    lines += [row for key, row in rows(model, "") if only is None or key in only]
    return "\n".join(lines) + "\n"


def rows(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    """The top-level key that a row belongs to, and the row; the keys of a section follow it."""
    for key, field in model.model_fields.items():
        inner = section_of(field.annotation)
        if field.is_required():
            default = "required"
        else:
            value: Any = field.get_default(call_default_factory=True)
            plain = TypeAdapter(field.annotation or Any).dump_python(value, mode="json")
            default = "" if inner is not None or plain is None else f"`{flow(plain)}`"
        kind = "" if inner is not None else describe_type(field).replace("|", "\\|")
        meaning = describe(field).replace("``", "`").replace("|", "\\|")
        yield key, f"| `{prefix}{key}` | {kind} | {default} | {meaning} |"
        if inner is not None:
            yield from ((key, row) for _, row in rows(inner, f"{prefix}{key}."))


def summary(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().partition("\n\n")[0]


def example_errors() -> str:
    """The messages of two real mistakes."""
    text = "what: {app: vision.superres}\nhow:\n  shape: gang\n  ranks: 4\n  steps: 600\n  batch: 16\n"
    messages = ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "my.yaml"
        for content, settings in (
            (text.replace("ranks", "rnaks"), []),
            (text, ["how.optimizer.name=adma"]),
        ):
            path.write_text(content, encoding="utf-8")
            try:
                load_job(path, settings, environ={})
            except JobError as error:
                messages += f"error: {str(error).replace(str(path), path.name)}\n"
    return messages


def exit_codes() -> str:
    meanings: dict[int, list[str]] = {0: ["done"]}
    pending = MusterError.__subclasses__()
    while pending:
        kind = pending.pop(0)
        pending += kind.__subclasses__()
        if kind.exit_code not in meanings or kind.__base__ is MusterError:
            text = (kind.__doc__ or "").strip().partition(".")[0].replace("\n", " ")
            meanings.setdefault(kind.exit_code, []).append(f"`{kind.__name__}`: {text}")
    return "".join(f"| {code} | {'; '.join(texts)} |\n" for code, texts in sorted(meanings.items()))


if __name__ == "__main__":
    sys.exit(main())
