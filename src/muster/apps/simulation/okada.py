"""How the surface of an elastic half-space moves when a buried rectangle slips or opens.

The closed form of Okada for a finite rectangular fault in a homogeneous, isotropic half-space: displacements are sums of one
function of the four corners (Chinnery's notation). Differences of large numbers that the printed formulas contain are
rewritten here: ``R + eta`` and ``R + xi`` are computed as a quotient where they would cancel, and the terms in
``1 / (R + eta)`` are joined with those they nearly cancel against, so points above or in line with a fault lose no digits.

Source: Y. Okada, "Surface deformation due to shear and tensile faults in a half-space", BSSA 75(4), 1135-1154 (1985).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, isfinite, pi, radians, sin
from typing import Final

import numpy as np
import numpy.typing as npt

from muster.errors import RefusedInput

Array = npt.NDArray[np.float64]
Displacement = tuple[Array, Array, Array]

# A fault whose dip has a smaller cosine is taken as vertical: the general formulas are off by about eps / cos^2 and the limit
# by cos, which is as much near here.
_VERTICAL: Final = 1e-5
_ON_PLANE: Final = (
    1e-12  # a point is on the fault's plane when its distance is this share of what cancels in it
)


@dataclass(frozen=True)
class Fault:
    """A rectangle that slips, or opens, by the same amount everywhere.

    Arguments:
        east_m, north_m: the middle of its upper edge, seen from above.
        depth_m: of its upper edge, at least 0.
        strike_deg: the direction of its upper edge, clockwise from north, with the fault dipping to the right.
        dip_deg: from the horizontal, 0 to 90.
        rake_deg: how the upper side moves, in the plane, from the strike towards up: 0 is left-lateral, 90 a thrust.
        length_m, width_m: along its strike and down its dip.
        slip_m: along the rake.
        opening_m: across the plane.

    Raises:
        RefusedInput: a value is not finite, a size is not above 0, the dip is not in 0 to 90, or the edge is in the air.
    """

    east_m: float
    north_m: float
    depth_m: float
    strike_deg: float
    dip_deg: float
    rake_deg: float
    length_m: float
    width_m: float
    slip_m: float
    opening_m: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isfinite(value):
                raise RefusedInput(f"fault: {name}: found {value}; expected a finite number")
        if not 0 <= self.dip_deg <= 90:
            raise RefusedInput(f"fault: dip_deg: found {self.dip_deg:g}; expected 0 to 90")
        for name in ("length_m", "width_m"):
            if getattr(self, name) <= 0:
                raise RefusedInput(f"fault: {name}: found {getattr(self, name):g}; expected more than 0")
        if self.depth_m < 0:
            raise RefusedInput(
                f"fault: depth_m: found {self.depth_m:g}; the upper edge is at least 0 m below the surface"
            )

    @classmethod
    def from_centroid(
        cls,
        *,
        east_m: float,
        north_m: float,
        depth_m: float,
        strike_deg: float,
        dip_deg: float,
        rake_deg: float,
        length_m: float,
        width_m: float,
        slip_m: float,
        opening_m: float = 0.0,
    ) -> Fault:
        """The fault whose middle, rather than the middle of whose upper edge, is at a place and depth."""
        across_m, down_m = width_m / 2 * cos(radians(dip_deg)), width_m / 2 * sin(radians(dip_deg))
        strike = radians(strike_deg)
        return cls(
            # The dip points to the right of the strike: (cos, -sin) in (east, north).
            east_m=east_m - across_m * cos(strike),
            north_m=north_m + across_m * sin(strike),
            depth_m=depth_m - down_m,
            strike_deg=strike_deg,
            dip_deg=dip_deg,
            rake_deg=rake_deg,
            length_m=length_m,
            width_m=width_m,
            slip_m=slip_m,
            opening_m=opening_m,
        )

    @property
    def area_m2(self) -> float:
        """Of the rectangle."""
        return self.length_m * self.width_m


def surface_displacement(
    fault: Fault, east_m: npt.ArrayLike, north_m: npt.ArrayLike, *, poisson: float = 0.25
) -> Displacement:
    """How points of the surface move when a fault does.

    Arguments:
        fault: the fault.
        east_m, north_m: where the points are; float64, of shapes that broadcast together.
        poisson: the ratio of Poisson of the half-space, -1 to 0.5; 0.25 where both constants of Lamé are the same.

    Returns:
        East, north and up, m, float64, of the broadcast shape.

    Raises:
        RefusedInput: a ratio of Poisson that no medium has.
    """
    strike, dip, rake = radians(fault.strike_deg), radians(fault.dip_deg), radians(fault.rake_deg)
    east, north = np.asarray(east_m, float) - fault.east_m, np.asarray(north_m, float) - fault.north_m
    # Okada's axes: x along the strike from the end of the lower edge, y to the left of it, which is up the dip.
    x = east * sin(strike) + north * cos(strike) + fault.length_m / 2
    y = north * sin(strike) - east * cos(strike) + fault.width_m * cos(dip)
    along, across, up = rectangle_displacement(
        x,
        y,
        depth=fault.depth_m + fault.width_m * sin(dip),
        dip_deg=fault.dip_deg,
        length=fault.length_m,
        width=fault.width_m,
        strike_slip=fault.slip_m * cos(rake),
        dip_slip=fault.slip_m * sin(rake),
        opening=fault.opening_m,
        poisson=poisson,
    )
    return along * sin(strike) - across * cos(strike), along * cos(strike) + across * sin(strike), up


def rectangle_displacement(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    depth: float,
    dip_deg: float,
    length: float,
    width: float,
    strike_slip: float = 0.0,
    dip_slip: float = 0.0,
    opening: float = 0.0,
    poisson: float = 0.25,
) -> Displacement:
    """The same in the paper's own axes, with any unit of length.

    The fault's lower edge runs from ``(0, 0, -depth)`` to ``(length, 0, -depth)``, and the fault rises from it towards
    positive y by ``dip_deg``. A negative dip is the paper's notation for a fault that lies below that edge.

    Arguments:
        x, y: where the points of the surface are; float64, of shapes that broadcast together.
        depth: of the edge at y = 0.
        dip_deg: -90 to 90.
        length, width: of the fault.
        strike_slip, dip_slip, opening: U1 (left-lateral), U2 (thrust) and U3 of the paper.
        poisson: the ratio of Poisson of the half-space.

    Returns:
        Along x, along y and up, in the unit of the slip, float64, of the broadcast shape. Where the solution itself is
        infinite or has two values (the edge of a fault that breaks the surface) it is finite.

    Raises:
        RefusedInput: a part of the fault is in the air, or a ratio of Poisson that no medium has.
    """
    sine, cosine = sin(radians(dip_deg)), cos(radians(dip_deg))
    if abs(cosine) < _VERTICAL:
        sine, cosine = (1.0 if sine > 0 else -1.0), 0.0
    if min(depth, depth - width * sine) < -1e-9 * width:
        raise RefusedInput(
            f"fault: a width of {width:g} rises {width * sine:g} from a depth of {depth:g}; "
            "expected a fault that stays in the ground"
        )
    if not -1 < poisson <= 0.5:
        raise RefusedInput(f"poisson: found {poisson:g}; expected more than -1 and at most 0.5")
    medium = 1 - 2 * poisson  # mu / (lambda + mu)
    x, y = np.broadcast_arrays(np.asarray(x, float), np.asarray(y, float))
    p = y * cosine + depth * sine
    q = y * sine - depth * cosine
    q = np.where(np.abs(q) <= _ON_PLANE * (np.abs(y * sine) + abs(depth * cosine)), 0.0, q)
    slips = (strike_slip, dip_slip, opening)
    total = np.zeros((3, *x.shape))
    for xi, eta, sign in ((x, p, 1), (x, p - width, -1), (x - length, p, -1), (x - length, p - width, 1)):
        total += sign * _corner(xi, eta, q, sine, cosine, medium, slips)
    total /= 2 * pi
    return total[0], total[1], total[2]


def _over(numerator: Array | float, denominator: Array) -> Array:
    """A quotient that is 0 where its denominator is: what the paper asks for in all of its singular cases."""
    quotient: Array = np.divide(
        numerator, denominator, out=np.zeros_like(denominator), where=denominator != 0
    )
    return quotient


def _sum(r: Array, leg: Array, other_legs_squared: Array) -> Array:
    """``r + leg``, where r is the length of a vector and ``leg`` one of its legs, without cancelling."""
    return np.where(leg < 0, _over(other_legs_squared, r - leg), r + leg)


def _log(values: Array, instead: Array) -> Array:
    """A logarithm, or that of something else where it has none."""
    chosen = np.where(values > 0, values, instead)
    return np.log(chosen, out=np.zeros_like(chosen), where=chosen > 0)


def _corner(
    xi: Array,
    eta: Array,
    q: Array,
    sine: float,
    cosine: float,
    medium: float,
    slips: tuple[float, float, float],
) -> Array:
    """What one corner adds to 2 pi times the displacements, of shape ``(3, ...)``: equations 25 to 29."""
    r = np.sqrt(xi**2 + eta**2 + q**2)
    y, d = eta * cosine + q * sine, eta * sine - q * cosine
    r_eta, r_xi, r_d = _sum(r, eta, xi**2 + q**2), _sum(r, xi, eta**2 + q**2), r + np.maximum(d, 0.0)
    log_eta = _log(r_eta, _over(1.0, r - eta))
    theta = np.arctan(_over(xi * eta, q * r))
    q_r, q_eta, q_xi = _over(q, r), _over(q, r * r_eta), _over(q, r * r_xi)

    # I1 to I5, which are what the surface being free adds.
    if cosine:
        big = np.sqrt(xi**2 + q**2)
        angle = np.arctan(_over(eta * (big + q * cosine) + big * (r + big) * sine, xi * (r + big) * cosine))
        i5 = medium * 2 / cosine * angle
        i4 = medium / cosine * (_log(r_d, np.ones_like(r_d)) - sine * log_eta)
        i3 = medium * (_over(y, r_d) / cosine - log_eta) + sine / cosine * i4
        i1 = -medium / cosine * _over(xi, r_d) - sine / cosine * i5
    else:
        i5 = -medium * sine * _over(xi, r_d)
        i4 = -medium * _over(q, r_d)
        i3 = medium / 2 * (_over(eta, r_d) + _over(y * q, r_d**2) - log_eta)
        i1 = -medium / 2 * _over(xi * q, r_d**2)
    i2 = -medium * log_eta - i3

    moved = np.zeros((3, *r.shape))
    strike_slip, dip_slip, opening = slips
    if strike_slip:
        # In y and z, q cos / (R + eta) + y q / (R (R + eta)) is written as q cos / R + q^2 sin / (R (R + eta)), and alike.
        moved[0] -= strike_slip * (xi * q_eta + theta + sine * i1)
        moved[1] -= strike_slip * (cosine * q_r + sine * q * q_eta + sine * i2)
        moved[2] -= strike_slip * (sine * q_r - cosine * q * q_eta + sine * i4)
    if dip_slip:
        moved[0] -= dip_slip * (q_r - sine * cosine * i3)
        moved[1] -= dip_slip * (y * q_xi + cosine * theta - sine * cosine * i1)
        moved[2] -= dip_slip * (d * q_xi + sine * theta - sine * cosine * i5)
    if opening:
        moved[0] += opening * (q * q_eta - sine**2 * i3)
        moved[1] -= opening * (d * q_xi + sine * (xi * q_eta - theta) + sine**2 * i1)
        moved[2] += opening * (y * q_xi + cosine * (xi * q_eta - theta) - sine**2 * i5)
    return moved
