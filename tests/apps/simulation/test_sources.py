"""The ensemble of earthquakes: published geometry, published scaling, exact moments, probabilities that sum to one."""

from __future__ import annotations

from math import cos, e, log10, radians, sqrt

import numpy as np
import pytest

from muster.apps.simulation.okada import surface_displacement
from muster.apps.simulation.sources import (
    EARTH_RADIUS_M,
    MARGIN_LENGTH_M,
    MARGIN_WIDTH_M,
    MagnitudeLaw,
    abe_heights,
    cascadia_ensemble,
    distance_m,
    local_metres,
    moment_n_m,
    rupture_faults,
    rupture_length_m,
    rupture_width_m,
    seafloor_displacement,
)
from muster.errors import RefusedInput

VICTORIA = (-124.0, 49.0)


def b_value(magnitudes, least, weights=None):
    """The slope of magnitudes above a least one, by maximum likelihood: ``log10(e) / (mean - least)`` (K. Aki, Bulletin of
    the Earthquake Research Institute 43, 237-239, 1965)."""
    return log10(e) / (float(np.average(magnitudes, weights=weights)) - least)


@pytest.fixture(scope="module")
def ensemble():
    return cascadia_ensemble(200, seed=5, origin=VICTORIA)


def test_hanks_and_kanamori_give_the_moment_of_bird_and_kagan():
    """Mw 5.66 is 3.47e17 N m (Bird et al. 2009, BSSA 99, 3097-3113); Mw 9.5 (Chile 1960) is 2e23 N m."""
    assert float(moment_n_m(5.66)) == pytest.approx(3.47e17, rel=2e-3)
    assert float(moment_n_m(9.5)) == pytest.approx(2.0e23, rel=2e-2)


def test_sizes_are_those_that_strasser_and_others_publish():
    """Mw 9.0: 614 km by 189 km, as in the tests of rptha (Geoscience Australia); Mw 8.0: 10^2.203 and 10^1.926 km."""
    assert round(float(rupture_length_m(9.0)) / 1e3) == 614
    assert round(float(rupture_width_m(9.0)) / 1e3) == 189
    assert float(rupture_length_m(8.0)) == pytest.approx(159.588e3, rel=1e-5)
    assert float(rupture_width_m(8.0)) == pytest.approx(84.333e3, rel=1e-5)
    assert float(rupture_length_m(8.0, 1) / rupture_length_m(8.0)) == pytest.approx(10**0.180)
    assert float(rupture_width_m(8.0, -1) / rupture_width_m(8.0)) == pytest.approx(10**-0.173)


def test_moments_are_those_of_the_magnitudes(ensemble):
    for source in ensemble:
        assert source.moment_n_m == pytest.approx(float(moment_n_m(source.magnitude)), rel=1e-12)
        areas = sum(fault.area_m2 for fault in source.faults)
        assert areas == pytest.approx(source.length_m * source.width_m, rel=1e-12)


def test_weights_are_the_probabilities_of_the_law(ensemble):
    law = MagnitudeLaw()
    weights, magnitudes = (
        np.array([getattr(source, name) for source in ensemble]) for name in ("weight", "magnitude")
    )
    assert weights.sum() == pytest.approx(1, abs=1e-14)
    assert (weights > 0).all()
    for level in (8.0, 8.5, 9.0):
        slack = weights[np.searchsorted(magnitudes, level) - 1]  # of the one slice that the level cuts
        assert weights[magnitudes > level].sum() == pytest.approx(float(law.above(level)), abs=2 * slack)


def test_drawn_magnitudes_have_the_slope_of_the_law_by_akis_estimator():
    """Far below the corner the law is Gutenberg and Richter's, and Aki's estimator has a standard error of b / sqrt(n)."""
    for b in (0.8, 1.0, 1.2):
        law = MagnitudeLaw(b=b, least=4.0, corner=9.5, greatest=9.6)
        found = b_value(law.draw(10_000, np.random.default_rng(11)), 4.0)
        assert found == pytest.approx(b, abs=3 * b / sqrt(10_000))


def test_an_ensemble_that_is_weighted_has_that_slope_too():
    law = MagnitudeLaw(b=0.9, least=5.0, corner=9.5, greatest=9.6)
    members = cascadia_ensemble(400, seed=2, origin=VICTORIA, law=law)
    found = b_value([m.magnitude for m in members], 5.0, [m.weight for m in members])
    assert found == pytest.approx(0.9, rel=5e-3)


def test_the_law_tapers_at_its_corner():
    """The moments of the law are those of the tapered Pareto law: by quadrature of its survival function."""
    law = MagnitudeLaw(b=1.0, least=7.5, corner=8.5, greatest=9.6)
    drawn = moment_n_m(law.draw(20_000, np.random.default_rng(3)))
    magnitudes = np.linspace(7.5, 9.6, 20_001)
    mean = moment_n_m(7.5) + np.trapezoid(law.above(magnitudes), moment_n_m(magnitudes))
    assert drawn.mean() == pytest.approx(
        float(mean), rel=4 * float(drawn.std() / drawn.mean()) / sqrt(20_000)
    )
    ratio = float(law.above(8.5) / law.above(8.0))
    uncut = 10 ** (-1.0 * 0.5) * np.exp((moment_n_m(8.0) - moment_n_m(8.5)) / moment_n_m(8.5))
    assert ratio == pytest.approx(float(uncut), rel=2e-2)
    np.testing.assert_allclose(law.above(law.magnitude([0.9, 0.5, 0.01])), [0.9, 0.5, 0.01], rtol=1e-12)


