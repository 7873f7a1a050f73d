"""The pillar clock around a training loop that knows nothing of it::

    watched = muster.clock.watch(model, optimizer, loader)
    for batch, target in watched.loader:
        ...                                     # the loop as it was
    print(watched.summary())

A step ends when ``optimizer.step()`` returns. What the loop waits for the loader is I/O; what it waits in the backward pass
for gradients is communication, or idle until the last rank has entered; the rest is compute (see `partition`).
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

import pyarrow as pa
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from muster.engine.clock._partition import Pillars
from muster.engine.clock._pillar_clock import CommunicationHook, PillarClock, StepTimes
from muster.engine.records import SCHEMAS
from muster.errors import RefusedInput

hook_owners: weakref.WeakKeyDictionary[torch.nn.Module, Callable[[], None]] = weakref.WeakKeyDictionary()
"""For a model whose communication hook belongs to somebody: what makes its owner register the hook anew."""

_timings: weakref.WeakKeyDictionary[torch.nn.Module, Callable[[CommunicationHook], CommunicationHook]] = (
    weakref.WeakKeyDictionary()
)

_EXHAUSTED: Final = object()
_CUDA_LAG: Final = 2  # steps until a CUDA event is read


def timing_of(model: torch.nn.Module) -> Callable[[CommunicationHook], CommunicationHook] | None:
    """What puts the clock around a communication hook of ``model``, if a loop over it is watched."""
    return _timings.get(model)


def time_exchange(model: DistributedDataParallel, clock: PillarClock) -> None:
    """For a loop that runs a clock of its own: hooks that are registered through Muster from now on go inside the clock's."""
    _timings[model] = clock.hook


def watch(model: torch.nn.Module, optimizer: torch.optim.Optimizer, loader: Any = None) -> Watch:
    """Watches an existing loop; nothing in it changes but the loader that it iterates.

    With DistributedDataParallel the all-reduce is timed by a communication hook: its result is that of training
    without one. If a hook of somebody else is registered, torch would not take a second one, so the model's reducer
    is made anew in place, between two steps, with that hook inside the clock's. A model from `muster.comm.attach` may
    be watched, and a watched model attached. With ranks, all must call this together: it makes a small Gloo group.

    Arguments:
        model: any module; DistributedDataParallel if there are ranks.
        optimizer: its ``step`` ends a step of the clock. A step that ``GradScaler`` skips counts to the next one.
        loader: an iterable of batches, such as a DataLoader; None if the loop has none.

    Raises:
        RefusedInput: the model's communication hook is one of torch's built-in ones in C++, or its reducer cannot be
        made anew.
    """
    return Watch(model, optimizer, loader)


