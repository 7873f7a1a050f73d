"""`torch.compile` around a module's forward pass that can be taken off again, and the trial that decides whether it stays.

Whether compiling pays depends on model, device and compiler, so ``auto`` measures it: forward and backward passes of the very
training step, eager and compiled in turn, on all ranks together. A compiler that is missing or fails loses the trial.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
import torch.distributed as dist

#: Compiled passes must be at least so much faster to be kept: below it, compiling for new shapes costs more than it brings.
LEAST_GAIN: Final = 0.02
_REPEATS: Final = 5


class CompiledForward:
    """Puts a compiled forward pass into a module and takes it out again; the module stays the same object.

    Under DistributedDataParallel, wrap the inner module: the compiler still splits the graph at gradient buckets, so that
    communication overlaps with the backward pass. Code is compiled for fixed shapes, a function of the shapes alone, so
    that a run that resumes computes with the same code; each further shape compiles anew, up to torch's limit.

    Arguments:
        module: any; its ``forward`` is compiled at the first call.
        backend: of `torch.compile`.
    """

    def __init__(self, module: torch.nn.Module, backend: str = "inductor") -> None:
        self._module = module
        # One compiling process per rank: a pool of workers for each rank would fight for the cores and outlive a kill.
        options: dict[str, Any] | None = {"compile_threads": 1} if backend == "inductor" else None
        self._compiled: Any = torch.compile(module.forward, backend=backend, dynamic=False, options=options)
        self.enabled = False

    def enable(self) -> None:
        """From now on the module computes compiled."""
        self._module.forward = self._compiled  # type: ignore[method-assign]
        self.enabled = True

    def disable(self) -> None:
        """From now on the module computes as it was written."""
        self._module.__dict__.pop("forward", None)
        self.enabled = False

    @contextmanager
    def eager(self) -> Iterator[None]:
        """The module as it was written, such as for an evaluation on other shapes."""
        was = self.enabled
        self.disable()
        try:
            yield
        finally:
            if was:
                self.enable()


@dataclass(frozen=True)
class CompileTrial:
    """How a trial went.

    Arguments:
        kept: whether the forward pass stays compiled.
        why: in words.
        eager_s, compiled_s: median seconds of a forward and backward pass, on the slowest rank; None if not measured.
        compile_s: seconds of compiling, on the slowest rank.
        failure: what the compiler said, on the first rank where it failed.
    """

    kept: bool
    why: str
    eager_s: float | None = None
    compiled_s: float | None = None
    compile_s: float | None = None
    failure: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def try_compiling(
    compiled: CompiledForward,
    local_pass: Callable[[], object],
    joint_pass: Callable[[], object],
    *,
    must: bool,
    device: torch.device,
    group: dist.ProcessGroup | None = None,
    alive: Callable[[], None] = lambda: None,
) -> CompileTrial:
    """Compiles, measures unless it ``must`` be kept, and leaves the forward pass compiled or not; all ranks call it together.

    Arguments:
        compiled: of the module that both passes run.
        local_pass: a forward and backward pass without communication; it compiles.
        joint_pass: the same with communication; it is measured.
        must: keep it if only it compiles.
        device: where the module computes.
        group: of CPU tensors, to agree in; None: the default group, or this process alone without one.
        alive: called between passes.

    Returns:
        The same decision on all ranks.
    """
    began, failure = time.perf_counter(), ""
    compiled.enable()
    try:
        local_pass()
        local_pass()
        _settle(device)
    except Exception as error:
        failure = _reason(error)
        compiled.disable()
    alive()
    compile_s = _slowest(time.perf_counter() - began, group)
    if failures := [text for text in _of_all(failure, group) if text]:
        compiled.disable()
        return CompileTrial(
            False, f"it does not compile: {failures[0]}", compile_s=compile_s, failure=failures[0]
        )
    if must:
        return CompileTrial(True, "how.compile is on", compile_s=compile_s)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for repeat in range(_REPEATS + 1):
        for use in (False, True) if repeat % 2 else (True, False):
            compiled.enable() if use else compiled.disable()
            started = time.perf_counter()
            joint_pass()
            _settle(device)
            if repeat:  # the first pair warms up
                seconds[use].append(time.perf_counter() - started)
            alive()
    eager_s, compiled_s = (_slowest(statistics.median(seconds[use]), group) for use in (False, True))
    kept = compiled_s < (1 - LEAST_GAIN) * eager_s
    compiled.enable() if kept else compiled.disable()
    why = f"{eager_s / compiled_s:.2f} × as fast as eager ({compiled_s * 1e3:.3g} beside {eager_s * 1e3:.3g} ms)"
    return CompileTrial(kept, why, eager_s, compiled_s, compile_s)


def _reason(error: Exception) -> str:
    """What a compiler said, in short; the usual cause on a CPU is that there is none."""
    compiler = os.environ.get("CXX", "g++")
    if type(error).__name__ in ("InvalidCxxCompiler", "InductorError") and shutil.which(compiler) is None:
        return f"no C++ compiler {compiler!r} is installed"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])}"[:300]


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _of_all(value: Any, group: dist.ProcessGroup | None) -> list[Any]:
    """The value of every rank, in order."""
    if not dist.is_initialized():
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, value, group=group)
    return gathered


def _slowest(seconds: float, group: dist.ProcessGroup | None) -> float:
    return max(_of_all(seconds, group))
