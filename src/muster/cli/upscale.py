"""``muster upscale``: enlarges a picture with a run's model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from muster.cli.options import DEFAULT_RUNS, Quiet, RunName, RunsFolder, find_run

EXAMPLES = "Example: muster upscale last photo.jpg -o big.png --self-ensemble"


def command(
    run: RunName,
    image: Annotated[Path, typer.Argument(metavar="PICTURE", help="JPEG, PNG or WebP.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="PNG, JPEG or WebP by its suffix.")
    ],
    self_ensemble: Annotated[
        bool,
        typer.Option("--self-ensemble", help="Average over 8 flips and rotations: better, 8 times the work."),
    ] = False,
    tile: Annotated[
        int | None, typer.Option(min=16, help="Sides of a tile in pixels of PICTURE; bounds the memory.")
    ] = None,
    runs: RunsFolder = DEFAULT_RUNS,
    quiet: Quiet = False,
) -> None:
    """Enlarge a picture with the model that a super-resolution run has trained; RUN may be its
    model.safetensors."""
    from muster.apps.vision.upscale import upscale_file

    source = Path(run) if Path(run).is_file() else find_run(run, runs)
    width, height = upscale_file(
        source, image, output, tile=tile, self_ensemble=self_ensemble, progress=not quiet
    )
    print(f"{output}: {width}x{height} pixels")
