"""Shear, convergence and magnification, against closed forms and against ellipses measured on noiseless pictures."""

import dataclasses

import galsim
import numpy as np
import pandas as pd
import pytest
from astropy.cosmology import Planck18
from astropy.io import fits
from astropy.wcs import WCS
from scipy.ndimage import map_coordinates

from deepdisc.errors import InputError
from deepdisc.simulate import Lensing, Sky, simulate
from deepdisc.simulate.conditions import draw_conditions
from deepdisc.simulate.instruments import Instrument
from deepdisc.simulate.lensing import (
    draw_convergence,
    lens_objects,
    lensing_strength,
    magnification,
    random_field,
    shear_of,
    turn_for_ring,
)
from deepdisc.simulate.psfs import variation_terms
from deepdisc.simulate.scene import build_scene
from deepdisc.sky import PixelGrid


def rng(seed=0):
    return np.random.default_rng(seed)


# kappa -> gamma ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("waves_x", "waves_y"), [(3, 0), (0, 5), (4, 4), (7, -2)])
def test_the_shear_of_one_wave_has_twice_the_waves_angle(waves_x, waves_y):
    y, x = np.indices((64, 64)) / 64
    wave = np.cos(2 * np.pi * (waves_x * x + waves_y * y) + 0.3)
    angle = np.arctan2(waves_y, waves_x)
    np.testing.assert_allclose(shear_of(wave), wave * np.exp(2j * angle), atol=1e-12)


def test_the_shear_of_a_round_mass_is_tangential_and_follows_the_mean_convergence_inside():
    """Gaussian kappa = A exp(-r^2 / 2 s^2): mean inside r is 2 A s^2 / r^2 (1 - exp(-r^2 / 2 s^2))."""
    count, s = 1024, 12.0
    y, x = np.indices((count, count)) - count / 2
    square = x**2 + y**2
    kappa = 0.1 * np.exp(-square / 2 / s**2)
    gamma = shear_of(kappa)
    ring = (square > 5**2) & (square < 60**2)
    inside = 0.2 * s**2 / square[ring] * (1 - np.exp(-square[ring] / 2 / s**2))
    turned = gamma[ring] * np.exp(-2j * np.arctan2(y, x)[ring])
    np.testing.assert_allclose(-turned.real, inside - kappa[ring], atol=3e-4)  # the periodic box's own mean
    np.testing.assert_allclose(turned.imag, 0, atol=3e-4)


def test_the_random_field_has_no_b_mode():
    """Second differences on the grid: laplace(kappa) is the E mode of the shear, and its B mode vanishes."""
    kappa = random_field(Lensing(kappa_rms=0.03, smoothing_arcsec=10.0), 128, 1.0, rng())
    gamma = shear_of(kappa)

    def second(values, *axes):
        for axis in axes:
            values = (np.roll(values, -1, axis) - np.roll(values, 1, axis)) / 2
        return values

    e_mode = second(gamma.real, 1, 1) - second(gamma.real, 0, 0) + 2 * second(gamma.imag, 0, 1)
    b_mode = second(gamma.imag, 1, 1) - second(gamma.imag, 0, 0) - 2 * second(gamma.real, 0, 1)
    laplace = second(kappa, 0, 0) + second(kappa, 1, 1)
    np.testing.assert_allclose(e_mode, laplace, atol=0.02 * laplace.std())
    assert b_mode.std() < 0.02 * e_mode.std()


@pytest.mark.parametrize("distribution", ["gaussian", "lognormal"])
def test_the_random_field_has_the_stated_scatter_and_power(distribution):
    lensing = Lensing(kappa_rms=0.04, distribution=distribution, kappa_floor=0.06, slope=-1.5, smoothing_arcsec=4.0)
    fields = [random_field(lensing, 128, 2.0, rng(seed)) for seed in range(60)]
    assert np.sqrt(np.mean(np.square(fields))) == pytest.approx(0.04, rel=0.03)
    spectrum = np.mean([abs(np.fft.fft2(field)) ** 2 for field in fields], axis=0)
    # Along x, at 2, 4 and 8 waves in the box of 256 arcsec: l^-1.5 times the Gaussian's exp(-(l s)^2).
    waves = np.array([2, 4, 8])
    frequency = 2 * np.pi * waves / 256
    expected = frequency**-1.5 * np.exp(-((4 * frequency) ** 2))
    measured = (spectrum[0, waves] + spectrum[waves, 0]) / 2
    np.testing.assert_allclose(measured / measured[0], expected / expected[0], rtol=0.4)
    skewness = np.mean(np.power(fields, 3)) / 0.04**3
    # A lognormal of variance ratio w = exp(s^2) = 1 + (0.04 / 0.06)^2 has the skewness (w + 2) sqrt(w - 1).
    assert skewness == pytest.approx({"gaussian": 0, "lognormal": (3 + 4 / 9) * 2 / 3}[distribution], abs=0.25)
    if distribution == "lognormal":
        assert np.min(fields) > -0.06


