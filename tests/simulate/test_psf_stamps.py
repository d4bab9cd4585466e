"""The PSF that a simulated field hands out is what its stars look like, as its survey believes."""

import dataclasses

import numpy as np
import pytest
import yaml
from astropy.io import fits

from deepdisc.data.mosaic import Mosaic
from deepdisc.psf import PSF_SIDE, recorded_psf
from deepdisc.simulate import Effects, Exposures, Sky, simulate
from deepdisc.simulate.fields import draw_field
from deepdisc.simulate.instruments import Instrument
from deepdisc.simulate.psf_stamps import FILE_SIDE, believed_psfs
from deepdisc.simulate.stream import SkyStream

HALF = PSF_SIDE // 2
PLACES = [(30, 31), (129, 30), (32, 98), (128, 97)]  # x, y: one star in each quarter of the field
FIELD = Sky(bands=["g", "r"], shape=(128, 160), depth_offset=(5.0, 5.0), ebv=(0.0, 0.0))


def star_pictures(folder, band):
    """Pictures of the stars of the field, sum 1; the noise is 1e-4 of a star's peak."""
    image = fits.getdata(folder / f"{band}.fits").astype(float)
    cut = [image[y - HALF : y + HALF + 1, x - HALF : x + HALF + 1] for x, y in PLACES]
    return [one / one.sum() for one in cut]


def at(mosaic, x, y):
    return mosaic.psf_at(y - 8, x - 8, y + 9, x + 9)


@pytest.fixture(scope="module")
def varying(tmp_path_factory, simulate_stars):
    """A field whose PSF varies much, in 2 x 2 cells (of 80 pixels), with one star in each."""
    folder = tmp_path_factory.mktemp("varying")
    sky = dataclasses.replace(FIELD, psf_cells=2, psf_width_rms=0.15, psf_ellipticity_rms=0.15)
    simulate_stars(sky, folder, 5, *((x, y, 17.0) for x, y in PLACES))
    return folder


def test_stars_look_like_the_psf_of_their_cell(varying):
    with Mosaic.open(varying / "mosaic.yaml") as mosaic:
        assert mosaic.psf_varies
        found = {place: at(mosaic, *place) for place in PLACES}
        for number, band in enumerate(mosaic.bands):
            for place, picture in zip(PLACES, star_pictures(varying, band), strict=True):
                psf = found[place][number]
                np.testing.assert_allclose(psf, picture, atol=4e-3 * psf.max())
                others = [abs(found[other][number] - picture).max() for other in PLACES if other != place]
                assert min(others) > 10e-3 * psf.max(), "a wrong cell would show"


def test_cells_are_those_of_the_conditions(varying):
    with fits.open(varying / "psf.fits") as file:
        places = file["POSITIONS"].data
        assert [hdu.name for hdu in file] == ["PRIMARY", "G", "R", "POSITIONS"]
        assert file["r"].data.shape == (4, FILE_SIDE, FILE_SIDE) and file["r"].header["PIXELSCL"] == 0.396
    sky = dataclasses.replace(FIELD, psf_cells=2, psf_width_rms=0.15, psf_ellipticity_rms=0.15)
    conditions = draw_field(sky, 0, 5).conditions
    assert list(places["X"]) == [39.5, 119.5, 39.5, 119.5] and list(places["Y"]) == [39.5, 39.5, 119.5, 119.5]
    assert conditions.psf_cell(places["X"], places["Y"]).tolist() == [0, 1, 2, 3]
    # Anywhere in the field the nearest place is that of the cell.
    y, x = np.indices(FIELD.shape).reshape(2, -1)
    nearest = ((x[:, None] - places["X"]) ** 2 + (y[:, None] - places["Y"]) ** 2).argmin(axis=1)
    assert (nearest == conditions.psf_cell(x, y)).mean() > 0.98  # ties lie on the cells' borders


