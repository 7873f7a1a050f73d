"""The non-linear shallow-water equations over uneven ground, with shores that move.

::

    h_t  + (hu)_x + (hv)_y = 0
    hu_t + (hu² + g h²/2)_x + (huv)_y = -g h b_x - g n² |u| u / h^(1/3)
    hv_t + (huv)_x + (hv² + g h²/2)_y = -g h b_y - g n² |u| v / h^(1/3)

Finite volumes of second order: in space by limited slopes of depth, surface and velocity and the hydrostatic reconstruction
of Audusse, Bouchut, Bristeau, Klein and Perthame (SIAM J. Sci. Comput. 25, 2004) with the flux of Harten, Lax and van Leer;
in time by the two-stage Runge-Kutta method of Shu and Osher (1988), friction split from it by Strang's rule.

What holds for every input:

- **Rest stays rest.** Water with a level surface does not move, wherever there is land: to the last bit at the level of the
  sea, to rounding at any other.
- **No depth is negative.** The mean of a cell's depths at two opposite edges is its own depth, and through an edge no more
  leaves than that depth times the speed there; so with ``dt (a_x/dx + a_y/dy) <= 1/2`` in every cell a stage cannot take more
  than there is. Steps up to twice as long are tried first, and taken again within this bound if any depth came out below 0.
- **Mass is conserved** to rounding: both cells at an edge are given the same number.
- **Symmetry** is exact: mirrored or transposed input gives mirrored or transposed output, to the last bit.

The physical limit: a step reads and writes at least 152 bytes per cell (first stage: h, hu, hv, bed and the highest depth in,
three and the highest depth out; second: those three, the first three and bed in, three out), 200 with the lines that a
processor reads before it writes them. It takes about 610 additions, multiplications, comparisons and selections, 8
divisions and 8 square roots. A core with vectors of 4 doubles does 8 of the former in a cycle and one of the latter in
about 2: about 110 cycles, in which it could fetch those bytes twice. The kernel is bound by arithmetic, and its loops over a
row run near that bound. It works on one core and holds no lock of Python's, so members of an ensemble run side by side on
threads.

A dam break::

    grid = Grid(np.zeros((1, 200)), dx_m=1.0, dy_m=1.0)
    state = State.of(np.where(grid.x_m < 100.0, 2.0, 0.0)[None])
    state = advance(state, grid, until_s=10.0)
    state.h[0, 100]                          # 8/9 of a metre: four ninths of 2 m, as Ritter (1892) found
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from muster.apps.simulation._checks import Doubles, as_doubles, as_number, refuse_first
from muster.apps.simulation._kernels import DONE, EDGES, GHOSTS, Physics, march
from muster.apps.simulation.grid import Grid
from muster.errors import RefusedInput

__all__ = ["State", "advance", "at_rest", "highest_surface", "surface", "volume_m3"]

_MOST_STOPS: Final = 10_000_000


@dataclass(frozen=True, eq=False)
class State:
    """The water at one time, and what has been noted of it on the way; arrays only, so it can be pickled. See `State.of`.

    Arguments:
        h: depth, ``[rows, columns]`` float64, metres, 0 or more.
        hu, hv: depth times velocity towards the east and the north, as ``h``, m²/s.
        time_s: since the beginning.
        highest_h: largest ``h`` of each cell so far, over all steps.
        steps: taken so far.
        pace_per_s: how fast waves crossed cells in the last stage, from which the next step's length follows; 0: not known.
        sampled_at_s: times of the samples, ``[samples]``.
        sampled_surface_m: surface at the gauges then, ``[samples, gauges]``; the ground where a gauge was dry.

    Raises:
        RefusedInput: arrays that differ in shape, are not finite, or a depth below 0.
    """

    h: Doubles
    hu: Doubles
    hv: Doubles
    time_s: float
    highest_h: Doubles
    steps: int
    pace_per_s: float
    sampled_at_s: Doubles
    sampled_surface_m: Doubles

    def __post_init__(self) -> None:
        for name in ("h", "hu", "hv", "highest_h"):
            object.__setattr__(self, name, as_doubles(getattr(self, name), name))
            if getattr(self, name).shape != self.h.shape:
                raise RefusedInput(
                    f"{name}: found shape {getattr(self, name).shape}; expected {self.h.shape}, as of h"
                )
        refuse_first(self.h < 0, self.h, "h", "depths of 0 or more")
        object.__setattr__(self, "time_s", as_number(self.time_s, "time_s"))

    @classmethod
    def of(
        cls,
        h: npt.ArrayLike,
        hu: npt.ArrayLike | None = None,
        hv: npt.ArrayLike | None = None,
        *,
        time_s: float = 0.0,
    ) -> State:
        """A state to begin with; the arrays are copied.

        Arguments:
            h: depth, ``[rows, columns]``, metres.
            hu, hv: discharge, as ``h``, m²/s; None: at rest.
            time_s: of the beginning.

        Raises:
            RefusedInput: as for the class.
        """
        depth = as_doubles(h, "h").copy()
        return cls(
            h=depth,
            hu=np.zeros_like(depth) if hu is None else as_doubles(hu, "hu").copy(),
            hv=np.zeros_like(depth) if hv is None else as_doubles(hv, "hv").copy(),
            time_s=time_s,
            highest_h=depth.copy(),
            steps=0,
            pace_per_s=0.0,
            sampled_at_s=np.zeros(0),
            sampled_surface_m=np.zeros((0, 0)),
        )


def at_rest(grid: Grid) -> State:
    """Water that fills all ground below the level of the sea."""
    return State.of(np.maximum(grid.sea_level_m - grid.bed_m, 0.0))


def surface(state: State, grid: Grid) -> Doubles:
    """Height of the water's surface above the datum, ``[rows, columns]``, metres; the ground where there is none.

    Raises:
        RefusedInput: state and grid differ in shape.
    """
    _refuse_other_shape(state, grid)
    return state.h + grid.bed_m


def highest_surface(state: State, grid: Grid) -> Doubles:
    """The highest that the surface has been in each cell, ``[rows, columns]``, metres; NaN where it was never wet.

    Raises:
        RefusedInput: state and grid differ in shape.
    """
    _refuse_other_shape(state, grid)
    return np.where(state.highest_h > grid.dry_depth_m, state.highest_h + grid.bed_m, np.nan)


def volume_m3(state: State, grid: Grid) -> float:
    """All the water, summed without rounding.

    Raises:
        RefusedInput: state and grid differ in shape.
    """
    _refuse_other_shape(state, grid)
    return math.fsum(state.h.ravel()) * grid.cell_area_m2


def advance(
    state: State,
    grid: Grid,
    until_s: float,
    *,
    every_s: float | None = None,
    gauges: npt.ArrayLike | None = None,
) -> State:
    """The state at a later time; the one given is not changed.

    Steps end exactly at ``until_s`` and at the multiples of ``every_s`` before it. A state carries all that its future
    depends on: reached in several calls, it is the same to the last bit as in one, if all of them have the same ``every_s``
    and end at its multiples (``k * every_s``, multiplied and not summed). On another processor, or with another release of
    Numba, results may differ by rounding.

    Arguments:
        state: where to begin.
        grid: of the same shape.
        until_s: time to end at, not before ``state.time_s``.
        every_s: gauges are read at its multiples after ``state.time_s``, up to ``until_s`` and with it.
        gauges: ``[gauges, 2]`` integers, row and column of each.

    Raises:
        RefusedInput: shapes differ, a time before the state's, a gauge beside the grid, gauges without ``every_s``, or a flow
            so fast that no step is short enough for it.
    """
    _refuse_other_shape(state, grid)
    until_s = as_number(until_s, "until_s", least=state.time_s)
    places = _places(gauges, grid, state)
    if every_s is not None:
        every_s = as_number(every_s, "every_s", above=0.0)
        if (until_s - state.time_s) / every_s > _MOST_STOPS:
            raise RefusedInput(
                f"every_s: found {every_s:g}; expected at most {_MOST_STOPS:,} times until {until_s:g} s"
            )
    elif gauges is not None:
        raise RefusedInput(
            "gauges: given without every_s; expected the time between two readings, in seconds"
        )

    beside = [(GHOSTS, GHOSTS)] * 2
    flow = np.pad(np.stack([state.h, state.hu, state.hv]), [(0, 0), *beside])
    spare = np.zeros_like(flow), np.zeros_like(flow), np.zeros_like(flow if grid.manning_s_m13 else flow[:0])
    bed = np.pad(
        grid.bed_m - grid.sea_level_m, beside
    )  # so that the sea at rest is at 0, which nothing rounds
    highest = state.highest_h.copy()
    rows, columns = grid.shape
    edges = np.array([EDGES[side] for side in (grid.west, grid.east, grid.south, grid.north)])
    physics = Physics(
        per_dx=1.0 / grid.dx_m if columns > 1 else 0.0,
        per_dy=1.0 / grid.dy_m if rows > 1 else 0.0,
        gravity=grid.gravity_m_s2,
        drag=grid.gravity_m_s2 * grid.manning_s_m13**2,
        dry=grid.dry_depth_m,
        cfl=grid.cfl,
    )
    time_s, steps, pace = state.time_s, state.steps, state.pace_per_s
    inner = np.s_[GHOSTS : rows + GHOSTS, GHOSTS : columns + GHOSTS]
    sampled_at, sampled = (
        [state.sampled_at_s],
        [state.sampled_surface_m.reshape(len(state.sampled_at_s), len(places))],
    )
    for stop_s, is_sample in _stops(time_s, until_s, every_s):
        flow, spare, pace, taken, outcome = march(
            flow, spare, highest, bed, edges, physics, time_s, stop_s, pace
        )
        if outcome != DONE:
            raise RefusedInput(
                f"state: between {time_s:g} and {stop_s:g} s water moves too fast for any step; expected depths and "
                "velocities of a physical size"
            )
        time_s, steps = stop_s, steps + int(taken)
        if is_sample and len(places):
            at = places[:, 0], places[:, 1]
            sampled_at.append(np.array([stop_s]))
            sampled.append((flow[0][inner][at] + grid.bed_m[at])[None])
    return State(
        h=flow[0][inner].copy(),
        hu=flow[1][inner].copy(),
        hv=flow[2][inner].copy(),
        time_s=time_s,
        highest_h=highest,
        steps=steps,
        pace_per_s=float(pace),
        sampled_at_s=np.concatenate(sampled_at),
        sampled_surface_m=np.concatenate(sampled),
    )


def _refuse_other_shape(state: State, grid: Grid) -> None:
    if state.h.shape != grid.shape:
        raise RefusedInput(f"state: found shape {state.h.shape}; expected {grid.shape}, as of the grid")


def _places(gauges: npt.ArrayLike | None, grid: Grid, state: State) -> npt.NDArray[np.int64]:
    count = state.sampled_surface_m.shape[1]
    if gauges is None:
        if len(state.sampled_at_s):
            raise RefusedInput(f"gauges: not given; expected the {count} that the state has readings of")
        return np.zeros((0, 2), np.int64)
    places = np.asarray(gauges)
    if places.ndim != 2 or places.shape[1] != 2 or not np.issubdtype(places.dtype, np.integer):
        raise RefusedInput(
            f"gauges: found {places.dtype} of shape {places.shape}; expected integers [gauges, 2], row and column"
        )
    outside = ((places < 0) | (places >= np.array(grid.shape))).any(axis=1)
    if outside.any():
        raise RefusedInput(
            f"gauges: found {places[outside][0].tolist()}; expected cells of a grid {grid.shape}"
        )
    if len(state.sampled_at_s) and len(places) != count:
        raise RefusedInput(
            f"gauges: found {len(places)}; expected the {count} that the state has readings of"
        )
    return places.astype(np.int64)


def _stops(begin_s: float, until_s: float, every_s: float | None) -> Iterator[tuple[float, bool]]:
    """Times to stop at, in order, and whether each is a multiple of ``every_s``."""
    if every_s is not None:
        number = math.floor(begin_s / every_s) - 1
        while number * every_s <= begin_s:  # the quotient is rounded: begin a little before it
            number += 1
        while number * every_s <= until_s:
            yield number * every_s, True
            begin_s = number * every_s
            number += 1
    if begin_s < until_s:
        yield until_s, False