def test_between_its_cells_the_field_is_its_band_limited_self(conditions):
    lensing = Lensing(kappa_rms=0.03, smoothing_arcsec=5.0)
    field = draw_convergence(lensing, conditions.grid, rng())
    count = len(field.kappa)
    modes = np.fft.fft2(field.kappa) / count**2
    x, y = 33.3, 71.8
    phase = [np.fft.fftfreq(count) * 2j * np.pi * (at - start) / field.cell_pix for at, start in
             zip((x, y), field.origin, strict=True)]  # fmt: skip
    exact = (modes * np.exp(phase[1])[:, None] * np.exp(phase[0])).sum().real
    assert field.at(np.array([x]), np.array([y]))[0][0] == pytest.approx(exact, abs=0.03 * 0.01)


# objects ----------------------------------------------------------------------------------------------------------


def test_magnification_is_the_inverse_of_the_distortion_matrix():
    kappa, gamma1, gamma2 = 0.1, 0.05, -0.08
    matrix = np.array([[1 - kappa - gamma1, -gamma2], [-gamma2, 1 - kappa + gamma1]])
    mu = magnification(gamma1 / (1 - kappa), gamma2 / (1 - kappa), kappa)
    assert mu == pytest.approx(1 / np.linalg.det(matrix), rel=1e-12)


def test_galaxies_are_lensed_and_magnified_and_stars_are_not(conditions, make_objects):
    objects = make_objects({"x": 40.0, "y": 48.0}, {"x": 20.0, "y": 20.0, "class_id": 1, "redshift": np.nan})
    lensed, field = lens_objects(Lensing(g1=(0.03, 0.03), kappa=(0.1, 0.1)), conditions, objects, rng())
    assert field is None and lensed.kappa.tolist() == [0.1, 0.0]
    assert lensed.g1.tolist() == pytest.approx([0.03, 0.0], abs=1e-15)
    mu = 1 / (0.9**2 * (1 - 0.03**2))
    assert lensed.flux_r.tolist() == pytest.approx([20_000 * mu, 20_000])
    assert lensed.mag_r[0] == pytest.approx(31.4 - 2.5 * np.log10(20_000 * mu))
    assert objects.flux_r[0] == 20_000, "the objects given were changed"


def test_without_lensing_the_columns_are_zero(conditions, make_objects):
    lensed, _ = lens_objects(None, conditions, make_objects({"x": 40.0, "y": 48.0}), rng())
    assert (lensed[["g1", "g2", "kappa"]] == 0).all().all() and lensed.flux_r[0] == 20_000


def test_the_shear_field_in_sky_orientation_is_minus_that_along_the_pixels(conditions, make_objects):
    """North is up and East left in this field."""
    objects = make_objects(*({"x": 8.0 * k, "y": 90.0 - 7.0 * k} for k in range(10)))
    lensed, field = lens_objects(Lensing(kappa_rms=0.03, smoothing_arcsec=5.0), conditions, objects, rng())
    kappa, gamma = field.at(objects.x.to_numpy(), objects.y.to_numpy())
    np.testing.assert_allclose(lensed.kappa, kappa, atol=1e-12)
    np.testing.assert_allclose(lensed.g1 + 1j * lensed.g2, -gamma / (1 - kappa), atol=1e-5)
    assert np.ptp(lensed.g1) > 0.005


def test_sources_behind_the_lens_feel_the_distance_ratio(make_objects):
    rows = [{"x": 0.0, "y": 0.0, "redshift": z} for z in (0.2, 0.4, 0.8, 1.0, 3.0)]
    strength = lensing_strength(Lensing(lens_redshift=0.4, source_redshift=1.0), make_objects(*rows))
    assert strength[:2].tolist() == [0, 0] and strength[3] == pytest.approx(1, rel=1e-6)

    def ratio(z):
        behind = (Planck18.comoving_distance(z) - Planck18.comoving_distance(0.4)) / (1 + z)
        return behind / Planck18.angular_diameter_distance(z)

    assert strength[2] == pytest.approx(float(ratio(0.8) / ratio(1.0)), rel=1e-3)
    assert strength[4] == pytest.approx(float(ratio(3.0) / ratio(1.0)), rel=1e-3)


