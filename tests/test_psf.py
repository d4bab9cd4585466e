"""PSFs are centred, cut and normalised; profiles are those of independent programs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from deepdisc.errors import InputError
from deepdisc.psf import PSF_SIDE, moffat_psf, psf_fwhm_pix, recorded_psf, unknown_psf

MIDDLE = PSF_SIDE // 2


def gaussian(shape, y, x, sigma=1.8):
    rows, columns = np.indices(shape)
    return np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * sigma**2))


def test_a_moffat_profile_is_integrated_over_pixels():
    fwhm, beta = 3.2, 3.0
    a = fwhm / (2 * np.sqrt(2 ** (1 / beta) - 1))
    found = moffat_psf(fwhm)
    for y, x in ((0, 0), (0, 1), (2, 3), (7, -5)):
        light = lambda v, u: (beta - 1) / (np.pi * a**2) * (1 + (u**2 + v**2) / a**2) ** -beta  # noqa: E731
        exact, _ = integrate.dblquad(light, x - 0.5, x + 0.5, y - 0.5, y + 0.5)
        inside = 1 - (1 + (PSF_SIDE / 2) ** 2 / a**2) ** (1 - beta)  # of a circle: nearly that of the square
        assert found[MIDDLE + y, MIDDLE + x] == pytest.approx(exact / inside, rel=3e-3)


@pytest.mark.parametrize("fwhm", [1.5, 3.0, 5.0])
def test_a_moffat_profile_is_galsims(fwhm):
    galsim = pytest.importorskip("galsim")
    image = galsim.Moffat(beta=3.0, fwhm=fwhm).drawImage(nx=PSF_SIDE, ny=PSF_SIDE, scale=1.0, dtype=float).array
    np.testing.assert_allclose(moffat_psf(fwhm), image / image.sum(), atol=2e-3 * image.max())


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(25, 44),
    width=st.integers(25, 44),
    dy=st.floats(-4, 4),
    dx=st.floats(-4, 4),
    light=st.floats(1e-3, 1e6),
)
def test_a_star_anywhere_in_any_stamp_is_brought_to_the_middle(height, width, dy, dx, light):
    stamp = light * gaussian((height, width), (height - 1) / 2 + dy, (width - 1) / 2 + dx)
    found = recorded_psf(stamp, "g")
    expected = gaussian((PSF_SIDE, PSF_SIDE), MIDDLE, MIDDLE)
    assert found.shape == (PSF_SIDE, PSF_SIDE) and found.dtype == np.float32
    assert found.sum() == pytest.approx(1, rel=1e-5)
    # Sampled at 1.8 pixels per sigma: what is left is the spline's error, and a star less than 0.02 pixels off.
    np.testing.assert_allclose(found, expected / expected.sum(), atol=0.008 * expected.max() / expected.sum())


@pytest.mark.parametrize(("size", "shift"), [(40, (0.0, 0.0)), (41, (0.3, -0.4)), (40, (5.25, -3.6))])
def test_a_sheared_star_off_the_middle_is_the_one_galsim_draws_there(size, shift):
    galsim = pytest.importorskip("galsim")
    star = galsim.Moffat(beta=3.0, fwhm=3.5).shear(g1=0.1, g2=0.05)
    there = star.drawImage(nx=size, ny=size, scale=1.0, offset=shift, dtype=float).array
    middle = star.drawImage(nx=PSF_SIDE, ny=PSF_SIDE, scale=1.0, dtype=float).array
    np.testing.assert_allclose(recorded_psf(there, "g"), middle / middle.sum(), atol=0.006 * middle.max())


def test_what_is_centred_is_not_interpolated():
    stamp = gaussian((31, 31), 15, 15, sigma=0.6)  # undersampled: any interpolation would show
    cut = stamp[3:-3, 3:-3] / stamp[3:-3, 3:-3].sum()
    np.testing.assert_array_equal(recorded_psf(stamp, "g"), cut.astype(np.float32))
    small = recorded_psf(gaussian((7, 9), 3, 4, sigma=0.6), "g")
    np.testing.assert_allclose(small, cut, atol=1e-6)


def test_spikes_and_noise_do_not_move_the_centre():
    stamp = gaussian((51, 51), 25, 25, sigma=1.2)
    stamp[25, 26:] += 0.01  # a spike to one side, a tenth of the light
    assert np.unravel_index(recorded_psf(stamp, "g").argmax(), (PSF_SIDE, PSF_SIDE)) == (MIDDLE, MIDDLE)
    noisy = gaussian((51, 51), 25, 25) + np.random.default_rng(1).normal(0, 0.003, (51, 51))
    np.testing.assert_allclose(recorded_psf(noisy, "g"), moffat_free(1.8), atol=0.005)


def moffat_free(sigma):
    expected = gaussian((PSF_SIDE, PSF_SIDE), MIDDLE, MIDDLE, sigma)
    return expected / expected.sum()


def test_widths_are_measured_with_the_pixel():
    for sigma in (1.0, 2.0, 3.0):
        found = psf_fwhm_pix(recorded_psf(gaussian((31, 31), 15, 15, sigma), "g"))
        assert found == pytest.approx(2 * np.sqrt(2 * np.log(2)) * sigma, rel=0.02)
    assert np.isnan(psf_fwhm_pix(unknown_psf(1)[0]))


@pytest.mark.parametrize(
    ("stamp", "message"),
    [
        (np.full((25, 25), np.nan), "band g: the PSF holds NaN or infinite pixels; replace them"),
        (np.zeros((25, 25)), "band g: the PSF's pixels add up to 0; it must hold light"),
        (-gaussian((25, 25), 12, 12), "add up to -"),
        (np.ones((2, 25)), "picture of at least 3 x 3 pixels; this one is \\(2, 25\\)"),
        (np.ones(25), "this one is \\(25,\\)"),
        (gaussian((25, 25), 12, 26.5), "the star lies at the border of its picture"),
    ],
)
def test_what_is_no_star_is_refused(stamp, message):
    with pytest.raises(InputError, match=message):
        recorded_psf(stamp, "band g")
