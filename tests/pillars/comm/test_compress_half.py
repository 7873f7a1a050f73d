"""Formats of 16 and 8 bits over Gloo: what they sum, and how many bytes travel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from muster.gang import Engine, RankContext

NUMEL = 1003  # divisible by no number of ranks here


def gradient(rank: int) -> torch.Tensor:
    return torch.randn(NUMEL, generator=torch.Generator().manual_seed(rank)) * 3


@pytest.mark.parametrize(("name", "format"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_the_result_is_the_fp32_mean_of_the_rounded_gradients_rounded_at_most_once(
    local_engine: Engine, name: str, format: torch.dtype, ranks: int
) -> None:
    def run(context: RankContext) -> tuple[list[float], int]:
        from muster.pillars.comm.compress import Wire, load_compressor, parts_of

        compressor = load_compressor(name)(parts_of([(NUMEL,)]), torch.float32, torch.device("cpu"))
        bucket = gradient(context.rank)
        compressor.average(bucket, Wire())
        return bucket.tolist(), compressor.wire_bytes

    everybody = local_engine.run(run, ranks=ranks)
    total = np.zeros(NUMEL, np.float32)
    for rank in range(ranks):
        total += gradient(rank).to(format).float().numpy()
    mean = torch.from_numpy(total / np.float32(ranks))
    expected = (mean if ranks == 2 else mean.to(format).float()).tolist()  # two ranks swap and sum
    chunk = -(-NUMEL // ranks)
    moved = NUMEL if ranks == 2 else 2 * chunk * (ranks - 1)  # out to the owners and back
    for got, sent in everybody:
        assert got == expected
        assert sent == 2 * moved


def test_bf16_hook_of_torch_is_refused_by_gloo_and_ours_trains(local_engine: Engine) -> None:
    def run(context: RankContext) -> tuple[str, bool]:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
        from torch.nn.parallel import DistributedDataParallel

        from muster.pillars.comm.exchange import Exchange

        torch.manual_seed(0)
        model = torch.nn.Linear(8, 4)
        refused = ""
        try:
            DistributedDataParallel(torch.nn.Linear(8, 4)).register_comm_hook(None, bf16_compress_hook)
        except (TypeError, ValueError, RuntimeError) as error:
            refused = str(error)
        replica = DistributedDataParallel(model)
        with Exchange(model.named_parameters(), "bf16") as exchange:
            replica.register_comm_hook(None, exchange.hook)
            inputs = torch.randn(5, 8, generator=torch.Generator().manual_seed(context.rank))
            replica(inputs).square().mean().backward()
            local = torch.nn.Linear(8, 4)
            local.load_state_dict(model.state_dict())
            local(inputs).square().mean().backward()
            mean = [parameter.grad.to(torch.bfloat16).float() for parameter in local.parameters()]
            for tensor in mean:
                torch.distributed.all_reduce(tensor)
            same = all(
                torch.equal(tensor / 2, parameter.grad)
                for tensor, parameter in zip(mean, model.parameters(), strict=True)
            )
        return refused, same

    for refused, same in local_engine.run(run, ranks=2):
        assert "BF16" in refused
        assert same


def test_int8_moves_a_quarter_of_the_bytes_and_errs_by_at_most_half_a_level_per_rounding(
    local_engine: Engine,
) -> None:
    def run(context: RankContext) -> tuple[list[float], int]:
        from muster.pillars.comm.compress import Wire, load_compressor, parts_of

        compressor = load_compressor("int8")(parts_of([(NUMEL,)]), torch.float32, torch.device("cpu"))
        bucket = gradient(context.rank)
        compressor.average(bucket, Wire())
        return bucket.tolist(), compressor.wire_bytes

    (one, sent), (other, _) = local_engine.run(run, ranks=2)
    assert one == other
    assert sent == 2 * 512 * (1 + 4 / 256)  # two chunks of two blocks of 256, a scale each
    mean = ((gradient(0) + gradient(1)) / 2).numpy()
    # Half of 1/127 of a block's largest, once on the way out and once on the way back.
    bound = max(gradient(0).abs().max(), gradient(1).abs().max()).item() / 127
    assert np.abs(np.array(one) - mean).max() <= bound


def test_int8_feedback_makes_the_running_sum_exact_to_one_rounding(local_engine: Engine) -> None:
    def run(context: RankContext) -> list[float]:
        from muster.pillars.comm.compress import Wire, load_compressor, parts_of

        compressor = load_compressor("int8")(parts_of([(NUMEL,)]), torch.float32, torch.device("cpu"))
        total = torch.zeros(NUMEL, dtype=torch.float64)
        for _ in range(50):
            bucket = gradient(context.rank)
            compressor.average(bucket, Wire())
            total += bucket
        return (total / 50).tolist()

    averaged = np.array(local_engine.run(run, ranks=2)[0])
    mean = ((gradient(0) + gradient(1)) / 2).double().numpy()
    level = 2 * max(gradient(0).abs().max(), gradient(1).abs().max()).item() / 127
    assert np.abs(averaged - mean).max() <= 1.5 * level / 50