def test_strong_lensing_is_refused(conditions, make_objects):
    objects = make_objects({"x": 40.0, "y": 48.0})
    with pytest.raises(InputError, match="only weak lensing is simulated"):
        lens_objects(Lensing(g1=(0.5, 0.5), g2=(0.5, 0.5)), conditions, objects, rng())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"g1": (0.2, 0.1)}, r"sky.lensing.g1 is \[0.2, 0.1\]"),
        ({"g2": 0.1}, "sky.lensing.g2 .* needs two numbers"),
        ({"kappa_rms": -1}, "sky.lensing.kappa_rms is -1; it must be within 0 to 0.3"),
        ({"kappa_rms": None}, "sky.lensing.kappa_rms is None"),
        ({"distribution": "flat"}, "must be one of gaussian, lognormal"),
        ({"lens_redshift": 2.0}, "must be below source_redshift"),
    ],
)
def test_a_wrong_setting_is_named(settings, message):
    with pytest.raises(InputError, match=message):
        Lensing(**settings)


def test_a_smoothing_too_fine_for_the_field_is_named(conditions):
    with pytest.raises(InputError, match="smoothing_arcsec is 0.1; for fields of this size give at least"):
        lensing = Lensing(kappa_rms=0.02, smoothing_arcsec=0.1)
        draw_convergence(lensing, PixelGrid((4096, 4096), 0.2, conditions.grid.wcs), rng())


def test_a_ring_turns_every_second_field(make_objects):
    objects = make_objects({"x": 0.0, "y": 0.0, "angle_rad": 0.4})
    assert turn_for_ring(objects, 6).angle_rad[0] == 0.4
    assert turn_for_ring(objects, 7).angle_rad[0] == pytest.approx(0.4 + np.pi / 2)


# pictures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sharp():
    """One band of SDSS, 260 x 260 pixels, in half its seeing."""
    sky = Sky(shape=(260, 260), bands=("r",), seeing_factor=(0.5, 0.5))
    return draw_conditions(sky, Instrument.load("sdss", ("r",)), 0, rng())


@pytest.mark.parametrize(("rotation", "mirrored"), [(0.0, False), (50.0, True)])
def test_a_ring_of_drawn_galaxies_gives_back_the_shear(sharp, make_objects, rotation, mirrored):
    """Mean of adaptive-moment ellipticities of noiseless pictures, in sky orientation.

    Over a ring, epsilon = (e + g) / (1 + g* e) averages to g exactly (Seitz & Schneider 1997, A&A 318, 687). Galaxies
    are Gaussians (Sersic index 0.5), so that the PSF takes no more than the 2 per cent by which it widens them.
    """
    wcs = sharp.grid.wcs.deepcopy()
    angle = np.radians(rotation)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    wcs.wcs.pc = turn @ np.diag([-1.0 if mirrored else 1.0, 1.0])
    grid = PixelGrid((260, 260), 0.396, wcs)
    sharp = dataclasses.replace(sharp, grid=grid)
    places = [(65.0, 65.0), (195.0, 65.0), (65.0, 195.0), (195.0, 195.0)]
    wide = {"disk_hlr_arcsec": 3.5, "disk_n": 0.5, "flux_r": 1e7, "estimated_snr": 1000.0}
    rows = [{"x": x, "y": y, "angle_rad": np.pi / 8 * k, **wide} for k, (x, y) in enumerate(places)]
    found = []
    for number in (0, 1):
        turned = turn_for_ring(make_objects(*rows), number)
        objects, _ = lens_objects(Lensing(g1=(0.06, 0.06), g2=(-0.04, -0.04), kappa=(0.1, 0.1)), sharp, turned, rng())
        scene = build_scene(Sky(shape=(260, 260)), sharp, objects)
        for x, y in places:
            cut = scene.light[0, int(y) - 64 : int(y) + 65, int(x) - 64 : int(x) + 65]
            shape = galsim.hsm.FindAdaptiveMom(galsim.Image(np.ascontiguousarray(cut), scale=1.0)).observed_shape
            found.append(np.ravel(grid.shear_to_sky(x, y, shape.g1, shape.g2)))
    assert np.std(found, axis=0).min() > 0.1, "the galaxies themselves are far from round"
    assert np.mean(found, axis=0) == pytest.approx([0.06, -0.04], rel=0.025)


def test_convergence_makes_galaxies_larger_and_keeps_their_surface_brightness(sharp, make_objects):
    light = []
    for kappa in (0.0, 0.2):
        objects = make_objects({"x": 130.0, "y": 130.0, "disk_hlr_arcsec": 3.5, "estimated_snr": 1000.0})
        lensed, _ = lens_objects(Lensing(kappa=(kappa, kappa)), sharp, objects, rng())
        light.append(build_scene(Sky(shape=(260, 260)), sharp, lensed).light[0])
    assert light[1].sum() / light[0].sum() == pytest.approx(1 / 0.8**2, rel=0.02)
    assert light[1][130, 130 + 25] == pytest.approx(light[0][130, 130 + 20], rel=0.03)


