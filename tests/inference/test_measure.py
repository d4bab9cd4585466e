"""Positions measured on the pixels, against known positions and against SExtractor's windowed centroid."""

import numpy as np
import pytest

from deepdisc.catalog import flag_names
from deepdisc.inference.measure import centroids, coverage_flags, edge_flags, stack_bands, windowed_centroid

SHAPE = (60, 64)
Y, X = np.mgrid[: SHAPE[0], : SHAPE[1]]


def blob(x, y, flux, sigma=2.0, axis_ratio=1.0):
    return flux * np.exp(-((X - x) ** 2 / (2 * sigma**2) + (Y - y) ** 2 / (2 * (sigma * axis_ratio) ** 2)))


def box_outline(x0, y0, x1, y1):
    return np.array([[x0, y0, x1, y1]]), [np.ones((y1 - y0, x1 - x0), bool)]


def measure(images, sigmas, regions, crops, mask=None):
    """Centroids on bands of the given noise."""
    images = np.stack(images).astype(np.float32)
    variance = np.broadcast_to(np.array(sigmas, np.float32)[:, None, None] ** 2, images.shape)
    mask = np.zeros(images.shape, bool) if mask is None else mask
    return centroids(stack_bands(images, variance, mask, regions, crops), regions.astype(float), regions, crops)


@pytest.mark.parametrize("center", [(30.0, 30.0), (30.37, 28.81), (33.9, 31.2)])
def test_noiseless_positions_are_recovered_wherever_the_box_sits(center):
    regions, crops = box_outline(24, 22, 40, 37)
    [found] = measure([blob(*center, 100.0)], [1.0], regions, crops)
    np.testing.assert_allclose(found, center, atol=0.01)


def test_noise_decides_between_bands():
    """A band of a hundred times the noise, in which the object sits elsewhere, does not move it."""
    regions, crops = box_outline(22, 22, 42, 38)
    [found] = measure([blob(30.2, 30.6, 100.0), blob(36, 30.6, 100.0)], [1.0, 100.0], regions, crops)
    np.testing.assert_allclose(found, (30.2, 30.6), atol=0.02)


def test_agrees_with_sep():
    sep = pytest.importorskip("sep")
    random = np.random.default_rng(5)
    for _ in range(20):
        x, y = random.uniform(26, 36, 2)
        image = blob(x, y, 60.0, random.uniform(1.2, 3), random.uniform(0.5, 1)) + random.normal(0, 1, SHAPE)
        start, sigma = np.array([round(x), round(y)], float), 1.8
        found = windowed_centroid(image, np.ones(SHAPE, bool), start, sigma)
        sep_x, sep_y, _ = sep.winpos(image, [start[0]], [start[1]], [sigma])
        np.testing.assert_allclose(found, (sep_x[0], sep_y[0]), atol=0.01)


def test_errors_are_what_the_noise_allows():
    """S/N = 50 Gaussian: the error of a matched centroid is sigma / (S/N), here 0.04 px; a windowed one may be 1.5x."""
    random = np.random.default_rng(6)
    amplitude = 50 / np.sqrt(np.pi * 2.0**2)  # S/N of a Gaussian in unit noise: amplitude * sqrt(pi) * sigma
    regions, crops = box_outline(24, 24, 38, 38)
    errors = []
    for _ in range(100):
        center = random.uniform(30, 32, 2)
        errors.append(
            measure([blob(*center, amplitude) + random.normal(0, 1, SHAPE)], [1.0], regions, crops)[0] - center
        )
    assert 0.03 < np.std(errors) < 0.06
    assert np.abs(np.mean(errors, axis=0)).max() < 0.02


def test_a_neighbour_does_not_pull():
    image = blob(28, 30, 100.0) + blob(37, 30, 300.0)
    regions = np.array([[22, 24, 33, 36], [33, 22, 44, 38]])
    crops = [np.ones((12, 11), bool), np.ones((16, 11), bool)]
    found = measure([image], [1.0], regions, crops)
    np.testing.assert_allclose(found, [[28, 30], [37, 30]], atol=0.15)


def test_a_gap_does_not_pull():
    """Three dead columns beside the centre; without their mirror images the mean error is -0.3 px."""
    mask = np.zeros((1, *SHAPE), bool)
    mask[:, :, 33:36] = True
    regions, crops = box_outline(24, 24, 38, 37)
    errors = []
    for x in np.arange(29.5, 31, 0.1):
        image = np.where(mask[0], 0, blob(x, 30.1, 100.0))
        errors.append(measure([image], [1.0], regions, crops, mask)[0] - (x, 30.1))
    assert np.abs(errors).max() < 0.3 and np.abs(np.mean(errors, axis=0)).max() < 0.1


def test_a_level_of_sky_does_not_pull():
    regions, crops = box_outline(25, 20, 41, 38)
    [found] = measure([blob(30.3, 30.1, 100.0) + 500], [1.0], regions, crops)
    np.testing.assert_allclose(found, (30.3, 30.1), atol=0.05)


@pytest.mark.parametrize("image", [np.zeros(SHAPE), np.full(SHAPE, -3.0)])
def test_without_light_the_box_centre_is_given(image):
    regions, crops = box_outline(20, 24, 31, 30)
    [found] = measure([image], [1.0], regions, crops)
    assert found.tolist() == [25.0, 26.5]  # edges 20..31 have the centre 25.5, which is pixel 25.0


def test_an_empty_outline_gives_the_box_centre():
    region, crops = np.zeros((1, 4), int), [np.zeros((0, 0), bool)]
    ones = np.ones((1, *SHAPE), np.float32)
    stack = stack_bands(ones, ones, ones < 0, region, crops)
    [found] = centroids(stack, np.array([[4.0, 6, 10, 12]]), region, crops)
    assert found.tolist() == [6.5, 8.5]


def test_masked_is_not_no_coverage():
    mask = np.zeros((2, 20, 20), bool)
    mask[0, :, 10:] = True
    mask[1, 5, 5] = True
    mask[:, 15:, 15:] = True
    boxes = np.array([[0, 0, 4, 4], [4, 4, 8, 8], [12, 2, 14, 4], [8, 2, 12, 4], [16, 16, 19, 19]])
    crops = [np.ones((y1 - y0, x1 - x0), bool) for x0, y0, x1, y1 in boxes.tolist()]
    flags, blind = coverage_flags(mask, boxes.astype(float), boxes, crops)
    assert [flag_names(value) for value in flags] == [[], ["MASKED"], ["NO_COVERAGE"], ["MASKED"], ["NO_COVERAGE"]]
    assert blind.tolist() == [False] * 4 + [True]


def test_edge_flags():
    boxes = np.array([[0, 5, 3, 8], [1, 5, 3, 8], [5, 0.3, 8, 4], [15, 5, 20, 8], [5, 6, 8, 10], [5, 5, 19, 9]], float)
    assert [bool(value) for value in edge_flags(boxes, (10, 20))] == [True, False, True, True, True, False]
