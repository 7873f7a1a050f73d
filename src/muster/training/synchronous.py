"""Synchronous data-parallel training: what every rank of a training gang runs, top to bottom.

Read `train` first. The application gives model, data and loss; the job gives the recipe; the context gives ranks, clock and
run folder.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, default_collate
from torch.utils.flop_counter import FlopCounterMode

from muster.engine.checkpoint import CheckpointStore
from muster.engine.gang import RankContext
from muster.engine.records import TableWriter
from muster.engine.step_ledger import StepLedger
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
from muster.training.order import GlobalOrder, RankBatches, SampleKey, SeededSamples
from muster.training.recipe import make_optimizer, make_schedule

_DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}


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
        model = self.application.build_model().to(context.device, _DTYPES[self.how.precision])
        self.model = model
        with warnings.catch_warnings():
            # torch 2.13 has a second name for `broadcast_buffers` and deprecates it; 2.11 has only this one.
            warnings.simplefilter("ignore", FutureWarning)
            self.replica = DistributedDataParallel(
                model, gradient_as_bucket_view=True, broadcast_buffers=False
            )
        self.replica.register_comm_hook(None, context.clock.hook(allreduce_hook))
        self.optimizer = make_optimizer(model, self.how.optimizer)
        self.schedule = make_schedule(self.optimizer, self.how.schedule, self.how.steps)
        self.checkpoints = CheckpointStore(context, context.run.checkpoints, self.how.keep_checkpoints)
        self.metrics = TableWriter(context.run.tables, "metrics", f"rank-{context.rank:05d}")
        self.quality: float | None = None
        self.step = 0
        self.step = self.saved_step = self._restore()

        data = self.application.training_data()
        order = GlobalOrder(len(data), self.how.batch, self.seed)  # type: ignore[arg-type]
        self.samples = SeededSamples(data, self.seed)
        self.batches = RankBatches(
            order,
            context.rank,
            context.world_size,
            micro_batch=self.how.micro_batch,
            first_step=self.step,
            steps=self.how.steps,
        )
        self.flops_per_sample, buckets = self._warm_up()
        self.ledger = StepLedger(context, buckets=buckets, trace_every=self.how.trace_every)
        self.saved_at = time.monotonic()

    # ---- the loop -------------------------------------------------------------------------------------------------

    def run(self) -> int:
        context, clock = self.context, self.context.clock
        if self.step == 0:
            self._evaluate()
        fetch, first = self._fetcher(), self.step
        while self.step < self.how.steps:
            self.ledger.begin(self.step + 1)
            loss, samples = self._forward_backward(fetch)
            with clock.span("optimizer"):
                learning_rate = float(self.optimizer.param_groups[0]["lr"])
                self.optimizer.step()
                self.schedule.step()
                self.optimizer.zero_grad(set_to_none=False)
            self.step += 1
            context.heartbeat()
            agreed = self.ledger.end(
                loss=loss,
                samples=samples,
                flops=self.flops_per_sample * samples,
                learning_rate=learning_rate,
                checkpoint_due=self._checkpoint_due(),
            )
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
        self._finish()
        return self.step

    def _forward_backward(self, fetch: Iterator[Any]) -> tuple[torch.Tensor, int]:
        """One step's gradients; returns the sum of the loss over this rank's samples, and their number."""
        clock = self.context.clock
        sizes = [len(keys) for keys in self.batches.of(self.step)]
        total = torch.zeros((), dtype=torch.float64, device=self.context.device)
        for position, size in enumerate(sizes):
            with clock.waiting(), untouched_generators():
                batch = _moved(next(fetch), self.context.device, _DTYPES[self.how.precision])
            last = position == len(sizes) - 1
            with contextlib.nullcontext() if last else self.replica.no_sync():
                loss = self._loss(batch)
                # DistributedDataParallel averages over ranks: weighted so, the sum is the mean over the global batch.
                with clock.span("backward"):
                    (loss * (size * self.context.world_size / self.how.batch)).backward()
            total += loss.detach().double() * size
        return total, sum(sizes)

    def _loss(self, batch: Any) -> torch.Tensor:
        kind = self.context.device.type
        with (
            self.context.clock.span("forward"),
            torch.autocast(kind, torch.bfloat16, enabled=self.how.precision == "bf16"),
        ):
            return self.application.loss(self.replica, batch)

    def _fetcher(self) -> Iterator[Any]:
        workers = self.how.loader_workers
        with untouched_generators():
            loader = DataLoader(
                self.samples,
                batch_sampler=self.batches,  # type: ignore[arg-type]
                num_workers=workers,
                persistent_workers=workers > 0,
                multiprocessing_context="forkserver" if workers else None,
                pin_memory=self.context.device.type == "cuda",
            )
            return iter(loader)

    def _warm_up(self) -> tuple[float, int]:
        """Passes whose gradients are thrown away; returns FLOPs per sample and the number of gradient buckets.

        DistributedDataParallel rebuilds its buckets after the first backward pass. Having that behind us before the first
        counted step, after a start and after a resume alike, keeps the order of summation, and so the bits, the same.
        """
        keys: list[SampleKey] = self.batches.of(min(self.step, self.how.steps - 1))[0]
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        with untouched_generators():
            batch = default_collate([self.samples[key] for key in keys])
            batch = _moved(batch, self.context.device, _DTYPES[self.how.precision])
            with FlopCounterMode(display=False) as counter, self.replica.no_sync():
                self._loss(batch).backward()
            self.context.heartbeat()
            self._loss(batch).backward()  # the next forward pass rebuilds the buckets
            self.context.clock.begin_step(0)
            self._loss(batch).backward()
            passed = self.context.clock.end_step()
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(buffers[name])
        self.optimizer.zero_grad(set_to_none=False)
        self.context.heartbeat()
        assert passed is not None
        return counter.get_total_flops() / len(keys), len(passed.flights)

    # ---- state ------------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {
            "model": model,
            "optimizer": optimizer,
            "schedule": self.schedule.state_dict(),
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
        state = self._state()
        same_world = newest.world_size == self.context.world_size
        if not same_world:
            del state["generators"]
        self.checkpoints.load(newest, state)
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        self.schedule.load_state_dict(state["schedule"])
        if same_world:
            restore_generators(state["generators"][f"rank-{self.context.rank:05d}"])
        else:  # a stream of its own for each rank of the new gang, from here on
            words = [self.seed, newest.step, self.context.world_size, self.context.rank]
            seed_generators(int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]) >> 1)
        self._event(
            "resumed", step=newest.step, world_size=self.context.world_size, written_by=newest.world_size
        )
        return newest.step

    def _share_buffers(self) -> None:
        """Gives all ranks rank 0's buffers, such as running means.

        They do not influence training, so once before each use is enough, and a broadcast in every forward pass (as
        DistributedDataParallel would do) is communication that nobody needs.
        """
        persistent = self.model.state_dict(keep_vars=True).keys()
        for name, buffer in self.model.named_buffers():
            if name in persistent:
                dist.broadcast(buffer, src=0)

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
            self._share_buffers()
            self.checkpoints.save(self.step, self._state(), self.quality)
        self.quality = None

    def _give_way(self, reason: str) -> None:
        self.ledger.drain()
        self._save()
        self.checkpoints.wait()
        self._together()
        self.context.give_way(reason)

    # ---- quality and results ------------------------------------------------------------------------------------------

    def _evaluate(self) -> None:
        items = self.application.evaluation_data()
        if not len(items):
            return
        with self.context.clock.stall("evaluate"):
            self._share_buffers()
            result = evaluate_exact(self.context, self.model, items, self.application.evaluate)
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
            export_model(
                self.model,
                self.application.metadata() | {"app": self.job.what.app},
                self.run_folder.model_path,
            )
            self._event("exported", file=self.run_folder.model_path.name)
            pictures = self.run_folder.path / "pictures"
            pictures.mkdir(exist_ok=True)
            self.application.illustrate(self.model, pictures)
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


def _moved(batch: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A collated batch on ``device``; floating-point tensors in ``dtype``, others as they are."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, dtype if batch.is_floating_point() else None, non_blocking=True)
    if isinstance(batch, dict):
        return {key: _moved(value, device, dtype) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(_moved(value, device, dtype) for value in batch)
    return batch
