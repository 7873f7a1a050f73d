"""Synchronous data-parallel training: what every rank of a training gang runs, top to bottom.

Read `train` first. The application gives model, data and loss; the job gives the recipe; the context gives ranks, clock and
run folder.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from muster.engine.checkpoint import CheckpointStore
from muster.engine.gang import RankContext
from muster.engine.records import TableWriter
from muster.engine.step_ledger import StepLedger
from muster.errors import JobError
from muster.pillars.compute import TrafficCounter
from muster.pillars.compute.gang_peaks import gang_peaks
from muster.pillars.compute.roofline_record import RooflineRecord
from muster.spec import load_application, load_job
from muster.training.application import Application
from muster.training.evaluation import Evaluation, evaluate_exact
from muster.training.export import export_model
from muster.training.generators import (
    generator_states,
    restore_generators,
    seed_generators,
    untouched_generators,
)
from muster.training.input import Input
from muster.training.rank_model import RankModel
from muster.training.warm_up import WarmUp, warm_up


def train(context: RankContext) -> int:
    """Trains the job of ``context.run`` to its last step, from its newest checkpoint if it has one.

    Returns:
        The number of steps done.

    Raises:
        Yielded: the ranks were asked to stop and have saved.
    """
    return _Trainer(context).run()


class _Trainer:
    """One rank of a synchronous training job."""

    def __init__(self, context: RankContext) -> None:
        if context.run is None:
            raise ValueError("training needs a run folder")
        context.listen_for_preemption()
        self.context, self.run_folder = context, context.run
        self.job = load_job(context.run.path / "job.yaml", environ={})
        self.how, self.seed = self.job.how, self.job.what.seed
        self.application: Application = load_application(self.job.what.app)(self.job.what)
        self._prepare_data()

        seed_generators(self.seed)
        self.model = RankModel(context, self.application, self.how)
        self.checkpoints = CheckpointStore(context, context.run.checkpoints, self.how.keep_checkpoints)
        self.metrics = TableWriter(context.run.tables, "metrics", f"rank-{context.rank:05d}")
        self.quality: float | None = None
        self.step = 0
        self.step = self.saved_step = self._restore()

        self.input = Input(context, self.application.training_data(), self.how, self.seed, self.step)
        self.warm = self._warm_up()
        with context.clock.in_a_collective():
            self.peaks = gang_peaks(self.how.precision, context.device, context.control)
        context.heartbeat()
        self.ledger = StepLedger(context, buckets=self.warm.buckets, trace_every=self.how.trace_every)
        self.saved_at = time.monotonic()

    # ---- the loop -------------------------------------------------------------------------------------------------

    def run(self) -> int:
        context, clock = self.context, self.context.clock
        if self.step == 0:
            self._evaluate()
        with untouched_generators():
            fetch = self.input.batches()
        first = self.step
        while self.step < self.how.steps:
            self.ledger.begin(self.step + 1)
            loss, samples = self._forward_backward(fetch)
            with clock.span("optimizer"), self._counted(self.step == first):
                learning_rate = float(self.model.optimizer.param_groups[0]["lr"])
                overflow = self.model.update()
            self.step += 1
            context.heartbeat()
            agreed = self.ledger.end(
                loss=loss,
                samples=samples,
                flops=self.warm.flops * samples,
                learning_rate=learning_rate,
                checkpoint_due=self._checkpoint_due(),
            )
            if overflow is not None:
                self._event("overflow", step=self.step, loss_scale=overflow)
            if self.step == first + 1:
                self._event("first_step", step=self.step)
            every = self.how.evaluate_every
            if self.step == self.how.steps or (every and self.step % every == 0):
                self._evaluate()
            if agreed.stop:
                self._give_way(agreed.stop)
            interval = self.how.checkpoint_every.steps
            if self.step < self.how.steps and (agreed.checkpoint or (interval and self.step % interval == 0)):
                self.ledger.begin(self.step + 1)  # the step that waits for it
                self._save()
        self.ledger.drain()
        self._save()
        self._account_for_input()
        self._finish()
        self.model.exchange.close()
        return self.step

    def _forward_backward(self, fetch: Iterator[Any]) -> tuple[torch.Tensor, int]:
        """One step's gradients; returns the sum of the loss over this rank's samples, and their number."""
        clock = self.context.clock
        sizes = self.input.sizes(self.step)
        total = torch.zeros((), dtype=torch.float64, device=self.context.device)
        for position, size in enumerate(sizes):
            with clock.waiting(), untouched_generators():
                batch = self.model.moved(next(fetch))
            last = position == len(sizes) - 1
            with contextlib.nullcontext() if last else self.model.replica.no_sync():
                loss = self.model.loss(batch)
                # DistributedDataParallel averages over ranks: weighted so, the sum is the mean over the global batch.
                with clock.span("backward"):
                    self.model.backward(loss * (size * self.context.world_size / self.how.batch))
            total += loss.detach().double() * size
        return total, sum(sizes)

    def _warm_up(self) -> WarmUp:
        with untouched_generators():
            batch, samples = self.input.first_batch()
            found = warm_up(self.context, self.model, self.model.moved(batch), samples, self.how.compile)
        if found.trial is not None and not found.decided_before:
            self._event("compile", world_size=self.context.world_size, **found.trial.as_dict())
        if found.exchange is not None:
            chosen = found.exchange.winner()
            self._event(
                "communication",
                world_size=self.context.world_size,
                chosen=chosen.name,
                buckets=len(found.exchange.plan.ends),
                compressors=sorted(set(found.exchange.plan.compressors)),
                predicted_s=chosen.predicted_s,
                measured_s=chosen.measured_s,
            )
        if found.trial is not None and not found.trial.kept and self.how.compile == "on":
            raise JobError(
                f"torch.compile fails here: {found.trial.failure or found.trial.why}",
                mend="mend that, or set auto or off",
                key="how.compile",
            )
        return found

    @contextlib.contextmanager
    def _counted(self, first: bool) -> Iterator[None]:
        """Counts what the first update of the weights reads and writes, and puts the roofline on record."""
        if not first:
            yield
            return
        with TrafficCounter() as traffic:
            yield
        if self.context.rank == 0:
            RooflineRecord(
                attempt=self.context.attempt,
                world_size=self.context.world_size,
                device=self.context.device.type,
                compiled=self.warm.trial is not None and self.warm.trial.kept,
                bytes_per_sample=self.warm.bytes,
                operators_per_sample=self.warm.operators,
                bytes_per_update=traffic.bytes,
                operators_per_update=traffic.operators,
                peaks=tuple(self.peaks),
            ).write(self.run_folder.path)

    # ---- state ------------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model.module, self.model.optimizer)
        return {
            "model": model,
            "optimizer": optimizer,
            **self.model.extra_state(),
            "progress": {"step": torch.tensor(self.step), "seed": torch.tensor(self.seed)},
            "generators": {f"rank-{self.context.rank:05d}": generator_states()},
        }

    def _restore(self) -> int:
        """Takes up the newest checkpoint; returns the steps done."""
        newest = self.checkpoints.newest()
        if newest is None:
            self._event("started", world_size=self.context.world_size)
            seed_generators(self.seed + 1 + self.context.rank)
            return 0
        state = self._state() | self.model.exchange.template(newest)
        same_world = newest.world_size == self.context.world_size
        if not same_world:
            del state["generators"]
        self.checkpoints.load(newest, state)
        set_state_dict(
            self.model.module,
            self.model.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        self.model.load_extra_state(state)
        self.model.exchange.load_state(state, newest.world_size)
        if same_world:
            restore_generators(state["generators"][f"rank-{self.context.rank:05d}"])
        else:  # a stream of its own for each rank of the new gang, from here on
            words = [self.seed, newest.step, self.context.world_size, self.context.rank]
            seed_generators(int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]) >> 1)
        self._event(
            "resumed", step=newest.step, world_size=self.context.world_size, written_by=newest.world_size
        )
        return newest.step

    def _checkpoint_due(self) -> bool:
        """Whether, by rank 0's watch, it is time for a checkpoint; all ranks learn of it a step later."""
        seconds = self.how.checkpoint_every.seconds
        due = seconds is not None and self.context.rank == 0 and time.monotonic() - self.saved_at >= seconds
        if due:
            self.saved_at = time.monotonic()
        return due

    def _save(self) -> None:
        if self.step == self.saved_step:
            return
        self.saved_step = self.step
        with self.context.clock.stall("checkpoint"):
            self.ledger.settle()
            self.model.share_buffers()
            self.checkpoints.save(self.step, self._state() | self.model.exchange.state_dict(), self.quality)
        self.quality = None

    def _give_way(self, reason: str) -> None:
        self.ledger.drain()
        self._save()
        self.checkpoints.wait()
        self._account_for_input()
        self._together()
        self.model.exchange.close()
        self.context.give_way(reason)

    def _account_for_input(self) -> None:
        """Puts on record what looking ahead came to, and ends it."""
        totals = self.input.totals()
        if totals is not None:
            self._event(
                "input",
                world_size=self.context.world_size,
                cache=totals.cache,
                planned_store_reads=totals.planned_store_reads,
                **totals.counts,
            )
        self.input.close()

    # ---- quality and results ------------------------------------------------------------------------------------------

    def _evaluate(self) -> None:
        items = self.application.evaluation_data()
        if not len(items):
            return
        with self.context.clock.stall("evaluate"):
            self.model.share_buffers()
            with self.model.result() as model:
                result = evaluate_exact(
                    model,
                    items,
                    self.application.evaluate,
                    self.context.control,
                    after_each=self.context.heartbeat,
                    gathering=self.context.clock.in_a_collective(),
                )
        means = result.means()
        self.quality = means.get(self.application.quality) if self.application.quality else None
        if self.context.rank == 0:
            self._record(result, [str(getattr(item, "name", index)) for index, item in enumerate(items)])

    def _record(self, result: Evaluation, names: list[str]) -> None:
        row = {
            "attempt": self.context.attempt,
            "step": self.step,
            "time": self.context.clock.now(),
            "split": "evaluation",
        }
        for name, item in zip(names, result.items, strict=True):
            for quality, value in item.items():
                self.metrics.append(**row, name=quality, value=value, item=name)
        for quality, value in result.means().items():
            self.metrics.append(**row, name=quality, value=value, item="")
        self.metrics.flush()

    def _finish(self) -> None:
        """Leaves the model, its pictures and the last checkpoint."""
        self.checkpoints.wait()
        if self.context.rank == 0:
            with self.model.result() as model:
                export_model(
                    model,
                    self.application.metadata() | {"app": self.job.what.app},
                    self.run_folder.model_path,
                )
                self._event("exported", file=self.run_folder.model_path.name)
                pictures = self.run_folder.path / "pictures"
                pictures.mkdir(exist_ok=True)
                self.application.illustrate(model, pictures)
        self.metrics.close()
        self._together()

    def _prepare_data(self) -> None:
        if self.context.leader:
            self.application.prepare()
        self._together()

    def _together(self) -> None:
        self.context.heartbeat()
        with self.context.clock.in_a_collective():
            dist.barrier(group=self.context.control)
        self.context.heartbeat()

    def _event(self, kind: str, **detail: Any) -> None:
        if self.context.rank == 0 and self.context.events is not None:
            self.context.events(kind, **detail)
