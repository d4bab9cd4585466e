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
from deepdisc.data.foreign import place
from deepdisc.data.mosaic import Mosaic
from deepdisc.data.recipe import read_recipe
from deepdisc.data.regrid import regrid
from deepdisc.errors import InputError
from deepdisc.files import atomic_path, write_text
from deepdisc.sky import PixelGrid

BANDS = "ugriz"
COADD, SINGLE = "coadd_catalog_94_1_12.fits", "photoObj-000094-1-0012.cut.fits"
# y0, x0, height, width: richest in r < 20.5 objects among the windows of this size that all five bands cover.
WINDOW = (960, 784, 512, 512)
# Noise over quantisation step. 8 costs 0.1 % of the noise (1/12/64 of the variance) and 1.1 MB for all bands.
NOISE_PER_STEP = 8
EXTINCTION_R_PER_EBV = 2.751  # Schlegel, Finkbeiner & Davis (1998), table 6, as used by the SDSS pipeline
RECIPE = Path(__file__).resolve().parents[1] / "datasets" / "sdss_run94.yaml"


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
    truth = make_truth(folder, grid)
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


def make_truth(folder: Path, grid: PixelGrid) -> pd.DataFrame:
    """Rows of the coadd catalogue inside the window, as datasets/sdss_run94.yaml reads them; brightest in r first."""
    [field] = read_recipe(RECIPE, [f"data={folder}"]).fields
    rows = place(field.survey.catalogues[0].read(list(BANDS)), grid, "coadd")
    inside = (rows.x > -0.5) & (rows.x < grid.shape[1] - 0.5) & (rows.y > -0.5) & (rows.y < grid.shape[0] - 0.5)
    rows = rows[inside].sort_values("mag_r", kind="stable", ignore_index=True)
    columns = {
        "id": np.arange(1, len(rows) + 1),
        **{name: rows[name] for name in ("x", "y", "ra", "dec")},
        "class_id": np.where(rows.class_name == "galaxy", 0, 1).astype(np.int16),
        "class_name": rows.class_name,
        "redshift": np.full(len(rows), np.nan),
        **{f"{kind}_{band}": rows[f"{kind}_{band}"] for band in BANDS for kind in ("mag", "flux")},
        "hlr_arcsec": rows.hlr_arcsec.astype(np.float32),
        "flags": rows["flags"].astype(np.int32),
    }
    return pd.DataFrame(columns)


if __name__ == "__main__":
    main()
