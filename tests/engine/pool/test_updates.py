"""Updates from other machines: what is wrong is named, and no bytes whatever do harm."""

from __future__ import annotations

import random
import resource
import struct
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from muster.engine.pool.updates import RefusedUpdate, examined, most_bytes, pack, unpack
from muster.errors import DataError

GENERATOR = np.random.default_rng(0)
MODEL: dict[str, Any] = {
    "conv.weight": GENERATOR.standard_normal((3, 4)).astype(np.float32),
    "bn.num_batches_tracked": np.array(7, np.int64),
    "head.bias": GENERATOR.standard_normal(5),
}
LIMITS: Any = {"samples": 10, "most_samples": 10}


def changed(**arrays: Any) -> bytes:
    return pack(MODEL | {name.replace("__", "."): array for name, array in arrays.items()})


def test_what_is_packed_comes_back_in_the_models_order_and_equal_arrays_give_equal_bytes() -> None:
    found = examined(pack(MODEL), MODEL, **LIMITS)
    assert list(found) == list(MODEL)
    for name, array in MODEL.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)
    assert pack(dict(reversed(MODEL.items()))) == pack(MODEL)
    assert unpack(pack(MODEL)).keys() == MODEL.keys()


NAN = np.array([1, np.nan, np.inf, 2, 3])


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (changed(head__bias=NAN), "'head.bias' has 2 values that are not finite"),
        (changed(head__bias=np.zeros(6)), r"'head.bias' has shape \[6\]; expected \[5\]"),
        (changed(head__bias=np.zeros(5, np.float32)), "'head.bias' is float32; expected float64"),
        (changed(other=np.zeros(1)), "has an array 'other' that the model has not"),
        (pack({name: MODEL[name] for name in ("conv.weight", "head.bias")}), "lacks the array 'bn.num"),
        (pack(MODEL)[:-3], "not a safetensors file"),
        (b"", "not a safetensors file"),
        (pack(MODEL) + bytes(100_000), "bytes; this model's have at most"),
        (struct.pack("<Q", 2**63) + b"{}", "not a safetensors file"),
        (struct.pack("<Q", 2) + b"[]", "header is no JSON object"),
        (
            save({"x": np.zeros(2)}).replace(b'"F64"', b'"F8_'[:5].ljust(5, b"x")),
            "safetensors|which no model",
        ),
    ],
)
def test_each_fault_is_named(content: bytes, why: str) -> None:
    with pytest.raises(RefusedUpdate, match=why):
        examined(content, MODEL, **LIMITS)


@pytest.mark.parametrize("samples", [10**9, -1, True, 2.5, "10"])
def test_claims_beyond_the_lease_are_refused(samples: Any) -> None:
    with pytest.raises(RefusedUpdate, match="samples; its lease was given 10"):
        examined(pack(MODEL), MODEL, samples=samples, most_samples=10)


def test_a_model_of_ones_own_that_is_damaged_is_told() -> None:
    with pytest.raises(DataError, match="not a safetensors file"):
        unpack(pack(MODEL)[:40])


@pytest.mark.slow
def test_a_hundred_thousand_mutilated_updates_neither_crash_nor_fill_the_memory() -> None:
    """Flipped, cut, repeated and made-up bytes: each is refused, or is a model of the right form with finite numbers."""
    draws, whole = random.Random(3), pack(MODEL)
    before, taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    for _ in range(100_000):
        content = bytearray(whole)
        for _ in range(draws.randint(1, 4)):
            kind, at = draws.randrange(4), draws.randrange(max(1, len(content)))
            if kind == 0 and content:
                content[at] = draws.randrange(256)
            elif kind == 1:
                del content[at : at + draws.randint(1, 50)]
            elif kind == 2:
                content[at:at] = content[at : at + 20]
            else:
                content[at:at] = draws.randbytes(draws.randint(1, 8))
        try:
            found = examined(bytes(content), MODEL, **LIMITS)
        except RefusedUpdate:
            continue
        taken += 1
        for name, array in MODEL.items():
            assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
            assert np.isfinite(found[name]).all()
    assert 0 < taken < 50_000  # a flipped digit of a weight is still a weight
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes
    assert most_bytes(MODEL) < 10_000
