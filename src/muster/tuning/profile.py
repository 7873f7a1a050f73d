"""Profiles: a job run for some steps, its collectives by size class, its loader and link alone, and what limits it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from muster.engine.run_folder import RunFolder
from muster.errors import RefusedInput
from muster.pillars.compute.roofline import Placement
from muster.pillars.compute.roofline_record import RooflineRecord
from muster.spec import Job, load_job, located
from muster.training.preflight import preflight, refuse_pool
from muster.tuning._exposure import Columns
from muster.tuning._measured import StepTimes, counted, step_times
from muster.tuning._probes import Probed, probe
from muster.tuning._size_classes import SizeClass, size_classes
from muster.tuning._trial import trial_job
from muster.tuning._verdict import Facts, Verdict, verdict


@dataclass(frozen=True)
class Profile:
    """What a profile found.

    Arguments:
        name: of the job.
        job: as it was run.
        run: the run folder, which holds every row that this was computed from.
        times: of the counted steps.
        classes: its collectives by size class, over the counted steps.
        probed: its loader and its link by themselves.
        training_samples_per_s: samples per second that training would take if it never waited for data.
        roofline: where a rank's median step stands under this machine's roofline; None where the run recorded none.
        verdict: what limits it.
    """

    name: str
    job: Job
    run: RunFolder
    times: StepTimes
    classes: tuple[SizeClass, ...]
    probed: Probed
    training_samples_per_s: float
    roofline: Placement | None
    verdict: Verdict

    @property
    def page(self) -> Path:
        """Where its page is."""
        return self.run.path / "profile.html"

    @property
    def link_bytes_per_s(self) -> float | None:
        """The link's algorithm bandwidth for large all-reduces; None with one rank."""
        link = self.probed.link
        return None if link is None else link.bytes_per_second("all_reduce")

    def as_json(self) -> dict[str, Any]:
        """The keys of ``muster profile --json``; docs/cli.md documents them."""
        times, link = self.times, self.probed.link
        return {
            "job": self.name,
            "run": str(self.run.path),
            "page": str(self.page),
            "ranks": times.ranks,
            "batch": self.job.how.batch,
            "steps": times.steps,
            "samples_per_s": times.samples_per_s,
            "step_s": times.step_s,
            "pillars_s": times.pillars,
            "shares": times.shares,
            "comm_hidden_s": times.comm_hidden,
            "critical_s": times.critical,
            "input": {
                "wait_s": times.pillars["io"],
                "loader_samples_per_s": self.probed.loader_samples_per_s,
                "training_samples_per_s": self.training_samples_per_s,
            },
            "collectives": [asdict(each) | {"achieved": each.achieved} for each in self.classes],
            "link": None
            if link is None
            else {
                "world_size": link.world_size,
                "backend": link.backend,
                "bytes": list(link.curves["all_reduce"].bytes),
                "all_reduce_s": list(link.curves["all_reduce"].seconds),
            },
            "roofline": None if self.roofline is None else self.roofline.as_dict(),
            "verdict": asdict(self.verdict),
        }


def profile(
    path: str,
    settings: Sequence[str] = (),
    *,
    steps: int = 50,
    progress: bool = True,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Profile:
    """Profiles a job: runs it for some steps in a run folder of its own, then measures its loader and link alone.

    Arguments:
        path: the job file.
        settings: as ``--set`` takes them.
        steps: that count; a few more are run to warm up.
        progress: whether to show a progress bar on a terminal.
        on_stage: called with what is being done.

    Raises:
        RefusedInput: job, machine or arguments do not allow it; nothing has been started.
        MusterError: as `muster.run`.
    """
    from muster._run import run

    if steps < 2:
        raise RefusedInput(f"--steps: found {steps}; expected at least 2 steps to measure")
    job = load_job(path, settings)
    with located(path, settings):
        refuse_pool(job, "profile")
    with located(path, settings):
        preflight(job)
        trial = trial_job(job, name=f"{job.name[:56]}-profile", steps=steps)
    on_stage("running the job")
    folder = run(trial, progress=progress).folder
    on_stage("measuring the loader and the link by themselves")
    return analyse(job, folder, probe(trial))


def analyse(job: Job, folder: RunFolder, probed: Probed) -> Profile:
    """The profile of a run that is on record.

    Arguments:
        job: as the user wrote it.
        folder: of a trial of it.
        probed: its loader and link by themselves.
    """
    facts = facts_of(job, folder, probed)
    return Profile(
        name=job.name,
        job=job,
        run=folder,
        times=facts.times,
        classes=tuple(facts.classes),
        probed=probed,
        training_samples_per_s=facts.training_samples_per_s,
        roofline=facts.roofline,
        verdict=verdict(facts),
    )


def facts_of(job: Job, folder: RunFolder, probed: Probed, warm_up: int | None = None) -> Facts:
    """What a verdict on a job is drawn from; arguments as `analyse` and `counted`."""
    steps, collectives = counted(folder, warm_up)
    times, link = step_times(steps), probed.link
    link_time = None if link is None else (lambda size: link.seconds("all_reduce", size))
    record = RooflineRecord.read(folder.path)
    return Facts(
        job=job,
        times=times,
        classes=size_classes(steps, collectives, link_time) if times.ranks > 1 else (),
        loader_samples_per_s=probed.loader_samples_per_s,
        link_bytes_per_s=None if link is None else link.bytes_per_second("all_reduce"),
        roofline=None if record is None else record.placement(_rows(steps)),
        stored=probed.stored,
    )


def _rows(steps: Columns) -> list[dict[str, Any]]:
    names = ("world_size", "step", "samples", "flops", "compute")
    return [
        dict(zip(names, row, strict=True))
        for row in zip(*(steps[name].tolist() for name in names), strict=True)
    ]
