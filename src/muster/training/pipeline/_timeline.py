"""What happened, or would happen, in one step of a pipeline: which rank computed what and when; plain data and arithmetic."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

Kind = Literal["F", "B", "I", "W"]
"""Forward, backward, and the two halves of a split backward: for the input, for the weights."""

_NAMES: Final = {"F": "forward", "B": "backward", "I": "backward_input", "W": "backward_weight"}


class Action(NamedTuple):
    """One computation of a pipeline's step.

    Arguments:
        kind: forward, backward, or half a backward.
        stage: of the model, from 0.
        micro_batch: from 0.
        replica: 0; the upward replica of a bidirectional pipeline is 1.
    """

    kind: Kind
    stage: int
    micro_batch: int
    replica: int = 0

    @property
    def name(self) -> str:
        """`forward`, `backward`, `backward_input` or `backward_weight`."""
        return _NAMES[self.kind]

    def feeds_on(self, stages: int) -> Action | None:
        """The action of the neighbouring stage whose result this one needs, or None.

        Arguments:
            stages: how many the model has.
        """
        if self.kind == "F":
            return self._replace(stage=self.stage - 1) if self.stage > 0 else None
        if self.kind in "BI":
            return self._replace(stage=self.stage + 1) if self.stage < stages - 1 else None
        return None


class Span(NamedTuple):
    """An action on a rank, from ``start`` to ``end`` (seconds, or units of a simulation)."""

    rank: int
    action: Action
    start: float
    end: float


@dataclass(frozen=True)
class RankTimes:
    """How one rank spent a step; ``compute + comm + idle`` is the makespan.

    Arguments:
        compute: time in its actions.
        comm: time it waited for a message after the sender had finished computing it.
        idle: time it waited before that, or had nothing left to do.
    """

    compute: float
    comm: float
    idle: float


@dataclass(frozen=True)
class Timeline:
    """One step of a pipeline, measured or simulated.

    Arguments:
        ranks: how many.
        stages: of the model.
        spans: of all ranks, in any order.
    """

    ranks: int
    stages: int
    spans: Sequence[Span]

    @property
    def start(self) -> float:
        """When the first action began."""
        return min(span.start for span in self.spans)

    @property
    def makespan(self) -> float:
        """From the first action's start to the last one's end."""
        return max(span.end for span in self.spans) - self.start

    @property
    def bubble(self) -> float:
        """The share of the ranks' time, over the makespan, in which they did not compute; in 0 … 1."""
        busy = sum(span.end - span.start for span in self.spans)
        return 1 - busy / (self.ranks * self.makespan)

    def of_rank(self, rank: int) -> list[Span]:
        """The actions of one rank in order of time."""
        return sorted((span for span in self.spans if span.rank == rank), key=lambda span: span.start)

    def rank_times(self, rank: int) -> RankTimes:
        """How a rank spent the step: a wait is idle until the neighbour has computed what is waited for, then comm."""
        ends = {span.action: span.end for span in self.spans}
        # The whole backward of a neighbour, or the half of it that a split backward sends on.
        compute = comm = idle = 0.0
        reached = self.start
        for span in self.of_rank(rank):
            source = span.action.feeds_on(self.stages)
            if source is not None and source not in ends:
                source = source._replace(kind="I" if source.kind == "B" else "B")
            ready = ends.get(source, reached) if source is not None else reached
            gap = max(span.start - reached, 0.0)
            late = min(max(ready - reached, 0.0), gap)
            idle, comm, compute = idle + late, comm + gap - late, compute + span.end - span.start
            reached = span.end
        return RankTimes(compute, comm, idle + self.start + self.makespan - reached)

    def draw(self, unit: float = 1.0) -> str:
        """A text picture: a line for each rank, a column for each ``unit`` of time, in it the micro-batch.

        Forward is the plain number, backward is in brackets, the halves of a split backward are ``i`` and ``w``; what the
        second replica or a second stage of the rank computes is marked with an apostrophe for each.
        """
        wrap = {"F": "{}", "B": "[{}]", "I": "i{}", "W": "w{}"}
        columns = max(1, round(self.makespan / unit))
        rows = [["."] * columns for _ in range(self.ranks)]
        for rank in range(self.ranks):
            spans = self.of_rank(rank)
            seats = sorted({(span.action.replica, span.action.stage) for span in spans})
            for span in spans:
                mark = "'" * seats.index((span.action.replica, span.action.stage))
                text = wrap[span.action.kind].format(span.action.micro_batch) + mark
                first = min(round((span.start - self.start) / unit), columns - 1)
                last = max(first + 1, round((span.end - self.start) / unit))
                rows[rank][first:last] = [text] * len(rows[rank][first:last])
        width = max(len(cell) for row in rows for cell in row)
        label = len(f"rank {self.ranks - 1}")
        return "\n".join(
            f"{f'rank {rank}':<{label}}  " + " ".join(cell.center(width) for cell in row).rstrip()
            for rank, row in enumerate(rows)
        )

    def to_json(self) -> str:
        """The spans for a report: a list of objects, times from the start of the step."""
        return json.dumps(
            {
                "ranks": self.ranks,
                "stages": self.stages,
                "makespan": float(self.makespan),
                "bubble": float(self.bubble),
                "spans": [
                    {
                        "rank": span.rank,
                        **span.action._asdict(),
                        "name": span.action.name,
                        "start": float(span.start - self.start),
                        "end": float(span.end - self.start),
                    }
                    for span in sorted(self.spans, key=lambda span: (span.rank, span.start))
                ],
            }
        )
