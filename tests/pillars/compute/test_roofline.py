"""Where a step stands under a roofline, by arithmetic that can be done on paper."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from muster.pillars.compute.roofline import Peaks, Work, place
from muster.pillars.compute.roofline_record import RooflineRecord

PEAKS = Peaks(
    flops_per_s=100e9,
    bytes_per_s=20e9,
    operator_s=2e-6,
    precision="fp32",
    measured_utc="2026-01-01T00:00:00Z",
)


def test_the_roof_is_a_slope_up_to_the_ridge_and_flat_beyond() -> None:
    assert PEAKS.ridge == 5.0
    assert [PEAKS.attainable(intensity) for intensity in (1, 5, 50)] == [20e9, 100e9, 100e9]


def test_many_flops_on_few_bytes_are_compute_bound() -> None:
    found = place(Work(flops=61e9, bytes=2e9, operators=1000, seconds=1.0), PEAKS)
    assert found is not None
    assert (found.bound, found.share_of_peak, found.intensity) == ("compute", 0.61, 30.5)
    assert found.attainable_flops_per_s == 100e9
    assert found.sentence.startswith("compute-bound: 61 % of this machine's fp32 peak (61 of 100 GFLOP/s")


def test_many_bytes_for_few_flops_are_memory_bound() -> None:
    found = place(Work(flops=8e9, bytes=16e9, operators=1000, seconds=1.0), PEAKS)
    assert found is not None
    assert (found.bound, found.memory_share, found.compute_share) == ("memory", 0.8, 0.08)
    assert found.attainable_flops_per_s == 10e9  # half a FLOP per byte at 20 GB/s
    assert "memory-bound" in found.sentence


def test_many_operators_are_overhead_bound_and_so_is_time_that_nothing_explains() -> None:
    many = place(Work(flops=1e9, bytes=1e9, operators=400_000, seconds=1.0), PEAKS)
    assert many is not None
    assert (many.bound, many.overhead_share) == ("overhead", pytest.approx(0.8))
    slow = place(Work(flops=20e9, bytes=1e9, operators=10, seconds=1.0), PEAKS)
    assert slow is not None
    assert slow.bound == "overhead"  # 0.2 + 0.05: less than a third
    assert slow.sentence.endswith("or other processes on these cores")


def test_more_than_the_peak_is_said_to_be_impossible() -> None:
    found = place(Work(flops=130e9, bytes=1e9, operators=10, seconds=1.0), PEAKS)
    assert found is not None
    assert found.share_of_peak == pytest.approx(1.3)
    assert "the machine was busy" in found.sentence


@pytest.mark.parametrize("missing", ["flops", "bytes", "seconds"])
def test_nothing_is_placed_without_its_numbers(missing: str) -> None:
    assert (
        place(
            Work(**({"flops": 1.0, "bytes": 1.0, "operators": 1.0, "seconds": 1.0} | {missing: 0.0})), PEAKS
        )
        is None
    )


def record(**changed: object) -> RooflineRecord:
    numbers = {
        "attempt": 0,
        "world_size": 2,
        "device": "cpu",
        "compiled": False,
        "bytes_per_sample": 1e8,
        "operators_per_sample": 10.0,
        "bytes_per_update": 2e8,
        "operators_per_update": 5.0,
        "peaks": (PEAKS, Peaks(50e9, 10e9, 4e-6, "fp32", "2025-12-31T00:00:00Z")),
    }
    return RooflineRecord(**(numbers | changed))  # type: ignore[arg-type]


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record().write(tmp_path)
    assert RooflineRecord.read(tmp_path) == record()
    assert [path.name for path in tmp_path.iterdir()] == ["roofline.json"]


@pytest.mark.parametrize("content", ["", "[]", '{"format": 2}', '{"format": 1, "peaks": [{}]}', "\x00"])
def test_a_record_that_cannot_be_read_is_none(tmp_path: Path, content: str) -> None:
    assert RooflineRecord.read(tmp_path) is None
    (tmp_path / "roofline.json").write_text(content)
    assert RooflineRecord.read(tmp_path) is None


def test_a_run_s_place_is_that_of_its_median_step_at_the_record_s_world_size() -> None:
    def row(step: int, compute: float, world_size: int = 2) -> dict[str, float]:
        return {
            "world_size": world_size,
            "step": step,
            "samples": 8,
            "flops": 30e9,
            "compute": compute,
        }

    rows = [row(1, 9.0), row(2, 0.5), row(3, 0.4), row(4, 0.6), row(5, 99.0, world_size=3)]
    found = record().placement(rows)
    assert found is not None
    assert found.flops_per_s == 30e9 / 0.5
    assert found.share_of_peak == pytest.approx(60 / 75)  # the mean of 100 and 50 GFLOP/s
    assert found.intensity == 30e9 / (8 * 1e8 + 2e8)
    assert record().placement([]) is None
    assert record().placement([row(1, 9.0, world_size=7)]) is None


def test_reading_a_roofline_needs_no_torch() -> None:
    code = "import sys, muster.pillars.compute.roofline_record; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
