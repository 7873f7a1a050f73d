"""``muster resume``: continues a run from its newest intact checkpoint."""

from __future__ import annotations

from muster.cli.options import DEFAULT_RUNS, Quiet, RunName, RunsFolder, find_run
from muster.cli.run import print_outcome

EXAMPLES = "Example: muster resume last"


def command(run: RunName, runs: RunsFolder = DEFAULT_RUNS, quiet: Quiet = False) -> None:
    """Continue a run that was stopped, preempted, killed or failed."""
    from muster._run import resume

    print_outcome(resume(find_run(run, runs), progress=not quiet))
