"""Image, noise, boxes, outlines and shear move together."""

import numpy as np
import pytest

from deepdisc.data.transforms import Sample, add_noise, crop, mirror, quarter_turns


def ellipse(shape=(40, 56), center=(33.2, 14.7), g=(0.3, 0.15), sigma=3.0):
    """A sample with one elliptical Gaussian of ellipticity g = (g1, g2) at (x, y) in edge coordinates."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    g1, g2 = g
    # The covariance of a circle sheared by A = [[1 + g1, g2], [g2, 1 - g1]].
    shear = np.array([[1 + g1, g2], [g2, 1 - g1]])
    inverse = np.linalg.inv(sigma**2 * shear @ shear.T)
    d = np.stack((x - center[0], y - center[1]))
    image = np.exp(-0.5 * np.einsum("ihw,ij,jhw->hw", d, inverse, d)).astype(np.float32)
    segmentation = np.where(image > 0.3, 7, 0).astype(np.int32)
    rows, columns = np.nonzero(segmentation)
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    return Sample(
        image=np.stack((image, 2 * image)),
        variance=np.full((2, *shape), 0.25, np.float32),
        mask=np.zeros((2, *shape), bool),
        segmentation=segmentation,
        ids=np.array([7]),
        boxes=np.array([box], np.float32),
        labels={"snr": np.array([20.0])},
        spin2={"shear": np.array([g])},
        psf=np.stack([psf_of(PSF_SHEAR), psf_of((0.0, 0.2))]),
    )


PSF_SHEAR = (-0.1, 0.25)


def psf_of(g, sigma=2.0):
    """A PSF of that ellipticity with a tail to one side, so that every turn shows."""
    d = np.stack(np.mgrid[:25, :25][::-1] - 12.0)
    shear = np.array([[1 + g[0], g[1]], [g[1], 1 - g[0]]])
    inverse = np.linalg.inv(sigma**2 * shear @ shear.T)
    light = np.exp(-0.5 * np.einsum("ihw,ij,jhw->hw", d, inverse, d))
    light[12, 20] += 1e-4
    return (light / light.sum()).astype(np.float32)


def measured_box(sample):
    rows, columns = np.nonzero(sample.segmentation == 7)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def measured_shear(image):
    """g of the light from its second moments: chi = 2 g / (1 + g^2) for a sheared circle."""
    image = image.astype(float)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    total = image.sum()
    dx, dy = x - (image * x).sum() / total, y - (image * y).sum() / total
    qxx, qyy, qxy = ((image * a * b).sum() for a, b in ((dx, dx), (dy, dy), (dx, dy)))
    chi = np.array([qxx - qyy, 2 * qxy]) / (qxx + qyy)
    return chi * (1 - np.sqrt(1 - (chi**2).sum())) / (chi**2).sum()


def same(a, b):
    return all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for name in ("image", "variance", "mask", "segmentation", "boxes", "psf")
    ) and np.allclose(a.spin2["shear"], b.spin2["shear"])


def test_mirroring_twice_and_four_quarter_turns_are_the_identity():
    sample = ellipse()
    assert same(mirror(mirror(sample)), sample)
    turned = sample
    for _ in range(4):
        turned = quarter_turns(turned, 1)
    assert same(turned, sample)
    assert same(quarter_turns(sample, 4), sample)
    assert not same(quarter_turns(sample, 2), sample)
    assert not same(mirror(sample), sample)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("flip", [False, True])
def test_boxes_masks_image_and_shear_move_together(turns, flip):
    sample = quarter_turns(mirror(ellipse()) if flip else ellipse(), turns)
    assert sample.boxes.tolist() == [measured_box(sample)]
    assert sample.image.shape[1:] == sample.variance.shape[1:] == sample.mask.shape[1:] == sample.segmentation.shape
    np.testing.assert_allclose(sample.spin2["shear"][0], measured_shear(sample.image[0]), atol=2e-3)
    peak = np.unravel_index(sample.image[1].argmax(), sample.shape)
    assert sample.segmentation[peak] == 7


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("flip", [False, True])
def test_the_psf_turns_with_the_image(turns, flip):
    """A star in the picture still is the PSF, pixel by pixel, and its ellipticity turns as that of galaxies does."""
    sample = ellipse(shape=(64, 48))
    sample.image[0, 30:55, 10:35] = sample.psf[0]
    sample.spin2["psf"] = np.array([PSF_SHEAR])
    turned = quarter_turns(mirror(sample) if flip else sample, turns)
    ((y, x),) = np.argwhere(turned.image[0] == turned.psf[0].max())
    np.testing.assert_array_equal(turned.image[0, y - 12 : y + 13, x - 12 : x + 13], turned.psf[0])
    np.testing.assert_allclose(measured_shear(turned.psf[0]), turned.spin2["psf"][0], atol=0.01)
    assert turned.psf.shape == (2, 25, 25) and turned.psf.dtype == np.float32


def test_a_crop_keeps_the_psf_and_an_unknown_one_stays_unknown():
    sample = ellipse()
    assert np.array_equal(crop(sample, 3, 4, 30, 40).psf, sample.psf)
    sample.psf = np.zeros_like(sample.psf)
    assert not quarter_turns(mirror(crop(sample, 3, 4, 30, 40)), 3).psf.any()


def test_what_a_crop_cuts_is_flagged():
    sample = ellipse()
    sample.labels["flags"] = np.array([4], np.int32)
    x0, y0, x1, y1 = sample.boxes[0].astype(int)
    assert crop(sample, y0, x0, y1, x1).labels["flags"] == [4]
    for window in ((y0 + 1, x0, y1, x1), (y0, x0 + 1, y1, x1), (y0, x0, y1 - 1, x1), (y0, x0, y1, x1 - 1)):
        assert crop(sample, *window).labels["flags"] == [4 | 1]
    assert sample.labels["flags"] == [4]


def test_a_crop_shifts_and_cuts_boxes():
    sample = ellipse()
    x0, y0, x1, y1 = sample.boxes[0].astype(int)
    cut = crop(sample, y0 + 2, x0 - 3, y1 + 4, x1 - 1)
    assert cut.boxes.tolist() == [[3, 0, x1 - x0 + 2, y1 - y0 - 2]]
    assert cut.boxes.tolist() == [measured_box(cut)]
    np.testing.assert_array_equal(cut.image, sample.image[:, y0 + 2 : y1 + 4, x0 - 3 : x1 - 1])


def test_added_noise_has_the_variance_that_is_stated():
    sample = ellipse(shape=(300, 300))
    noisy = add_noise(sample, 2.0, np.random.default_rng(1))
    added = noisy.image - sample.image
    # variance 0.25 must become 1.0: 0.75 is added
    assert added.var() == pytest.approx(0.75, rel=0.02)
    np.testing.assert_allclose(noisy.variance, 1.0)
    assert noisy.labels["snr"] == [10.0]
    assert sample.labels["snr"] == [20.0]


def test_masked_pixels_stay_zero_when_noise_is_added():
    sample = ellipse()
    sample.mask[:, :5] = True
    sample.image[sample.mask] = 0
    noisy = add_noise(sample, 1.5, np.random.default_rng(0))
    assert (noisy.image[noisy.mask] == 0).all()
    assert (noisy.image[~noisy.mask] != sample.image[~noisy.mask]).mean() > 0.99
