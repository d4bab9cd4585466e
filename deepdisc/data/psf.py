"""The PSF of one band of a mosaic: measured pictures of it, a width, or nothing.

K = number of places in the field where it is known, P = side of the recorded pictures (see `deepdisc.psf`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import fitsio
import numpy as np

from deepdisc.data.fits_plane import split_extension
from deepdisc.data.sources import BandSource
from deepdisc.errors import InputError, first_line
from deepdisc.psf import moffat_psf, psf_fwhm_pix, recorded_psf, unknown_psf

POSITIONS = "POSITIONS"  # the table extension with the places of a cube's pictures
_SCALE_KEYWORDS = ("PIXELSCL", "PIXSCALE", "PIXSCL")
_SCALE_TOLERANCE = 0.02


@dataclass(frozen=True)
class BandPsf:
    """Pictures of a star in a band.

    Attributes:
        stamps: (K, P, P) float32, each of sum 1; zeros when unknown.
        positions: (K, 2) x, y of their places, 0-based pixel centres of the mosaic; one picture is for the whole field.
        origin: where they come from, in words.
    """

    stamps: np.ndarray
    positions: np.ndarray
    origin: str

    def at(self, x: float, y: float) -> np.ndarray:
        """(P, P) picture of the place nearest to a 0-based pixel centre."""
        return self.stamps[((self.positions - (x, y)) ** 2).sum(axis=1).argmin()]

    def describe(self, pixel_scale_arcsec: float) -> dict[str, Any]:
        """What a run should record: origin, number of places and median full width at half maximum with the pixel."""
        width = float(np.median([psf_fwhm_pix(stamp) for stamp in self.stamps])) * pixel_scale_arcsec
        return {"from": self.origin, "places": len(self.stamps), "fwhm_arcsec": round(width, 5) if width > 0 else None}


def read_psf(source: BandSource, pixel_scale_arcsec: float) -> BandPsf:
    """The PSF that a band's source states: its file, else a Moffat profile of its width, else unknown.

    Args:
        source: of the band.
        pixel_scale_arcsec: of the mosaic.

    Raises:
        InputError: the file cannot be read, holds no picture or one of other pixels, a cube has no places, or see
            `recorded_psf`.
    """
    one = np.zeros((1, 2))
    if source.psf is not None:
        label = f"band {source.name}: {source.psf}"
        stamps, positions = _read(source.psf, pixel_scale_arcsec, label)
        many = len(stamps) > 1
        names = [f"{label}: picture {number}" if many else label for number in range(len(stamps))]
        recorded = [recorded_psf(stamp, name) for stamp, name in zip(stamps, names, strict=True)]
        return BandPsf(np.stack(recorded), one if positions is None else positions, source.psf)
    if source.psf_fwhm_arcsec is not None:
        stamp = moffat_psf(source.psf_fwhm_arcsec / pixel_scale_arcsec)
        return BandPsf(stamp[None], one, "psf_fwhm_arcsec, as a Moffat profile")
    return BandPsf(unknown_psf(1), one, "unknown")


def _read(text: str, pixel_scale_arcsec: float, label: str) -> tuple[np.ndarray, np.ndarray | None]:
    """(K, height, width) pictures and their (K, 2) places; None of these for a single picture."""
    path, extension = split_extension(text)
    positions = None
    try:
        with fitsio.FITS(path) as file:
            images = [hdu for hdu in file if hdu.get_exttype() == "IMAGE_HDU" and hdu.has_data()]
            if extension is None and not images:
                raise InputError(f"{label}: holds no image; give a picture of a star, or a cube of them")
            hdu = images[0] if extension is None else file[extension]
            stamps, header = hdu.read(), hdu.read_header()
            if stamps is not None and stamps.ndim == 3:
                table = file[POSITIONS].read() if POSITIONS in file else None
                positions = _positions(table, len(stamps), label)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{label}: cannot be read: {first_line(error)}; name a FITS image, FILE or FILE[EXT]"
        ) from error
    if stamps is None or stamps.ndim not in (2, 3) or stamps.dtype.names:
        raise InputError(f"{label}: holds no picture; a PSF is one image (y, x) or a cube (place, y, x)")
    scale = next((header[key] for key in _SCALE_KEYWORDS if key in header), None)
    if isinstance(scale, int | float) and abs(scale / pixel_scale_arcsec - 1) > _SCALE_TOLERANCE:
        raise InputError(
            f"{label}: its pixels are of {scale:g} arcsec, the mosaic's of {pixel_scale_arcsec:.4g}; draw the PSF in "
            "the mosaic's pixels"
        )
    return (stamps[None] if stamps.ndim == 2 else stamps), positions


def _positions(table: np.ndarray | None, count: int, label: str) -> np.ndarray:
    columns = {} if table is None else {name.upper(): name for name in table.dtype.names}
    if not {"X", "Y"} <= set(columns):
        raise InputError(
            f"{label}: a cube of PSFs needs a table extension {POSITIONS} with columns X, Y: 0-based pixels of the "
            "mosaic"
        )
    positions = np.stack([table[columns[axis]] for axis in "XY"], axis=1).astype(np.float64)
    if len(positions) != count or not np.isfinite(positions).all():
        raise InputError(
            f"{label}: {count} pictures but {len(positions)} places; {POSITIONS} has a finite X, Y for each"
        )
    return positions
