"""What cannot be a mosaic is refused in one line that names the file or band, the value and the remedy."""

import numpy as np
import pytest
import yaml
from astropy.io import fits
from fits_files import wcs_header, write

from deepdisc.data.mosaic import Mosaic
from deepdisc.errors import InputError


def refuse(message, source, **options):
    with pytest.raises(InputError, match=message) as caught:
        Mosaic.open(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_files_are_named_with_their_band(pair):
    files, _ = pair
    refuse("band r: the file no.fits does not exist; check its path", {"g": files["g"], "r": "no.fits"})
    refuse("weight map of band r: the file no.fits does not exist", files, weight={"r": "no.fits"})
    refuse("mask of band g: the file no.fits does not exist", files, mask=["g=no.fits"])
    refuse("mosaic: the file no.fits does not exist", "no.fits")
    refuse("cannot read the mosaic no.yaml: No such file", "no.yaml")


def test_a_folder_without_yaml_and_a_single_image_say_what_to_give(pair, tmp_path):
    files, _ = pair
    (tmp_path / "sub").mkdir()
    refuse("sub is a folder without mosaic.yaml", tmp_path / "sub")
    refuse("g.fits holds one image and does not say its band; give BAND=", files["g"])


def test_bands_that_are_not_there_are_named_with_the_nearest(pair):
    files, _ = pair
    refuse("mosaic has no band 'i'; it has g, r; add it, or use a model without it", files, bands="g,r,i")
    refuse("has no band 'G'; it has g, r; if g is meant, say G=g in --bands", files, bands=["G"])
    with pytest.raises(InputError, match="has no band 'u'"):
        Mosaic.open(files).select(["g", "u"])
    refuse("name each band once", files, bands="g,g")
    refuse("no band is named", files, bands=[])
    refuse("zero point: mosaic has no band 'q'", files, zero_points={"q": 25})
    refuse("weight: mosaic has no band 'q'", files, weight={"q": "x.fits"})


def test_pairs_must_be_pairs(pair):
    files, _ = pair
    refuse("'g=' is not BAND=FILE", ["g=", "r=x.fits"])
    refuse("band g is given twice", [f"g={files['g']}", f"g={files['r']}"])


def test_the_number_of_planes_must_be_the_number_of_names(tmp_path):
    write(tmp_path / "cube.fits", np.ones((3, 10, 10), np.float32))
    refuse("is a cube of 3 planes whose header does not name the bands", tmp_path / "cube.fits")
    message = r"has 3 planes, but 2 bands are named \(g, r\); name one per plane"
    refuse(message, tmp_path / "cube.fits", bands="g,r")
    refuse("cube.fits is a cube of 3 planes; say which with `plane: 0..2`", {"g": tmp_path / "cube.fits"})
    fits.PrimaryHDU(np.ones((2, 3, 10, 10), np.float32)).writeto(tmp_path / "four.fits")
    refuse("has the shape", {"g": tmp_path / "four.fits"})


def test_bands_of_another_shape_are_told_how_to_be_regridded(pair, tmp_path):
    files, _ = pair
    write(tmp_path / "i.fits", np.ones((45, 35), np.float32), scale_arcsec=0.4)
    message = refuse(
        "the bands g and i lie on different pixel grids: i has 35 x 45 pixels, g has 70 x 90",
        files | {"i": tmp_path / "i.fits"},
    )
    expected = " ".join(f"{band}={path}" for band, path in (*files.items(), ("i", tmp_path / "i.fits")))
    assert message.endswith(f"with: deepdisc regrid {expected} --reference g --output DIR")


@pytest.mark.parametrize(("shift", "accepted"), [(0.03, True), (0.08, False), (5.0, False)])
def test_displaced_bands_are_refused_beyond_a_twentieth_of_a_pixel(pair, tmp_path, rng, shift, accepted):
    files, _ = pair
    write(tmp_path / "i.fits", rng.normal(size=(90, 70)).astype(np.float32), shift=(shift, 0))
    source = files | {"i": tmp_path / "i.fits"}
    if accepted:
        assert Mosaic.open(source).bands == ["g", "r", "i"]
    else:
        refuse(rf"i is displaced from g by up to {shift:.2f} pixels; bring all onto one with: deepdisc regrid", source)


def test_a_slightly_other_pixel_scale_is_refused(pair, tmp_path, rng):
    files, _ = pair
    write(tmp_path / "i.fits", rng.normal(size=(90, 70)).astype(np.float32), scale_arcsec=0.201)
    refuse("i is displaced from g by up to 0.2. pixels", files | {"i": tmp_path / "i.fits"})


@pytest.mark.parametrize("option", ["weight", "rms", "variance", "mask"])
def test_maps_must_lie_on_their_image(pair, tmp_path, option):
    files, _ = pair
    write(tmp_path / "map.fits", np.ones((90, 71), np.float32))
    refuse(
        r"map.fits has 71 x 90 pixels, but the image .*g.fits has 70 x 90",
        files,
        **{option: {"g": tmp_path / "map.fits"}},
    )
    write(tmp_path / "map.fits", np.ones((90, 70), np.float32), shift=(0, 2))
    refuse("map.fits lies up to 2.00 pixels away from its image", files, **{option: {"g": tmp_path / "map.fits"}})


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_band_without_a_valid_pixel_is_refused_when_opened(pair, tmp_path, value):
    files, _ = pair
    write(tmp_path / "i.fits", np.full((90, 70), value, np.float32))
    message = (
        "band i: .*i.fits has no valid pixel: all are NaN, masked, without weight or equal to no_data .*; leave the"
    )
    refuse(message, files | {"i": tmp_path / "i.fits"})


def test_a_band_with_a_single_valid_pixel_far_from_the_middle_is_opened(tmp_path):
    image = np.full((200, 5000), np.nan, np.float32)
    image[199, 4999] = 1
    write(tmp_path / "i.fits", image)
    assert (
        Mosaic.open({"i": {"image": f"{tmp_path}/i.fits", "variance": 1.0}}).read(198, 4998, 200, 5000).mask.sum() == 3
    )


def test_no_weight_and_all_masked_are_no_valid_pixel_too(pair, tmp_path):
    files, _ = pair
    write(tmp_path / "map.fits", np.zeros((90, 70), np.float32))
    refuse("band g: .* has no valid pixel", files, weight={"g": tmp_path / "map.fits"})
    write(tmp_path / "map.fits", np.ones((90, 70), np.uint8))
    refuse("band g: .* has no valid pixel", files, mask={"g": tmp_path / "map.fits"})


def test_no_zero_point_anywhere(tmp_path):
    write(tmp_path / "a.fits", np.ones((9, 9), np.float32), zero_point=None)
    refuse("band a: .*a.fits: no zero point: .* give it with --zero-point", {"a": tmp_path / "a.fits"})
    refuse("'furlong' is no flux unit; give for example nJy", {"a": tmp_path / "a.fits"}, zero_points="furlong")


@pytest.mark.parametrize("zero_point", [float("nan"), float("inf"), -500.0, 1e9])
def test_a_zero_point_that_no_image_has(pair, zero_point):
    refuse("the zero point is .*; .* -50.0 to 60.0: correct --zero-point", pair[0], zero_points=zero_point)


def test_no_wcs_and_no_pixel_scale(tmp_path):
    write(tmp_path / "a.fits", np.ones((9, 9), np.float32), header=None)
    refuse(
        "a.fits has no WCS, .*state it with --pixel-scale ARCSEC, or `pixel_scale_arcsec:`", {"a": tmp_path / "a.fits"}
    )
    refuse("the pixel scale is -1", {"a": tmp_path / "a.fits"}, pixel_scale=-1)


def test_a_pixel_scale_that_contradicts_the_wcs(pair):
    refuse(
        r"the stated pixel scale 0.339 arcsec contradicts its WCS \(0.2 arcsec\); leave it out",
        pair[0],
        pixel_scale=0.339,
    )


def test_a_wcs_that_cannot_be_understood(tmp_path):
    header = wcs_header((9, 9))
    header["CDELT1"] = header["CDELT2"] = 0.0
    write(tmp_path / "a.fits", np.ones((9, 9), np.float32), header=header)
    refuse("a.fits: its WCS cannot be understood", {"a": tmp_path / "a.fits"})


def test_text_named_fits_is_said_to_be_text(tmp_path):
    (tmp_path / "a.fits").write_text("not an image\n")
    refuse("band a: .*a.fits is not a FITS file .it begins with 'not an image'", [f"a={tmp_path}/a.fits"])
    refuse("mosaic: .*a.fits is not a FITS file", tmp_path / "a.fits")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bands: [g", r"mosaic.yaml, line [12]: not valid YAML: .*; correct it there"),
        ("- g", "a mosaic.yaml holds keys such as `bands:`, not list"),
        ("name: x", "`bands:` must map each band to its image"),
        ("bands: {g: g.fits}\npixel_scale: 0.2", "unknown key 'pixel_scale'; did you mean 'pixel_scale_arcsec'?"),
        ("bands: {g: {image: g.fits, zeropoint: 22}}", "band g: unknown key 'zeropoint'; did you mean 'zero_point'?"),
        ("bands: {g: {imgae: g.fits}}", "band g: unknown key 'imgae'; did you mean 'image'?"),
        ("bands: {g: {image: g.fits, qqqqqqq: 1}}", "unknown key 'qqqqqqq'; the keys are image, plane"),
        ("bands: {g: {zero_point: 22}}", "band g: `image:` is missing"),
        ("bands: {g: 3}", "band g: give a file name, or keys such as `image:`, not 3"),
        ("bands: {g: {image: g.fits, rms: 1, weight: 1}}", "band g: rms and weight are both given; keep one"),
        ("bands: {g: {image: g.fits, rms: -1}}", "rms is -1; it must be a positive number"),
        ("bands: {g: {image: g.fits, zero_point: high}}", "zero_point is 'high'; it must be a number"),
        ("bands: {g: {image: g.fits, zero_point: 1, unit: nJy}}", "zero_point and unit are both given"),
        ("bands: {g: {image: g.fits, plane: one}}", "plane is 'one'; it is a whole number"),
        ("bands: {g: {image: g.fits, mask_bits: [a]}}", "mask_bits is .* it is a list of bit numbers"),
        ("bands: {g: {image: g.fits, weight_scale: big}}", "weight_scale is 'big'; it must be a positive number"),
        ("bands: {g: {image: 3}}", "3 is not a file name"),
        ("bands: {g: g.fits}\nmetadata: abc", "metadata is 'abc'; it is a mapping of keys to values"),
        ("bands: {g: g.fits}\nbackground: maybe", "background is 'maybe'; it is one of none, subtract"),
    ],
)
def test_mistakes_in_mosaic_yaml_are_named(tmp_path, text, message):
    (tmp_path / "mosaic.yaml").write_text(text)
    refuse(message, tmp_path / "mosaic.yaml")


def test_yaml_that_is_no_text(tmp_path):
    (tmp_path / "mosaic.yaml").write_bytes(b"\xff\xfe\x00bands")
    refuse("mosaic.yaml is not a text file", tmp_path / "mosaic.yaml")


def test_options_are_checked_as_yaml_is(pair):
    refuse("background is 'yes'", pair[0], background="yes")
    refuse("weight_scale is 'big'", pair[0], weight_scale="big")


def test_unpacked_files_go_when_opening_fails(pair, tmp_path, monkeypatch):
    import bz2
    import tempfile

    files, _ = pair
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    (tmp_path / "g.fits.bz2").write_bytes(bz2.compress(files["g"].read_bytes()))
    refuse("does not exist", {"g": tmp_path / "g.fits.bz2", "r": "no.fits"})
    assert not list(scratch.iterdir())


def test_the_written_yaml_of_a_good_mosaic_opens(pair, tmp_path):
    files, _ = pair
    content = {
        "name": "x",
        "ebv": 0.1,
        "metadata": {"a": 1},
        "bands": {band: path.name for band, path in files.items()},
    }
    (tmp_path / "mosaic.yaml").write_text(yaml.safe_dump(content))
    assert Mosaic.open(tmp_path / "mosaic.yaml").name == "x"
