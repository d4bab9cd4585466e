"""Noise, its correlation, uneven sky and scattered light: what is measured on pixels is what was asked for."""

import numpy as np
import pytest

from deepdisc.simulate.noise import (
    add_ghosts,
    add_halos,
    add_noise,
    correlate_noise,
    resampling_kernel,
    sky_plane,
    smooth_field,
    wisps,
)

SHAPE = (400, 500)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_where_a_quarter_of_the_exposures_was_taken_the_variance_is_four_times_as_large():
    light = np.full(SHAPE, 300.0, dtype=np.float32)
    coverage = np.ones(SHAPE, dtype=np.float32)
    coverage[:, 250:] = 0.25
    image, variance = add_noise(light, 100.0, 0.05, True, rng(), coverage)
    full = 100.0**2 + 300.0 / 0.05
    for columns, expected in ((slice(0, 250), full), (slice(250, 500), 4 * full)):
        assert image[:, columns].var() == pytest.approx(expected, rel=0.03)
        assert image[:, columns].mean() == pytest.approx(300, abs=4 * np.sqrt(expected / 1e5))
        assert variance[:, columns].mean() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("kind", ["bilinear", "lanczos3", "gaussian"])
def test_correlated_noise_has_the_kernels_correlation_and_the_large_apertures_noise(kind):
    kernel = resampling_kernel(kind, (0.3, 0.5), 0.7)
    assert [weights.sum() for weights in kernel] == pytest.approx([1, 1])
    image, variance = add_noise(np.zeros((800, 800), np.float32), 10.0, 1.0, False, rng(1), kernel=kernel)
    assert (variance == 100).all(), "the variance states the noise before it was correlated"
    for y, x in ((0, 0), (0, 1), (1, 0), (1, 1), (0, 2)):
        expected = 100.0
        for weights, lag in zip(kernel, (y, x), strict=True):
            expected *= (weights[lag:] * weights[: len(weights) - lag]).sum()
        measured = (image * np.roll(image, (y, x), (0, 1))).mean()
        assert measured == pytest.approx(expected, abs=1.2), (y, x)
    # 16 x 16 apertures: the sum's variance is that of white noise but for the kernel's width at the border.
    sums = image.reshape(50, 16, 50, 16).sum(axis=(1, 3))
    assert sums.var() == pytest.approx(256 * 100, rel=0.15)
    assert image.var() < 70


@pytest.mark.parametrize(("kind", "fraction", "expected"), [("bilinear", 0.5, 0.5), ("lanczos3", 0.0, 1.0)])
def test_kernels_against_their_sum_of_squares_by_hand(kind, fraction, expected):
    along_y, along_x = resampling_kernel(kind, (fraction, 0.0), 0.0)
    assert (along_y**2).sum() == pytest.approx(expected) and (along_x**2).sum() == pytest.approx(1)


def test_a_lanczos_kernel_moves_a_smooth_wave_by_its_fraction():
    y = np.arange(64)
    wave = np.tile(np.sin(2 * np.pi * 4 * y / 64)[:, None], (1, 64))
    moved = correlate_noise(wave, resampling_kernel("lanczos3", (0.3, 0.0), 0.0))
    expected = np.sin(2 * np.pi * 4 * (y - 0.3) / 64)
    np.testing.assert_allclose(moved[:, 5], expected, atol=0.01)


def test_the_objects_photon_noise_stays_in_place_and_the_light_is_not_smeared():
    light = np.zeros((200, 200), dtype=np.float32)
    light[100, 100] = 1e6
    image, _ = add_noise(light.copy(), 1.0, 1.0, False, rng(), kernel=resampling_kernel("gaussian", (0, 0), 1.0))
    assert image[100, 100] == pytest.approx(1e6, rel=0.01) and abs(image[100, 110]) < 10


def test_a_sky_plane_rises_by_one_across_the_field():
    plane = sky_plane(SHAPE, rng(3))
    assert plane.max() - plane.min() == pytest.approx(1, abs=1e-6) and plane.mean() == pytest.approx(0, abs=1e-6)
    assert np.ptp(np.diff(plane, axis=0)) < 1e-6 and np.ptp(np.diff(plane, axis=1)) < 1e-6


def test_a_smooth_field_changes_over_its_scale():
    fields = [smooth_field(SHAPE, 40.0, rng(seed)) for seed in range(20)]
    assert np.std(fields) == pytest.approx(1) and np.mean(fields) == pytest.approx(0, abs=1e-5)

    def correlation(lag):
        return np.mean([(one[:, lag:] * one[:, :-lag]).mean() for one in fields])

    assert correlation(5) > 0.9 and abs(correlation(100)) < 0.2 and correlation(20) < 0.85


def test_wisps_are_long_faint_patches():
    light = wisps((300, 300), 1, rng(4))
    assert light.max() <= 1 and light.min() >= 0
    y, x = np.indices(light.shape)
    moments = np.cov(np.stack([y.ravel(), x.ravel()]), aweights=light.ravel())
    short, long = np.sqrt(np.linalg.eigvalsh(moments))
    assert long > 2 * short


def test_a_halo_holds_its_share_of_the_light():
    light = np.zeros((1201, 1201), dtype=np.float32)
    add_halos(light, [(600.0, 600.0, 1e8)], 0.02, 5.0, 1.0)
    # Beyond R the profile (1 + r^2/a^2)^-3/2 holds a / sqrt(R^2 + a^2) of its light: it ends where the level is 0.02.
    y, x = np.indices(light.shape) - 600
    inside = light[np.hypot(y, x) < 200].sum()
    assert inside == pytest.approx(2e6 * (1 - 5 / np.hypot(200, 5)), rel=0.005)
    assert light[600, 600 + 20] == pytest.approx(2e6 / (2 * np.pi * 25) * (1 + 16) ** -1.5, rel=1e-3)
    bowl = np.zeros((100, 100), dtype=np.float32)
    add_halos(bowl, [(50.0, 50.0, 1e8), (20.0, 20.0, 1.0)], -0.02, 5.0, 1.0)
    assert bowl[50, 50] < 0 and bowl.max() <= 0


def test_faint_stars_have_no_halo():
    light = np.zeros((100, 100), dtype=np.float32)
    add_halos(light, [(50.0, 50.0, 100.0)], 0.01, 5.0, 1.0)
    assert not light.any()


def test_a_ghost_is_a_ring_opposite_to_its_star():
    light = np.zeros((300, 400), dtype=np.float32)
    add_ghosts(light, [(300.0, 60.0, 1e8)], 0.001, 30.0, 1.0)
    assert light.sum() == pytest.approx(1e5, rel=0.02)
    y, x = np.indices(light.shape)
    center = [(axis * light).sum() / light.sum() for axis in (x, y)]
    assert center == pytest.approx([399 - 300, 299 - 60], abs=0.2)
    assert light[299 - 60, 399 - 300] == 0 and light[299 - 60, 399 - 300 + 20] > 0


@pytest.mark.parametrize("place", [(-500.0, 50.0), (50.0, 1e6)])
def test_light_of_stars_far_outside_is_cut_at_the_field(place):
    light = np.zeros((100, 100), dtype=np.float32)
    add_halos(light, [(*place, 1e6)], 0.01, 5.0, 1.0)
    add_ghosts(light, [(*place, 1e6)], 0.01, 5.0, 1.0)
    assert light.shape == (100, 100)
