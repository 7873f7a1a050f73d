"""Schedules: in which order each rank computes, known before anything runs.

Torch's own schedules are asked for theirs, so that what is simulated and drawn is what runs. Chimera's is made here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final, Literal, get_args

from muster.errors import RefusedInput
from muster.training.pipeline._timeline import Action, Kind, Span, Timeline

ScheduleName = Literal["gpipe", "1f1b", "interleaved", "looped-bfs", "zero-bubble", "zbv", "chimera"]

_LOOPED: Final = ("interleaved", "looped-bfs", "zero-bubble")


@dataclass(frozen=True)
class Costs:
    """How long each action takes, in any unit; a function of an action.

    Arguments:
        forward: of a stage on a micro-batch.
        backward: the whole of it.
        weight: the part of a split backward that is for the weights; the rest is for the input.
        first_input: whether the first stage computes the gradient of its input. Torch does not, where a backward is
            split: there the first stage's whole backward is its weights' half.
    """

    forward: float = 1
    backward: float = 1
    weight: float = 0
    first_input: bool = True

    def __call__(self, action: Action) -> float:
        whole = action.stage == 0 and not self.first_input
        match action.kind:
            case "F":
                return self.forward
            case "B":
                return self.backward
            case "I":
                return 0 if whole else self.backward - self.weight
            case "W":
                return self.backward if whole else self.weight


@dataclass(frozen=True)
class Schedule:
    """In which order the ranks of a pipeline compute; made by `make_schedule`.

    Arguments:
        name: of the schedule.
        ranks: how many (D).
        micro_batches: how many in a step (N).
        stages_per_rank: how many stages of one replica a rank has (v).
        orders: for each rank, its actions in order.
    """

    name: ScheduleName
    ranks: int
    micro_batches: int
    stages_per_rank: int
    orders: tuple[tuple[Action, ...], ...]

    @property
    def stages(self) -> int:
        """Into how many stages the model is cut."""
        return self.ranks * self.stages_per_rank

    def rank_of(self, stage: int, replica: int = 0) -> int:
        """Which rank has a stage."""
        if self.name == "chimera":
            return self.ranks - 1 - stage if replica else stage
        if self.name == "zbv":  # the second half of the stages comes back in a V
            return min(stage, self.stages - 1 - stage)
        return stage % self.ranks

    def stages_of(self, rank: int) -> list[tuple[int, int]]:
        """(replica, stage) of everything that a rank has."""
        replicas = 2 if self.name == "chimera" else 1
        return [
            (replica, stage)
            for replica in range(replicas)
            for stage in range(self.stages)
            if self.rank_of(stage, replica) == rank
        ]

    def micro_batches_of(self, replica: int) -> range:
        """Which micro-batches go through a replica."""
        if self.name != "chimera":
            return range(self.micro_batches)
        down = (self.micro_batches + 1) // 2
        return range(down, self.micro_batches) if replica else range(down)

    def simulate(self, cost: Callable[[Action], float] = Costs(), latency: float = 0) -> Timeline:
        """When everything would happen if each rank did its next action as soon as its input is there.

        Arguments:
            cost: how long an action takes.
            latency: of a message to another rank.

        Raises:
            RuntimeError: the orders wait for each other in a circle.
        """
        ends: dict[Action, float] = {}
        clocks: list[float] = [0] * self.ranks
        following = [0] * self.ranks
        spans: list[Span] = []
        progress = True
        while progress:
            progress = False
            for rank, order in enumerate(self.orders):
                while following[rank] < len(order):
                    action = order[following[rank]]
                    source = action.feeds_on(self.stages)
                    if source is not None and source.kind in "BI" and source not in ends:
                        source = source._replace(kind="I" if source.kind == "B" else "B")
                    if source is not None and source not in ends:
                        break
                    begin = clocks[rank]
                    if source is not None:
                        away = self.rank_of(source.stage, source.replica) != rank
                        begin = max(begin, ends[source] + (latency if away else 0))
                    ends[action] = clocks[rank] = begin + cost(action)
                    spans.append(Span(rank, action, begin, clocks[rank]))
                    following[rank] += 1
                    progress = True
        if any(done < len(order) for done, order in zip(following, self.orders, strict=True)):
            raise RuntimeError(f"the order of {self.name} cannot be carried out")
        return Timeline(self.ranks, self.stages, spans)


def make_schedule(
    name: str, ranks: int, micro_batches: int, *, stages_per_rank: int | None = None
) -> Schedule:
    """The schedule of that name.

    Arguments:
        name: `gpipe` (Huang et al. 2019), `1f1b` (Narayanan et al. 2019; Fan et al. 2021), `interleaved` 1F1B (Narayanan et
            al. 2021), `looped-bfs` (Lamy-Poirier 2023), `zero-bubble` ZB1P and `zbv` (Qi et al. 2024), or `chimera` (Li and
            Hoefler 2021).
        ranks: how many (D).
        micro_batches: how many in a step (N).
        stages_per_rank: of `interleaved`, `looped-bfs` and `zero-bubble`; 2 if not told. Given by the others' nature.

    Raises:
        RefusedInput: no such schedule, or one that this number of ranks, stages or micro-batches cannot have.
    """
    if name not in get_args(ScheduleName):
        raise RefusedInput(
            f"schedule: there is no {name!r}; right would be one of {', '.join(get_args(ScheduleName))}"
        )
    if ranks < 1 or micro_batches < 1:
        raise RefusedInput(
            f"schedule: {ranks} ranks and {micro_batches} micro-batches cannot be; right would be at least 1 of each"
        )
    natural = 2 if name in _LOOPED or name == "zbv" else 1
    per_rank = natural if stages_per_rank is None else stages_per_rank
    if per_rank < 1 or (name not in _LOOPED and per_rank != natural):
        right = "at least 1" if name in _LOOPED else str(natural)
        raise RefusedInput(
            f"stages_per_rank: {name} cannot have {per_rank} on a rank; right would be {right}"
        )
    if name == "chimera":
        if ranks % 2:
            raise RefusedInput(
                f"schedule: chimera pairs the ranks, and {ranks} is odd; right would be an even number of ranks"
            )
        orders = _chimera(ranks, micro_batches)
    elif name == "gpipe":
        orders = [_gpipe(rank, micro_batches) for rank in range(ranks)]
    elif name == "1f1b":
        if micro_batches < ranks:
            raise RefusedInput(
                f"micro_batches: 1f1b cannot have {micro_batches} for {ranks} ranks; right would be at least {ranks}"
            )
        orders = [_one_f_one_b(rank, ranks, micro_batches) for rank in range(ranks)]
    else:
        orders = _torch_orders(name, ranks, micro_batches, per_rank)
    frozen = tuple(tuple(order) for order in orders)
    return Schedule(name, ranks, micro_batches, per_rank, frozen)  # type: ignore[arg-type]


def _gpipe(rank: int, micro_batches: int) -> list[Action]:
    every = range(micro_batches)
    return [Action("F", rank, micro) for micro in every] + [Action("B", rank, micro) for micro in every]


def _one_f_one_b(rank: int, ranks: int, micro_batches: int) -> list[Action]:
    ahead = ranks - rank
    order = [Action("F", rank, micro) for micro in range(ahead)]
    for micro in range(micro_batches):
        order.append(Action("B", rank, micro))
        if ahead + micro < micro_batches:
            order.append(Action("F", rank, ahead + micro))
    return order


def _chimera(ranks: int, micro_batches: int) -> list[list[Action]]:
    """Chimera's bidirectional schedule (Li and Hoefler, SC'21), its units concatenated directly.

    Time is in slots. A unit is D micro-batches, D/2 in each direction, a slot apart from one stage to the next and two slots
    apart from one micro-batch to the next. D is even, so rank p has the stages p and D-1-p, of different parity: what goes
    down begins in slots of one parity and what comes up in slots of the other, and in each the backward passes of one
    direction follow the forward passes of the other. The slots of a parity are so busy for 2D slots without a gap, and the
    next unit, 2D slots later, fits without a conflict.
    """
    half = ranks // 2
    down = (micro_batches + 1) // 2
    slots: list[dict[int, Action]] = [{} for _ in range(ranks)]
    for replica, micros in enumerate((range(down), range(down, micro_batches))):
        for index, micro in enumerate(micros):
            unit, place = divmod(index, half)
            for stage in range(ranks):
                rank = ranks - 1 - stage if replica else stage
                begin = 2 * ranks * unit + 2 * place
                slots[rank][begin + stage] = Action("F", stage, micro, replica)
                slots[rank][begin + 2 * ranks - 1 - stage] = Action("B", stage, micro, replica)
    return [[row[slot] for slot in sorted(row)] for row in slots]


def _torch_orders(name: str, ranks: int, micro_batches: int, per_rank: int) -> list[list[Action]]:
    """The orders of torch's multi-stage schedules, from those classes themselves."""
    from torch.distributed.pipelining import schedules

    rounds = max(1, micro_batches // ranks)
    if name in ("interleaved", "zero-bubble") and micro_batches % rounds:
        raise RefusedInput(
            f"micro_batches: {name} deals {micro_batches} into {rounds} rounds of {ranks} ranks, which leaves "
            f"{micro_batches % rounds}; right would be {rounds * (micro_batches // rounds)} or "
            f"{(rounds + 1) * ranks if micro_batches % ranks else micro_batches}"
        )
    # The orders depend on the places of the stages alone; no process group is needed to ask for them.
    seats: list[Any] = [
        SimpleNamespace(
            group_size=ranks,
            group_rank=0,
            num_stages=ranks * per_rank,
            stage_index=index,
            submod=None,
            stage_index_to_group_rank={},
        )
        for index in range(per_rank)
    ]
    order = torch_schedule_class(name)(seats, micro_batches).pipeline_order
    kinds: dict[Any, Kind] = {schedules.F: "F", schedules.B: "B", schedules.I: "I", schedules.W: "W"}
    return [
        [
            Action(kinds[step.computation_type], step.stage_index, step.microbatch_index)
            for step in order[rank]
            if step is not None
        ]
        for rank in range(ranks)
    ]


def torch_schedule_class(name: str) -> Any:
    """The class of `torch.distributed.pipelining` that runs a schedule."""
    from torch.distributed import pipelining

    return {
        "gpipe": pipelining.ScheduleGPipe,
        "1f1b": pipelining.Schedule1F1B,
        "interleaved": pipelining.ScheduleInterleaved1F1B,
        "looped-bfs": pipelining.ScheduleLoopedBFS,
        "zero-bubble": pipelining.ScheduleInterleavedZeroBubble,
        "zbv": pipelining.ScheduleZBVZeroBubble,
    }[name]
