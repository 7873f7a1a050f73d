"""Distributed evaluation counts each item exactly once."""

from __future__ import annotations

import math

import pytest

from muster.engine.gang import Engine, RankContext
from muster.training.evaluation import Evaluation, evaluate_exact


@pytest.mark.parametrize("ranks", [1, 2, 4, 7])
def test_ten_items_are_ten_items_on_any_number_of_ranks(local_engine: Engine, ranks: int) -> None:
    def evaluate(context: RankContext) -> Evaluation:
        import torch

        model = torch.nn.Linear(1, 1)
        return evaluate_exact(model, list(range(10)), lambda _, item: {"square": float(item**2)})

    results = local_engine.run(evaluate, ranks=ranks)
    assert all(result == results[0] for result in results)
    assert [item["square"] for item in results[0].items] == [float(n * n) for n in range(10)]
    assert results[0].means() == {"square": 28.5}  # 285 / 10


def test_there_may_be_fewer_items_than_ranks(local_engine: Engine) -> None:
    def evaluate(context: RankContext) -> Evaluation:
        import torch

        return evaluate_exact(torch.nn.Linear(1, 1), [3.0], lambda _, item: {"value": item})

    assert local_engine.run(evaluate, ranks=3)[2].items == [{"value": 3.0}]


def test_means_do_not_depend_on_the_order_of_summation() -> None:
    values = [1e16, 1.0, -1e16, 1.0]
    assert Evaluation([{"x": value} for value in values]).means() == {"x": math.fsum(values) / 4}
