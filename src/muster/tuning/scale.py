"""Scaling studies: a job at several numbers of ranks, in turn, as often as asked; a study that was cut short goes on.

Everything a study has measured is in its folder: a run folder for each point and repeat in ``points/``, and ``study.json``,
which says of which job and with which settings. Figures are computed from the run folders alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from muster.engine.run_folder import RunFolder
from muster.errors import RefusedInput, RunLocked
from muster.spec import Job, load_job, located
from muster.spec.machine import cores
from muster.training.preflight import preflight, refuse_pool
from muster.tuning._measured import StepTimes, counted, step_times
from muster.tuning._scaling import Scaling, scaling
from muster.tuning._trial import trial_job

FORMAT: Final = 1
MODES: Final = ("weak", "strong")

Point = tuple[int, int]  # ranks, global batch


@dataclass(frozen=True)
class Study:
    """What is to be measured; made by `plan`.

    Arguments:
        job: the job.
        folder: of the study.
        ranks: numbers of ranks, rising.
        modes: some of `MODES`.
        steps: counted steps of each measurement.
        repeats: measurements of each point.
        threads: of each rank's arithmetic, the same at every point; None where the machines are a cluster's.
        points: what to run for each mode.
        jobs: the job of each point.
        notes: what the reader of the figures must know.
    """

    job: Job
    folder: Path
    ranks: tuple[int, ...]
    modes: tuple[str, ...]
    steps: int
    repeats: int
    threads: int | None
    points: dict[str, tuple[Point, ...]]
    jobs: dict[Point, Job]
    notes: tuple[str, ...] = field(default=())

    @property
    def page(self) -> Path:
        return self.folder / "scale.html"

    def order(self) -> list[tuple[Point, int]]:
        """Every measurement in the order in which they are made: all points once, then all again."""
        return [(point, repeat) for repeat in range(1, self.repeats + 1) for point in self.jobs]


def plan(
    path: str,
    settings: Sequence[str],
    *,
    ranks: Sequence[int],
    modes: Sequence[str],
    steps: int,
    repeats: int,
    folder: Path | None = None,
) -> Study:
    """Works out a study and refuses what cannot be; starts nothing and writes nothing.

    The threads of a rank are the same at every point: those of the job, or the cores divided among the most ranks. Otherwise
    few ranks would have more cores each, and what is compared would not be ranks.

    Arguments:
        path: the job file.
        settings: as ``--set`` takes them.
        ranks: numbers of ranks, each once.
        modes: some of `MODES`.
        steps: counted steps of each measurement.
        repeats: measurements of each point.
        folder: of the study; by default one beside the runs whose name follows from job and settings.

    Raises:
        RefusedInput: the job, this machine or an argument does not allow the study.
    """
    job = load_job(path, settings)
    with located(path, settings):
        refuse_pool(job, "scale")
    _check_arguments(ranks, steps, repeats)
    ranks = tuple(sorted(ranks))
    threads = job.where.threads_per_rank
    if threads is None and job.where.engine != "cluster":
        threads = max(1, cores() // max(ranks))
    points = {mode: tuple(_point(job, mode, count) for count in ranks) for mode in modes}
    digest = _digest(job, steps, threads)
    folder = (folder or job.where.runs / f"scale-{job.name}-{digest[:8]}").absolute()
    jobs: dict[Point, Job] = {}
    with located(path, settings):
        for point in sorted({point for chosen in points.values() for point in chosen}):
            jobs[point] = _job_of(job, point, steps, threads, folder)
            preflight(jobs[point])
    study = Study(
        job, folder, ranks, tuple(modes), steps, repeats, threads, points, jobs, _notes(job, ranks, threads)
    )
    _check_folder(study, digest)
    return study


def _check_arguments(ranks: Sequence[int], steps: int, repeats: int) -> None:
    if not ranks or min(ranks) < 1 or len(set(ranks)) != len(ranks):
        found = ",".join(map(str, ranks))
        raise RefusedInput(
            f"--ranks: found {found!r}; expected different whole numbers from 1, such as 1,2,4"
        )
    if steps < 2:
        raise RefusedInput(f"--steps: found {steps}; expected at least 2 steps to measure")
    if repeats < 1:
        raise RefusedInput(f"--repeats: found {repeats}; expected at least 1")


def _point(job: Job, mode: str, ranks: int) -> Point:
    batch = job.how.batch
    if mode == "strong":
        if ranks > batch:
            raise RefusedInput(
                f"--ranks: {ranks} ranks cannot share how.batch ({batch}), which strong scaling keeps; "
                f"expected at most {batch}, or --weak"
            )
        return ranks, batch
    if batch % job.how.ranks:
        raise RefusedInput(
            f"--weak: how.batch ({batch}) is no multiple of how.ranks ({job.how.ranks}), so no batch per rank can be kept; "
            f"set how.batch to {batch - batch % job.how.ranks or job.how.ranks}"
        )
    return ranks, batch // job.how.ranks * ranks


def _job_of(job: Job, point: Point, steps: int, threads: int | None, folder: Path) -> Job:
    ranks, batch = point
    changes: dict[str, Any] = {
        "how.ranks": ranks,
        "how.batch": batch,
        "where.threads_per_rank": threads,
        "where.runs": str(folder / "points"),
    }
    if job.how.micro_batch is not None:
        changes["how.micro_batch"] = min(job.how.micro_batch, batch)
    return trial_job(job, name=f"r{ranks}-b{batch}", steps=steps, changes=changes)


def _notes(job: Job, ranks: Sequence[int], threads: int | None) -> tuple[str, ...]:
    if job.where.engine == "cluster":
        return ()
    here = cores()
    found = []
    if job.where.device != "cuda" and max(ranks) * (threads or 1) > here:
        found.append(
            f"{max(ranks)} ranks with {threads} thread{'s' * (threads != 1)} each contend for {here} core{'s' * (here > 1)}: "
            "this measures contention, not what more machines would give"
        )
    if min(ranks) * (threads or 1) < here and max(ranks) > 1:
        found.append(
            f"each rank has {threads} thread{'s' * (threads != 1)} at every point, so that ranks are compared and not cores"
        )
    return tuple(found)


def _digest(job: Job, steps: int, threads: int | None) -> str:
    """Of all that a measurement depends on beside its ranks and batch."""
    content = job.model_dump(mode="json")
    for part, key in (("how", "ranks"), ("where", "runs"), ("where", "min_ranks"), ("where", "max_ranks")):
        content[part].pop(key)
    here = None if job.where.engine == "cluster" else platform.node()
    text = json.dumps([FORMAT, content, job.how.batch / job.how.ranks, steps, threads, here], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _check_folder(study: Study, digest: str) -> None:
    stated = study.folder / "study.json"
    if stated.is_file():
        try:
            known = json.loads(stated.read_text(encoding="utf-8"))["digest"]
        except (ValueError, KeyError, TypeError):
            known = None
        if known != digest:
            raise RefusedInput(
                f"{study.folder} holds a study of another job or other settings; remove it or name another folder with -o"
            )
    elif study.folder.exists() and (not study.folder.is_dir() or any(study.folder.iterdir())):
        raise RefusedInput(f"{study.folder} is no study's folder and not empty; name another one with -o")


def finished(study: Study) -> dict[tuple[Point, int], RunFolder]:
    """The measurements that are on record."""
    wanted = {
        f"r{ranks}-b{batch}-{repeat}": ((ranks, batch), repeat) for (ranks, batch), repeat in study.order()
    }
    found = {}
    for run in RunFolder.list(study.folder / "points"):
        state = run.state()
        if state["name"] in wanted and state["status"] == "done":
            found[wanted[state["name"]]] = run
    return found


def measure(study: Study, on_point: Callable[[Point, int], None] = lambda point, repeat: None) -> None:
    """Makes the measurements that are not on record yet.

    Arguments:
        study: what to measure.
        on_point: called before each measurement, with its repeat from 1.

    Raises:
        RunLocked: another process works on this study.
        MusterError: as `muster.run`; what has been measured stays, and the next call goes on from there.
    """
    from muster._run import run

    with _locked(study):
        for point, repeat in study.order():
            if (point, repeat) in finished(study):
                continue
            on_point(point, repeat)
            name = f"r{point[0]}-b{point[1]}-{repeat}"
            for left in (study.folder / "points").glob(f"{name}-*"):  # cut short: measured anew
                shutil.rmtree(left)
            done = run(study.jobs[point].model_copy(update={"name": name}), progress=False)
            counted(done.folder)  # refuses here, not when everything has been measured, what recorded no step
            _forget_weights(done.folder)
        for measured in finished(study).values():
            _forget_weights(measured)  # where a kill came in between


def _forget_weights(run: RunFolder) -> None:
    """A study wants the tables of its runs; the checkpoints of many would fill the disk."""
    for checkpoint in run.checkpoints.iterdir():
        shutil.rmtree(checkpoint)


@contextlib.contextmanager
def _locked(study: Study) -> Iterator[None]:
    study.folder.mkdir(parents=True, exist_ok=True)
    with (study.folder / "lock").open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunLocked(
                f"another process works on the study in {study.folder}; stop that one first"
            ) from None
        stated = {
            "format": FORMAT,
            "job": study.job.name,
            "digest": _digest(study.job, study.steps, study.threads),
            "steps": study.steps,
            "threads_per_rank": study.threads,
        }
        draft = study.folder / ".study.json.tmp"
        draft.write_text(json.dumps(stated, indent=2), encoding="utf-8")
        draft.replace(study.folder / "study.json")
        yield


def result(study: Study) -> tuple[Scaling, ...]:
    """The figures of a study that is on record in full, one for each mode."""
    runs = finished(study)
    measured: dict[Point, list[StepTimes]] = {
        point: [step_times(counted(runs[point, repeat])[0]) for repeat in range(1, study.repeats + 1)]
        for point in study.jobs
    }
    return tuple(
        scaling(mode, {point: measured[point] for point in study.points[mode]}) for mode in study.modes
    )


def as_json(study: Study, found: Sequence[Scaling]) -> dict[str, Any]:
    """The keys of ``muster scale --json``; docs/cli.md documents them."""
    return {
        "job": study.job.name,
        "folder": str(study.folder),
        "page": str(study.page),
        "steps": study.steps,
        "repeats": study.repeats,
        "threads_per_rank": study.threads,
        "cores": cores(),
        "notes": list(study.notes),
        "studies": [
            {
                "mode": one.mode,
                "limit": one.limit,
                "sentence": one.sentence,
                "points": [
                    {
                        "ranks": point.ranks,
                        "batch": point.batch,
                        "samples_per_s": point.samples_per_s.plain(),
                        "step_s": point.step_s,
                        "speed_up": point.speed_up.plain(),
                        "efficiency": point.efficiency.plain(),
                        "shares": point.shares,
                        "pillars_s": point.pillars,
                        "comm_hidden_s": point.comm_hidden,
                        "lost_s": point.lost,
                    }
                    for point in one.points
                ],
            }
            for one in found
        ],
    }
