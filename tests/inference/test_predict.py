"""A mosaic in, the files out: with a detector that knows the truth the catalogue is the truth."""

import errno
import json
import os
import re
import resource

import fitsio
import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepdisc import catalog
from deepdisc.errors import InputError
from deepdisc.inference import outputs
from deepdisc.inference.predict import predict
from deepdisc.psf import moffat_psf

CLASSES = ("galaxy", "star")
FILES = {"catalog.parquet", "catalog.fits", "segmentation.fits", "regions.reg", "run.json"}


def run(mosaic, model, output, tile=32, overlap=12, **options):
    options = {"bands": ["r", "x", "y"], "class_names": CLASSES, "progress": False} | options
    return predict(mosaic, model, output, tile=tile, overlap=overlap, **options)


def some_boxes(shape, count, largest, seed):
    random = np.random.default_rng(seed)
    size = random.integers(1, largest + 1, (count, 2))
    low = random.integers(-largest // 2, np.array([shape[1], shape[0]]), (count, 2))
    boxes = np.concatenate((low, low + size), axis=1).clip(0, [shape[1], shape[0]] * 2)
    return boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]


def check_against_truth(folder, truth, shape):
    """Catalogue and label map equal the truth, however it is ordered."""
    found = pd.read_parquet(folder / "catalog.parquet")
    assert found["id"].tolist() == list(range(1, len(truth.boxes) + 1))
    order = np.argsort(-found["score"].to_numpy())
    ordered = found.iloc[order]
    np.testing.assert_array_equal(ordered[["x_min", "y_min", "x_max", "y_max"]].to_numpy(), truth.boxes)
    np.testing.assert_allclose(ordered["score"], truth.scores, rtol=1e-6)
    assert ordered["class_id"].tolist() == [i % 2 for i in range(len(truth.boxes))]
    assert ordered["area_pix"].tolist() == [int(outline.sum()) for outline in truth.outlines]
    np.testing.assert_allclose(
        np.stack(ordered["z_means"]) if len(found) else np.zeros((0, 2)),
        0.1 * np.arange(len(found))[:, None] + np.arange(2), rtol=1e-6,
    )  # fmt: skip
    labels = fitsio.read(folder / "segmentation.fits")
    new_number = np.concatenate(([0], ordered["id"].to_numpy()))
    np.testing.assert_array_equal(labels, new_number[truth.segmentation(shape)])


def test_the_model_is_given_reddening_and_psf_also_where_nothing_is_searched(memory_mosaic, truth_of_boxes, tmp_path):
    truth, given_pixels = truth_of_boxes([[3, 4, 9, 10]]), []

    def model(inputs):
        given_pixels.extend(inputs)
        return truth.detector()(inputs)

    run(memory_mosaic(np.zeros((40, 50), np.float32)), model, tmp_path / "out")
    for item in given_pixels:
        np.testing.assert_array_equal(item["psf"], np.stack([moffat_psf(3.0)] * 3))
        assert item["ebv"] == pytest.approx(0.05)
    given_pixels.clear()
    run(memory_mosaic(np.zeros((40, 50), np.float32), mask=True), model, tmp_path / "masked")
    (blank,) = given_pixels
    assert blank["mask"].all() and blank["psf"].shape == (3, 25, 25) and not blank["psf"].any()


