"""`evaluate` and its report, on a small field whose truth is known."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from deepdisc.catalog import FLAGS, write_parquet
from deepdisc.errors import InputError
from deepdisc.evaluation import compare, evaluate
from deepdisc.evaluation.pixels import add_brightness, box_sums, without_data
from deepdisc.evaluation.printed import table_text
from deepdisc.plots import asinh_rgb, label_borders


class Field:
    """A mosaic of three bands: Gaussian blobs of known flux in noise of 1 nJy per pixel; the corner is masked."""

    bands = ["g", "r", "i"]
    shape = (160, 200)
    pixel_scale_arcsec = 0.2
    metadata = {"bands": {band: {"psf_fwhm_arcsec": 0.8} for band in bands}}

    def __init__(self, truth, seed=0):
        rng = np.random.default_rng(seed)
        self.image = rng.normal(0, 1, (3, *self.shape))
        y, x = np.mgrid[: self.shape[0], : self.shape[1]]
        for row in truth.itertuples():
            blob = np.exp(-0.5 * ((x - row.x) ** 2 + (y - row.y) ** 2) / 1.7**2) / (2 * np.pi * 1.7**2)
            self.image += np.array([row.flux_g, row.flux_r, row.flux_i])[:, None, None] * blob
        self.mask = np.zeros(self.image.shape, bool)
        self.mask[:, :30, :30] = True

    def read(self, y0, x0, y1, x1):
        cut = (slice(None), slice(y0, y1), slice(x0, x1))
        image = np.where(self.mask, 0, self.image)[cut]
        return SimpleNamespace(image=image, variance=np.ones_like(image), mask=self.mask[cut])


def make_truth():
    rng = np.random.default_rng(7)
    y, x = (part.ravel() for part in np.mgrid[15:150:20, 15:190:20].astype(float))
    x, y = x + rng.uniform(-3, 3, len(x)), y + rng.uniform(-3, 3, len(y))
    flux = 10 ** rng.uniform(1.7, 3.5, len(x))
    n = len(x)
    truth = pd.DataFrame({"id": np.arange(1, n + 1), "x": x, "y": y, "flags": 0, "snr": flux / 6.0})
    for band, ratio in zip("gri", (0.6, 1.0, 1.5), strict=True):
        truth[f"flux_{band}"] = flux * ratio
        truth[f"mag_{band}"] = 31.4 - 2.5 * np.log10(flux * ratio)
    truth["x_min"], truth["x_max"] = np.round(x - 4), np.round(x + 5)
    truth["y_min"], truth["y_max"] = np.round(y - 4), np.round(y + 5)
    truth["class_id"] = np.where(np.arange(n) % 10 == 9, 1, 0)
    truth["class_name"] = np.where(truth["class_id"] == 1, "star", "galaxy")
    truth["redshift"] = np.where(truth["class_id"] == 1, np.nan, rng.uniform(0.1, 1.5, n))
    truth.loc[truth["snr"] < 15, "flags"] = FLAGS["FAINT"].value
    return truth


def make_prediction(truth, seed=1, lost=7):
    """All but every `lost`-th object, two false detections; redshifts with 3 % scatter and honest PDFs."""
    rng = np.random.default_rng(seed)
    pred = truth[np.arange(len(truth)) % lost != 0].copy()
    false = pred.iloc[:2].assign(id=[900, 901], x=[60.0, 100.0], y=[155.0, 156.0])
    false["x_min"], false["x_max"], false["y_min"], false["y_max"] = [58, 98], [63, 103], [153, 154], [158, 159]
    pred = pd.concat((pred, false), ignore_index=True)
    z = pred["redshift"].fillna(0.5).to_numpy()
    sigma = 0.03 * (1 + z)
    pred["z_mode"] = np.clip(z + sigma * rng.normal(size=len(z)), 0.0, None)
    pred["z_weights"], pred["z_means"], pred["z_sigmas"] = (
        [[1.0]] * len(z),
        list(pred[["z_mode"]].to_numpy()),
        list(sigma[:, None]),
    )
    pred["z_lower"] = 0.0
    pred["score"] = np.linspace(0.99, 0.3, len(pred))
    return pred.drop(columns=["redshift", "snr", *[c for c in pred if c.startswith(("flux_", "mag_"))]])


@pytest.fixture(scope="module")
def truth():
    return make_truth()


@pytest.fixture(scope="module")
def scored(truth, tmp_path_factory):
    """(metrics, folder) of an evaluation with everything there is: pixels, maps, a second catalogue."""
    folder = tmp_path_factory.mktemp("scores")
    pred, other = make_prediction(truth), make_prediction(truth, seed=2, lost=4)
    maps = [np.zeros(Field.shape, np.int32) for _ in range(2)]
    for frame, labels in zip((pred, truth), maps, strict=True):
        for row in frame.itertuples():
            labels[int(row.y_min) : int(row.y_max), int(row.x_min) : int(row.x_max)] = row.id
    metrics = compare(
        pred, other, truth, folder, mosaic=Field(truth), segmentations=maps[:1], truth_segmentation=maps[1],
        names=("ours", "theirs"), replicates=10,
    )  # fmt: skip
    return metrics, folder


def test_metrics_of_a_known_field(scored, truth):
    detection, redshift = scored[0]["detection"], scored[0]["redshift"]
    masked = (truth["x"] < 29.5) & (truth["y"] < 29.5)
    required = (truth["flags"] == 0) & ~masked
    found = required & (np.arange(len(truth)) % 7 != 0)
    assert detection["n_truth"] == required.sum()
    assert detection["completeness"] == pytest.approx(found.sum() / required.sum())
    assert detection["purity"] == pytest.approx(found.sum() / (found.sum() + 2))
    assert detection["excluded"]["true objects centred off the mosaic, or where all bands are masked"] > 0
    assert detection["outlines"]["available"] and detection["outlines"]["ap"] == pytest.approx(
        detection["ap"], abs=0.05
    )
    assert detection["classification"]["accuracy"] == 1.0
    assert redshift["n"] == (found & truth["redshift"].notna()).sum()
    assert 0.01 < redshift["sigma_nmad"] < 0.05
    assert redshift["coverage_95"] > 0.85


def test_metrics_file_is_strict_json_with_an_error_for_each_figure(scored):
    metrics = json.loads((scored[1] / "metrics.json").read_text(), parse_constant=lambda text: pytest.fail(text))
    for part, names in {
        "detection": ("completeness", "purity", "completeness_snr10", "ap", "ap50", "ap75"),
        "redshift": (
            "bias",
            "sigma_nmad",
            "sigma_iqr",
            "eta_15",
            "eta_iqr",
            "crps",
            "cde_loss",
            "pit_ks",
            "coverage_68",
        ),
    }.items():
        for name in names:
            assert isinstance(metrics[part][name], float) and metrics[part][f"{name}_err"] is not None, name
    assert metrics["redshift"]["n"] > 0 and metrics["detection"]["n_truth"] > 0


def test_every_figure_has_an_error_or_an_interval(scored):
    settings = {
        "match_limit", "max_distance_pix", "closer_than_fwhm", "fwhm_pix", "snr_min", "brighter_than", "from", "to",
        "median", "expected", "expected_err", "kept", "threshold", "nominal", "threshold_a", "threshold_b", "purity_a",
        "purity_b",
    }  # fmt: skip
    bare = set()

    def walk(value, path):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(item, dict) or (isinstance(item, list) and item and isinstance(item[0], dict)):
                walk(item, f"{path}.{name}")
            ends = (f"{name}_err", f"{name}_low") if name not in ("value", "excess") else ("err", "low", "excess_low")
            told = isinstance(value, dict) and any(end in value for end in ends)
            own = str(name).endswith(("_err", "_low", "_high", "_p")) or name in ("err", "low", "high")
            if isinstance(item, float) and not (own or told or name in settings):
                bare.add(f"{path}.{name}")

    walk({name: part for name, part in scored[0].items() if name != "notes"}, "")
    assert bare == set()


def test_comparison_has_both_sides(scored):
    table = scored[0]["comparison"]["table"]
    quantities = {row["quantity"]: row for row in table}
    row = quantities["completeness at equal purity"]
    assert row["a"]["value"] > row["b"]["value"]
    assert row["difference"]["low"] <= row["difference"]["value"] <= row["difference"]["high"]
    assert quantities["redshift sigma_NMAD"]["a"]["n"] == quantities["redshift sigma_NMAD"]["b"]["n"]
    text = table_text(table, ("ours", "theirs"))
    assert len(set(map(len, text.splitlines()))) == 1 and "| theirs" in text


def test_comparing_a_catalogue_with_itself_shows_no_difference(truth):
    pred = make_prediction(truth)
    result = compare(pred, pred, truth, replicates=10)
    for row in result["comparison"]["table"]:
        if row["difference"]:
            kind = row["difference"]["kind"]
            assert row["difference"]["value"] == pytest.approx(1.0 if kind == "ratio" else 0.0)


def test_catalogues_are_read_from_files(truth, tmp_path):
    pred = make_prediction(truth)
    write_parquet(pred, tmp_path / "pred.parquet")
    truth.to_csv(tmp_path / "truth.csv", index=False)
    from_files = evaluate(tmp_path / "pred.parquet", tmp_path / "truth.csv", replicates=5)
    from_memory = evaluate(pred, truth, replicates=5)
    assert from_files["detection"]["n_matched"] == from_memory["detection"]["n_matched"] > 30
    assert from_files["redshift"]["sigma_nmad"] == pytest.approx(from_memory["redshift"]["sigma_nmad"], rel=1e-4)


def test_truth_of_points_without_redshift_says_so(truth, tmp_path):
    """A deeper catalogue as truth: positions and magnitudes only."""
    points = truth[["x", "y", "mag_r"]]
    pred = make_prediction(truth).merge(truth[["id", "mag_r"]], how="left")
    metrics = evaluate(pred, points, tmp_path, band="r", mag_limit=24.0, max_distance_pix=1, replicates=5)
    assert metrics["detection"]["matched_by"] == "pixels"
    assert metrics["detection"]["n_truth"] == (truth["mag_r"] < 24).sum()
    assert not metrics["redshift"]["available"] and not metrics["detection"]["boxes"]["available"]
    assert "the truth has no redshifts" in (tmp_path / "report.html").read_text()


def test_a_magnitude_limit_needs_magnitudes_of_the_detections(truth):
    pred = make_prediction(truth)
    with pytest.raises(InputError, match="mag_limit=24: the detections have no magnitude mag_r.* give --mosaic"):
        evaluate(pred, truth, mag_limit=24.0, replicates=5)
    with pytest.raises(InputError, match="a mosaic with the band 'z'"):
        evaluate(pred, truth.assign(mag_z=22.0), band="z", mag_limit=24.0, mosaic=Field(truth), replicates=5)
    metrics = evaluate(pred, truth, mag_limit=24.0, mosaic=Field(truth), replicates=5)
    assert metrics["detection"]["n_truth"] > 0


@pytest.mark.parametrize("content", [b"no FITS file", b"SIMPLE  =                    T"], ids=["text", "truncated"])
def test_an_unreadable_segmentation_map_is_named(truth, tmp_path, content):
    (tmp_path / "segmentation.fits").write_bytes(content)
    with pytest.raises(InputError, match="segmentation.fits: cannot be read as FITS"):
        evaluate(make_prediction(truth), truth, pred_segmentation=tmp_path / "segmentation.fits")


def on_sky(frame):
    """The objects as a catalogue that has only sky positions."""
    return pd.DataFrame({"ra": 10 + frame["x"] / 18000, "dec": frame["y"] / 18000, "score": 0.5, "snr": 50.0})


def test_sky_positions_are_enough(truth):
    metrics = evaluate(on_sky(truth), on_sky(truth), replicates=5)
    assert metrics["detection"]["matched_by"] == "sky" and metrics["detection"]["completeness"] == 1.0
    # A finite sample never proves perfection: the Wilson error of k = n is not 0.
    assert 0 < metrics["detection"]["completeness_err"] < 0.2


def test_sky_positions_on_a_mosaic_without_wcs_give_a_report_without_picture_and_pairs(truth, tmp_path):
    sky = on_sky(truth)
    metrics = compare(sky, sky, sky, tmp_path, mosaic=Field(truth), replicates=5)
    assert not any("blended" in row["quantity"] for row in metrics["comparison"]["table"])
    assert "the catalogue has no positions in pixels" in (tmp_path / "report.html").read_text()


def test_nothing_in_common_is_an_error(truth):
    with pytest.raises(InputError, match="no columns in common"):
        evaluate(truth[["ra_deg"]] if "ra_deg" in truth else pd.DataFrame({"name": ["a"]}), truth)


def test_unknown_band_names_what_there_is(truth):
    with pytest.raises(InputError, match="'R'.*g, r, i.*did you mean 'r'"):
        evaluate(make_prediction(truth), truth, band="R")


def test_empty_prediction_still_gives_a_report(truth, tmp_path):
    metrics = evaluate(make_prediction(truth).iloc[:0], truth, tmp_path, mosaic=Field(truth), replicates=5)
    assert metrics["detection"]["completeness"] == 0.0
    assert np.isnan(metrics["detection"]["purity"])
    assert (tmp_path / "report.html").is_file()


# -------------------------------------------------------------------------------------------------------------- pixels
def test_box_sums_equal_plain_sums(truth):
    mosaic = Field(truth)
    boxes = np.array([[3, 4, 60, 150], [-5, -5, 10, 10], [190, 150, 230, 200], [50, 50, 51, 51]], float)
    flux, variance = box_sums(mosaic, boxes)
    image = np.where(mosaic.mask, 0, mosaic.image)
    for i, (x0, y0, x1, y1) in enumerate(np.clip(boxes, 0, None).astype(int)):
        np.testing.assert_allclose(flux[i], image[:, y0:y1, x0:x1].sum((1, 2)), atol=1e-9)
        np.testing.assert_allclose(variance[i], (~mosaic.mask[:, y0:y1, x0:x1]).sum((1, 2)))


def test_added_magnitudes_are_those_of_the_light(truth):
    pred, note = add_brightness(make_prediction(truth), Field(truth), "r")
    merged = pred.merge(truth[["id", "mag_r", "snr"]], on="id", suffixes=("", "_true"))
    bright = merged[merged["snr_true"] > 150]
    assert len(bright) > 5 and "mag_r" in note
    np.testing.assert_allclose(bright["mag_r"], bright["mag_r_true"], atol=0.1)


def test_positions_without_data(truth):
    found = without_data(
        Field(truth), np.array([10.0, 29.4, 29.6, -0.6, 199.4, 199.6]), np.array([10.0, 0, 0, 50, 50, 50])
    )
    assert found.tolist() == [True, True, False, True, False, True]


def test_a_colour_picture_of_anything_is_finite():
    for image in (
        np.zeros((3, 5, 6)),
        np.full((3, 4, 4), np.nan),
        np.random.default_rng(0).normal(size=(3, 8, 8)) * 1e6,
    ):
        rgb = asinh_rgb(image)
        assert rgb.shape == (*image.shape[1:], 3) and np.isfinite(rgb).all() and 0 <= rgb.min() <= rgb.max() <= 1


def test_outline_of_one_pixel_is_its_square():
    labels = np.zeros((3, 3), int)
    labels[1, 2] = 5
    segments = {tuple(map(tuple, np.sort(segment, axis=0))) for segment in label_borders(labels, (10, 20))}
    assert segments == {
        ((12.0, 21.0), (12.0, 22.0)), ((13.0, 21.0), (13.0, 22.0)), ((12.0, 21.0), (13.0, 21.0)),
        ((12.0, 22.0), (13.0, 22.0)),
    }  # fmt: skip
