"""Detection on stacks: what a threshold means, in both libraries; positions of segments; ellipses."""

import numpy as np
import pytest

from deepdisc.data.detection import Detect, detect, segment_table, stack
from deepdisc.data.kron import moments
from deepdisc.data.mosaic import Mosaic
from deepdisc.errors import InputError

pytest.importorskip("sep", reason='needs the extra: pip install "deepdisc[classical]"')


@pytest.mark.parametrize(("threshold", "low", "high"), [(4.0, 0, 3), (3.0, 50, 100)])
def test_a_threshold_lets_as_much_noise_pass_as_it_says(threshold, low, high):
    noise = np.random.default_rng(0).normal(size=(1000, 1000)).astype(np.float32)
    clear = np.zeros(noise.shape, bool)
    found = detect(noise.copy(), clear, Detect(threshold=threshold))
    assert low <= found.max() <= high
    pytest.importorskip("photutils")
    pytest.importorskip("skimage")
    other = detect(noise, clear, Detect(method="photutils", threshold=threshold))
    assert abs(int(other.max()) - int(found.max())) <= 0.05 * found.max() + 1


def blobs(separation):
    y, x = np.mgrid[:60, :80]
    image = np.random.default_rng(1).normal(size=(60, 80)).astype(np.float32)
    for centre, peak in ((30, 60), (30 + separation, 40)):
        image += peak * np.exp(-((x - centre) ** 2 + (y - 30) ** 2) / 8).astype(np.float32)
    return image


@pytest.mark.parametrize("method", ["sep", "photutils"])
def test_blends_are_parted_unless_the_contrast_forbids_it(method):
    pytest.importorskip(method)
    pytest.importorskip("skimage")
    image, clear = blobs(8), np.zeros((60, 80), bool)
    parted = segment_table(detect(image, clear, Detect(method=method, smooth_fwhm_pix=2)), image)
    bright = parted[parted.area_pix > 20].sort_values("x")
    np.testing.assert_allclose(bright.x, [30, 38], atol=0.6)
    np.testing.assert_allclose(bright.y, 30, atol=0.6)
    whole = detect(image, clear, Detect(method=method, smooth_fwhm_pix=2, deblend_contrast=1.0))
    assert (np.bincount(whole[whole > 0]) > 20).sum() == 1


def test_faint_neighbours_of_bright_objects_are_not_cleaned_away():
    y, x = np.mgrid[:200, :200]
    bright = 1e5 / (1 + ((x - 100) ** 2 + (y - 100) ** 2) / 9) ** 2.5
    image = (np.random.default_rng(2).normal(size=(200, 200)) + bright).astype(np.float32)
    for cx, cy in ((40, 40), (160, 50), (50, 160)):
        image += (12 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 6)).astype(np.float32)
    found = detect(image, np.zeros(image.shape, bool), Detect(threshold=5))
    assert all(found[cy, cx] > 0 for cx, cy in ((40, 40), (160, 50), (50, 160)))


def mosaic_of(tmp_path, images, rms):
    from astropy.io import fits

    for band, image in images.items():
        fits.PrimaryHDU(image.astype(np.float32)).writeto(tmp_path / f"{band}.fits")
    bands = {band: {"image": f"{tmp_path}/{band}.fits", "unit": "nJy", "rms": rms[band]} for band in images}
    return Mosaic.open({"pixel_scale_arcsec": 0.2, "bands": bands})


def test_the_stack_weights_by_inverse_variance_and_knows_its_holes(tmp_path):
    rng = np.random.default_rng(3)
    images = {"g": rng.normal(0, 2, (300, 300)), "r": rng.normal(0, 5, (300, 300))}
    images["g"][:, :50] = np.nan
    images["r"][:, :20] = np.nan
    expected = (images["g"] / 4 + images["r"] / 25) / np.sqrt(1 / 4 + 1 / 25)
    mosaic = mosaic_of(tmp_path, images, {"g": 2.0, "r": 5.0})
    found, bad = stack(mosaic, Detect(noise="stated"))
    np.testing.assert_allclose(found[:, 50:], expected[:, 50:], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[:, 20:50], images["r"][:, 20:50] / 5, rtol=1e-4, atol=1e-5)
    assert (bad == (np.arange(300) < 20)).all() and (found[bad] == 0).all()
    only = stack(mosaic, Detect(noise="stated", bands=["r"]))[0]
    np.testing.assert_allclose(only[:, 20:], images["r"][:, 20:] / 5, rtol=1e-4, atol=1e-5)


def test_a_stack_is_brought_to_its_measured_noise(tmp_path):
    rng = np.random.default_rng(4)
    mosaic = mosaic_of(
        tmp_path, {"g": rng.normal(3, 2, (300, 300))}, {"g": 1.0}
    )  # twice as noisy as stated, a sky of 3
    found, _ = stack(mosaic, Detect())
    assert found.std() == pytest.approx(1, abs=0.02) and abs(np.median(found)) < 0.02


def test_segments_without_light_have_a_place(tmp_path):
    ids = np.zeros((10, 12), np.int32)
    ids[2:4, 3:6], ids[7, 7:12] = 9, 4
    table = segment_table(ids, -np.ones(ids.shape)).set_index("segment")
    assert table.loc[9].tolist() == [4, 2.5, 6] and table.loc[4].tolist() == [9, 7, 5]
    assert segment_table(np.zeros((5, 5), np.int32)).empty


def test_moments_of_a_tilted_ellipse():
    y, x = np.mgrid[:80, :90] - np.array([40, 44])[:, None, None]
    angle = np.radians(35)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    light = np.exp(-0.5 * ((along / 6) ** 2 + (across / 3) ** 2))
    cx, cy, a, b, theta = moments((light > 1e-6).astype(np.int32), np.array([1]), light)
    np.testing.assert_allclose([cx[0], cy[0]], [44, 40], atol=1e-6)
    np.testing.assert_allclose([a[0], b[0]], [np.hypot(6, 12**-0.5), np.hypot(3, 12**-0.5)], rtol=1e-3)
    assert np.degrees(theta[0]) == pytest.approx(35, abs=0.1)


def test_without_the_library_the_extra_is_named(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(InputError, match=r"needs the package 'sep'.*deepdisc\[classical\]"):
        detect(np.zeros((5, 5), np.float32), np.zeros((5, 5), bool), Detect())
