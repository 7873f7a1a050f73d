"""What cannot be read off a run: how fast the loader alone is, and the link alone. Measured by a gang of its own."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from muster.spec import Job

if TYPE_CHECKING:
    from muster.engine.gang import RankContext
    from muster.pillars.comm.link import Link

LOADER_SECONDS: Final = 2.0
LINK_SECONDS: Final = 2.0


@dataclass(frozen=True)
class Probed:
    """What the parts of a job can do by themselves.

    Arguments:
        loader_samples_per_s: samples that all ranks' loaders together deliver when nothing is trained on them.
        link: what collectives cost when nothing else happens; None with one rank.
        samples: length of the data set.
        stored: whether its samples lie in a store, from where they can be read ahead of use.
    """

    loader_samples_per_s: float
    link: Link | None
    samples: int
    stored: bool


def probe(job: Job) -> Probed:
    """Measures a job's loader and link on its engine and number of ranks; trains nothing, writes no run folder.

    Raises:
        MusterError: as `muster.engine.gang.run`.
    """
    from muster.engine import gang, hardware

    where, ranks = job.where, job.how.ranks
    content = job.model_dump(mode="json")
    with (
        _room(),
        gang.engine(where.engine, address=where.address, cpus=max(ranks, hardware.cores())) as engine,
    ):
        device = where.device
        if device == "auto":
            enough = where.engine != "cluster" and ranks <= hardware.nvidia_gpus()
            device = "cuda" if enough else "cpu"
        answers = engine.run(
            lambda context: _on_rank(context, content),
            ranks,
            threads=where.threads_per_rank,
            device=device,
        )
    loaders, links = zip(*answers, strict=True)
    return Probed(
        sum(each.samples_per_s for each in loaders), links[0], loaders[0].samples, loaders[0].stored
    )


@contextlib.contextmanager
def _room() -> Iterator[None]:
    """Ctrl-C ends the measurement as it ends a run.

    Raises:
        Stopped: Ctrl-C; nothing had to be saved.
    """
    from muster.errors import Stopped

    try:
        yield
    except KeyboardInterrupt:
        raise Stopped("stopped while the loader and the link were measured") from None


@dataclass(frozen=True)
class _Loader:
    samples_per_s: float
    samples: int
    stored: bool


def _on_rank(context: RankContext, content: dict[str, Any]) -> tuple[_Loader, Link | None]:
    from muster.spec import parse_job

    job = parse_job(content)
    loader = _loader_alone(context, job)
    if context.world_size == 1:
        return loader, None
    from muster.pillars.comm.link_probe import measure_link

    return loader, measure_link(device=context.device, kinds=("all_reduce",), budget_s=LINK_SECONDS)


def _loader_alone(context: RankContext, job: Job) -> _Loader:
    """What this rank's loader delivers while those of all the others do the same."""
    import torch.distributed as dist

    from muster.pillars.io.samples import StoredSamples
    from muster.spec import load_application
    from muster.training.input import Input, looks_ahead

    application = load_application(job.what.app)(job.what)
    if context.leader:
        application.prepare()
    dist.barrier(group=context.control)
    data = application.training_data()
    # Who looks ahead plans for all steps; for others the time ends it.
    steps = job.how.steps if looks_ahead(data, job.how) else 2**40
    source = Input(context, data, job.how, job.what.seed, first_step=0, steps=steps)
    batches = source.batches()
    for _ in range(2 * job.how.loader_workers + 1):  # made before anybody looked
        next(batches, None)
    dist.barrier(group=context.control)
    begin, samples, took = time.perf_counter(), 0, 0.0
    while took < LOADER_SECONDS and (batch := next(batches, None)) is not None:
        samples += len(_first_tensor(batch))
        context.heartbeat()
        took = time.perf_counter() - begin
    dist.barrier(group=context.control)
    source.close()
    return _Loader(samples / took if took else 0.0, len(data), isinstance(data, StoredSamples))  # type: ignore[arg-type]


def _first_tensor(batch: Any) -> Any:
    while isinstance(batch, (list, tuple, dict)):
        batch = next(iter(batch.values() if isinstance(batch, dict) else batch))
    return batch
