"""Tsunamis from Python::

    from muster.simulation import advance, at_rest, cascadia, cascadia_ensemble, seafloor_displacement, surface, to_grid

    sea = cascadia()                                  # the bathymetry that comes with matplotlib
    grid = to_grid(sea, 5_000.0)                      # cells of 5 km
    origin = sea.projection.longitude_deg, sea.projection.latitude_deg
    earthquake = cascadia_ensemble(10, seed=1, origin=origin)[0]
    _, _, up = seafloor_displacement(earthquake, grid.x_m, grid.y_m[:, None])
    later = advance(at_rest(grid), grid.uplifted(up), 3_600.0)
    print(surface(later, grid))                       # metres, an hour later

Everything is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from muster.apps.simulation.bathymetry import Bathymetry as Bathymetry
    from muster.apps.simulation.bathymetry import Projection as Projection
    from muster.apps.simulation.bathymetry import block_mean as block_mean
    from muster.apps.simulation.bathymetry import cascadia as cascadia
    from muster.apps.simulation.bathymetry import coastal_points as coastal_points
    from muster.apps.simulation.bathymetry import to_grid as to_grid
    from muster.apps.simulation.grid import Grid as Grid
    from muster.apps.simulation.hazard import Arrivals as Arrivals
    from muster.apps.simulation.hazard import HazardCurves as HazardCurves
    from muster.apps.simulation.hazard import HazardDesign as HazardDesign
    from muster.apps.simulation.hazard import curves as curves
    from muster.apps.simulation.hazard import exceedance as exceedance
    from muster.apps.simulation.hazard import hazard_design as hazard_design
    from muster.apps.simulation.okada import Fault as Fault
    from muster.apps.simulation.okada import surface_displacement as surface_displacement
    from muster.apps.simulation.sampling import RunOrder as RunOrder
    from muster.apps.simulation.sampling import Sample as Sample
    from muster.apps.simulation.sampling import draw_order as draw_order
    from muster.apps.simulation.shallow_water import State as State
    from muster.apps.simulation.shallow_water import advance as advance
    from muster.apps.simulation.shallow_water import at_rest as at_rest
    from muster.apps.simulation.shallow_water import highest_surface as highest_surface
    from muster.apps.simulation.shallow_water import surface as surface
    from muster.apps.simulation.shallow_water import volume_m3 as volume_m3
    from muster.apps.simulation.sources import MagnitudeLaw as MagnitudeLaw
    from muster.apps.simulation.sources import Source as Source
    from muster.apps.simulation.sources import abe_heights as abe_heights
    from muster.apps.simulation.sources import cascadia_ensemble as cascadia_ensemble
    from muster.apps.simulation.sources import seafloor_displacement as seafloor_displacement

_HOME: Final = {
    "Arrivals": "hazard",
    "Bathymetry": "bathymetry",
    "Fault": "okada",
    "Grid": "grid",
    "HazardCurves": "hazard",
    "HazardDesign": "hazard",
    "MagnitudeLaw": "sources",
    "Projection": "bathymetry",
    "RunOrder": "sampling",
    "Sample": "sampling",
    "Source": "sources",
    "State": "shallow_water",
    "abe_heights": "sources",
    "advance": "shallow_water",
    "at_rest": "shallow_water",
    "block_mean": "bathymetry",
    "cascadia": "bathymetry",
    "cascadia_ensemble": "sources",
    "coastal_points": "bathymetry",
    "curves": "hazard",
    "draw_order": "sampling",
    "exceedance": "hazard",
    "hazard_design": "hazard",
    "highest_surface": "shallow_water",
    "seafloor_displacement": "sources",
    "surface": "shallow_water",
    "surface_displacement": "okada",
    "to_grid": "bathymetry",
    "volume_m3": "shallow_water",
}

__all__ = [
    "Arrivals",
    "Bathymetry",
    "Fault",
    "Grid",
    "HazardCurves",
    "HazardDesign",
    "MagnitudeLaw",
    "Projection",
    "RunOrder",
    "Sample",
    "Source",
    "State",
    "abe_heights",
    "advance",
    "at_rest",
    "block_mean",
    "cascadia",
    "cascadia_ensemble",
    "coastal_points",
    "curves",
    "draw_order",
    "exceedance",
    "hazard_design",
    "highest_surface",
    "seafloor_displacement",
    "surface",
    "surface_displacement",
    "to_grid",
    "volume_m3",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"muster.apps.simulation.{_HOME[name]}"), name)
    raise AttributeError(f"module 'muster.vision' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
