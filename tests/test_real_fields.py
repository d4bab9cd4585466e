"""The shipped model on real pixels: what a user with a mosaic of each kind does, by the command line."""

import json

import numpy as np
import pytest
from scipy.spatial import cKDTree

from deepdisc import catalog
from deepdisc.cli import main

BRIGHT = 20.5


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def test_bright_objects_of_the_sdss_sample_are_found_within_a_pixel(repository, tmp_path):
    field = repository / "datasets/sdss_sample"
    assert run("predict", field / "mosaic.yaml", "--model", "ugriz_r18", "--output", tmp_path / "out") == 0
    found, truth = catalog.read(tmp_path / "out/catalog.parquet"), catalog.read(field / "truth.parquet")
    bright = truth[truth.mag_r < BRIGHT]
    distance, which = cKDTree(found[["x", "y"]]).query(bright[["x", "y"]])
    assert len(bright) == 34
    assert len(set(which[distance < 1])) >= 0.9 * len(bright)
    # Independent of the pixels: the same objects by their sky positions.
    ra = (found.ra.to_numpy()[which] - bright.ra.to_numpy()) * np.cos(np.radians(bright.dec.to_numpy()))
    apart = 3600 * np.hypot(ra, found.dec.to_numpy()[which] - bright.dec.to_numpy())
    assert np.median(apart) < 0.2 and found.z_mode.between(0, 3).all()


@pytest.mark.slow
def test_kids_nine_bands_without_wcs(shared_data, tmp_path, capfd):
    folder = shared_data / "data/images/kids_viking_9band"
    bands = ("u", "g", "r", "i", "Z", "Y", "J", "H", "Ks")
    zero_points = ",".join(f"{band}={0 if band in 'ugri' else 30}" for band in bands)
    files = [f"{band}={folder / band}.fits" for band in bands]
    options = (
        "--model",
        "ugriz_r18",
        "--bands",
        "u,g,r,i,z=Z",
        "--zero-point",
        zero_points,
        "--output",
        tmp_path / "out",
    )
    assert run("predict", *files, *options) == 2
    assert "pixel" in capfd.readouterr().err
    assert run("predict", *files, *options, "--pixel-scale", 0.339) == 0
    assert "no WCS" in capfd.readouterr().err
    found = catalog.read(tmp_path / "out/catalog.parquet")
    assert len(found) > 2000 and found.ra.isna().all() and found.x.between(-0.5, 2599.5).all()


@pytest.mark.slow
def test_jwst_mosaic_whose_depth_changes_inside_it(shared_data, tmp_path):
    folder = shared_data / "data/images/jwst_primer_uds_A"
    files = "image: {folder}/uds-test-{name}_sci.fits, weight: {folder}/uds-test-{name}_wht.fits.gz"
    lines = [f"  {band}: {{{files.format(folder=folder, name=band.lower())}}}" for band in ("F115W", "F444W")]
    (tmp_path / "mosaic.yaml").write_text("name: primer\nbands:\n" + "\n".join(lines) + "\n")
    bands = "u=F115W,g=F115W,r=F115W,i=F444W,z=F444W"
    arguments = ("--model", "ugriz_r18", "--bands", bands, "--output", tmp_path / "out")
    assert run("predict", tmp_path / "mosaic.yaml", *arguments) == 0
    found = catalog.read(tmp_path / "out/catalog.parquet")
    report = json.loads((tmp_path / "out/run.json").read_text())
    assert report["objects"] == len(found) > 100
    # Centre of the field by its published position, not by the WCS that made the catalogue.
    assert abs(found.ra.median() - 34.30324) < 0.003 and abs(found.dec.median() + 5.11132) < 0.003