def test_the_file_says_how_much_of_the_light_is_inside(tmp_path):
    simulate(dataclasses.replace(FIELD, shape=(40, 40)), tmp_path, seed=1)
    picture = fits.getdata(tmp_path / "psf.fits", "g")
    band = next(one for one in Instrument.load("sdss").bands if one.name == "g")
    scale = np.sqrt(2 ** (1 / band.psf.beta) - 1) * 2 / band.psf.fwhm_arcsec * 0.396 * FILE_SIDE / 2
    # Of a Moffat profile of beta, 1 - (1 + (r/a)^2)^(1 - beta) lies inside r; the square is a little larger.
    inside = 1 - (1 + scale**2) ** (1 - band.psf.beta)
    assert picture.shape == (FILE_SIDE, FILE_SIDE) and inside < picture.sum() < 1


def test_the_survey_may_believe_something_else(tmp_path):
    sky = dataclasses.replace(FIELD, shape=(40, 40), effects=Effects(psf_mismatch=0.3))
    simulate(sky, tmp_path, seed=2)
    field = draw_field(sky, 0, 2)
    stated = yaml.safe_load((tmp_path / "mosaic.yaml").read_text())["bands"]
    with Mosaic.open(tmp_path / "mosaic.yaml") as mosaic:
        found = mosaic.psf_at(0, 0, 40, 40)
    for number, band in enumerate(("g", "r")):
        factor = field.effects.stated_psf[number]
        assert abs(factor - 1) > 0.02
        assert stated[band]["psf_fwhm_arcsec"] == pytest.approx(
            field.conditions.psf_fwhm_arcsec[number] * factor, rel=1e-4
        )
        wrong = field.conditions.psf(number).dilate(factor).drawImage(nx=25, ny=25, scale=0.396, dtype=float).array
        true = field.conditions.psf(number).drawImage(nx=25, ny=25, scale=0.396, dtype=float).array
        np.testing.assert_allclose(found[number], wrong / wrong.sum(), atol=1e-5)
        assert abs(found[number] - true / true.sum()).max() > 0.005
    np.testing.assert_allclose(SkyStream(sky, seed=2).sample(0)["psf"], found, atol=1e-5)


def test_the_psf_of_a_mean_is_what_its_stars_look_like(tmp_path, simulate_stars):
    exposures = Exposures(number=4, seeing_scatter=0.3, registration_pix=0.3)
    sky = dataclasses.replace(FIELD, exposures=exposures)
    simulate_stars(sky, tmp_path, 3, *((x, y, 17.0) for x, y in PLACES))
    with Mosaic.open(tmp_path / "mosaic.yaml") as mosaic:
        found = mosaic.psf_at(0, 0, *FIELD.shape)
    best = [believed.recorded(80, 64) for believed in believed_psfs(draw_field(sky, 0, 3))]
    for number, band in enumerate(("g", "r")):
        for picture in star_pictures(tmp_path, band):
            # Registration moves the mean's stars, and its PSF with them; recorded PSFs are centred.
            np.testing.assert_allclose(found[number], recorded_psf(picture, band), atol=0.01 * picture.max())
        assert found[number].max() < 0.95 * best[number].max(), "the mean of exposures is wider than the best"


@pytest.mark.parametrize("instrument", ["nircam", "euclid", "csst", "hsc"])
def test_psfs_of_every_instrument_are_recorded_as_galsim_draws_them(instrument):
    """None is moved: they are centred as they are drawn, asymmetric ones too."""
    sky = Sky(instrument=instrument, shape=(40, 40), galaxy_density=(0, 0), star_density=(0, 0))
    field = draw_field(sky, 0, 0)
    band = len(field.conditions.bands) - 1
    drawn = field.conditions.psf(band).drawImage(
        nx=PSF_SIDE, ny=PSF_SIDE, scale=field.conditions.instrument.pixel_scale_arcsec, dtype=float
    )
    found = believed_psfs(field)[band].recorded(20, 20)
    np.testing.assert_allclose(found, drawn.array / drawn.array.sum(), atol=1e-5 * drawn.array.max())
