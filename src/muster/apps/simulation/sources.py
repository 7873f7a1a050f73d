"""An ensemble of earthquakes on the Cascadia megathrust, each with its probability.

*Where.* The plate boundary is that of the unit sources with which NOAA forecasts tsunamis: ten columns of 100 km along the
trench, from Vancouver Island to northern California, each with a strip of 50 km that dips by 9 degrees from a depth of 5 km
and another below it that dips by 11. A rupture is a rectangle on that folded sheet, so far along it and so far down, and is
cut where the sheet bends: it becomes a few rectangular faults with one slip. Source: E. Gica et al., "Development of the
forecast propagation database for NOAA's short-term inundation forecast for tsunamis", NOAA Technical Memorandum OAR PMEL-139
(2008), with the coordinates of its `info_sz.dat` of October 2020 (acszb56 to acszb65).

*How often.* Magnitudes follow the tapered Gutenberg-Richter law, cut off where no more is expected. Each member stands for a
slice of magnitudes and has the probability of that slice as its weight: rare great earthquakes are in every ensemble, and a
weighted sum over members is an unbiased estimate of an expectation over earthquakes. Source: Y. Y. Kagan, "Seismic moment
distribution revisited: I", Geophysical Journal International 148, 520-541 (2002); for Cascadia: Y. Rong et al., "Magnitude
limits of subduction zone earthquakes", BSSA 104, 2359-2377 (2014).

*How large.* Length and width by F. O. Strasser, M. C. Arango and J. J. Bommer, "Scaling of the source dimensions of interface
and intraslab subduction-zone earthquakes with moment magnitude", Seismological Research Letters 81, 941-950 (2010), with
their scatter; the slip is what then gives the moment of T. C. Hanks and H. Kanamori, "A moment magnitude scale", JGR 84,
2348-2350 (1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import cos, radians, sin
from typing import Final

import numpy as np
import numpy.typing as npt

from muster.apps.simulation.okada import Displacement, Fault, surface_displacement
from muster.errors import RefusedInput

Array = npt.NDArray[np.float64]

EARTH_RADIUS_M: Final = 6_371_008.8  # mean radius of the Earth (IUGG)

# Longitude, latitude and strike of the middle of each upper strip's lower edge, in degrees, from north to south.
_COLUMNS: Final = (
    (233.5849, 48.85839, 315.0),
    (234.2797, 48.1161, 341.0),
    (234.6776, 47.25966, 344.0),
    (235.0257, 46.39406, 345.0),
    (235.2363, 45.51215, 356.0),
    (235.2913, 44.615, 359.0),
    (235.313, 43.71682, 359.0),
    (235.43, 42.8254, 350.0),
    (235.3919, 41.8677, 345.0),
    (235.7, 41.0, 345.0),
)
_COLUMN_M: Final = 100_000.0
_STRIP_M: Final = 50_000.0
_DIPS_DEG: Final = (9.0, 11.0)
_TOP_M: Final = 5_000.0

MARGIN_LENGTH_M: Final = _COLUMN_M * len(_COLUMNS)
MARGIN_WIDTH_M: Final = _STRIP_M * len(_DIPS_DEG)


def moment_n_m(magnitude: npt.ArrayLike) -> Array:
    """The seismic moment, N m, of a moment magnitude: ``(2/3) log10 M0 - 10.7``, in dyn cm (Hanks and Kanamori 1979)."""
    found: Array = 10.0 ** (1.5 * np.asarray(magnitude, float) + 9.05)
    return found


def rupture_length_m(magnitude: npt.ArrayLike, deviations: npt.ArrayLike = 0.0) -> Array:
    """The length of an interface earthquake (Strasser et al. 2010, table 1), so many standard deviations from the median."""
    return _scaled(-2.477, 0.585, 0.180, magnitude, deviations)


def rupture_width_m(magnitude: npt.ArrayLike, deviations: npt.ArrayLike = 0.0) -> Array:
    """The width of an interface earthquake (Strasser et al. 2010, table 1), so many standard deviations from the median."""
    return _scaled(-0.882, 0.351, 0.173, magnitude, deviations)


def _scaled(a: float, b: float, sigma: float, magnitude: npt.ArrayLike, deviations: npt.ArrayLike) -> Array:
    kilometres = 10.0 ** (a + b * np.asarray(magnitude, float) + sigma * np.asarray(deviations, float))
    return np.asarray(1000.0 * kilometres)


@dataclass(frozen=True)
class MagnitudeLaw:
    """How likely an earthquake is to be above each magnitude, given that it is above the least one.

    In terms of the moment: ``(M_least / M)^beta exp((M_least - M) / M_corner)`` with ``beta = 2 b / 3``, cut off at the
    greatest magnitude.

    Arguments:
        b: the slope of Gutenberg and Richter.
        least, corner, greatest: moment magnitudes. By default the corner is what is expected in Cascadia over 1,000 years.

    Raises:
        RefusedInput: b is not above 0, or the greatest is not above the least.
    """

    b: float = 1.0
    least: float = 7.5
    corner: float = 9.0
    greatest: float = 9.3

    def __post_init__(self) -> None:
        if not self.b > 0:
            raise RefusedInput(f"magnitudes: b: found {self.b:g}; expected more than 0")
        if not self.least < self.greatest:
            raise RefusedInput(
                f"magnitudes: least {self.least:g} and greatest {self.greatest:g}; expected the greatest to be more"
            )

    def _uncut(self, magnitude: npt.ArrayLike) -> Array:
        least, corner, moment = moment_n_m(self.least), moment_n_m(self.corner), moment_n_m(magnitude)
        return np.asarray((least / moment) ** (2 * self.b / 3) * np.exp((least - moment) / corner))

    def above(self, magnitude: npt.ArrayLike) -> Array:
        """The probability of more than a magnitude."""
        beyond = self._uncut(self.greatest)
        inside = np.clip(np.asarray(magnitude, float), self.least, self.greatest)
        return np.asarray((self._uncut(inside) - beyond) / (1 - beyond))

    def magnitude(self, above: npt.ArrayLike) -> Array:
        """The magnitude that is exceeded with a probability; the inverse of `above`, by bisection to the last digits."""
        wanted = np.asarray(above, float)
        low, high = np.full_like(wanted, self.least), np.full_like(wanted, self.greatest)
        for _ in range(60):
            middle = (low + high) / 2
            more = self.above(middle) > wanted
            low, high = np.where(more, middle, low), np.where(more, high, middle)
        return np.asarray((low + high) / 2)

    def draw(self, count: int, random: np.random.Generator) -> Array:
        """Magnitudes of that law, of shape ``(count,)``."""
        return self.magnitude(random.random(count))


@dataclass(frozen=True)
class Source:
    """One earthquake of the ensemble.

    Arguments:
        magnitude: its moment magnitude.
        weight: the probability that it stands for; those of an ensemble sum to 1.
        along_m, down_m: where its rupture begins on the sheet, from the northern end and from the upper edge.
        length_m, width_m: of its rupture on the sheet.
        slip_m: the same everywhere.
        rigidity_pa: of the rock.
        faults: the rupture in rectangles, in metres east and north of the ensemble's origin.
    """

    magnitude: float
    weight: float
    along_m: float
    down_m: float
    length_m: float
    width_m: float
    slip_m: float
    rigidity_pa: float
    faults: tuple[Fault, ...]

    @property
    def moment_n_m(self) -> float:
        """What its faults release: ``mu A D``."""
        return self.rigidity_pa * sum(fault.area_m2 * fault.slip_m for fault in self.faults)


def local_metres(
    longitude_deg: npt.ArrayLike, latitude_deg: npt.ArrayLike, origin: tuple[float, float]
) -> tuple[Array, Array]:
    """Metres east and north of an origin (longitude, latitude, degrees) on a map that is true near its parallel."""
    east_deg = (np.asarray(longitude_deg, float) - origin[0] + 180) % 360 - 180
    north_deg = np.asarray(latitude_deg, float) - origin[1]
    degree_m = radians(1) * EARTH_RADIUS_M
    return np.asarray(degree_m * cos(radians(origin[1])) * east_deg), np.asarray(degree_m * north_deg)


def cascadia_ensemble(
    members: int,
    *,
    seed: int,
    origin: tuple[float, float],
    law: MagnitudeLaw | None = None,
    rigidity_pa: float = 4e10,
    scatter: float = 1.0,
) -> list[Source]:
    """Earthquakes of all sizes anywhere on the margin, from the least magnitude to the greatest.

    Magnitudes are one from each of as many slices of the same width, by the law within the slice. Places along the margin and
    down it are spread evenly (a Latin hypercube: M. D. McKay et al., Technometrics 21, 1979). A rupture that does not fit in
    one direction is larger in the other, and one that is larger than the margin slips more.

    Arguments:
        members: how many.
        seed: fixes the ensemble.
        origin: longitude and latitude, degrees, from which faults are placed (`local_metres`).
        law: of the magnitudes; by default `MagnitudeLaw()`.
        rigidity_pa: of the rock.
        scatter: of lengths and widths, in units of the published one; draws are cut off at two standard deviations.

    Raises:
        RefusedInput: no members, or a rigidity that is not above 0.
    """
    if members < 1:
        raise RefusedInput(f"ensemble: members: found {members}; expected at least 1")
    if not rigidity_pa > 0:
        raise RefusedInput(f"ensemble: rigidity_pa: found {rigidity_pa:g}; expected more than 0")
    law = law or MagnitudeLaw()
    random = np.random.default_rng(seed)
    above = law.above(np.linspace(law.least, law.greatest, members + 1))
    weights = above[:-1] - above[1:]
    magnitudes = law.magnitude(above[1:] + random.random(members) * weights)
    weights /= weights.sum()

    longer, wider = scatter * np.clip(random.standard_normal((2, members)), -2, 2)
    lengths, widths = rupture_length_m(magnitudes, longer), rupture_width_m(magnitudes, wider)
    areas = np.minimum(lengths * widths, MARGIN_LENGTH_M * MARGIN_WIDTH_M)
    widths = np.clip(widths, areas / MARGIN_LENGTH_M, MARGIN_WIDTH_M)
    lengths = areas / widths
    slips = moment_n_m(magnitudes) / (rigidity_pa * areas)
    along = _spread(members, random) * (MARGIN_LENGTH_M - lengths)
    down = _spread(members, random) * (MARGIN_WIDTH_M - widths)
    return [
        Source(
            magnitude=float(magnitudes[k]),
            weight=float(weights[k]),
            along_m=float(along[k]),
            down_m=float(down[k]),
            length_m=float(lengths[k]),
            width_m=float(widths[k]),
            slip_m=float(slips[k]),
            rigidity_pa=rigidity_pa,
            faults=rupture_faults(
                *(float(values[k]) for values in (along, down, lengths, widths, slips)), origin=origin
            ),
        )
        for k in range(members)
    ]


def _spread(count: int, random: np.random.Generator) -> Array:
    """Numbers from 0 to 1 in random order, one in each of ``count`` equal parts."""
    return np.asarray((random.permutation(count) + random.random(count)) / count)


def rupture_faults(
    along_m: float,
    down_m: float,
    length_m: float,
    width_m: float,
    slip_m: float,
    *,
    origin: tuple[float, float],
) -> tuple[Fault, ...]:
    """A rectangle on the sheet, cut where the sheet bends, as thrust faults.

    Arguments:
        along_m, down_m: where it begins, from the northern end and from the upper edge.
        length_m, width_m: its size.
        slip_m: of all its parts.
        origin: as in `cascadia_ensemble`.

    Raises:
        RefusedInput: it leaves the sheet.
    """
    slack = 1e-6 * MARGIN_LENGTH_M
    if (
        min(along_m, down_m) < -slack
        or along_m + length_m > MARGIN_LENGTH_M + slack
        or down_m + width_m > MARGIN_WIDTH_M + slack
    ):
        raise RefusedInput(
            f"rupture: {length_m:.0f} m by {width_m:.0f} m from {along_m:.0f} m along and {down_m:.0f} m down; "
            f"the margin is {MARGIN_LENGTH_M:.0f} m by {MARGIN_WIDTH_M:.0f} m"
        )
    faults = []
    for column, (first_m, piece_length_m) in _cuts(along_m, length_m, _COLUMN_M, len(_COLUMNS)):
        for strip, (top_m, piece_width_m) in _cuts(down_m, width_m, _STRIP_M, len(_DIPS_DEG)):
            middle_m = (
                first_m + piece_length_m / 2 - _COLUMN_M / 2
            )  # southwards from the middle of the column
            east_m, north_m, depth_m = _upper_edge(column, strip, middle_m, top_m, origin)
            faults.append(
                Fault(
                    east_m=east_m,
                    north_m=north_m,
                    depth_m=depth_m,
                    strike_deg=_COLUMNS[column][2],
                    dip_deg=_DIPS_DEG[strip],
                    rake_deg=90.0,
                    length_m=piece_length_m,
                    width_m=piece_width_m,
                    slip_m=slip_m,
                )
            )
    return tuple(faults)


def _cuts(start_m: float, size_m: float, every_m: float, count: int) -> list[tuple[int, tuple[float, float]]]:
    """Which of ``count`` equal cells a stretch lies in, and in each of them where it begins and how long it is there.

    The lengths sum to the whole, so a rupture keeps its area. Slivers of less than a metre are left to their neighbour.
    """
    edges = [
        start_m,
        *(every_m * k for k in range(1, count) if start_m + 1 < every_m * k < start_m + size_m - 1),
        start_m + size_m,
    ]
    cells = []
    for low, high in pairwise(edges):
        cell = min(count - 1, int((low + high) / 2 // every_m))
        cells.append((cell, (low - cell * every_m, high - low)))
    return cells


def _upper_edge(
    column: int, strip: int, southwards_m: float, down_m: float, origin: tuple[float, float]
) -> tuple[float, float, float]:
    """Where a point of a strip is, so far south of the middle of its column and so far down the strip: east, north, depth."""
    longitude, latitude, strike_deg = _COLUMNS[column]
    strike = radians(strike_deg)
    dips = [radians(dip_deg) for dip_deg in _DIPS_DEG]
    # Down-dip distances, on the map, from the lower edge of the upper strip, which is what the table locates.
    across_m = down_m * cos(dips[strip]) - (_STRIP_M * cos(dips[0]) if strip == 0 else 0.0)
    depth_m = _TOP_M + down_m * sin(dips[strip]) + (_STRIP_M * sin(dips[0]) if strip == 1 else 0.0)
    east_m = across_m * cos(strike) - southwards_m * sin(strike)
    north_m = -across_m * sin(strike) - southwards_m * cos(strike)
    # By degrees, since metres of the map are true near the origin only.
    degree_m = radians(1) * EARTH_RADIUS_M
    east, north = local_metres(
        longitude + east_m / (degree_m * cos(radians(latitude))), latitude + north_m / degree_m, origin
    )
    return float(east), float(north), depth_m


def seafloor_displacement(source: Source, east_m: npt.ArrayLike, north_m: npt.ArrayLike) -> Displacement:
    """How the sea floor moves in an earthquake: east, north and up, m, float64, of the broadcast shape of the places.

    Arguments:
        source: the earthquake.
        east_m, north_m: from the ensemble's origin; float64, of shapes that broadcast together.
    """
    total = np.zeros((3, *np.broadcast_shapes(np.shape(east_m), np.shape(north_m))))
    for fault in source.faults:
        total += np.stack(surface_displacement(fault, east_m, north_m))
    return total[0], total[1], total[2]


def distance_m(source: Source, east_m: npt.ArrayLike, north_m: npt.ArrayLike) -> Array:
    """From places to the nearest point of a rupture as seen from above, m; 0 over the rupture."""
    found = np.full(np.broadcast_shapes(np.shape(east_m), np.shape(north_m)), np.inf)
    for fault in source.faults:
        strike, across_m = radians(fault.strike_deg), fault.width_m * cos(radians(fault.dip_deg))
        east, north = np.asarray(east_m, float) - fault.east_m, np.asarray(north_m, float) - fault.north_m
        along = np.abs(east * sin(strike) + north * cos(strike)) - fault.length_m / 2
        down = np.abs(east * cos(strike) - north * sin(strike) - across_m / 2) - across_m / 2
        found = np.minimum(found, np.hypot(np.maximum(along, 0), np.maximum(down, 0)))
    return found


def abe_heights(sources: Sequence[Source], east_m: npt.ArrayLike, north_m: npt.ArrayLike) -> Array:
    """Tsunami heights by rule of thumb: cheap stand-ins for simulated ones, to say which members matter.

    ``log10 H = Mw - log10 R - 5.55`` for a coast at R kilometres, and at most what ``log10 H = 0.5 Mw - 3.30`` gives near the
    source. Source: K. Abe, "Estimate of tsunami run-up heights from earthquake magnitudes", in Tsunami: Progress in
    Prediction, Disaster Prevention and Warning, 21-35 (1995).

    Arguments:
        sources: the ensemble.
        east_m, north_m: of coastal points, ``[points]``.

    Returns:
        Heights, m, float64, ``[members, points]``.
    """
    rows = []
    for source in sources:
        kilometres = np.maximum(distance_m(source, east_m, north_m) / 1000, 1.0)
        near = 0.5 * source.magnitude - 3.30
        rows.append(10.0 ** np.minimum(source.magnitude - np.log10(kilometres) - 5.55, near))
    return np.array(rows)
