"""Heights of sea floor and land: real ones, in degrees, and the grids in metres that the solver takes.

From a map to a member of an ensemble::

    sea = cascadia()
    grid = to_grid(sea, spacing_m=5000.0)                  # dx_m and dy_m near 5 km, all edges open
    harbours = coastal_points(grid, least_depth_m=10.0)    # [points, 2], row and column
    state = advance(at_rest(grid), grid.uplifted(uplift), 3600.0, every_s=15.0, gauges=harbours)

Maps are projected by the local equirectangular projection: x = R cos(latitude₀) (longitude − longitude₀) and
y = R (latitude − latitude₀) with the mean radius of the Earth. Distances along a meridian are true; those along a parallel
are too long by the share tan(latitude₀) (latitude − latitude₀), which is 2 % at the northern end of the Cascadia map and −2 %
at the southern one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from muster.apps.simulation._checks import Doubles, as_doubles, as_number, refuse_first
from muster.apps.simulation.grid import Grid
from muster.errors import DataError, MissingExtra, RefusedInput

__all__ = ["Bathymetry", "Projection", "block_mean", "cascadia", "coastal_points", "to_grid"]

EARTH_RADIUS_M: Final = 6_371_008.8  # mean radius R1 of the IUGG

_FILE: Final = Path("mpl-data", "sample_data", "topobathy.npz")
_SHA256: Final = "0244e03291702df45024dcb5cacbc4f3d4cb30d72dfa7fd371c4ac61c42b4fbf"


@dataclass(frozen=True)
class Projection:
    """A local equirectangular projection about one point.

    Arguments:
        longitude_deg, latitude_deg: where x and y are 0; east and north are positive.

    Raises:
        RefusedInput: not finite, or nearer than one degree to a pole.
    """

    longitude_deg: float
    latitude_deg: float

    def __post_init__(self) -> None:
        as_number(self.longitude_deg, "longitude_deg")
        if abs(as_number(self.latitude_deg, "latitude_deg")) > 89:
            raise RefusedInput(f"latitude_deg: found {self.latitude_deg:g}; expected -89 to 89")

    @property
    def _scales(self) -> tuple[float, float]:
        per_degree = math.radians(EARTH_RADIUS_M)
        return per_degree * math.cos(math.radians(self.latitude_deg)), per_degree

    def to_metres(self, longitude_deg: npt.ArrayLike, latitude_deg: npt.ArrayLike) -> tuple[Doubles, Doubles]:
        """x and y of points, in metres; shapes as given."""
        x_scale, y_scale = self._scales
        x = (np.asarray(longitude_deg, np.float64) - self.longitude_deg) * x_scale
        return x, (np.asarray(latitude_deg, np.float64) - self.latitude_deg) * y_scale

    def to_degrees(self, x_m: npt.ArrayLike, y_m: npt.ArrayLike) -> tuple[Doubles, Doubles]:
        """Longitude and latitude of points, in degrees; shapes as given."""
        x_scale, y_scale = self._scales
        longitude = self.longitude_deg + np.asarray(x_m, np.float64) / x_scale
        return longitude, self.latitude_deg + np.asarray(y_m, np.float64) / y_scale


@dataclass(frozen=True, eq=False)
class Bathymetry:
    """Heights of sea floor and land on a rectangle of longitudes and latitudes, whose spacing may vary.

    Arguments:
        longitude_deg: of the middle of each column, ``[columns]``, growing, east positive.
        latitude_deg: of the middle of each row, ``[rows]``, growing: row 0 lies in the south.
        height_m: ``[rows, columns]``, metres above sea level, the sea floor below 0.

    Raises:
        RefusedInput: shapes that do not belong together, values that are not finite, degrees that do not grow, fewer than
            two rows or columns.
    """

    longitude_deg: Doubles
    latitude_deg: Doubles
    height_m: Doubles

    def __post_init__(self) -> None:
        for name, ndim in (("longitude_deg", 1), ("latitude_deg", 1), ("height_m", 2)):
            object.__setattr__(self, name, as_doubles(getattr(self, name), name, ndim=ndim))
        expected = len(self.latitude_deg), len(self.longitude_deg)
        if self.height_m.shape != expected:
            raise RefusedInput(
                f"height_m: found shape {self.height_m.shape}; expected {expected}, as of latitude and longitude"
            )
        for name in ("longitude_deg", "latitude_deg"):
            degrees = getattr(self, name)
            if len(degrees) < 2:
                raise RefusedInput(f"{name}: found {len(degrees)} value; expected 2 or more")
            refuse_first(np.diff(degrees) <= 0, degrees[1:], name, "values that grow")
        if np.abs(self.latitude_deg).max() > 90:
            raise RefusedInput("latitude_deg: found a value beyond a pole; expected -90 to 90")

    @property
    def projection(self) -> Projection:
        """About the middle of the map."""
        west, east = _bounds(self.longitude_deg)[[0, -1]]
        south, north = _bounds(self.latitude_deg)[[0, -1]]
        return Projection(float(west + east) / 2, float(south + north) / 2)


def cascadia() -> Bathymetry:
    """Vancouver Island and the waters around it, from the sample data of matplotlib.

    126.0 to 122.0° W and 48.0 to 50.0° N, above the north of the Cascadia subduction zone, whose trench lies beyond the
    western edge: 91 rows and 120 columns of 2 minutes of longitude, and of as many metres of latitude (2.4 km), in whole
    metres, from 1,437 m below the sea to 2,205 m above it. The file (``topobathy.npz``: ``topo`` float32 with row 0 in the
    south, ``longitude`` 234 to 238° E, ``latitude``) is found without importing matplotlib.

    Raises:
        MissingExtra: matplotlib is not installed.
        DataError: it has no such file, or another version of it.
    """
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra("matplotlib", "simulation", "the Cascadia bathymetry")
    path = Path(spec.submodule_search_locations[0], _FILE)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); reinstall matplotlib from its wheel"
        ) from None
    if hashlib.sha256(content).hexdigest() != _SHA256:
        raise DataError(
            f"{path}: not the map that is meant (its SHA-256 differs); reinstall matplotlib at a version that has it, such "
            "as 3.11"
        )
    with np.load(io.BytesIO(content), allow_pickle=False) as fields:
        return Bathymetry(fields["longitude"].astype(np.float64) - 360.0, fields["latitude"], fields["topo"])


def block_mean(values: npt.ArrayLike, rows: int, columns: int) -> Doubles:
    """Means of blocks of so many rows and columns; the sum of values times area stays what it was.

    Arguments:
        values: ``[m * rows, n * columns]``.
        rows, columns: of a block.

    Returns:
        ``[m, n]``.

    Raises:
        RefusedInput: not whole blocks.
    """
    fine = as_doubles(values, "values")
    if rows < 1 or columns < 1 or fine.shape[0] % rows or fine.shape[1] % columns:
        raise RefusedInput(
            f"blocks of {rows} by {columns}: expected to divide the shape {fine.shape} of values"
        )
    return fine.reshape(fine.shape[0] // rows, rows, -1, columns).mean(axis=(1, 3))


def to_grid(bathymetry: Bathymetry, spacing_m: float) -> Grid:
    """A grid in metres whose cells hold the mean height of the ground that they cover, by overlapping area.

    Height times area, summed over the map, stays what it was: the whole map is covered, by cells of the size nearest to the
    one wanted that fills it. All edges are open; `dataclasses.replace` gives the grid others, or friction. Coordinates are
    those of ``bathymetry.projection``.

    Arguments:
        bathymetry: the map.
        spacing_m: wanted size of a cell; not below that of the map's cells, since there is nothing finer to be had.

    Raises:
        RefusedInput: no finite size above 0, one finer than the map's, or larger than the map.
    """
    spacing = as_number(spacing_m, "spacing_m", above=0.0)
    longitude, latitude = _bounds(bathymetry.longitude_deg), _bounds(bathymetry.latitude_deg)
    x, y = bathymetry.projection.to_metres(longitude, latitude)
    means, sizes = [], []
    for bounds in (x, y):
        length, coarsest = float(bounds[-1] - bounds[0]), float(np.diff(bounds).max())
        count = round(length / spacing)
        if count < 1:
            raise RefusedInput(
                f"spacing_m: found {spacing:g}; expected at most the {length:.0f} m of the map"
            )
        if count > len(bounds) - 1:
            raise RefusedInput(
                f"spacing_m: found {spacing:g}; expected {coarsest:.0f} or more, as the map has nothing finer"
            )
        means.append(_overlaps(bounds, np.linspace(bounds[0], bounds[-1], count + 1)))
        sizes.append(length / count)
    return Grid(
        means[1] @ bathymetry.height_m @ means[0].T,
        dx_m=sizes[0],
        dy_m=sizes[1],
        west="open",
        east="open",
        south="open",
        north="open",
        origin_m=(float(x[0]), float(y[0])),
    )


def coastal_points(
    grid: Grid, *, least_depth_m: float = 0.0, most_depth_m: float = math.inf
) -> npt.NDArray[np.int64]:
    """Cells of the sea that have land to the west, east, south or north.

    Of several waters that do not meet, only the one with the deepest cell is the sea.

    Arguments:
        grid: whose ``bed_m`` and ``sea_level_m`` are taken.
        least_depth_m, most_depth_m: of a point's own cell, both included; a cell at sea level is land.

    Returns:
        ``[points, 2]``, row and column, from south to north and from west to east; as `advance` takes gauges.

    Raises:
        RefusedInput: depths below 0 or in the wrong order.
    """
    if not 0 <= least_depth_m <= most_depth_m:
        raise RefusedInput(
            f"coastal points: found depths from {least_depth_m:g} to {most_depth_m:g} m; expected 0 or more, growing"
        )
    depth = grid.sea_level_m - grid.bed_m
    land = np.pad(depth <= 0, 1)  # what is beside the grid is not known to be land
    beside_land = land[:-2, 1:-1] | land[2:, 1:-1] | land[1:-1, :-2] | land[1:-1, 2:]
    found = _sea(depth) & beside_land & (depth >= least_depth_m) & (depth <= most_depth_m)
    return np.argwhere(found).astype(np.int64)


def _sea(depth: Doubles) -> npt.NDArray[np.bool_]:
    """The cells below water that can be reached from the deepest one, from side to side."""
    unseen = np.pad(depth > 0, 1)
    sea = np.zeros_like(unseen)
    width = unseen.shape[1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    front = np.array([(row + 1) * width + column + 1])
    front = front[unseen.flat[front]]
    while len(front):
        sea.flat[front] = True
        unseen.flat[front] = False
        beside = np.unique(np.concatenate([front - 1, front + 1, front - width, front + width]))
        front = beside[unseen.flat[beside]]
    return sea[1:-1, 1:-1]


def _bounds(middles: Doubles) -> Doubles:
    """Where cells begin and end: half-way between middles, and as far beyond the outer ones."""
    between = (middles[1:] + middles[:-1]) / 2
    first = 2 * middles[0] - between[0]
    return np.concatenate([[first], between, [2 * middles[-1] - between[-1]]])


def _overlaps(fine: Doubles, coarse: Doubles) -> Doubles:
    """The share of each coarse interval that each fine one covers, ``[coarse, fine]``; rows sum to 1."""
    begin = np.maximum(coarse[:-1, None], fine[None, :-1])
    end = np.minimum(coarse[1:, None], fine[None, 1:])
    covered = np.maximum(end - begin, 0.0)
    return covered / covered.sum(axis=1, keepdims=True)
