"""Mosaics: every way to write one down gives the same pixels, in nJy, with variance and mask."""

import gzip
import pickle
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fitsio
import numpy as np
import pytest
import yaml
from astropy.io import fits
from fits_files import PIXEL_SCALE_ARCSEC, wcs_header, write

from deepdisc.data.mosaic import Mosaic
from deepdisc.errors import InputError


def read_all(mosaic):
    return mosaic.read(0, 0, *mosaic.shape)


def save_yaml(path: Path, **content) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


# -------------------------------------------------------------------------------------------------- ways to open
def test_pairs_mapping_yaml_folder_cube_and_extensions_are_the_same_mosaic(pair, tmp_path):
    files, pixels = pair
    header = wcs_header((90, 70))
    header["BANDS"] = "g,r"
    fits.PrimaryHDU(np.stack([pixels["g"], pixels["r"]]), header).writeto(tmp_path / "cube.fits")
    extensions = [fits.ImageHDU(pixels[band], wcs_header((90, 70)), name=band) for band in ("g", "r")]
    fits.HDUList([fits.PrimaryHDU(), *extensions]).writeto(tmp_path / "mef.fits")
    (tmp_path / "r.fits.gz").write_bytes(gzip.compress(files["r"].read_bytes()))
    save_yaml(tmp_path / "mosaic.yaml", name="field", bands={"g": {"image": "g.fits"}, "r": "r.fits.gz"})
    sources = [
        [f"g={files['g']}", f"r={files['r']}"],
        {"g": files["g"], "r": str(files["r"])},
        {"bands": {"g": {"image": str(files["g"])}, "r": {"image": str(files["r"])}}},
        tmp_path / "mosaic.yaml",
        str(tmp_path),
        tmp_path / "cube.fits",
        {"g": {"image": f"{tmp_path}/cube.fits", "plane": 0}, "r": {"image": f"{tmp_path}/cube.fits", "plane": 1}},
        f"{tmp_path}/cube.fits[0]",
        {band: f"{tmp_path}/mef.fits[{band}]" for band in "gr"},
    ]
    for source in sources:
        with Mosaic.open(source) as mosaic:
            assert mosaic.bands == ["g", "r"] and mosaic.shape == (90, 70)
            assert mosaic.pixel_scale_arcsec == pytest.approx(PIXEL_SCALE_ARCSEC)
            cutout = read_all(mosaic)
            np.testing.assert_allclose(cutout.image, np.stack([pixels["g"], pixels["r"]]), rtol=1e-6)
            assert cutout.image.dtype == cutout.variance.dtype == np.float32 and cutout.mask.dtype == bool
            assert not cutout.mask.any()
    with Mosaic.open(tmp_path / "mef.fits", bands="r,g") as mosaic:  # FITS writers fold EXTNAME to capitals
        assert mosaic.bands == ["r", "g"]
        np.testing.assert_allclose(read_all(mosaic).image[0], pixels["r"], rtol=1e-6)


def test_a_cube_without_names_takes_those_given_in_order(tmp_path, rng):
    cube = rng.normal(size=(3, 20, 20)).astype(np.float32)
    write(tmp_path / "cube.fits", cube)
    with Mosaic.open(tmp_path / "cube.fits", bands=["u", "v=V", "w"]) as mosaic:
        assert mosaic.bands == ["u", "v", "w"]
        np.testing.assert_array_equal(read_all(mosaic).image, cube)


def test_bands_are_selected_renamed_and_reordered(pair):
    files, pixels = pair
    mosaic = Mosaic.open(files)
    for bands in ("r,x=g", ["r", "x=g"], {"r": "r", "x": "g"}):
        for chosen in (mosaic.select(bands), Mosaic.open(files, bands=bands)):
            assert chosen.bands == ["r", "x"]
            np.testing.assert_array_equal(read_all(chosen).image, np.stack([pixels["r"], pixels["g"]]))
    assert mosaic.select("x=g").metadata["bands"]["x"]["band"] == "g"


