"""Point-spread functions: widths and light against formulas, images of stars, variation over a field, wrong input."""

import galsim
import numpy as np
import pytest
from astropy.io import fits

from deepdisc.errors import InputError
from deepdisc.simulate import Sky
from deepdisc.simulate.conditions import draw_conditions
from deepdisc.simulate.instruments import Instrument
from deepdisc.simulate.psfs import ImagePSF, MoffatPSF, OpticalPSF, parse_psf, radial_profile, variation_terms


def conditions_of(instrument, seed=0, **settings):
    sky = Sky(instrument=instrument, **{"shape": (400, 800), **settings})
    return draw_conditions(sky, Instrument.load(instrument, sky.bands), 0, np.random.default_rng(seed))


def test_an_airy_pattern_is_dark_where_it_should_be():
    profile = OpticalPSF(diameter_m=2.0).profile(800.0)
    first_zero = 1.2197 * 800e-9 / 2.0 * 206_265
    assert profile.xValue(first_zero, 0) < 1e-4 * profile.xValue(0, 0)
    assert profile.flux == pytest.approx(1)


def test_jitter_adds_in_squares_and_struts_make_spikes():
    blurred = OpticalPSF(diameter_m=2.0, jitter_arcsec=0.2).profile(500.0)
    assert blurred.calculateFWHM() == pytest.approx(
        2.3548 * 0.2, rel=0.03
    )  # the diffraction of 0.05 arcsec hardly counts
    optics = [OpticalPSF(diameter_m=2.4, obscuration=0.3, struts=n).profile(800.0) for n in (0, 4)]
    plain, spiky = (one.drawImage(nx=129, ny=129, scale=0.03, method="no_pixel").array for one in optics)
    along, across = (np.s_[64, 84:110], np.arange(14, 33))  # from the centre, at 0 and at 45 degrees
    contrast = [one[along].mean() / one[64 + across, 64 + across].mean() for one in (plain, spiky)]
    assert contrast[0] == pytest.approx(1, abs=0.5) and contrast[1] > 3


def test_a_seeing_factor_widens_every_kind_of_psf():
    for instrument in ("sdss", "nircam", "csst"):
        one, wide = (conditions_of(instrument, seeing_factor=(f, f)) for f in (1.0, 1.3))
        np.testing.assert_allclose(wide.psf_fwhm_arcsec, 1.3 * one.psf_fwhm_arcsec)
        assert wide.psf(0).calculateFWHM() == pytest.approx(wide.psf_fwhm_arcsec[0], rel=0.02)
        assert wide.psf(0).flux == pytest.approx(1, rel=1e-6)


def test_nircams_psfs_are_centred_and_as_wide_as_published():
    conditions = conditions_of("nircam")
    # JWST user documentation, NIRCam PSFs: FWHM in arcsec (optics and detector).
    published = {"F090W": 0.033, "F115W": 0.040, "F150W": 0.050, "F200W": 0.066, "F277W": 0.092, "F356W": 0.116,
                 "F410M": 0.137, "F444W": 0.145}  # fmt: skip
    for number, band in enumerate(conditions.bands):
        stamp = conditions.psf(number).drawImage(nx=101, ny=101, scale=0.01, method="no_pixel")
        centre = stamp.FindAdaptiveMom().moments_centroid
        assert abs(centre.x - 51) < 0.1 and abs(centre.y - 51) < 0.1  # 1 mas
        if band.name in published:
            assert conditions.psf_fwhm_arcsec[number] == pytest.approx(published[band.name], abs=0.013)
    # The one that is made of another is as much narrower as its wavelength is shorter.
    widths = dict(zip([band.name for band in conditions.bands], conditions.psf_fwhm_arcsec, strict=True))
    assert widths["F335M"] / widths["F356W"] == pytest.approx(33.62 / 35.65, abs=0.002)


def test_a_psf_image_by_path_is_what_it_shows(tmp_path):
    image = galsim.Gaussian(sigma=0.1).drawImage(nx=64, ny=64, scale=0.02, method="no_pixel").array
    header = fits.Header({"PIXSCALE": 0.02})
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(image, header)]).writeto(tmp_path / "star.fits")
    psf = parse_psf({"kind": "image", "file": "star.fits", "stretch": 2.0}, tmp_path)
    profile = psf.profile(500.0)
    assert profile.calculateFWHM() == pytest.approx(2 * 0.23548, rel=0.02) and profile.flux == pytest.approx(1)


