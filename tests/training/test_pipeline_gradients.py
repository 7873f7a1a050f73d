"""A model trained in a pipeline is the sequential model: same gradients, same weights, same names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from muster.errors import RefusedInput
from muster.gang import Engine, RankContext, engine

RANKS = 4
EVERY = ("gpipe", "1f1b", "interleaved", "looped-bfs", "zero-bubble", "zbv", "chimera")
EVEN = [2, 2, 3, 2]  # of the network below: every stage has parameters, which optimizers insist on


@pytest.fixture(scope="module")
def pipeline_engine() -> Iterator[Engine]:
    """Forked ranks that need not import torch's pipelines each anew."""
    preload = ["muster.training.pipeline", "torch.distributed.pipelining", "torch.distributed.checkpoint"]
    with engine("local", preload=preload) as started:
        yield started


@pytest.fixture(scope="module")
def small_network() -> Callable[[int], nn.Sequential]:
    """A convolutional network of nine layers in float64, of weights that a seed fixes."""

    def make(seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.GroupNorm(2, 4),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(4 * 5 * 5, 8),
            nn.Tanh(),
            nn.Linear(8, 3),
        ).double()

    return make


def _data(samples: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    batch = torch.randn(samples, 2, 5, 5, dtype=torch.float64, generator=generator)
    return batch, torch.randint(3, (samples,), generator=generator)


@pytest.mark.parametrize("name", EVERY)
def test_four_stages_give_the_gradients_of_the_sequential_model(
    pipeline_engine: Engine, small_network: Callable[[int], nn.Sequential], name: str
) -> None:
    """To 1e-10 in float64 and over two steps; as many micro-batches as ranks, twice as many, and what is no multiple."""

    def train(context: RankContext) -> dict[int, tuple[float, float, dict[str, torch.Tensor]]]:
        from muster.training.pipeline import Pipeline

        found = {}
        for micro_batches in (4, 8, 6) if name == "1f1b" else (4, 8, 6, 3):
            pipeline = Pipeline(
                small_network(context.rank),  # other weights on every rank: rank 0's count
                context,
                example=_data(24)[0],
                loss_fn=functional.cross_entropy,
                micro_batches=micro_batches,
                schedule=name,
            )
            for seed in (0, 1):
                loss = pipeline.step(*_data(24, seed))
            gradients = {key: value.grad for key, value in pipeline.named_parameters()}
            evaluated = float(pipeline.evaluate(*_data(24, 1)))
            found[micro_batches] = float(loss), evaluated, gradients
        return found  # type: ignore[return-value]

    sequential = small_network(0)
    for seed in (0, 1):
        batch, target = _data(24, seed)
        loss = functional.cross_entropy(sequential(batch), target)
        loss.backward()
    wanted = {key: value.grad for key, value in sequential.named_parameters()}
    assert min(float(gradient.abs().max()) for gradient in wanted.values() if gradient is not None) > 1e-3

    found = pipeline_engine.run(train, ranks=RANKS, threads=1)
    for micro_batches in found[0]:
        seen: set[str] = set()
        for rank in range(RANKS):
            pipeline_loss, evaluated, gradients = found[rank][micro_batches]
            assert evaluated == pytest.approx(pipeline_loss, abs=1e-12)
            assert pipeline_loss == pytest.approx(float(loss.detach()), abs=1e-12)
            for key, gradient in gradients.items():
                torch.testing.assert_close(gradient, wanted[key], rtol=0, atol=1e-10)
            seen |= gradients.keys()
        assert seen == wanted.keys()


def test_both_replicas_of_chimera_stay_equal_to_the_bit_while_training(
    pipeline_engine: Engine, small_network: Callable[[int], nn.Sequential]
) -> None:
    def train(context: RankContext) -> tuple[dict[str, torch.Tensor], list[float]]:
        from muster.training.pipeline import Pipeline

        batch, target = _data(16)
        pipeline = Pipeline(
            small_network(3),
            context,
            example=batch,
            loss_fn=functional.cross_entropy,
            micro_batches=8,
            schedule="chimera",
            balance=EVEN,
        )
        optimizer = torch.optim.Adam(pipeline.parameters(), lr=1e-2)
        losses = []
        for _ in range(10):
            losses.append(float(pipeline.step(batch, target)))
            optimizer.step()
            optimizer.zero_grad()
        return pipeline.state_dict(), losses

    sequential = small_network(3)
    optimizer = torch.optim.Adam(sequential.parameters(), lr=1e-2)
    batch, target = _data(16)
    losses = []
    for _ in range(10):
        loss = functional.cross_entropy(sequential(batch), target)
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
        optimizer.zero_grad()

    results = pipeline_engine.run(train, ranks=RANKS, threads=1)
    for rank in range(RANKS):
        state, found = results[rank]
        other = results[RANKS - 1 - rank][0]
        assert state.keys() == other.keys()
        assert all(torch.equal(value, other[key]) for key, value in state.items())
        assert found == pytest.approx(losses, abs=1e-9)
    assert losses[-1] < losses[0]


def test_both_replicas_of_chimera_have_the_same_running_statistics(pipeline_engine: Engine) -> None:
    """Each replica normalises other micro-batches; the first one's statistics are kept."""

    def train(context: RankContext) -> dict[str, torch.Tensor]:
        from muster.training.pipeline import Pipeline

        model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3))
        batch = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
        pipeline = Pipeline(
            model,
            context,
            example=batch,
            loss_fn=functional.mse_loss,
            micro_batches=4,
            schedule="chimera",
            balance=[1, 1, 1, 1],
        )
        for _ in range(2):
            pipeline.step(batch, torch.zeros(16, 3))
        return pipeline.state_dict()

    states = pipeline_engine.run(train, ranks=RANKS, threads=1)
    for rank in range(RANKS):
        other = states[RANKS - 1 - rank]
        assert all(torch.equal(value, other[key]) for key, value in states[rank].items())
    assert int(states[1]["1.num_batches_tracked"]) == 4
    assert float(states[1]["1.running_var"].min()) != 1.0