# ------------------------------------------------------------------------------------------------------ the units
def test_zero_points_come_from_the_caller_then_yaml_then_the_header(tmp_path):
    ones = np.ones((8, 8), np.float32)
    header = wcs_header(ones.shape, zero_point=22.5)
    write(tmp_path / "a.fits", ones, header=header)
    nanomaggy_njy = 3631.0  # 10^(0.4 (31.4 - 22.5)) to 0.1 %

    def value(spec=None, **options):
        return read_all(Mosaic.open({"a": {"image": f"{tmp_path}/a.fits", "variance": 1.0} | (spec or {})}, **options))

    assert value().image[0, 0, 0] == pytest.approx(nanomaggy_njy, rel=1e-3)
    assert value().variance[0, 0, 0] == pytest.approx(nanomaggy_njy**2, rel=2e-3)
    assert value({"zero_point": 31.4}).image[0, 0, 0] == pytest.approx(1)
    assert value({"unit": "uJy"}).image[0, 0, 0] == pytest.approx(1000)
    assert value({"unit": "uJy"}, zero_points=28.9).image[0, 0, 0] == pytest.approx(10)
    assert value(zero_points={"a": "nJy"}).image[0, 0, 0] == pytest.approx(1)
    assert value(zero_points=["a=26.4"]).image[0, 0, 0] == pytest.approx(100)
    header["BUNIT"], header["ZP"], header["PHOTMJSR"] = "10.0*nanoJansky", 26.5, 0.48  # as grizli's mosaics
    write(tmp_path / "a.fits", ones, header=header)
    assert value().image[0, 0, 0] == pytest.approx(10)


def test_the_zero_point_may_stand_in_the_primary_header(tmp_path):
    primary = fits.PrimaryHDU()
    primary.header["MAGZERO"] = 28.9
    image = fits.ImageHDU(np.ones((8, 8), np.float32), wcs_header((8, 8), zero_point=None), name="SCI")
    fits.HDUList([primary, image]).writeto(tmp_path / "a.fits")
    mosaic = Mosaic.open({"a": {"image": f"{tmp_path}/a.fits[SCI]", "variance": 1}})
    assert read_all(mosaic).image[0, 0, 0] == pytest.approx(10)


