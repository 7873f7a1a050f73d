"""What `muster tune` proposes for a job that waits for its gradients; lossy only where the job has consented."""

from __future__ import annotations

from typing import Any

import pytest

from muster.spec import Job, parse_job
from muster.tuning._levers import CompressedBuckets, PlannedBuckets, proposals
from muster.tuning._measured import StepTimes
from muster.tuning._trial import with_changes
from muster.tuning._verdict import Facts

KEY = "how.communication"


def facts(comm: float = 0.5, ranks: int = 2, precision: str = "fp32", **communication: Any) -> Facts:
    """A job of which communication takes a share of the step."""
    how = {"ranks": ranks, "steps": 9, "batch": 8, "precision": precision, "communication": communication}
    job: Job = parse_job({"what": {"app": "vision.superres"}, "how": how})
    pillars = {"io": 0.0, "compute": 1 - comm, "comm": comm, "idle": 0.0}
    times = StepTimes(ranks, 20, 8.0, 1.0, pillars, 0.0, pillars, (0.5, 0))
    return Facts(job=job, times=times, classes=(), loader_samples_per_s=1e4, link_bytes_per_s=1e9)


def proposed(known: Facts) -> list[dict[str, Any]]:
    levers = (PlannedBuckets(), CompressedBuckets())
    return [proposal.changes[KEY] for proposal in proposals(known, "comm", levers)]


def test_planned_buckets_come_first_then_compression_without_loss() -> None:
    assert proposed(facts()) == [
        {"buckets": "auto"},
        {"compression": "auto", "buckets": "auto"},
        {"compression": "bf16", "buckets": "auto"},
    ]


def test_lossy_compression_is_proposed_only_to_a_job_that_consents() -> None:
    assert all("lossy" not in value for value in proposed(facts(compression="auto")))
    consenting = proposed(facts(compression="auto", lossy=True))
    assert {"compression": "auto", "lossy": True, "buckets": "auto"} in consenting


def test_a_method_that_the_user_named_stays() -> None:
    assert proposed(facts(compression="topk", density=0.05)) == [
        {"compression": "topk", "buckets": "auto", "density": 0.05}
    ]


@pytest.mark.parametrize(
    "known",
    [facts(ranks=1), facts(comm=0.01), facts(compression="bf16", buckets="auto")],
    ids=["one rank", "nothing to gain", "done already"],
)
def test_nothing_is_proposed_where_there_is_nothing_to_gain(known: Facts) -> None:
    assert proposed(known) == []


def test_gradients_of_fp64_are_not_rounded() -> None:
    assert proposed(facts(precision="fp64")) == [{"buckets": "auto"}]


@pytest.mark.parametrize(
    "communication", [{}, {"compression": "auto", "lossy": True}, {"compression": "topk"}]
)
def test_every_proposal_is_a_job_and_is_marked_if_it_changes_the_result(
    communication: dict[str, Any],
) -> None:
    known = facts(**communication)
    for lever in (PlannedBuckets(), CompressedBuckets()):
        for proposal in lever.proposals(known):
            job = with_changes(known.job.model_dump(mode="json"), proposal.changes)
            assert job.how.communication != known.job.how.communication
            same = job.how.communication.compression == known.job.how.communication.compression
            assert lever.changes_results or same
