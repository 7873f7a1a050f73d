"""Is anything lost when a process of a run is killed? Every kind of process, at random moments and during writes.

    python benchmarks/chaos.py [--each 5] [--during-write 3] [--app network|superres] [--quick]

A run on an embedded Ray with two ranks is started with `muster run` and no restart allowed. One process gets SIGKILL at a
seeded random moment after the first checkpoint, or at the moment when a checkpoint appears that is still being written:

rank        the actor process of one of the ranks
supervisor  the `muster run` process itself, the driver that a person sees
engine      the engine process below it, Ray's driver
raylet, gcs_server   Ray's daemons

What must hold after each kill, and is judged:

gone   within 30 s, without any resume, no process of the run is left (supervisor and warden included)
bits   `muster resume` ends with the weights of a run that nothing disturbed: same SHA-256 of every tensor's bytes
lost   the steps that have to be done again are at most one checkpoint interval, plus the step under way

A rank that is killed takes up to a second of its records with it, so that the steps it had done are counted by the
records up to there and the pace of its steps from there on. Checkpoints are written behind the training: when the kill
hits a write, the steps done since that write began come on top of the interval; the table shows them apart, as `+n`.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import chaos_runs
from chaos_runs import VICTIMS, Kill, MusterCommand, TooLate, kill_one, runs, weights_digest
from printed_results import Verdicts, print_heading, print_table

ATTEMPTS = 4  # a write may be over, or a run, before the kill gets there: the kill is then done again


@dataclass(frozen=True)
class Recipe:
    """What is trained, and what a kill may cost.

    Arguments:
        make_job: writes the job file into a folder of its own.
        settings: as `--set` takes them.
        interval: steps between two checkpoints.
    """

    make_job: Callable[[Path], Path]
    settings: list[str]
    interval: int


def network(width: int, steps: int) -> Recipe:
    """The test network: dropout, two buckets, random augmentation; its width makes the writes long."""
    interval = 15
    what = f"app: tests.network, seed: 3, delay_ms: 5, width: {width}"
    how = f"ranks: 2, steps: {steps}, batch: 12, checkpoint_every: {interval} steps, hang_timeout: 30s"

    def make_job(folder: Path) -> Path:
        return runs.write_job(folder, what, how, "engine: embedded, threads_per_rank: 1")

    return Recipe(make_job, [], interval)


def superres(steps: int) -> Recipe:
    """The example job, with checkpoints counted in steps."""
    interval = 10

    def make_job(folder: Path) -> Path:
        return Path(shutil.copy(chaos_runs.ROOT / "examples" / "superres.yaml", folder / "job.yaml"))

    settings = [f"how.steps={steps}", f"how.checkpoint_every={interval} steps", "how.ranks=2"]
    return Recipe(make_job, [*settings, "where.engine=embedded", "where.min_ranks=2"], interval)


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing disturbed.

    Arguments:
        digest: SHA-256 of its weights.
        span_s: from its first checkpoint to its last step.
        write_s: how long a checkpoint took to be committed (median).
    """

    digest: str
    span_s: float
    write_s: float


def settings_for(recipe: Recipe, folder: Path) -> list[str]:
    return [*recipe.settings, f"where.runs={folder / 'runs'}"]


def undisturbed(recipe: Recipe, folder: Path) -> Undisturbed:
    job = recipe.make_job(folder)
    options = [word for setting in settings_for(recipe, folder) for word in ("--set", setting)]
    MusterCommand("run", str(job), "--quiet", *options, log=folder / "muster.log").finish()
    run = runs.newest(job)
    saves = [event for event in run.events() if event["kind"] == "checkpoint"]
    last = max(row["start"] + row["wall"] for row in run.table("steps").to_pylist())
    write_s = statistics.median(save["detail"]["seconds"] for save in saves)
    return Undisturbed(weights_digest(run), last - saves[0]["time"], write_s)


def killed(
    recipe: Recipe, folder: Path, victim: str, during_write: bool, span_s: float, rng: random.Random
) -> Kill:
    """A run of which the victim was killed; tried again when the kill came too late.

    Raises:
        TooLate: it did so every time.
    """
    for attempt in range(ATTEMPTS):
        place = folder / str(attempt)
        place.mkdir(parents=True)
        after_s = None if during_write else rng.uniform(0.0, 0.85 * span_s)
        try:
            job = recipe.make_job(place)
            return kill_one(job, settings_for(recipe, place), victim, after_s=after_s, rng=rng)
        except TooLate:
            shutil.rmtree(place)
    raise TooLate