@given(
    tile=st.integers(14, 50),
    overlap=st.integers(5, 12),
    offset=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_files_hold_exactly_the_truth(
    tile, overlap, offset, height, width, seed, memory_mosaic, truth_of_boxes, tmp_path_factory
):
    shape = height, width
    truth = truth_of_boxes(some_boxes(shape, 1 + height * width // 200, overlap, seed))
    folder = tmp_path_factory.mktemp("prediction")
    result = run(memory_mosaic(np.zeros(shape)), truth.detector(), folder, tile, overlap, offset=offset)
    assert result.count == len(truth.boxes) and result.unreadable == []
    check_against_truth(folder, truth, shape)


@pytest.mark.parametrize("shape", [(10, 14), (32, 33), (33, 32), (32, 32), (1, 1), (200, 5)])
def test_mosaics_smaller_than_a_tile_and_a_pixel_wider(shape, memory_mosaic, truth_of_boxes, tmp_path):
    truth = truth_of_boxes(some_boxes(shape, 8, 10, seed=3))
    run(memory_mosaic(np.zeros(shape)), truth.detector(), tmp_path)
    check_against_truth(tmp_path, truth, shape)


def test_the_result_does_not_depend_on_the_batch(memory_mosaic, truth_of_boxes, tmp_path):
    shape = (100, 130)
    mask = np.zeros(shape, bool)
    mask[40:90, 30:80] = True  # some tiles are skipped
    truth = truth_of_boxes(some_boxes(shape, 60, 12, seed=1))
    for batch in (1, 3, 100):
        run(memory_mosaic(np.zeros(shape), mask), truth.detector(), tmp_path / str(batch), batch=batch)
    for name in ("catalog.parquet", "catalog.fits", "segmentation.fits", "regions.reg"):
        contents = {(tmp_path / str(batch) / name).read_bytes() for batch in (1, 3, 100)}
        assert len(contents) == 1, name


def test_nothing_found_gives_a_complete_empty_catalogue(memory_mosaic, truth_of_boxes, tmp_path):
    run(memory_mosaic(np.zeros((50, 50))), truth_of_boxes([[1, 1, 5, 5]]).detector(), tmp_path / "some")
    nothing = truth_of_boxes([]).detector()
    run(memory_mosaic(np.zeros((50, 50))), nothing, tmp_path / "none")
    run(memory_mosaic(np.zeros((50, 50)), np.ones((50, 50), bool)), nothing, tmp_path / "masked")
    some = pd.read_parquet(tmp_path / "some" / "catalog.parquet")
    assert len(some) == 1 and {"z_mode", "z_weights", "ra", "flags"} <= set(some.columns)
    for name in ("none", "masked"):
        for file in ("catalog.parquet", "catalog.fits"):
            empty = catalog.read(tmp_path / name / file)
            assert len(empty) == 0 and list(empty.columns) == list(some.columns)
        assert not fitsio.read(tmp_path / name / "segmentation.fits").any()
    assert json.loads((tmp_path / "masked" / "run.json").read_text())["tiles"] == {
        "total": 4, "empty": 4, "unreadable": 0,
    }  # fmt: skip


def test_detections_without_any_valid_pixel_are_dropped_and_others_flagged(memory_mosaic, truth_of_boxes, tmp_path):
    mask = np.zeros((3, 40, 60), bool)
    mask[:, :, 20:30] = True  # no band
    mask[0, :, 40:50] = True  # not in r
    mask[0, 10, 55] = True
    boxes = [[2, 5, 8, 11], [22, 5, 28, 11], [42, 5, 48, 11], [52, 5, 58, 16], [0, 30, 8, 40]]
    run(memory_mosaic(np.zeros((40, 60)), mask), truth_of_boxes(boxes).detector(), tmp_path)
    found = catalog.read(tmp_path / "catalog.parquet").sort_values("score", ascending=False)
    assert found["x_min"].tolist() == [2, 42, 52, 0]
    assert [catalog.flag_names(value) for value in found["flags"]] == [[], ["NO_COVERAGE"], ["MASKED"], ["EDGE"]]


def test_touching_outlines_are_flagged_as_blended_on_both_sides(memory_mosaic, truth_of_boxes, tmp_path):
    boxes = [[2, 2, 3, 60], [3, 30, 9, 36], [20, 2, 26, 8], [27, 2, 33, 8], [40, 50, 46, 56], [44, 53, 50, 59]]
    mosaic, model, blended = memory_mosaic(np.zeros((64, 64))), truth_of_boxes(boxes).detector(), {}
    for tile, overlap in ((64, 0), (20, 12)):
        run(mosaic, model, tmp_path, tile, overlap, overwrite=True)
        found = catalog.read(tmp_path / "catalog.parquet").sort_values("score", ascending=False)
        blended[tile] = ["BLENDED" in catalog.flag_names(value) for value in found["flags"]]
    assert blended[64] == blended[20] == [True, True, False, False, True, True]


def test_low_scores_can_be_left_out(memory_mosaic, truth_of_boxes, tmp_path):
    truth = truth_of_boxes(some_boxes((60, 60), 20, 10, seed=2))
    run(memory_mosaic(np.zeros((60, 60))), truth.detector(), tmp_path, score_threshold=0.75)
    assert len(catalog.read(tmp_path / "catalog.parquet")) == (truth.scores >= 0.75).sum()


def test_positions_are_measured_on_the_pixels(memory_mosaic, truth_of_boxes, tmp_path, sky_wcs):
    """Boxes that are off-centre by up to two pixels; the light says where the object is."""
    random = np.random.default_rng(0)
    shape = (80, 100)
    y, x = np.mgrid[: shape[0], : shape[1]]
    centers = np.array([[20.3, 15.7], [52.0, 20.5], [26.4, 60.1], [74.9, 55.2]])
    flux = random.normal(0, 1, shape)
    for cx, cy in centers:
        flux += 300 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * 2.0**2))
    low = np.floor(centers - random.uniform(4, 8, centers.shape))
    truth = truth_of_boxes(np.concatenate((low, low + 13), axis=1))
    run(memory_mosaic(flux, wcs=sky_wcs), truth.detector(), tmp_path, tile=48, overlap=16)
    found = catalog.read(tmp_path / "catalog.parquet").sort_values("score", ascending=False)
    np.testing.assert_allclose(found[["x", "y"]], centers, atol=0.03)
    ra, dec = sky_wcs.all_pix2world(centers[:, 0], centers[:, 1], 0)
    np.testing.assert_allclose(found[["ra", "dec"]], np.stack((ra, dec), axis=1), atol=0.03 * 0.2 / 3600)


def test_fits_and_parquet_say_the_same(memory_mosaic, truth_of_boxes, tmp_path):
    truth = truth_of_boxes(some_boxes((60, 60), 20, 10, seed=4))
    run(memory_mosaic(np.zeros((60, 60))), truth.detector(), tmp_path)
    table, frame = Table.read(tmp_path / "catalog.fits"), pd.read_parquet(tmp_path / "catalog.parquet")
    assert table.colnames == list(frame.columns) and len(table) == len(frame) > 0
    for name in frame.columns:
        in_fits, in_parquet = np.asarray(table[name]), np.stack(frame[name].to_numpy())
        in_fits = in_fits.astype(str) if in_fits.dtype.kind == "S" else in_fits
        np.testing.assert_array_equal(in_fits, in_parquet, err_msg=name)


def test_the_label_map_has_the_mosaics_wcs(memory_mosaic, truth_of_boxes, tmp_path, sky_wcs):
    run(memory_mosaic(np.zeros((60, 70)), wcs=sky_wcs), truth_of_boxes([[1, 1, 5, 5]]).detector(), tmp_path)
    with fits.open(tmp_path / "segmentation.fits") as hdus:
        hdus.verify("exception")
        assert hdus[0].data.dtype == np.dtype(">i4") and hdus[0].data.shape == (60, 70)
        back = WCS(hdus[0].header).all_pix2world([[30, 20]], 0)
    np.testing.assert_allclose(back, sky_wcs.all_pix2world([[30, 20]], 0), atol=1e-10)


ELLIPSE = re.compile(
    r"ellipse\(([-\d.]+),([-\d.]+),([\d.]+)(\"?),([\d.]+)\"?,([\d.]+)\) # color=(\w+) tag=\{(\w+)\} tag=\{id (\d+)\}"
)


def test_regions_without_wcs_count_pixels_from_one(memory_mosaic, truth_of_boxes, tmp_path):
    run(memory_mosaic(np.zeros((60, 60))), truth_of_boxes([[10, 20, 30, 28]]).detector(), tmp_path, tile=60)
    lines = (tmp_path / "regions.reg").read_text().splitlines()
    assert lines[0].startswith("# Region file format: DS9") and lines[2] == "image" and len(lines) == 4
    x, y, major, unit, minor, angle, _, name, number = ELLIPSE.fullmatch(lines[3]).groups()
    assert (float(x), float(y)) == (20.5, 24.5)  # edges 10..30 -> centre 20 -> 19.5 from 0 -> 20.5 from 1
    assert unit == "" and name == "galaxy" and number == "1"
    assert float(major) == pytest.approx(10, abs=0.3) and float(minor) == pytest.approx(4, abs=0.3)
    assert float(angle) % 180 == pytest.approx(0, abs=0.01)


def test_regions_with_wcs_point_the_right_way_on_the_sky(memory_mosaic, truth_of_boxes, tmp_path, sky_wcs):
    """North is 30 degrees from the y axis: an object along x is then tilted by minus that against east-west."""
    truth = truth_of_boxes([[10, 20, 30, 28]])
    run(memory_mosaic(np.zeros((60, 60)), wcs=sky_wcs), truth.detector(), tmp_path, tile=60)
    lines = (tmp_path / "regions.reg").read_text().splitlines()
    assert lines[2] == "icrs"
    ra, dec, major, unit, minor, angle, *_ = ELLIPSE.fullmatch(lines[3]).groups()
    np.testing.assert_allclose(sky_wcs.all_world2pix([[float(ra), float(dec)]], 0), [[19.5, 23.5]], atol=1e-2)
    assert unit == '"' and float(major) == pytest.approx(2.0, abs=0.06) and float(minor) == pytest.approx(0.8, abs=0.06)
    north = sky_wcs.all_world2pix([[float(ra), float(dec) + 1e-3]], 0)[0] - [19.5, 23.5]
    expected = (0 - (np.degrees(np.arctan2(north[1], north[0])) - 90)) % 180
    assert float(angle) == pytest.approx(expected, abs=0.1) and 5 < expected < 175


# ------------------------------------------------------------------------------------------------- what goes wrong
def test_a_tile_that_cannot_be_read_is_reported_and_the_rest_done(memory_mosaic, truth_of_boxes, tmp_path):
    shape = (32, 112)
    truth = truth_of_boxes([[5, 5, 11, 11], [54, 5, 60, 11], [100, 5, 106, 11]])
    result = run(memory_mosaic(np.zeros(shape), damaged=(0, 57)), truth.detector(), tmp_path)
    assert [part["tile"] for part in result.unreadable] == [2] and "damaged block" in result.unreadable[0]["reason"]
    report = json.loads((tmp_path / "run.json").read_text())
    assert report["tiles"]["unreadable"] == 1 and report["unreadable"] == result.unreadable
    found = catalog.read(tmp_path / "catalog.parquet")
    assert found["x_min"].tolist() == [5, 100]


def test_a_mosaic_of_which_nothing_can_be_read_is_an_error(memory_mosaic, truth_of_boxes, tmp_path):
    with pytest.raises(InputError, match="no part of the mosaic could be read: damaged block"):
        run(memory_mosaic(np.zeros((20, 20)), damaged=(5, 5)), truth_of_boxes([]).detector(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (outputs.ParquetStream, "append"),
        (outputs.SegmentationWriter, "write_to"),
        (outputs.RegionWriter, "add"),
        (outputs, "parquet_to_fits"),
        (outputs, "write_json"),
        (os, "fsync"),
        (os, "replace"),
    ],
)
def test_a_full_disk_is_an_input_error_that_leaves_nothing(
    target, name, memory_mosaic, truth_of_boxes, tmp_path, monkeypatch
):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(target, name, full)
    truth = truth_of_boxes([[5, 5, 11, 11]])
    with pytest.raises(InputError, match=f"cannot write {re.escape(str(tmp_path / 'out'))}: No space left on device"):
        run(memory_mosaic(np.zeros((40, 40))), truth.detector(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_file_size_limit_of_the_system_is_an_input_error_too(memory_mosaic, truth_of_boxes, tmp_path):
    """The label map (640 kB) exceeds what the system lets the process write."""
    truth = truth_of_boxes([[5, 5, 11, 11]])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(InputError, match="cannot write"):
            run(memory_mosaic(np.zeros((400, 400))), truth.detector(), tmp_path / "out", tile=200)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_fails_leaves_nothing(memory_mosaic, tmp_path):
    def model(inputs):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(memory_mosaic(np.zeros((40, 40))), model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_existing_results_are_refused_unless_overwritten_and_survive_a_failure(memory_mosaic, truth_of_boxes, tmp_path):
    mosaic, model = memory_mosaic(np.zeros((40, 40))), truth_of_boxes([[5, 5, 11, 11]]).detector()
    (tmp_path / "notes.txt").write_text("mine")
    run(mosaic, model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == FILES | {"notes.txt"}
    reads = mosaic.reads
    with pytest.raises(InputError, match="holds catalog.parquet.*already"):
        run(mosaic, model, tmp_path)
    assert mosaic.reads == reads
    with pytest.raises(InputError, match="the model found class 1, but only 1 classes"):
        run(mosaic, truth_of_boxes([[5, 5, 9, 9]] * 2).detector(), tmp_path, overwrite=True, class_names=["galaxy"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    run(mosaic, truth_of_boxes([]).detector(), tmp_path, overwrite=True)
    assert len(catalog.read(tmp_path / "catalog.parquet")) == 0 and (tmp_path / "notes.txt").read_text() == "mine"


def test_an_output_that_cannot_be_a_folder(memory_mosaic, truth_of_boxes, tmp_path):
    (tmp_path / "file").write_text("")
    model = truth_of_boxes([]).detector()
    for output in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(InputError, match="file"):
            run(memory_mosaic(np.zeros((20, 20))), model, output)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder(memory_mosaic, truth_of_boxes, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot write .*Permission denied"):
        run(memory_mosaic(np.zeros((20, 20))), truth_of_boxes([]).detector(), tmp_path / "out")


def test_the_report_says_what_ran(memory_mosaic, truth_of_boxes, tmp_path):
    truth = truth_of_boxes([[5, 5, 11, 11]])
    run(memory_mosaic(np.zeros((40, 40))), truth.detector(), tmp_path, provenance={"model": "stub"})
    report = json.loads((tmp_path / "run.json").read_text())
    assert report["provenance"] == {"model": "stub"} and report["objects"] == 1
    assert report["settings"]["tile"] == 32 and report["mosaic"]["bands"] == ["r", "x", "y"]
    assert {"sky", "read", "model", "measure", "merge", "write", "total"} == set(report["seconds"])
    assert report["peak_memory_mib"] > 0 and "torch" in report["versions"]