def test_extreme_zero_points_do_not_overflow(tmp_path, rng):
    flux = rng.normal(0, 1e-11, (40, 40))  # maggies, as KiDS
    write(tmp_path / "a.fits", flux.astype(np.float32), zero_point=0.0)
    write(tmp_path / "w.fits", np.full(flux.shape, 1e22))
    cutout = read_all(Mosaic.open({"a": tmp_path / "a.fits"}, weight={"a": tmp_path / "w.fits"}))
    assert not cutout.mask.any()
    np.testing.assert_allclose(cutout.image[0] / np.sqrt(cutout.variance[0]), flux / 1e-11, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------------------- noise and masks
@pytest.mark.parametrize("kind", ["variance", "rms", "weight"])
@pytest.mark.parametrize("dtype", [">f4", "f8"])
def test_noise_maps_give_the_same_variance_and_mask(tmp_path, rng, kind, dtype):
    image = rng.normal(size=(30, 40)).astype(np.float32)
    truth = rng.uniform(1, 4, image.shape)
    values = {"variance": truth, "rms": np.sqrt(truth), "weight": 1 / truth}[kind].astype(dtype)
    values[0, :3] = 0, np.nan, -1
    image[5, 5], image[5, 6] = np.nan, np.inf
    write(tmp_path / "a.fits", image)
    write(tmp_path / "map.fits", values, header=None)  # maps need no WCS
    cutout = read_all(Mosaic.open({"a": {"image": f"{tmp_path}/a.fits", kind: f"{tmp_path}/map.fits"}}))
    bad = np.zeros(image.shape, bool)
    bad[0, :3] = bad[5, 5:7] = True
    np.testing.assert_array_equal(cutout.mask[0], bad)
    np.testing.assert_allclose(cutout.variance[0][~bad], truth[~bad], rtol=1e-5)
    assert (cutout.image[0][bad] == 0).all() and (cutout.variance[0][bad] == 1).all()


def test_a_variance_extension_of_the_images_own_file_is_used(tmp_path, rng):
    image = rng.normal(size=(30, 40)).astype(np.float32)
    variance = rng.uniform(1, 2, image.shape).astype(np.float32)
    hdus = [fits.PrimaryHDU(image, wcs_header(image.shape)), fits.ImageHDU(variance, name="VARIANCE")]
    fits.HDUList(hdus).writeto(tmp_path / "g.fits")
    mosaic = Mosaic.open([f"g={tmp_path}/g.fits"])
    np.testing.assert_allclose(read_all(mosaic).variance[0], variance, rtol=1e-6)
    assert mosaic.metadata["bands"]["g"]["noise_kind"] == "variance"
    named = [fits.ImageHDU(image, wcs_header(image.shape), name=band) for band in "gr"]
    fits.HDUList([fits.PrimaryHDU(), *named, fits.ImageHDU(variance, name="G_VARIANCE")]).writeto(tmp_path / "m.fits")
    mosaic = Mosaic.open(tmp_path / "m.fits", bands="g,r")
    assert [entry["noise_kind"] for entry in mosaic.metadata["bands"].values()] == ["variance", "estimated"]


def test_noise_is_estimated_where_nothing_is_given(pair):
    files, _ = pair
    cutout = read_all(Mosaic.open(files))
    np.testing.assert_allclose(np.sqrt(cutout.variance.mean(axis=(1, 2))), [1, 3], rtol=0.05)


def test_weights_of_unknown_normalisation_are_scaled_to_the_sky(tmp_path, rng):
    sigma = np.where(np.arange(600) < 300, 1.0, 2.0)
    write(tmp_path / "a.fits", (rng.normal(size=(500, 600)) * sigma).astype(np.float32))
    write(tmp_path / "w.fits", np.tile(100 / sigma**2, (500, 1)).astype(np.float32))

    def variance(scale):
        source = {"a": {"image": f"{tmp_path}/a.fits", "weight": f"{tmp_path}/w.fits", "weight_scale": scale}}
        return read_all(Mosaic.open(source)).variance[0]

    np.testing.assert_allclose(variance("auto"), np.tile(sigma**2, (500, 1)), rtol=0.03)
    np.testing.assert_allclose(variance(0.01), np.tile(sigma**2, (500, 1)), rtol=1e-5)
    np.testing.assert_allclose(variance(None), np.tile(sigma**2 / 100, (500, 1)), rtol=1e-5)


def test_estimated_noise_is_not_scaled(pair):
    files, _ = pair
    plain, scaled = (Mosaic.open(files, weight_scale=scale).read(0, 0, 90, 70).variance for scale in (None, 4.0))
    np.testing.assert_array_equal(plain, scaled)


def test_the_sky_is_subtracted_only_when_asked(tmp_path, rng):
    write(tmp_path / "a.fits", rng.normal(50, 1, (300, 300)).astype(np.float32))
    assert read_all(Mosaic.open({"a": tmp_path / "a.fits"})).image.mean() == pytest.approx(50, abs=0.1)
    subtracted = Mosaic.open({"a": tmp_path / "a.fits"}, background="subtract")
    assert read_all(subtracted).image.mean() == pytest.approx(0, abs=0.1)


def test_masks_with_and_without_wcs_and_with_chosen_bits(tmp_path, pair):
    files, _ = pair
    bits = np.zeros((90, 70), np.int32)
    bits[1, 2], bits[3, 4] = 1, 8
    for header in ("wcs", None):
        write(tmp_path / "mask.fits", bits, header=header)
        mosaic = Mosaic.open(files, mask={"g": tmp_path / "mask.fits"})
        np.testing.assert_array_equal(read_all(mosaic).mask, np.stack([bits != 0, np.zeros_like(bits, bool)]))
    chosen = {"g": {"image": str(files["g"]), "mask": f"{tmp_path}/mask.fits", "mask_bits": [3, 5]}}
    np.testing.assert_array_equal(read_all(Mosaic.open(chosen)).mask[0], bits == 8)


def test_zeros_of_a_floating_point_image_without_a_noise_map_are_no_data(tmp_path, rng):
    image = rng.normal(size=(64, 64)).astype(np.float32)
    image[:, 40:] = 0
    write(tmp_path / "a.fits", image)
    source = {"image": f"{tmp_path}/a.fits"}
    np.testing.assert_array_equal(read_all(Mosaic.open({"a": source})).mask[0], image == 0)
    assert not read_all(Mosaic.open({"a": source | {"no_data": "none"}})).mask.any()
    assert not read_all(Mosaic.open({"a": source | {"variance": 1.0}})).mask.any()
    write(tmp_path / "a.fits", np.where(image == 0, -99, image).astype(np.float32))
    np.testing.assert_array_equal(read_all(Mosaic.open({"a": source | {"no_data": -99}})).mask[0], image == 0)


# ------------------------------------------------------------------------------------------------------- reading
def test_rectangles_past_the_edge_are_masked_there(pair):
    files, pixels = pair
    mosaic = Mosaic.open(files)
    cutout = mosaic.read(-10, 60, 20, 90)
    assert cutout.image.shape == cutout.variance.shape == cutout.mask.shape == (2, 30, 30)
    np.testing.assert_array_equal(cutout.image[0, 10:, :10], pixels["g"][:20, 60:])
    outside = np.ones((30, 30), bool)
    outside[10:, :10] = False
    for channel in range(2):
        np.testing.assert_array_equal(cutout.mask[channel], outside)
        assert (cutout.image[channel][outside] == 0).all() and (cutout.variance[channel][outside] == 1).all()
    assert mosaic.read(500, 500, 510, 510).mask.all()


def test_tiles_equal_the_whole_image_again_and_again_also_from_threads_and_copies(pair):
    files, _ = pair
    mosaic = Mosaic.open(files, ebv=0.03)
    whole = read_all(mosaic)
    copy = pickle.loads(pickle.dumps(mosaic.measure_sky()))
    boxes = [(y, x, min(90, y + 32), min(70, x + 32)) for y in range(0, 90, 20) for x in range(0, 70, 20)]
    with ThreadPoolExecutor(4) as pool:
        cutouts = list(pool.map(lambda box: mosaic.read(*box), boxes * 3))
    for (y0, x0, y1, x1), cutout in zip(boxes * 3, cutouts, strict=True):
        again = copy.read(y0, x0, y1, x1)
        for name in ("image", "variance", "mask"):
            expected = getattr(whole, name)[:, y0:y1, x0:x1]
            np.testing.assert_array_equal(getattr(cutout, name), expected)
            np.testing.assert_array_equal(getattr(again, name), expected)
    assert copy.ebv == 0.03


def test_memory_does_not_grow_with_the_mosaic(tmp_path, rng):
    def peak(size):
        with fitsio.FITS(tmp_path / f"{size}.fits", "rw", clobber=True) as file:
            noise = rng.integers(-50, 50, (size, size)).astype(np.int16)
            file.write(noise, compress="RICE")  # rows compressed as a whole: the hard case
        mosaic = Mosaic.open({"g": tmp_path / f"{size}.fits"}, pixel_scale=0.2, zero_points=27.0)
        window = mosaic._bands["g"].planes[0]
        window.window_bytes = 2**20
        tracemalloc.start()
        for y in range(0, size, 448):
            for x in range(0, size, 448):
                mosaic.read(y, x, y + 512, x + 512)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    assert peak(2560) < 1.15 * peak(1024)


def test_without_wcs_the_stated_pixel_scale_is_used_and_there_are_no_sky_positions(tmp_path, rng):
    write(tmp_path / "a.fits", rng.normal(size=(20, 20)).astype(np.float32), header=None)
    mosaic = Mosaic.open({"a": tmp_path / "a.fits"}, pixel_scale=0.339, zero_points=30.0)
    assert mosaic.pixel_scale_arcsec == 0.339 and mosaic.grid.wcs is None
    assert not mosaic.metadata["has_wcs"]
    assert np.isnan(mosaic.grid.to_sky(3, 4)).all()
    written = save_yaml(tmp_path / "m.yaml", pixel_scale_arcsec=0.339, bands={"a": {"image": "a.fits", "unit": "nJy"}})
    assert Mosaic.open(written).pixel_scale_arcsec == 0.339


def test_sky_positions_are_those_of_the_header(pair):
    files, _ = pair
    mosaic = Mosaic.open(files)
    ra, dec = mosaic.grid.to_sky([34.5, 34.5 - 3600 / PIXEL_SCALE_ARCSEC * 0.001], [44.5, 44.5])
    np.testing.assert_allclose(dec, 2.0, atol=1e-7)
    np.testing.assert_allclose(ra, [150.0, 150.0 + 0.001 / np.cos(np.radians(2.0))], atol=1e-7)


# ------------------------------------------------------------------------------------------------------ reddening
def test_reddening_is_a_number_or_a_map_on_the_sky(pair, tmp_path):
    files, _ = pair
    assert Mosaic.open(files).ebv is None
    assert Mosaic.open(files).ebv_at(0, 0, 10, 10) == 0
    assert Mosaic.open(files, ebv=0.05).ebv_at(0, 0, 10, 10) == pytest.approx(0.05)
    # One map pixel = 10 mosaic pixels, the same centre: E(B-V) rises by 0.01 per mosaic pixel in x.
    slope = np.tile(0.1 * np.arange(11), (13, 1)).astype(np.float32)
    write(tmp_path / "ebv.fits", slope, scale_arcsec=10 * PIXEL_SCALE_ARCSEC)
    mosaic = Mosaic.open(files, ebv=tmp_path / "ebv.fits")
    assert mosaic.ebv == "map"
    values = mosaic.ebv_at(0, 0, 90, 70)
    assert values.dtype == np.float32 and values.shape == (2, 2)
    # Cell centres at x = 17 and 52 (0-based), 17.5 pixels on either side of the centre, where the map has 0.5.
    np.testing.assert_allclose(values, [[0.325, 0.675]] * 2, atol=1e-4)


@pytest.mark.parametrize("shape", [(40, 64), (5000, 3)])
def test_reddening_maps_must_cover_the_mosaic(pair, tmp_path, shape):
    files, _ = pair
    write(tmp_path / "ebv.fits", np.ones(shape, np.float32), scale_arcsec=0.05)
    with pytest.raises(InputError, match="ebv.fits does not cover the mosaic; give a map that does, or one number"):
        Mosaic.open(files, ebv=tmp_path / "ebv.fits")
    write(tmp_path / "ebv.fits", np.ones(shape, np.float32), header=None)
    with pytest.raises(InputError, match="without a WCS in both, the map must have the mosaic's shape"):
        Mosaic.open(files, ebv=tmp_path / "ebv.fits")
    with pytest.raises(InputError, match="ebv is -0.1"):
        Mosaic.open(files, ebv=-0.1)


def test_saturated_pixels_are_told_masked_or_not(tmp_path, rng):
    pixels = rng.normal(0, 1, (40, 50)).astype(np.float32)
    pixels[10, 10:13], pixels[20, 30], pixels[5, 5] = (99.9, 100.0, 300.0), 200.0, np.nan
    bad = np.zeros(pixels.shape, np.uint8)
    bad[20, 30] = 1
    fits.writeto(tmp_path / "mask.fits", bad)
    for band, level in (("g", 100.0), ("r", 1e30), ("i", None)):
        header = wcs_header(pixels.shape)
        if level is not None:
            header["SATURATE"] = level
        write(tmp_path / f"{band}.fits", pixels, header=header)
    files = {band: {"image": str(tmp_path / f"{band}.fits"), "variance": 1.0} for band in "gri"}
    files["g"]["mask"] = str(tmp_path / "mask.fits")
    files["r"]["saturate"] = 250
    with Mosaic.open(files) as mosaic:
        cutout = mosaic.read(-3, 0, 40, 50)
    found = [np.argwhere(plane).tolist() for plane in cutout.saturated]
    assert found == [[[13, 11], [13, 12], [23, 30]], [[13, 12]], []], "three rows lie below the mosaic"
    assert cutout.mask[0, 23, 30] and not cutout.mask[0, 13, 12]
    assert [mosaic.metadata["bands"][band]["saturate"] for band in "gri"] == [100.0, 250.0, None]
