"""Displacements of the surface: the paper's own table, other programs, limits in closed form, and conservation."""

from __future__ import annotations

from math import cos, pi, radians, sin

import numpy as np
import pytest

from muster.apps.simulation.okada import Fault, rectangle_displacement, surface_displacement
from muster.errors import RefusedInput

MODES = ("strike_slip", "dip_slip", "opening")

# Okada (1985), table 2, cases 2 to 4: x, y, depth, dip; then u_x, u_y, u_z for strike-slip, dip-slip and opening of 1.
TABLE_2 = [
    ((2, 3, 4, 70), "strike_slip", (-8.689e-3, -4.298e-3, -2.747e-3)),
    ((2, 3, 4, 70), "dip_slip", (-4.682e-3, -3.527e-2, -3.564e-2)),
    ((2, 3, 4, 70), "opening", (-2.660e-4, 1.056e-2, 3.214e-3)),
    ((0, 0, 4, 90), "strike_slip", (0, 5.253e-3, 0)),
    ((0, 0, 4, 90), "dip_slip", (0, 0, 0)),
    ((0, 0, 4, 90), "opening", (1.223e-2, 0, -1.606e-2)),
    ((0, 0, 4, -90), "strike_slip", (0, -1.303e-3, 0)),
    ((0, 0, 4, -90), "dip_slip", (0, 0, 0)),
    ((0, 0, 4, -90), "opening", (3.507e-3, 0, -7.740e-3)),
]


@pytest.mark.parametrize(("where", "mode", "published"), TABLE_2)
def test_okadas_table_2_to_all_of_its_digits(where, mode, published):
    x, y, depth, dip = where
    found = rectangle_displacement(x, y, depth=depth, dip_deg=dip, length=3, width=2, **{mode: 1.0})
    for component, expected in zip(found, published, strict=True):
        if expected == 0:
            assert abs(component) < 1e-15
        else:
            assert f"{float(component):.3e}" == f"{expected:.3e}"


# The same case 2 from Okada's own Fortran, DC3D, as kept in the unit tests of Hdef (M. W. Herman) and opencoulomb.
DC3D = {
    "strike_slip": (-8.6891650043e-3, -4.2975821897e-3, -2.7474058276e-3),
    "dip_slip": (-4.6823487628e-3, -3.5267267968718e-2, -3.5638557673268e-2),
    "opening": (-2.6599600964428e-4, 1.0564074876984e-2, 3.2141931142208e-3),
}


@pytest.mark.parametrize("mode", MODES)
def test_the_fortran_of_okada_agrees_to_its_last_digits(mode):
    found = rectangle_displacement(2, 3, depth=4, dip_deg=70, length=3, width=2, **{mode: 1.0})
    np.testing.assert_allclose(found, DC3D[mode], rtol=2e-11)


# Point sources at depth 4 with dip 70 seen from (2, 3), per unit of area, by DC3D0 as kept in the unit tests of Hdef: case 1.
DC3D0 = {
    "strike_slip": (-9.4474186064630631e-4, -1.0229885427654646e-3, -7.4201246532591128e-4),
    "dip_slip": (-1.1723215364075840e-3, -2.0819985410726201e-3, -2.5315947108865925e-3),
}


def small_fault(x, y, depth, dip, size, **slip):
    """The displacement per area by a square of that size around a point at ``(0, 0, -depth)``."""
    half = size / 2
    across, down = half * cos(radians(dip)), half * sin(radians(dip))
    found = rectangle_displacement(
        np.asarray(x) + half,
        np.asarray(y) + across,
        depth=depth + down,
        dip_deg=dip,
        length=size,
        width=size,
        **slip,
    )
    return np.array(found) / size**2


@pytest.mark.parametrize("mode", list(DC3D0))
def test_a_small_fault_is_a_point_source(mode):
    coarse, fine = (
        small_fault(2.0, 3.0, 4.0, 70.0, size, **{mode: 1.0}) - DC3D0[mode] for size in (0.1, 0.05)
    )
    np.testing.assert_allclose(coarse, 4 * fine, rtol=2e-2)  # of second order in the size
    np.testing.assert_allclose((4 * fine - coarse) / 3, 0, atol=1e-9)


