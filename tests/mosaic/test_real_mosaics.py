"""Real survey files: SDSS (bands displaced, bzip2), KiDS + VIKING (no WCS, HCOMPRESS), JWST (depth varies, weights)."""

import numpy as np
import pytest

from deepdisc.data.mosaic import Mosaic
from deepdisc.data.regrid import regrid
from deepdisc.errors import InputError

KIDS_BANDS = ["u", "g", "r", "i", "Z", "Y", "J", "H", "Ks"]


@pytest.fixture(scope="module")
def images(shared_data):
    return shared_data / "data" / "images"


@pytest.mark.slow
def test_sdss_bands_are_displaced_and_regridding_brings_them_together(images, tmp_path):
    pytest.importorskip("reproject")
    folder = images / "sdss_run94_field12_ugriz"
    frames = {band: folder / f"frame-{band}-000094-1-0012.fits.bz2" for band in "rg"}
    with pytest.raises(
        InputError, match=r"g is displaced from r by up to 1[0-9]\.\d\d pixels.* deepdisc regrid r=.* g="
    ):
        Mosaic.open(frames)
    with Mosaic.open(regrid(frames, tmp_path, "r")) as mosaic:
        assert mosaic.shape == (1489, 2048) and mosaic.pixel_scale_arcsec == pytest.approx(0.396, abs=1e-3)
        cutout = mosaic.read(0, 0, 1489, 2048)
    assert 0 < cutout.mask[1].mean() < 0.03  # the strip that g does not cover is masked
    r, g = (np.where(cutout.mask[k], 0, cutout.image[k]) for k in (0, 1))
    y, x = np.unravel_index(np.argsort(r[100:-100, 100:-100], axis=None)[-1], (1289, 1848))
    box = slice(y + 90, y + 111), slice(x + 90, x + 111)
    yy, xx = np.mgrid[:21, :21]
    centers = [((part[box] * xx).sum() / part[box].sum(), (part[box] * yy).sum() / part[box].sum()) for part in (r, g)]
    np.testing.assert_allclose(centers[0], centers[1], atol=0.3)


def test_kids_viking_opens_with_a_stated_pixel_scale_and_has_no_sky_positions(images):
    files = {band: images / "kids_viking_9band" / f"{band}.fits" for band in KIDS_BANDS}
    with pytest.raises(InputError, match="has no WCS, .*--pixel-scale"):
        Mosaic.open(files)
    with pytest.raises(InputError, match="band u: .* no zero point"):
        Mosaic.open(files, pixel_scale=0.339)
    zero_points = {band: 0.0 if band in "ugri" else 30.0 for band in KIDS_BANDS}
    mosaic = Mosaic.open(files, pixel_scale=0.339, zero_points=zero_points)
    assert mosaic.shape == (2600, 2600) and mosaic.grid.wcs is None
    with mosaic.select("r,z=Z") as two:
        cutout = two.read(1000, 1000, 1256, 1256)
    assert not cutout.mask.any()
    significance = cutout.image / np.sqrt(cutout.variance)
    np.testing.assert_allclose(1.4826 * np.median(np.abs(significance), axis=(1, 2)), 1, atol=0.25)


def test_jwst_units_weights_and_changing_depth(images):
    stem = f"{images}/jwst_primer_uds_A/uds-test-"
    files = {band: f"{stem}{band}_sci.fits" for band in ("f115w", "f444w", "f770w")}
    weight = {band: f"{stem}{band}_wht.fits.gz" for band in ("f115w", "f444w")}
    with Mosaic.open(files, weight=weight) as mosaic:
        assert [entry["zero_point"] for entry in mosaic.metadata["bands"].values()] == [pytest.approx(28.9)] * 3
        assert mosaic.pixel_scale_arcsec == pytest.approx(0.04, rel=1e-6)
        plain = mosaic.read(0, 0, 820, 1000)
    with Mosaic.open(files, weight=weight, weight_scale="auto") as mosaic:
        scaled = mosaic.read(0, 0, 820, 1000)
    depth = np.sqrt(plain.variance[1])
    assert np.percentile(depth, 95) / np.percentile(depth, 5) > 2  # F444W has two depths
    for channel, expected in ((0, 0.92), (1, 0.69)):
        ratio = plain.image[channel] / np.sqrt(plain.variance[channel])
        assert 1.4826 * np.median(np.abs(ratio - np.median(ratio))) == pytest.approx(expected, abs=0.02)
        assert (scaled.variance[channel] < plain.variance[channel]).all()
    assert not plain.mask.any()
