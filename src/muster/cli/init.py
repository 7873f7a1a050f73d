"""``muster init``: a commented job file to start from."""

from __future__ import annotations

from typing import Annotated

import typer

EXAMPLES = "Example: muster init superres > my.yaml"


def command(
    app: Annotated[
        str, typer.Argument(metavar="APP", help="The application, such as superres or vision.superres.")
    ],
    shape: Annotated[str, typer.Option("--shape", help="The shape of parallel work: gang or pool.")] = "gang",
) -> None:
    """Print a commented job file for an application."""
    from muster.errors import JobError
    from muster.spec import template
    from muster.spec.job import SHAPES
    from muster.spec.suggestion import expected_one_of

    if shape not in SHAPES:
        raise JobError(f"found {shape!r}", mend=expected_one_of(shape, SHAPES), source="--shape")
    print(template(app, shape), end="")
