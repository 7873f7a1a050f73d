"""All that can be known to fail before anything is started: the application's data, this machine, the merge rule."""

from __future__ import annotations

from muster.errors import JobError
from muster.spec import Job
from muster.spec.preflight import preflight as spec_preflight


def preflight(job: Job) -> list[str]:
    """As `muster.spec.preflight.preflight`, and refuses a pool whose merge rule does not suit it.

    Raises:
        RefusedInput: the job cannot run here; says why.
    """
    warnings = spec_preflight(job)
    if job.how.shape == "pool":
        from muster.training.pool.check import check_pool

        check_pool(job)
    return warnings


def refuse_pool(job: Job, verb: str) -> None:
    """Refuses a pool where only a gang will do.

    Raises:
        JobError: it is one.
    """
    if job.how.shape == "pool":
        raise JobError(
            f"muster {verb} measures the steps of a gang, and a pool has none",
            mend="give a job of the shape gang",
            key="how.shape",
        )
