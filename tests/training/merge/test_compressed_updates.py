"""Updates in fewer bytes: nothing is lost, what is sent is what is merged, and what makes no sense is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import muster
from muster.engine.pool.blobs import Manifest
from muster.engine.pool.course import replayed, saved_version
from muster.engine.pool.fold import Coded
from muster.engine.pool.ledger import Ledger
from muster.engine.pool.updates import RefusedUpdate, examined, flattened, most_bytes, pack, parted
from muster.engine.pool.worker import Outcome
from muster.errors import RefusedInput
from muster.federated import LocalTraining, UpdateCompression, simulate
from muster.training.merge.compressed_updates import compression_of, fold_of

METHODS = [UpdateCompression("int8"), UpdateCompression("topk", 0.03)]


def model(seed: int = 0) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {
        "weight": generator.normal(size=(70, 53)).astype(np.float32),
        "deep": generator.normal(size=(2048,)),
        "bias": generator.normal(size=70).astype(np.float32),
        "batches": np.array(7),
    }


def trained(base: dict[str, Any], seed: int) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    changed = {
        name: (array + generator.normal(size=array.shape) * generator.uniform(0, 0.1)).astype(array.dtype)
        for name, array in base.items()
        if array.dtype.kind == "f"
    }
    return {**base, **changed, "batches": np.array(9)}


def travelled(outcome: Outcome) -> dict[str, Any]:
    """The arrays of a result as they are packed."""
    return flattened(weights={"": outcome.weights}, extra=outcome.extra, **outcome.coded)


@pytest.mark.parametrize("codec", METHODS, ids=lambda codec: codec.method)
def test_what_is_sent_and_what_is_left_out_is_the_change_and_what_was_left_out(
    codec: UpdateCompression,
) -> None:
    base, residual = model(), {}
    shape = codec.shape(flattened(weights={"": base}))
    for round_ in range(5):
        weights = trained(base, round_)
        outcome, left = codec.encoded(Outcome(weights, 3), base, residual, seed=round_)
        content = pack(travelled(outcome))
        assert len(content) <= most_bytes(shape)
        arrays = examined(content, shape, samples=3, most_samples=3)
        found = parted(codec.decoded(arrays, base), "weights")[""]
        assert list(found) == list(base)
        for name in ("bias", "batches"):
            np.testing.assert_array_equal(found[name], weights[name])
        for name in ("weight", "deep"):
            assert found[name].dtype == base[name].dtype
            change = (weights[name] - base[name]).astype(np.float32).reshape(-1)
            owed = change + residual.get(name, np.float32(0))
            if codec.method == "topk":
                sent = np.zeros_like(owed)
                sent[outcome.coded["indices"][""][name]] = outcome.coded["values"][""][name]
                assert np.count_nonzero(sent) == round(0.03 * owed.size)
                # Nothing that was left out is larger than anything that was sent, but for what the sample misjudged.
                assert np.quantile(np.abs(left[name]), 0.97) <= np.abs(sent[sent != 0]).min()
            else:
                blocks = np.zeros(-(-owed.size // 256) * 256, np.float32)
                blocks[: owed.size] = owed
                blocks = blocks.reshape(-1, 256)
                scale = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
                sent = (np.round(blocks / scale) * scale).reshape(-1)[: owed.size]
                assert np.abs(left[name]).max() <= scale.max() / 2 * 1.0001
            np.testing.assert_array_equal(sent + left[name], owed)
            np.testing.assert_allclose(found[name].reshape(-1) - base[name].reshape(-1), sent, atol=1e-6)
        base, residual = found, left


def test_an_update_has_a_byte_for_each_number_or_eight_for_each_that_is_sent() -> None:
    large = {"w": np.zeros((500, 200), np.float32)}
    dense = len(pack(flattened(weights={"": large})))
    for codec, share in ((UpdateCompression("int8"), (1 + 4 / 256) / 4), (UpdateCompression("topk"), 0.02)):
        outcome, _ = codec.encoded(Outcome(trained_like(large), 1), large, {}, seed=0)
        assert len(pack(travelled(outcome))) / dense == pytest.approx(share, abs=2e-3)


def trained_like(arrays: dict[str, Any]) -> dict[str, Any]:
    generator = np.random.default_rng(1)
    return {
        name: array + generator.normal(size=array.shape).astype(array.dtype) for name, array in arrays.items()
    }


def test_an_array_that_has_not_changed_is_sent_as_that() -> None:
    base = model()
    weights = {name: array.copy() for name, array in base.items()}
    weights["weight"][3, 4] += 1
    for codec in METHODS:
        outcome, _ = codec.encoded(Outcome(weights, 1), base, {}, seed=0)
        shape = codec.shape(flattened(weights={"": base}))
        arrays = examined(pack(travelled(outcome)), shape, samples=1, most_samples=1)
        found = parted(codec.decoded(arrays, base), "weights")[""]
        for name, array in weights.items():
            np.testing.assert_allclose(found[name], array, atol=1e-6)


@pytest.mark.parametrize(
    ("indices", "values", "why"),
    [
        ([5, 5], [1.0, 1.0], "indices that do not rise from 0 to below 1,024"),
        ([7, 5], [1.0, 1.0], "indices that do not rise"),
        ([-1, 5], [1.0, 1.0], "indices that do not rise"),
        ([0, 1024], [1.0, 1.0], "indices that do not rise"),
        ([0, 1], [3e38, 1.0], "changes that are too large for float32"),
    ],
)
def test_pairs_that_make_no_sense_are_refused(indices: list[int], values: list[float], why: str) -> None:
    codec = UpdateCompression("topk", 2 / 1024)
    base = {"w": np.full(1024, 3e38, np.float32)}
    told = flattened(
        indices={"": {"w": np.array(indices, np.int32)}}, values={"": {"w": np.array(values, np.float32)}}
    )
    arrays = examined(pack(told), codec.shape(flattened(weights={"": base})), samples=1, most_samples=1)
    with pytest.raises(RefusedUpdate, match=why):
        codec.decoded(arrays, base)


def test_a_scale_that_leaves_the_finite_numbers_is_refused() -> None:
    codec = UpdateCompression("int8")
    base = {"w": np.zeros(1024, np.float32)}
    told = flattened(
        codes={"": {"w": np.full(1024, 127, np.int8)}}, scales={"": {"w": np.full(4, 3e38, np.float32)}}
    )
    arrays = examined(pack(told), codec.shape(flattened(weights={"": base})), samples=1, most_samples=1)
    with pytest.raises(RefusedUpdate, match="changes that are too large"):
        codec.decoded(arrays, base)


def classes(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, list[Any]]:
    """A linear problem in 200 dimensions, dealt to four parties."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(400, 200, generator=generator)
    labels = (inputs @ torch.randn(200, 8, generator=generator)).argmax(1)
    return inputs, labels, [(inputs[mine::4], labels[mine::4]) for mine in range(4)]


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(200, 8)


