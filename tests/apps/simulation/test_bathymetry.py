"""The Cascadia map against what geography says of it; projection, coarsening and coastal points against their definitions."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from muster.errors import DataError, MissingExtra, RefusedInput
from muster.simulation import (
    Bathymetry,
    Grid,
    Projection,
    advance,
    at_rest,
    block_mean,
    cascadia,
    coastal_points,
    surface,
    to_grid,
    volume_m3,
)

needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib ships the map; extra 'simulation'"
)


def height_at(sea: Bathymetry, latitude: float, longitude: float) -> float:
    row = int(np.abs(sea.latitude_deg - latitude).argmin())
    return float(sea.height_m[row, np.abs(sea.longitude_deg - longitude).argmin()])


@needs_matplotlib
def test_the_map_of_cascadia_has_land_and_sea_where_they_are() -> None:
    sea = cascadia()
    assert sea.height_m.shape == (91, 120)
    assert sea.height_m.dtype == np.float64
    assert (sea.height_m.min(), sea.height_m.max()) == (-1437.0, 2205.0)
    # The deepest of the Strait of Georgia is about 420 m, the Strait of Juan de Fuca about 200 m deep off Port Renfrew.
    assert -450 < height_at(sea, 49.3, -123.9) < -350
    assert -260 < height_at(sea, 48.3, -124.2) < -130
    assert height_at(sea, 48.05, -125.9) < -500  # the continental slope, in the south-west
    assert height_at(sea, 49.85, -123.0) > 1500  # the Coast Mountains at Garibaldi, in the north-east
    assert height_at(sea, 49.55, -125.35) > 1000  # Comox Glacier, in the middle of Vancouver Island
    assert 0 < height_at(sea, 49.2, -122.9) < 100  # Vancouver


@needs_matplotlib
def test_the_sea_of_cascadia_rests_and_an_uplift_reaches_its_coast() -> None:
    grid = to_grid(cascadia(), 5000.0)
    assert 4500 < grid.dx_m < 5500
    assert 4500 < grid.dy_m < 5500
    rest = advance(at_rest(grid), grid, 3600.0)
    assert np.abs(surface(rest, grid)[rest.h > 0]).max() == 0.0
    assert np.hypot(rest.hu, rest.hv).max() == 0.0
    points = coastal_points(grid, least_depth_m=5.0)
    assert len(points) > 50
    hump = 3.0 * np.exp(-(((grid.x_m[None] + 110e3) / 30e3) ** 2) - ((grid.y_m[:, None] + 80e3) / 40e3) ** 2)
    state = advance(at_rest(grid), grid.uplifted(hump), 3600.0, every_s=60.0, gauges=points)
    assert state.sampled_surface_m.shape == (60, len(points))
    assert 0.5 < state.sampled_surface_m.max() < 20
    assert state.h.min() >= 0


@needs_matplotlib
@pytest.mark.parametrize("spacing_m", [2450.0, 5000.0, 17_000.0])
def test_coarsening_the_map_keeps_its_volume(spacing_m: float) -> None:
    sea = cascadia()
    grid = to_grid(sea, spacing_m)
    metres = math.radians(6_371_008.8)

    def sizes(middles: Any) -> Any:
        between = (middles[1:] + middles[:-1]) / 2
        return np.diff([2 * middles[0] - between[0], *between, 2 * middles[-1] - between[-1]]) * metres

    widths = sizes(sea.longitude_deg) * math.cos(math.radians(sea.projection.latitude_deg))
    volume = math.fsum((sea.height_m * sizes(sea.latitude_deg)[:, None] * widths).ravel())
    assert math.fsum(grid.bed_m.ravel()) * grid.cell_area_m2 == pytest.approx(volume, rel=1e-10)
    assert grid.dx_m == pytest.approx(spacing_m, rel=0.05)
    assert volume_m3(at_rest(grid), grid) > 1e12


def test_whole_cells_are_averaged_as_blocks() -> None:
    heights = np.random.default_rng(1).standard_normal((12, 20))
    degrees = 0.01 * np.arange(20) + 3.0, 0.01 * np.arange(12) - 0.055
    sea = Bathymetry(*degrees, heights)
    grid = to_grid(sea, 2 * math.radians(0.01) * 6_371_008.8)
    assert grid.shape == (6, 10)
    blocks = [[heights[2 * j : 2 * j + 2, 2 * i : 2 * i + 2].mean() for i in range(10)] for j in range(6)]
    np.testing.assert_allclose(grid.bed_m, blocks, rtol=0, atol=1e-9)
    np.testing.assert_allclose(block_mean(heights, 2, 2), blocks, rtol=1e-14)
    assert (grid.west, grid.east, grid.south, grid.north) == ("open",) * 4
    longitude, latitude = sea.projection.to_degrees(grid.x_m, grid.y_m[0])
    np.testing.assert_allclose(longitude, (degrees[0][::2] + degrees[0][1::2]) / 2, atol=1e-9)
    assert latitude == pytest.approx((degrees[1][0] + degrees[1][1]) / 2, abs=1e-9)


def test_the_projection_is_near_the_distance_on_the_sphere() -> None:
    """Haversine distances from the middle of the Cascadia map to its corners: within the 2 % that the module promises."""
    local = Projection(-124.0, 49.0)
    for longitude, latitude in (
        (-126.0, 48.0),
        (-122.0, 48.0),
        (-126.0, 50.0),
        (-122.0, 50.0),
        (-124.0, 50.0),
    ):
        x, y = local.to_metres(longitude, latitude)
        a, b = math.radians(49.0), math.radians(latitude)
        half = math.sin((b - a) / 2) ** 2
        half += math.cos(a) * math.cos(b) * math.sin(math.radians(longitude + 124.0) / 2) ** 2
        assert math.hypot(x, y) == pytest.approx(2 * 6_371_008.8 * math.asin(math.sqrt(half)), rel=0.02)
        assert local.to_degrees(x, y) == pytest.approx((longitude, latitude), abs=1e-12)
    assert float(local.to_metres(-124.0, 50.0)[1]) == pytest.approx(111_195, abs=1)  # a degree of latitude


def test_coastal_points_are_the_sea_cells_beside_land() -> None:
    ground = """
        ~ ~ ~ # ~ #
        ~ # ~ # # #
        ~ ~ . . # ~
        ~ ~ ~ ~ # #"""
    depths = {"~": -20.0, ".": -3.0, "#": 5.0}
    rows = [[depths[cell] for cell in line.split()] for line in ground.strip().splitlines()]
    rows[3][0] = -90.0  # the deepest: the sea is what is joined to it, and the ponds in the east are not
    grid = Grid(np.array(rows), 1.0, 1.0)
    expected = [[0, 1], [0, 2], [1, 0], [1, 2], [2, 1], [2, 3], [3, 3]]
    assert coastal_points(grid).tolist() == expected
    assert coastal_points(grid, most_depth_m=3.0).tolist() == [[2, 3]]
    assert coastal_points(grid, least_depth_m=10.0).tolist() == [
        point for point in expected if point != [2, 3]
    ]
    assert coastal_points(replace(grid, bed_m=np.full((2, 2), 4.0))).tolist() == []
    assert coastal_points(replace(grid, sea_level_m=-50.0)).tolist() == [[3, 0]]


