"""What a run records for its roofline, ``roofline.json`` of the run folder, and the place of its steps; needs no torch.

docs/run-folder.md documents the file.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from muster.pillars.compute.roofline import Peaks, Placement, Work, place

FILE: Final = "roofline.json"
_FORMAT: Final = 1


@dataclass(frozen=True)
class RooflineRecord:
    """Peaks of the ranks, and what a step reads and writes.

    Arguments:
        attempt: that wrote it; the last one replaces those before.
        world_size: its ranks.
        device: ``cpu`` or ``cuda``.
        compiled: whether the model was compiled; bytes and operators are counted before the compiler fuses them.
        bytes_per_sample, operators_per_sample: of a forward and backward pass, counted once in the warm-up.
        bytes_per_update, operators_per_update: of an update of the weights, counted in the first step.
        peaks: in order of rank.
    """

    attempt: int
    world_size: int
    device: str
    compiled: bool
    bytes_per_sample: float
    operators_per_sample: float
    bytes_per_update: float
    operators_per_update: float
    peaks: tuple[Peaks, ...]

    def write(self, run: Path) -> None:
        """Replaces the record of a run folder; a reader never sees half of one."""
        draft = run / f".{FILE}.tmp"
        draft.write_text(json.dumps({"format": _FORMAT} | asdict(self), indent=1), encoding="utf-8")
        os.replace(draft, run / FILE)

    @classmethod
    def read(cls, run: Path) -> RooflineRecord | None:
        """The record of a run folder; None where there is none, or none that can be read."""
        try:
            content: Any = json.loads((run / FILE).read_text(encoding="utf-8"))
            if content.pop("format") != _FORMAT:
                return None
            peaks = tuple(Peaks(**one) for one in content.pop("peaks"))
            return cls(**content, peaks=peaks) if peaks else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    @property
    def mean_peaks(self) -> Peaks:
        """The mean over the ranks."""
        count = len(self.peaks)
        return Peaks(
            sum(one.flops_per_s for one in self.peaks) / count,
            sum(one.bytes_per_s for one in self.peaks) / count,
            sum(one.operator_s for one in self.peaks) / count,
            self.peaks[0].precision,
            min(one.measured_utc for one in self.peaks),
        )

    def placement(self, steps: Iterable[Mapping[str, Any]]) -> Placement | None:
        """Where the median step of a rank stands; None without a step or without counted FLOPs.

        Arguments:
            steps: rows of `steps` of the surviving lineage, with ``world_size``, ``step``, ``samples``, ``flops`` and
                ``compute``. Only those of this record's world size count, and of them not the first step, in which things
                are counted.
        """
        rows = [row for row in steps if row["world_size"] == self.world_size]
        first = min((row["step"] for row in rows), default=0)
        rows = [row for row in rows if row["step"] != first] or rows
        rows = [row for row in rows if row["flops"] and row["samples"] and row["compute"]]
        if not rows:
            return None
        samples = statistics.median(row["samples"] for row in rows)
        work = Work(
            flops=statistics.median(row["flops"] for row in rows),
            bytes=self.bytes_per_sample * samples + self.bytes_per_update,
            operators=self.operators_per_sample * samples + self.operators_per_update,
            seconds=statistics.median(row["compute"] for row in rows),
        )
        return place(work, self.mean_peaks)
