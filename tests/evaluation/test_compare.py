"""Two catalogues on one truth: paired intervals of detections, redshifts, PDFs and fluxes; the command."""

import json

import numpy as np
import pandas as pd
import pytest

from deepdisc import cli
from deepdisc.errors import InputError
from deepdisc.evaluation import compare, evaluate
from deepdisc.evaluation.bootstrap import Resampling
from deepdisc.evaluation.comparison import redshift_rows


def sky(n=300, seed=0, fields=1):
    rng = np.random.default_rng(seed)
    place = np.arange(n)
    x, y = 20 + 25.0 * (place % 20), 20 + 25.0 * (place // 20)
    flux = 10 ** rng.uniform(2, 4, n)
    truth = pd.DataFrame({"id": place + 1, "x": x, "y": y, "ra": 10 + x / 18000, "dec": y / 18000, "snr": flux / 10})
    truth = truth.assign(x_min=x - 4, y_min=y - 4, x_max=x + 5, y_max=y + 5, a_pix=4.0, b_pix=2.0, theta_deg=30.0)
    truth = truth.assign(redshift=rng.uniform(0.2, 1.5, n), flux_r=flux, mag_r=31.4 - 2.5 * np.log10(flux))
    return truth.assign(field=[f"f{i % fields}" for i in range(n)])


def measured(truth, seed, z_error=0.03, flux_error=0.1, claimed=1.0, lost=()):
    """A noisy catalogue of the truth: redshifts, PDFs that claim `claimed` times their error, fluxes; some lost."""
    rng = np.random.default_rng(seed)
    pred = truth.drop(index=list(lost)).reset_index(drop=True)
    sigma = z_error * (1 + pred.redshift)
    pred["z_mode"] = np.abs(pred.redshift + sigma * rng.normal(size=len(pred)))
    pred["z_weights"], pred["z_means"] = [[1.0]] * len(pred), [[z] for z in pred.z_mode]
    pred["z_sigmas"], pred["z_lower"] = [[s] for s in claimed * sigma], 0.0
    pred["fluxerr_r"] = flux_error * pred.flux_r
    pred["flux_r"] *= 1 + flux_error * rng.normal(size=len(pred))
    pred["score"] = rng.uniform(0.5, 1, len(pred))
    return pred.drop(columns=["redshift", "snr", "mag_r"])


def rows_of(metrics):
    return {row["quantity"]: row for row in metrics["comparison"]["table"]}


def excludes(row, neutral):
    return not row["difference"]["low"] <= neutral <= row["difference"]["high"]


@pytest.fixture(scope="module")
def unequal():
    """The first has half of the second's errors and honest PDFs; the second claims a third of its errors."""
    truth = sky()
    a, b = measured(truth, 1), measured(truth, 2, 0.06, 0.2, 1 / 3, lost=range(0, 300, 6))
    return compare(a, b, truth, replicates=40)


def test_differences_that_are_there_are_found(unequal):
    rows = rows_of(unequal)
    found = rows["completeness at equal purity"]
    assert found["difference"]["value"] == pytest.approx(1 / 6) and excludes(found, 0)
    nmad = rows["redshift sigma_NMAD"]
    assert nmad["difference"]["value"] == pytest.approx(0.5, rel=0.2) and excludes(nmad, 1)
    assert nmad["a"]["n"] == nmad["b"]["n"] == 250
    assert rows["redshift PDFs, CRPS"]["difference"]["high"] < 1
    assert rows["redshift PDFs, PIT outliers"]["difference"]["high"] < 0
    assert rows["flux scatter, r"]["difference"]["value"] == pytest.approx(0.5, rel=0.2)
    assert unequal["comparison"]["detection"]["both_found"] == {"both": 250, "only_a": 50, "only_b": 0, "neither": 0}
    assert unequal["comparison"]["other"]["detection"]["completeness"] == pytest.approx(5 / 6)
    pulls = unequal["comparison"]["flux"]["pulls_between"]["by_band"]["r"]
    assert pulls["pull_width"] == pytest.approx(1, abs=0.2)  # independent noise, honest errors


def test_colours_and_shears_are_compared_on_the_same_objects():
    truth = sky(600)
    rng = np.random.default_rng(0)
    truth["flux_g"] = 0.6 * truth.flux_r
    truth["g1"], truth["g2"] = rng.normal(0, 0.05, (2, 600))
    a, b = (
        measured(truth, seed, flux_error=error).assign(
            flux_g=lambda f, e=error: f.flux_g * (1 + e * rng.normal(size=len(f))),
            g1=lambda f, m=bias: (1 + m) * f.g1 + rng.normal(0, 0.1, len(f)), g2=lambda f, m=bias: (1 + m) * f.g2,
        )
        for seed, error, bias in ((1, 0.05, 0.0), (2, 0.1, 0.3))
    )  # fmt: skip
    rows = rows_of(compare(a, b, truth, replicates=40))
    scatter = rows["colour scatter, g-r"]
    assert scatter["difference"]["value"] == pytest.approx(0.5, rel=0.2) and excludes(scatter, 1)
    assert rows["flux pulls, width, r"]["a"]["value"] == pytest.approx(1, abs=0.15)
    m = rows["shear m"]
    assert m["difference"]["value"] == pytest.approx(-0.3, abs=0.1) and excludes(m, 0) and m["a"]["n"] == 600


def test_rings_are_averaged_before_shears_are_compared():
    truth = sky(200).assign(g1=0.02, g2=-0.01, pair_id=np.arange(200) // 2)
    shape = np.where(np.arange(200) % 2, 0.3, -0.3)  # cancels in each ring
    a, b = (measured(truth, seed).assign(g1=lambda f: f.g1 + shape, g2=lambda f: f.g2 - shape) for seed in (1, 2))
    shear = compare(a, b, truth, replicates=5)["comparison"]["shear"]
    assert shear["n"] == 100
    assert shear["rows"][2]["quantity"].startswith("shear, rms") and shear["rows"][2]["a"]["value"] < 1e-9


def test_precision_of_equal_catalogues_differs_by_nothing_and_pairing_narrows_it():
    truth = sky(200)
    a = measured(truth, 1, lost=range(0, 200, 3))
    same = rows_of(compare(a, a, truth, replicates=20))["AP of boxes, IoU .50"]["difference"]
    assert same["value"] == same["low"] == same["high"] == 0
    b = a.assign(score=a.score[::-1].to_numpy()).iloc[:-4]
    found = rows_of(compare(a, b, truth, replicates=60))["AP of boxes, IoU .50"]
    half = (found["difference"]["high"] - found["difference"]["low"]) / 2
    assert found["difference"]["value"] > 0 and half < 1.5 * found["a"]["err"]


def test_equal_catalogues_differ_as_often_as_95_percent_intervals_allow():
    rng = np.random.default_rng(0)
    z = rng.uniform(0.2, 1.5, 400)
    wrong = {"redshift bias": 0, "redshift sigma_NMAD": 0}
    for seed in range(60):
        a, b = (z + 0.05 * (1 + z) * rng.normal(size=400) for _ in "ab")
        for row in redshift_rows(a, b, z, Resampling(80, seed)):
            if row["quantity"] in wrong:
                wrong[row["quantity"]] += excludes(row, 1 if row["difference"]["kind"] == "ratio" else 0)
    # 3 of 60 are expected; more than 9 happen to 95 % intervals once in a thousand times.
    assert all(count <= 9 for count in wrong.values()), wrong


def test_pairing_narrows_the_interval():
    """Both sides share their error: the paired difference is known far better than each side."""
    rng = np.random.default_rng(0)
    z = rng.uniform(0.2, 1.5, 400)
    a = z + 0.05 * (1 + z) * rng.normal(size=400)
    rows = redshift_rows(a, a + 0.002 * (1 + z), z, Resampling(100))
    [bias] = [row for row in rows if row["quantity"] == "redshift bias"]
    assert bias["difference"]["value"] == pytest.approx(-0.002) and bias["a"]["err"] > 0.002
    assert bias["difference"]["high"] - bias["difference"]["low"] < 1e-9  # the same in every resampling


def test_fields_are_resampled_as_a_whole():
    truth = sky(fields=6)
    shift = truth.field.map({f"f{i}": 0.05 * i for i in range(6)}) * (1 + truth.redshift)
    pred = measured(truth, 1, z_error=0.005).assign(z_mode=lambda f: f.z_mode + shift)
    pred = pred[["x", "y", "z_mode", "field"]]
    objects, fields = (evaluate(pred, truth, resample=how, replicates=40)["redshift"] for how in ("objects", "fields"))
    assert objects["bias"] == fields["bias"] and fields["bias_err"] > 1.8 * objects["bias_err"]
    with pytest.raises(InputError, match="no column field or tile"):
        evaluate(pred, truth.drop(columns="field"), resample="fields")
    with pytest.raises(InputError, match="resample is 'tiles'; choose objects or fields"):
        evaluate(pred, truth, resample="tiles")


@pytest.mark.parametrize("match_by", ["iou", "ellipses", "pixels", "sky", "iou+sky", "ellipses+pixels"])
def test_every_way_of_matching_scores(match_by):
    truth = sky(60)
    metrics = evaluate(measured(truth, 1, lost=[3]), truth, match_by=match_by, replicates=5)["detection"]
    assert metrics["matched_by"] == match_by and metrics["n_matched"] == 59


def test_each_side_has_its_own_outlines():
    truth = sky(40)
    maps = []
    for frame in (truth, truth.iloc[::-1].assign(id=range(1, 41)), truth):
        labels = np.zeros((80, 520), np.int32)
        for row in frame.itertuples():
            labels[int(row.y_min) : int(row.y_max), int(row.x_min) : int(row.x_max)] = row.id
        maps.append(labels)
    a, b = measured(truth, 1), measured(truth, 2).iloc[::-1].assign(id=range(1, 41))
    options = {"match_by": "masks", "segmentations": maps[:2], "truth_segmentation": maps[2], "replicates": 5}
    result = compare(a, b, truth, **options)
    assert result["detection"]["n_matched"] == result["comparison"]["other"]["detection"]["n_matched"] == 40
    assert result["detection"]["outlines"]["ap50"] == 1.0
    with pytest.raises(InputError, match="to match by masks, give the segmentation maps of both"):
        compare(a, b, truth, match_by="masks", replicates=5)


def test_the_second_catalogue_decides_too_what_can_be_matched():
    truth = sky(40)
    boxes, points = measured(truth, 1), measured(truth, 2)[["x", "y", "score"]]
    assert compare(boxes, points, truth, replicates=5)["detection"]["matched_by"] == "pixels"
    with pytest.raises(InputError, match="predicted catalogue has no column x_min"):
        compare(boxes, points, truth, match_by="iou", replicates=5)


def test_the_commands_score_files_of_other_programs(tmp_path, capsys):
    truth = sky(80)
    truth.drop(columns="field").to_parquet(tmp_path / "truth.parquet")
    ours = measured(truth, 1).drop(columns=["field", "z_weights", "z_means", "z_sigmas", "z_lower"])
    ours.to_csv(tmp_path / "ours.csv", index=False)
    theirs = measured(truth, 2, lost=range(0, 80, 8)).rename(columns={"x": "X_IMAGE", "y": "Y_IMAGE", "id": "NUMBER"})
    theirs[["X_IMAGE", "Y_IMAGE"]] += 1
    theirs[["NUMBER", "X_IMAGE", "Y_IMAGE"]].assign(FLUX_AUTO=100.0, FLUXERR_AUTO=9.0).to_csv(
        tmp_path / "se.csv", index=False
    )
    files = [str(tmp_path / name) for name in ("ours.csv", "se.csv", "truth.parquet")]
    out = tmp_path / "compared"
    assert cli.main(["compare", *files, "--columns", ",sextractor", "--output", str(out), "--names", "ours,SE"]) == 0
    told = capsys.readouterr()
    assert "| SE " in told.out and "completeness at equal purity" in told.out and "pixels from 1" not in told.err
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["comparison"]["names"] == ["ours", "SE"] and (out / "report.html").is_file()
    assert metrics["comparison"]["other"]["detection"]["n_matched"] == 70

    out = tmp_path / "scored"
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("columns: {x: X_IMAGE, y: Y_IMAGE}\n")
    base = ["evaluate", files[1], files[2], "--output", str(out), "--match-by", "pixels", "--max-distance-pix", "2"]
    assert cli.main([*base, "--columns", str(wrong)]) == 0
    assert "seems to count pixels from 1" in capsys.readouterr().err
    assert cli.main([*base, "--columns", "a,b,c"]) == 2
    assert "3 column maps are given for 2 catalogues" in capsys.readouterr().err