@pytest.mark.parametrize("name", ["1f1b", "zbv", "chimera"])
def test_a_checkpoint_of_a_pipeline_is_one_of_the_sequential_model(
    pipeline_engine: Engine, small_network: Callable[[int], nn.Sequential], name: str, tmp_path: Path
) -> None:
    """Saved from four ranks with torch.distributed.checkpoint; loaded by the plain model, and by a pipeline of two ranks."""

    def save(context: RankContext) -> tuple[float, dict[str, torch.Tensor] | None]:
        import torch.distributed.checkpoint as dcp

        from muster.training.pipeline import Pipeline

        batch, target = _data(8)
        pipeline = Pipeline(
            small_network(1),
            context,
            example=batch,
            loss_fn=functional.cross_entropy,
            micro_batches=4,
            schedule=name,
            balance=EVEN if name != "zbv" else [1, 1, 1, 1, 1, 1, 1, 2],
        )
        pipeline.step(batch, target)
        torch.optim.SGD(pipeline.parameters(), lr=0.5).step()
        dcp.save(pipeline.state_dict(), checkpoint_id=tmp_path)
        return float(pipeline.evaluate(batch, target)), pipeline.full_state_dict()

    def load(context: RankContext) -> float:
        import torch.distributed.checkpoint as dcp

        from muster.training.pipeline import Pipeline

        batch, target = _data(8)
        pipeline = Pipeline(
            small_network(2), context, example=batch, loss_fn=functional.cross_entropy, micro_batches=2
        )
        state: dict[str, Any] = pipeline.state_dict()
        dcp.load(state, checkpoint_id=tmp_path)
        pipeline.load_state_dict(state)
        return float(pipeline.evaluate(batch, target))

    (evaluated, gathered), *others = pipeline_engine.run(save, ranks=RANKS, threads=1)
    assert [state for _, state in others] == [None] * (RANKS - 1)
    sequential = small_network(5)
    sequential.load_state_dict(gathered)
    batch, target = _data(8)
    with torch.no_grad():
        loss = float(functional.cross_entropy(sequential(batch), target))
    assert evaluated == pytest.approx(loss, abs=1e-12)
    assert pipeline_engine.run(load, ranks=2, threads=1) == [pytest.approx(loss, abs=1e-12)] * 2