@dataclass(frozen=True)
class Outcome:
    """What a kill and its resume came to.

    Arguments:
        kill: the kill.
        resumed: the step at which the resume took up.
        redone: steps that the records hold more than once.
        same_bits: whether the weights are those of the undisturbed run.
    """

    kill: Kill
    resumed: int
    redone: int
    same_bits: bool

    @property
    def since_write(self) -> int:
        """Steps done since the write that the kill hit began; 0 if it hit none that was lost."""
        writing = self.kill.writing
        return 0 if writing is None or self.resumed >= writing else max(0, self.kill.step - writing)

    @property
    def lost(self) -> int:
        """Steps to be done again, but for those since a write that was under way began."""
        return max(0, self.kill.step - self.since_write - self.resumed)

    def row(self) -> list[str]:
        kill = self.kill
        gone = "NO" if kill.gone_s is None else f"{kill.gone_s:.1f}"
        lost = f"{self.lost}" + (f"+{self.since_write}" if self.since_write else "")
        writing = "-" if kill.writing is None else f"step {kill.writing}"
        cells = [f"{kill.moment_s:.2f}", writing, gone, kill.status, str(kill.step), str(self.resumed), lost]
        return [kill.victim, *cells, str(self.redone), "yes" if self.same_bits else "NO"]


COLUMNS = (
    "killed",
    "after s",
    "while writing",
    "gone s",
    "status",
    "step then",
    "resumed at",
    "lost",
    "redone in records",
    "same bits",
)


def judge(outcomes: list[Outcome], failures: list[str], planned: int, interval: int) -> Verdicts:
    """The bars over all kills."""
    verdicts = Verdicts()
    verdicts.judge("every kill was done and resumed", not failures, f"{len(outcomes)} of {planned}")
    for failure in failures:
        print(f"         {failure}")
    if not outcomes:
        return verdicts
    gone = [outcome.kill.gone_s for outcome in outcomes]
    slowest = max((seconds for seconds in gone if seconds is not None), default=float("nan"))
    verdicts.judge(
        "no process is left within 30 s",
        None not in gone,
        f"{len(gone) - gone.count(None)} of {len(gone)}, slowest {slowest:.1f} s",
    )
    same = sum(outcome.same_bits for outcome in outcomes)
    verdicts.judge("weights bit-identical after resume", same == len(outcomes), f"{same} of {len(outcomes)}")
    most = max(outcome.lost for outcome in outcomes)
    on_top = max(outcome.since_write for outcome in outcomes)
    verdicts.judge(
        f"at most {interval} + 1 steps lost",
        most <= interval + 1,
        f"most {most}; at most {on_top} more since a write under way began",
    )
    return verdicts


def main() -> int:
    parser = argparse.ArgumentParser(description="Kills processes of runs and resumes the runs.")
    parser.add_argument("--each", type=int, default=5, help="kills of each victim at random moments")
    parser.add_argument("--during-write", type=int, default=3, help="kills of each victim during a write")
    parser.add_argument("--app", choices=("network", "superres"), default="network")
    parser.add_argument("--width", type=int, default=1500, help="of the network; sets how long a write takes")
    parser.add_argument("--steps", type=int, help="of each run; by default 120 (network) or 60 (superres)")
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=list(VICTIMS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a smoke run of three kills")
    arguments = parser.parse_args()
    if arguments.app == "network":
        recipe = network(arguments.width, arguments.steps or 120)
    else:
        recipe = superres(arguments.steps or 60)
    plan = [(victim, False) for _ in range(arguments.each) for victim in arguments.victims]
    plan += [(victim, True) for _ in range(arguments.during_write) for victim in arguments.victims]
    if arguments.quick:
        plan = [("rank", False), ("supervisor", False), ("raylet", True)]
    print_heading(
        "Chaos",
        app=arguments.app,
        kills=len(plan),
        during_a_write=sum(during for _, during in plan),
        checkpoint_every=f"{recipe.interval} steps",
        seed=arguments.seed,
    )

    outcomes: list[Outcome] = []
    failures: list[str] = []
    rng, began = random.Random(arguments.seed), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="muster-chaos-") as name:
        root = Path(name)
        (root / "undisturbed").mkdir()
        reference = undisturbed(recipe, root / "undisturbed")
        print(
            f"undisturbed: {reference.span_s:.1f} s from the first checkpoint to the end, "
            f"a checkpoint is written in {reference.write_s:.2f} s, weights {reference.digest[:16]}…\n",
            flush=True,
        )
        for number, (victim, during_write) in enumerate(plan):
            place = root / f"kill-{number}"
            try:
                kill = killed(recipe, place, victim, during_write, reference.span_s, rng)
                resumed = chaos_runs.resume(kill, place / "resume.log")
            except (TooLate, RuntimeError, TimeoutError) as error:
                failures.append(f"kill {number + 1} ({victim}): {error or 'came too late every time'}")
                print(failures[-1], flush=True)
                continue
            same_bits = weights_digest(kill.run) == reference.digest
            outcome = Outcome(kill, resumed, runs.steps_redone(kill.run), same_bits)
            outcomes.append(outcome)
            cells = zip(COLUMNS, outcome.row(), strict=True)
            print(f"{number + 1}/{len(plan)} " + ", ".join(f"{c} {v}" for c, v in cells), flush=True)
            shutil.rmtree(place)
        table = [outcome.row() for outcome in sorted(outcomes, key=lambda o: VICTIMS.index(o.kill.victim))]
        print_table(f"{len(outcomes)} kills in {time.monotonic() - began:.0f} s", COLUMNS, table)
    return judge(outcomes, failures, len(plan), recipe.interval).exit_code()


if __name__ == "__main__":
    sys.exit(main())
