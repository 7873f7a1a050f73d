"""What limits a job, from its measured step, and what would mend it, in one line.

Compute is what the user wants; all else is loss. So a job is said to be limited by its largest loss where that is a
tenth of the step or more, and by compute otherwise. Losses are those of the rank that the others waited for in each
step: a slow loader on one rank shows as `idle` on all others, and mending that would be mending nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from muster.pillars.compute.roofline import Placement
from muster.spec import Job
from muster.spec.machine import cores
from muster.tuning._measured import StepTimes
from muster.tuning._size_classes import SizeClass

#: A loss that is a smaller share of the step does not limit.
NOTICEABLE: Final = 0.10
#: One rank is called slow if the others waited for it in so many of the steps...
_SAME_RANK: Final = 0.8
#: Messages that reach less of the bandwidth of the link's largest ones are small.
_SMALL: Final = 0.5

_SUBJECT: Final = {
    "io": "Waiting for data",
    "compute": "Compute",
    "comm": "Exposed communication",
    "idle": "Waiting for one slow rank",
}


@dataclass(frozen=True)
class Facts:
    """What a verdict is drawn from.

    Arguments:
        job: the job.
        times: of its steps.
        classes: of its collectives.
        loader_samples_per_s: what its loaders deliver alone.
        link_bytes_per_s: algorithm bandwidth of the link for large all-reduces; None with one rank.
        roofline: where a rank's median step stands; None where the run recorded none.
        stored: whether the samples lie in a store that can be read ahead of use.
    """

    job: Job
    times: StepTimes
    classes: Sequence[SizeClass]
    loader_samples_per_s: float
    link_bytes_per_s: float | None
    roofline: Placement | None = None
    stored: bool = False

    @property
    def training_samples_per_s(self) -> float:
        """Samples per second that training would take if it never waited for data."""
        return self.job.how.batch / max(self.times.step_s - self.times.critical["io"], 1e-9)


@dataclass(frozen=True)
class Verdict:
    """What limits a job.

    Arguments:
        pillar: ``io``, ``compute``, ``comm`` or ``idle``.
        share: of the step, 0 to 1.
        sentence: the same in words, with what would mend it.
    """

    pillar: str
    share: float
    sentence: str


def verdict(facts: Facts) -> Verdict:
    """Names the pillar that limits a job, and a mend."""
    times = facts.times
    if (threads := oversubscribed(facts.job)) is not None:
        share = times.critical_shares["compute"]
        mend = f"{threads}: set where.threads_per_rank: {fitting_threads(facts.job)}"
        return Verdict("compute", share, f"Compute limits this job, since {mend}.")
    losses = {name: times.critical_shares[name] for name in ("io", "comm")}
    same, rank = times.slowest
    if times.ranks > 1 and same >= _SAME_RANK:
        losses["idle"] = times.shares["idle"]
    pillar = max(losses, key=lambda name: losses[name])
    if losses[pillar] < NOTICEABLE:
        pillar = "compute"
    share = losses.get(pillar, times.critical_shares["compute"])
    mend = {
        "io": _mend_io,
        "comm": _mend_comm,
        "compute": _mend_compute,
        "idle": lambda _: (
            f"the others wait for rank {rank} in {100 * same:.0f} % of the steps; see what else its machine does"
        ),
    }[pillar](facts)
    return Verdict(
        pillar, share, f"{_SUBJECT[pillar]} limits this job ({100 * share:.0f} % of a step): {mend}."
    )


def oversubscribed(job: Job) -> str | None:
    """A sentence if the ranks of this machine have more threads than it has cores, else None."""
    threads = job.where.threads_per_rank or 1
    if job.where.engine == "cluster" or threads == 1 or threads * job.how.ranks <= cores():
        return None
    here = cores()
    return f"{job.how.ranks} ranks with {threads} threads each contend for {here} core{'s' * (here > 1)}"


def fitting_threads(job: Job) -> int:
    """Threads per rank with which the ranks of this machine share its cores out."""
    return max(1, cores() // job.how.ranks)


def has_fast_bf16() -> bool:
    """Whether this machine's processors multiply bf16 matrices in hardware (AMX, AVX-512 BF16)."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return any(f" {name}" in flags for name in ("amx_bf16", "avx512_bf16"))


def _mend_io(facts: Facts) -> str:
    needed = facts.training_samples_per_s
    alone = f"the loader alone delivers {facts.loader_samples_per_s:.4g} samples/s and training takes {needed:.4g}"
    workers = facts.job.how.loader_workers
    if facts.stored and facts.job.how.input.loader == "plain":
        return f"{alone}; how.input.loader: look-ahead reads the store ahead of use, and each sample once if memory allows"
    if facts.loader_samples_per_s < needed:
        return (
            f"{alone}; more how.loader_workers than {workers}, a faster store or a cache would deliver more"
        )
    if workers == 0:
        return f"{alone}, but in turn: how.loader_workers: 1 prepares samples while training goes on"
    return f"{alone}, so it delivers unevenly; how.loader_workers: {workers + 1} evens it out"


def _mend_comm(facts: Facts) -> str:
    worst = max(facts.classes, key=lambda each: each.exposed_s, default=None)
    if worst is None or worst.bytes_per_s is None or not facts.link_bytes_per_s:
        return "a faster network, or fewer bytes per step"
    mean = worst.bytes / max(worst.count, 1)
    speed = f"{worst.count} messages of {mean / 1e3:.4g} kB reach {worst.bytes_per_s / 1e6:.4g} MB/s"
    if worst.link_bytes_per_s and worst.link_bytes_per_s < _SMALL * facts.link_bytes_per_s:
        return (
            f"{speed} where large ones could have {facts.link_bytes_per_s / 1e6:.4g}: larger buckets "
            "(how.communication.buckets: default or auto) reach more"
        )
    return f"{speed} on a link of {facts.link_bytes_per_s / 1e6:.4g} MB/s: how.communication.compression sends fewer bytes"


def _mend_compute(facts: Facts) -> str:
    how = facts.job.how
    if how.precision == "fp32" and (facts.job.where.device == "cuda" or has_fast_bf16()):
        return "how.precision: bf16 may use faster arithmetic that this processor has"
    bound = None if facts.roofline is None else facts.roofline.bound
    if bound == "memory":
        return "a step is bound by memory bandwidth; fused kernels (how.compile) or how.channels_last move fewer bytes"
    if bound == "overhead":
        return (
            "a step is bound by overhead; a larger share of the batch at once or how.compile has less of it"
        )
    return "little is lost to anything else; more ranks, or less arithmetic per sample, would make it faster"
