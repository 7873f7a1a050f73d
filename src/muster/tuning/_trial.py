"""A trial: a job run for a few steps, with whatever is no part of a step kept out of the way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from muster.spec import Job, parse_job

_WARM_UP_STEPS: Final = 5  # not counted: caches fill, allocators grow
_PREFETCH: Final = 2  # batches that a worker of a DataLoader has ready before the first is asked for
LAST_STEPS: Final = 1  # not counted: the evaluation and the checkpoint at the end are in it


def warm_up_steps(loader_workers: int) -> int:
    """Steps at the beginning of a trial that do not count; what workers have ready before the first is used up in them."""
    return max(_WARM_UP_STEPS, _PREFETCH * loader_workers + 2)


def trial_job(
    job: Job, *, name: str, steps: int, changes: Mapping[str, Any] | None = None, warm_up: int | None = None
) -> Job:
    """The job as a trial runs it.

    Checkpoints and evaluations are left to the end of the run, a failure is not mended by a restart, the number of
    ranks stays what it is, and the learning rate is constant (a warm-up is kept as far as it fits): none of it is
    part of a step's time.

    Arguments:
        job: what is tried.
        name: of the trial's run folder.
        steps: that count.
        changes: values by key path, such as ``{"how.ranks": 4}``; the keys need not be in the job.
        warm_up: steps before those; None: `warm_up_steps`.

    Raises:
        JobError: the job with these changes is not valid; names the key.
    """
    content = job.model_dump(mode="json")
    changes = dict(changes or {})
    workers = changes.get("how.loader_workers", job.how.loader_workers)
    wanted = (warm_up_steps(workers) if warm_up is None else warm_up) + steps + LAST_STEPS
    schedule = content["how"]["schedule"]
    own = {
        "name": name,
        "how.steps": wanted,
        "how.schedule": {"kind": "constant", "warmup": min(schedule["warmup"], wanted - 1)},
        "how.checkpoint_every": f"{wanted + 1} steps",
        "how.keep_checkpoints": 1,
        "how.evaluate_every": None,
        "how.max_restarts": 0,
        "where.min_ranks": None,
        "where.max_ranks": None,
    }
    return with_changes(content, own | changes)


def with_changes(content: dict[str, Any], changes: Mapping[str, Any]) -> Job:
    """A job from its plain data with some values changed.

    Arguments:
        content: as `Job.model_dump` gives it; it is changed.
        changes: values by key path.

    Raises:
        JobError: as `muster.spec.parse_job`.
    """
    for path, value in changes.items():
        place = content
        *parents, last = path.split(".")
        for key in parents:
            place = place.setdefault(key, {})
        place[last] = value
    return parse_job(content)
