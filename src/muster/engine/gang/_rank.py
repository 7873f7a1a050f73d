"""What happens inside a rank's process: from its plan to its outcome."""

from __future__ import annotations

import datetime
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muster.engine.gang._context import Line, Place, RankContext, RankPlan, Yielded
from muster.engine.hardware import cores
from muster.errors import MusterError


@dataclass(frozen=True)
class Outcome:
    """How a rank's function ended.

    Arguments:
        kind: `returned`, `yielded`, `refused` (an error that no restart would mend) or `raised`.
        value: what it returned, the reason it yielded, or the error it refused with.
        error: one line, if it raised.
        traceback: the whole of it.
        in_collective: whether it was blocked in a collective then, so that another rank may be to blame.
        when_unix_s: when.
    """

    kind: str
    value: Any = None
    error: str = ""
    traceback: str = ""
    in_collective: bool = False
    when_unix_s: float = 0.0


def this_place(address: str = "127.0.0.1") -> Place:
    """Where this process is, with a free port at ``address``.

    Two containers on one kernel are two machines: neither has the other's loopback or temporary files.
    """
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    namespaces = [os.stat(f"/proc/self/ns/{kind}").st_ino for kind in ("net", "mnt")]
    machine = "-".join([boot_id, *map(str, namespaces)])
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.bind((address, 0))
        port = int(probe.getsockname()[1])
    return Place(socket.gethostname(), machine, address, port, cores())


def run_rank(
    plan: RankPlan, function: Callable[[RankContext], Any], line: Line, *, own_process: bool = True
) -> Outcome:
    """Runs ``function`` as one rank of a gang, in this process; never raises.

    Arguments:
        plan: what the rank is told.
        function: called with its context.
        line: to its supervisor.
        own_process: whether the process is the rank's alone, so that its signals and output are too.
    """
    before = dict(os.environ)
    os.environ.update(plan.environment)
    if own_process and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's: it asks for a save first
    if plan.log is not None:
        _print_into(plan.log)
    context: RankContext | None = None
    try:
        context = _join(plan, line)
        context.heartbeat()
        return Outcome("returned", function(context), when_unix_s=time.time())
    except Yielded as gave_way:
        return Outcome("yielded", gave_way.reason, when_unix_s=time.time())
    except MusterError as error:
        return Outcome("refused", error, when_unix_s=time.time())
    except BaseException as error:
        text = traceback.format_exc()
        print(text, file=sys.stderr, flush=True)
        blocked = context is None or context.clock.in_collective
        line_of_error = traceback.format_exception_only(error)[-1].strip()
        return Outcome("raised", None, line_of_error, text, blocked, time.time())
    finally:
        _leave(context)
        sys.stdout.flush()
        sys.stderr.flush()
        if not own_process:
            os.environ.clear()
            os.environ.update(before)


def _print_into(log: str) -> None:
    """Sends this process's standard output and error into a file, whatever writes to them."""
    sys.stdout.flush()
    sys.stderr.flush()
    target = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)


def _join(plan: RankPlan, line: Line) -> RankContext:
    import torch
    import torch.distributed as dist

    from muster.engine.clock import PillarClock
    from muster.engine.gang._alignment import align_clock

    torch.set_num_threads(plan.threads)
    device = torch.device(plan.device, plan.cuda_index) if plan.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    timeout = datetime.timedelta(seconds=plan.timeout_s)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        init_method=plan.rendezvous,
        rank=plan.rank,
        world_size=plan.world_size,
        timeout=timeout,
    )
    control = dist.new_group(backend="gloo", timeout=timeout)
    here = this_place()
    shift = plan.shift_s
    if here.machine != plan.machine:
        shift = time.time() - plan.epoch_unix_s - time.perf_counter()
    clock = PillarClock(shift, device)
    context = RankContext(plan, line, device=device, clock=clock, control=control)
    align_clock(context, here)
    return context


def _leave(context: RankContext | None) -> None:
    import torch.distributed as dist

    if context is not None and context.events is not None:
        context.events.close()
    if dist.is_initialized():
        dist.destroy_process_group()