def point_source(x, y, d, dip, mode, medium=0.5):
    """Equations 8 to 10 of the paper, for a unit of area."""
    s, c = sin(radians(dip)), cos(radians(dip))
    r = np.sqrt(x**2 + y**2 + d**2)
    p, q = y * c + d * s, y * s - d * c
    i1 = medium * y * (1 / (r * (r + d) ** 2) - x**2 * (3 * r + d) / (r**3 * (r + d) ** 3))
    i2 = medium * x * (1 / (r * (r + d) ** 2) - y**2 * (3 * r + d) / (r**3 * (r + d) ** 3))
    i3 = medium * x / r**3 - i2
    i4 = -medium * x * y * (2 * r + d) / (r**3 * (r + d) ** 2)
    i5 = medium * (1 / (r * (r + d)) - x**2 * (2 * r + d) / (r**3 * (r + d) ** 2))
    place = np.array([x, y, d + 0 * x])
    if mode == "strike_slip":
        return -(3 * x * q / r**5 * place + np.array([i1, i2, i4]) * s) / (2 * pi)
    if mode == "dip_slip":
        return -(3 * p * q / r**5 * place - np.array([i3, i1, i5]) * s * c) / (2 * pi)
    return (3 * q**2 / r**5 * place - np.array([i3, i1, i5]) * s**2) / (2 * pi)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dip", [0.0, 12.0, 70.0, 90.0])
@pytest.mark.parametrize("poisson", [0.0, 0.25, 0.5])
def test_far_away_a_fault_is_a_point_source(mode, dip, poisson):
    bearing = np.linspace(0, 2 * pi, 24, endpoint=False) + 0.1
    x, y = 80 * np.cos(bearing), 80 * np.sin(bearing)
    expected = point_source(x, y, 5.0, dip, mode, medium=1 - 2 * poisson)
    found = small_fault(x, y, 5.0, dip, 0.8, **{mode: 1.0}, poisson=poisson)
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dip", [0.0, 30.0, 90.0])
def test_two_halves_add_up_to_the_whole(mode, dip):
    x, y = np.meshgrid(
        np.linspace(-30, 50, 41), np.linspace(-40, 40, 41)
    )  # with points in line with every edge
    slip = {mode: 1.5}
    whole = rectangle_displacement(x, y, depth=15, dip_deg=dip, length=20, width=10, **slip)
    left = rectangle_displacement(x, y, depth=15, dip_deg=dip, length=8, width=10, **slip)
    right = rectangle_displacement(x - 8, y, depth=15, dip_deg=dip, length=12, width=10, **slip)
    np.testing.assert_allclose(np.add(left, right), whole, atol=2e-13)
    lower = rectangle_displacement(x, y, depth=15, dip_deg=dip, length=20, width=4, **slip)
    across, up = 4 * cos(radians(dip)), 4 * sin(radians(dip))
    upper = rectangle_displacement(x, y - across, depth=15 - up, dip_deg=dip, length=20, width=6, **slip)
    np.testing.assert_allclose(np.add(lower, upper), whole, atol=2e-13)