class Watch:
    """A watched loop; also a context manager that ends the watching.

    Attributes:
        loader: what to iterate instead of the loader.
        clock: the pillar clock.
        rank, world_size: of this process in the model's process group; 0 and 1 without one.
    """

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, loader: Any) -> None:
        self._model, self._optimizer = model, optimizer
        self._replica = model if isinstance(model, DistributedDataParallel) else None
        self.rank, self.world_size = 0, 1
        self._control: dist.ProcessGroup | None = None
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        zero = time.perf_counter()
        if self._replica is not None:
            group = self._replica.process_group
            self.rank, self.world_size = dist.get_rank(group), dist.get_world_size(group)
            self._control = dist.new_group(dist.get_process_group_ranks(group), backend="gloo")
            agreed = torch.tensor([zero], dtype=torch.float64)
            dist.broadcast(agreed, src=dist.get_global_rank(self._control, 0), group=self._control)
            zero = float(agreed)
        self.clock = PillarClock(-zero, device)
        self._lag = _CUDA_LAG if device.type == "cuda" else 0
        self._ended: list[StepTimes] = []
        self._resolved: list[StepTimes] = []
        self._enters: list[list[float]] = []
        self._samples: list[int] = []
        self._rates: list[float] = []
        self._fetched = 0
        self.loader = _WatchedLoader(loader, self.clock, self._count)
        if self._replica is not None:
            self._time_exchange(self._replica)
        self._handle = optimizer.register_step_post_hook(self._step_done)
        self._begin()

    # ---- the loop ---------------------------------------------------------------------------------------------------

    def stall(self, name: str) -> AbstractContextManager[None]:
        """For a stretch in which the loop stands still, such as a checkpoint or an evaluation: idle."""
        return self.clock.stall(name)

    def close(self) -> None:
        """Ends the watching. A hook that torch cannot take back stays, and does nothing more."""
        self._handle.remove()
        self.clock.end_step()
        if self._replica is not None and _timings.pop(self._replica, None) is not None:
            owner = hook_owners.get(self._replica)
            if owner is not None:
                owner()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self) -> None:
        self._fetched = 0
        self.clock.begin_step(len(self._ended) + 1)

    def _count(self, batch: Any) -> None:
        self._fetched += _length(batch)

    def _step_done(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._samples.append(self._fetched)
        self._rates.append(float(optimizer.param_groups[0]["lr"]))
        times = self.clock.current
        self._fetched = 0
        self.clock.begin_step(len(self._ended) + 2)
        self._ended.append(times)
        self._resolve(self._lag)

    def _resolve(self, lag: int) -> None:
        """Reads the marks of steps that ended so many steps ago: on CUDA their events have then happened."""
        while len(self._resolved) < len(self._ended) - lag:
            times = self._ended[len(self._resolved)]
            self._enters.append(self.clock.resolve_enters(times))
            self._resolved.append(times)

    def _time_exchange(self, model: DistributedDataParallel) -> None:
        _timings[model] = self.clock.hook
        owner = hook_owners.get(model)
        if owner is not None:
            owner()
            return
        if not model._comm_hooks:
            try:
                model.register_comm_hook(None, self.clock.hook(allreduce_hook))
            except RuntimeError as error:
                del _timings[model]
                raise RefusedInput(
                    "muster.clock.watch: one of torch's built-in communication hooks is registered, which cannot be timed; "
                    "register a hook of torch.distributed.algorithms.ddp_comm_hooks instead"
                ) from error
            return
        hook, state = model._comm_hooks[0]
        if model.mixed_precision is not None or getattr(model, "_use_python_reducer", False):
            del _timings[model]
            raise RefusedInput(
                "muster.clock.watch: this DistributedDataParallel's hook is bound to its reducer (mixed_precision or the "
                "Python reducer); watch it before the hook is registered, or without"
            )
        parameters, sparse = model._build_params_for_reducer()
        names = model._build_debug_param_to_name_mapping(parameters)
        model.reducer._remove_autograd_hooks()
        model._ddp_init_helper(parameters, sparse, names, model.static_graph)
        if model.static_graph:
            model._static_graph_delay_allreduce_enqueued = False
            model._set_static_graph()
        model._comm_hooks = []
        model.register_comm_hook(state, self.clock.hook(hook))

    # ---- afterwards -------------------------------------------------------------------------------------------------

    def pillars(self) -> list[Pillars]:
        """This rank's steps so far, cut into pillars. With ranks, all must call it together."""
        self._resolve(0)
        return [
            self.clock.pillars(times, last)
            for times, last in zip(self._resolved, self._last_enters(), strict=False)
        ]

    def table(self) -> pa.Table:
        """This rank's steps so far: a row each, in the columns of the table ``steps`` of a run folder.

        ``flops`` and ``loss`` are null: the loop does not tell them. ``start`` counts from when `watch` was called.
        With ranks, all must call it together: they tell each other when they entered each collective.
        """
        rows = [
            {
                "attempt": 0,
                "rank": self.rank,
                "world_size": self.world_size,
                "step": times.step,
                "start": times.start,
                "wall": pillars.wall,
                "io": pillars.io,
                "compute": pillars.compute,
                "comm": pillars.comm,
                "idle": pillars.idle,
                "comm_hidden": pillars.comm_hidden,
                "stall": pillars.stall,
                "samples": samples,
                "learning_rate": rate,
            }
            for times, pillars, samples, rate in zip(
                self._resolved, self.pillars(), self._samples, self._rates, strict=False
            )
        ]
        return pa.Table.from_pylist(rows, schema=SCHEMAS["steps"])

    def summary(self, *, skip: int = 0) -> list[dict[str, float]]:
        """Seconds in each pillar, one dictionary per rank in order of rank. With ranks, all must call it together.

        Arguments:
            skip: leaves out so many steps at the beginning, such as those in which caches warm up.

        Returns:
            ``rank``, ``steps``, ``wall``, ``io``, ``compute``, ``comm``, ``idle`` and ``comm_hidden``: sums over the steps.
        """
        steps = self.pillars()[skip:]
        own: dict[str, float] = {"rank": self.rank, "steps": len(steps)}
        for name in ("wall", "io", "compute", "comm", "idle", "comm_hidden"):
            own[name] = sum(getattr(step, name) for step in steps)
        return self._gathered(own)

    def _last_enters(self) -> list[list[float]]:
        """For each step and bucket, when the last rank entered it; for the steps that all ranks have ended."""
        everyone: Sequence[list[list[float]]] = self._gathered(self._enters)
        agreed = []
        for own, step in zip(self._enters, zip(*everyone, strict=False), strict=False):
            agreed.append(
                [max(enters[bucket] for enters in step if bucket < len(enters)) for bucket in range(len(own))]
            )
        return agreed

    def _gathered(self, value: Any) -> list[Any]:
        if self._control is None:
            return [value]
        everyone: list[Any] = [None] * self.world_size
        dist.all_gather_object(everyone, value, group=self._control)
        return everyone


class _WatchedLoader:
    """A loader whose waits are I/O; otherwise as the one inside."""

    def __init__(self, inside: Any, clock: PillarClock, count: Callable[[Any], None]) -> None:
        self._inside, self._clock, self._count = inside, clock, count

    def __iter__(self) -> Iterator[Any]:
        with self._clock.waiting():
            batches = iter(self._inside)
        while True:
            with self._clock.waiting():
                batch = next(batches, _EXHAUSTED)
            if batch is _EXHAUSTED:
                return
            self._count(batch)
            yield batch

    def __len__(self) -> int:
        return len(self._inside)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inside, name)


def _length(batch: Any) -> int:
    """Samples in a batch: the first dimension of the first tensor in it; 0 if there is none."""
    if isinstance(batch, torch.Tensor):
        return len(batch) if batch.dim() else 0
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        return next((length for item in batch if (length := _length(item))), 0)
    return 0
