"""The shallow-water scheme's inner loops, compiled by Numba: a strip of columns at a time, all scratch in the nearest caches.

One stage of a step reads every cell once and writes it once. A strip is swept from south to north; what a row needs of its
neighbours (values, slopes, what passes the last edge) stays in one scratch array, whose rows lie at offsets known to the
compiler, so that loops over a row become vectors without checks for overlap. No sum is taken in another order for it, and
fast-math is off: mirrored or transposed input gives mirrored or transposed output to the last bit.

What is compiled is kept in the source's ``__pycache__``, or in the user's cache: only the first use ever waits for it.
Numba notices a changed file but not a changed import, so all that is compiled together is in this one file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

__all__ = ["DONE", "EDGES", "GHOSTS", "Physics", "march"]

EDGES: Final = {"wall": 0, "open": 1, "periodic": 2}
GHOSTS: Final = 2  # rows and columns beside the grid on every side, as slopes in the nearest one need another
DONE, STALLED = 0, 1  # how `march` ended

_WALL, _OPEN, _PERIODIC = EDGES["wall"], EDGES["open"], EDGES["periodic"]
_STABLE = 1.0  # step times pace up to which the scheme is stable
_PROVEN, _PROVEN_AIM = 0.5, 0.45  # up to which no depth can become negative, and what is aimed at below it
_TRIES = 60
_MOST_STEPS = 1e12  # to the next stop; more would never end
_TINY = 1e-100  # divides what is zero where the depth, in m, or the speeds, in m/s, are no larger

_STRIP = 128  # columns
_LANES = 8  # loops over the scratch alone run to a multiple of it, so that no lane of a vector is left over
_ROW = _STRIP + 2 * _LANES
# fmt: off
(
    # Values of row j, of row j + 1, and row j less row j - 1.
    _H, _ETA, _U, _V, _NEXT_H, _NEXT_ETA, _NEXT_U, _NEXT_V, _RISE_H, _RISE_ETA, _RISE_U, _RISE_V,
    # At the north edges of row j - 1 (then of row j), at the east and west edges of row j.
    _NORTH_H, _NORTH_ETA, _NORTH_U, _NORTH_V,
    _EAST_H, _EAST_ETA, _EAST_U, _EAST_V, _WEST_H, _WEST_ETA, _WEST_U, _WEST_V,
    # Through the west edges of row j, and what they do to its cells; the surface's slopes.
    _MASS, _LOW, _HIGH, _ALONG, _FAST, _SLOW, _X_H, _X_HU, _X_HV, _X_PACE, _Y_SLOPE, _Y_PULL,
    # Through the edges between rows j - 1 and j, and between j - 2 and j - 1.
    _ABOVE_MASS, _ABOVE_LOW, _ABOVE_HIGH, _ABOVE_ALONG, _ABOVE_FAST, _ABOVE_SLOW,
    _BELOW_MASS, _BELOW_HIGH, _BELOW_ALONG, _BELOW_SLOW,
    # Row j - 1 after the stage; the largest pace and the least depth of each column so far.
    _NEW_H, _NEW_HU, _NEW_HV, _PACE, _LEAST,
) = range(0, 51 * _ROW, _ROW)
# fmt: on
_SCRATCH = 51 * _ROW

Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Values = tuple[float, float, float, float]  # h, eta, the velocity normal to an edge, the one along it


class Physics(NamedTuple):
    """Constants of a grid.

    Arguments:
        per_dx, per_dy: 1/m; 0 where nothing varies in that direction.
        gravity: m/s².
        drag: gravity times the square of Manning's n; 0 for none.
        dry: depth in m below which velocities are damped.
        cfl: step times pace that is aimed at.
    """

    per_dx: float
    per_dy: float
    gravity: float
    drag: float
    dry: float
    cfl: float


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    try:
        return njit(cache=True, nogil=True, error_model="numpy")(function)  # type: ignore[no-any-return]
    except RuntimeError:  # neither folder can be written: it is compiled in each process
        return njit(nogil=True, error_model="numpy")(function)  # type: ignore[no-any-return]


# ---- one cell, one edge --------------------------------------------------------------------------------------------------


@_compiled
def _half_slope(behind: float, ahead: float) -> float:
    """Half the monotonised central slope (van Leer 1977) of three values, from their two differences."""
    central = 0.25 * (behind + ahead)
    size = abs(central)
    bound = abs(behind)
    other = abs(ahead)
    bound = bound if bound < other else other
    size = size if size < bound else bound
    signed = size if central > 0.0 else -size
    return signed if behind * ahead > 0.0 else 0.0


@_compiled
def _edge(low: Values, high: Values, gravity: float) -> tuple[float, float, float, float, float, float]:
    """What passes an edge between the cell of the lower index and that of the higher one.

    The hydrostatic reconstruction of Audusse et al. (2004) with the flux of Harten, Lax and van Leer (1983); momentum along
    the edge goes with the mass (as in HLLC). Momentum normal to it is given to each cell less the hydrostatic pressure of
    its own reconstructed depth, from differences that are exactly zero where water rests.

    Returns:
        mass, normal momentum for the lower cell, for the higher one, momentum along the edge, and the largest speeds towards
        the higher and the lower index, neither below 0.
    """
    h_low, eta_low, u_low, v_low = low
    h_high, eta_high, u_high, v_high = high
    bed_low = eta_low - h_low
    bed_high = eta_high - h_high
    bed = bed_low if bed_low > bed_high else bed_high
    left = eta_low - bed
    left = left if left > 0.0 else 0.0
    right = eta_high - bed
    right = right if right > 0.0 else 0.0

    c_left = math.sqrt(gravity * left)
    c_right = math.sqrt(gravity * right)
    slow = u_low - c_left
    other = u_high - c_right
    slow = slow if slow < other else other
    slow = slow if slow < 0.0 else 0.0
    fast = u_low + c_left
    other = u_high + c_right
    fast = fast if fast > other else other
    fast = fast if fast > 0.0 else 0.0
    width = fast - slow
    share = 1.0 / (width if width > _TINY else 1.0)

    q_left = left * u_low
    q_right = right * u_high
    push_left = q_left * u_low
    push_right = q_right * u_high
    rise = right - left
    gain = q_right - q_left
    mass = (fast * q_left - slow * q_right + fast * slow * rise) * share
    jump = push_right - push_left + 0.5 * gravity * rise * (left + right)
    for_low = push_left - slow * (jump - fast * gain) * share
    for_high = push_right - fast * (jump - slow * gain) * share
    along = mass * (v_low if mass > 0.0 else v_high)
    return mass, for_low, for_high, along, fast, -slow


@_compiled
def _radiated(h: float, out: float, along: float, rest: float, gravity: float) -> tuple[float, float, float]:
    """Water beyond an open edge: what reaches it from within leaves, and from beyond comes only a sea at rest.

    Of the two Riemann invariants ``u ± 2 sqrt(g h)`` the outgoing one is the cell's and the incoming one that of the rest,
    unless the water leaves faster than waves. Written as differences, which vanish at rest.

    Arguments:
        h, out, along: depth of the cell inside, its discharge outwards and along the edge.
        rest: depth at rest.
        gravity: m/s².
    """
    inverse = 1.0 / max(h, _TINY)
    u = out * inverse
    c = math.sqrt(gravity * h)
    if u > c:
        return h, out, along
    excess = c - math.sqrt(gravity * rest)
    gain = 0.25 * u - 0.5 * excess
    depth = max(h + gain * (2.0 * c + gain) / gravity, 0.0)
    return depth, depth * (0.5 * u + excess), depth * (along * inverse)


# ---- a row of a strip ----------------------------------------------------------------------------------------------------


@_compiled
def _whole_vectors(count: int) -> int:
    return (min(count, _STRIP + 2) + _LANES - 1) // _LANES * _LANES


@_compiled
def _load(s: Doubles, h: Doubles, hu: Doubles, hv: Doubles, bed: Doubles) -> None:
    """Row j + 1 becomes row j, and another one is read."""
    count = h.shape[0]
    for k in range(count):
        s[_RISE_H + k] = s[_NEXT_H + k] - s[_H + k]
        s[_H + k] = s[_NEXT_H + k]
        s[_RISE_ETA + k] = s[_NEXT_ETA + k] - s[_ETA + k]
        s[_ETA + k] = s[_NEXT_ETA + k]
    for k in range(count):
        s[_RISE_U + k] = s[_NEXT_U + k] - s[_U + k]
        s[_U + k] = s[_NEXT_U + k]
        s[_RISE_V + k] = s[_NEXT_V + k] - s[_V + k]
        s[_V + k] = s[_NEXT_V + k]
    for k in range(count):
        depth = h[k]
        inverse = 1.0 / (depth if depth > _TINY else _TINY)
        s[_NEXT_H + k] = depth
        s[_NEXT_ETA + k] = depth + bed[k]
        s[_NEXT_U + k] = hu[k] * inverse
        s[_NEXT_V + k] = hv[k] * inverse


@_compiled
def _between_rows(s: Doubles, gravity: float, dry: float, count: int) -> None:
    """What passes between rows j - 1 and j; the slopes of row j towards the north.

    The ground of a dry cell is level: with a slope, water would climb into it over the part that lies below its mean height.
    """
    wide = _whole_vectors(count)
    for i in range(wide):
        k = GHOSTS + i
        s[_BELOW_MASS + k] = s[_ABOVE_MASS + k]
        s[_BELOW_HIGH + k] = s[_ABOVE_HIGH + k]
        s[_BELOW_ALONG + k] = s[_ABOVE_ALONG + k]
        s[_BELOW_SLOW + k] = s[_ABOVE_SLOW + k]
    for i in range(wide):
        k = GHOSTS + i
        h, eta, u, v = s[_H + k], s[_ETA + k], s[_U + k], s[_V + k]
        half_h = _half_slope(s[_RISE_H + k], s[_NEXT_H + k] - h)
        half_eta = _half_slope(s[_RISE_ETA + k], s[_NEXT_ETA + k] - eta) if h > dry else 0.0
        half_u = _half_slope(s[_RISE_U + k], s[_NEXT_U + k] - u)
        half_v = _half_slope(s[_RISE_V + k], s[_NEXT_V + k] - v)
        south = (h - half_h, eta - half_eta, v - half_v, u - half_u)
        beyond = (s[_NORTH_H + k], s[_NORTH_ETA + k], s[_NORTH_V + k], s[_NORTH_U + k])
        mass, low, high, along, fast, slow = _edge(beyond, south, gravity)
        s[_ABOVE_MASS + k] = mass
        s[_ABOVE_LOW + k] = low
        s[_ABOVE_HIGH + k] = high
        s[_ABOVE_ALONG + k] = along
        s[_ABOVE_FAST + k] = fast
        s[_ABOVE_SLOW + k] = slow
        s[_Y_SLOPE + k] = 2.0 * half_eta
        s[_NORTH_H + k] = h + half_h
        s[_NORTH_ETA + k] = eta + half_eta
        s[_NORTH_U + k] = u + half_u
        s[_NORTH_V + k] = v + half_v


@_compiled
def _within_row(s: Doubles, gravity: float, dry: float, count: int) -> None:
    """What passes the west edges of row j, and what that does to its cells."""
    wide = _whole_vectors(count + 2)
    for k in range(wide):
        h, eta = s[_H + 1 + k], s[_ETA + 1 + k]
        half_h = _half_slope(h - s[_H + k], s[_H + 2 + k] - h)
        half_eta = _half_slope(eta - s[_ETA + k], s[_ETA + 2 + k] - eta) if h > dry else 0.0
        s[_WEST_H + 1 + k] = h - half_h
        s[_EAST_H + 1 + k] = h + half_h
        s[_WEST_ETA + 1 + k] = eta - half_eta
        s[_EAST_ETA + 1 + k] = eta + half_eta
        s[_X_HU + 1 + k] = gravity * h * (2.0 * half_eta)
    for k in range(wide):
        u, v = s[_U + 1 + k], s[_V + 1 + k]
        half_u = _half_slope(u - s[_U + k], s[_U + 2 + k] - u)
        half_v = _half_slope(v - s[_V + k], s[_V + 2 + k] - v)
        s[_WEST_U + 1 + k] = u - half_u
        s[_EAST_U + 1 + k] = u + half_u
        s[_WEST_V + 1 + k] = v - half_v
        s[_EAST_V + 1 + k] = v + half_v
    for k in range(wide):
        beyond = (s[_EAST_H + 1 + k], s[_EAST_ETA + 1 + k], s[_EAST_U + 1 + k], s[_EAST_V + 1 + k])
        west = (s[_WEST_H + 2 + k], s[_WEST_ETA + 2 + k], s[_WEST_U + 2 + k], s[_WEST_V + 2 + k])
        mass, low, high, along, fast, slow = _edge(beyond, west, gravity)
        s[_MASS + 2 + k] = mass
        s[_LOW + 2 + k] = low
        s[_HIGH + 2 + k] = high
        s[_ALONG + 2 + k] = along
        s[_FAST + 2 + k] = fast
        s[_SLOW + 2 + k] = slow
    for k in range(wide):
        s[_X_H + 2 + k] = s[_MASS + 3 + k] - s[_MASS + 2 + k]
        s[_X_HU + 2 + k] += s[_LOW + 3 + k] - s[_HIGH + 2 + k]
        s[_X_HV + 2 + k] = s[_ALONG + 3 + k] - s[_ALONG + 2 + k]
        east, back = s[_FAST + 3 + k], s[_SLOW + 2 + k]
        s[_X_PACE + 2 + k] = east if east > back else back
        s[_Y_PULL + 2 + k] = gravity * s[_H + 2 + k] * s[_Y_SLOPE + 2 + k]


@_compiled
def _finish(
    s: Doubles,
    now: tuple[Doubles, Doubles, Doubles],
    first: tuple[Doubles, Doubles, Doubles],
    physics: Physics,
    dt: float,
    share: float,
) -> None:
    """Row j - 1 after the stage: ``share`` of what the step began with, the rest of an Euler step from now.

    Below the depth ``dry`` velocities are damped in the manner of Kurganov and Petrova (2007); mass is kept.
    """
    h, hu, hv = now
    first_h, first_hu, first_hv = first
    per_dx, per_dy, rest = physics.per_dx, physics.per_dy, 1.0 - share
    least = physics.dry * physics.dry
    for i in range(h.shape[0]):
        k = GHOSTS + i
        north, south = s[_ABOVE_FAST + k], s[_BELOW_SLOW + k]
        pace = s[_X_PACE + k] * per_dx + (north if north > south else south) * per_dy
        before = s[_PACE + k]
        s[_PACE + k] = pace if pace > before else before

        y_h = s[_ABOVE_MASS + k] - s[_BELOW_MASS + k]
        new_h = h[i] - dt * (s[_X_H + k] * per_dx + y_h * per_dy)
        new_h = share * first_h[i] + rest * new_h
        before = s[_LEAST + k]
        s[_LEAST + k] = new_h if new_h < before else before
        new_h = new_h if new_h > 0.0 else 0.0
        square = new_h * new_h
        damping = 2.0 * square / (square + (square if square > least else least))
        s[_NEW_H + k] = new_h

        y_hu = s[_ABOVE_ALONG + k] - s[_BELOW_ALONG + k]
        new_hu = hu[i] - dt * (s[_X_HU + k] * per_dx + y_hu * per_dy)
        s[_NEW_HU + k] = damping * (share * first_hu[i] + rest * new_hu)

        y_hv = s[_ABOVE_LOW + k] - s[_BELOW_HIGH + k] + s[_Y_PULL + k]
        new_hv = hv[i] - dt * (s[_X_HV + k] * per_dx + y_hv * per_dy)
        s[_NEW_HV + k] = damping * (share * first_hv[i] + rest * new_hv)


@_compiled
def _store(s: Doubles, offset: int, out: Doubles) -> None:
    for k in range(out.shape[0]):
        out[k] = s[offset + k]


@_compiled
def _raise(highest: Doubles, h: Doubles) -> None:
    for k in range(highest.shape[0]):
        highest[k] = h[k] if h[k] > highest[k] else highest[k]


# ---- the whole grid ------------------------------------------------------------------------------------------------------


@_compiled
def _repeated(index: int, count: int, low: int, high: int) -> tuple[int, float]:
    """The row or column that one beside the grid repeats, and the sign of the velocity normal to that side."""
    sign = 1.0
    while index < 0 or index >= count:
        below = index < 0
        edge = low if below else high
        if edge == _WALL:
            index = -1 - index if below else 2 * count - 1 - index
            sign = -sign
        elif edge == _PERIODIC:
            index += count if below else -count
        else:
            index = 0 if below else count - 1
    return index, sign


@_compiled
def _fill_ghosts(flow: Doubles, bed: Doubles, edges: Integers, physics: Physics) -> None:
    """Sets depth, discharge and ground beside the grid, as its edges say: first the columns, then the rows."""
    rows, columns = bed.shape[0] - 2 * GHOSTS, bed.shape[1] - 2 * GHOSTS
    gravity = physics.gravity
    for ghost in (-2, -1, columns, columns + 1):
        source, sign = _repeated(ghost, columns, edges[0], edges[1])
        to, other, out = ghost + GHOSTS, source + GHOSTS, -1.0 if ghost < 0 else 1.0
        is_open = (edges[0] if ghost < 0 else edges[1]) == _OPEN
        for row in range(GHOSTS, rows + GHOSTS):
            h, hu, hv = flow[0, row, other], sign * flow[1, row, other], flow[2, row, other]
            if is_open:
                h, hu, hv = _radiated(h, out * hu, hv, max(-bed[row, other], 0.0), gravity)
                hu = out * hu
            flow[0, row, to], flow[1, row, to], flow[2, row, to] = h, hu, hv
            bed[row, to] = bed[row, other]
    for ghost in (-2, -1, rows, rows + 1):
        source, sign = _repeated(ghost, rows, edges[2], edges[3])
        to, other, out = ghost + GHOSTS, source + GHOSTS, -1.0 if ghost < 0 else 1.0
        is_open = (edges[2] if ghost < 0 else edges[3]) == _OPEN
        for column in range(columns + 2 * GHOSTS):
            h, hu, hv = flow[0, other, column], flow[1, other, column], sign * flow[2, other, column]
            if is_open:
                h, hv, hu = _radiated(h, out * hv, hu, max(-bed[other, column], 0.0), gravity)
                hv = out * hv
            flow[0, to, column], flow[1, to, column], flow[2, to, column] = h, hu, hv
            bed[to, column] = bed[other, column]


@_compiled
def _stage(
    flow: Doubles,
    first: Doubles,
    after: Doubles,
    highest: Doubles,
    bed: Doubles,
    edges: Integers,
    physics: Physics,
    dt: float,
    share: float,
    s: Doubles,
) -> tuple[float, float]:
    """One stage: ``after = share first + (1 - share) (flow + dt L(flow))``; with ``share = 0`` the highest depths follow.

    Returns:
        the pace, which is the largest ``a_x / dx + a_y / dy`` of all cells, with a the speeds at a cell's edges away from it;
        and the least depth before negative ones were set to zero.
    """
    rows, columns = flow.shape[1] - 2 * GHOSTS, flow.shape[2] - 2 * GHOSTS
    _fill_ghosts(flow, bed, edges, physics)
    pace, least = 0.0, math.inf
    for begin in range(0, columns, _STRIP):
        count = min(_STRIP, columns - begin)
        for k in range(_SCRATCH):
            s[k] = 0.0 if k < _LEAST else math.inf
        inner = slice(begin + GHOSTS, begin + count + GHOSTS)
        padded = slice(begin, begin + count + 2 * GHOSTS)
        for line in range(rows + 2 * GHOSTS):  # is row j + 1 of what is said above
            _load(s, flow[0, line, padded], flow[1, line, padded], flow[2, line, padded], bed[line, padded])
            if line >= 2:
                _between_rows(s, physics.gravity, physics.dry, count)
            if line >= 4:
                row = line - 2
                now = (flow[0, row, inner], flow[1, row, inner], flow[2, row, inner])
                then = (first[0, row, inner], first[1, row, inner], first[2, row, inner])
                _finish(s, now, then, physics, dt, share)
                _store(s, _NEW_H + GHOSTS, after[0, row, inner])
                _store(s, _NEW_HU + GHOSTS, after[1, row, inner])
                _store(s, _NEW_HV + GHOSTS, after[2, row, inner])
                if share == 0.0:
                    _raise(highest[row - GHOSTS, begin : begin + count], now[0])
            if 3 <= line < rows + 3:
                _within_row(s, physics.gravity, physics.dry, count)
        for k in range(GHOSTS, count + GHOSTS):
            pace = max(pace, s[_PACE + k])
            least = min(least, s[_LEAST + k])
    return pace, least


@_compiled
def _copy(source: Doubles, target: Doubles) -> None:
    for plane in range(source.shape[0]):
        for row in range(source.shape[1]):
            for column in range(source.shape[2]):
                target[plane, row, column] = source[plane, row, column]


@_compiled
def _rub(flow: Doubles, seconds: float, drag: float, dry: float) -> None:
    """Manning's friction alone, solved exactly: ``dq/dt = -drag |q| q / h^(7/3)`` with h constant."""
    for row in range(GHOSTS, flow.shape[1] - GHOSTS):
        for column in range(GHOSTS, flow.shape[2] - GHOSTS):
            h, hu, hv = flow[0, row, column], flow[1, row, column], flow[2, row, column]
            if h > dry:
                size = math.sqrt(hu * hu + hv * hv)
                factor = 1.0 / (1.0 + seconds * drag * size / h ** (7.0 / 3.0))
                flow[1, row, column] = hu * factor
                flow[2, row, column] = hv * factor


