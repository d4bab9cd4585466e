"""The PSF of a mosaic: from a file, a cube with places, a width, or unknown."""

import logging
import pickle

import numpy as np
import pytest
import yaml
from astropy.io import fits
from fits_files import PIXEL_SCALE_ARCSEC, write

from deepdisc.data.mosaic import Mosaic
from deepdisc.data.regrid import regrid
from deepdisc.errors import InputError
from deepdisc.inspection import inspect
from deepdisc.psf import moffat_psf

SHAPE = (90, 120)


def star(sigma, size=31, shift=(0.0, 0.0)):
    y, x = np.indices((size, size)) - (size - 1) / 2
    return 7 * np.exp(-((y - shift[0]) ** 2 + (x - shift[1]) ** 2) / (2 * sigma**2))


def as_recorded(sigma):
    middle = star(sigma, 25)
    return middle / middle.sum()


@pytest.fixture
def field(tmp_path, rng):
    """A function that writes mosaic.yaml for bands g and r with these entries, and gives its path."""
    for band in "gr":
        write(tmp_path / f"{band}.fits", rng.normal(size=SHAPE).astype(np.float32))

    def make(**entries):
        bands = {band: {"image": f"{band}.fits", "variance": 1.0, **entries.get(band, {})} for band in "gr"}
        path = tmp_path / "mosaic.yaml"
        path.write_text(yaml.safe_dump({"bands": bands}))
        return path

    return make


def write_cube(path, sigmas, positions, name="g"):
    cube = fits.ImageHDU(np.stack([star(sigma) for sigma in sigmas]).astype(np.float32), name=name)
    columns = [fits.Column(axis, "D", array=np.array(positions, float)[:, i]) for i, axis in enumerate("xy")]
    table = fits.BinTableHDU.from_columns(columns, name="POSITIONS")
    fits.HDUList([fits.PrimaryHDU(), cube, table]).writeto(path)


def test_a_picture_is_read_centred_and_normalised(field, tmp_path):
    pictures = [fits.ImageHDU(star(1.5, 40, (0.3, -2.4)), name="G"), fits.ImageHDU(star(2.0), name="R")]
    fits.HDUList([fits.PrimaryHDU(), *pictures]).writeto(tmp_path / "psf.fits")
    with Mosaic.open(field(g={"psf": "psf.fits[G]"}, r={"psf": "psf.fits[R]"})) as mosaic:
        found = mosaic.psf_at(0, 0, 20, 20)
        assert found.shape == (2, 25, 25) and found.dtype == np.float32 and not mosaic.psf_varies
        np.testing.assert_allclose(found, [as_recorded(1.5), as_recorded(2.0)], atol=7e-4)
        np.testing.assert_allclose(found.sum((1, 2)), 1, rtol=1e-5)
        np.testing.assert_array_equal(mosaic.select("x=r").psf_at(0, 0, 20, 20), found[1:])
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(mosaic)).psf_at(0, 0, 20, 20), found)


def test_of_a_cube_the_nearest_picture_counts(field, tmp_path):
    write_cube(tmp_path / "psf.fits", (1.2, 1.6, 2.0), [(20, 45), (60, 45), (100, 45)])
    with Mosaic.open(field(g={"psf": "psf.fits[g]"})) as mosaic:
        assert mosaic.psf_varies and mosaic.metadata["bands"]["g"]["psf"]["places"] == 3
        for window, sigma in (((0, 0, 90, 40), 1.2), ((30, 50, 60, 72), 1.6), ((80, 90, 170, 300), 2.0)):
            np.testing.assert_allclose(mosaic.psf_at(*window)[0], as_recorded(sigma), atol=1e-6)
            assert not mosaic.psf_at(*window)[1].any()


def test_a_width_is_a_moffat_profile_and_nothing_is_unknown(field):
    with Mosaic.open(field(g={"psf_fwhm_arcsec": 0.7})) as mosaic:
        found = mosaic.psf_at(10, 10, 20, 20)
    np.testing.assert_array_equal(found[0], moffat_psf(0.7 / PIXEL_SCALE_ARCSEC))
    assert not found[1].any()


