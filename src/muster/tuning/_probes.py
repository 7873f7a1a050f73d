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
    """

    loader_samples_per_s: float
    link: Link | None


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
    return Probed(sum(rate for rate, _ in answers), answers[0][1])


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


def _on_rank(context: RankContext, content: dict[str, Any]) -> tuple[float, Link | None]:
    from muster.spec import parse_job

    job = parse_job(content)
    rate = _loader_rate(context, job)
    if context.world_size == 1:
        return rate, None
    from muster.pillars.comm.link_probe import measure_link

    return rate, measure_link(device=context.device, kinds=("all_reduce",), budget_s=LINK_SECONDS)


def _loader_rate(context: RankContext, job: Job) -> float:
    """Samples per second that this rank's loader delivers while those of all the others do the same."""
    import torch.distributed as dist
    from torch.utils.data import DataLoader

    from muster.spec import load_application
    from muster.training.order import GlobalOrder, RankBatches, SeededSamples

    application = load_application(job.what.app)(job.what)
    if context.leader:
        application.prepare()
    dist.barrier(group=context.control)
    data = application.training_data()
    steps = 2**40  # the time ends it
    batches = RankBatches(
        GlobalOrder(len(data), job.how.batch, job.what.seed),
        context.rank,
        context.world_size,
        micro_batch=job.how.micro_batch,
        first_step=0,
        steps=steps,
    )
    workers = job.how.loader_workers
    loader = iter(
        DataLoader(
            SeededSamples(data, job.what.seed),
            batch_sampler=batches,
            num_workers=workers,
            multiprocessing_context="forkserver" if workers else None,
            pin_memory=context.device.type == "cuda",
        )
    )
    for _ in range(2 * workers + 1):  # what the workers had ready before, they did while nobody looked
        next(loader)
    dist.barrier(group=context.control)
    begin, samples = time.perf_counter(), 0
    while True:
        samples += len(_first_tensor(next(loader)))
        context.heartbeat()
        took = time.perf_counter() - begin
        if took >= LOADER_SECONDS:
            break
    del loader
    dist.barrier(group=context.control)
    return samples / took


def _first_tensor(batch: Any) -> Any:
    while isinstance(batch, (list, tuple, dict)):
        batch = next(iter(batch.values() if isinstance(batch, dict) else batch))
    return batch
