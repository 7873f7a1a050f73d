"""Puts the verbs together, and turns an error raised on purpose into one message and its exit code."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from muster.cli import (
    check,
    doctor,
    flow,
    init,
    ls,
    pool,
    profile,
    report,
    resume,
    run,
    scale,
    schema,
    show,
    tune,
    upscale,
)
from muster.errors import MusterError, RankFailed

_EPILOG = """\
[bold]Examples[/]

  muster init superres > my.yaml

  muster run my.yaml --set how.ranks=4 --set how.steps=2000

  muster show last

[bold]Exit codes[/]

  [bold]0[/] done   [bold]1[/] failed   [bold]2[/] input refused, nothing was started   [bold]4[/] engine lost

  [bold]5[/] no intact checkpoint   [bold]75[/] preempted (SIGTERM), saved   [bold]130[/] stopped (Ctrl-C),
  saved
"""


class _Verbs(TyperGroup):
    """The group of all verbs. Unexpected exceptions pass: they are defects, and want their traceback."""

    def invoke(self, ctx: Any) -> Any:
        from muster.spec.platforms import platform_check

        try:
            platform_check()
            return super().invoke(ctx)
        except MusterError as error:
            _say(error)
            raise typer.Exit(error.exit_code) from error


def _say(error: MusterError) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    if isinstance(error, RankFailed) and error.traceback:
        console.print(Text(error.traceback.rstrip()))
    console.print(Text.assemble(("error: ", "bold red"), (str(error), "red")))


def _version(wanted: bool) -> None:
    if wanted:
        import muster

        print(f"muster {muster.__version__}")
        raise typer.Exit


app = typer.Typer(
    name="muster",
    cls=_Verbs,
    help="Scalable deep learning on whatever machines you can muster.",
    epilog=_EPILOG.replace("\n  ", "\n"),
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.add_typer(flow.group, name="flow")
app.add_typer(pool.group, name="pool")
for verb in (run, check, init, schema, profile, scale, tune, ls, show, report, resume, upscale, doctor):
    app.command(name=verb.__name__.rpartition(".")[2], epilog=verb.EXAMPLES)(verb.command)


def main() -> None:
    """The entry point of the command ``muster``; exits with the documented code."""
    app(sys.argv[1:], prog_name="muster")