def test_inspecting_tells_widths_and_where_they_are_from(field, tmp_path):
    fits.writeto(tmp_path / "psf.fits", star(2.0))
    bands = inspect(field(g={"psf": "psf.fits"}, r={"psf_fwhm_arcsec": 0.7}))["bands"]
    assert bands["g"]["psf"]["from"].endswith("psf.fits")
    assert bands["g"]["psf"]["fwhm_arcsec"] == pytest.approx(2.355 * 2 * PIXEL_SCALE_ARCSEC, rel=0.02)
    assert bands["r"]["psf"]["from"] == "psf_fwhm_arcsec, as a Moffat profile"
    assert 0.7 < bands["r"]["psf"]["fwhm_arcsec"] < 0.75  # the pixel widens it
    unknown = inspect(field())["bands"]["g"]["psf"]
    assert unknown == {"from": "unknown", "places": 1, "fwhm_arcsec": None}


def broken(tmp_path, kind):
    """Write a PSF file that is wrong in one way; give its name for mosaic.yaml."""
    path = tmp_path / "psf.fits"
    if kind == "no file":
        return "none.fits"
    if kind == "no extension":
        fits.writeto(path, star(2.0))
        return "psf.fits[g]"
    if kind == "no picture":
        fits.BinTableHDU.from_columns([fits.Column("X", "D", array=[1.0])]).writeto(path)
    elif kind == "no places":
        fits.writeto(path, np.stack([star(2.0)] * 2))
    elif kind == "too few places":
        write_cube(path, (1.0, 2.0), [(3, 4)])
        return "psf.fits[g]"
    elif kind == "NaN in one":
        write_cube(path, (1.0, np.nan), [(3, 4), (5, 6)])
        return "psf.fits[g]"
    elif kind == "four axes":
        fits.writeto(path, np.ones((2, 2, 25, 25)))
    elif kind == "other pixels":
        fits.writeto(path, star(2.0), fits.Header([("PIXELSCL", 0.05)]))
    elif kind == "negative":
        fits.writeto(path, -star(2.0))
    return "psf.fits"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no file", "none.fits: cannot be read: .*name a FITS image"),
        ("no extension", "psf.fits\\[g\\]: cannot be read"),
        ("no picture", "holds no image; give a picture of a star"),
        ("no places", "a cube of PSFs needs a table extension POSITIONS with columns X, Y"),
        ("too few places", "2 pictures but 1 places"),
        ("NaN in one", "psf.fits\\[g\\]: picture 1: the PSF holds NaN"),
        ("four axes", "a PSF is one image \\(y, x\\) or a cube"),
        ("other pixels", "its pixels are of 0.05 arcsec, the mosaic's of 0.2; draw the PSF in the mosaic's pixels"),
        ("negative", "the PSF's pixels add up to -"),
    ],
)
def test_a_wrong_psf_is_refused_when_the_mosaic_is_opened(field, tmp_path, kind, message):
    with pytest.raises(InputError, match=f"band g: .*{message}") as caught:
        Mosaic.open(field(g={"psf": broken(tmp_path, kind)}))
    assert "\n" not in str(caught.value)


def test_regridding_keeps_the_psf_where_the_pixels_stay(field, tmp_path, rng, caplog):
    fits.writeto(tmp_path / "psf.fits", star(2.0))
    write(tmp_path / "r.fits", rng.normal(size=SHAPE).astype(np.float32), shift=(3.4, 0))
    path = field(g={"psf": "psf.fits"}, r={"psf": "psf.fits"})
    write(tmp_path / "r.fits", rng.normal(size=SHAPE).astype(np.float32), shift=(3.4, 0))
    with caplog.at_level(logging.WARNING):
        written = regrid(path, tmp_path / "out", "g")
    assert "band r: its PSF" in caplog.text and "band g" not in caplog.text
    with Mosaic.open(written) as mosaic:
        found = mosaic.psf_at(0, 0, 20, 20)
    np.testing.assert_allclose(found[0], as_recorded(2.0), atol=1e-6)
    assert not found[1].any()