def test_the_same_seed_gives_the_same_ensemble():
    first, again, other = (cascadia_ensemble(30, seed=seed, origin=VICTORIA) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_ruptures_stay_on_the_margin_and_in_its_depths(ensemble):
    for source in ensemble:
        assert source.along_m >= 0
        assert source.along_m + source.length_m <= MARGIN_LENGTH_M * (1 + 1e-9)
        assert source.down_m >= 0
        assert source.down_m + source.width_m <= MARGIN_WIDTH_M * (1 + 1e-9)
        assert all(5e3 - 1 <= fault.depth_m <= 22.4e3 for fault in source.faults)
    assert {fault.dip_deg for source in ensemble for fault in source.faults} == {9.0, 11.0}


# NOAA's own lower strip (info_sz.dat, October 2020): the middle of the lower edge of acsza56 ... acsza65, degrees.
LOWER_STRIP = [
    (234.0588, 49.17016), (234.9041, 48.25964), (235.3021, 47.38119), (235.6432, 46.50817), (235.864, 45.5429),
    (235.9106, 44.6227), (235.9229, 43.72451), (236.022, 42.90196), (235.9638, 41.98181), (236.2643, 41.11411),
]  # fmt: skip


def test_the_lower_strip_lies_where_noaa_has_it():
    for column, (longitude, latitude) in enumerate(LOWER_STRIP):
        origin = (longitude, latitude)  # so that metres are true there
        (strip,) = rupture_faults(1e5 * column, 5e4, 1e5, 5e4, 1.0, origin=origin)
        strike, across = radians(strip.strike_deg), 5e4 * cos(radians(11))
        lower_edge = strip.east_m + across * cos(strike), strip.north_m - across * np.sin(strike)
        assert np.hypot(*lower_edge) < 1500  # m; NOAA's strips are 50 km wide and given to 0.1 km
        assert strip.depth_m == pytest.approx(12.82e3, abs=5)  # theirs: 12.82 km


def test_the_pieces_of_a_rupture_meet_where_the_trench_bends_little():
    """Between two columns of nearly one strike (359 degrees) the cut edges lie within a kilometre or two of each other."""
    north, south = rupture_faults(5.5e5, 0.0, 1e5, 5e4, 1.0, origin=(-124.7, 44.2))
    assert north.length_m == south.length_m == pytest.approx(5e4)
    assert np.hypot(north.east_m - south.east_m, north.north_m - south.north_m) == pytest.approx(
        5e4, abs=2500
    )


def test_metres_are_those_of_the_sphere():
    degree = radians(1) * EARTH_RADIUS_M
    east, north = local_metres([235.0, -125.0 + 720], [49.0, 50.0], (-124.0, 49.0))
    np.testing.assert_allclose(east, -degree * cos(radians(49)), rtol=1e-9)
    np.testing.assert_allclose(north, [0, degree], rtol=1e-9)


def test_the_sea_floor_moves_by_the_sum_of_the_faults(ensemble):
    great = ensemble[-1]
    assert len(great.faults) > 4
    east_m, north_m = np.linspace(-2e5, 2e5, 7)[:, None], np.linspace(-1e5, 1e5, 5)
    total = sum(np.array(surface_displacement(fault, east_m, north_m)) for fault in great.faults)
    np.testing.assert_allclose(seafloor_displacement(great, east_m, north_m), total, atol=1e-12)
    assert np.ptp(total[2]) > 1.0  # metres, by an earthquake of magnitude 9.3


def test_distance_is_that_to_the_nearest_of_many_points_of_the_rupture(ensemble):
    random = np.random.default_rng(9)
    east_m, north_m = random.uniform(-4e5, 4e5, (2, 30))
    for source in (ensemble[20], ensemble[120], ensemble[-1]):
        grids = []
        for fault in source.faults:
            along, down = np.meshgrid(
                np.linspace(-0.5, 0.5, 81) * fault.length_m, np.linspace(0, 1, 41) * fault.width_m
            )
            strike, down = radians(fault.strike_deg), down * cos(radians(fault.dip_deg))
            grids.append(
                [
                    (fault.east_m + along * np.sin(strike) + down * np.cos(strike)).ravel(),
                    (fault.north_m + along * np.cos(strike) - down * np.sin(strike)).ravel(),
                ]
            )
        points = np.concatenate(grids, axis=1)
        brute = np.hypot(points[0] - east_m[:, None], points[1] - north_m[:, None]).min(axis=1)
        np.testing.assert_allclose(distance_m(source, east_m, north_m), brute, atol=1500)


def test_stand_in_heights_grow_with_magnitude_and_fall_with_distance(ensemble):
    heights = abe_heights(ensemble, np.array([0.0, 0.0]), np.array([0.0, -5e5]))
    assert heights.shape == (200, 2)
    near = 10 ** (0.5 * ensemble[-1].magnitude - 3.30)
    assert heights[-1].max() <= near * (1 + 1e-12)
    assert np.log(heights[150:]).mean() > np.log(heights[:50]).mean() + 1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: cascadia_ensemble(0, seed=1, origin=VICTORIA), "members: found 0"),
        (lambda: cascadia_ensemble(3, seed=1, origin=VICTORIA, rigidity_pa=0), "rigidity_pa: found 0"),
        (lambda: MagnitudeLaw(b=0), "b: found 0"),
        (lambda: MagnitudeLaw(least=9, greatest=8), "least 9 and greatest 8"),
        (
            lambda: rupture_faults(9.5e5, 0, 1e5, 5e4, 1, origin=VICTORIA),
            "the margin is 1000000 m by 100000 m",
        ),
    ],
)
def test_what_cannot_be_is_refused(call, says):
    with pytest.raises(RefusedInput, match=says):
        call()
