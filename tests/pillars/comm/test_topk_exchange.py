"""Top-k with error feedback on several ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from muster.errors import RefusedInput
from muster.gang import Engine, RankContext
from muster.pillars.comm.compress import load_compressor, parts_of

SHAPES = [(40, 30), (30,), (1,), (64, 8, 3, 3)]
NUMEL = 1200 + 30 + 1 + 4608


def gradient(rank: int, step: int) -> torch.Tensor:
    return torch.randn(NUMEL, generator=torch.Generator().manual_seed(100 * step + rank))


@pytest.mark.parametrize("name", ["topk", "oktopk", "int8"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_residual_plus_sent_is_gradient_plus_previous_residual_bit_for_bit(
    local_engine: Engine, name: str, ranks: int
) -> None:
    """What was sent is seen from outside: the mean that all ranks got is that of what left the residuals."""

    def run(context: RankContext) -> tuple[list[float], list[bool]]:
        from muster.pillars.comm.compress import Wire

        options = {} if name == "int8" else {"density": 0.05}
        compressor = load_compressor(name)(parts_of(SHAPES), torch.float32, torch.device("cpu"), **options)
        wire, errors, exact = Wire(), [], []
        for step in range(20):
            mine = gradient(context.rank, step)
            before = compressor.residual.clone()
            bucket = mine.clone()
            compressor.average(bucket, wire)
            sent = (mine + before) - compressor.residual
            exact.append(torch.equal(compressor.residual + sent, mine + before))
            mean = sent.double()
            torch.distributed.all_reduce(mean)
            mean /= context.world_size
            errors.append(float((mean - bucket).abs().max()))
        return errors, exact

    for errors, exact in local_engine.run(run, ranks=ranks):
        assert all(exact)
        # int8 rounds the mean again, by at most 1/254 of the largest of its block (about 4 here).
        assert max(errors) < (0.05 if name == "int8" else 1e-6)


def test_each_layer_sends_its_own_largest_elements(local_engine: Engine) -> None:
    def run(context: RankContext) -> list[list[float]]:
        from muster.pillars.comm.compress import Wire

        wire = Wire()
        compressor = load_compressor("topk")(
            parts_of(SHAPES), torch.float32, torch.device("cpu"), density=0.01
        )
        results = []
        for step in range(3):
            bucket = gradient(context.rank, step)
            compressor.average(bucket, wire)
            results.append(bucket.tolist())
        assert (
            wire.sent_bytes == compressor.wire_bytes == 3 * 8 * (12 + 1 + 1 + 46)
        )  # an index and a value, 4 bytes each
        return results

    results = local_engine.run(run, ranks=2)
    assert results[0] == results[1]
    # The same with NumPy's sort, one rank after the other.
    edges = [0, 1200, 1230, 1231, NUMEL]
    residuals = [np.zeros(NUMEL, np.float32) for _ in range(2)]
    for step in range(3):
        mean = np.zeros(NUMEL, np.float32)
        for rank in range(2):
            total = residuals[rank] + gradient(rank, step).numpy()
            for begin, end, count in zip(edges, edges[1:], [12, 1, 1, 46], strict=False):
                chosen = begin + np.argsort(-np.abs(total[begin:end]), kind="stable")[:count]
                mean[chosen] += total[chosen] / 2
                total[chosen] = 0
            residuals[rank] = total
        assert results[0][step] == mean.tolist()


@pytest.mark.parametrize("name", ["topk", "oktopk"])
def test_descent_reaches_the_minimum_with_feedback_and_stays_far_from_it_without(
    local_engine: Engine, name: str
) -> None:
    """f(x) = |x - c_r|^2 / 2 on rank r, whose sum has its minimum at the mean of the c_r, where no rank's gradient is zero.

    Without feedback each rank goes on sending its own largest elements there, which need not cancel (Karimireddy et al.,
    2019, show the like for signs).
    """

    def run(context: RankContext) -> dict[bool, float]:
        from muster.pillars.comm.compress import Wire

        centres = [gradient(rank, 0) for rank in range(context.world_size)]
        minimum, distance = sum(centres) / context.world_size, {}
        for feedback in (True, False):
            compressor = load_compressor(name)(
                parts_of([(NUMEL,)]),
                torch.float32,
                torch.device("cpu"),
                density=0.05,
                error_feedback=feedback,
            )
            point, wire = torch.zeros(NUMEL), Wire()
            for step in range(500):
                bucket = point - centres[context.rank]
                compressor.average(bucket, wire)
                point -= 0.3 / (1 + step / 20) * bucket
            distance[feedback] = float((point - minimum).norm() / minimum.norm())
        return distance

    for distance in local_engine.run(run, ranks=2):
        assert distance[True] < 0.1
        assert distance[False] > 4 * distance[True]


def test_what_waits_gathers_momentum_and_the_density_falls_by_equal_factors(local_engine: Engine) -> None:
    """One element at 1 per step waits for n steps behind larger ones: it is sent with sum of sums of 0.5^i."""

    def run(context: RankContext) -> tuple[list[float], list[int]]:
        from muster.pillars.comm.compress import Wire

        compressor = load_compressor("topk")(
            parts_of([(2,)]), torch.float32, torch.device("cpu"), density=0.5, momentum=0.5
        )
        sent, wire = [], Wire()
        for step in range(4):
            bucket = torch.tensor([1.0, 100.0 if step < 3 else 0.0])
            compressor.average(bucket, wire)
            sent.append(float(bucket[0]))
        warm = load_compressor("topk")(
            parts_of([(10_000,)]), torch.float32, torch.device("cpu"), density=0.01, warm_up_steps=2
        )
        numbers = []
        for step in range(4):
            bucket = torch.randn(10_000, generator=torch.Generator().manual_seed(step))
            warm.average(bucket, wire)
            numbers.append(int(bucket.count_nonzero()))
        return sent, numbers

    (sent, numbers), _ = local_engine.run(run, ranks=2)
    # Velocities 1, 1.5, 1.75, 1.875.
    assert sent == [0.0, 0.0, 0.0, 1 + 1.5 + 1.75 + 1.875]
    assert numbers == [2500, 500, 100, 100]  # 25 %, its geometric mean with 1 %, 1 %


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_both_reductions_of_top_k_give_the_same_mean(local_engine: Engine, ranks: int) -> None:
    def run(context: RankContext) -> dict[str, list[float]]:
        from muster.pillars.comm.compress import Wire

        results = {}
        for reduction in ("gather", "streams"):
            compressor = load_compressor("topk")(
                parts_of(SHAPES), torch.float32, torch.device("cpu"), density=0.2, reduction=reduction
            )
            for step in range(3):
                bucket = gradient(context.rank, step)
                compressor.average(bucket, Wire())
            results[reduction] = bucket.tolist()
        return results

    everybody = local_engine.run(run, ranks=ranks)
    assert all(results == everybody[0] for results in everybody)  # the same bits on all ranks
    assert everybody[0]["gather"] == pytest.approx(everybody[0]["streams"], abs=1e-6)


@pytest.mark.parametrize("name", ["topk", "oktopk", "int8", "powersgd"])
def test_an_overflow_reaches_all_ranks_and_leaves_nothing_behind(local_engine: Engine, name: str) -> None:
    """A loss scaler skips the step in which a gradient is not finite; those that follow must be clean."""

    def run(context: RankContext) -> list[bool]:
        from muster.pillars.comm.compress import Wire

        compressor = load_compressor(name)(parts_of(SHAPES), torch.float32, torch.device("cpu"))
        finite, wire = [], Wire()
        for step in range(4):
            bucket = gradient(context.rank, step)
            if step == 1 and context.rank == 1:
                bucket[3], bucket[5000], bucket[1210] = torch.nan, torch.inf, -torch.inf
            compressor.average(bucket, wire)
            finite.append(bool(bucket.isfinite().all()))
        return finite

    assert local_engine.run(run, ranks=2) == [[True, False, True, True]] * 2


@pytest.mark.parametrize("name", ["topk", "oktopk", "int8", "powersgd", "bf16", "none"])
def test_zero_gradients_stay_zero(local_engine: Engine, name: str) -> None:
    def run(context: RankContext) -> list[float]:
        from muster.pillars.comm.compress import Wire

        compressor = load_compressor(name)(parts_of(SHAPES), torch.float32, torch.device("cpu"))
        bucket = torch.zeros(NUMEL)
        for _ in range(3):
            compressor.average(bucket, Wire())
        return [float(bucket.abs().max())]

    assert local_engine.run(run, ranks=2) == [[0.0], [0.0]]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("topk", {"density": 0.0}, "density 0.0"),
        ("oktopk", {"density": 1.5}, "density 1.5"),
        ("topk", {"reduction": "ring"}, "use gather or streams"),
        ("powersgd", {"rank": 0}, "rank 0"),
        ("int8", {"block": 0}, "block 0"),
        ("oktopk", {"threshold_every": 0}, "threshold_every 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(name: str, options: dict[str, object], said: str) -> None:
    with pytest.raises(RefusedInput, match=said):
        load_compressor(name)(parts_of(SHAPES), torch.float32, torch.device("cpu"), **options)


def test_an_unknown_compressor_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(RefusedInput, match="use one of bf16, fp16, int8, none, oktopk, powersgd, topk"):
        load_compressor("zip")
