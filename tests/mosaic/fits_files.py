"""Writing the small FITS files that the tests of mosaics are made from."""

from pathlib import Path

import numpy as np
from astropy.io import fits

PIXEL_SCALE_ARCSEC = 0.2


def wcs_header(shape, shift=(0.0, 0.0), scale_arcsec=PIXEL_SCALE_ARCSEC, zero_point=31.4) -> fits.Header:
    """A tangent-plane WCS whose reference is the image's centre moved by `shift` (x, y) pixels."""
    header = fits.Header()
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
    header["CRVAL1"], header["CRVAL2"] = 150.0, 2.0
    header["CRPIX1"], header["CRPIX2"] = (shape[1] + 1) / 2 + shift[0], (shape[0] + 1) / 2 + shift[1]
    header["CDELT1"], header["CDELT2"] = -scale_arcsec / 3600, scale_arcsec / 3600
    header["RADESYS"] = "ICRS"
    if zero_point is not None:
        header["MAGZERO"] = zero_point
    return header


def write(path: Path, pixels: np.ndarray, **wcs) -> Path:
    """Write an image with a WCS; `header=None` leaves the WCS out."""
    header = wcs.pop("header", "wcs")
    if header == "wcs":
        header = wcs_header(pixels.shape[-2:], **wcs)
    fits.PrimaryHDU(pixels, header).writeto(path, overwrite=True)
    return path
