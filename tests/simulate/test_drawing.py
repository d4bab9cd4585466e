"""Light, noise and positions of the synthetic sky, against numbers computed apart from the simulator."""

import galsim
import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from deepdisc.errors import InputError
from deepdisc.simulate import Sky, simulate
from deepdisc.simulate.conditions import draw_conditions
from deepdisc.simulate.instruments import Instrument
from deepdisc.simulate.noise import add_noise
from deepdisc.simulate.painter import Painter
from deepdisc.simulate.population import Population
from deepdisc.simulate.scene import build_scene
from deepdisc.simulate.shapes import Shapes, draw_knots

SCALE = 0.396


@pytest.mark.parametrize("snr", [10.0, 100.0, 1000.0, 1e4])
@pytest.mark.parametrize("bulge_fraction", [0.0, 0.4, 1.0])
def test_a_galaxy_is_what_galsim_draws_in_one_go(conditions, make_objects, snr, bulge_fraction):
    objects = make_objects(
        {"x": 30.37, "y": 41.81, "bulge_fraction": bulge_fraction, "angle_rad": 0.6, "estimated_snr": snr}
    )
    stamp = Painter(conditions).paint(Shapes.of(objects, conditions), 0)
    tilt = 0.6 * galsim.radians
    disk = galsim.Exponential(half_light_radius=0.6).shear(q=0.7, beta=tilt) * (1 - bulge_fraction)
    bulge = galsim.DeVaucouleurs(half_light_radius=0.4).shear(q=0.8, beta=tilt) * bulge_fraction
    galaxy = {0.0: disk, 1.0: bulge}.get(bulge_fraction, disk + bulge)
    for band, fwhm in enumerate((1.53, 1.44, 1.32, 1.26, 1.29)):
        seen = galsim.Convolve([galaxy, galsim.Moffat(beta=3.0, fwhm=fwhm)]).withFlux(20_000.0)
        side = stamp.light.shape[-1]
        offset = (30.37 - stamp.x0 - side // 2, 41.81 - stamp.y0 - side // 2)
        expected = seen.drawImage(nx=side, ny=side, scale=SCALE, offset=offset, method="auto").array
        tolerance = max(0.02 / snr, 2e-4) * 20_000  # light per pixel, against the noise of about total / snr
        np.testing.assert_allclose(stamp.light[band], expected, atol=max(tolerance, 0.01 * expected.max() * 30 / snr))
        assert stamp.light[band].sum() == pytest.approx(expected.sum(), rel=0.01)


def test_nothing_is_drawn_outside_the_field(conditions, make_objects):
    objects = make_objects({"x": -60.0, "y": 40.0}, {"x": -3.0, "y": 40.0})
    assert Shapes.of(objects, conditions).reach_into(conditions.grid.shape).tolist() == [False, True]
    scene = build_scene(Sky(shape=(96, 80)), conditions, objects)
    assert scene.snr[0] == 0 and scene.snr[1] > 0 and scene.light[2, 40, 0] > 0


def test_the_sky_noise_reproduces_the_published_depth(tmp_path):
    published = {"u": 22.15, "g": 23.13, "r": 22.70, "i": 22.20, "z": 20.71}
    fwhm = {"u": 1.53, "g": 1.44, "r": 1.32, "i": 1.26, "z": 1.29}
    simulate(Sky(shape=(256, 256), galaxy_density=(0, 0), star_density=(0, 0)), tmp_path, seed=2)
    for band, depth in published.items():
        with fits.open(tmp_path / f"{band}.fits") as file:
            rms, stated = file[0].data.std(), np.sqrt(file["VARIANCE"].data.mean())
        # A Moffat profile's noise-equivalent area is pi a^2 (2 beta - 1) / (beta - 1)^2; beta is 3 here.
        a = fwhm[band] / (2 * np.sqrt(2 ** (1 / 3) - 1)) / SCALE
        five_sigma = 5 * rms * np.sqrt(np.pi * a**2 * 5 / 4)
        assert 31.4 - 2.5 * np.log10(five_sigma) == pytest.approx(depth, abs=0.1)
        assert stated == pytest.approx(rms, rel=0.01)


def test_photon_noise_and_variance_agree():
    light = np.full((300, 300), 500.0, dtype=np.float32)
    image, variance = add_noise(light.copy(), 100.0, 0.05, True, np.random.default_rng(1))
    expected = 100.0**2 + 500.0 / 0.05  # photons: 25 +- 5 electrons, 20 nJy each
    assert (image - 500.0).var() == pytest.approx(expected, rel=0.02)
    assert image.mean() == pytest.approx(500.0, abs=3 * np.sqrt(expected) / 300)
    assert variance.mean() == pytest.approx(expected, rel=0.01)
    # What a survey counts is noisy: the variance must not be a noiseless picture of the truth.
    assert np.corrcoef(image.ravel(), variance.ravel())[0, 1] > 0.99
    image, variance = add_noise(light.copy(), 100.0, 0.05, False, np.random.default_rng(1))
    assert (image - 500.0).var() == pytest.approx(expected, rel=0.02)
    assert (variance == np.float32(100.0**2)).all()


def isolated(folder, class_id, number=3):
    """The truth of the brightest objects of a class that lie well inside and have little light of others near them."""
    truth = pd.read_parquet(folder / "truth.parquet").sort_values("mag_r")
    distance = np.hypot(*(truth[[axis]].to_numpy() - truth[axis].to_numpy() for axis in "xy"))
    alone = np.ones(len(truth), dtype=bool)
    for band in ("g", "r"):
        flux = truth[f"flux_{band}"].to_numpy()
        alone &= ((distance < 40) * flux).sum(axis=1) < 1.005 * flux
    alone &= truth.x.between(30, 530) & truth.y.between(30, 610) & (truth.snr > 1000) & (truth.class_id == class_id)
    assert sum(alone) >= number, "the field is too crowded for this test"
    return truth[alone].head(number)


def apertures(folder, band, rows, radius):
    """Light within `radius` pixels of each row's true position, and its centroid, from the noisy image."""
    image = fits.getdata(folder / f"{band}.fits").astype(float)
    y, x = np.indices(image.shape)
    results = []
    for row in rows.itertuples():
        light = image * (np.hypot(x - row.x, y - row.y) < radius)
        results.append((light.sum(), (light * x).sum() / light.sum(), (light * y).sum() / light.sum()))
    return np.array(results).T


@pytest.mark.parametrize("class_id", [0, 1], ids=["galaxies", "stars"])
def test_flux_in_an_aperture_is_the_reddened_flux_of_the_population(deep_field, class_id):
    rows = isolated(deep_field, class_id)
    population = Population.load("wide")
    for band, coefficient in (("g", 3.303), ("r", 2.285)):
        total, _ = population.light(population.rows.loc[rows.population_row], [f"sdss_{band}"])
        expected = total[:, 0] * 10 ** (-0.4 * coefficient * 0.1)
        magnitude = 31.4 - 2.5 * np.log10(expected)
        measured, _, _ = apertures(deep_field, band, rows, 28)
        noise = np.sqrt(np.pi * 28**2 * fits.getdata(deep_field / f"{band}.fits", "VARIANCE").mean())
        assert (abs(measured - expected) < 0.01 * expected + 3 * noise).all() and noise < 0.05 * expected.min()
        np.testing.assert_allclose(rows[f"flux_{band}"], expected, rtol=1e-5)
        np.testing.assert_allclose(rows[f"mag_{band}"], magnitude, atol=1e-5)


@pytest.mark.parametrize("class_id", [0, 1], ids=["galaxies", "stars"])
def test_centroids_are_the_true_positions(deep_field, class_id):
    rows = isolated(deep_field, class_id)
    _, x, y = apertures(deep_field, "r", rows, 12)
    np.testing.assert_allclose(x, rows.x, atol=0.05)
    np.testing.assert_allclose(y, rows.y, atol=0.05)


def test_sky_positions_are_those_of_the_header(deep_field):
    truth = pd.read_parquet(deep_field / "truth.parquet")
    header = fits.getheader(deep_field / "r.fits")
    ra, dec = WCS(header).all_pix2world(truth.x, truth.y, 0)
    np.testing.assert_allclose(truth.ra, ra, atol=1e-8)
    np.testing.assert_allclose(truth.dec, dec, atol=1e-8)
    # North is up, east is left; the middle of 560 x 640 pixels, (279.5, 319.5), is where it was asked to be.
    assert WCS(header).all_pix2world(279.5, 319.5, 0) == pytest.approx([150.0, 2.0], abs=1e-10)
    east, north = WCS(header).all_pix2world([178.5, 279.5], [319.5, 419.5], 0)
    assert east[0] - 150.0 == pytest.approx(101 * SCALE / 3600 / np.cos(np.radians(2.0)), rel=1e-4)
    assert north[1] - 2.0 == pytest.approx(100 * SCALE / 3600, rel=1e-4)
    assert header["BUNIT"] == "nJy"


# ------------------------------------------------------------------------------------------------------ what is drawn
def paint(conditions, objects, **keywords):
    return Painter(conditions, **keywords).paint(Shapes.of(objects, conditions), 0)


def picture(profile, stamp, x, y, band_psf):
    """GalSim's own picture of a profile (arcsec) on the pixels of a stamp."""
    half = stamp.light.shape[-1] // 2
    offset = (x - stamp.x0 - half, y - stamp.y0 - half)
    seen = galsim.Convolve([profile, band_psf])
    return seen.drawImage(nx=2 * half + 1, ny=2 * half + 1, scale=SCALE, offset=offset, method="auto").array


def test_every_band_has_its_own_share_of_the_bulge(conditions, make_objects):
    shares = dict(zip("ugriz", (0.0, 0.1, 0.4, 0.8, 1.0), strict=True))
    row = {"x": 40.3, "y": 40.2, "disk_n": 1.5, "bulge_n": 3.0, "estimated_snr": 1e4}
    stamp = paint(conditions, make_objects({**row, **{f"bulge_share_{band}": share for band, share in shares.items()}}))
    disk = galsim.Sersic(1.5, half_light_radius=0.6).shear(q=0.7, beta=0 * galsim.radians)
    bulge = galsim.Sersic(3.0, half_light_radius=0.4).shear(q=0.8, beta=0 * galsim.radians)
    for number, share in enumerate(shares.values()):
        profile = galsim.Add([disk * (1 - share), bulge * share]) * 20_000
        expected = picture(profile, stamp, 40.3, 40.2, conditions.psf(number))
        np.testing.assert_allclose(stamp.light[number], expected, atol=2e-4 * expected.max())


@pytest.mark.parametrize("n", [0.5, 1.0, 4.0])
def test_the_light_of_a_bright_object_is_right_to_a_thousandth(conditions, make_objects, n):
    stamp = paint(conditions, make_objects({"x": 40.3, "y": 40.2, "disk_n": n, "estimated_snr": 3000.0}))
    fine = galsim.GSParams(folding_threshold=1e-4, maxk_threshold=1e-5, maximum_fft_size=16384)
    profile = galsim.Sersic(n, half_light_radius=0.6, gsparams=fine).shear(q=0.7, beta=0 * galsim.radians)
    for band in (0, 2):
        expected = picture(profile * 20_000, stamp, 40.3, 40.2, conditions.psf(band, gsparams=fine))
        assert stamp.light[band].sum() == pytest.approx(expected.sum(), rel=1e-3)


def test_lensing_shears_and_enlarges_in_sky_orientation(conditions, make_objects):
    g1, g2, kappa = 0.12, -0.07, 0.15
    row = {"x": 40.3, "y": 40.2, "angle_rad": 0.4, "estimated_snr": 1e4}
    stamp = paint(conditions, make_objects({**row, "g1": g1, "g2": g2, "kappa": kappa}))
    magnification = 1 / ((1 - kappa) ** 2 * (1 - g1**2 - g2**2))
    # North is up and East is left: a shear along North-South is one along y, both components change sign.
    galaxy = galsim.Exponential(half_light_radius=0.6).shear(q=0.7, beta=0.4 * galsim.radians)
    expected = picture(galaxy.lens(-g1, -g2, magnification).withFlux(20_000), stamp, 40.3, 40.2, conditions.psf(2))
    np.testing.assert_allclose(stamp.light[2], expected, atol=5e-4 * expected.max())


def test_knots_are_points_in_the_disc_that_turn_and_shear_with_it(conditions, make_objects):
    row = {"x": 40.0, "y": 40.0, "knots": 12, "knot_share": 0.8, "estimated_snr": 1e4}
    row |= {"disk_hlr_arcsec": 2.0, "disk_axis_ratio": 1.0}
    plain, knotty, turned = (
        paint(conditions, make_objects({**row, **change})).light[2]
        for change in ({"knot_share": 0.0}, {}, {"angle_rad": np.pi / 2})
    )
    middle, center = knotty.shape[0] // 2, plain.shape[0] // 2
    assert abs(knotty[middle, middle] / plain[center, center] - 1) > 0.05
    assert knotty.sum() == pytest.approx(20_000, rel=0.01)
    np.testing.assert_allclose(np.rot90(knotty, -1), turned, atol=2e-3 * turned.max())
    # The same galaxy drawn elsewhere has the same knots, another one has others.
    same = paint(conditions, make_objects({**row, "x": 20.0, "y": 60.0})).light[2]
    other = paint(conditions, make_objects({**row, "population_row": 5})).light[2]
    np.testing.assert_allclose(same, knotty, atol=1e-4 * knotty.max())
    assert abs(other - knotty).max() > 0.05 * knotty.max()


@pytest.mark.parametrize("n", [0.7, 1.0, 2.5])
def test_knots_lie_as_the_light_of_the_disc(n):
    positions, shares = draw_knots(3, 40_000, n)
    radius = np.sort(np.hypot(*positions.T))
    profile = galsim.Sersic(n, half_light_radius=1.0)
    rings = np.linspace(0, radius[-1], 2001)
    light = np.array([profile.xValue(r, 0) for r in (rings[1:] + rings[:-1]) / 2]) * np.pi * np.diff(rings**2)
    for share in (0.25, 0.5, 0.75):
        expected = rings[np.searchsorted(np.cumsum(light) / light.sum(), share)]
        assert radius[int(share * len(radius))] == pytest.approx(expected, rel=0.02)
    assert abs(positions.mean(axis=0)).max() < 0.03 and radius[-1] <= 2.5
    # N(> L) falls as 1 / L: a tenth as many are ten times as bright as the faintest, and the brightest 30 times.
    brightness = shares / shares.min()
    assert shares.sum() == pytest.approx(1) and brightness.max() == pytest.approx(30, rel=0.05)
    expected = (1 / 10 - 1 / 30) / (1 - 1 / 30)
    assert (brightness > 10).mean() == pytest.approx(expected, rel=0.05)


def real_galaxies(shared_data):
    return str(shared_data / "data/images/hst_cosmos_realgalaxies_100/real_galaxy_catalog_26_extension_example.fits")


def test_pictures_of_real_galaxies_have_the_size_and_light_asked_for(conditions, make_objects, shared_data):
    path = real_galaxies(shared_data)
    row = {"x": 40.0, "y": 40.0, "stamp": 5, "disk_axis_ratio": 1.0, "estimated_snr": 1000.0}
    seen = []
    for hlr in (0.8, 1.6):
        stamp = paint(conditions, make_objects({**row, "disk_hlr_arcsec": hlr}), real_galaxies=path)
        assert stamp.light[2].sum() == pytest.approx(20_000, rel=0.03)
        seen.append(galsim.Image(stamp.light[2].astype(float), scale=SCALE).calculateHLR())
    # In squares: the PSF (half-light radius of a Moffat profile with beta 3: 0.71 of its FWHM) adds the same to both.
    assert np.sqrt(seen[1] ** 2 - seen[0] ** 2) == pytest.approx(np.sqrt(1.6**2 - 0.8**2), rel=0.15)


def test_a_picture_that_the_catalogue_lacks_is_named(conditions, make_objects, shared_data):
    objects = make_objects({"x": 40.0, "y": 40.0, "stamp": 100})
    with pytest.raises(InputError, match="stamp 100 is not in .*which has 100 galaxies"):
        paint(conditions, objects, real_galaxies=real_galaxies(shared_data))
    with pytest.raises(InputError, match="say in sky.real_galaxies which"):
        paint(conditions, objects)
    with pytest.raises(InputError, match="nothing.fits: not a catalogue of real galaxies"):
        paint(conditions, objects, real_galaxies="nothing.fits")


def test_an_object_is_seen_with_the_psf_of_its_cell(make_objects):
    sky = Sky(shape=(96, 80), psf_width_rms=0.2, psf_cells=2)
    conditions = draw_conditions(sky, Instrument.load("sdss"), 0, np.random.default_rng(3))
    peaks = []
    for x, y in ((20.0, 20.0), (60.0, 20.0), (20.0, 70.0)):
        stamp = paint(conditions, make_objects({"x": x, "y": y, "class_id": 1, "estimated_snr": 1e4}))
        expected = picture(galsim.DeltaFunction(20_000), stamp, x, y, conditions.psf(2, x, y))
        np.testing.assert_allclose(stamp.light[2], expected, atol=1e-3 * expected.max())
        peaks.append(stamp.light[2].max())
    assert np.ptp(peaks) > 0.05 * max(peaks)


def test_what_is_left_out_of_a_stamp_is_fainter_than_the_noise(conditions, make_objects):
    for row in (
        {"class_id": 1},
        {"disk_n": 4.0, "disk_hlr_arcsec": 1.5},
        {"knots": 3, "knot_share": 0.9, "disk_hlr_arcsec": 2.0},
    ):
        objects = make_objects({"x": 40.0, "y": 40.0, "estimated_snr": 1e4, **row})
        light = paint(conditions, objects).light
        level = np.sqrt(((light / conditions.sky_sigma_njy()[:, None, None]) ** 2).sum(axis=0))
        border = np.concatenate([level[0], level[-1], level[:, 0], level[:, -1]])
        assert border.max() < 0.15 and level.max() > 3