def test_a_missing_matplotlib_is_named_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingExtra, match=r"the Cascadia bathymetry needs matplotlib; .*'muster\[simulation\]'"
    ):
        cascadia()


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot be read"), (b"another map", "SHA-256 differs")]
)
def test_another_file_is_refused(
    content: bytes | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mpl-data" / "sample_data"
    folder.mkdir(parents=True)
    if content is not None:
        (folder / "topobathy.npz").write_bytes(content)
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    with pytest.raises(DataError, match=message):
        cascadia()


def sea_of(**changes: Any) -> Bathymetry:
    given: dict[str, Any] = {
        "longitude_deg": [0.0, 1.0, 2.0],
        "latitude_deg": [0.0, 1.0],
        "height_m": np.zeros((2, 3)),
    }
    return Bathymetry(**(given | changes))


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: sea_of(height_m=np.zeros((3, 2))), r"height_m: found shape \(3, 2\); expected \(2, 3\)"),
        (lambda: sea_of(height_m=[[0, 0, 0], [0, math.nan, 0]]), r"height_m: found nan at \[1, 1\]"),
        (
            lambda: sea_of(longitude_deg=[0.0, 1.0, 1.0]),
            r"longitude_deg: found 1.0 at \[1\]; expected values that grow",
        ),
        (lambda: sea_of(latitude_deg=[89.5, 90.5]), "beyond a pole"),
        (lambda: sea_of(latitude_deg=[1.0], height_m=np.zeros((1, 3))), "found 1 value; expected 2 or more"),
        (lambda: Projection(0.0, 90.0), "latitude_deg: found 90; expected -89 to 89"),
        (lambda: to_grid(sea_of(), -5.0), "spacing_m: found -5.0; expected a finite number above 0"),
        (lambda: to_grid(sea_of(), math.nan), "spacing_m: found nan"),
        (
            lambda: to_grid(sea_of(), 1000.0),
            "spacing_m: found 1000; expected 1111.. or more, as the map has nothing finer",
        ),
        (lambda: to_grid(sea_of(), 1e7), "expected at most the .* m of the map"),
        (
            lambda: block_mean(np.zeros((4, 6)), 3, 2),
            r"blocks of 3 by 2: expected to divide the shape \(4, 6\)",
        ),
        (
            lambda: coastal_points(Grid(np.zeros((2, 2)), 1, 1), least_depth_m=5, most_depth_m=2),
            "from 5 to 2 m",
        ),
    ],
)
def test_nonsense_is_refused_in_one_sentence(attempt: Callable[[], object], message: str) -> None:
    with pytest.raises(RefusedInput, match=message):
        attempt()
