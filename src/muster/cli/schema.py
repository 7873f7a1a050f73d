"""``muster schema``: the JSON Schema of job files."""

from __future__ import annotations

import sys
import warnings

from muster.cli.options import print_json

EXAMPLES = (
    "Example: muster schema > job.schema.json, and on top of a job file: "
    "# yaml-language-server: $schema=job.schema.json"
)


def command() -> None:
    """Print the JSON Schema of job files, for completion and validation in an editor."""
    from muster.spec import job_schema

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        content = job_schema()
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    print_json(content)
