"""What a program says besides calling tasks: which executor, and what to wait for."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from muster.engine import gang, hardware
from muster.engine.flow.arguments import LEAVES
from muster.engine.flow.durable import Record
from muster.engine.flow.executor import Executor, Inline
from muster.engine.flow.future import Future
from muster.engine.flow.groups import Group, Speculation
from muster.engine.flow.session import Flow, running_flow, running_node
from muster.engine.flow.threads import Threads
from muster.errors import TaskRefused

_flows: list[Flow] = []


def current() -> Flow:
    """The flow that calls of tasks are added to.

    That of the task that calls, else that of the innermost ``with engine(...)``, else one that runs them inline.
    """
    if (flow := running_flow()) is not None:
        return flow
    if not _flows:
        _flows.append(Flow(Inline(), "inline"))
    return _flows[-1]


@contextlib.contextmanager
def engine(
    executor: Literal["inline", "threads", "ray"] = "threads",
    *,
    workers: int | None = None,
    name: str = "flow",
    run: str | os.PathLike[str] | None = None,
    on: gang.Engine | None = None,
    bundle_s: float | None = None,
) -> Iterator[Flow]:
    """Chooses what runs the tasks that are called within the block, and waits for them at its end.

    ::

        with muster.flow.engine("ray", workers=2):
            parts = [simulate(seed) for seed in range(10)]
            print(wait_on(mean(parts)))

    Arguments:
        executor: ``"inline"`` runs each where it is called; ``"threads"`` on threads of this process, for work that
            releases the interpreter's lock; ``"ray"`` in processes of Ray.
        workers: cores to fill; all of this machine by default.
        name: of the flow, in its report.
        run: a folder in which all that is done is kept: another start with the same folder goes on from there, whatever
            ended this one. Without it nothing is kept.
        on: a started engine (`muster.gang.engine`) for ``"ray"``; by default one of its own on this machine.
        bundle_s: how long the tasks should take that are sent to a worker of Ray together, in seconds; 0 sends each alone.

    Raises:
        TaskRefused: there is no such executor.
        BaseException: what a task raised, where the program has not seen it yet.
    """
    count = workers or hardware.cores()
    with contextlib.ExitStack() as stack:
        chosen: Executor
        if executor == "inline":
            chosen = Inline()
        elif executor == "threads":
            chosen = Threads(count)
        elif executor == "ray":
            from muster.engine.flow.on_ray import BUNDLE_S, OnRay

            session = (on or stack.enter_context(gang.engine("embedded", cpus=count))).session
            if session is None:
                raise TaskRefused(
                    "engine('ray', on=...): found a local engine; give an embedded one or a cluster's"
                )
            chosen = OnRay(session, count, bundle_s=BUNDLE_S if bundle_s is None else bundle_s)
        else:
            raise TaskRefused(
                f"engine({executor!r}): there is no such executor; should be inline, threads or ray"
            )
        flow = Flow(chosen, name, Record(Path(run)) if run is not None else None)
        _flows.append(flow)
        finished = False
        try:
            yield flow
            finished = True
        finally:
            _flows.remove(flow)
            flow.close(wait=finished)


def wait_on(*values: Any) -> Any:
    """The newest version of each value, once it is there.

    Futures, objects that tasks have changed, and lists, tuples and dicts of them are replaced; all else passes through.

    Arguments:
        values: one or several.

    Returns:
        the value of one, a tuple of several. Arrays are read-only: tasks may hold the same ones.

    Raises:
        CancelledError: its task was cancelled.
        BaseException: what its task raised, or one that this needed.
    """
    found = tuple([_latest(each) for each in values])
    return found[0] if len(found) == 1 else found


def _latest(value: Any) -> Any:
    if type(value) in LEAVES:
        return value
    flow = value.flow if type(value) is Future else current()
    with flow.lock:
        datum = flow.data.find(value)
        if datum is not None:
            if datum.deleted:
                raise TaskRefused(f"wait_on: {datum.name} was given to a task as IN_DELETE: it is no more")
            source = datum.read()
            if type(source) is not Future:
                return source
            value = source
    if type(value) is Future:
        return value.result()
    if type(value) in (list, tuple):
        found = [_latest(each) for each in value]
        return found if type(value) is list else tuple(found)
    if type(value) is dict:
        return {key: _latest(each) for key, each in value.items()}
    return value


def as_completed(futures: Iterable[Future], timeout_s: float | None = None) -> Iterator[Future]:
    """Gives futures as they are done, the first done first.

    Arguments:
        futures: of one flow.
        timeout_s: for all of them.

    Raises:
        TimeoutError: they are not done in time.
    """
    left = dict.fromkeys(futures)
    until = None if timeout_s is None else time.monotonic() + timeout_s
    while left:
        done = [each for each in left if each.done()]
        if not done:
            flow = next(iter(left)).flow
            if not flow.wait_until(lambda: any(each.done() for each in left), until):
                raise TimeoutError(f"{len(left)} tasks are not done after {timeout_s} s")
            continue
        for each in done:
            del left[each]
            yield each


def barrier(timeout_s: float | None = None) -> None:
    """Waits for all tasks that were called.

    Raises:
        TimeoutError: they are not done in time.
        BaseException: what a task raised that lets the flow fail.
    """
    current().barrier(None, timeout_s)


def group(name: str, *, wait: bool = False) -> Group:
    """A group of the tasks that are called within its ``with`` block; see `Group`."""
    return Group(current(), name, wait=wait)


def stop_when(
    predicate: Callable[[Any], bool], *, name: str = "speculation", grace_s: float = 1.0
) -> Speculation:
    """Runs ahead of results, and cancels what one of them makes superfluous; see `Speculation`."""
    return Speculation(current(), predicate, name, grace_s)


def cancel_wanted() -> bool:
    """Whether the task that asks should end: it was cancelled, or has had its time."""
    node = running_node()
    if node is None:
        return False
    limit_s = node.task.timeout_s
    return node.stop or (limit_s is not None and time.monotonic() - node.times[-1] > limit_s)
