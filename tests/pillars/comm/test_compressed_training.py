"""Training a small ResNet on CIFAR-10 with compressed gradients: a short form of benchmarks/compressed_training.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from muster.gang import Engine

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.mark.slow
def test_feedback_keeps_a_compressed_training_near_a_dense_one(
    local_engine: Engine, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (data / "cifar10").is_dir():
        pytest.skip(f"no cifar10 in {data}")
    monkeypatch.syspath_prepend(BENCHMARKS)
    import cloudpickle
    import compressed_training

    cloudpickle.register_pickle_by_value(compressed_training)  # the ranks need not find the folder
    try:
        images, classes = compressed_training.load_images(data, 1)
        stored = tmp_path / "images.npz"
        np.savez(stored, images=images, classes=classes)
        chosen = [
            ("none", {}),
            ("bf16", {}),
            ("int8", {}),
            ("powersgd", {"rank": 4}),
            ("topk", {"density": 0.1, "momentum": compressed_training.MOMENTUM, "warm_up_steps": 20}),
        ]
        outcomes = compressed_training.train(local_engine, stored, chosen, steps=40, seed=0)
    finally:
        cloudpickle.unregister_pickle_by_value(compressed_training)
    assert all(outcome.equal for outcome in outcomes)  # parameters have one hash on all ranks at every step
    dense, bf16, int8, powersgd, topk = (outcome.final for outcome in outcomes)
    assert dense < 0.9 * np.log(10)  # it learns: guessing costs log 10
    assert bf16 == pytest.approx(dense, rel=0.05)
    assert int8 == pytest.approx(dense, rel=0.1)
    assert powersgd == pytest.approx(dense, rel=0.1)
    assert topk == pytest.approx(dense, rel=0.1)
