"""Distributed evaluation counts each item exactly once."""

from __future__ import annotations

import math

import pytest
import torch

from muster.engine.gang import Engine, RankContext
from muster.training.evaluation import Evaluation, evaluate_exact


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
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


def test_the_metric_is_the_same_to_the_bit_at_any_number_of_ranks(local_engine: Engine) -> None:
    """Values whose sum depends on the order of summation; the same as in a plain loop without ranks at all."""

    def evaluate(context: RankContext | None) -> tuple[str, int]:
        import torch

        from muster.training import evaluate_exact

        torch.manual_seed(5)
        model = torch.nn.Sequential(torch.nn.Linear(9, 9), torch.nn.Dropout(), torch.nn.Linear(9, 1))
        draw = torch.Generator().manual_seed(6)
        items = [torch.randn(9, generator=draw) * 10.0 ** (k - 5) for k in range(10)]
        found = evaluate_exact(model, items, lambda model, item: {"value": float(model(item))})
        return found.means()["value"].hex(), len(found.items)

    alone = evaluate(None)
    assert alone[1] == 10
    for ranks in (1, 2, 3, 4, 7):
        assert local_engine.run(evaluate, ranks=ranks) == [alone] * ranks


def test_no_items_and_ranks_without_items_are_no_error(local_engine: Engine) -> None:
    def evaluate(context: RankContext) -> list[int]:
        import torch

        from muster.training import evaluate_exact

        model = torch.nn.Linear(1, 1)
        return [
            len(evaluate_exact(model, range(count), lambda _, item: {"x": item}).items) for count in (0, 1, 2)
        ]

    assert local_engine.run(evaluate, ranks=3) == [[0, 1, 2]] * 3


def test_a_group_of_some_ranks_evaluates_alone(local_engine: Engine) -> None:
    def evaluate(context: RankContext) -> list[int]:
        import torch
        import torch.distributed as dist

        from muster.training import evaluate_exact

        pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
        done: list[int] = []

        def square(_: object, item: int) -> dict[str, float]:
            done.append(item)
            return {"square": item**2}

        group = pairs[context.rank // 2]
        result = evaluate_exact(torch.nn.Linear(1, 1), [1, 2, 3], square, group)
        assert result.means() == {"square": 14 / 3}
        return done

    assert local_engine.run(evaluate, ranks=4) == [[1, 3], [2], [1, 3], [2]]


def test_every_module_is_left_in_the_mode_it_was_in() -> None:
    from muster.training import evaluate_exact

    model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Dropout())
    model[0].eval()  # frozen by the user while the rest trains
    modes = evaluate_exact(
        model, [0], lambda model, _: {"training": float(any(m.training for m in model.modules()))}
    )
    assert modes.means() == {"training": 0.0}
    assert [model.training, model[0].training, model[1].training] == [True, False, True]


def test_means_do_not_depend_on_the_order_of_summation() -> None:
    values = [1e16, 1.0, -1e16, 1.0]
    assert Evaluation([{"x": value} for value in values], [1] * 4).means() == {"x": math.fsum(values) / 4}


def test_an_item_of_several_samples_counts_as_many(local_engine: Engine) -> None:
    """Three batches, of which 1 of 1, 1 of 4 and 5 of 6 samples are right: 7 of 11."""

    def evaluate(context: RankContext) -> dict[str, float]:
        from types import SimpleNamespace

        import torch

        from muster.training import evaluate_exact

        batches = [
            SimpleNamespace(right=right, samples=samples) for right, samples in ((1, 1), (1, 4), (5, 6))
        ]
        model = torch.nn.Linear(1, 1)
        return evaluate_exact(model, batches, lambda _, item: {"accuracy": item.right / item.samples}).means()

    for ranks in (1, 2):
        assert local_engine.run(evaluate, ranks=ranks) == [{"accuracy": 7 / 11}] * ranks
