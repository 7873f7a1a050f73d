"""Tuning: measure a job, propose single changes, keep those that win, write the job that is left.

What limits the job comes from a profile (`muster.tuning.profile`), what may be changed from `muster.tuning._levers`.
Each proposal runs in turn with the best job so far; it is kept if the 95 % interval of the ratio of their speeds lies
above 1. In the end the tuned job runs against the job as it was.
"""

from __future__ import annotations

import datetime
import json
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from muster.engine.run_folder import RunFolder
from muster.errors import MusterError, Preempted, RefusedInput, Stopped
from muster.spec import Job, load_job, located
from muster.spec.writing import flow
from muster.training.preflight import preflight, refuse_pool
from muster.tuning._duel import Duel, duel
from muster.tuning._intervals import Interval
from muster.tuning._levers import LEVERS, Lever, Proposal, proposals
from muster.tuning._measured import StepTimes, counted, step_times
from muster.tuning._probes import Probed, probe
from muster.tuning._trial import trial_job, warm_up_steps, with_changes
from muster.tuning._tuned_file import write_tuned
from muster.tuning._verdict import Facts, Verdict, verdict
from muster.tuning.profile import facts_of

Outcome = Literal["kept", "lost", "failed", "not tried"]

#: A proposal is not begun in the last part of the budget: the final comparison needs it.
_RESERVE: Final = 0.2


@dataclass(frozen=True)
class Tried:
    """A proposal and what came of it.

    Arguments:
        proposal: the change.
        was: the value before.
        outcome: ``kept``; ``lost`` (not surely faster); ``failed`` (the job does not run with it); ``not tried`` (no time).
        ratio: of samples per second with and without it; None where nothing was measured.
        detail: why it failed, or empty.
    """

    proposal: Proposal
    was: Any
    outcome: Outcome
    ratio: Interval | None
    detail: str = ""


@dataclass(frozen=True)
class Tuning:
    """What tuning a job came to.

    Arguments:
        job: as it was.
        folder: holds the run folder of every trial.
        before, after: where the time went; the same if nothing was kept.
        limit_before, limit_after: what limited it and what limits it.
        tried: in order.
        gain: samples per second of the tuned job over those of the job as it was, in turn; None if nothing was kept.
        tuned: the tuned job file; None if nothing was kept.
        seconds: it took.
    """

    job: Job
    folder: Path
    before: StepTimes
    after: StepTimes
    limit_before: Verdict
    limit_after: Verdict
    tried: tuple[Tried, ...]
    gain: Interval | None
    tuned: Path | None
    seconds: float

    @property
    def page(self) -> Path:
        """Where its page is."""
        return self.folder / "tune.html"

    @property
    def kept(self) -> tuple[Tried, ...]:
        """The changes that won."""
        return tuple(one for one in self.tried if one.outcome == "kept")

    def as_json(self) -> dict[str, Any]:
        """The keys of ``muster tune --json``; docs/cli.md documents them."""

        def side(times: StepTimes, limit: Verdict) -> dict[str, Any]:
            return {
                "samples_per_s": times.samples_per_s,
                "step_s": times.step_s,
                "shares": times.shares,
                "limit": limit.pillar,
                "sentence": limit.sentence,
            }

        return {
            "job": self.job.name,
            "folder": str(self.folder),
            "page": str(self.page),
            "tuned": None if self.tuned is None else str(self.tuned),
            "seconds": self.seconds,
            "before": side(self.before, self.limit_before),
            "after": side(self.after, self.limit_after),
            "gain": None if self.gain is None else self.gain.plain(),
            "proposals": [
                {
                    "key": one.proposal.lever.key,
                    "pillar": one.proposal.lever.pillar,
                    "was": one.was,
                    "value": one.proposal.value,
                    "why": one.proposal.why,
                    "changes_results": one.proposal.lever.changes_results,
                    "outcome": one.outcome,
                    "ratio": None if one.ratio is None else one.ratio.plain(),
                    "detail": one.detail,
                }
                for one in self.tried
            ],
        }


