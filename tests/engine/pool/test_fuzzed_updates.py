"""Two thousand deliveries to a coordinator, nine in ten of them wrong: a short form of benchmarks/fuzzed_updates.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import fuzzed_updates

    return fuzzed_updates


def test_whatever_is_handed_in_only_accepted_updates_have_any_effect(script: Any, tmp_path: Path) -> None:
    tally = script.fuzzed(tmp_path, 2000, seed=1)
    assert script.faults_of(tally) == []
    assert sum(tally.by_kind.values()) == 2000
    for fault in script.FAULTS:
        ended = {outcome for kind, outcome in tally.by_kind if kind == fault}
        assert ended == {
            "flipped": {"accepted", "refused"},  # a flipped digit of a weight is still a weight
            "repeated": {"accepted"},
            "replayed": {"ended"},
            "unknown token": {"ended"},
        }.get(fault, {"refused"})


def test_the_check_finds_an_effect_that_should_not_be(script: Any, tmp_path: Path) -> None:
    tally = script.fuzzed(tmp_path, 100, seed=2)
    tally.model["b"] = tally.model["b"] + 1e-12
    tally.evidence -= 1
    assert len(script.faults_of(tally)) == 2
