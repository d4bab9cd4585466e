"""One image plane of a FITS file, read lazily by rectangles.

Plain images and tile-compressed ones (RICE, GZIP, HCOMPRESS, PLIO) are read through fitsio slices. A file that is
compressed as a whole (.gz, .bz2, .xz) is unpacked once, in pieces, into a temporary file that goes when it is closed.

Rows compressed as a whole (fpack's default) are costly to read tile by tile, because every tile of a row decompresses
the full row again: a window of decompressed pixels, of bounded size, is kept for the tiles that follow to the right.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import math
import os
import re
import shutil
import tempfile
import threading
import weakref
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fitsio
import numpy as np
from astropy.io import fits

from deepdisc.errors import InputError, nearest

# Recognised by content, not by name: cfitsio would unpack a gzipped "x.fits" into memory as a whole.
_UNPACKERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_DEFAULT_WINDOW_BYTES = 8 * 2**20

_open_files: weakref.WeakSet[FitsFile] = weakref.WeakSet()
_inherited_handles: list[fitsio.FITS] = []


def _forget_inherited_handles() -> None:
    """Make a forked child open its files anew, and never close its parent's: that would move the parent's position."""
    for file in list(_open_files):
        file.lock = threading.RLock()
        if file._handle is not None:
            _inherited_handles.append(file._handle)
            file._handle = None


os.register_at_fork(after_in_child=_forget_inherited_handles)


def split_extension(text: str) -> tuple[str, str | int | None]:
    """Split `file.fits[SCI]` or `file.fits[1]` into the path and the extension's name or number.

    A path that exists as it is written, brackets included, has no extension part.
    """
    match = re.fullmatch(r"(.*\S)\s*\[\s*([^\[\]]+?)\s*\]", text)
    if match is None or os.path.exists(text):
        return text, None
    extension = match.group(2)
    return match.group(1), int(extension) if extension.isdigit() else extension


@dataclass(frozen=True)
class ImageHdu:
    """What the header says of one image HDU.

    Attributes:
        number: 0-based HDU number.
        name: EXTNAME, "" when absent.
        dims: array shape, slowest axis first, leading axes of length 1 removed.
        leading: how many such leading axes were removed.
        bitpix: BITPIX of the pixels (of the uncompressed image when compressed).
        tile_width: width of a compression tile in pixels; 0 when the image is not compressed.
        end_byte: where the data end in the file.
    """

    number: int
    name: str
    dims: tuple[int, ...]
    leading: int
    bitpix: int
    tile_width: int
    end_byte: int


class FitsFile:
    """A FITS file that opens itself when it is first used, again after pickling, forking or closing.

    Args:
        path: the file, perhaps compressed as a whole.
        what: what it is to the user, such as "band g", for messages.
    """

    def __init__(self, path: str | os.PathLike, what: str):
        self.path = Path(path)
        self.what = what
        self.lock = threading.RLock()
        self._handle: fitsio.FITS | None = None
        self._unpacked: Path | None = None
        self._remove_unpacked: weakref.finalize | None = None
        _open_files.add(self)
        self.hdus = self._list_images()

    # ------------------------------------------------------------------------------------------------ life
    @property
    def handle(self) -> fitsio.FITS:
        """The open fitsio object of this process."""
        with self.lock:
            if self._handle is None:
                self._handle = self._open()
            return self._handle

    def close(self) -> None:
        """Close the file and remove its unpacked copy; using it again opens it again."""
        with self.lock:
            if self._handle is not None:
                self._handle.close()
                self._handle = None
            if self._remove_unpacked is not None:
                self._remove_unpacked()
            self._unpacked = self._remove_unpacked = None

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__, _handle=None, _remove_unpacked=None)
        del state["lock"]
        return state  # keeps `_unpacked`: a worker reads its parent's copy while that exists

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.lock = threading.RLock()
        _open_files.add(self)

    def _open(self) -> fitsio.FITS:
        if not self.path.is_file():
            reason = "is a folder" if self.path.is_dir() else "does not exist"
            raise InputError(f"{self.what}: the file {self.path} {reason}; check its path")
        try:
            with open(self.path, "rb") as stream:
                start = stream.read(80)
        except OSError as error:
            raise InputError(f"{self.what}: cannot read {self.path}: {error.strerror or error}") from error
        local = self.path
        for magic, unpacker in _UNPACKERS.items():
            if start.startswith(magic):
                local, start = self._unpack(unpacker), b""
        if start and not start.startswith(b"SIMPLE"):
            shown = start[:20].decode("ascii", "replace").split("\n")[0]
            raise InputError(
                f"{self.what}: {self.path} is not a FITS file (it begins with {shown!r}); give an image in FITS format"
            )
        try:
            return fitsio.FITS(os.fspath(local))
        except OSError as error:
            raise InputError(
                f"{self.what}: {self.path} is not a readable FITS file ({_first_line(error)}); get it again"
            ) from error

    def _unpack(self, unpacker: Any) -> Path:
        if self._unpacked is not None and self._unpacked.is_file():
            return self._unpacked
        descriptor, name = tempfile.mkstemp(prefix="deepdisc_", suffix=".fits")
        remove = weakref.finalize(self, _remove, name, os.getpid())
        try:
            with os.fdopen(descriptor, "wb") as target, unpacker(self.path, "rb") as packed:
                shutil.copyfileobj(packed, target, 2**20)
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            remove()
            raise InputError(f"{self.what}: {self.path} is truncated or damaged ({error}); get it again") from error
        except OSError as error:
            remove()
            if error.errno is None:  # bz2 reports bad data so
                raise InputError(f"{self.what}: {self.path} is damaged ({error}); get it again") from error
            raise InputError(
                f"{self.what}: cannot unpack {self.path} into {os.path.dirname(name)}: {error.strerror}; unpack it "
                "yourself or let TMPDIR name a folder with more space"
            ) from error
        self._unpacked, self._remove_unpacked = Path(name), remove
        return self._unpacked

    # -------------------------------------------------------------------------------------------- contents
    def _list_images(self) -> list[ImageHdu]:
        found = []
        for number, hdu in enumerate(self.handle):
            if hdu.get_exttype() != "IMAGE_HDU" or not hdu.get_dims() or min(hdu.get_dims()) < 1:
                continue
            info, dims = hdu.get_info(), list(hdu.get_dims())
            leading = 0
            while len(dims) > 2 and dims[0] == 1:
                dims, leading = dims[1:], leading + 1
            if len(dims) < 2:
                continue
            tile_width, size = 0, math.prod(dims) * abs(info["img_type"]) // 8
            if info["is_compressed_image"]:
                header = self._header(number)
                tile_width = int(header.get("ZTILE1", dims[-1]))
                size = header["NAXIS1"] * header["NAXIS2"] + header["PCOUNT"]
            found.append(
                ImageHdu(
                    number,
                    hdu.get_extname().strip(),
                    tuple(dims),
                    leading,
                    info["img_type"],
                    tile_width,
                    info["data_start"] + size,
                )
            )
        return found

    def image(self, extension: str | int | None) -> ImageHdu:
        """The image HDU of that name or number; the first image of two or more dimensions when None.

        Raises:
            InputError: there is no such image.
        """
        names = [hdu.name or str(hdu.number) for hdu in self.hdus]
        if not self.hdus:
            raise InputError(f"{self.what}: {self.path} holds no image of two or more dimensions; is it truncated?")
        if extension is None:
            return self.hdus[0]
        for same in (lambda hdu: extension in (hdu.number, hdu.name), lambda hdu: _fold(extension) == _fold(hdu.name)):
            for hdu in self.hdus:
                if same(hdu):
                    return hdu
        close = nearest(str(extension), names)
        raise InputError(
            f"{self.what}: {self.path} has no image extension {str(extension)!r}; it has {', '.join(names)}"
            + (f"; did you mean {close}?" if close else "")
        )

    def header(self, hdu: ImageHdu) -> fits.Header:
        """The HDU's header as astropy's."""
        return self._header(hdu.number)

    def primary_header(self) -> fits.Header:
        """The header of HDU 0, where cameras often write what holds for all extensions."""
        return self._header(0)

    def _header(self, number: int) -> fits.Header:
        # Not by fitsio, which needs seconds for the thousands of cards of a JWST mosaic.
        info = self.handle[number].get_info()
        with open(self._unpacked or self.path, "rb") as stream:
            stream.seek(info["header_start"])
            return fits.Header.fromstring(stream.read(info["data_start"] - info["header_start"]))

    def check_complete(self, hdu: ImageHdu) -> None:
        """Raise InputError when the file ends before this HDU's data do."""
        self.handle  # noqa: B018  unpacks the file if need be
        size = os.path.getsize(self._unpacked or self.path)
        if size < hdu.end_byte:
            raise InputError(
                f"{self.what}: {self.path} is truncated: it has {size} bytes where its header announces "
                f"{hdu.end_byte}; get it again"
            )


