"""``muster init``: a commented job file to start from."""

from __future__ import annotations

from typing import Annotated

import typer

EXAMPLES = "Example: muster init superres > my.yaml"


def command(
    app: Annotated[
        str, typer.Argument(metavar="APP", help="The application, such as superres or vision.superres.")
    ],
) -> None:
    """Print a commented job file for an application."""
    from muster.spec import template

    print(template(app), end="")
