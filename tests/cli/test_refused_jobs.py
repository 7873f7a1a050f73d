"""A wrong job is refused with file, line, key, what was found and what would be right; exit code 2; nothing starts."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# cause: (text of the valid file, what stands there instead, line of the error, key, found, mend)
WRONG: dict[str, tuple[str, str, int, str, str, str]] = {
    "misspelt key": ("ranks: 2", "rnaks: 2", 11, "how.rnaks", "unknown key", "did you mean ranks?"),
    "misspelt part": ("how:", "hwo:", 9, "hwo", "unknown key", "did you mean how?"),
    "misspelt nested key": (
        "lr: 1e-3",
        "lrr: 1e-3",
        16,
        "how.optimizer.lrr",
        "unknown key",
        "did you mean lr?",
    ),
    "misspelt application key": ("arch:", "arhc:", 5, "what.model.arhc", "unknown key", "did you mean arch?"),
    "key of another part": (
        "  min_ranks",
        "  ranks",
        20,
        "where.ranks",
        "unknown key",
        "did you mean min_ranks?",
    ),
    "key at the top": ("where:", "steps: 3\nwhere:", 18, "steps", "unknown key", "did you mean how.steps?"),
    "misspelt application": (
        "vision.superres",
        "vision.superes",
        3,
        "what.app",
        "'vision.superes'",
        "did you mean vision.superres?",
    ),
    "short application": (
        "vision.superres",
        "superres",
        3,
        "what.app",
        "'superres'",
        "did you mean vision.superres?",
    ),
    "application missing": ("  app: vision.superres\n", "", 2, "what.app", "is missing", "vision.superres"),
    "misspelt choice": ("name: adam", "name: adma", 15, "how.optimizer.name", "'adma'", "did you mean adam?"),
    "misspelt shape": ("shape: gang", "shape: gnag", 10, "how.shape", "'gnag'", "did you mean gang?"),
    "misspelt engine": (
        "engine: embedded",
        "engine: embeded",
        19,
        "where.engine",
        "'embeded'",
        "did you mean embedded?",
    ),
    "application's choice": ("scale: 2", "scale: 5", 6, "what.model.scale", "found 5", "one of: 2, 3, 4"),
    "application's own rule": (
        "seed: 7",
        "patch: 97",
        8,
        "what.patch",
        "found 97",
        "a multiple of 2, such as 98",
    ),
    "required key missing": ("  steps: 600\n", "", 9, "how.steps", "is missing", "a whole number from 1"),
    "misspelt what": ("what:", "wat:", 2, "wat", "unknown key", "did you mean what?"),
    "number as text": (
        "steps: 600",
        "steps: '600'",
        12,
        "how.steps",
        "'600'",
        "a whole number from 1 to below 2^53, without quotes",
    ),
    "true as a number": (
        "ranks: 2",
        "ranks: true",
        11,
        "how.ranks",
        "found true",
        "a whole number from 1 to 4096",
    ),
    "fraction": ("ranks: 2", "ranks: 2.0", 11, "how.ranks", "found 2.0", "a whole number from 1 to 4096"),
    "word as a number": ("batch: 16", "batch: many", 13, "how.batch", "'many'", "a whole number from 1"),
    "nothing": ("batch: 16", "batch:", 13, "how.batch", "found nothing", "a whole number from 1"),
    "too many": ("ranks: 2", "ranks: 5000", 11, "how.ranks", "found 5000", "from 1 to 4096"),
    "not finite": ("lr: 1e-3", "lr: .inf", 16, "how.optimizer.lr", "found Infinity", "a number above 0"),
    "negative seed": ("seed: 7", "seed: -7", 8, "what.seed", "found -7", "from 0 to below 2^63"),
    "no unit": ("every: 30s", "every: 30", 17, "how.checkpoint_every", "found 30", "such as 30s or 5m"),
    "unknown unit": (
        "every: 30s",
        "every: 30 sec",
        17,
        "how.checkpoint_every",
        "'30 sec'",
        "such as 30s or 5m",
    ),
    "section as a value": (
        "optimizer:\n    name: adam\n    lr: 1e-3",
        "optimizer: adam",
        14,
        "how.optimizer",
        "'adam'",
        "a mapping with the keys name, lr",
    ),
    "value as a section": ("ranks: 2", "ranks: {min: 2}", 11, "how.ranks", '{"min": 2}', "a whole number"),
    "part as a list": (
        "where:\n  engine: embedded\n  min_ranks: 1",
        "where: [local]",
        18,
        "where",
        "found a list",
        "a mapping with the machines",
    ),
    "batch below ranks": (
        "batch: 16",
        "batch: 1",
        13,
        "how.batch",
        "leaves some of 2 ranks without a sample",
        "at least 2",
    ),
    "min above ranks": (
        "min_ranks: 1",
        "min_ranks: 3",
        20,
        "where.min_ranks",
        "more than how.ranks (2)",
        "at most 2",
    ),
    "max below ranks": (
        "min_ranks: 1",
        "max_ranks: 1",
        20,
        "where.max_ranks",
        "less than how.ranks (2)",
        "at least 2",
    ),
    "max above batch": (
        "min_ranks: 1",
        "max_ranks: 17",
        20,
        "where.max_ranks",
        "17 ranks cannot share a batch of 16",
        "at most 16",
    ),
    "rank of nothing": (
        "min_ranks: 1",
        "cpus_per_rank: 0",
        20,
        "where.cpus_per_rank",
        "neither a core nor a GPU",
        "above 0",
    ),
    "cluster without address": (
        "engine: embedded",
        "engine: cluster",
        18,
        "where.address",
        "has no address",
        "host:6379",
    ),
    "address without cluster": (
        "min_ranks: 1",
        "address: head:6379",
        20,
        "where.address",
        "joins no cluster",
        "engine: cluster",
    ),
    "address without port": (
        "engine: embedded\n  min_ranks: 1",
        "engine: cluster\n  address: head",
        20,
        "where.address",
        "'head'",
        "host:port",
    ),
    "momentum of adam": (
        "lr: 1e-3",
        "momentum: 0.9",
        16,
        "how.optimizer.momentum",
        "adam has no momentum",
        "name: sgd",
    ),
    "micro-batch above batch": (
        "steps: 600",
        "steps: 600\n  micro_batch: 17",
        13,
        "how.micro_batch",
        "found 17",
        "at most 16",
    ),
    "endless warm-up": (
        "steps: 600",
        "steps: 600\n  schedule: {warmup: 600}",
        13,
        "how.schedule.warmup",
        "600 steps",
        "less than 600",
    ),
    "name with a slash": ("name: superres", "name: a/b", 1, "name", "'a/b'", "letters, digits"),
    "given twice": (
        "steps: 600",
        "ranks: 4",
        12,
        "how.ranks",
        "a second time (first on line 11)",
        "keep one",
    ),
    "tab": ("  ranks: 2", "\tranks: 2", 11, "", "found a tab", "indent with spaces"),
    "bad indentation": ("  ranks: 2", "   ranks: 2", 11, "", "not valid YAML", "indentation"),
    "open bracket": ("seed: 7", "seed: [7", 9, "", "not valid YAML", "close the brace or bracket"),
    "tag": (
        "seed: 7",
        "seed: !!python/object/apply:os.system ['true']",
        8,
        "what.seed",
        "the tag",
        "remove it",
    ),
    "anchor": ("seed: 7", "seed: &s 7", 8, "what.seed", "the anchor &s", "no anchors"),
    "alias": ("seed: 7", "seed: *s", 8, "what.seed", "the alias *s", "no anchors"),
    "second document": ("where:", "---\nwhere:", 18, "", "a second YAML document", "one job in a file"),
    "number as a key": ("ranks: 2", "2: ranks", 11, "how", "the key 2", "plain words"),
    "not UTF-8": ("seed: 7", "seed: \udcff", 8, "", "not UTF-8", "save the file as UTF-8"),
    "control character": ("seed: 7", "seed: \x07", 8, "", "U+0007", "remove it"),
}


def _spoil(valid: str, old: str, new: str) -> bytes:
    assert valid.count(old) >= 1
    return valid.replace(old, new, 1).encode("utf-8", "surrogateescape")


@pytest.mark.parametrize("cause", WRONG)
def test_it_says_file_line_key_found_and_mend(
    cause: str, valid: str, muster: Callable[..., Any], tmp_path: Path
) -> None:
    old, new, line, key, found, mend = WRONG[cause]
    path = tmp_path / "my.yaml"
    path.write_bytes(_spoil(valid, old, new))
    result = muster("check", path)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {path}:{line}: {key + ': ' if key else ''}")
    assert found in result.stderr
    assert mend in result.stderr.partition(found)[2]
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


WHOLE: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", "it is empty", "a mapping with the parts what, how and where"),
    "only a comment": (b"# nothing\n", "it is empty", "a mapping with the parts what, how and where"),
    "a list": (b"- what\n- how\n", "found a list at the top", "a mapping"),
    "a text": (b"train please\n", "'train please'", "a mapping"),
    "huge": (b"# " + b"x" * 100_000, "larger than 64 KiB", "a page of YAML"),
    "deep": (b"what: " + b"[" * 5000, "nested deeper than 16", "no key of a job is that deep"),
    "UTF-16": ("what: {}".encode("utf-16"), "0xff", "save the file as UTF-8"),
    "no what": (b"how: {steps: 1, batch: 2}\n", "'what' is missing", "vision.superres"),
    "no how": (b"what: {app: vision.superres}\n", "'how' is missing", "steps: 600"),
}


@pytest.mark.parametrize("cause", WHOLE)
def test_a_file_that_is_no_job_at_all_is_refused(
    cause: str, muster: Callable[..., Any], tmp_path: Path
) -> None:
    content, found, mend = WHOLE[cause]
    path = tmp_path / "my.yaml"
    path.write_bytes(content)
    result = muster("check", path)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {path}")
    assert found in result.stderr
    assert mend in result.stderr.partition(found)[2]


def test_a_missing_file_suggests_its_neighbour(
    valid: str, muster: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "superres.yaml").write_text(valid)
    result = muster("check", "superes.yaml")
    assert result.exit_code == 2
    assert "superes.yaml: no such file; did you mean superres.yaml?" in result.stderr
    assert "is a folder" in muster("check", tmp_path).stderr


@pytest.mark.parametrize(
    ("settings", "environ", "message"),
    [
        (["how.rnks=3"], {}, "--set: how.rnks: unknown key; did you mean ranks?"),
        (["how.ranks=three"], {}, "--set: how.ranks: found 'three'; expected a whole number from 1 to 4096"),
        (["how.ranks"], {}, "--set: found 'how.ranks'; write key=value, such as --set how.ranks=4"),
        (["how.ranks=[3"], {}, "--set: how.ranks: not valid YAML"),
        (["how.ranks.x=3"], {}, "--set: how.ranks.x: there is no key how.ranks.x to set"),
        (
            [],
            {"MUSTER_SET_HOW__RANKS": "0"},
            "MUSTER_SET_HOW__RANKS: how.ranks: found 0; expected a whole number",
        ),
        (
            [],
            {"MUSTER_SET_HOW__RNAKS": "3"},
            "MUSTER_SET_HOW__RNAKS: how.rnaks: unknown key; did you mean ranks?",
        ),
        ([], {"MUSTER_SET_": "3"}, "MUSTER_SET_: names no key; write MUSTER_SET_HOW__RANKS for how.ranks"),
        (["where.runs=my.yaml"], {}, "--set: where.runs:"),
    ],
)
def test_settings_are_refused_by_their_own_name(
    settings: list[str],
    environ: dict[str, str],
    message: str,
    valid: str,
    muster: Callable[..., Any],
    tmp_path: Path,
) -> None:
    (tmp_path / "my.yaml").write_text(valid)
    options = [part for setting in settings for part in ("--set", setting)]
    result = muster("check", "my.yaml", *options, environ=environ)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {message}")


def _marked() -> tuple[dict[str, str], Callable[[], list[str]]]:
    """An environment with a mark, and a look at which processes carry it."""
    mark = f"MUSTER_TEST_MARK={uuid.uuid4().hex}"
    environment = os.environ | dict([mark.split("=")])

    def carriers() -> list[str]:
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark.encode() in path.read_bytes():
                    found.append((path.parent / "cmdline").read_text())
            except OSError:
                continue
        return found

    return environment, carriers


@pytest.mark.parametrize("cause", ["misspelt key", "tag", "not UTF-8", "cluster without address"])
@pytest.mark.parametrize("verb", ["run", "check"])
def test_the_real_command_shows_no_traceback_and_leaves_nothing(
    verb: str, cause: str, valid: str, tmp_path: Path
) -> None:
    environment, carriers = _marked()
    old, new, line, *_ = WRONG[cause]
    (tmp_path / "my.yaml").write_bytes(_spoil(valid, old, new))
    command = [sys.executable, "-c", "from muster.cli import main; main()", verb, "my.yaml"]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: my.yaml:{line}: ")
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["my.yaml"]
    assert carriers() == []


def test_no_wrong_job_imports_ray_or_torch_or_starts_a_process(valid: str, tmp_path: Path) -> None:
    """All of them go through ``muster run`` in one fresh process, which then tells what it has become."""
    for number, (old, new, *_) in enumerate(WRONG.values()):
        (tmp_path / f"{number:02d}.yaml").write_bytes(_spoil(valid, old, new))
    code = """
import pathlib, sys
from typer.testing import CliRunner
from muster.cli.command_line import app
for path in sorted(pathlib.Path().glob("*.yaml")):
    assert CliRunner().invoke(app, ["run", str(path)]).exit_code == 2, path
assert not {"ray", "torch"} & set(sys.modules), "imported"
assert not list(pathlib.Path("/proc/self/task").glob("*/children"))[0].read_text().split(), "child processes"
assert not pathlib.Path("runs").exists(), "a run folder"
"""
    environment, carriers = _marked()
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert carriers() == []
