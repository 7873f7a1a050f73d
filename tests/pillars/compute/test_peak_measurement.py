"""Peaks of this machine: plausible, cached, and never trusted blindly."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from muster.engine.gang import Engine, RankContext
from muster.pillars.compute import peak_cache, peak_measurement
from muster.pillars.compute.peak_measurement import Measured, last_level_cache_bytes

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def measured(cached: bool = True) -> Measured:
    return peak_measurement.machine_peaks(("fp32",), seconds=0.02, cached=cached)


def cache_file() -> Path:
    (path,) = peak_cache.folder().glob("*.json")
    return path


def test_no_product_of_numpy_is_much_faster_than_the_peak() -> None:
    import numpy as np

    peak = measured(cached=False).peaks("fp32")
    a = np.ones((1024, 1024), dtype=np.float32)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - began)
    # another library on a machine that may be busy with other things: the same order of magnitude
    assert 0.02 < peak.flops_per_s / (2 * 1024**3 / min(times)) < 20
    assert 1e8 < peak.bytes_per_s < 1e13
    assert 1e-8 < peak.operator_s < 1e-3


def test_the_arrays_of_the_bandwidth_are_beyond_the_caches() -> None:
    assert peak_measurement._array_bytes(CPU, 1) >= min(4 * last_level_cache_bytes(), 2**24)


def test_measuring_leaves_the_random_numbers_alone() -> None:
    state = torch.get_rng_state()
    measured(cached=False)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_second_call_takes_the_first_one_s_result() -> None:
    first = measured()
    content = json.loads(cache_file().read_text())
    # so high that nothing measured now can refute it
    content["value"]["gemm_flops_per_s"]["fp32"] = 9e17
    content["checksum"] = peak_cache._checksum(content["value"])
    cache_file().write_text(json.dumps(content))
    assert measured().gemm_flops_per_s["fp32"] == 9e17 != first.gemm_flops_per_s["fp32"]
    assert measured(cached=False).gemm_flops_per_s["fp32"] < 9e17


@pytest.mark.parametrize("damage", ["cut short", "edited", "no JSON", "old", "from the future", "other key"])
def test_a_cache_that_is_corrupt_or_stale_is_measured_anew(damage: str) -> None:
    measured()
    path = cache_file()
    text = path.read_text()
    content = json.loads(text)
    if damage == "edited":
        content["value"]["copy_bytes_per_s"] *= 2
    elif damage == "old":
        content["kept_unix_s"] -= peak_cache.OLDEST_S + 60
    elif damage == "from the future":
        content["kept_unix_s"] += 3600
    elif damage == "other key":
        content["key"]["threads"] += 1
    path.write_text(
        {"cut short": text[: len(text) // 2], "no JSON": "\x00\x01"}.get(damage, json.dumps(content))
    )
    assert peak_cache.recall(peak_measurement.machine_key(CPU, 1, ("fp32",))) is None
    measured()
    assert peak_cache.recall(peak_measurement.machine_key(CPU, 1, ("fp32",))) is not None


def test_a_peak_taken_while_the_machine_was_busy_is_found_out() -> None:
    key = peak_measurement.machine_key(CPU, 1, ("fp32",))
    peak_cache.keep(key, Measured({"fp32": 1e6}, {"fp32": 1e6}, 1e9, 1e9, 1e-6, "").as_dict())
    assert measured().peaks("fp32").flops_per_s > 1e8


def test_numbers_that_cannot_be_are_not_recalled() -> None:
    key = peak_measurement.machine_key(CPU, 1, ("fp32",))
    for value in (0.0, -1.0, float("inf"), float("nan")):
        peak_cache.keep(key, Measured({"fp32": value}, {"fp32": min(value, 0)}, 1e9, 1e9, 1e-6, "").as_dict())
        assert peak_measurement.recall(key, ("fp32",)) is None


def test_a_folder_that_cannot_be_written_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert measured().peaks("fp32").flops_per_s > 0


def test_all_ranks_of_a_machine_agree_and_share_its_cores(local_engine: Engine, tmp_path: Path) -> None:
    folder = str(tmp_path)

    def peaks(context: RankContext) -> list[tuple[float, float]]:
        import os

        from muster.pillars.compute.gang_peaks import gang_peaks

        os.environ["XDG_CACHE_HOME"] = folder
        first = gang_peaks("fp32", context.device, context.control, seconds=0.02)
        gang_peaks("fp32", context.device, context.control, seconds=0.02)
        return [(one.flops_per_s, one.bytes_per_s) for one in first]

    results = local_engine.run(peaks, ranks=3)
    assert results[0] == results[1] == results[2]
    assert len(results[0]) == 3
    assert len(set(results[0])) == 1  # the mean of the machine's ranks, for each of them
    assert len(list((tmp_path / "muster" / "roofline").glob("*.json"))) == 1
