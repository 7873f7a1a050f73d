"""What stays while water moves: the ground, the cells, what is at their outer edges, and the constants of the physics.

Row 0 lies in the south and column 0 in the west: x grows with the column, y with the row. A grid of one row or one column is
one-dimensional: nothing varies across it, whatever its other spacing and edges are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from muster.apps.simulation._checks import Doubles, as_doubles, as_number
from muster.errors import RefusedInput

__all__ = ["Edge", "Grid"]

Edge = Literal["wall", "open", "periodic"]
_EDGES: Final[tuple[str, ...]] = get_args(Edge)
_MOST_CFL: Final = 0.9


@dataclass(frozen=True, eq=False)
class Grid:
    """Equal rectangular cells over uneven ground.

    Arguments:
        bed_m: mean height of the ground in each cell, ``[rows, columns]``, metres above the datum (sea below 0).
        dx_m, dy_m: size of a cell.
        west, east, south, north: what is beyond each side. ``"wall"`` reflects. ``"open"`` is a sea at rest at
            ``sea_level_m``: waves pass out and only rest comes back; of waves that meet the edge at an angle θ to its normal
            the share (1 - cos θ) / (1 + cos θ) is reflected. ``"periodic"`` joins the opposite side, which must be so too.
        sea_level_m: height of the sea's surface at rest.
        manning_s_m13: Manning's n, in s/m^(1/3); 0 is no friction, 0.025 the usual value for a sea bed.
        gravity_m_s2: acceleration of gravity.
        dry_depth_m: where water is less deep, its velocity is damped and the cell counts as dry; its mass is kept.
        cfl: the length of a step, as a share of the one at which a wave crosses a cell; at most 0.9.
        origin_m: x and y of the outer corner of cell ``[0, 0]``.

    Raises:
        RefusedInput: an array that is not two-dimensional and finite, a size that is not above 0, an unknown or a lone
            periodic edge.

    A pond with walls, 100 m by 50 m::

        Grid(np.full((50, 100), -2.0), dx_m=1.0, dy_m=1.0)
    """

    bed_m: Doubles
    dx_m: float
    dy_m: float
    west: Edge = "wall"
    east: Edge = "wall"
    south: Edge = "wall"
    north: Edge = "wall"
    sea_level_m: float = 0.0
    manning_s_m13: float = 0.0
    gravity_m_s2: float = 9.81
    dry_depth_m: float = 1e-4
    cfl: float = 0.8
    origin_m: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "bed_m", as_doubles(self.bed_m, "bed_m"))
        for name in ("dx_m", "dy_m", "gravity_m_s2", "dry_depth_m", "cfl"):
            object.__setattr__(self, name, as_number(getattr(self, name), name, above=0.0))
        object.__setattr__(self, "manning_s_m13", as_number(self.manning_s_m13, "manning_s_m13", least=0.0))
        object.__setattr__(self, "sea_level_m", as_number(self.sea_level_m, "sea_level_m"))
        if self.cfl > _MOST_CFL:
            raise RefusedInput(f"cfl: found {self.cfl:g}; expected at most {_MOST_CFL:g}")
        for side in ("west", "east", "south", "north"):
            if getattr(self, side) not in _EDGES:
                raise RefusedInput(
                    f"{side}: found {getattr(self, side)!r}; expected one of {', '.join(_EDGES)}"
                )
        for one, other in (("west", "east"), ("south", "north")):
            if (getattr(self, one) == "periodic") != (getattr(self, other) == "periodic"):
                raise RefusedInput(
                    f"{one} is {getattr(self, one)!r} and {other} {getattr(self, other)!r}; expected both "
                    "periodic, or neither"
                )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.bed_m.shape
        return rows, columns

    @property
    def cell_area_m2(self) -> float:
        """Area of one cell."""
        return self.dx_m * self.dy_m

    @property
    def x_m(self) -> Doubles:
        """Where the middle of each column is, ``[columns]``."""
        return self.origin_m[0] + np.arange(0.5, self.shape[1]) * self.dx_m

    @property
    def y_m(self) -> Doubles:
        """Where the middle of each row is, ``[rows]``."""
        return self.origin_m[1] + np.arange(0.5, self.shape[0]) * self.dy_m

    def uplifted(self, uplift_m: npt.ArrayLike) -> Grid:
        """The same grid after the ground has moved, as by an earthquake.

        The water above moves with it: a state whose ``h`` was at rest on this grid has, on the new one, the surface that a
        sudden earthquake makes, subsided shores included.

        Arguments:
            uplift_m: vertical displacement, ``[rows, columns]``, upwards.

        Raises:
            RefusedInput: of another shape, or not finite.
        """
        uplift = as_doubles(uplift_m, "uplift_m")
        if uplift.shape != self.shape:
            raise RefusedInput(f"uplift_m: found shape {uplift.shape}; expected {self.shape}, as of bed_m")
        return replace(self, bed_m=self.bed_m + uplift)
