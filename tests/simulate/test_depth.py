"""The measured depth of images whose noise is known."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from deepdisc.photometry import njy_from_mag
from deepdisc.simulate import Sky
from deepdisc.simulate.conditions import draw_conditions
from deepdisc.simulate.depth import empty_fluxes, flux_kernel, measure_depth
from deepdisc.simulate.instruments import Instrument

SHAPE = (700, 800)


@pytest.fixture(scope="module", params=[None, 2.0], ids=["psf", "aperture"])
def observed(request):
    """Conditions of SDSS r, its depth defined with the PSF or in an aperture of 2 arcsec, and an image of its noise."""
    instrument = Instrument.load("sdss", ["r"])
    band = replace(instrument.bands[0], depth_aperture_arcsec=request.param)
    instrument = replace(instrument, bands=(band,))
    conditions = draw_conditions(Sky(shape=SHAPE, bands=["r"]), instrument, 0, np.random.default_rng(0))
    noise = np.random.default_rng(1).normal(0, conditions.sky_sigma_njy()[0], SHAPE)
    return conditions, noise


def measured(conditions, image, is_empty=None):
    is_empty = np.ones(image.shape, bool) if is_empty is None else is_empty
    return measure_depth(image, is_empty, conditions, 0, np.random.default_rng(2))


def test_white_noise_has_the_stated_depth(observed):
    conditions, noise = observed
    found = measured(conditions, noise)
    assert found["stated"] == pytest.approx(conditions.depth_5sigma[0])
    assert found["depth"] == pytest.approx(found["stated"], abs=max(0.02, 4 * found["depth_err"]))
    assert found["n"] > 1000 and 0 < found["depth_err"] < 0.05


def test_twice_the_noise_is_0_75_mag_shallower(observed):
    conditions, noise = observed
    change = measured(conditions, 2 * noise)["depth"] - measured(conditions, noise)["depth"]
    assert change == pytest.approx(-2.5 * math.log10(2), abs=1e-6)


def test_correlated_noise_is_shallower_than_its_pixels_say(observed):
    conditions, noise = observed
    smooth = ndimage.gaussian_filter(noise, 1.5)
    smooth *= noise.std() / smooth.std()
    assert measured(conditions, smooth)["depth"] < conditions.depth_5sigma[0] - 0.5


def test_a_smooth_background_does_not_count(observed):
    conditions, noise = observed
    y, x = np.indices(SHAPE) / 800
    sloped = noise + 5 * noise.std() * (1 + 2 * x - y + 3 * x * y)
    change = measured(conditions, sloped)["depth"] - measured(conditions, noise)["depth"]
    assert abs(change) < 0.01


def test_sources_in_a_tenth_of_the_places_hardly_count(observed):
    conditions, noise = observed
    image, rng = noise.copy(), np.random.default_rng(3)
    places = [rng.integers(0, side, 400) for side in SHAPE]
    image[tuple(places)] += 20 * njy_from_mag(conditions.depth_5sigma[0])
    change = measured(conditions, image)["depth"] - measured(conditions, noise)["depth"]
    assert -0.25 < change <= 0, "the standard deviation would be 2 mag off"


def test_objects_and_bad_pixels_are_left_out(observed):
    conditions, noise = observed
    rng = np.random.default_rng(4)
    bad = rng.uniform(size=SHAPE) < 0.001
    image = np.where(bad, np.nan, noise)
    found = measured(conditions, image, ~bad)
    assert found["depth"] == pytest.approx(found["stated"], abs=max(0.03, 4 * found["depth_err"]))
    part = (slice(0, 350), slice(0, 350))
    assert 100 < measured(conditions, image[part], ~bad[part])["n"] < measured(conditions, noise[part])["n"]


def test_a_crowded_field_says_nothing(observed):
    conditions, noise = observed
    nowhere = np.zeros(SHAPE, bool)
    nowhere[:40, :40] = True
    found = measured(conditions, noise, nowhere)
    assert math.isnan(found["depth"]) and math.isnan(found["depth_err"]) and found["n"] < 30


def test_the_kernel_gives_the_total_flux_of_a_point_source(observed):
    conditions, _ = observed
    kernel = flux_kernel(conditions, 0)
    star = conditions.psf(0).withFlux(100.0).drawImage(nx=len(kernel), ny=len(kernel), scale=0.396, dtype=float).array
    assert (kernel * star).sum() == pytest.approx(100, rel=1e-3)


def test_places_do_not_overlap_and_avoid_objects():
    is_empty = np.ones((50, 50), bool)
    is_empty[10, 10] = False
    image = np.where(is_empty, 1.0, 1e9)
    fluxes = empty_fluxes(image, is_empty, np.ones((5, 5)), np.random.default_rng(0))
    assert 80 <= len(fluxes) <= 99 and np.allclose(fluxes, 0), "a constant is a background"
