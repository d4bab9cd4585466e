"""A sky of Gaussian blobs with its truth, in the format that `prepare` reads; needs no simulator."""

from __future__ import annotations

from pathlib import Path

import fitsio
import numpy as np
import pandas as pd
import yaml

BANDS = ("g", "r")
NOISE_NJY = {"g": 2.0, "r": 3.0}


def write_field(folder: Path, shape=(192, 256), count=60, seed=0, ra=150.0, **truth_columns) -> dict:
    """Write mosaic.yaml, images, segmentation.fits and truth.parquet into `folder`; return its entry in a recipe.

    Blobs have sigma 1.5 to 2.5 pixels; the brightest wins a pixel above 3 nJy in r; every fifth is a star. The redshift
    is the colour: log(flux_r / flux_g).
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    height, width = shape
    y, x = np.mgrid[:height, :width]
    images = {band: rng.normal(0, NOISE_NJY[band], shape) for band in BANDS}
    brightest, segmentation = np.full(shape, 3.0), np.zeros(shape, np.int32)
    rows = []
    for number in range(1, count + 1):
        cx, cy = rng.uniform(3, width - 4), rng.uniform(3, height - 4)
        sigma, flux_r, redshift = rng.uniform(1.5, 2.5), rng.uniform(500, 3000), rng.uniform(0.1, 1.5)
        profile = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)
        images["r"] += flux_r * profile
        images["g"] += flux_r * np.exp(-redshift) * profile
        segmentation[(flux_r * profile) > brightest] = number
        brightest = np.maximum(brightest, flux_r * profile)
        inside = np.argwhere(flux_r * profile > 3.0)
        (y0, x0), (y1, x1) = inside.min(axis=0), inside.max(axis=0) + 1
        star = number % 5 == 0
        rows.append(
            {"id": number, "x": cx, "y": cy, "ra": ra + cx / 36000, "dec": cy / 36000}
            | {"x_min": x0, "y_min": y0, "x_max": x1, "y_max": y1, "class_id": int(star)}
            | {"redshift": np.nan if star else redshift, "snr": flux_r / 50, "flags": 0, "flux_r": flux_r}
            | {"flux_g": flux_r * np.exp(-redshift)}
        )
    truth = pd.DataFrame(rows).assign(**truth_columns)
    truth.to_parquet(folder / "truth.parquet")
    fitsio.write(str(folder / "segmentation.fits"), segmentation, clobber=True)
    bands = {}
    for band, image in images.items():
        variance = np.full(shape, NOISE_NJY[band] ** 2, np.float32)
        with fitsio.FITS(str(folder / f"{band}.fits"), "rw", clobber=True) as fits:
            fits.write(image.astype(np.float32), header={"BUNIT": "nJy"})
            fits.write(variance, extname="VARIANCE")
        bands[band] = {"image": f"{band}.fits", "variance": f"{band}.fits[VARIANCE]", "unit": "nJy"}
    mosaic = {"name": folder.name, "pixel_scale_arcsec": 0.2, "ebv": 0.03, "bands": bands}
    (folder / "mosaic.yaml").write_text(yaml.safe_dump(mosaic))
    names = {"mosaic": "mosaic.yaml", "truth": "truth.parquet", "segmentation": "segmentation.fits"}
    return {"name": folder.name} | {key: f"{folder.name}/{file}" for key, file in names.items()}


def write_recipe(folder: Path, fields: list[dict], **more) -> Path:
    """Write recipe.yaml beside the fields' folders."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"name": "blobs", "class_names": ["galaxy", "star"], "fields": fields, **more}))
    return path
