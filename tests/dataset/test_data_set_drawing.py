"""`deepdisc inspect DATASET --output DIR`: the page, its numbers, and data sets of every kind."""

import json
import re
import tracemalloc

import blob_sky
import fitsio
import numpy as np
import pandas as pd
import pytest
import yaml
from astropy.wcs import WCS

from deepdisc import cli
from deepdisc.data import census, drawing
from deepdisc.data.dataset import TilePixels
from deepdisc.data.drawing import draw_dataset
from deepdisc.data.tile_writer import SCHEMA_VERSION
from deepdisc.psf import PSF_SIDE

NINE = ["F090W", "F115W", "F150W", "F200W", "F277W", "F335M", "F356W", "F410M", "F444W"]


def write_dataset(root, tiles=3, bands=("r",), shape=(40, 48), rows=None, wcs=False, mask=False, noise=2.0):
    """A data set of noise; tile k belongs to train, val or test in turn; `rows` maps tile -> list of truth rows."""
    (root / "tiles").mkdir(parents=True)
    rng = np.random.default_rng(1)
    table, truth = [], []
    for tile in range(tiles):
        image = rng.normal(0, noise, (len(bands), *shape)).astype(np.float32)
        segmentation = np.zeros(shape, np.int32)
        header = {}
        if wcs:
            sky = WCS(naxis=2)
            sky.wcs.ctype, sky.wcs.crval, sky.wcs.crpix = ["RA---TAN", "DEC--TAN"], [359.999 + 0.001 * tile, 1], [1, 1]
            sky.wcs.cdelt = [-1 / 3600, 1 / 3600]
            header = dict(sky.to_header())
        for row in (rows or {}).get(tile, []):
            segmentation[int(row["y_min"]) : int(row["y_max"]), int(row["x_min"]) : int(row["x_max"])] = row["id"]
            truth.append({"tile": np.int32(tile), "field": f"f{tile}", "flags": 0, "class_id": 0, "area_pix": 6, **row})
        bad = np.full((len(bands), *shape), mask, np.uint8)
        with fitsio.FITS(str(root / f"tiles/{tile:05d}.fits"), "rw") as fits:
            fits.write(image, extname="IMAGE", header=header)
            fits.write(np.full_like(image, noise**2), extname="VARIANCE")
            fits.write(bad, extname="MASK")
            fits.write(segmentation, extname="SEGMENTATION")
            fits.write(np.zeros((1, 1), np.float32), extname="EBV")
            fits.write(np.zeros((1, 1, len(bands), PSF_SIDE, PSF_SIDE), np.float32), extname="PSF")
        place = {"y0": 0, "x0": 0, "height": shape[0], "width": shape[1], "split": ("train", "val", "test")[tile % 3]}
        table.append({"tile": tile, "file": f"tiles/{tile:05d}.fits", "field": f"f{tile}", **place})
    pd.DataFrame(table).to_parquet(root / "split.parquet", index=False)
    columns = ["tile", "field", "flags", "class_id", "area_pix", "id", "x_min", "y_min", "x_max", "y_max"]
    frame = pd.DataFrame(truth, columns=columns if not truth else None)
    for name in ("tile", "flags", "class_id", "area_pix", "id"):
        frame[name] = frame[name].astype(np.int32)
    frame.to_parquet(root / "truth.parquet", index=False)
    about = {"schema_version": SCHEMA_VERSION, "name": "noise", "bands": list(bands), "pixel_scale_arcsec": 1.0}
    (root / "dataset.yaml").write_text(yaml.safe_dump(about | {"class_names": ["galaxy", "star"]}))
    return root


def box(number, **values):
    return {"id": number, "x_min": 3.0 * number, "y_min": 5.0, "x_max": 3.0 * number + 2, "y_max": 8.0, **values}


def draw(root, output, **keywords):
    page = draw_dataset(root, output, **keywords)
    return page.read_text(), json.loads((output / "report.json").read_text())


