"""Make datasets/sdss_sample: a piece of an SDSS field in five bands on one grid, with deeper truth.

    python tools/make_sdss_sample.py FOLDER [--output datasets/sdss_sample]
    python tools/make_sdss_sample.py FOLDER --window 0 0 1489 2048 --output sdss_field     (the whole field)

FOLDER holds, of SDSS run 94, camcol 1, field 12: frame-[ugriz]-000094-1-0012.fits.bz2, photoObj-000094-1-0012.cut.fits
and coadd_catalog_94_1_12.fits (the catalogue of the Stripe 82 coadd, about 20 times deeper, of the same sky).
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import fitsio
import numpy as np
import pandas as pd
import yaml
from astropy.table import Table

from deepdisc import catalog
from deepdisc.data.mosaic import Mosaic
from deepdisc.data.regrid import regrid
from deepdisc.errors import InputError
from deepdisc.files import atomic_path, write_text
from deepdisc.photometry import njy_from_mag
from deepdisc.sky import PixelGrid

BANDS = "ugriz"
COADD, SINGLE = "coadd_catalog_94_1_12.fits", "photoObj-000094-1-0012.cut.fits"
# y0, x0, height, width: richest in r < 20.5 objects among the windows of this size that all five bands cover.
WINDOW = (960, 784, 512, 512)
# Noise over quantisation step. 8 costs 0.1 % of the noise (1/12/64 of the variance) and 1.1 MB for all bands.
NOISE_PER_STEP = 8
EXTINCTION_R_PER_EBV = 2.751  # Schlegel, Finkbeiner & Davis (1998), table 6, as used by the SDSS pipeline
_ABSENT_BELOW = -1000  # the coadd catalogue writes -9999 for what was not measured


def main(arguments: list[str] | None = None) -> None:
    """Read the arguments and write the sample."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, default=Path("datasets/sdss_sample"))
    parser.add_argument("--window", type=int, nargs=4, default=WINDOW, metavar=("Y0", "X0", "HEIGHT", "WIDTH"))
    args = parser.parse_args(arguments)
    try:
        make_sample(args.folder, args.output, args.window)
    except InputError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")


def make_sample(folder: Path, output: Path, window: Sequence[int]) -> None:
    """Write the images, mosaic.yaml and truth of a window.

    Args:
        folder: with the files that the head of this script names.
        output: folder to write.
        window: y0, x0, height, width in pixels of the r band.

    Raises:
        InputError: a file is missing or cannot be read or written.
    """
    y0, x0, *shape = window
    for name in (COADD, SINGLE):
        if not (folder / name).is_file():
            raise InputError(f"{folder} does not hold {name}; see the head of this script")
    with tempfile.TemporaryDirectory() as scratch:
        frames = {band: str(folder / f"frame-{band}-000094-1-0012.fits.bz2") for band in BANDS}
        with Mosaic.open(regrid(frames, scratch, "r")) as mosaic:
            cutout = mosaic.read(y0, x0, y0 + shape[0], x0 + shape[1])
            grid = mosaic.grid.cutout(y0, x0, tuple(shape))
    bands = {}
    single = Table.read(folder / SINGLE)
    for channel, band in enumerate(BANDS):
        good = ~cutout.mask[channel]
        write_band(output / f"{band}.fits", band, np.where(good, cutout.image[channel], np.nan), grid)
        bands[band] = {
            "image": f"{band}.fits",
            "variance": float(f"{np.median(cutout.variance[channel][good]):.4g}"),
            "unit": "nJy",
            "psf_fwhm_arcsec": round(float(np.median(single["PSF_FWHM"][:, channel])), 2),
        }
    ebv = float(np.median(single["EXTINCTION"][:, BANDS.index("r")])) / EXTINCTION_R_PER_EBV
    content = {"name": "sdss_run94_camcol1_field12", "ebv": round(ebv, 4), "bands": bands}
    write_text(output / "mosaic.yaml", yaml.safe_dump(content, sort_keys=False))
    truth = make_truth(Table.read(folder / COADD), grid)
    catalog.write_parquet(truth, output / "truth.parquet")


