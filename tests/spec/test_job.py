"""A valid job: its defaults, what fills them in, and that writing and reading it changes nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from muster.errors import JobError
from muster.spec import GangHow, Interval, Job, Schedule, What, Where, dump_job, load_job, parse_job, template
from muster.spec.writing import flow
from muster.spec.yaml_reading import read_yaml

Write = Callable[[str | bytes], Path]
EXAMPLE = Path(__file__).parents[2] / "examples" / "superres.yaml"


def test_the_example_loads() -> None:
    job = load_job(EXAMPLE, environ={})
    assert (job.name, job.what.app, job.what.seed) == ("superres", "vision.superres", 7)
    assert (job.how.ranks, job.how.steps, job.how.batch) == (2, 600, 16)
    assert job.how.checkpoint_every == Interval.parse("30s")
    assert (job.where.engine, job.where.min_ranks, job.where.max_ranks) == ("embedded", 1, 2)


def test_a_dumped_job_reads_back_equal(job_file: Write) -> None:
    job = load_job(EXAMPLE, environ={})
    again = load_job(job_file(dump_job(job)), environ={})
    assert again == job
    assert dump_job(again) == dump_job(job)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_any_text_survives_writing_and_reading(text: str) -> None:
    assert read_yaml(f"key: {flow(text)}\n".encode(), "test").content == {"key": text}


@given(
    st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-(10**30), 10**30)
    | st.booleans()
    | st.none()
)
def test_any_number_survives_writing_and_reading(value: float | int | bool | None) -> None:
    content = read_yaml(f"key: {flow(value)}\n".encode(), "test").content["key"]
    assert content == value
    assert type(content) is type(value)


def test_a_quarter_of_the_steps_is_the_default_between_halvings() -> None:
    assert GangHow(steps=600, batch=8, schedule=Schedule(kind="halve")).schedule.every == 150
    assert GangHow(steps=600, batch=8, schedule=Schedule(kind="halve", every=7)).schedule.every == 7
    assert GangHow(steps=600, batch=8).schedule.every is None


def test_the_bounds_of_the_ranks_default_to_the_ranks() -> None:
    job = Job(name="x", what=What(app="a"), how=GangHow(ranks=3, steps=1, batch=9))
    assert (job.where.min_ranks, job.where.max_ranks) == (3, 3)


def test_a_job_without_a_name_has_that_of_its_file(valid: str, tmp_path: Path) -> None:
    path = tmp_path / "my first job.v2.yaml"
    path.write_text(valid.replace("name: superres\n", "", 1))
    assert load_job(path, environ={}).name == "my-first-job.v2"
    path = tmp_path / "???.yaml"
    path.write_text(valid.replace("name: superres\n", "", 1))
    assert load_job(path, environ={}).name == "superres"


def test_settings_win_over_the_environment_which_wins_over_the_file(valid: str, job_file: Write) -> None:
    path = job_file(valid)
    environ = {"MUSTER_SET_HOW__RANKS": "3", "MUSTER_SET_HOW__STEPS": "5", "HOW__BATCH": "1"}
    job = load_job(path, ["how.ranks=4", "where.memory_per_rank=2GB"], environ=environ)
    assert (job.how.ranks, job.how.steps, job.how.batch) == (4, 5, 16)
    assert str(job.where.memory_per_rank) == "2GB"


def test_settings_may_make_a_section_or_replace_one(valid: str, job_file: Write) -> None:
    path = job_file(valid)
    assert load_job(path, ["how.schedule.kind=halve"], environ={}).how.schedule.every == 150
    job = load_job(path, ["how.optimizer={name: sgd, momentum: 0.9}"], environ={})
    assert (job.how.optimizer.name, job.how.optimizer.momentum, job.how.optimizer.lr) == ("sgd", 0.9, 1e-3)


@pytest.mark.parametrize("name", ["superres", "vision.superres"])
def test_a_template_loads_as_it_stands(name: str, job_file: Write) -> None:
    job = load_job(job_file(template(name)), environ={})
    assert job.what.app == "vision.superres"


def test_a_template_with_every_comment_removed_shows_only_real_keys(job_file: Write) -> None:
    """Each commented-out key is valid where it stands, so uncommenting any one of them is safe."""
    lines = template("superres").splitlines()
    keys = [n for n, line in enumerate(lines) if re.match("  # [a-z_]+:( |$)", line) and "null" not in line]
    assert len(keys) > 5
    for n in keys:
        live = [line.replace("  # ", "  ", 1) if k == n else line for k, line in enumerate(lines)]
        following = n + 1
        while following < len(live) and live[following].startswith("  #   "):
            live[following] = live[following].replace("  # ", "  ", 1)
            following += 1
        load_job(job_file("\n".join(live)), environ={})


def test_an_application_named_by_a_part_that_none_has_is_refused() -> None:
    with pytest.raises(JobError, match=r"did you mean vision\.superres"):
        template("superes")


def test_plain_data_parses_like_a_file() -> None:
    job = parse_job({"what": {"app": "vision.superres"}, "how": {"steps": 1, "batch": 2}})
    assert (job.name, job.how.ranks) == ("superres", 2)


def test_plain_data_is_not_guessed_at_by_the_model_itself() -> None:
    with pytest.raises(ValidationError, match="parse_job"):
        Job.model_validate({"name": "x", "what": {"app": "vision.superres"}, "how": {"steps": 1, "batch": 2}})


def test_a_job_cannot_be_changed() -> None:
    job = load_job(EXAMPLE, environ={})
    with pytest.raises(ValidationError, match="frozen"):
        job.where.device = "cuda"  # type: ignore[misc]


def test_an_address_belongs_to_a_cluster() -> None:
    assert Where(engine="cluster", address="[::1]:6379").address == "[::1]:6379"
    assert Where(engine="cluster", address="head-0.internal:6379").address == "head-0.internal:6379"


def test_the_spec_imports_neither_torch_nor_ray_nor_a_yaml_parser() -> None:
    code = "import sys, muster.spec; print([m for m in ('torch', 'ray', 'ruamel.yaml', 'numpy') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
