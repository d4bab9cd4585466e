"""The noise mesh: right for Gaussian noise, blind to objects, smooth, and finite everywhere."""

import numpy as np
import pytest

from deepdisc.data.noise import BLOCK_PIX, NoiseMesh, blocks, clipped_level_and_noise, estimate_mesh
from deepdisc.errors import InputError


def reader(image, bad=None):
    bad = np.zeros(image.shape, bool) if bad is None else bad
    return lambda y0, x0, y1, x1: (image[y0:y1, x0:x1], bad[y0:y1, x0:x1])


def test_level_and_noise_of_gaussian_pixels(rng):
    level, sigma = clipped_level_and_noise(rng.normal(7, 2, 400_000))
    assert level == pytest.approx(7, abs=0.02)
    assert sigma == pytest.approx(2, rel=0.01)


def test_bright_objects_hardly_change_the_noise(rng):
    pixels = rng.normal(0, 1, 60_000)
    pixels[:3000] += rng.exponential(100, 3000)
    level, sigma = clipped_level_and_noise(pixels)
    assert abs(level) < 0.1
    assert sigma == pytest.approx(1, rel=0.08)


def test_coarsely_quantised_pixels_have_noise(rng):
    level, sigma = clipped_level_and_noise(np.round(rng.normal(0, 0.4, 100_000)))
    assert level == 0 and 0.3 < sigma < 0.7


@pytest.mark.parametrize("shape", [(1, 1), (100, 5000), (513, 700), (256, 256)])
def test_blocks_cover_every_pixel_once(shape):
    seen = np.zeros(shape, int)
    for _, _, y0, x0, y1, x1 in blocks(shape):
        seen[y0:y1, x0:x1] += 1
        assert max(y1 - y0, x1 - x0) <= 1.5 * BLOCK_PIX
    assert (seen == 1).all()


def test_the_mesh_follows_a_step_in_depth_and_a_sloping_sky(rng):
    y, x = np.mgrid[:1536, :1024]
    sigma = np.where(y < 768, 1.0, 3.0)
    image = rng.normal(0, 1, y.shape) * sigma + 0.001 * x
    mesh = estimate_mesh(reader(image.astype(np.float32)), image.shape, "band g")
    for rows, expected in ((slice(0, 384), 1.0), (slice(1152, 1536), 3.0)):
        assert np.sqrt(mesh.variance_at(0, 0, 1536, 1024)[rows]).mean() == pytest.approx(expected, rel=0.03)
    level = mesh.level_at(0, 0, 1536, 1024)[:, 300:700]
    assert np.abs(level - 0.001 * x[:, 300:700]).max() < 0.1


def test_interpolation_does_not_depend_on_the_rectangle(rng):
    mesh = NoiseMesh((1000, 777), rng.normal(size=(4, 3)), rng.uniform(1, 2, (4, 3)))
    whole = mesh.variance_at(0, 0, 1000, 777)
    assert whole.dtype == np.float32 and (whole > 0).all()
    np.testing.assert_array_equal(mesh.variance_at(123, 45, 600, 700), whole[123:600, 45:700])
    # At a block's centre (edge coordinate 125, 129.5) the mesh's own value: between the pixels 124 and 125 there.
    assert np.sqrt(whole[124:126, 129]).mean() == pytest.approx(mesh.sigma[0, 0], rel=0.02)


def test_blocks_without_pixels_take_the_nearest_value(rng):
    image = rng.normal(0, 2, (1024, 1024)).astype(np.float32)
    bad = np.zeros(image.shape, bool)
    bad[:, 512:] = True
    image[bad] = np.nan
    mesh = estimate_mesh(reader(image, bad), image.shape, "band g")
    assert np.isfinite(mesh.sigma).all()
    np.testing.assert_allclose(mesh.sigma, 2, rtol=0.05)


def test_a_few_valid_pixels_are_enough(rng):
    image = rng.normal(0, 2, (300, 300)).astype(np.float32)
    bad = np.ones(image.shape, bool)
    bad[10:15, 10:20] = False
    assert 0.5 < estimate_mesh(reader(image, bad), image.shape, "band g").sigma[0, 0] < 4


def test_a_constant_image_has_no_measurable_noise():
    with pytest.raises(InputError, match="band g: its noise cannot be measured .* give a variance, rms or weight map"):
        estimate_mesh(reader(np.ones((64, 64), np.float32)), (64, 64), "band g")
