"""Milky Way reddening E(B-V) at any place of the sky, from maps that users keep on disk.

- SFD: Schlegel, Finkbeiner & Davis (1998, ApJ 500, 525). The files SFD_dust_4096_ngp.fits and SFD_dust_4096_sgp.fits
  hold E(B-V) in magnitudes on zenithal equal-area (Lambert) projections around the Galactic poles (their appendix C);
  values are interpolated bilinearly. Schlafly & Finkbeiner (2011, ApJ 737, 103) find them too large: `scale: 0.86`.
- HEALPix: a FITS table with the keywords NSIDE and ORDERING, one value per pixel, in Galactic or equatorial coordinates
  (COORDSYS); also interpolated bilinearly.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS
from scipy import ndimage

from deepdisc.errors import InputError, first_line, require_extra

_SFD_FILES = {"ngp": "SFD_dust_4096_ngp.fits", "sgp": "SFD_dust_4096_sgp.fits"}
_FRAMES = {"g": "galactic", "gal": "galactic", "galactic": "galactic", "c": "icrs", "cel": "icrs", "icrs": "icrs",
           "equatorial": "icrs"}  # fmt: skip


def open_sky_map(stated: Mapping[str, Any]) -> SfdMap | HealpixMap:
    """The map that {sfd: folder, scale: s} or {healpix: file, scale: s} names.

    Raises:
        InputError: a file is missing or not such a map.
    """
    if "sfd" in stated:
        return SfdMap(Path(stated["sfd"]), stated.get("scale", 1.0))
    return HealpixMap(Path(stated["healpix"]), stated.get("scale", 1.0))


class SfdMap:
    """E(B-V) of Schlegel, Finkbeiner & Davis; the half of the sky that is asked for is read when it is first needed.

    Args:
        folder: of the two files.
        scale: factor on the map.

    Raises:
        InputError: a file is missing.
    """

    def __init__(self, folder: Path, scale: float = 1.0):
        self._paths = {pole: folder / name for pole, name in _SFD_FILES.items()}
        for path in self._paths.values():
            if not path.is_file():
                raise InputError(
                    f"no SFD dust map at {path}; the folder of `sfd:` holds {', '.join(_SFD_FILES.values())}"
                )
        self._scale = scale
        self._read: dict[str, tuple[np.ndarray, WCS]] = {}
        self.origin = f"SFD maps in {folder}" + ("" if scale == 1 else f" times {scale:g}")

    def at(self, ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
        """E(B-V) (N,) in magnitudes at ICRS degrees (N,)."""
        galactic = SkyCoord(ra, dec, unit="deg", frame="icrs").galactic
        longitude, latitude = galactic.l.deg, galactic.b.deg
        values = np.full(len(longitude), np.nan)
        for pole, chosen in (("ngp", latitude >= 0), ("sgp", latitude < 0)):
            if chosen.any():
                image, wcs = self._half(pole)
                x, y = wcs.all_world2pix(longitude[chosen], latitude[chosen], 0)
                values[chosen] = ndimage.map_coordinates(image, [y, x], order=1, mode="nearest")
        return values * self._scale

    def _half(self, pole: str) -> tuple[np.ndarray, WCS]:
        if pole not in self._read:
            path = self._paths[pole]
            try:
                with fits.open(path) as file:
                    image, wcs = np.asarray(file[0].data, np.float32), WCS(file[0].header)
            except (OSError, ValueError, TypeError) as error:
                raise InputError(f"{path}: cannot be read: {first_line(error)}") from error
            if image.ndim != 2 or not wcs.has_celestial or not all("ZEA" in kind for kind in wcs.wcs.ctype):
                raise InputError(
                    f"{path}: is no map in Galactic ZEA projection (CTYPE GLON-ZEA); take the original files"
                )
            self._read[pole] = image, wcs
        return self._read[pole]


class HealpixMap:
    """E(B-V) of a HEALPix map (extra `regrid`, which brings astropy-healpix).

    Args:
        path: of the FITS table.
        scale: factor on the map.

    Raises:
        InputError: the file is missing or no such map.
    """

    def __init__(self, path: Path, scale: float = 1.0):
        library = require_extra("astropy_healpix", "regrid")
        if not path.is_file():
            raise InputError(f"no HEALPix map at {path}")
        try:
            with fits.open(path) as file:
                table = next((hdu for hdu in file if isinstance(hdu, fits.BinTableHDU) and "NSIDE" in hdu.header), None)
                if table is None:
                    raise InputError(f"{path}: holds no table with the keyword NSIDE; it is no HEALPix map")
                header = table.header
                values = np.asarray(table.data.field(0), np.float64).ravel()
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path}: cannot be read: {first_line(error)}") from error
        system = str(header.get("COORDSYS", "")).strip().lower()
        if system not in _FRAMES or len(values) != 12 * int(header["NSIDE"]) ** 2:
            raise InputError(
                f"{path}: COORDSYS is {system!r} (needed: G or C) and {len(values)} values for NSIDE {header['NSIDE']} "
                "(needed: 12 NSIDE^2); only full maps are read"
            )
        order = str(header.get("ORDERING", "RING")).strip().lower()
        self._healpix = library.HEALPix(nside=int(header["NSIDE"]), order=order, frame=_FRAMES[system])
        self._frame, self._values, self._scale = _FRAMES[system], values, scale
        self.origin = f"HEALPix map {path}" + ("" if scale == 1 else f" times {scale:g}")

    def at(self, ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
        """E(B-V) (N,) in magnitudes at ICRS degrees (N,)."""
        sky = SkyCoord(ra, dec, unit="deg", frame="icrs").transform_to(self._frame)
        return self._healpix.interpolate_bilinear_lonlat(
            sky.spherical.lon, sky.spherical.lat, self._values
        ) * self._scale  # fmt: skip