def test_the_radius_of_a_surface_brightness_is_moffats():
    psf = MoffatPSF(fwhm_arcsec=1.2, beta=3.0)
    radius, brightness = radial_profile(psf, 500.0)
    a = 1.2 / (2 * np.sqrt(2 ** (1 / 3) - 1))
    for level in (1e-1, 1e-3):
        expected = a * np.sqrt((2 / (np.pi * a**2) / level) ** (1 / 3) - 1)
        assert np.interp(-level, -brightness, radius) == pytest.approx(expected, rel=0.08)


def test_terms_of_the_variation_have_mean_0_and_mean_square_1():
    u, v = np.meshgrid(np.linspace(-1, 1, 401), np.linspace(-1, 1, 401))
    terms = variation_terms(u, v).reshape(5, -1)
    np.testing.assert_allclose(terms.mean(axis=1), 0, atol=0.02)
    np.testing.assert_allclose(terms @ terms.T / terms.shape[1], np.eye(5), atol=0.03)


def test_a_psf_varies_from_cell_to_cell_and_as_much_as_asked():
    conditions = conditions_of("sdss", bands=["r"], psf_width_rms=0.05, psf_ellipticity_rms=0.03)
    x, y = np.meshgrid(np.arange(5, 800, 10), np.arange(5, 400, 10))
    cells = conditions.psf_cell(x, y)
    assert len(np.unique(cells)) == 8 * 4 and conditions.psf_cell(-50, 900) == conditions.psf_cell(0, 399)
    assert conditions.psf(0, 3, 3) == conditions.psf(0, 90, 90) != conditions.psf(0, 110, 3)
    widths, shears = [], []
    for seed in range(40):
        one = conditions_of(
            "sdss", seed=seed, bands=["r"], psf_width_rms=0.05, psf_ellipticity_rms=0.03, shape=(800, 800)
        )
        for place in np.random.default_rng(seed).uniform(0, 800, (4, 2)):
            moments = one.psf(0, *place).drawImage(nx=41, ny=41, scale=0.2, method="no_pixel").FindAdaptiveMom()
            widths.append(moments.moments_sigma)
            shears.append(moments.observed_shape.g1)
    assert np.std(widths) / np.mean(widths) == pytest.approx(0.05, rel=0.3)
    assert np.std(shears) == pytest.approx(0.03, rel=0.3)


def test_a_psf_that_does_not_vary_is_one_cell():
    conditions = conditions_of("sdss")
    assert not conditions.psf_varies and (conditions.psf_cell(np.arange(5), np.arange(5)) == 0).all()
    assert conditions.psf(0, 3, 3) == conditions.psf(0)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"kind": "gauss"}, "give a mapping with kind: moffat, optical, image"),
        ("moffat", "psf is moffat; give a mapping"),
        ({"kind": "moffat"}, "'fwhm_arcsec' is missing; its keys are fwhm_arcsec, beta"),
        ({"kind": "moffat", "fwhm_arcsec": 1, "width": 2}, "unknown key 'width'"),
        ({"kind": "moffat", "fwhm_arcsec": 0}, "fwhm_arcsec is 0; it must be positive"),
        ({"kind": "optical", "diameter_m": "big"}, "diameter_m is 'big'; it must be a number"),
    ],
)
def test_a_wrong_description_is_named(description, message, tmp_path):
    with pytest.raises(InputError, match=message):
        parse_psf(description, tmp_path)


def test_a_wrong_image_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot read the PSF image .*none.fits"):
        ImagePSF(str(tmp_path / "none.fits")).profile(500.0)
    fits.PrimaryHDU(np.ones((8, 8))).writeto(tmp_path / "scale.fits")
    with pytest.raises(InputError, match="scale.fits: its header has no PIXELSCL"):
        ImagePSF(str(tmp_path / "scale.fits")).profile(500.0)
    fits.PrimaryHDU(np.ones((8, 9)), fits.Header({"PIXSCL": 0.1})).writeto(tmp_path / "shape.fits")
    with pytest.raises(InputError, match="shape.fits: a PSF image must be square"):
        ImagePSF(str(tmp_path / "shape.fits")).profile(500.0)


def test_a_moffat_exponent_for_an_instrument_without_moffat_psfs_is_refused():
    with pytest.raises(InputError, match="sky.moffat_beta .* band F090W of nircam has no Moffat PSF"):
        conditions_of("nircam", moffat_beta=(2.5, 3.5))