def _remove(name: str, pid: int) -> None:
    if os.getpid() == pid:  # a forked child must not take its parent's copy away
        Path(name).unlink(missing_ok=True)


def _fold(name: Any) -> Any:
    return name.upper() if isinstance(name, str) else None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].strip()


def _last_line(error: BaseException) -> str:
    """CFITSIO's stack of messages ends with the most specific one."""
    return str(error).strip().splitlines()[-1].strip()


class Plane:
    """One two-dimensional image of a FITS file: an image HDU, or one plane of a cube.

    Args:
        file: the file that holds it.
        extension: name or number; None takes the first image.
        plane: 0-based plane when the HDU is a cube; ignored for a two-dimensional HDU.

    Attributes:
        shape: (height, width).
        integer: whether the stored pixels are integers.
        window_bytes: how much decompressed data may be kept for the next reads.

    Raises:
        InputError: no such extension or plane, a cube without a plane, a truncated file.
    """

    def __init__(self, file: FitsFile, extension: str | int | None = None, plane: int | None = None):
        self.file = file
        self.hdu = file.image(extension)
        self.name = f"{file.what}: {file.path}" + (f"[{extension}]" if extension is not None else "")
        self.shape: tuple[int, int] = self.hdu.dims[-2:]
        self.plane = self._check_plane(plane)
        file.check_complete(self.hdu)
        self.integer = self.hdu.bitpix > 0
        header = file.header(self.hdu)
        self._scale, self._zero = float(header.get("BSCALE", 1.0)), float(header.get("BZERO", 0.0))
        self._blank = header.get("BLANK", header.get("ZBLANK")) if self.integer else None
        self.window_bytes = _DEFAULT_WINDOW_BYTES
        self._window: tuple[tuple[int, int, int, int], np.ndarray] | None = None

    def _check_plane(self, plane: int | None) -> int | None:
        dims = self.hdu.dims
        if len(dims) == 2:
            return None
        if len(dims) > 3:
            raise InputError(f"{self.name} has the shape {dims}; an image (y, x) or a cube (planes, y, x) is needed")
        if plane is None:
            raise InputError(f"{self.name} is a cube of {dims[0]} planes; say which with `plane: 0..{dims[0] - 1}`")
        if not 0 <= plane < dims[0]:
            raise InputError(f"{self.name}: plane {plane} does not exist; the cube has planes 0..{dims[0] - 1}")
        return plane

    @property
    def header(self) -> fits.Header:
        """The HDU's header."""
        return self.file.header(self.hdu)

    @property
    def keeps_window(self) -> bool:
        """Whether reads of this plane may hold a window of decompressed pixels."""
        return self.hdu.tile_width > 256

    def read(self, y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
        """Pixels of the rectangle [y0, y1) x [x0, x1), which lies inside the image, in native byte order.

        Returns:
            Physical values (BSCALE and BZERO applied, BLANK as NaN): float32 for pixels of up to 16 bits and float32
            ones, float64 otherwise. (height, width).

        Raises:
            InputError: the file is damaged there.
        """
        raw = self.read_raw(y0, x0, y1, x1)
        if not self.integer:
            return raw
        dtype = np.float32 if abs(self.hdu.bitpix) <= 16 else np.float64
        values = raw.astype(np.float64) * self._scale + self._zero
        if self._blank is not None:
            values[raw == self._blank] = np.nan
        return values.astype(dtype, copy=False)

    def read_bits(self, y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
        """The rectangle as int64 (for masks of bits); pixels that are NaN or BLANK become -1: all bits set."""
        raw = self.read_raw(y0, x0, y1, x1)
        if self.integer and self._scale == 1.0 and self._zero == int(self._zero):
            bits = raw.astype(np.int64) + int(self._zero)
            return bits if self._blank is None else np.where(raw == self._blank, -1, bits)
        values = self.read(y0, x0, y1, x1)
        finite = np.isfinite(values)
        return np.where(finite, np.where(finite, values, 0).astype(np.int64), -1)

    def read_raw(self, y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
        """The stored numbers of a rectangle: integers before BSCALE and BZERO, floats as they are."""
        height, width = self.shape
        assert 0 <= y0 <= y1 <= height and 0 <= x0 <= x1 <= width, "the rectangle leaves the image"
        if y0 == y1 or x0 == x1:
            return np.zeros((y1 - y0, x1 - x0), self._raw_dtype())
        with self.file.lock:
            if self.hdu.tile_width <= x1 - x0 or not self.keeps_window:
                return self._slice(y0, x0, y1, x1)
            if self._window is None or not _contains(self._window[0], (y0, x0, y1, x1)):
                self._window = None
                itemsize = abs(self.hdu.bitpix) // 8
                columns = max(x1 - x0, self.window_bytes // ((y1 - y0) * itemsize))
                end = min(width, x0 + columns)
                self._window = ((y0, x0, y1, end), self._slice(y0, x0, y1, end))
            (top, left, _, _), pixels = self._window
            return pixels[y0 - top : y1 - top, x0 - left : x1 - left].copy()

    def drop_window(self) -> None:
        """Free the kept pixels."""
        self._window = None

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__, _window=None)

    def _raw_dtype(self) -> type:
        return {8: np.uint8, 16: np.int16, 32: np.int32, 64: np.int64, -32: np.float32, -64: np.float64}[
            self.hdu.bitpix
        ]

    def _slice(self, y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
        index = (slice(0, 1),) * self.hdu.leading
        if self.plane is not None:
            index += (slice(self.plane, self.plane + 1),)
        index += (slice(y0, y1), slice(x0, x1))
        hdu = self.file.handle[self.hdu.number]
        if self.integer:
            hdu.ignore_scaling = True  # scaled here in double precision, so that BLANK is compared exactly
        try:
            pixels = hdu[index]
        except OSError as error:
            raise InputError(
                f"{self.name}: cannot read rows {y0}..{y1 - 1} ({_last_line(error)}); the file is damaged or of a kind "
                "that CFITSIO cannot read: get it again, or write it again without compression"
            ) from error
        return pixels.reshape(y1 - y0, x1 - x0)


def _contains(outer: tuple[int, int, int, int], inner: tuple[int, int, int, int]) -> bool:
    return outer[0] <= inner[0] and outer[1] <= inner[1] and outer[2] >= inner[2] and outer[3] >= inner[3]


def share_window_budget(planes: Iterable[Plane], total_bytes: int) -> None:
    """Divide one memory budget among the planes that keep windows, so that a mosaic's memory has a bound."""
    keeping = [plane for plane in planes if plane.keeps_window]
    for plane in keeping:
        plane.window_bytes = total_bytes // len(keeping)