def uplifted_volume(poisson, **fault):
    """The integral of the uplift over all of the surface, in polar coordinates about the fault."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    t, weights = (nodes + 1) / 2, weights / 2
    r, stretch = 20 * t / (1 - t), 20 / (1 - t) ** 2
    bearing = np.linspace(0, 2 * pi, 256, endpoint=False)
    x, y = r[:, None] * np.cos(bearing), r[:, None] * np.sin(bearing)
    middle = fault["width"] * cos(radians(fault["dip_deg"])) / 2
    up = rectangle_displacement(x + fault["length"] / 2, y + middle, poisson=poisson, **fault)[2]
    return float(np.sum(up.mean(axis=1) * 2 * pi * r * stretch * weights))


@pytest.mark.parametrize("poisson", [0.1, 0.25, 0.4])
@pytest.mark.parametrize("dip", [0.0, 12.0, 45.0, 90.0])
def test_the_uplifted_volume_is_what_reciprocity_gives(dip, poisson):
    """Below the middle of a wide disc under a pressure p the ground is under p vertically and (1 + 2 nu) p / 2 horizontally
    (Timoshenko and Goodier, Theory of Elasticity, on a load over a circle). So, by Betti, the volume that a dislocation with
    slip s and normal n lifts is its area times ``s_z n_z + (1 / 2 + nu) (s_x n_x + s_y n_y)``, whatever its depth."""
    sine, cosine, sideways = sin(radians(dip)), cos(radians(dip)), 0.5 + poisson
    fault = {"depth": 20.0, "dip_deg": dip, "length": 12.0, "width": 8.0}
    area = 12.0 * 8.0
    opened = uplifted_volume(poisson, **fault, opening=1.0)
    assert opened == pytest.approx(area * (cosine**2 + sideways * sine**2), abs=1e-6 * area)
    thrust = uplifted_volume(poisson, **fault, dip_slip=1.0)
    assert thrust == pytest.approx(area * sine * cosine * (1 - sideways), abs=1e-6 * area)
    assert uplifted_volume(poisson, **fault, strike_slip=1.0) == pytest.approx(0, abs=1e-6 * area)


def test_a_long_strike_slip_fault_is_a_screw_dislocation():
    """``u = (U / pi) (atan(y / D) - atan(y / d))`` for slip from d down to D: left-lateral, so the left side moves back."""
    y = np.linspace(-40, 40, 33)
    along, across, up = rectangle_displacement(
        np.full_like(y, 5e6), y, depth=15.0, dip_deg=90, length=1e7, width=12.0, strike_slip=2.0
    )
    np.testing.assert_allclose(along, 2 / pi * (np.arctan(y / 15) - np.arctan(y / 3)), atol=1e-9)
    np.testing.assert_allclose(across, 0, atol=1e-9)
    np.testing.assert_allclose(up, 0, atol=1e-9)


def test_a_long_thrust_is_an_edge_dislocation():
    """Freund and Barnett's plane-strain uplift of a fault that ends at depth and does not break the surface far away."""
    dip, top, bottom = radians(30.0), 5.0, 25.0
    y = np.linspace(-80, 80, 41) + 0.3

    def line(depth):
        # Uplift by slip on the half-plane from a point of the fault at that depth downwards; x is measured from that point,
        # positive down the dip (P. Segall, Earthquake and Volcano Deformation, equation 3.70, up positive for a thrust).
        ahead = -(y - (bottom - depth) / np.tan(dip))
        zeta = ahead / depth
        return (np.sin(dip) * np.arctan(zeta) + (np.cos(dip) + zeta * np.sin(dip)) / (1 + zeta**2)) / pi

    up = rectangle_displacement(
        np.full_like(y, 5e6),
        y,
        depth=bottom,
        dip_deg=30,
        length=1e7,
        width=(bottom - top) / sin(dip),
        dip_slip=1.0,
    )[2]
    np.testing.assert_allclose(up, line(top) - line(bottom), atol=1e-6)