@pytest.mark.parametrize("rule", ["fedavg", "scaffold"])
@pytest.mark.parametrize("codec", METHODS, ids=lambda codec: codec.method)
def test_parties_whose_updates_are_compressed_learn_as_much(
    codec: UpdateCompression, rule: str, tmp_path: Path
) -> None:
    inputs, labels, parties = classes()
    local = LocalTraining(batch=50, lr=0.3)

    def loss(weights: Any) -> float:
        found = linear()
        found.load_state_dict({name: torch.as_tensor(array) for name, array in weights.items()})
        return float(nn.functional.cross_entropy(found(inputs), labels).detach())

    plain = simulate(linear, parties, rule, rounds=40, local=local)
    found = simulate(linear, parties, rule, rounds=40, local=local, compression=codec, folder=tmp_path)
    first, dense, sparse = loss(linear().state_dict()), loss(plain.weights), loss(found.weights)
    assert dense < first / 4
    assert sparse < dense + 0.05 * first
    if codec.method == "topk" and rule == "fedavg":  # without feedback what is small is never sent
        without = simulate(
            linear, parties, rule, rounds=40, local=local, compression=UpdateCompression("topk", 0.03, False)
        )
        assert loss(without.weights) > sparse + 0.05 * first

    # What lies on the disk is what has travelled, and the model follows from it.
    chosen = muster.merge.get(rule)
    again = replayed(tmp_path, fold_of(chosen, codec))
    saved = saved_version(tmp_path)
    assert saved is not None
    assert saved.packed() == again.packed()
    np.testing.assert_array_equal(again.model["weight"], found.weights["weight"])
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        assert compression_of(ledger.noted("about")) == codec
        sizes = {
            Manifest.from_json(each.detail["update"], most_bytes=1 << 40).size for each in ledger.accepted()
        }
    dense_bytes = len(pack(flattened(weights={"": again.model}, extra=chosen.expects(again.model))))
    weights_bytes = again.model["weight"].nbytes
    assert max(sizes) < dense_bytes - 0.7 * weights_bytes


def test_an_update_of_another_codec_is_refused_by_its_shape() -> None:
    base = {"w": np.zeros(4096, np.float32)}
    outcome, _ = METHODS[0].encoded(Outcome(trained_like(base), 1), base, {}, seed=0)
    with pytest.raises(RefusedUpdate, match="lacks the array"):
        examined(
            pack(travelled(outcome)),
            METHODS[1].shape(flattened(weights={"": base})),
            samples=1,
            most_samples=1,
        )


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(RefusedInput, match="no method 'zip'; expected int8 or topk"):
        UpdateCompression("zip")  # type: ignore[arg-type]
    with pytest.raises(RefusedInput, match="density: found 0; expected above 0, up to 1"):
        UpdateCompression("topk", 0)
    rule = muster.merge.get("fedavg")
    assert fold_of(rule, None) is rule
    assert isinstance(fold_of(rule, METHODS[0]), Coded)
