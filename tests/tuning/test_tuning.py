"""What limits a job is named, what would mend it is proposed, what wins is kept, and the user's file stays the user's."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from muster.errors import MusterError
from muster.spec import Job, load_job
from muster.spec.machine import cores
from muster.tuning import _levers, _verdict
from muster.tuning._duel import duel
from muster.tuning._levers import LEVERS, proposals
from muster.tuning._measured import StepTimes
from muster.tuning._size_classes import SizeClass
from muster.tuning._tuned_file import write_tuned
from muster.tuning._verdict import Facts, verdict
from muster.tuning.tune import tune

JOB = """\
# what I found out by hand
name: mine
what: {app: tests.network, width: 200}  # a network
how:
  shape: gang
  ranks: 2   # both cores
  steps: 500

  batch: 8
where:
  engine: local
"""


def write(folder: Path, **settings: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(
        JOB.replace("  batch: 8\n", "  batch: 8\n" + "".join(f"  {k}: {v}\n" for k, v in settings.items()))
    )
    return path


def step(ranks: int = 2, slowest: tuple[float, int] = (0.5, 0), **seconds: float) -> StepTimes:
    """A step of these pillars, alike on all ranks."""
    pillars = {name: seconds.get(name, 0.0) for name in ("io", "compute", "comm", "idle")}
    length = sum(pillars.values())
    return StepTimes(ranks, 20, 8 / length, length, pillars, 0.0, pillars | {"idle": 0.0}, slowest)


def facts(job: Job, times: StepTimes, **more: Any) -> Facts:
    known: dict[str, Any] = {"classes": (), "loader_samples_per_s": 1e4, "link_bytes_per_s": 1e9}
    return Facts(job=job, times=times, **known | more)


def first_key(known: Facts) -> str | None:
    """The key that is tried first."""
    found = proposals(known, verdict(known).pillar)
    return found[0].lever.key if found else None


def message(size: int, seconds: float, link_bytes_per_s: float) -> SizeClass:
    """1000 all-reduces of ``size`` bytes that took ``seconds`` together, all exposed."""
    speed = 1000 * size / seconds
    return SizeClass(
        "all_reduce", "world", 0, None, 1000, 1000 * size, seconds, 0.0, 0.0, seconds, speed, link_bytes_per_s
    )


def test_a_job_with_too_few_loader_workers_is_limited_by_io(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, loader_workers="1"))
    known = facts(job, step(io=0.6, compute=0.3, comm=0.1), loader_samples_per_s=9.0)
    assert verdict(known).pillar == "io"
    assert verdict(known).share == pytest.approx(0.6)
    assert "more how.loader_workers than 1" in verdict(known).sentence
    assert first_key(known) == "how.loader_workers"


def test_a_loader_that_is_fast_enough_but_has_no_process_of_its_own_wants_one(tmp_path: Path) -> None:
    known = facts(load_job(write(tmp_path)), step(io=0.2, compute=0.8), loader_samples_per_s=40.0)
    assert "how.loader_workers: 1 prepares samples while training goes on" in verdict(known).sentence


def test_threads_beyond_the_cores_are_found_before_anything_else(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_text(path.read_text() + f"  threads_per_rank: {4 * cores()}\n")
    known = facts(load_job(path), step(io=0.1, compute=0.4, comm=0.5))
    assert verdict(known).pillar == "compute"
    assert f"where.threads_per_rank: {max(1, cores() // 2)}" in verdict(known).sentence
    assert proposals(known, "compute")[0].changes == {"where.threads_per_rank": max(1, cores() // 2)}


def test_small_messages_and_large_ones_want_different_mends(tmp_path: Path) -> None:
    job = load_job(write(tmp_path))
    small = facts(job, step(compute=0.5, comm=0.5), classes=[message(1000, 1.0, 2e6)])
    assert verdict(small).pillar == "comm"
    assert "larger buckets" in verdict(small).sentence
    large = facts(job, step(compute=0.5, comm=0.5), classes=[message(10_000_000, 12.0, 0.95e9)])
    assert "sends fewer bytes" in verdict(large).sentence


def test_fp32_where_there_is_bf16_is_limited_by_compute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = facts(load_job(write(tmp_path)), step(io=0.02, compute=0.95, comm=0.03))
    for there_is, first in ((True, "how.precision"), (False, "how.channels_last")):
        monkeypatch.setattr(_verdict, "has_fast_bf16", lambda there_is=there_is: there_is)
        monkeypatch.setattr(_levers, "has_fast_bf16", lambda there_is=there_is: there_is)
        assert verdict(known).pillar == "compute"
        assert ("how.precision: bf16" in verdict(known).sentence) == there_is
        assert first_key(known) == first


def test_bf16_is_what_the_kernel_says_the_processor_has() -> None:
    flags = subprocess.run(
        ["grep", "-qE", " (amx_bf16|avx512_bf16)", "/proc/cpuinfo"], check=False, capture_output=True
    )
    assert _verdict.has_fast_bf16() == (flags.returncode == 0)


def test_one_rank_that_all_others_wait_for_is_named(tmp_path: Path) -> None:
    known = facts(load_job(write(tmp_path)), step(compute=0.6, idle=0.4, slowest=(0.95, 1)))
    assert verdict(known).pillar == "idle"
    assert "rank 1" in verdict(known).sentence


def test_a_store_is_read_ahead_before_workers_are_tried_and_only_where_there_is_one(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, input="{loader: plain}"))
    waiting = facts(job, step(io=0.7, compute=0.3), stored=True)
    assert first_key(waiting) == "how.input.loader"
    assert "how.input.loader: look-ahead" in verdict(waiting).sentence
    assert first_key(facts(job, step(io=0.7, compute=0.3))) == "how.loader_workers"
    ahead = load_job(write(tmp_path, input="{loader: look-ahead}"))
    assert first_key(facts(ahead, step(io=0.7, compute=0.3), stored=True)) == "how.loader_workers"


def test_every_lever_pulls_a_key_that_jobs_have(tmp_path: Path) -> None:
    job = load_job(write(tmp_path))
    for lever in LEVERS:
        *parents, key = lever.key.split(".")
        section = functools.reduce(getattr, parents, job)
        assert key in type(section).model_fields
        assert lever.pillar in ("io", "compute", "comm")


def measuring(*rates: float) -> tuple[Callable[[], StepTimes], list[float]]:
    """A measurement that finds these samples per second, and what it has found."""
    left, found = list(rates), list[float]()

    def measure() -> StepTimes:
        found.append(left.pop(0))
        return StepTimes(1, 20, found[-1], 1.0, {}, 0.0, {}, (1.0, 0))

    return measure, found


def test_a_challenger_wins_if_all_pairs_were_run_and_the_interval_is_above_one() -> None:
    champion, _ = measuring(10, 11, 9)
    challenger, _ = measuring(13, 13, 13)
    found = duel(champion, challenger, pairs=3)
    assert found is not None
    assert found.won
    assert found.ratio.median == pytest.approx(1.3)
    assert (found.champion.samples_per_s, found.challenger.samples_per_s) == (10, 13)


def test_one_pair_that_speaks_against_it_is_enough_to_lose_among_three() -> None:
    found = duel(measuring(10, 10, 10)[0], measuring(13, 9.9, 13)[0], pairs=3)
    assert found is not None
    assert not found.won


def test_a_hopeless_challenger_is_given_up_after_two_pairs_and_an_early_lead_is_no_win() -> None:
    champion, seen = measuring(10, 10, 10, 10, 10)
    found = duel(champion, measuring(5, 5)[0], pairs=5)
    assert found is not None
    assert len(seen) == 2
    assert not found.won
    answers = iter([True, True, False])
    found = duel(measuring(10, 10)[0], measuring(19, 19)[0], pairs=5, time_left=lambda: next(answers))
    assert found is not None
    assert found.ratio.low == 1.9
    assert not found.won
    assert duel(measuring()[0], measuring()[0], pairs=5, time_left=lambda: False) is None


def test_what_is_far_faster_needs_no_further_pairs() -> None:
    champion, seen = measuring(*[10] * 7)
    found = duel(champion, measuring(13, 12.5, 20, *[13] * 4)[0], pairs=7)
    assert found is not None
    assert (len(seen), found.ratio.count, found.won) == (3, 3, True)
    champion, seen = measuring(*[10] * 7)
    found = duel(champion, measuring(20, 40, 13)[0], pairs=7)
    assert found is not None
    assert (len(seen), found.ratio.count, found.won) == (2, 2, True)
    champion, seen = measuring(*[10] * 7)
    found = duel(champion, measuring(13, 12.4, 20, *[13] * 4)[0], pairs=7)
    assert found is not None
    assert (len(seen), found.won) == (7, True)


def test_the_tuned_file_is_the_users_own_with_its_comments(tmp_path: Path) -> None:
    source = write(tmp_path)
    target = tmp_path / "tuned.yaml"
    changes = {"how.loader_workers": 2, "how.precision": "bf16", "how.compile": "on", "what.width": 100}
    job = write_tuned(source, target, changes | {"where.threads_per_rank": None}, ["tuned: 2 ×"])
    assert (job.how.loader_workers, job.how.precision, job.how.compile, job.what.width) == (
        2,
        "bf16",
        "on",
        100,
    )
    before, after = source.read_text().splitlines(), target.read_text().splitlines()
    assert after[0] == "# tuned: 2 ×"
    unchanged = [line for line in before if "width" not in line]
    assert [line for line in after if line in unchanged] == unchanged
    assert "# a network" in target.read_text()
    assert "width: 100" in target.read_text()


@pytest.mark.parametrize(("argument", "value"), [("steps", 1), ("pairs", 2)])
def test_too_few_measurements_are_refused(tmp_path: Path, argument: str, value: int) -> None:
    with pytest.raises(MusterError, match=f"--{argument}: found {value}; expected at least"):
        tune(str(write(tmp_path)), **{argument: value})  # type: ignore[arg-type]


SCRIPT = """
import json, sys
from pathlib import Path
from muster.tuning._levers import Lever, Proposal
from muster.tuning._pages import write_tuning_page
from muster.tuning.tune import tune