@pytest.mark.parametrize(("mode", "component"), [("strike_slip", 0), ("dip_slip", 2)])
def test_across_the_line_where_a_fault_breaks_the_surface_the_ground_jumps_by_the_slip(mode, component):
    dip, width = 30.0, 10.0
    depth, trace = width * sin(radians(dip)), width * cos(radians(dip))
    behind, ahead = (
        rectangle_displacement(
            np.linspace(3, 17, 9),
            trace + side,
            depth=depth,
            dip_deg=dip,
            length=20,
            width=width,
            **{mode: 1.0},
        )[component]
        for side in (-1e-9, 1e-9)
    )
    # The upper side (behind the trace, over the fault) moves along the slip.
    expected = 1.0 if mode == "strike_slip" else sin(radians(dip))
    np.testing.assert_allclose(behind - ahead, expected, atol=1e-7)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_lost_at_the_singular_points(mode):
    """On the plane of the fault, in line with its ends, above its corners: the value is that of points beside them."""
    dip = 50.0
    sine, cosine = sin(radians(dip)), cos(radians(dip))
    fault = {"depth": 12.0, "dip_deg": dip, "length": 10.0, "width": 9.0, mode: 1.0}
    on_plane = 12.0 * cosine / sine  # q = 0
    above_lower, above_upper = -12.0 * sine / cosine, (9.0 - 12.0 * sine) / cosine  # p = 0, p = width
    for x in (0.0, 10.0, 4.0, -3.0):
        for y in (on_plane, above_lower, above_upper, 0.0):
            here = np.array(rectangle_displacement(x, y, **fault))
            beside = np.array(rectangle_displacement(x + 1e-6, y + 2e-6, **fault))
            assert np.isfinite(here).all()
            np.testing.assert_allclose(here, beside, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_steep_faults_go_over_into_vertical_ones(mode):
    x, y = np.meshgrid(np.linspace(-20, 30, 11), np.linspace(-20, 20, 12))
    fault = {"depth": 10.0, "length": 8.0, "width": 6.0, mode: 1.0}
    vertical = np.array(rectangle_displacement(x, y, dip_deg=90.0, **fault))
    for lean in (1e-2, 1e-3, 6e-4, 5e-4, 1e-5):  # either side of where the limit takes over
        leaning = np.array(rectangle_displacement(x, y, dip_deg=90.0 - lean, **fault))
        np.testing.assert_allclose(leaning, vertical, atol=0.6 * radians(lean) + 2e-6)


def test_a_surface_breaking_corner_is_finite():
    found = rectangle_displacement(
        [0.0, 20.0, 5.0],
        [0.0, 0.0, 0.0],
        depth=8.0,
        dip_deg=90,
        length=20,
        width=8,
        strike_slip=1.0,
        dip_slip=1,
        opening=1,
    )
    assert np.isfinite(found).all()


def fault(**changes):
    values = {
        "east_m": 1e3, "north_m": -2e3, "depth_m": 5e3, "strike_deg": 20.0, "dip_deg": 12.0, "rake_deg": 90.0,
        "length_m": 40e3, "width_m": 20e3, "slip_m": 3.0,
    }  # fmt: skip
    return Fault(**(values | changes))


def test_turning_the_fault_turns_the_field():
    """A fault that strikes elsewhere moves the ground as the first one does, seen on a map that is turned with it."""
    places = np.random.default_rng(3).uniform(-60e3, 60e3, (2, 50))
    for turn_deg in (37.0, 90.0, 215.0):
        c, s = cos(radians(turn_deg)), sin(radians(turn_deg))
        clockwise = np.array([[c, s], [-s, c]])
        base = np.array(surface_displacement(fault(east_m=0, north_m=0, rake_deg=70), *places))
        turned = np.array(
            surface_displacement(
                fault(east_m=0, north_m=0, rake_deg=70, strike_deg=20 + turn_deg), *(clockwise @ places)
            )
        )
        np.testing.assert_allclose(turned[:2], clockwise @ base[:2], atol=1e-12)
        np.testing.assert_allclose(turned[2], base[2], atol=1e-12)


def test_a_megathrust_that_strikes_north_dips_east_and_lifts_the_sea_floor_above_its_upper_edge():
    thrust = fault(east_m=0, north_m=0, strike_deg=0)
    east, north, up = surface_displacement(thrust, np.array([2e3, 30e3]), np.zeros(2))
    assert up[0] > 0.3 > 0 > up[1]  # uplift above the shallow edge, subsidence landward of the deep one
    assert (east < 0).all()  # the upper side moves west, towards the trench
    np.testing.assert_allclose(north, 0, atol=1e-12)  # symmetric about its middle


def test_the_field_of_a_thrust_mirrors_about_the_middle_of_the_fault():
    thrust = fault(east_m=0, north_m=0, strike_deg=0)
    east_m, north_m = np.random.default_rng(4).uniform(-60e3, 60e3, (2, 40))
    here, there = (
        surface_displacement(thrust, east_m, north_m),
        surface_displacement(thrust, east_m, -north_m),
    )
    np.testing.assert_allclose(here[0], there[0], atol=1e-12)
    np.testing.assert_allclose(here[1], np.negative(there[1]), atol=1e-12)
    np.testing.assert_allclose(here[2], there[2], atol=1e-12)


def test_a_centroid_is_half_a_width_down_the_dip():
    by_centroid = Fault.from_centroid(
        east_m=0,
        north_m=0,
        depth_m=10e3,
        strike_deg=90,
        dip_deg=30,
        rake_deg=90,
        length_m=30e3,
        width_m=20e3,
        slip_m=1,
    )
    assert by_centroid.depth_m == pytest.approx(10e3 - 10e3 * 0.5)
    # Striking east it dips south, so its upper edge is north of its middle.
    assert by_centroid.east_m == pytest.approx(0, abs=1e-9)
    assert by_centroid.north_m == pytest.approx(10e3 * cos(radians(30)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dip_deg": 91.0}, "dip_deg: found 91; expected 0 to 90"),
        ({"length_m": 0.0}, "length_m: found 0; expected more than 0"),
        ({"depth_m": -1.0}, "depth_m: found -1"),
        ({"slip_m": float("nan")}, "slip_m: found nan; expected a finite number"),
    ],
)
def test_faults_that_cannot_be_are_refused(changes, says):
    with pytest.raises(RefusedInput, match=says):
        fault(**changes)


def test_a_rectangle_in_the_air_is_refused():
    with pytest.raises(RefusedInput, match="stays in the ground"):
        rectangle_displacement(0, 0, depth=1.0, dip_deg=90, length=1, width=2, dip_slip=1)
    with pytest.raises(RefusedInput, match=r"poisson: found 0\.6"):
        rectangle_displacement(0, 0, depth=3.0, dip_deg=90, length=1, width=2, dip_slip=1, poisson=0.6)
