"""The committed real field opens, and its truth lies on its objects."""

import subprocess
import sys

import numpy as np
import pytest

from deepdisc import catalog
from deepdisc.data.mosaic import Mosaic
from deepdisc.photometry import mag_from_njy


@pytest.fixture(scope="module")
def sample(repository):
    folder = repository / "datasets" / "sdss_sample"
    mosaic = Mosaic.open(folder)
    return mosaic, mosaic.read(0, 0, *mosaic.shape), catalog.read(folder / "truth.parquet")


def test_it_is_small_and_complete(repository, sample):
    mosaic, cutout, truth = sample
    assert sum(path.stat().st_size for path in (repository / "datasets/sdss_sample").iterdir()) < 3e6
    assert mosaic.bands == list("ugriz") and mosaic.shape == (512, 512)
    assert mosaic.pixel_scale_arcsec == pytest.approx(0.396, abs=1e-3)
    assert cutout.mask.mean() < 1e-4
    assert (truth.mag_r < 20.5).sum() >= 30 and len(truth) > 100
    assert truth.redshift.isna().all()
    assert set(truth.class_name) == {"galaxy", "star"}


def test_the_stated_variance_is_the_scatter_of_the_sky(sample):
    mosaic, cutout, _ = sample
    for channel in range(len(mosaic.bands)):
        # Resampled bands scatter less than their noise (their pixels are correlated); r was not resampled.
        scatter = 1.4826 * np.median(np.abs(cutout.image[channel])) / np.sqrt(cutout.variance[channel].mean())
        assert 0.75 < scatter < 1.05
        if mosaic.bands[channel] == "r":
            assert scatter == pytest.approx(1, abs=0.03)


def test_truth_positions_and_magnitudes_agree_with_the_pixels(sample):
    mosaic, cutout, truth = sample
    x, y = mosaic.grid.to_pixel(truth.ra, truth.dec)
    np.testing.assert_allclose(np.c_[x, y], truth[["x", "y"]], atol=1e-3)
    image = cutout.image[mosaic.bands.index("r")]
    yy, xx = np.mgrid[:512, :512]
    offsets, differences = [], []
    # Compact objects without a comparable neighbour within 20 pixels: light inside 5 pixels misses about 0.1 mag.
    inner = truth[(truth.mag_r < 20.5) & truth.x.between(20, 490) & truth.y.between(20, 490)]
    for row in inner[~(inner.hlr_arcsec > 0.8)].itertuples():
        near = (np.hypot(truth.x - row.x, truth.y - row.y) < 20) & (truth.mag_r < row.mag_r + 3)
        if near.sum() > 1:
            continue
        light = image * (np.hypot(xx - row.x, yy - row.y) < 5)
        offsets.append(((light * xx).sum() / light.sum() - row.x, (light * yy).sum() / light.sum() - row.y))
        differences.append(mag_from_njy(light.sum()) - row.mag_r)
    assert len(offsets) >= 10
    assert np.abs(np.median(offsets, axis=0)).max() < 0.1  # half a pixel would show
    assert np.median(differences) == pytest.approx(0.08, abs=0.08)


def test_the_script_says_in_one_line_what_is_missing(repository, tmp_path):
    script = repository / "tools" / "make_sdss_sample.py"
    ran = subprocess.run([sys.executable, script, tmp_path / "none"], capture_output=True, text=True)
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1
    assert "does not hold coadd_catalog_94_1_12.fits" in ran.stderr
