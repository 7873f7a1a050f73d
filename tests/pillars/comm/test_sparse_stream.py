"""Sparse streams: the sum by recursive doubling beside a dense one, and when a stream becomes dense."""

from __future__ import annotations

import pytest
import torch

from muster.gang import Engine, RankContext
from muster.pillars.comm.compress.sparse_stream import Stream, pack, unpack


def stream(numel: int, count: int, seed: int) -> Stream:
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randperm(numel, generator=generator)[:count].sort().values
    return Stream(indices, torch.randn(count, generator=generator), numel)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_pairs_survive_packing_and_take_an_index_word_and_a_value(dtype: torch.dtype) -> None:
    indices, values = torch.tensor([0, 5, 2**31 - 2]), torch.tensor([1.0, -2.5, 3.25], dtype=dtype)
    packed = pack(indices, values)
    assert packed.numel() == 3 * (4 + dtype.itemsize)
    again, same = unpack(packed, dtype)
    assert again.tolist() == indices.tolist()
    assert torch.equal(same, values)


def test_a_merged_stream_is_dense_once_pairs_would_take_more_room_than_the_vector() -> None:
    # A pair takes 8 bytes and an element 4: half of the elements is the most that pairs are worth.
    left, right = (
        Stream(torch.arange(0, 25), torch.ones(25), 100),
        Stream(torch.arange(25, 50), torch.ones(25), 100),
    )
    assert not left.plus(right).dense
    assert left.plus(Stream(torch.arange(25, 51), torch.ones(26), 100)).dense


def test_the_sum_has_the_same_bits_in_either_order() -> None:
    for count in (10, 400, 700):
        one, two = stream(1000, count, 1), stream(1000, count, 2)
        assert torch.equal(one.plus(two).written_out().values, two.plus(one).written_out().values)
        expected = one.written_out().values + two.written_out().values
        assert torch.equal(one.plus(two).written_out().values, expected)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5])
def test_streams_sum_over_any_number_of_ranks_and_all_get_the_same_bits(
    local_engine: Engine, ranks: int
) -> None:
    def run(context: RankContext) -> list[tuple[list[float], bool, int]]:
        from muster.pillars.comm.compress.sparse_stream import sum_streams
        from muster.pillars.comm.compress.wire import Wire

        results = []
        for count in (5, 100, 600):
            wire = Wire()
            total = sum_streams(stream(1000, count, context.rank), wire)
            results.append((total.written_out().values.tolist(), total.dense, wire.sent_bytes))
        return results

    everybody = local_engine.run(run, ranks=ranks)
    for position, count in enumerate((5, 100, 600)):
        expected = sum(stream(1000, count, rank).written_out().values.double() for rank in range(ranks))
        for results in everybody:
            assert results[position][:2] == everybody[0][position][:2]
            assert results[position][0] == pytest.approx(expected.tolist(), abs=1e-5)
        assert everybody[0][position][1] == (ranks > 1 and count == 600)
    if ranks == 2:  # a header of two words of 8 bytes, then 8 bytes for each pair
        assert [sent for _, _, sent in everybody[0]] == [16 + 8 * 5, 16 + 8 * 100, 16 + 8 * 600]
