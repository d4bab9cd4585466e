"""The baselines find what is plainly there, at the right place and with the right flux."""

import sys

import numpy as np
import pandas as pd
import pytest

from deepdisc.catalog import validate
from deepdisc.sky import PixelGrid

pytest.importorskip("sep", reason="needs the extra `classical`")


@pytest.fixture(scope="module")
def baselines(repository):
    sys.path.insert(0, str(repository / "benchmarks"))
    import baselines

    yield baselines
    sys.path.remove(str(repository / "benchmarks"))


class Field:
    """Six Gaussian sources, FWHM 3 pixels, in two bands of different depth."""

    bands = ["g", "r"]
    shape = (96, 128)
    pixel_scale_arcsec = 0.4
    metadata = {"bands": {band: {"psf_fwhm_arcsec": 1.2} for band in bands}}
    grid = PixelGrid(shape, 0.4)
    x = np.array([20.3, 60.0, 100.7, 25.0, 64.5, 101.0])
    y = np.array([20.0, 24.6, 18.2, 70.0, 72.0, 66.6])
    flux = np.outer([500.0, 800.0, 2000.0, 500.0, 900.0, 4000.0], [1.0, 2.0])

    def read(self, y0, x0, y1, x1):
        from types import SimpleNamespace

        rng = np.random.default_rng(5)
        noise = np.array([2.0, 6.0])[:, None, None]
        image = rng.normal(0, 1, (2, *self.shape)) * noise
        row, column = np.mgrid[: self.shape[0], : self.shape[1]]
        sigma = 3.0 / 2.3548
        for i in range(6):
            blob = np.exp(-0.5 * ((column - self.x[i]) ** 2 + (row - self.y[i]) ** 2) / sigma**2) / (
                2 * np.pi * sigma**2
            )
            image += self.flux[i][:, None, None] * blob
        return SimpleNamespace(
            image=image.astype(np.float32), variance=np.broadcast_to(noise**2, image.shape).astype(np.float32),
            mask=np.zeros(image.shape, bool),
        )  # fmt: skip


def test_sep_finds_the_sources_where_they_are(baselines):
    catalog, labels = baselines.detect_with_sep(Field())
    validate(catalog, ["id", "x", "y", "x_min", "score", "flux_g", "mag_r", "snr"])
    bright = catalog[catalog["score"] > 15]
    assert len(bright) == 6
    order = [int(np.argmin(np.hypot(bright["x"] - x, bright["y"] - y))) for x, y in zip(Field.x, Field.y, strict=True)]
    assert sorted(order) == list(range(6))
    found = bright.iloc[order]
    assert np.abs(found["x"].to_numpy() - Field.x).max() < 0.25
    assert np.abs(np.mean(found["x"].to_numpy() - Field.x)) < 0.06  # no half-pixel shift
    assert np.abs(np.mean(found["y"].to_numpy() - Field.y)) < 0.06
    np.testing.assert_allclose(found["flux_g"], Field.flux[:, 0], rtol=0.25)
    for row in found.itertuples():
        inside = np.argwhere(labels == row.id)
        assert (inside.min(0) == [row.y_min, row.x_min]).all() and (inside.max(0) + 1 == [row.y_max, row.x_max]).all()


def test_significance_of_a_point_source_by_hand(baselines):
    # Signal-to-noise of a source with profile k and flux f in white noise s: f sqrt(sum k^2) / s, with sum k = 1.
    kernel = baselines.gaussian_kernel(3.0)
    image = np.zeros((41, 41))
    half = len(kernel) // 2
    image[20 - half : 21 + half, 20 - half : 21 + half] = 700 * kernel / kernel.sum()
    expected = 700 * np.sqrt((kernel**2).sum()) / kernel.sum() / 5.0
    assert baselines.peak_significance(image, np.full((41, 41), 5.0), 3.0)[20, 20] == pytest.approx(expected, rel=1e-6)


def test_detection_image_weighs_bands_by_their_depth(baselines):
    image, variance = np.ones((2, 3, 3)), np.stack((np.full((3, 3), 1.0), np.full((3, 3), 4.0)))
    image[1] = 3.0
    masked = np.zeros((2, 3, 3), bool)
    masked[1, 0, 0] = masked[:, 2, 2] = True
    total, noise, empty = baselines.weighted_sum(image, variance, masked, np.array([1.0, 1.0]))
    assert total[1, 1] == pytest.approx((1 + 3 / 4) / (1 + 1 / 4)) and noise[1, 1] == pytest.approx(1 / np.sqrt(1.25))
    assert total[0, 0] == pytest.approx(1.0) and empty.sum() == 1 and empty[2, 2]


def test_forest_learns_colours(baselines):
    pytest.importorskip("sklearn", reason="needs the extra `bench`")
    rng = np.random.default_rng(0)
    z = rng.uniform(0, 1, 600)
    features = pd.DataFrame({"colour": z * 2 + rng.normal(0, 0.05, 600), "noise": rng.normal(size=600)})
    forest = baselines.train_forest(features[:400], z[:400], jobs=1)
    assert np.std(forest.predict(features[400:].to_numpy()) - z[400:]) < 0.2 * np.std(z)


def test_features_are_finite_and_named_by_band(baselines):
    pytest.importorskip("sklearn", reason="needs the extra `bench`")
    features = baselines.colour_features(Field(), Field.x, Field.y, 0.05)
    assert np.isfinite(features.to_numpy()).all() and "g-r_3.0" in features
    true_colour = 2.5 * np.log10(2.0)
    np.testing.assert_allclose(features["g-r_3.0"], true_colour, atol=0.15)