def tune(
    path: str,
    settings: Sequence[str] = (),
    *,
    budget_s: float = 600.0,
    steps: int = 20,
    pairs: int = 5,
    output: Path | None = None,
    levers: Sequence[Lever] = LEVERS,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Tuning:
    """Tunes a job.

    Arguments:
        path: the job file.
        settings: as ``--set`` takes them; they are in the tuned file too.
        budget_s: no trial is begun after so long, but those of the final comparison.
        steps: counted steps of a trial.
        pairs: how often a proposal and the best job so far run in turn.
        output: the tuned job file; by default ``<job>.tuned.yaml`` beside the job file.
        levers: what may be changed.
        on_stage: called with what is being done.

    Raises:
        RefusedInput: job, machine or arguments do not allow it; nothing has been started.
        MusterError: the job itself fails; as `muster.run`.
    """
    for name, value, least in (("--steps", steps, 2), ("--pairs", pairs, 3)):
        if value < least:
            raise RefusedInput(f"{name}: found {value}; expected at least {least}")
    job = load_job(path, settings)
    with located(path, settings):
        refuse_pool(job, "tune")
    output = output or Path(path).with_suffix(".tuned.yaml")
    if not output.parent.is_dir():
        raise RefusedInput(f"-o: there is no folder {output.parent}; name a file in one that exists")
    with located(path, settings):
        preflight(job)
    return _Tuner(job, Path(path), settings, budget_s, steps, pairs, output, levers, on_stage).run()


class _Tuner:
    def __init__(
        self,
        job: Job,
        source: Path,
        settings: Sequence[str],
        budget_s: float,
        steps: int,
        pairs: int,
        output: Path,
        levers: Sequence[Lever],
        on_stage: Callable[[str], None],
    ) -> None:
        self._job, self._source, self._settings = job, source, settings
        self._budget_s, self._steps, self._pairs = budget_s, steps, pairs
        self._output, self._levers, self._on_stage = output, levers, on_stage
        self._began = time.monotonic()
        self._longest_s = 0.0
        now = datetime.datetime.now(datetime.UTC)
        self._folder = (job.where.runs / f"tune-{job.name}-{now:%Y%m%dT%H%M%SZ}").absolute()
        self._trials = 0

    def run(self) -> Tuning:
        self._on_stage("measuring the job as it is")
        best, changes = self._job, dict[str, Any]()
        self._probed = probe(best)
        facts = self._facts(best, self._measure(best), self._probed)
        before, limit_before = facts.times, verdict(facts)
        self._on_stage(limit_before.sentence)
        tried: list[Tried] = []
        won: list[Duel] = []
        while (proposal := self._next(facts, tried)) is not None:
            outcome, fought = self._try(best, proposal, facts.times.step_s)
            tried.append(outcome)
            if outcome.outcome == "kept":
                best = with_changes(best.model_dump(mode="json"), proposal.changes)
                changes |= proposal.changes
                assert fought is not None
                won.append(fought)
                facts = self._facts(best, self._last_run, probe(best))
            self._on_stage(_said(outcome))
        final = self._final(best, won)
        gain = None if final is None else final.ratio
        if gain is not None and gain.low <= 1:
            self._on_stage(
                "the changes together are not surely faster than the job as it was: nothing is written"
            )
            changes, tuned = {}, None
        else:
            tuned = self._write(changes, tried, gain) if gain is not None else None
        found = Tuning(
            job=self._job,
            folder=self._folder,
            before=before if final is None else final.champion,
            after=before if final is None else final.challenger,
            limit_before=limit_before,
            limit_after=verdict(facts) if changes else limit_before,
            tried=tuple(tried),
            gain=gain,
            tuned=tuned,
            seconds=time.monotonic() - self._began,
        )
        draft = self._folder / ".tune.json.tmp"
        draft.write_text(json.dumps(found.as_json(), indent=2), encoding="utf-8")
        draft.replace(self._folder / "tune.json")
        return found

    def _next(self, facts: Facts, tried: list[Tried]) -> Proposal | None:
        """The most promising proposal whose value has been neither tried nor left behind."""
        done = {
            (one.proposal.lever.key, flow(value)) for one in tried for value in (one.proposal.value, one.was)
        }
        for proposal in proposals(facts, verdict(facts).pillar, self._levers):
            if (proposal.lever.key, flow(proposal.value)) not in done:
                return proposal
        return None

    def _try(self, best: Job, proposal: Proposal, step_s: float) -> tuple[Tried, Duel | None]:
        was = _plain(best, proposal.lever.key)
        if not self._time_left():
            return Tried(proposal, was, "not tried", None, "the budget is spent"), None
        self._on_stage(f"trying {proposal.lever.key}: {flow(was)} → {flow(proposal.value)}, {proposal.why}")
        try:
            challenger = with_changes(best.model_dump(mode="json"), proposal.changes)
            preflight(challenger)
            if (longer := self._longer(challenger, step_s)) is not None:
                return Tried(proposal, was, "not tried", None, longer), None
            fought = duel(
                lambda: self._timed(best),
                lambda: self._timed(challenger, remember=True),
                pairs=self._pairs,
                time_left=self._time_left,
            )
        except (Stopped, Preempted):
            raise
        except MusterError as error:
            return Tried(proposal, was, "failed", None, str(error)), None
        if fought is None:
            return Tried(proposal, was, "not tried", None, "the budget is spent"), None
        detail = (
            ""
            if fought.complete or fought.ratio.median < 1
            else "the budget was spent before all pairs were run"
        )
        return Tried(proposal, was, "kept" if fought.won else "lost", fought.ratio, detail), fought

    def _final(self, best: Job, won: list[Duel]) -> Duel | None:
        """The tuned job against the job as it was; with a single change that has been fought already."""
        if len(won) < 2:
            return won[0] if won else None
        self._on_stage("the tuned job against the job as it was")
        return duel(lambda: self._timed(self._job), lambda: self._timed(best), pairs=self._pairs)

    # ---- trials --------------------------------------------------------------------------------------------------

    def _time_left(self) -> bool:
        used = time.monotonic() - self._began
        return used + 2 * self._longest_s <= (1 - _RESERVE) * self._budget_s

    def _timed(self, job: Job, *, remember: bool = False) -> StepTimes:
        run = self._measure(job)
        if remember:
            self._last_run = run
        return step_times(counted(run, self._warm_up(job))[0])

    def _warm_up(self, job: Job) -> int:
        """Steps of a trial that do not count. Who looks ahead shows what it is worth once every sample has been read."""
        warm_up = warm_up_steps(job.how.loader_workers)
        if not self._probed.stored or job.how.input.loader == "plain":
            return warm_up
        return max(warm_up, -(-self._probed.samples // job.how.batch) + 1)

    def _longer(self, job: Job, step_s: float) -> str | None:
        """A sentence if trials of a job are longer than the budget, for want of a whole epoch before they count."""
        left = (1 - _RESERVE) * self._budget_s - (time.monotonic() - self._began)
        warm_up = self._warm_up(job)
        needed = self._pairs * warm_up * step_s
        if warm_up == warm_up_steps(job.how.loader_workers) or needed <= left:
            return None
        return (
            f"an epoch of {warm_up - 1:,} steps before each trial takes {needed:.0f} s in all, "
            f"and {left:.0f} s of the budget are left"
        )

    def _measure(self, job: Job) -> RunFolder:
        from muster._run import run

        self._trials += 1
        trial = trial_job(
            job,
            name=f"trial-{self._trials:03d}",
            steps=self._steps,
            changes={"where.runs": str(self._folder / "trials")},
            warm_up=self._warm_up(job),
        )
        began = time.monotonic()
        done = run(trial, progress=False).folder
        self._longest_s = max(self._longest_s, time.monotonic() - began)
        for checkpoint in done.checkpoints.iterdir():  # only its tables are wanted
            shutil.rmtree(checkpoint)
        return done

    def _facts(self, job: Job, run: RunFolder, probed: Probed) -> Facts:
        return facts_of(job, run, probed, self._warm_up(job))

    # ---- the tuned file ------------------------------------------------------------------------------------------

    def _write(self, changes: dict[str, Any], tried: list[Tried], gain: Interval) -> Path:
        from muster.spec.yaml_reading import read_yaml

        given = {}
        for setting in self._settings:
            key, _, text = setting.partition("=")
            given[key.strip()] = read_yaml(text.encode(), "--set").content
        now = datetime.datetime.now(datetime.UTC)
        remarks = [
            f"{self._source.name} tuned by `muster tune` on {platform.node()}, {now:%Y-%m-%d}: "
            f"{times(gain)} as fast, {self._pairs} pairs of {self._steps} steps in turn.",
            *(f"{change(one)}: {times(one.ratio)}" for one in tried if one.outcome == "kept"),
        ]
        remarks += [f"{key} was set by --set" for key in given]
        write_tuned(self._source, self._output, given | changes, remarks)
        return self._output.absolute()


def _plain(job: Job, key: str) -> Any:
    place: Any = job.model_dump(mode="json")
    for part in key.split("."):
        place = place[part]
    return place


def change(one: Tried) -> str:
    """A proposal as a person reads it, such as ``how.precision: fp32 → bf16``."""
    return f"{one.proposal.lever.key}: {flow(one.was)} → {flow(one.proposal.value)}"


def times(ratio: Interval | None) -> str:
    """A factor with its interval, such as ``1.32 [1.28, 1.37] ×``."""
    return "–" if ratio is None else f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] ×"


def _said(one: Tried) -> str:
    return f"{change(one)}: {one.outcome}, {times(one.ratio)} {one.detail}".rstrip()
