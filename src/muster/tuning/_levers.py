"""Levers: what `muster tune` may change in a job, one class each.

A lever looks at what limits a job and proposes values for its key; whether a proposal wins is measured, so a lever may
propose what often does not. To add one, subclass `Lever` and name it in `LEVERS`::

    class Batch(Lever):
        pillar, key, changes_results = "comm", "how.batch", True

        def proposals(self, facts):
            return [Proposal(self, 2 * self.value(facts.job), "one exchange for twice as many samples")]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from muster.spec import Job
from muster.spec.gang_how import Communication
from muster.spec.machine import cores
from muster.tuning._verdict import Facts, fitting_threads, has_fast_bf16

_LEAST_COMM: Final = 0.02
"""A step of which communication is a smaller share does not get shorter by what a trial can prove."""


class Lever(ABC):
    """One key of a job that can be pulled.

    Attributes:
        pillar: what it acts on; levers of the limiting pillar are tried first.
        key: the key path that it changes.
        changes_results: whether the trained weights differ by more than rounding in another order.
    """

    pillar: ClassVar[str]
    key: ClassVar[str]
    changes_results: ClassVar[bool] = False

    @abstractmethod
    def proposals(self, facts: Facts) -> Sequence[Proposal]:
        """What to try on a job of which ``facts`` are known, the most promising first; empty where it has no use."""

    def value(self, job: Job) -> Any:
        """What the job says now."""
        part, *keys = self.key.split(".")
        found = getattr(job, part)
        for key in keys:
            found = getattr(found, key)
        return found


@dataclass(frozen=True)
class Proposal:
    """A value to try.

    Arguments:
        lever: that proposes it.
        value: as a job file has it.
        why: in a few words.
    """

    lever: Lever
    value: Any
    why: str

    @property
    def changes(self) -> dict[str, Any]:
        """By key path."""
        return {self.lever.key: self.value}


class Threads(Lever):
    """As many threads as there are cores for them: more contend, fewer leave cores without work."""

    pillar, key = "compute", "where.threads_per_rank"

    def proposals(self, facts: Facts) -> Sequence[Proposal]:
        now, fitting = self.value(facts.job), fitting_threads(facts.job)
        if facts.job.where.engine == "cluster" or now is None or now == fitting:
            return ()
        return [Proposal(self, fitting, f"{cores()} cores shared out among {facts.job.how.ranks} ranks")]


class LoaderWorkers(Lever):
    """Processes that prepare samples beside the training; none, where they only take its cores."""

    pillar, key = "io", "how.loader_workers"
    _MOST: ClassVar[int] = 16

    def proposals(self, facts: Facts) -> Sequence[Proposal]:
        now = self.value(facts.job)
        here = self._MOST if facts.job.where.engine == "cluster" else 2 * fitting_threads(facts.job)
        # waiting for a store takes no core, so more workers than cores may pay
        counts = [count for count in (1, 2, 4, 8, 16) if count != now and count <= max(here, 4)]
        found = [
            Proposal(
                self,
                count,
                f"{count} process{'es' * (count > 1)} per rank prepare{'s' * (count == 1)} samples",
            )
            for count in sorted(counts, reverse=True)
        ]
        if now:
            found.append(Proposal(self, 0, "no process takes cores from the training"))
        return found


class LookAhead(Lever):
    """A store that is read ahead of use, each sample once where memory allows, instead of again in every epoch."""

    pillar, key = "io", "how.input.loader"

    def proposals(self, facts: Facts) -> Sequence[Proposal]:
        if self.value(facts.job) != "plain" or not facts.stored:
            return ()
        return [Proposal(self, "look-ahead", "the store is read ahead of use, and what fits is kept")]


class MicroBatch(Lever):
    """The whole share at once: many small passes cost more than one large one."""

    pillar, key = "compute", "how.micro_batch"

    def proposals(self, facts: Facts) -> Sequence[Proposal]:
        now, how = self.value(facts.job), facts.job.how
        share = -(-how.batch // how.ranks)
        if now is None or now >= share:
            return ()
        return [Proposal(self, None, f"one pass over a rank's {share} samples instead of {-(-share // now)}")]


class Bf16(Lever):
    """bf16 in the forward and backward pass, where there is hardware for it; weights stay fp32."""

    pillar, key, changes_results = "compute", "how.precision", True

    def proposals(self, facts: Facts) -> Sequence[Proposal]:
        fast = facts.job.where.device == "cuda" or has_fast_bf16()
        if self.value(facts.job) != "fp32" or not fast:
            return ()
        return [Proposal(self, "bf16", "matrix products and convolutions in bf16, weights in fp32")]


class ChannelsLast(Lever):
    """The memory format that many convolution kernels read faster."""

    pillar, key = "compute", "how.channels_last"

    def proposals(self, facts: Facts) -> Sequence[Proposal]:
        return () if self.value(facts.job) else [Proposal(self, True, "images with the channel innermost")]


class Compile(Lever):
    """torch.compile: fewer, larger kernels."""

    pillar, key = "compute", "how.compile"

    def proposals(self, facts: Facts) -> Sequence[Proposal]:
        if self.value(facts.job) != "off":
            return ()
        return [Proposal(self, "on", "operators fused by torch.compile")]


class ActivationCheckpointing(Lever):
    """Off, where memory allows: it computes activations twice."""

    pillar, key = "compute", "how.activation_checkpointing"

    def proposals(self, facts: Facts) -> Sequence[Proposal]:
        return (
            [Proposal(self, False, "activations are kept instead of computed twice")]
            if self.value(facts.job)
            else ()
        )


class PlannedBuckets(Lever):
    """Buckets laid out from measured times, compressed as they are now: the same gradients in another order of summation."""

    pillar, key = "comm", "how.communication"

    def proposals(self, facts: Facts) -> Sequence[Proposal]:
        now = self.value(facts.job)
        if not _communicates(facts) or now.buckets == "auto":
            return ()
        return [Proposal(self, _given(now, buckets="auto"), "buckets planned from ready times and link")]


class CompressedBuckets(Lever):
    """Fewer bytes: what is quickest for each bucket, lossy only where the job has consented to that, and bf16 for all."""

    pillar, key, changes_results = "comm", "how.communication", True

    def proposals(self, facts: Facts) -> Sequence[Proposal]:
        now, how = self.value(facts.job), facts.job.how
        if not _communicates(facts) or how.precision == "fp64" or now.compression not in ("none", "auto"):
            return ()
        found = []
        if now.compression != "auto" or now.buckets != "auto":
            found.append(
                Proposal(
                    self,
                    _given(now, compression="auto", buckets="auto"),
                    "planned buckets, each with the quickest compressor"
                    if now.lossy
                    else "planned buckets, each in fp32 or bf16",
                )
            )
        without_consent = now.model_copy(update={"lossy": False})
        found.append(
            Proposal(
                self,
                _given(without_consent, compression="bf16", buckets="auto"),
                "half the bytes in planned buckets",
            )
        )
        return found


def _communicates(facts: Facts) -> bool:
    """Whether a quicker exchange could be seen at all: a trial of it takes longer than most, since it measures the link."""
    return facts.job.how.ranks > 1 and facts.times.shares["comm"] >= _LEAST_COMM


def _given(now: Communication, **changes: Any) -> dict[str, Any]:
    """``how.communication`` with some values changed, as short as a person would write it."""
    return now.model_copy(update=changes).model_dump(mode="json", exclude_defaults=True)


#: In the order in which they are tried within a pillar: what is cheapest and most certain first.
LEVERS: Final[tuple[Lever, ...]] = (
    Threads(),
    LookAhead(),
    LoaderWorkers(),
    MicroBatch(),
    Bf16(),
    ChannelsLast(),
    Compile(),
    ActivationCheckpointing(),
    PlannedBuckets(),
    CompressedBuckets(),
)


def proposals(facts: Facts, limit: str, levers: Sequence[Lever] = LEVERS) -> list[Proposal]:
    """Everything worth trying: the levers of the limiting pillar first, then the others'."""
    first = [lever for lever in levers if lever.pillar == limit]
    others = [lever for lever in levers if lever.pillar != limit]
    return [proposal for lever in (*first, *others) for proposal in lever.proposals(facts)]
