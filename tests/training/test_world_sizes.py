"""Training gives the same result however many ranks share the work."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from engine import runs
from muster.engine.gang import Engine
from muster.engine.run_folder import RunFolder

HOW = "steps: 20, batch: 12, checkpoint_every: 1h"
# Adam divides a gradient by its own size: where it is nearly nothing, rounding decides on the sign of a whole step, and how
# far twenty of them carry depends on the processor's kernels. In fp32 that is no measure of the gradients; plain descent is.
OPTIMIZERS = {"fp64": "{lr: 0.001}", "fp32": "{name: sgd, lr: 0.1}"}
SUPERRES = "app: vision.superres, patch: 16, patches_per_photograph: 8, seed: 4"
NETWORK = "app: tests.network, width: 700, dropout: 0.0"

Train = Callable[..., RunFolder]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, local_engine: Engine) -> Train:
    """Trains a job of 20 steps, once for each set of arguments."""

    @functools.cache
    def train(what: str, ranks: int, precision: str = "fp32", extra: str = "", repeat: int = 0) -> RunFolder:
        how = f"{HOW}, ranks: {ranks}, precision: {precision}, optimizer: {OPTIMIZERS[precision]}{extra}"
        job = runs.write_job(tmp_path_factory.mktemp("run"), what, how, "engine: local")
        return runs.train_here(local_engine, job)

    return train


def losses(run: RunFolder) -> np.ndarray:
    """Global loss of each step."""
    return np.array(
        [row["loss"] for row in run.table("steps").sort_by("step").to_pylist() if row["rank"] == 0]
    )


@pytest.mark.parametrize(("precision", "tolerance"), [("fp64", 1e-9), ("fp32", 1e-3)])
@pytest.mark.parametrize(
    ("what", "ranks", "extra"),
    [
        (SUPERRES, 2, ""),
        (SUPERRES, 4, ""),
        (NETWORK, 5, ""),  # does not divide the batch of twelve: the shares are weighted
        (NETWORK, 2, ", micro_batch: 4"),
        (NETWORK, 5, ", micro_batch: 2"),
    ],
)
def test_equal_global_batches_give_equal_losses(
    trained: Train, precision: str, tolerance: float, what: str, ranks: int, extra: str
) -> None:
    alone, shared = losses(trained(what, 1, precision)), losses(trained(what, ranks, precision, extra))
    assert alone.shape == (20,)
    assert len(set(alone)) == 20  # it moves, so a wrong gradient would show
    np.testing.assert_allclose(shared, alone, rtol=tolerance)


def test_the_same_seed_and_world_size_give_the_same_bits(trained: Train) -> None:
    first, second = (trained("app: tests.network, width: 700", 3, repeat=repeat) for repeat in (0, 1))
    assert first.path != second.path
    assert runs.digest(first) == runs.digest(second)
    assert runs.digest(trained("app: tests.network, width: 700, seed: 1", 3)) != runs.digest(first)


@pytest.mark.parametrize("ranks", [1, 4])
def test_a_checkpoint_of_two_ranks_goes_on_with_any_number(
    tmp_path: Path, local_engine: Engine, ranks: int
) -> None:
    """The weights count how often each sample was used: the order of samples survives the change."""
    what = "app: tests.counting, samples: 64"
    how = "steps: 25, batch: 16, optimizer: {name: sgd, lr: 16}, checkpoint_every: 10 steps, ranks: 2"
    run = runs.train_here(local_engine, runs.write_job(tmp_path, what, how, "engine: local"))
    longer = runs.write_job(tmp_path, what, how.replace("steps: 25", "steps: 40"), "engine: local")
    (run.path / "job.yaml").write_text(longer.read_text())
    runs.train_here(local_engine, longer, run, ranks=ranks, min_ranks=ranks, max_ranks=ranks)
    assert load_file(run.model_path)["uses"].tolist() == [-40 * 16 / 64] * 64
    assert {row["world_size"] for row in run.table("steps").to_pylist()} == {2, ranks}