class Delay(Lever):
    pillar, key = "io", "what.delay_ms"
    def proposals(self, facts):
        return [Proposal(self, 1.0, "a faster store")]

class Broken(Lever):
    pillar, key = "compute", "what.fail_at_call"
    def proposals(self, facts):
        return [Proposal(self, 6, "to see it fail")]

found = tune(sys.argv[1], budget_s=3600, steps=8, pairs=3, levers=(Broken(), Delay()))
write_tuning_page(found)
print(json.dumps(found.as_json()))
"""


def test_a_slow_store_is_found_mended_and_proven(tmp_path: Path) -> None:
    """One rank, four samples a step of 60 ms each: a store of 1 ms is worth nearly all of the waiting."""
    path = write(tmp_path)
    path.write_text(
        path.read_text()
        .replace("width: 200", "width: 200, delay_ms: 60.0, fail_on_rank: 0")
        .replace("ranks: 2", "ranks: 1")
        .replace("batch: 8", "batch: 4")
    )
    before = path.read_text()
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path)],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["before"]["limit"] == "io"
    better, broken = found["proposals"]  # those of the pillar that limits first
    assert (better["outcome"], broken["outcome"]) == ("kept", "failed"), found["proposals"]
    assert "ZeroDivisionError" in broken["detail"]
    assert found["gain"]["median"] > 2
    assert found["after"]["samples_per_s"] > found["before"]["samples_per_s"]
    assert path.read_text() == before
    tuned = Path(found["tuned"])
    assert tuned == tmp_path / "job.tuned.yaml"
    assert load_job(tuned).what.delay_ms == 1.0
    assert "# both cores" in tuned.read_text()
    page = Path(found["page"]).read_text()
    assert "what.delay_ms: 60.0 → 1.0" in page
    assert json.loads((Path(found["folder"]) / "tune.json").read_text()) == found