def test_a_pipeline_of_one_rank_is_the_model_itself(
    pipeline_engine: Engine, small_network: Callable[[int], nn.Sequential]
) -> None:
    def train(context: RankContext) -> list[float]:
        from muster.training.pipeline import Pipeline

        batch, target = _data(6)
        options = {"example": batch, "loss_fn": functional.cross_entropy, "micro_batches": 3}
        return [
            float(
                Pipeline(small_network(0), context, schedule=name, **options).step(batch, target)  # type: ignore[arg-type]
            )
            for name in ("gpipe", "interleaved", "zbv")
        ]

    batch, target = _data(6)
    loss = functional.cross_entropy(small_network(0)(batch), target).item()
    assert pipeline_engine.run(train, ranks=1) == [[pytest.approx(loss, abs=1e-12)] * 3]


@pytest.mark.parametrize("name", ["1f1b", "chimera"])
def test_frozen_layers_and_unused_parameters_have_no_gradient(pipeline_engine: Engine, name: str) -> None:
    def train(context: RankContext) -> dict[str, torch.Tensor | None]:
        from muster.training.pipeline import Pipeline

        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3), nn.Linear(3, 1))
        model[0].requires_grad_(False)
        model[3].register_parameter("unused", nn.Parameter(torch.ones(2)))
        batch = torch.ones(4, 2)
        pipeline = Pipeline(
            model,
            context,
            example=batch,
            loss_fn=functional.mse_loss,
            micro_batches=4,
            schedule=name,
            balance=[1, 1, 1, 1],
        )
        # a rank in the middle need not have the data
        pipeline.step(
            batch if pipeline.needs_input else None, batch[:, :1] if pipeline.needs_target else None
        )
        return {key: value.grad for key, value in pipeline.named_parameters()}

    gradients = {
        key: value for rank in pipeline_engine.run(train, ranks=4, threads=1) for key, value in rank.items()
    }
    assert {key for key, value in gradients.items() if value is None} == {"0.weight", "0.bias", "3.unused"}
    assert gradients.keys() == {f"{layer}.{key}" for layer in (0, 2, 3) for key in ("weight", "bias")} | {
        "3.unused"
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"micro_batches": 3},
            "a batch of 8 cannot be cut into 3 equal parts; right would be a divisor of 8",
        ),
        ({"balance": [5, 4, 1]}, "does not deal 9 layers to 2 stages; right would be 2 numbers"),
        ({"balance": "even"}, "'even' is none; right would be 'measured'"),
        ({"schedule": "interleaved", "stages_per_rank": 5}, "9 layers cannot make 10 stages"),
        ({"schedule": "round-robin"}, "there is no 'round-robin'; right would be one of gpipe"),
    ],
)
def test_a_pipeline_that_cannot_be_is_refused_in_one_sentence(
    pipeline_engine: Engine,
    small_network: Callable[[int], nn.Sequential],
    options: dict[str, Any],
    message: str,
) -> None:
    def train(context: RankContext) -> None:
        from muster.training.pipeline import Pipeline

        given = {"micro_batches": 4, **options}
        Pipeline(small_network(0), context, example=_data(8)[0], loss_fn=functional.cross_entropy, **given)

    with pytest.raises(RefusedInput, match=message):
        pipeline_engine.run(train, ranks=2, threads=1)


def test_weights_shared_between_stages_and_other_shapes_are_refused(pipeline_engine: Engine) -> None:
    def shared(context: RankContext) -> None:
        from muster.training.pipeline import Pipeline

        layer = nn.Linear(2, 2)
        Pipeline(
            [layer, nn.Tanh(), layer],
            context,
            example=torch.ones(4, 2),
            loss_fn=functional.mse_loss,
            micro_batches=2,
            balance=[1, 2],
        )

    def reshaped(context: RankContext) -> None:
        from muster.training.pipeline import Pipeline

        batch = torch.ones(4, 2)
        pipeline = Pipeline(
            [nn.Linear(2, 2), nn.Tanh()], context, example=batch, loss_fn=functional.mse_loss, micro_batches=2
        )
        pipeline.step(batch[:2], batch[:2])

    with pytest.raises(RefusedInput, match=r"stage 0 shares 0.weight with another stage"):
        pipeline_engine.run(shared, ranks=2, threads=1)
    with pytest.raises(RefusedInput, match=r"its shape is \[2, 2\]; right would be \[4"):
        pipeline_engine.run(reshaped, ranks=2, threads=1)
