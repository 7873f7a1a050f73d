"""The shallow-water solver beside exact solutions, conservation laws and the symmetries of its equations."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from muster.apps.simulation._kernels import march
from muster.errors import RefusedInput
from muster.simulation import Grid, State, advance, at_rest, highest_surface, surface, volume_m3

Array = npt.NDArray[np.float64]
G = 9.81
EVERYWHERE = {
    kind: {"west": kind, "east": kind, "south": kind, "north": kind} for kind in ("wall", "open", "periodic")
}


def same_bits(one: State, other: State) -> bool:
    """Whether all that two states hold is equal to the last bit."""
    return all(
        np.asarray(getattr(one, field.name)).tobytes() == np.asarray(getattr(other, field.name)).tobytes()
        for field in fields(State)
    )


def orders(errors: list[float]) -> list[float]:
    """The observed order between each two grids, of which each has half the spacing of the one before."""
    return [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]


def rough(generator: np.random.Generator, shape: tuple[int, int], deepest: float, highest: float) -> Array:
    """Ground that jumps from cell to cell, with islands, pits and ponds."""
    return generator.uniform(-deepest, highest, shape)


# ---- rest ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deepest", "spacing", "level", "sea", "kind"),
    [
        pytest.param(*sizes, kind, id=f"{name}-{kind}")
        for name, sizes, kinds in (
            ("ocean", (4000.0, 2000.0, 1.7, 1.7), ("wall", "open", "periodic")),
            ("puddle", (1.0, 0.05, 0.037, 0.037), ("wall", "open", "periodic")),
            (
                "lake above the sea",
                (100.0, 50.0, 1.7, 0.0),
                ("wall", "periodic"),
            ),  # would flow out by open edges
        )
        for kind in kinds
    ],
)
def test_water_at_rest_stays_at_rest(
    deepest: float, spacing: float, level: float, sea: float, kind: str
) -> None:
    bed = rough(np.random.default_rng(1), (40, 70), deepest, 0.4 * deepest)
    grid = Grid(bed, spacing, spacing, **EVERYWHERE[kind], sea_level_m=sea)
    start = State.of(np.maximum(level - bed, 0.0))
    wet = start.h > grid.dry_depth_m
    assert 0.5 < wet.mean() < 0.9  # there is land, and there are shores
    state = advance(start, grid, 300 * spacing / math.sqrt(G * deepest))
    assert state.steps > 500
    depth = np.where(wet, start.h, np.inf)
    off = np.abs(surface(state, grid) - level)[wet]
    assert (
        off / (depth[wet] if level == sea else deepest)
    ).max() <= 1e-12  # a lake's bed and depth are rounded
    assert (np.hypot(state.hu, state.hv) / depth).max() <= 1e-12
    if level == sea:  # no number was even rounded
        assert same_bits(replace(state, time_s=0.0, steps=0, pace_per_s=0.0), start)
        assert same_bits(at_rest(grid), start)


# ---- exact solutions -----------------------------------------------------------------------------------------------------


def stoker(x: Array, time_s: float, left: float, right: float) -> Array:
    """Depth after a dam at 0 broke between two depths: Stoker, "Water waves" (1957), section 10.8."""
    low, high = right, left
    for _ in range(200):  # the depth between rarefaction and bore: both give it one velocity
        middle = (low + high) / 2
        behind = 2 * (math.sqrt(G * left) - math.sqrt(G * middle))
        bore = (middle - right) * math.sqrt(G * (middle + right) / (2 * middle * right))
        low, high = (middle, high) if behind > bore else (low, middle)
    velocity = 2 * (math.sqrt(G * left) - math.sqrt(G * middle))
    front = middle * velocity / (middle - right)
    fan = (2 * math.sqrt(G * left) - x / time_s) ** 2 / (9 * G)
    depth = np.where(x < (velocity - math.sqrt(G * middle)) * time_s, fan, middle)
    depth = np.where(x < -math.sqrt(G * left) * time_s, left, depth)
    return np.where(x > front * time_s, right, depth)


def ritter(x: Array, time_s: float, left: float) -> Array:
    """Depth after a dam at 0 broke before dry ground: Ritter (1892)."""
    c = math.sqrt(G * left)
    fan = (2 * c - x / time_s) ** 2 / (9 * G)
    return np.where(x < -c * time_s, left, np.where(x < 2 * c * time_s, fan, 0.0))


def test_the_solution_of_stoker_fulfils_both_jump_conditions() -> None:
    h = stoker(np.array([0.3]), 0.1, 1.0, 0.1)[0]
    velocity = 2 * (math.sqrt(G) - math.sqrt(G * h))
    front = h * velocity / (h - 0.1)
    assert h * velocity * (front - velocity) == pytest.approx(G / 2 * (h * h - 0.01), rel=1e-12)
    assert 0.1 < h < 1.0


@pytest.mark.parametrize("right", [0.1, 0.0], ids=["stoker", "ritter"])
def test_a_dam_break_converges_to_the_exact_one(right: float) -> None:
    time_s = 0.12
    errors = []
    for cells in (100, 200, 400, 800):
        grid = Grid(np.zeros((1, cells)), 2.0 / cells, 1.0, origin_m=(-1.0, 0.0), dry_depth_m=1e-8)
        state = advance(State.of(np.where(grid.x_m < 0, 1.0, right)[None]), grid, time_s)
        exact = stoker(grid.x_m, time_s, 1.0, right) if right else ritter(grid.x_m, time_s, 1.0)
        errors.append(float(np.abs(state.h[0] - exact).mean()))
        assert state.h.max() <= 1 + 1e-12  # no overshoot
        assert state.h.min() >= right - 1e-12
    assert min(orders(errors)) >= 0.7, (errors, orders(errors))
    assert errors[-1] < 2e-3


def vortex(x: Array, y: Array) -> tuple[Array, Array, Array]:
    """A vortex in balance of pressure and centrifugal force on flat ground: speed r exp(-r²/2), so g h = g - exp(-r²)/2."""
    swirl = np.exp(-(x**2 + y**2) / 2)
    return 1.0 - swirl**2 / (2 * G), -y * swirl, x * swirl


def test_a_travelling_vortex_has_the_design_order() -> None:
    """Smooth, two-dimensional, not linear, and exact: with the current it is carried along unchanged."""
    side, time_s, current = 12.0, 1.0, (1.5, 0.8)
    errors = []
    for cells in (48, 96, 192):
        spacing = side / cells
        grid = Grid(
            np.zeros((cells, cells)), spacing, spacing, **EVERYWHERE["periodic"], origin_m=(-6.0, -6.0)
        )
        x, y = np.meshgrid(grid.x_m, grid.y_m)
        h, u, v = vortex(x, y)
        state = advance(State.of(h, h * (u + current[0]), h * (v + current[1])), grid, time_s)
        moved = [
            (place - drift * time_s + side / 2) % side - side / 2
            for place, drift in zip((x, y), current, strict=True)
        ]
        h, u, v = vortex(moved[0], moved[1])
        off = [state.h - h, state.hu - h * (u + current[0]), state.hv - h * (v + current[1])]
        errors.append(float(sum(np.abs(each).mean() for each in off)))
    assert min(orders(errors)) >= 1.8, (errors, orders(errors))


def over_a_hump(x: Array, discharge: float) -> tuple[Array, Array]:
    """Ground and depth of a steady flow that stays slower than its waves: u²/2 + g (h + b) is the same everywhere."""
    bed = 0.2 * np.exp(-((x - 5.0) ** 2))
    head = discharge**2 / 2 + G
    depth = np.ones_like(x)
    for _ in range(100):  # Newton's method for the larger root
        rest = discharge**2 / (2 * depth**2) + G * (depth + bed) - head
        depth -= rest / (G - discharge**2 / depth**3)
    return bed, depth


def test_a_steady_flow_over_a_hump_has_the_design_order() -> None:
    errors = []
    for cells in (50, 100, 200, 400):
        spacing = 10.0 / cells
        x = (np.arange(cells) + 0.5) * spacing
        bed, depth = over_a_hump(x, 1.0)
        grid = Grid(bed[None], spacing, 1.0, west="periodic", east="periodic")
        state = advance(State.of(depth[None], np.ones((1, cells))), grid, 4.0)
        errors.append(float(np.abs(state.h[0] - depth).mean() + np.abs(state.hu[0] - 1.0).mean()))
    assert min(orders(errors)) >= 1.8, (errors, orders(errors))


def test_a_long_wave_in_the_deep_sea_travels_at_the_square_root_of_g_h() -> None:
    depth, spacing, width = 4000.0, 2000.0, 40e3
    grid = Grid(np.full((1, 400), -depth), spacing, spacing, west="open", east="open")
    hump = 1e-2 * np.exp(-(((grid.x_m - 150e3) / width) ** 2))
    gauges = [[0, 125], [0, 350]]
    start = State.of(depth + hump[None], math.sqrt(G * depth) * hump[None])
    state = advance(start, grid, 3600.0, every_s=5.0, gauges=gauges)
    assert state.sampled_at_s.tolist() == [5.0 * k for k in range(1, 721)]
    assert state.sampled_surface_m.shape == (720, 2)
    crests = state.sampled_at_s[state.sampled_surface_m.argmax(axis=0)]
    assert 450e3 / (crests[1] - crests[0]) == pytest.approx(math.sqrt(G * depth), rel=0.005)
    assert state.sampled_surface_m[:, 1].max() == pytest.approx(1e-2, rel=0.03)
    assert highest_surface(state, grid)[0, 350] == pytest.approx(
        state.sampled_surface_m[:, 1].max(), rel=1e-3
    )


# ---- Thacker's bowls (J. Fluid Mech. 107, 1981) --------------------------------------------------------------------------


def bowl(cells: int) -> tuple[Grid, Array, Array]:
    """A paraboloid, 0.1 m deep, that a level of 0 fills to a radius of 1 m."""
    spacing = 4.0 / cells
    x = (np.arange(cells) + 0.5) * spacing - 2.0
    x, y = np.meshgrid(x, x)
    grid = Grid(0.1 * (x**2 + y**2 - 1.0), spacing, spacing, origin_m=(-2.0, -2.0), dry_depth_m=1e-6)
    return grid, x, y


def test_a_tilted_surface_turns_in_a_bowl_with_the_period_of_thacker() -> None:
    grid, x, y = bowl(100)
    omega = math.sqrt(2 * G * 0.1)
    tilt, period = 0.3, 2 * math.pi / omega

    def depth(time_s: float) -> Array:
        a, b = tilt * math.cos(omega * time_s), tilt * math.sin(omega * time_s)
        return np.maximum(0.1 * (2 * a * x + 2 * b * y - tilt**2) - grid.bed_m, 0.0)

    h = depth(0.0)
    state, angles, reach = State.of(h, 0 * h, h * tilt * omega), [], []
    times = [period * k / 8 for k in range(1, 17)]
    for time_s in times:
        state = advance(state, grid, time_s)
        angles.append(math.atan2((state.h * y).sum(), (state.h * x).sum()))
        wet = np.argwhere(state.h[50] > 1e-3)[:, 0]
        reach.append((grid.x_m[wet[0]] - grid.dx_m / 2, grid.x_m[wet[-1]] + grid.dx_m / 2))
    turned = np.unwrap(angles)
    slope = np.polyfit(times, turned, 1)[0]
    assert 2 * math.pi / slope == pytest.approx(period, rel=0.005)
    # The shore is a circle of radius 1 m about a point that goes around at `tilt`; where a row of cells meets it:
    for time_s, (west, east) in zip(times, reach, strict=True):
        a, b = tilt * math.cos(omega * time_s), tilt * math.sin(omega * time_s)
        half = math.sqrt(1 - (grid.y_m[50] - b) ** 2)
        assert abs(east - (a + half)) <= 2 * grid.dx_m
        assert abs(west - (a - half)) <= 2 * grid.dx_m
    assert np.abs(state.h - depth(times[-1])).sum() <= 0.02 * depth(0.0).sum()
    centre = math.hypot((state.h * x).sum(), (state.h * y).sum()) / state.h.sum()
    assert centre == pytest.approx(tilt, rel=0.02)


def test_a_domed_surface_swings_in_a_bowl_with_the_period_of_thacker() -> None:
    grid, x, y = bowl(100)
    omega, start = math.sqrt(8 * G * 0.1), 0.8
    shape = (1 - start**4) / (1 + start**4)  # its shore begins at a radius of 0.8 m
    square = x**2 + y**2

    def depth(time_s: float) -> Array:
        swing = 1 - shape * math.cos(omega * time_s)
        root = math.sqrt(1 - shape**2)
        level = 0.1 * (root / swing - 1 - square * (root**2 / swing**2 - 1))
        return np.maximum(level - grid.bed_m, 0.0)

    period = 2 * math.pi / omega
    state, heights, radii = State.of(depth(0.0)), [], []
    times = np.arange(1, 65) * period / 32
    for time_s in times:
        state = advance(state, grid, time_s)
        heights.append(state.h[49:51, 49:51].mean())
        radii.append(math.sqrt((state.h > 1e-3).sum() * grid.cell_area_m2 / math.pi))
    # Highest in the middle at whole periods: the phase of its first harmonic over the two periods.
    phase = np.angle(np.sum(np.asarray(heights) * np.exp(-1j * omega * times)))
    assert abs(phase) / (2 * math.pi) <= 0.005 * 2
    assert max(radii) == pytest.approx(1 / start, rel=0.03)
    for time_s, radius in zip(times, radii, strict=True):
        swing = (1 - shape * math.cos(omega * time_s)) / math.sqrt(1 - shape**2)
        assert radius == pytest.approx(math.sqrt(swing), abs=2 * grid.dx_m)
    assert np.abs(state.h - depth(float(times[-1]))).sum() <= 0.04 * depth(0.0).sum()


# ---- conservation, positivity --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("manning", [0.0, 0.03])
def test_no_water_is_lost_in_a_closed_basin_that_dries_and_floods(manning: float) -> None:
    generator = np.random.default_rng(2)
    x, y = np.meshgrid(np.linspace(-1, 1, 60), np.linspace(-1, 1, 50))
    bed = 0.8 * (x**2 + y**2) + 0.1 * generator.random(x.shape)
    grid = Grid(bed, 0.1, 0.12, manning_s_m13=manning)
    start = State.of(np.where((x < -0.2) & (y < 0.3), 1.2, np.where(bed < 0.2, 0.2 - bed, 0.0)))
    state, wet = start, []
    for k in range(1, 21):
        state = advance(state, grid, 0.5 * k)
        wet.append(state.h > 1e-3)
        assert abs(volume_m3(state, grid) / volume_m3(start, grid) - 1) <= 1e-12
        assert state.h.min() >= 0
    assert state.steps > 500
    changed = np.array(wet[:-1]) != np.array(wet[1:])
    assert changed.any(axis=(1, 2)).sum() >= 15  # shores went on moving


@pytest.mark.parametrize("seed", range(12))
def test_depths_are_never_negative_whatever_breaks(seed: int) -> None:
    generator = np.random.default_rng(seed)
    shape = int(generator.integers(1, 30)), int(generator.integers(2, 90))
    scale = 10.0 ** generator.uniform(-1, 3)
    bed = rough(generator, shape, scale, scale) * generator.choice([0.0, 0.1, 1.0])
    h = generator.uniform(0, scale, shape) * (generator.random(shape) < 0.4)
    speed = 3 * math.sqrt(G * scale)
    kinds = [("wall", "wall"), ("open", "wall"), ("open", "open"), ("periodic", "periodic")]
    (west, east), (south, north) = (kinds[int(generator.integers(4))] for _ in range(2))
    grid = Grid(bed, scale, 2 * scale, west=west, east=east, south=south, north=north)  # type: ignore[arg-type]
    state = State.of(
        h, h * generator.uniform(-speed, speed, shape), h * generator.uniform(-speed, speed, shape)
    )
    begun = volume_m3(state, grid)
    for k in range(1, 11):
        state = advance(state, grid, 2.0 * k * math.sqrt(scale / G))
        assert state.h.min() >= 0
        assert np.isfinite(state.hu).all()
        assert np.isfinite(state.hv).all()
        if "open" not in (west, east, south, north):  # nor has a negative depth been cut off
            assert volume_m3(state, grid) == pytest.approx(begun, rel=1e-12)
    assert state.steps > 20


def test_a_wave_leaves_by_open_edges() -> None:
    grid = Grid(np.full((60, 60), -10.0), 10.0, 10.0, **EVERYWHERE["open"])
    x, y = np.meshgrid(grid.x_m - 300, grid.y_m - 300)
    start = State.of(10 + 0.1 * np.exp(-(x**2 + y**2) / 60**2))
    state = advance(start, grid, 120.0)
    energy = ((surface(start, grid)) ** 2).sum()
    assert (surface(state, grid) ** 2 + (state.hu**2 + state.hv**2) / (G * state.h)).sum() <= 2e-3 * energy


# ---- friction ------------------------------------------------------------------------------------------------------------


def test_friction_slows_a_uniform_flow_as_it_should() -> None:
    """Nothing varies, so du/dt = -g n² u² / h^(4/3) alone is left, and it has a closed form."""
    grid = Grid(np.zeros((4, 6)), 10.0, 10.0, **EVERYWHERE["periodic"], manning_s_m13=0.03)
    h = np.full(grid.shape, 0.5)
    state = advance(State.of(h, 0.6 * h, 0.8 * h), grid, 200.0)
    rate = G * 0.03**2 / 0.5 ** (4 / 3)
    expected = 1.0 / (1.0 + rate * 200.0)
    np.testing.assert_allclose(state.hu / h, 0.6 * expected, rtol=1e-12)
    np.testing.assert_allclose(state.hv / h, 0.8 * expected, rtol=1e-12)


def test_a_river_runs_at_the_speed_of_manning() -> None:
    slope, n, length, off = 0.002, 0.03, 20_000.0, []
    for cells in (200, 400, 800):
        spacing = length / cells
        x = (np.arange(cells) + 0.5) * spacing
        grid = Grid(-slope * x[None], spacing, spacing, manning_s_m13=n)
        state = advance(
            State.of(np.ones((1, cells))), grid, 600.0
        )  # waves from the ends have not come half-way
        off.append(abs(state.hu[0, cells // 2] - math.sqrt(slope) / n))
        assert state.h[0, cells // 2] == pytest.approx(1.0, abs=1e-9)
    assert off[1] <= 2e-3 * math.sqrt(slope) / n
    assert min(orders(off)) >= 1.7, (
        off
    )  # Strang's splitting is of order 2; steps are not exactly halved with cells


# ---- symmetry, slices ----------------------------------------------------------------------------------------------------


def a_flood(shape: tuple[int, int] = (30, 75)) -> tuple[Grid, State]:
    """Water that breaks over islands; as a grid, two strips of columns wide."""
    generator = np.random.default_rng(3)
    bed = rough(generator, shape, 1.0, 0.6)
    grid = Grid(bed, 1.0, 1.5, west="open", north="open", manning_s_m13=0.03)
    h = np.maximum(0.2 - bed, 0.0) * (generator.random(shape) < 0.6)
    return grid, State.of(
        h, 0.4 * h * generator.standard_normal(shape), 0.4 * h * generator.standard_normal(shape)
    )


def mirrored(grid: Grid, state: State, flip: Callable[[Any], Any], u: float, v: float) -> tuple[Grid, State]:
    edges = {side: getattr(grid, side) for side in ("west", "east", "south", "north")}
    if u < 0:
        edges.update(west=grid.east, east=grid.west)
    if v < 0:
        edges.update(south=grid.north, north=grid.south)
    return replace(grid, bed_m=flip(grid.bed_m), **edges), State.of(
        flip(state.h), u * flip(state.hu), v * flip(state.hv)
    )


@pytest.mark.parametrize(
    ("flip", "u", "v"), [(np.fliplr, -1, 1), (np.flipud, 1, -1)], ids=["east-west", "north-south"]
)
def test_a_mirrored_flood_is_the_flood_mirrored(flip: Callable[[Any], Any], u: int, v: int) -> None:
    grid, state = a_flood()
    other_grid, other = mirrored(grid, state, flip, u, v)
    state, other = advance(state, grid, 5.0), advance(other, other_grid, 5.0)
    np.testing.assert_array_equal(other.h, flip(state.h))
    np.testing.assert_array_equal(other.hu, u * flip(state.hu))
    np.testing.assert_array_equal(other.hv, v * flip(state.hv))
    assert other.steps == state.steps > 30


def test_a_transposed_flood_is_the_flood_transposed() -> None:
    grid, state = a_flood()
    other_grid = Grid(
        grid.bed_m.T,
        grid.dy_m,
        grid.dx_m,
        west=grid.south,
        east=grid.north,
        south=grid.west,
        north=grid.east,
        manning_s_m13=0.03,
    )
    other = advance(State.of(state.h.T, state.hv.T, state.hu.T), other_grid, 5.0)
    state = advance(state, grid, 5.0)
    np.testing.assert_array_equal(other.h, state.h.T)
    np.testing.assert_array_equal(other.hu, state.hv.T)
    np.testing.assert_array_equal(other.hv, state.hu.T)


def test_a_periodic_flood_that_begins_elsewhere_ends_elsewhere() -> None:
    grid, state = a_flood()
    grid = replace(grid, **EVERYWHERE["periodic"])  # type: ignore[arg-type]

    def moved(plane: Array) -> Array:
        return np.roll(plane, (7, 31), axis=(0, 1))

    other = advance(
        State.of(moved(state.h), moved(state.hu), moved(state.hv)),
        replace(grid, bed_m=moved(grid.bed_m)),
        5.0,
    )
    state = advance(state, grid, 5.0)
    np.testing.assert_array_equal(other.h, moved(state.h))
    np.testing.assert_array_equal(other.hu, moved(state.hu))


def test_a_row_alone_flows_as_each_of_many() -> None:
    grid, state = a_flood((1, 75))
    rows = Grid(np.repeat(grid.bed_m, 5, axis=0), 1.0, 1e9, west="open", manning_s_m13=0.03)
    many = advance(State.of(np.repeat(state.h, 5, axis=0), np.repeat(state.hu, 5, axis=0)), rows, 4.0)
    alone = advance(State.of(state.h, state.hu), grid, 4.0)
    np.testing.assert_allclose(many.h, np.repeat(alone.h, 5, axis=0), rtol=1e-6, atol=1e-9)


def test_slices_of_time_give_the_same_bits() -> None:
    grid, start = a_flood()
    gauges = [[3, 4], [20, 70]]
    whole = advance(start, grid, 6.0, every_s=0.1, gauges=gauges)
    state = start
    for number in (1, 2, 3, 17, 40, 41, 60):
        state = advance(state, grid, number * 0.1, every_s=0.1, gauges=gauges)
        state = pickle.loads(pickle.dumps(state))
    assert same_bits(state, whole)
    assert whole.sampled_at_s.tolist() == [number * 0.1 for number in range(1, 61)]
    assert same_bits(advance(whole, grid, 6.0, every_s=0.1, gauges=gauges), whole)


def test_advancing_leaves_the_state_that_was_given_as_it_was() -> None:
    grid, state = a_flood()
    for plane in (state.h, state.hu, state.hv, grid.bed_m):
        plane.flags.writeable = False  # as arrays in shared memory are
    kept = pickle.dumps(state)
    later = advance(state, grid, 1.0)
    assert pickle.dumps(state) == kept
    assert not np.shares_memory(later.highest_h, state.highest_h)


def test_members_side_by_side_on_threads_are_those_computed_in_turn() -> None:
    grid, state = a_flood()
    grids = [replace(grid, manning_s_m13=0.01 * k) for k in range(4)]
    with ThreadPoolExecutor(4) as pool:
        side_by_side = list(pool.map(lambda each: advance(state, each, 3.0), grids))
    assert march.targetoptions["nogil"]  # so they need not take turns
    assert all(
        same_bits(found, advance(state, each, 3.0)) for found, each in zip(side_by_side, grids, strict=True)
    )


def test_the_highest_surface_is_that_of_all_steps() -> None:
    grid, state = a_flood()
    highest = surface(state, grid)
    deepest = state.h
    for number in range(1, 200):  # so often that each step is a stop
        state = advance(state, grid, number * 0.01)
        highest = np.maximum(highest, surface(state, grid))
        deepest = np.maximum(deepest, state.h)
    assert state.steps == 199
    wet = deepest > grid.dry_depth_m
    assert 0.2 < wet.mean() < 0.9
    np.testing.assert_array_equal(state.highest_h, deepest)
    np.testing.assert_array_equal(highest_surface(state, grid), np.where(wet, deepest + grid.bed_m, np.nan))
    np.testing.assert_allclose(highest_surface(state, grid)[wet], highest[wet], rtol=1e-14)


def test_uplifted_ground_lifts_the_sea_and_drowns_the_shore_that_sank() -> None:
    grid = Grid(np.array([[-100.0, -50.0, 0.5, 8.0]]), 1000.0, 1000.0)
    moved = grid.uplifted([[2.0, 1.0, -1.0, -1.0]])
    assert surface(at_rest(grid), moved).tolist() == [[2.0, 1.0, -0.5, 7.0]]
    later = advance(at_rest(grid), moved, 100.0)
    assert later.h[0, 2] > 0.1
    assert later.h[0, 3] == 0.0


# ---- refusals ------------------------------------------------------------------------------------------------------------

FLAT = Grid(np.zeros((3, 4)), 1.0, 1.0)
POND = State.of(np.ones((3, 4)))


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (
            lambda: Grid(np.full((2, 3), np.nan), 1, 1),
            r"bed_m: found nan at \[0, 0\]; expected finite values",
        ),
        (lambda: Grid(np.zeros(4), 1, 1), r"bed_m: found an array of shape \(4,\); expected 2 dimensions"),
        (lambda: Grid(np.zeros((0, 4)), 1, 1), "none of them empty"),
        (lambda: Grid([["deep"]], 1, 1), "bed_m: not an array of numbers"),
        (lambda: Grid(np.zeros((2, 2)), 0.0, 1), "dx_m: found 0.0; expected a finite number above 0"),
        (lambda: Grid(np.zeros((2, 2)), 1, -3), "dy_m: found -3; expected a finite number above 0"),
        (lambda: Grid(np.zeros((2, 2)), 1, math.inf), "dy_m: found inf"),
        (lambda: Grid(np.zeros((2, 2)), 1, 1, cfl=1.5), "cfl: found 1.5; expected at most 0.9"),
        (lambda: Grid(np.zeros((2, 2)), 1, 1, manning_s_m13=-1), "manning_s_m13: found -1; .* of 0 or more"),
        (
            lambda: Grid(np.zeros((2, 2)), 1, 1, west="beach"),
            "west: found 'beach'; expected one of wall, open, periodic",
        ),  # type: ignore[arg-type]
        (lambda: Grid(np.zeros((2, 2)), 1, 1, west="periodic"), "west is 'periodic' and east 'wall'"),
        (lambda: FLAT.uplifted(np.zeros((3, 3))), r"uplift_m: found shape \(3, 3\); expected \(3, 4\)"),
        (lambda: State.of([[1.0, -0.5]]), r"h: found -0.5 at \[0, 1\]; expected depths of 0 or more"),
        (lambda: State.of([[1.0]], [[math.inf]]), "hu: found inf"),
        (
            lambda: State.of(np.ones((2, 2)), hv=np.ones((2, 3))),
            r"hv: found shape \(2, 3\); expected \(2, 2\)",
        ),
        (lambda: advance(State.of([[1.0]]), FLAT, 1.0), r"state: found shape \(1, 1\); expected \(3, 4\)"),
        (lambda: advance(POND, FLAT, -1.0), "until_s: found -1.0; expected a finite number of 0 or more"),
        (lambda: advance(POND, FLAT, math.nan), "until_s: found nan"),
        (lambda: advance(POND, FLAT, 1.0, every_s=0), "every_s: found 0; expected a finite number above 0"),
        (
            lambda: advance(POND, FLAT, 1.0, every_s=1e-12),
            "every_s: found 1e-12; expected at most 10,000,000 times",
        ),
        (lambda: advance(POND, FLAT, 1.0, gauges=[[0, 0]]), "gauges: given without every_s"),
        (
            lambda: advance(POND, FLAT, 1.0, every_s=1, gauges=[[3, 0]]),
            r"gauges: found \[3, 0\]; expected cells",
        ),
        (lambda: advance(POND, FLAT, 1.0, every_s=1, gauges=[[0.5, 0]]), "gauges: found float64"),
        (
            lambda: advance(advance(POND, FLAT, 1.0, every_s=1, gauges=[[0, 0]]), FLAT, 2.0),
            "gauges: not given; expected the 1 that the state has readings of",
        ),
        (lambda: Grid(np.zeros((2, 2)), 1, 1, sea_level_m=math.nan), "sea_level_m: found nan"),
        (
            lambda: advance(State.of(np.ones((3, 4)), np.eye(3, 4) * 1e200), FLAT, 1.0),
            "too fast for any step",
        ),
    ],
)
def test_nonsense_is_refused_in_one_sentence(attempt: Callable[[], object], message: str) -> None:
    with pytest.raises(RefusedInput, match=message) as refused:
        attempt()
    assert "\n" not in str(refused.value)