def write_band(path: Path, band: str, pixels: np.ndarray, grid: PixelGrid) -> None:
    """Write one band (nJy, NaN where masked), RICE-compressed."""
    header = [{"name": key, "value": value} for key, value in grid.header().items()]
    header += [{"name": "BUNIT", "value": "nJy"}, {"name": "FILTER", "value": band}]
    with atomic_path(path) as temporary, fitsio.FITS(os.fspath(temporary), "rw") as file:
        file.write(
            pixels.astype(np.float32),
            header=header,
            compress="RICE",
            qlevel=NOISE_PER_STEP,
            qmethod="SUBTRACTIVE_DITHER_2",
            dither_seed="checksum",  # the same pixels give the same bytes
            tile_dims=(64, grid.shape[1]),
        )


def composite_mag(table: Table, band: str) -> np.ndarray:
    """Total magnitude: of the PSF for stars, of the composite model (cmodel) for galaxies.

    The catalogue's own `mag` is not used: for galaxies it is that of the *sum* of the de Vaucouleurs and the
    exponential fit, which is 0.75 mag too bright. Each of the two holds all of the light; `fracdev_r` weighs them.
    """
    de_vaucouleurs, exponential = (
        10 ** (-0.4 * np.asarray(table[f"{kind}mag_{band}"], float)) for kind in ("dev", "exp")
    )
    share = np.asarray(table["fracdev_r"], float)
    model = -2.5 * np.log10(share * de_vaucouleurs + (1 - share) * exponential)
    return np.where(table["galaxy_bool"], model, np.asarray(table[f"psfmag_{band}"], float))


def half_light_radius(table: Table) -> np.ndarray:
    """Circularised half-light radius of the dominant component in r before the PSF, arcsec; NaN for stars."""
    dominant = np.asarray(table["fracdev_r"]) > 0.5
    radius = np.where(dominant, table["devrad_r"], table["exprad_r"]).astype(float)
    axis_ratio = np.where(dominant, table["devab_r"], table["expab_r"]).astype(float)
    known = np.asarray(table["galaxy_bool"]) & (radius > _ABSENT_BELOW) & (axis_ratio > 0)
    return np.where(known, radius * np.sqrt(np.where(known, axis_ratio, 1.0)), np.nan)


def make_truth(table: Table, grid: PixelGrid) -> pd.DataFrame:
    """Rows of the coadd catalogue inside the window; positions by RA, Dec through the window's WCS."""
    x, y = grid.to_pixel(np.asarray(table["ra"]), np.asarray(table["dec"]))
    inside = (x > -0.5) & (x < grid.shape[1] - 0.5) & (y > -0.5) & (y < grid.shape[0] - 0.5)
    table, x, y = table[inside], x[inside], y[inside]
    order = np.argsort(composite_mag(table, "r"), kind="stable")
    table, x, y = table[order], x[order], y[order]
    galaxy = np.asarray(table["galaxy_bool"], bool)
    columns = {
        "id": np.arange(1, len(table) + 1),
        "x": x,
        "y": y,
        "ra": np.asarray(table["ra"], np.float64),  # native byte order
        "dec": np.asarray(table["dec"], np.float64),
        "class_id": np.where(galaxy, 0, 1).astype(np.int16),
        "class_name": np.where(galaxy, "galaxy", "star"),
        "redshift": np.full(len(table), np.nan),
    }
    for band in BANDS:
        columns[f"mag_{band}"] = composite_mag(table, band)
        columns[f"flux_{band}"] = njy_from_mag(columns[f"mag_{band}"])
    columns["hlr_arcsec"] = half_light_radius(table).astype(np.float32)
    saturated = catalog.FLAGS["SATURATED"].value
    columns["flags"] = np.where(table["is_saturated"], saturated, 0).astype(np.int32)
    return pd.DataFrame(columns)


if __name__ == "__main__":
    main()
