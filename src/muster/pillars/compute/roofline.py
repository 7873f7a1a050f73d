"""Where a training step stands under this machine's roofline; arithmetic on numbers alone, without torch.

The roofline model (Williams, Waterman, Patterson, CACM 52(4), 2009) says that *F* floating-point operations on *B* bytes take
at least max(F / peak, B / bandwidth). Its form over time adds what launching operators costs (Wang et al. 2020,
arXiv:2009.04598): a step of many small operators is bound by that overhead and by neither roof.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

#: Below this share of the measured compute time all that the model accounts for together is no explanation of it.
EXPLAINED_AT_LEAST = 1 / 3

Bound = Literal["compute", "memory", "overhead"]


@dataclass(frozen=True)
class Peaks:
    """What one rank's share of a machine does at most, while all ranks of the machine do the same.

    Arguments:
        flops_per_s: of the best of a large matrix product and a large convolution, in ``precision``.
        bytes_per_s: of STREAM's copy or triad, the better, on arrays beyond the last-level cache.
        operator_s: seconds that one operator takes that has nothing to compute.
        precision: of the products.
        measured_utc: when, ISO 8601.
    """

    flops_per_s: float
    bytes_per_s: float
    operator_s: float
    precision: str
    measured_utc: str = ""

    @property
    def ridge(self) -> float:
        """The arithmetic intensity (FLOP/byte) from which on the peak is the lower roof."""
        return self.flops_per_s / self.bytes_per_s

    def attainable(self, intensity: float) -> float:
        """The roof at an arithmetic intensity (FLOP/byte), in FLOP/s."""
        return min(self.flops_per_s, intensity * self.bytes_per_s)


@dataclass(frozen=True)
class Work:
    """What one rank does in one step.

    Arguments:
        flops: floating-point operations of matrix products, convolutions and attention.
        bytes: that operators read and write, as `muster.pillars.compute.traffic` counts them.
        operators: how many operators.
        seconds: of compute, without waiting for data or other ranks.
    """

    flops: float
    bytes: float
    operators: float
    seconds: float


@dataclass(frozen=True)
class Placement:
    """A step under the roofline.

    Arguments:
        flops_per_s: achieved.
        bytes_per_s: counted bytes over time; above the machine's bandwidth if caches served them.
        intensity: FLOP per counted byte.
        attainable_flops_per_s: the roof at that intensity.
        share_of_peak: achieved over the peak, 0 to 1.
        compute_share, memory_share, overhead_share: of the step's compute time, what its FLOPs at the peak, its bytes at the
            bandwidth and its operators at their launching cost take.
        bound: what limits the step: the largest of the three, or overhead if even their sum is below a third of the time.
        sentence: says it.
    """

    flops_per_s: float
    bytes_per_s: float
    intensity: float
    attainable_flops_per_s: float
    share_of_peak: float
    compute_share: float
    memory_share: float
    overhead_share: float
    bound: Bound
    sentence: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def place(work: Work, peaks: Peaks) -> Placement | None:
    """The place of a step's work under a roofline; None where one of the numbers is not positive.

    Arguments:
        work: of one rank in one step, the median over steps.
        peaks: of that rank.
    """
    if not (
        work.seconds > 0
        and work.bytes > 0
        and work.flops > 0
        and peaks.flops_per_s > 0
        and peaks.bytes_per_s > 0
    ):
        return None
    intensity = work.flops / work.bytes
    shares: dict[Bound, float] = {
        "compute": work.flops / peaks.flops_per_s / work.seconds,
        "memory": work.bytes / peaks.bytes_per_s / work.seconds,
        "overhead": work.operators * peaks.operator_s / work.seconds,
    }
    bound = max(shares, key=lambda name: shares[name])
    if sum(shares.values()) < EXPLAINED_AT_LEAST:
        bound = "overhead"
    achieved = work.flops / work.seconds
    return Placement(
        flops_per_s=achieved,
        bytes_per_s=work.bytes / work.seconds,
        intensity=intensity,
        attainable_flops_per_s=peaks.attainable(intensity),
        share_of_peak=shares["compute"],
        compute_share=shares["compute"],
        memory_share=shares["memory"],
        overhead_share=shares["overhead"],
        bound=bound,
        sentence=_sentence(bound, shares, achieved, intensity, peaks),
    )


def _sentence(
    bound: Bound, shares: dict[Bound, float], achieved: float, intensity: float, peaks: Peaks
) -> str:
    of_peak = (
        f"{_percent(shares['compute'])} of this machine's {peaks.precision} peak "
        f"({achieved / 1e9:.3g} of {peaks.flops_per_s / 1e9:.3g} GFLOP/s per rank) at {intensity:.3g} FLOP/byte"
    )
    if bound == "compute":
        text = f"compute-bound: {of_peak}"
    elif bound == "memory":
        text = (
            f"memory-bound: the bytes that its operators move would take {_percent(shares['memory'])} of the compute "
            f"time at {peaks.bytes_per_s / 1e9:.3g} GB/s per rank; {of_peak}"
        )
    else:
        text = (
            f"overhead-bound: arithmetic explains {_percent(shares['compute'])} of the compute time, memory traffic "
            f"{_percent(shares['memory'])} and launching operators {_percent(shares['overhead'])}; {of_peak}"
        )
        if sum(shares.values()) < EXPLAINED_AT_LEAST:
            text += "; the rest is kernels below their peak, Python, or other processes on these cores"
    if shares["compute"] > 1:
        text += "; above 100 %: the machine was busy when its peak was measured"
    return text


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"