def test_a_data_set_is_drawn_from_the_command_line(dataset, tmp_path, capsys):
    assert cli.main(["inspect", str(dataset), "--output", str(tmp_path / "look"), "--tiles", "2", "--seed", "3"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "look" / "report.html")
    assert len(list((tmp_path / "look" / "tiles").glob("*.png"))) == 6
    page = (tmp_path / "look" / "report.html").read_text()
    for heading in ("Counts", "Random tiles", "Noise and masked pixels", "Magnitudes", "Objects", "Crowding"):
        assert f"<h2>{heading}</h2>" in page


def test_the_page_needs_nothing_from_elsewhere(dataset, tmp_path):
    page, _ = draw(dataset, tmp_path / "look", tiles=1)
    assert not re.search(r"https?:|<script|<link|@import|url\(", page)
    assert set(re.findall(r'src="([^,]*),', page)) == {"data:image/png;base64"}
    assert "prefers-color-scheme:dark" in page


def test_the_same_seed_draws_the_same_tiles(dataset, tmp_path):
    names = [
        sorted(path.name for path in draw_dataset(dataset, tmp_path / name, 1, seed).parent.glob("tiles/*.png"))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert names[0] == names[1] != names[2]


def test_counts_are_those_of_the_truth(tmp_path):
    rows = {
        0: [box(1, redshift=0.5), box(2, redshift=np.nan), box(3, class_id=1, redshift=np.nan), box(4, flags=128)],
        2: [box(1, redshift=1.5, flags=1), box(2, redshift=1.5, area_pix=0)],
    }
    rows[0].append(box(1, redshift=0.5))  # the same object once more, as on a border
    _, found = draw(write_dataset(tmp_path / "ds", tiles=4, rows=rows), tmp_path / "look")
    train, val, test = (found["splits"][split] for split in ("train", "val", "test"))
    assert (train["tiles"], train["rows"], train["objects"], train["labelled"], train["faint"]) == (2, 5, 4, 4, 1)
    assert train["classes"] == {"galaxy": 3, "star": 1} and train["tiles_without_objects"] == 1
    assert train["missing"]["redshift"] == 1, "a star lacks no redshift"
    assert train["missing"]["brightness in r"] == 4
    assert val["rows"] == 0 and val["tiles_without_objects"] == 1
    assert (test["rows"], test["labelled"], test["without_outline"]) == (2, 1, 1)
    assert test["flags"]["EDGE"] == 1 and test["area_arcmin2"] == pytest.approx(40 * 48 / 3600)
    assert found["distributions"]["redshift"]["train"] == {
        "n": 3 - 1, "missing": 2, "median": 0.5, "p16": 0.5, "p84": 0.5,
    }  # fmt: skip


def test_matches_of_all_fields_are_added_up(tmp_path):
    root = write_dataset(tmp_path / "ds")
    description = yaml.safe_load((root / "dataset.yaml").read_text())
    match = {"matched": 7, "ambiguous": 2, "median_separation_arcsec": 0.1}
    match["separations"] = {"edges_arcsec": [0, 0.5, 1.0], "counts": [5, 2]}
    report = {"catalogues": {"coadd": {"rows": 9}}, "match": match, "redshifts": {}}
    description["provenance"] = {"fields": [{"name": "a", "report": report}, {"name": "b"}, {"report": report}]}
    (root / "dataset.yaml").write_text(yaml.safe_dump(description))
    page, _ = draw(root, tmp_path / "look")
    for label, number in (("catalogues, coadd, rows", 18), ("match, matched", 14), ("match, ambiguous", 4)):
        assert f"<td>{label}</td><td>{number}</td>" in page
    assert "median separation" not in page and (tmp_path / "look" / "matches.png").is_file()


def test_magnitudes_and_colours_come_from_fluxes_where_there_are_no_magnitudes(tmp_path):
    rows = {0: [box(i, flux_F444W=1000.0, flux_F090W=100.0, mag_F115W=25.0) for i in range(1, 5)]}
    _, found = draw(write_dataset(tmp_path / "ds", bands=NINE[::-1], rows=rows), tmp_path / "look")
    medians = {name: parts["train"]["median"] for name, parts in found["distributions"].items()}
    assert medians["mag_F444W"] == pytest.approx(31.4 - 7.5) and medians["mag_F115W"] == 25.0
    assert medians["F090W-F115W"] == pytest.approx(26.4 - 25.0), "colours are of neighbours in wavelength"
    assert "F200W-F277W" not in medians


def test_noise_is_measured_on_the_sky(tmp_path):
    root = write_dataset(tmp_path / "ds", tiles=9, bands=("g", "r"), shape=(128, 128), noise=3.0, rows={0: [box(1)]})
    with fitsio.FITS(str(root / "tiles/00000.fits"), "rw") as fits:
        image = fits["IMAGE"].read()
        image[:, 5:8, 3:5] = 1e6  # the object
        fits["IMAGE"].write(image)
    _, found = draw(root, tmp_path / "look")
    for band in found["pixels"].values():
        assert band["noise_njy"] == 3.0 and band["scatter_n"] == 9 and band["masked"] == 0
        assert band["scatter"] == pytest.approx(1, abs=4 * 0.0093), "MAD of 128^2 values: 1.17 / sqrt(2 n) = 0.65 %"
        assert 0 < band["scatter_err"] < 0.01 and abs(band["sky"]) < 4 * 0.0033 * 1.25


def test_correlated_noise_shows(tmp_path):
    rng = np.random.default_rng(0)
    white = rng.normal(size=(1, 257, 257))
    smooth = (white[:, 1:, 1:] + white[:, :-1, 1:] + white[:, 1:, :-1] + white[:, :-1, :-1]) / 4
    nothing = np.zeros_like(smooth, dtype=bool)
    found = census.measure_pixels(smooth, np.ones_like(smooth), nothing, ~nothing[0])
    assert found["scatter"][0] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("bands", "rows"),
    [(NINE, {0: [box(1, redshift=3.2)]}), (["F444W"], {}), (["r"], {1: [box(1)]}), (["detection"], {0: [box(2)]})],
)
def test_any_bands_empty_tiles_and_no_redshifts_are_drawn(tmp_path, bands, rows):
    root = write_dataset(tmp_path / "ds", bands=bands, rows=rows)
    page, found = draw(root, tmp_path / "look", tiles=1)
    assert found["bands"] == bands and page.count("<h3>t") == 2


def test_tiles_without_a_valid_pixel_are_drawn(tmp_path):
    _, found = draw(write_dataset(tmp_path / "ds", mask=True), tmp_path / "look")
    assert found["pixels"]["r"]["masked"] == 1
    assert found["pixels"]["r"]["noise_njy"] is None and found["pixels"]["r"]["noise_njy_n"] == 0


def test_the_map_crosses_right_ascension_zero(tmp_path):
    root = write_dataset(tmp_path / "ds", wcs=True)
    tiles = census.read_tiles(root)
    corners = drawing._corners(root, tiles)
    # Computed by hand: the first pixel's centre is at CRVAL, so its corner lies half an arcsecond east and south.
    assert corners[0, 0] == pytest.approx([359.999 + 0.5 / 3600, 1 - 0.5 / 3600], abs=1e-6)
    assert corners[1, 0, 0] == pytest.approx(0.5 / 3600, abs=1e-6)
    offsets, _, unit = drawing._tangent(corners)
    assert unit == "arcmin" and np.abs(offsets).max() < 1.5
    page, _ = draw(root, tmp_path / "look")
    assert (tmp_path / "look" / "sky.png").is_file() and "No map" not in page


@pytest.mark.slow
def test_a_data_set_of_many_tiles_takes_little_memory(tmp_path, monkeypatch):
    root = write_dataset(tmp_path / "ds", tiles=3, rows={0: [box(1, redshift=1.0, snr=10.0)]}, wcs=True)
    tiles, truth = pd.read_parquet(root / "split.parquet"), pd.read_parquet(root / "truth.parquet")
    many = pd.concat([tiles[:1]] * 10_000, ignore_index=True).assign(tile=np.arange(10_000))
    many["x0"], many["y0"] = 48 * (many.tile % 100), 40 * (many.tile // 100)
    many["split"] = np.where(many.tile % 5 == 0, "val", "train")
    many.to_parquet(root / "split.parquet", index=False)
    rows = pd.concat([truth] * 200_000, ignore_index=True)
    rows.assign(tile=np.arange(200_000) // 20, id=np.arange(200_000)).to_parquet(root / "truth.parquet", index=False)
    read = []
    monkeypatch.setattr(drawing, "read_tile", lambda path, planes: read.append(path) or census_tile(len(planes)))
    _, found = draw(root, tmp_path / "look", tiles=2)
    assert len(read) == drawing.MEASURED_TILES + 4
    assert found["splits"]["train"]["objects"] == 160_000
    tracemalloc.start()
    table = census.read_tiles(root)
    columns = census.Truth(root, table.split)
    census.count(root, table, columns)
    list(census.distributions(root, table, columns))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6, "200,000 rows: a few columns at a time"


def census_tile(bands):
    cube = np.ones((bands, 8, 8), np.float32)
    return TilePixels(
        *(cube, cube, np.zeros(cube.shape, bool), np.zeros((8, 8), np.int32)),
        ebv=np.zeros((1, 1)),
        psf=np.zeros((1, 1, bands, PSF_SIDE, PSF_SIDE)),
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--output", "out"], "nothing at nowhere"),
        (["field", "--output", "out"], "field is a mosaic; leave --output out"),
        (["ds", "--output", "ds"], "ds exists already and is not overwritten"),
        (["ds", "--tiles", "3"], "--tiles: nothing is drawn without --output"),
        (["broken", "--output", "out"], "split.parquet: cannot be read.*prepare the data set anew"),
        (["empty_truth", "--output", "out"], "truth.parquet: there is no column 'flags'"),
    ],
)
def test_wrong_arguments_are_named_in_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    blob_sky.write_field(tmp_path / "field")
    for name in ("ds", "broken", "empty_truth"):
        write_dataset(tmp_path / name)
    (tmp_path / "broken" / "split.parquet").write_bytes(b"PAR1")
    pd.DataFrame({"tile": [0], "class_id": [0]}).to_parquet(tmp_path / "empty_truth" / "truth.parquet")
    assert cli.main(["inspect", *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, error)
    assert not (tmp_path / "out").exists()