def test_a_simulated_ring_pair_holds_the_same_galaxies_turned(tmp_path):
    lensing = Lensing(g1=(0.05, 0.05), kappa_rms=0.02, smoothing_arcsec=8.0, ring_pairs=True)
    sky = Sky(shape=(150, 150), bands=("r",), fields=2, lensing=lensing, depth_offset=(1.0, 2.0), draw_snr=10.0)
    simulate(sky, tmp_path, seed=3)
    first, second = (pd.read_parquet(tmp_path / f"field_00{k}" / "truth.parquet") for k in (0, 1))
    both = first.merge(second, on=["x", "y", "population_row"], suffixes=("", "_2"))
    galaxies = both[both.class_name == "galaxy"]
    assert len(galaxies) >= 0.8 * (first.class_name == "galaxy").sum() > 5
    np.testing.assert_allclose(galaxies.flux_r, galaxies.flux_r_2)
    np.testing.assert_array_equal(
        galaxies[["g1", "g2", "pair_id", "ra"]], galaxies[["g1_2", "g2_2", "pair_id_2", "ra_2"]]
    )
    assert first.pair_id.is_unique
    assert galaxies.g1.std() > 1e-3 and abs(galaxies.g1.mean() - 0.05) < 0.05
    turned = (galaxies.angle_rad_2 - galaxies.angle_rad) % np.pi
    np.testing.assert_allclose(turned, np.pi / 2, atol=1e-5)
    images = [fits.getdata(tmp_path / f"field_00{k}" / "r.fits") for k in (0, 1)]
    assert np.corrcoef(images[0].ravel(), images[1].ravel())[0, 1] < 0.999


def test_pairs_of_a_ring_have_numbers_of_their_own(make_objects):
    objects = make_objects({"x": 0.0, "y": 0.0}, {"x": 5.0, "y": 5.0})
    ids = [turn_for_ring(objects, number).pair_id.tolist() for number in range(4)]
    assert ids[0] == ids[1] and ids[2] == ids[3] and not set(ids[0]) & set(ids[2])


def test_the_ellipticity_of_the_psf_is_that_of_its_cell(sharp):
    from deepdisc.simulate.psf_shapes import psf_ellipticity

    x, y = np.array([10.0, 250.0]), np.array([10.0, 240.0])
    assert np.abs(psf_ellipticity(sharp, x, y)).max() < 1e-6
    variation = np.zeros((1, 3, sharp.psf_variation.shape[2]))
    variation[0, 1:] = rng(2).normal(scale=0.05, size=(2, variation.shape[2]))
    uneven = dataclasses.replace(sharp, psf_variation=variation)
    found = np.array(psf_ellipticity(uneven, x, y))
    for place in (0, 1):
        column, row = (int(at * 5 // 260) for at in (x[place], y[place]))  # 260 pixels hold 5 cells of 48 or more
        terms = variation_terms(2 * (column + 0.5) / 5 - 1, 2 * (row + 0.5) / 5 - 1)
        # A round profile sheared by (e1, e2) has this ellipticity; North is up, so the sky's is its negative.
        assert found[:, place] == pytest.approx(-variation[0, 1:] @ terms, abs=1e-4)
    assert np.ptp(found, axis=1).max() > 0.01


def test_the_saved_maps_are_what_galaxies_at_their_places_feel(tmp_path):
    lensing = Lensing(kappa_rms=0.03, smoothing_arcsec=10.0)
    sky = Sky(shape=(200, 240), bands=("r",), lensing=lensing, depth_offset=(1.0, 1.0))
    simulate(sky, tmp_path, seed=3)
    truth = pd.read_parquet(tmp_path / "truth.parquet")
    galaxies = truth[(truth.class_name == "galaxy") & truth.x.between(16, 220) & truth.y.between(16, 180)]
    with fits.open(tmp_path / "lensing.fits") as file:
        assert [hdu.name for hdu in file[1:]] == ["KAPPA", "GAMMA1", "GAMMA2"]
        column, row = WCS(file["KAPPA"].header).all_world2pix(galaxies.ra, galaxies.dec, 0)
        kappa, gamma1, gamma2 = (map_coordinates(hdu.data.astype(float), [row, column], order=3) for hdu in file[1:])
    assert len(galaxies) > 20
    np.testing.assert_allclose(galaxies.kappa, kappa, atol=1e-3)
    np.testing.assert_allclose(galaxies.g1, gamma1 / (1 - kappa), atol=1e-3)
    np.testing.assert_allclose(galaxies.g2, gamma2 / (1 - kappa), atol=1e-3)
    assert galaxies.kappa.std() > 5e-3


def test_an_odd_number_of_fields_makes_no_ring(tmp_path):
    with pytest.raises(InputError, match="sky.fields is 3; with sky.lensing.ring_pairs it must be even"):
        simulate(Sky(fields=3, lensing=Lensing(ring_pairs=True)), tmp_path)
