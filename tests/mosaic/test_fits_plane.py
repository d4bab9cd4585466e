"""One FITS plane, read by rectangles: any pixel type, compression and place of the rectangle gives NumPy's numbers."""

import bz2
import errno
import gzip
import lzma
import os
import pickle
import shutil
import tempfile
from pathlib import Path

import fitsio
import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from deepdisc.data.fits_plane import FitsFile, Plane, split_extension
from deepdisc.errors import InputError

COMPRESSIONS = (None, "RICE_1", "GZIP_1", "GZIP_2", "HCOMPRESS_1")
DTYPES = ("u1", "i1", "i2", "u2", "i4", "u4", ">f4", "f8")


def make_pixels(dtype, shape, seed):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 10, shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(max(limits.min, -30000), min(limits.max, 60000), shape, endpoint=True).astype(dtype)


@st.composite
def rectangles(draw, shape):
    y0, y1 = sorted(draw(st.lists(st.integers(0, shape[0]), min_size=2, max_size=2)))
    x0, x1 = sorted(draw(st.lists(st.integers(0, shape[1]), min_size=2, max_size=2)))
    return y0, x0, y1, x1


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.data())
def test_any_type_compression_and_rectangle_reads_as_numpy(data):
    shape = data.draw(st.tuples(st.integers(4, 40), st.integers(4, 400)))
    dtype = data.draw(st.sampled_from(DTYPES))
    compression = data.draw(st.sampled_from(COMPRESSIONS))
    if compression == "HCOMPRESS_1":  # defined for tiles of at least 4 pixels a side
        shape = tuple(length // 4 * 4 for length in shape)
    whole_file = data.draw(st.sampled_from((None, gzip.compress, bz2.compress, lzma.compress)))
    pixels = make_pixels(dtype, shape, data.draw(st.integers(0, 99)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.fits"
        if compression is None:
            fits.PrimaryHDU(pixels).writeto(path)
        else:
            tile = data.draw(st.sampled_from(((4, shape[1]), (16, 16))))
            hdu = fits.CompImageHDU(pixels, compression_type=compression, tile_shape=tile, quantize_level=16)
            fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
        with fits.open(path) as opened:
            expected = np.array(opened[-1].data)  # what lossy compression left of them
        if whole_file is not None:
            path.write_bytes(whole_file(path.read_bytes()))
        plane = Plane(FitsFile(path, "band g"))
        for _ in range(3):  # later reads may come from the kept window
            y0, x0, y1, x1 = data.draw(rectangles(shape))
            got = plane.read(y0, x0, y1, x1)
            assert got.dtype in (np.float32, np.float64) and got.dtype.isnative
            np.testing.assert_array_equal(got, expected[y0:y1, x0:x1])
        plane.file.close()


@pytest.mark.parametrize("compressed", [False, True])
def test_scaled_integers_with_blank_pixels_become_nan(tmp_path, compressed):
    raw = np.arange(-6, 6, dtype=np.int16).reshape(3, 4)
    raw[1, 2] = -32768
    path = tmp_path / "scaled.fits"
    hdu = fits.CompImageHDU(raw, compression_type="RICE_1") if compressed else fits.PrimaryHDU(raw)
    (fits.HDUList([fits.PrimaryHDU(), hdu]) if compressed else hdu).writeto(path)
    with fitsio.FITS(path, "rw") as file:
        for key, value in (("BSCALE", 0.5), ("BZERO", 100.0), ("BLANK", -32768)):
            file[-1].write_key(key, value)
    got = Plane(FitsFile(path, "band g")).read(0, 0, 3, 4)
    expected = np.where(raw == -32768, np.nan, 100 + 0.5 * raw)
    np.testing.assert_array_equal(got, expected.astype(np.float32))


def test_a_mask_of_unsigned_bits_keeps_its_bits(tmp_path):
    bits = np.array([[0, 1, 32768, 65535]], dtype=np.uint16)
    fits.PrimaryHDU(bits).writeto(tmp_path / "mask.fits")
    np.testing.assert_array_equal(Plane(FitsFile(tmp_path / "mask.fits", "mask")).read_bits(0, 0, 1, 4), bits)


def test_planes_of_a_cube_and_degenerate_axes(tmp_path):
    cube = np.random.default_rng(0).normal(size=(3, 20, 30)).astype(np.float32)
    fits.PrimaryHDU(cube).writeto(tmp_path / "cube.fits")
    plane = Plane(FitsFile(tmp_path / "cube.fits", "band g"), plane=1)
    np.testing.assert_array_equal(plane.read(2, 3, 9, 25), cube[1, 2:9, 3:25])
    fits.PrimaryHDU(cube[None, :1]).writeto(tmp_path / "radio.fits")
    plane = Plane(FitsFile(tmp_path / "radio.fits", "band g"))
    np.testing.assert_array_equal(plane.read(2, 3, 9, 25), cube[0, 2:9, 3:25])


def test_row_compressed_tiles_come_from_a_window_of_bounded_size(tmp_path):
    pixels = np.random.default_rng(1).normal(size=(64, 4000)).astype(np.float32)
    with fitsio.FITS(tmp_path / "rows.fits", "rw") as file:
        file.write(pixels, compress="GZIP", qlevel=None)
    plane = Plane(FitsFile(tmp_path / "rows.fits", "band g"))
    plane.window_bytes = 64 * 1000 * 4
    for x0 in range(0, 4000, 100):
        x1 = min(4000, x0 + 128)
        np.testing.assert_array_equal(plane.read(0, x0, 64, x1), pixels[:, x0:x1])
        assert plane._window[1].nbytes <= plane.window_bytes


def test_the_unpacked_copy_goes_when_the_file_is_closed_and_comes_back_when_used(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    pixels = np.arange(12.0).reshape(3, 4)
    (tmp_path / "a.fits.gz").write_bytes(gzip.compress(_bytes(pixels, tmp_path)))
    file = FitsFile(tmp_path / "a.fits.gz", "band g")
    plane = Plane(file)
    assert len(list(tmp_path.glob("deepdisc_*"))) == 1
    file.close()
    assert not list(tmp_path.glob("deepdisc_*"))
    np.testing.assert_array_equal(plane.read(0, 0, 3, 4), pixels)
    assert len(list(tmp_path.glob("deepdisc_*"))) == 1
    copy = pickle.loads(pickle.dumps(plane))
    np.testing.assert_array_equal(copy.read(1, 1, 3, 4), pixels[1:, 1:])
    assert len(list(tmp_path.glob("deepdisc_*"))) == 1, "a worker reads its parent's copy"
    del plane, copy
    file.close()
    assert not list(tmp_path.glob("deepdisc_*"))


def test_a_forked_process_reads_right_numbers_and_leaves_its_parents_copy(tmp_path):
    pixels = np.random.default_rng(2).normal(size=(50, 60))
    (tmp_path / "a.fits.gz").write_bytes(gzip.compress(_bytes(pixels, tmp_path)))
    plane = Plane(FitsFile(tmp_path / "a.fits.gz", "band g"))
    child = os.fork()
    if child == 0:
        equal = np.array_equal(plane.read(10, 10, 40, 40), pixels[10:40, 10:40])
        plane.file.close()
        os._exit(0 if equal else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert plane.file._unpacked.exists()
    np.testing.assert_array_equal(plane.read(0, 0, 50, 60), pixels)


def _bytes(pixels, folder):
    fits.PrimaryHDU(pixels).writeto(folder / "plain.fits", overwrite=True)
    return (folder / "plain.fits").read_bytes()


def test_extensions_are_split_from_paths(tmp_path):
    assert split_extension("a/b.fits") == ("a/b.fits", None)
    assert split_extension("a/b.fits[2]") == ("a/b.fits", 2)
    assert split_extension("a/b.fits[SCI]") == ("a/b.fits", "SCI")
    odd = tmp_path / "x[1]"
    odd.touch()
    assert split_extension(str(odd)) == (str(odd), None)


# ------------------------------------------------------------------------------------------------------ bad files
def expect(message, *args, **kwargs):
    with pytest.raises(InputError, match=message) as caught:
        Plane(*args, **kwargs)
    assert "\n" not in str(caught.value)


def test_missing_files_folders_and_text_are_named(tmp_path):
    (tmp_path / "text.fits").write_text("hello world\n" * 300)
    (tmp_path / "empty.fits").touch()
    (tmp_path / "list.fits").write_bytes(b"SIMPLE  = nonsense" * 400)
    for name, message in {
        "none.fits": "band g: the file .*none.fits does not exist",
        ".": "band g: the file .* is a folder",
        "text.fits": "text.fits is not a FITS file .it begins with 'hello world'",
        "empty.fits": "empty.fits is not a readable FITS file",
        "list.fits": "list.fits (is not a readable FITS file|holds no image)",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            Plane(FitsFile(tmp_path / name, "band g"))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("compress", [None, "RICE"])
def test_truncated_files_are_found_when_opened(tmp_path, compress):
    path = tmp_path / "cut.fits"
    with fitsio.FITS(path, "rw") as file:
        file.write(np.random.default_rng(0).normal(size=(300, 200)).astype("f4"), compress=compress)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"band g: .*cut.fits is truncated: it has \d+ bytes where"):
        Plane(FitsFile(path, "band g"))
    path.write_bytes(content[:3000])
    with pytest.raises(InputError, match="truncated"):
        Plane(FitsFile(path, "band g"))


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_truncated_and_damaged_packed_files(tmp_path, compress, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    packed = compress(_bytes(np.random.default_rng(0).normal(size=(100, 100)), tmp_path))
    damaged = bytearray(packed)
    damaged[len(packed) // 2 : len(packed) // 2 + 200] = os.urandom(200)
    for content in (packed[: len(packed) // 2], bytes(damaged)):
        (tmp_path / "x.fits.gz").write_bytes(content)
        with pytest.raises(InputError, match="band g: .*x.fits.gz is (truncated or )?damaged"):
            FitsFile(tmp_path / "x.fits.gz", "band g")
    assert not list(tmp_path.glob("deepdisc_*"))


def test_a_full_disk_while_unpacking_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "x.fits.gz").write_bytes(gzip.compress(_bytes(np.zeros((9, 9)), tmp_path)))

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", fail)
    with pytest.raises(InputError, match="cannot unpack .*No space left on device; unpack it yourself or let TMPDIR"):
        FitsFile(tmp_path / "x.fits.gz", "band g")
    assert not list(tmp_path.glob("deepdisc_*"))


def test_damage_inside_a_compressed_image_is_an_input_error(tmp_path):
    path = tmp_path / "bad.fits"
    with fitsio.FITS(path, "rw") as file:
        file.write(np.random.default_rng(0).normal(size=(300, 200)).astype("f4"), compress="RICE")
    content = bytearray(path.read_bytes())
    content[-9000:-5000] = b"\xff" * 4000
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"band g: .*bad.fits: cannot read rows 0..299 \("):
        Plane(FitsFile(path, "band g")).read(0, 0, 300, 200)


def test_unknown_extensions_and_planes_are_named(tmp_path):
    path = tmp_path / "mef.fits"
    image = np.ones((4, 5), np.float32)
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(image, name="SCI"), fits.ImageHDU(np.stack([image] * 3), name="CUBE")]
    fits.HDUList(hdus).writeto(path)
    file = FitsFile(path, "band g")
    expect("has no image extension 'SCY'; it has SCI, CUBE; did you mean SCI?", file, "SCY")
    expect("no image extension '7'", file, 7)
    expect("is a cube of 3 planes; say which with `plane: 0..2`", file, "CUBE")
    expect("plane 3 does not exist; the cube has planes 0..2", file, "CUBE", plane=3)
    assert Plane(file, "sci").shape == (4, 5)
