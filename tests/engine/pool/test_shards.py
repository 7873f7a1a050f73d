"""Merging servers in processes of their own that share one model: what is lost, and that nothing is."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import muster.merge
from muster.engine.pool.shards import SharedModel, _packed, dealt, merge_all
from muster.engine.pool.updates import Update
from muster.errors import DataError, RefusedInput

SERVERS, EACH = 3, 60
MODEL = {name: np.zeros(size) for name, size in (("a", 5), ("b", 1), ("c", 3), ("d", 2))}


def of_ones(server: int) -> list[Update]:
    """Each changes every weight by one."""
    return [Update({name: array + 1 for name, array in MODEL.items()}, MODEL)] * EACH


def drawn(server: int) -> list[Update]:
    generator = np.random.default_rng(server)
    return [
        Update({name: generator.standard_normal(array.shape) for name, array in MODEL.items()}, MODEL)
        for _ in range(EACH)
    ]


def _server(path: Path, make: Any, number: int, rule: Any, consistency: Any, barrier: Any) -> None:
    updates = make(number)
    barrier.wait()
    assert merge_all(path, updates, rule, consistency) == EACH


def served(path: Path, make: Any, rule: Any, consistency: str, blocks: int = 2) -> SharedModel:
    """The model after all servers are done; they begin at the same moment."""
    SharedModel.create(path, MODEL, rule, blocks=blocks).close()
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(SERVERS)
    servers = [
        spawn.Process(target=_server, args=(path, make, number, rule, consistency, barrier))
        for number in range(SERVERS)
    ]
    for server in servers:
        server.start()
    for server in servers:
        server.join(120)
        assert server.exitcode == 0
    return SharedModel(path)


def test_compare_and_swap_loses_no_update_and_the_mean_does_not_depend_on_who_came_when(
    tmp_path: Path,
) -> None:
    """With e/(e+1) the model is the mean of the first one and all that arrived, in whatever order."""
    with served(tmp_path / "store", drawn, muster.merge.get("vc-asgd", alpha=None), "strong") as shared:
        for name in MODEL:
            every = [update.arrays[name] for server in range(SERVERS) for update in drawn(server)]
            expected = np.sum(every, axis=0) / (SERVERS * EACH + 1)
            np.testing.assert_allclose(shared.model()[name], expected, atol=1e-12)
        for counts in shared.counts():
            assert (counts.merged, counts.holds, counts.lost) == (SERVERS * EACH, SERVERS * EACH, 0)
        assert sum(counts.conflicts for counts in shared.counts()) > 0  # they did meet


def test_what_an_eventual_store_has_lost_is_what_the_model_lacks(tmp_path: Path) -> None:
    with served(tmp_path / "store", of_ones, muster.merge.get("downpour"), "eventual") as shared:
        model, counts = shared.model(), shared.counts()
    for names, block in zip(dealt(MODEL, 2), counts, strict=True):
        assert block.merged == SERVERS * EACH
        for name in names:
            np.testing.assert_array_equal(model[name], SERVERS * EACH - block.lost)
    assert sum(block.lost for block in counts) > 0


def test_an_interleaving_by_hand_is_counted(tmp_path: Path) -> None:
    """One reads, another merges twice, the first writes: two lost, or a conflict and nothing lost."""
    rule, update = muster.merge.get("downpour"), of_ones(0)[0]
    for consistency, model, lost, conflicts in (("eventual", 1, 2, 0), ("strong", 2, 0, 1)):
        path = tmp_path / consistency
        with SharedModel.create(path, MODEL, rule, blocks=1) as slow, SharedModel(path) as quick:
            read = slow._read(0)
            quick.merge(update, rule)
            quick.merge(update, rule)
            content = _packed(*rule.merge(read.model, [update], read.state))
            assert slow._wrote(0, read, content, consistency) == (consistency == "eventual")  # type: ignore[arg-type]
            assert slow.model()["a"].tolist() == [model] * 5
            assert (slow.counts()[0].lost, slow.counts()[0].conflicts) == (lost, conflicts)


def test_blocks_are_of_about_equal_size_and_hold_every_array_once() -> None:
    assert dealt(MODEL, 2) == [["a", "b"], ["c", "d"]]  # 48 and 40 bytes
    assert sorted(name for names in dealt(MODEL, 4) for name in names) == sorted(MODEL)


def test_what_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with pytest.raises(RefusedInput, match="the rule merges rounds"):
        SharedModel.create(path, MODEL, muster.merge.get("fedavg"), blocks=1)
    with pytest.raises(RefusedInput, match="blocks: found 5; expected 1 to 4"):
        SharedModel.create(path, MODEL, muster.merge.get("downpour"), blocks=5)
    with pytest.raises(DataError, match="no shared model is there"):
        SharedModel(path)
    SharedModel.create(path, MODEL, muster.merge.get("downpour"), blocks=1).close()
    with pytest.raises(RefusedInput, match="something is there already"):
        SharedModel.create(path, MODEL, muster.merge.get("downpour"), blocks=1)
