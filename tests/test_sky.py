"""The half pixel, the WCS and spin 2, against independent numbers."""

import numpy as np
import pytest
from astropy import units as u
from astropy.wcs import WCS

from deepdisc.sky import PixelGrid, centers_to_edges, edges_to_centers, rotate_shear


def tan_wcs(crpix=(51.0, 41.0), rotation_deg=0.0, mirrored=False) -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.0, 2.0]
    wcs.wcs.crpix = crpix
    angle = np.radians(rotation_deg)
    wcs.wcs.cd = 0.2 / 3600 * np.array([[-np.cos(angle), np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if mirrored:
        wcs.wcs.cd[:, 0] *= -1
    return wcs


def gnomonic(x, y):
    """Tangent-plane formula written out (Calabretta & Greisen 2002), for CRPIX (51, 41), no rotation."""
    xi, eta = np.radians(-0.2 / 3600 * (x - 50)), np.radians(0.2 / 3600 * (y - 40))
    ra0, dec0 = np.radians(150.0), np.radians(2.0)
    ra = ra0 + np.arctan2(xi, np.cos(dec0) - eta * np.sin(dec0))
    dec = np.arctan2((np.sin(dec0) + eta * np.cos(dec0)) * np.cos(ra - ra0), np.cos(dec0) - eta * np.sin(dec0))
    return np.degrees(ra), np.degrees(dec)


def test_sky_positions_equal_the_tangent_plane_formula():
    grid = PixelGrid.from_wcs(tan_wcs(), (80, 100))
    ra, dec = grid.to_sky([50.0, 0.0, 99.0], [40.0, 79.0, 10.0])
    expected = gnomonic(np.array([50.0, 0.0, 99.0]), np.array([40.0, 79.0, 10.0]))
    assert ra == pytest.approx(expected[0], abs=1e-10) and dec == pytest.approx(expected[1], abs=1e-10)
    assert grid.pixel_scale_arcsec == pytest.approx(0.2, rel=1e-9)


def test_a_box_around_one_pixel_is_centred_on_that_pixel_of_the_wcs():
    # Pixel 50 covers [50, 51): its box centre is 50.5 in edge coordinates and the WCS must see 50.
    assert edges_to_centers(50.5) == 50.0 and centers_to_edges(50.0) == 50.5
    ra, dec = PixelGrid.from_wcs(tan_wcs(), (80, 100)).to_sky(edges_to_centers(50.5), edges_to_centers(40.5))
    assert (ra[0], dec[0]) == pytest.approx((150.0, 2.0), abs=1e-10)


def test_pixel_to_sky_and_back():
    grid = PixelGrid.from_wcs(tan_wcs(rotation_deg=33), (80, 100))
    x, y = np.array([3.3, 97.1]), np.array([70.2, 0.4])
    back = grid.to_pixel(*grid.to_sky(x, y))
    assert back[0] == pytest.approx(x, abs=1e-6) and back[1] == pytest.approx(y, abs=1e-6)


def test_cutout_keeps_sky_positions():
    grid = PixelGrid.from_wcs(tan_wcs(), (80, 100))
    part = grid.cutout(20, 30, (10, 12))
    assert np.array(part.to_sky(5, 7)) == pytest.approx(np.array(grid.to_sky(35, 27)), abs=1e-11)


def test_grids_that_differ_by_a_tenth_of_a_pixel_are_different():
    grid = PixelGrid.from_wcs(tan_wcs(), (80, 100))
    assert grid.same_grid(PixelGrid.from_wcs(tan_wcs(crpix=(51.01, 41.0)), (80, 100)))
    assert not grid.same_grid(PixelGrid.from_wcs(tan_wcs(crpix=(51.1, 41.0)), (80, 100)))
    assert grid.offset_pix(PixelGrid.from_wcs(tan_wcs(crpix=(51.1, 41.0)), (80, 100))) == pytest.approx(0.1, abs=1e-3)
    assert not grid.same_grid(PixelGrid.from_wcs(tan_wcs(), (80, 101)))


def test_grids_on_opposite_sides_of_the_sky_are_infinitely_far_apart():
    here, there = (tan_wcs(), tan_wcs())
    there.wcs.crval = [330.0, -2.0]
    grid, other = (PixelGrid.from_wcs(wcs, (80, 100)) for wcs in (here, there))
    assert grid.offset_pix(other) == np.inf and not grid.same_grid(other)


def test_an_all_sky_map_whose_corners_are_off_the_sky_is_on_its_own_grid():
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---AIT", "DEC--AIT"], [0.0, 0.0], [180.5, 90.5]
    wcs.wcs.cdelt = [-1.0, 1.0]
    grid = PixelGrid.from_wcs(wcs, (180, 360))
    assert np.isnan(grid.to_sky(0, 0)[0]).all()
    assert grid.offset_pix(grid) == pytest.approx(0, abs=1e-6)


def test_without_wcs_sky_positions_are_nan():
    ra, dec = PixelGrid((10, 10), 0.3).to_sky([1.0, 2.0], [3.0, 4.0])
    assert np.isnan(ra).all() and np.isnan(dec).all()


def test_shear_turns_twice_as_fast_as_the_picture():
    assert rotate_shear(0.1, 0.02, np.pi / 2) == pytest.approx((-0.1, -0.02))
    assert rotate_shear(0.1, 0.02, np.pi / 4) == pytest.approx((-0.02, 0.1))
    # An ellipse's second moments, rotated as a matrix, give the same components.
    angle, g1, g2 = 0.3, 0.12, -0.05
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moments = turn @ np.array([[1 + g1, g2], [g2, 1 - g1]]) @ turn.T
    assert rotate_shear(g1, g2, angle) == pytest.approx(((moments[0, 0] - moments[1, 1]) / 2, moments[0, 1]))


# A step along +x of `tan_wcs` goes (East, North) = (-cos, sin) of its rotation, mirrored (cos, -sin): to the position
# angles -90, -60, 0 degrees, mirrored 90, 120, 180. Shear has twice these angles.
ALONG_X = [
    (0.0, False, (-0.1, 0.0)),
    (30.0, False, (-0.05, -0.05 * np.sqrt(3))),
    (90.0, False, (0.1, 0.0)),
    (0.0, True, (-0.1, 0.0)),
    (30.0, True, (-0.05, -0.05 * np.sqrt(3))),
    (90.0, True, (0.1, 0.0)),
]


@pytest.mark.parametrize(("rotation", "mirrored", "expected"), ALONG_X)
def test_a_shear_along_x_points_where_the_wcs_says(rotation, mirrored, expected):
    grid = PixelGrid.from_wcs(tan_wcs(rotation_deg=rotation, mirrored=mirrored), (80, 100))
    assert np.ravel(grid.shear_to_sky(50.0, 40.0, 0.1, 0.0)) == pytest.approx(expected, abs=1e-7)
    assert np.ravel(grid.shear_to_pixel(50.0, 40.0, *expected)) == pytest.approx((0.1, 0.0), abs=1e-7)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("rotation", [0.0, 30.0, 90.0, 200.0])
def test_shear_on_the_sky_is_the_position_angle_of_neighbours(rotation, mirrored):
    """A double star along a position angle, placed by astropy's spherical offset, is stretched that way."""
    from astropy.coordinates import SkyCoord

    wcs = tan_wcs(rotation_deg=rotation, mirrored=mirrored)
    grid, angle = PixelGrid.from_wcs(wcs, (80, 100)), np.radians(25.0)
    here = SkyCoord(*grid.to_sky(70.0, 20.0), unit="deg")
    there = here.directional_offset_by(angle * u.rad, 1 * u.arcsec)
    x, y = grid.to_pixel(there.ra.deg, there.dec.deg)
    on_picture = np.arctan2(y - 20.0, x - 70.0)
    g1, g2 = grid.shear_to_sky(70.0, 20.0, 0.3 * np.cos(2 * on_picture), 0.3 * np.sin(2 * on_picture))
    assert (g1[0], g2[0]) == pytest.approx((0.3 * np.cos(2 * angle), 0.3 * np.sin(2 * angle)), abs=1e-5)


@pytest.mark.parametrize(("rotation", "mirrored"), [(0.0, False), (30.0, False), (30.0, True)])
def test_moments_of_a_picture_that_galsim_drew_through_the_wcs(rotation, mirrored):
    galsim = pytest.importorskip("galsim", reason='needs the extra "sim"')
    wcs = tan_wcs(rotation_deg=rotation, mirrored=mirrored)
    grid = PixelGrid.from_wcs(wcs, (80, 100))
    image = galsim.Image(80, 80, wcs=galsim.AstropyWCS(wcs=wcs).local(galsim.PositionD(51, 41)))
    # GalSim's sky plane has u to the West and v to the North, so that its angles are position angles plus 90 degrees.
    galsim.Gaussian(sigma=1.5).shear(g1=-0.1, g2=-0.05).drawImage(image, method="no_pixel")
    shape = image.FindAdaptiveMom(use_sky_coords=False).observed_shape
    g1, g2 = grid.shear_to_sky(50.0, 40.0, shape.g1, shape.g2)
    assert (g1[0], g2[0]) == pytest.approx((0.1, 0.05), abs=2e-4)


def test_without_wcs_the_sky_components_of_shear_are_nan():
    assert np.isnan(PixelGrid((10, 10), 0.3).shear_to_sky([1.0], [2.0], [0.1], [0.1])).all()
