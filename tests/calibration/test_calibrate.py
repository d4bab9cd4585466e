"""`deepdisc calibrate` from a data set and a checkpoint to a new checkpoint and a report."""

import json

import blob_sky
import fitsio
import numpy as np
import pandas as pd
import pytest
import torch
from knowing_model import RESPONSE, TOO_NARROW, KnowingDetector
from omegaconf import OmegaConf

from deepdisc import cli, model_zoo
from deepdisc.calibration import calibrate as module
from deepdisc.calibration.calibrate import calibrate
from deepdisc.config import L
from deepdisc.data.prepare import prepare
from deepdisc.errors import InputError
from deepdisc.files import sha256
from deepdisc.training.weights import export_safetensors

WCS = {
    "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 80.0, "CRPIX2": 80.0, "CRVAL1": 150.0, "CRVAL2": 0.0,
    "CD1_1": -0.2 / 3600, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 0.2 / 3600,
}  # fmt: skip


@pytest.fixture(scope="module")
def sky(tmp_path_factory):
    """Five fields of blobs with fluxes in both bands and shears, all of the split "val" but one."""
    folder = tmp_path_factory.mktemp("sky")
    entries = []
    for i in range(5):
        entry = blob_sky.write_field(folder / f"field_{i}", shape=(160, 160), count=36, seed=i)
        path = folder / f"field_{i}" / "truth.parquet"
        truth = pd.read_parquet(path)
        shear = np.random.default_rng(i).normal(0, 0.05, (2, len(truth)))
        truth.assign(flux_g=truth.flux_r / 2, g1=shear[0], g2=shear[1]).to_parquet(path)
        for band in blob_sky.BANDS:  # shears are given along North, so the images need a WCS
            with fitsio.FITS(str(path.with_name(f"{band}.fits")), "rw") as image:
                image[0].write_keys({**WCS, "CRVAL1": 150.0 + i})
        entries.append(entry | {"split": "val" if i else "test"})
    return prepare(blob_sky.write_recipe(folder, entries), folder / "dataset", tile_size=80)


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """An uncalibrated model, and fewer objects than usual that suffice."""
    monkeypatch.setattr(model_zoo, "TRUSTED", (*model_zoo.TRUSTED, "knowing_model."))
    monkeypatch.setattr(module, "LEAST_OBJECTS", 60)
    cfg = OmegaConf.create(
        {
            "bands": ["g", "r"],
            "class_names": ["galaxy", "star"],
            "pixel_scale_arcsec": 0.2,
            "model": L("knowing_model.KnowingDetector")(num_bands=2),
        },
        flags={"allow_objects": True},
    )
    path = tmp_path / "model.safetensors"
    export_safetensors(KnowingDetector(), cfg, path)
    return path


def test_a_calibrated_model_is_a_model_as_any_other(sky, checkpoint, tmp_path, capsys):
    before = sha256(checkpoint)
    output, report = tmp_path / "calibrated.safetensors", tmp_path / "look"
    arguments = ["calibrate", "--model", str(checkpoint), "--data", str(sky), "--device", "cpu"]
    assert cli.main([*arguments, "--output", str(output), "--report", str(report)]) == 0
    told = capsys.readouterr().out
    assert "flux g" in told and "constant" in told and str(output) in told
    assert sha256(checkpoint) == before

    model, _ = model_zoo.load_model(output)
    heads = model.roi_heads.heads
    widths = heads["flux"].calibration.log_sigma[:, 0] + 0  # one component: its width is the PDF's
    torch.testing.assert_close(widths.exp(), torch.full((2,), TOO_NARROW), atol=0.35, rtol=0)
    torch.testing.assert_close(
        1 + heads["shear"].calibration.multiplicative, torch.full((2,), RESPONSE), atol=0.2, rtol=0
    )
    assert float(heads["novelty"].distance.threshold) > 0

    page = (report / "report.html").read_text()
    assert 'src="http' not in page and 'href="http' not in page and "flux r" in page
    found = json.loads((report / "calibration.json").read_text())
    quantities = {item["name"]: item for item in found["quantities"]}
    assert set(quantities) == {"flux g", "flux r", "redshift", "shear"}
    scores = quantities["flux r"]["scores"]["flux r"]
    assert abs(scores["before"]["pull_width"] - TOO_NARROW) < 0.4 and abs(scores["after"]["pull_width"] - 1) < 0.2
    assert scores["after"]["pit_ks_p"] > 0.01 > scores["before"]["pit_ks_p"]


def test_a_second_calibration_replaces_the_first(sky, checkpoint, tmp_path):
    first = calibrate(checkpoint, sky, tmp_path / "a.safetensors")
    second = calibrate(first.path, sky, tmp_path / "b.safetensors")
    for one, two in zip(first.quantities, second.quantities, strict=True):
        assert one.form == two.form
    a, b = (model_zoo.load_model(item.path)[0].state_dict() for item in (first, second))
    for name, value in a.items():
        torch.testing.assert_close(b[name], value)


def test_too_few_objects_are_refused_with_their_number(sky, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LEAST_OBJECTS", 10_000)
    with pytest.raises(InputError, match=r"too few objects .* 10000 matched ones .* there are 1\d\d "):
        calibrate(checkpoint, sky, tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


def test_what_the_truth_does_not_know_is_left_as_it_is_and_said(sky, checkpoint, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for part in sky.iterdir():
        if part.name != "truth.parquet":
            (bare / part.name).symlink_to(part)
    pd.read_parquet(sky / "truth.parquet").drop(columns=["flux_g", "g1"]).to_parquet(bare / "truth.parquet")
    done = calibrate(checkpoint, bare, tmp_path / "a.safetensors")
    reasons = {item.name: item.reason for item in done.quantities}
    assert "'flux_g'" in reasons["flux"] and "'g1'" in reasons["shear"] and reasons["redshift"] == ""


@pytest.mark.parametrize(
    "output, message", [("model.pth", "is a .safetensors file"), ("model.safetensors", "exists already")]
)
def test_an_output_that_cannot_be_is_refused_at_once(sky, checkpoint, tmp_path, output, message):
    with pytest.raises(InputError, match=message):
        calibrate(checkpoint, sky, tmp_path / output)


def test_a_folder_without_truth_and_a_split_that_is_not_there_are_named(sky, checkpoint, tmp_path):
    with pytest.raises(InputError, match=r"truth\.parquet"):
        calibrate(checkpoint, tmp_path, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="no split 'valid'"):
        calibrate(checkpoint, sky, tmp_path / "a.safetensors", split="valid")