@_compiled
def march(
    flow: Doubles,
    spare: tuple[Doubles, Doubles, Doubles],
    highest: Doubles,
    bed: Doubles,
    edges: Integers,
    physics: Physics,
    time: float,
    stop: float,
    pace: float,
) -> tuple[Doubles, tuple[Doubles, Doubles, Doubles], float, int, int]:
    """Steps from one time to another: Strang's splitting of friction around the two stages of SSP-RK2.

    A step is as long as the pace of the last one suggests. Each stage measures its own pace; a step that was too long for
    stability, or that left a negative depth, is taken again at a length for which neither can happen.

    Arguments:
        flow: ``[3, rows + 4, columns + 4]``, h in m and hu, hv in m²/s with two ghosts on every side; is overwritten.
        spare: two arrays as ``flow``, and a third that may be empty if there is no friction.
        highest: ``[rows, columns]``, the largest h so far in m; is updated.
        bed: ``[rows + 4, columns + 4]``, metres above the sea at rest; only its ghosts are set.
        edges: west, east, south, north as numbered in `EDGES`.
        physics: constants.
        time, stop: s.
        pace: of the last stage in 1/s; 0 if it is not known.

    Returns:
        the flow and the spare arrays (they change places), the last pace, the steps taken, and `DONE` or ``STALLED``.
    """
    stage, after, kept = spare
    scratch = np.zeros(_SCRATCH)
    steps, rough = 0, physics.drag > 0.0
    while time < stop:
        if pace == 0.0:
            pace, _ = _stage(flow, flow, stage, highest, bed, edges, physics, 0.0, 0.0, scratch)
        if rough:
            _copy(flow, kept)
        remaining = stop - time
        aim, limit = physics.cfl, _STABLE
        taken, parts, dt, later = False, 1, 0.0, 0.0
        for _ in range(_TRIES):
            if not remaining * pace < _MOST_STEPS:
                break
            parts = math.ceil(remaining * pace / aim) if remaining * pace > aim else 1
            dt = remaining / parts
            if rough:
                _copy(kept, flow)
                _rub(flow, 0.5 * dt, physics.drag, physics.dry)
            now, least = _stage(flow, flow, stage, highest, bed, edges, physics, dt, 0.0, scratch)
            taken = dt * now <= limit and (least >= 0.0 or limit == _PROVEN)
            if taken:
                later, least = _stage(stage, flow, after, highest, bed, edges, physics, dt, 0.5, scratch)
                taken = dt * later <= limit and (least >= 0.0 or limit == _PROVEN)
                now = max(now, later)
            if taken:
                break
            pace = now
            aim, limit = _PROVEN_AIM, _PROVEN
        if not taken or time + dt == time:
            return flow, (stage, after, kept), pace, steps, STALLED
        pace = later
        flow, after = after, flow
        if rough:
            _rub(flow, 0.5 * dt, physics.drag, physics.dry)
        time = stop if parts == 1 else time + dt
        steps += 1
    for row in range(highest.shape[0]):
        _raise(highest[row], flow[0, row + GHOSTS, GHOSTS : flow.shape[2] - GHOSTS])
    return flow, (stage, after, kept), pace, steps, DONE
