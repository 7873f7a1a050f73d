"""One rank's exchange of gradients as a job's ``how.communication`` wants it: buckets, compression, state, records.

What is left to measurements (``auto``) is chosen in the warm-up, in passes whose gradients are thrown away, and never
again: a run that is resumed takes the choice from its folder and goes on to the same bits.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.nn.parallel import DistributedDataParallel

from muster.engine.checkpoint import Checkpoint
from muster.engine.gang import RankContext
from muster.errors import DataError, JobError
from muster.pillars.comm.compress.compressor import Compressor
from muster.pillars.comm.exchange import Choice, Exchange
from muster.pillars.comm.exchange_state import reshard
from muster.pillars.comm.layout import capped_layout
from muster.pillars.comm.plan import Costs, Plan, automatic_candidates, plan_for
from muster.pillars.comm.reducer import rebuild_reducer, reduced_parameters, size_limits, why_not_rebuilt
from muster.pillars.comm.step_profile import StepProfile, StepRecorder
from muster.pillars.comm.tuner import Pace, Tuner
from muster.spec.gang_how import Communication
from muster.training.communication_record import Candidate, CommunicationRecord, Measured

_PACE: Final = Pace(check_every=0)  # chosen once: another choice in the middle would change the bits
_CLEARLY: Final = 0.99  # as the tuner: a rival must beat the incumbent by 1 %
_STATE: Final = "exchange"  # its key in a checkpoint


class GradientExchange:
    """The exchange of a replica's gradients; registers its communication hook.

    Arguments:
        context: the rank; its clock times the buckets.
        replica: the model, without a hook.
        settings: ``how.communication``.
        seed: of what compressors draw.

    Attributes:
        buckets: how many a chosen layout has; None while the layout is PyTorch's own.

    Raises:
        JobError: this model's buckets cannot be laid out anew, and the job asks for it.
    """

    def __init__(
        self, context: RankContext, replica: DistributedDataParallel, settings: Communication, seed: int
    ) -> None:
        self._context, self._replica, self._settings = context, replica, settings
        parameters, names = reduced_parameters(replica)
        self._position = {name: position for position, name in enumerate(names)}
        self._shapes = {name: parameter.shape for name, parameter in zip(names, parameters, strict=True)}
        self._names = {id(parameter): name for name, parameter in zip(names, parameters, strict=True)}
        self._device, self._dtype = parameters[0].device, parameters[0].dtype
        self.buckets: int | None = None
        self._exchange: Exchange | None = None
        self._owes = False
        self._keys: dict[int, tuple[str, ...]] = {}
        self._sent: dict[tuple[str, ...], tuple[Compressor, int]] = {}
        options = {"rank": settings.rank, "density": settings.density}
        self._options = {name: value for name, value in options.items() if value is not None}
        alone = context.world_size == 1
        self._chooses = not alone and "auto" in (settings.compression, settings.buckets)
        if self._chooses and (reason := why_not_rebuilt(replica)):
            key = "buckets" if settings.buckets == "auto" else "compression"
            raise JobError(
                f"this model's buckets cannot be laid out anew, since {reason}",
                mend="set it to default" if key == "buckets" else "name a method",
                key=f"how.communication.{key}",
            )
        if settings.compression != "none":
            # One rank has nobody to send to. Its exchange adds what more ranks had not sent yet to the first gradient.
            method = "none" if alone or settings.compression == "auto" else settings.compression
            self._exchange = Exchange(
                replica.module.named_parameters(),
                self._choice(method),
                seed=seed,
                timeout=timedelta(seconds=context.timeout_s),
            )
        replica.register_comm_hook(None, self._hook(compressed=self._exchange is not None))

    def _choice(self, method: str) -> Choice:
        return Choice(method, self._options if method == self._settings.compression else {})

    # ---- the backward pass ------------------------------------------------------------------------------------------

    def _hook(self, *, compressed: bool) -> Any:
        clock = self._context.clock
        return clock.hook(self._hand_over, self._describe) if compressed else clock.hook(allreduce_hook)

    def _hand_over(self, state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        assert self._exchange is not None
        self._keys[bucket.index()] = tuple(self._names[id(each)] for each in bucket.parameters())
        return self._exchange.hook(state, bucket)

    def _describe(self, index: int) -> tuple[str, int | None]:
        """The kind and the sent bytes of a bucket that has landed; on the exchange's thread."""
        assert self._exchange is not None
        key = self._keys[index]
        compressor = self._exchange.compressors.get(key)
        if compressor is None:  # in the warm-up
            return "all_reduce", None
        owner, before = self._sent.get(key, (compressor, 0))
        self._sent[key] = compressor, compressor.wire_bytes
        sent = compressor.wire_bytes - (before if owner is compressor else 0)
        return "all_reduce" if compressor.name == "none" else compressor.name, sent

    @contextlib.contextmanager
    def uncompressed(self) -> Iterator[None]:
        """For passes whose gradients are thrown away: they leave no trace in what compressors remember."""
        with contextlib.nullcontext() if self._exchange is None else self._exchange.uncompressed():
            yield

    def close(self) -> None:
        """Ends the exchange; after the last step, on all ranks."""
        if self._exchange is not None:
            self._exchange.close()

    # ---- the choice -------------------------------------------------------------------------------------------------

    def choose(self, one_pass: Callable[[], None]) -> Measured | None:
        """Settles buckets and compressors, if the job leaves them to measurements; all ranks call it together.

        Arguments:
            one_pass: a forward and backward pass whose gradients are thrown away.

        Returns:
            What was measured, if it was: an earlier start of the run may have done so.

        Raises:
            DataError: the record of an earlier choice is damaged, or is one of another model.
        """
        if not self._chooses:
            return None
        plan, measured = self._chosen_before(), None
        if plan is None:
            measured = self._measure(one_pass)
            plan = measured.plan
            if self._context.rank == 0 and (record := self._record) is not None:
                record.add(
                    measured,
                    world_size=self._context.world_size,
                    settings=self._settings.model_dump(mode="json"),
                    attempt=self._context.attempt,
                )
        self._install(plan)
        with self.uncompressed():
            one_pass()
        return measured

    @property
    def _record(self) -> CommunicationRecord | None:
        return None if self._context.run is None else CommunicationRecord(self._context.run.path)

    def _chosen_before(self) -> Plan | None:
        found: list[Any] = [None]
        if self._context.rank == 0 and (record := self._record) is not None:
            try:
                found[0] = record.find(self._context.world_size, self._settings.model_dump(mode="json"))
                if found[0] is not None and sorted(found[0].names) != sorted(self._position):
                    raise DataError(
                        f"{self._context.run}: communication.json is about another model's parameters; remove it to have "
                        "the buckets chosen anew"
                    )
            except DataError as error:
                found[0] = error
        with self._context.clock.in_a_collective():
            dist.broadcast_object_list(found, src=0, group=self._context.control)
        if isinstance(found[0], Exception):
            raise found[0]
        plan: Plan | None = found[0]
        return plan

    def _measure(self, one_pass: Callable[[], None]) -> Measured:
        kept = None if self._exchange is None else self._exchange.state_dict()
        options: dict[str, dict[str, Any]] = {self._settings.compression: self._options}
        tuner = Tuner(self._replica, self._candidates(), options, self._install, pace=_PACE, link=None)
        with self._context.clock.in_a_collective():
            tuner.measure()
        if self._settings.buckets == "auto":
            for _ in tuner.run():
                one_pass()
            measured = _told(tuner)
        else:
            measured = self._compare(tuner, one_pass)
        if self._exchange is not None and kept is not None:
            self._exchange.load_state_dict(kept)  # the trials' gradients were none
        return measured

    def _candidates(self) -> list[str]:
        """What each bucket's compressor is chosen from, the least intrusive first."""
        method = self._settings.compression
        if method != "auto":
            return [method]
        dtype = next(self._replica.parameters()).dtype
        return automatic_candidates(self._settings.lossy, dtype, self._context.world_size)

    def _compare(self, tuner: Tuner, one_pass: Callable[[], None]) -> Measured:
        """Buckets as they are: each bucket's quickest compressor by prediction, kept if all together win a trial."""
        recorder = StepRecorder(self._replica)
        for _ in range(_PACE.observe_steps):
            recorder.begin()
            one_pass()
        recorder.stop()
        profile = recorder.profile(self._replica.process_group)
        assert profile is not None
        assert tuner.link is not None
        assert tuner.rates is not None
        costs = Costs(profile, self._shapes, tuner.link, tuner.rates)
        ends = capped_layout(profile.bytes, size_limits(self._replica))
        plans = {
            "own buckets": plan_for(profile, costs, ["none"], ends),
            "own buckets, compressed": plan_for(profile, costs, self._candidates(), ends),
        }
        plain, compressed = plans
        chosen, seconds = plain, dict.fromkeys(plans, 0.0)
        if plans[plain].compressors != plans[compressed].compressors:
            seconds = self._race(plans, one_pass)
            chosen = compressed if seconds[compressed] < seconds[plain] * _CLEARLY else plain
        tried = tuple(
            Candidate(name, _predicted_pass_s(profile, plan.end_s), seconds[name])
            for name, plan in plans.items()
        )
        return Measured(plans[chosen], chosen, tried, profile, tuner.link)

    def _race(self, plans: Mapping[str, Plan], one_pass: Callable[[], None]) -> dict[str, float]:
        """Median seconds of a pass with each plan, of the slowest rank; the plans take turns."""
        taken: dict[str, list[float]] = {name: [] for name in plans}
        for turn in range(_PACE.trial_rounds):
            for name in list(plans)[:: -1 if turn % 2 else 1]:
                self._install(plans[name])
                one_pass()  # allocates
                for _ in range(_PACE.trial_steps):
                    begin = self._now()
                    one_pass()
                    taken[name].append(self._now() - begin)
        medians = [sorted(times)[len(times) // 2] for times in taken.values()]
        slowest = torch.tensor(medians, dtype=torch.float64)
        with self._context.clock.in_a_collective():
            dist.all_reduce(slowest, op=dist.ReduceOp.MAX, group=self._context.control)
        return dict(zip(plans, slowest.tolist(), strict=True))

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _install(self, plan: Plan) -> None:
        """Gives the replica the plan's buckets and compressors; between two passes, on all ranks."""
        compressed = set(plan.compressors) != {"none"} or self._owes
        if self._exchange is not None:
            chosen = plan.by_bucket()

            def choose(index: int, parts: Any) -> Choice:
                return self._choice(chosen[tuple(part.name for part in parts)])

            self._exchange.rechoose(choose)
        order = [self._position[name] for name in plan.names]
        rebuild_reducer(self._replica, order=order, ends=plan.ends, hook=self._hook(compressed=compressed))
        self.buckets = len(plan.ends)

    # ---- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs of this rank, under a key of its own; empty without compression."""
        if self._exchange is None:
            return {}
        state = self._exchange.state_dict()
        # A parameter whose compressor remembers nothing needs no place.
        state["parameters"] = {name: entry for name, entry in state["parameters"].items() if len(entry) > 1}
        return {_STATE: {_who(self._context.rank): state}}

    def template(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """What to load from a checkpoint for this rank: nested as `state_dict`, with tensors to load into.

        On another world size that is the state of old rank 0 and of those whose residuals come to this rank
        (`exchange_state.reshard`).
        """
        if self._exchange is None:
            return {}
        wanted = {_who(rank) for rank in self._sources(checkpoint.world_size)}
        metadata = FileSystemReader(checkpoint.path).read_metadata()
        template: dict[str, Any] = {}
        for key, path in (metadata.planner_data or {}).items():
            if path[0] != _STATE or path[1] not in wanted:
                continue
            place = template
            for part in path[:-1]:
                place = place.setdefault(part, {})
            saved = metadata.state_dict_metadata[key]
            if isinstance(saved, TensorStorageMetadata):
                place[path[-1]] = torch.empty(saved.size, dtype=saved.properties.dtype)
            else:
                place[path[-1]] = None
        return template

    def load_state(self, state: Mapping[str, Any], written_by: int) -> None:
        """Takes up what was loaded into a `template`; on another world size as `exchange_state.reshard` says.

        Arguments:
            state: of the checkpoint.
            written_by: its world size.
        """
        if self._exchange is None or _STATE not in state:
            return
        rank, ranks = self._context.rank, self._context.world_size
        found = [
            {"rank": old, "world_size": written_by, "parameters": {}, "buckets": {}}
            | state[_STATE].get(_who(old), {})
            for old in range(written_by)
        ]
        own = found[rank] if written_by == ranks else reshard(found, rank, ranks)
        self._owes = written_by != ranks and any("residual" in entry for entry in own["parameters"].values())
        self._exchange.load_state_dict(own)

    def _sources(self, written_by: int) -> set[int]:
        rank, ranks = self._context.rank, self._context.world_size
        return {rank} if written_by == ranks else {0, *range(rank, written_by, ranks)}


def _told(tuner: Tuner) -> Measured:
    """What a tuner that has settled has measured."""
    if tuner.plan is None or tuner.profile is None or tuner.link is None:
        raise RuntimeError(
            "the warm-up's passes could not be timed: they must run forward through the replica"
        )
    profile, decision = tuner.profile, tuner.decisions[-1]
    tried = tuple(
        Candidate(name, _predicted_pass_s(profile, end_s), decision["step_s"][name])
        for name, end_s in decision["predicted_end_s"].items()
    )
    return Measured(tuner.plan, decision["what"], tried, profile, tuner.link)


def _predicted_pass_s(profile: StepProfile, end_s: float) -> float:
    """A pass whose exchange is over after ``end_s``."""
    return max(end_s, profile.backward_s) + profile.step_s - profile.exchanged_s


def _who(rank: int) -> str:
    return f"rank-{rank:05d}"
