"""The synthetic sky as a whole: the same seed gives the same bytes, densities, parts, configs and errors."""

import hashlib
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from astropy.io import fits

from deepdisc.config import instantiate, load
from deepdisc.errors import InputError
from deepdisc.simulate import Effects, Exposures, Lensing, Sky, simulate
from deepdisc.simulate.fields import simulate_field

SMALL = {"shape": (64, 80), "bands": ("g", "r"), "depth_offset": (0.0, 1.0), "ebv": (0.0, 0.2)}


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_gives_the_same_bytes_in_any_number_of_processes(tmp_path):
    """For several fields the fields are shared out, for one its objects."""
    spoiled = Effects(cosmic_rays=1000.0, saturation=True, depth_steps=1, resampling="bilinear")
    settings = {**SMALL, "effects": spoiled, "lensing": Lensing(kappa_rms=0.02, smoothing_arcsec=10.0)}
    for fields, workers, files in ((2, 2, 2 * 8 + 1), (1, 3, 8 + 2 * 2 + 2)):
        if fields == 1:
            settings["exposures"] = Exposures(number=2, seeing_scatter=0.1)
        found = []
        for number in (1, workers):
            folder = tmp_path / f"{fields}_{number}"
            simulate(Sky(fields=fields, workers=number, **settings), folder, seed=3)
            found.append(digests(folder))
        assert found[0] == found[1] and len(found[0]) == files


def test_the_progress_counts_every_object(tmp_path):
    told = []
    made = simulate_field(Sky(**SMALL), 0, tmp_path, 1, progress=lambda *count: told.append(count))
    assert sum(done for done, _ in told) == made.objects > 0 and {total for _, total in told} == {made.objects}
    truth = pd.read_parquet(tmp_path / "truth.parquet")
    assert (
        made.labelled + made.faint == len(truth) and made.labelled == fits.getdata(tmp_path / "segmentation.fits").max()
    )


def test_whole_outlines_hold_the_visible_ones(tmp_path):
    from pycocotools import mask

    simulate(Sky(**{**SMALL, "shape": (200, 200), "pair_fraction": 0.8}), tmp_path, seed=1)
    segmentation = fits.getdata(tmp_path / "segmentation.fits")
    outlines = pd.read_parquet(tmp_path / "outlines.parquet")
    assert outlines.id.tolist() == list(range(1, segmentation.max() + 1)) and len(outlines) > 5
    hidden = 0
    for row in outlines.itertuples():
        whole = mask.decode({"size": [row.height, row.width], "counts": row.rle}).astype(bool)
        visible = segmentation == row.id
        inside = visible[row.y0 : row.y0 + row.height, row.x0 : row.x0 + row.width]
        assert inside.sum() == visible.sum() and not (inside & ~whole).any()
        hidden += whole.sum() - inside.sum()
    assert hidden > 0


def test_report_and_comparison_are_asked_for_before_anything_is_made(tmp_path):
    with pytest.raises(InputError, match="no catalogue at nowhere.fits"):
        simulate(Sky(**SMALL), tmp_path, report=True, compare="nowhere.fits")
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(InputError, match="report.html exists already"):
        simulate(Sky(**SMALL), tmp_path, report=True)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_field_does_not_depend_on_how_many_there_are_but_on_the_seed(tmp_path):
    for name, fields, seed in (("two", 2, 3), ("three", 3, 3), ("other", 2, 4)):
        simulate(Sky(fields=fields, **SMALL), tmp_path / name, seed=seed)
    assert digests(tmp_path / "two" / "field_001") == digests(tmp_path / "three" / "field_001")
    for number in ("field_000", "field_001"):
        two, other = (digests(tmp_path / name / number) for name in ("two", "other"))
        same = [file for file in two if two[file] == other[file]]
        assert same == ["psf.fits"], "the PSF is the instrument's"
    first, second = (fits.getdata(tmp_path / "two" / f"field_00{k}" / "r.fits") for k in (0, 1))
    assert not np.array_equal(first, second)


def test_what_a_field_consists_of(tmp_path):
    (mosaic_path,) = simulate(Sky(**SMALL), tmp_path, seed=1)
    mosaic = yaml.safe_load(mosaic_path.read_text())
    assert list(mosaic["bands"]) == ["g", "r"] and mosaic["pixel_scale_arcsec"] == 0.396 and 0 <= mosaic["ebv"] <= 0.2
    assert (
        mosaic["bands"]["g"]["psf_fwhm_arcsec"] == pytest.approx(1.44) and mosaic["bands"]["g"]["psf"] == "psf.fits[g]"
    )
    with fits.open(tmp_path / mosaic["bands"]["g"]["image"]) as file:
        assert [hdu.name for hdu in file] == ["PRIMARY", "VARIANCE"]
        assert file[0].data.shape == (64, 80) == file[1].data.shape
        assert file[0].data.dtype == np.dtype(">f4") and (file[1].data > 0).all()
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert [field["mosaic"] for field in recipe["fields"]] == ["mosaic.yaml"]
    assert Sky(**recipe["provenance"]["sky"]) == Sky(**{**SMALL, "bands": ["g", "r"]})


@pytest.mark.parametrize("name", ["mosaic.yaml", "truth.parquet", "r.fits", "recipe.yaml"])
def test_a_field_is_never_overwritten(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=f"{name} exists already .*choose another --output"):
        simulate(Sky(**SMALL), tmp_path, seed=1)
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "mine"


def test_an_output_that_cannot_be_is_refused_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr("deepdisc.simulate.fields.simulate_field", None)
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file" / "sky"):
        with pytest.raises(InputError, match="cannot write into .*file is no folder; choose another output"):
            simulate(Sky(**SMALL), output)
    assert (tmp_path / "file").read_text() == "mine"


def test_fields_do_not_share_sky(tmp_path):
    simulate(Sky(fields=3, galaxy_density=(0, 0), star_density=(0, 0), **SMALL), tmp_path, seed=1)
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    centers = np.array([field["conditions"]["ra_dec_deg"] for field in recipe["fields"]])
    apart = np.diff(centers[:, 0]) * np.cos(np.radians(2.0)) * 3600
    assert (apart > 80 * 0.396).all()


def test_an_empty_sky_has_an_empty_truth(tmp_path):
    simulate(Sky(galaxy_density=(0, 0), star_density=(0, 0), **SMALL), tmp_path, seed=1)
    truth = pd.read_parquet(tmp_path / "truth.parquet")
    assert len(truth) == 0 and "redshift" in truth.columns and not fits.getdata(tmp_path / "segmentation.fits").any()


@pytest.mark.parametrize(("name", "part"), [("ugriz_ground", "train"), ("ugriz_ground_test", "test"), ("demo", "test")])
def test_shipped_skies_can_be_made(name, part, tmp_path):
    cfg = load(f"configs/sky/{name}.py", ["sky.shape=[48,48]", "sky.fields=1"])
    assert isinstance(instantiate(cfg.sky), Sky) and cfg.sky.population_part == part
    (mosaic,) = simulate(cfg, tmp_path, seed=0)
    assert list(yaml.safe_load(mosaic.read_text())["bands"]) == list("ugriz")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"instrument": "sdsss"}, "no instrument 'sdsss': .*did you mean 'sdss'"),
        ({"bands": ["g", "K"]}, "no band 'K'; it has u, g, r, i, z"),
        ({"bands": ["g", "g"]}, "give each band once"),
        ({"population_part": "tests"}, "must be one of train, test, all"),
        ({"seeing_factor": [2.0, 1.0]}, r"sky.seeing_factor is \[2.0, 1.0\]; it must be \[low, high\]"),
        ({"ebv": [0.1]}, "sky.ebv .* needs two numbers"),
        ({"pair_fraction": 1.5}, "sky.pair_fraction is 1.5; it must be within 0 to 1"),
        ({"shape": [8, 100]}, "at least 16 x 16"),
        ({"shape": [64.5, 64]}, "sky.shape is 64.5; it must be a whole number"),
        ({"fields": 1.5}, "sky.fields is 1.5; it must be a whole number"),
        ({"workers": True}, "sky.workers is True; it must be within 1 to 1024"),
        ({"bands": "gr"}, "sky.bands is 'gr'; it must be a list"),
        ({"center": [10, 89]}, "declination"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        simulate(Sky(**settings), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_bad_instrument_file_is_named(tmp_path):
    path = tmp_path / "camera.yaml"
    path.write_text("pixel_scale_arcsec: 0.2\nbands:\n  g: {population: g}\n")
    with pytest.raises(InputError, match="camera.yaml: band g: not an instrument: .*depth_5sigma"):
        simulate(Sky(instrument=str(path)), tmp_path / "out")
    path.write_text("bands: [g")
    with pytest.raises(InputError, match="camera.yaml, line [12]: not valid YAML"):
        simulate(Sky(instrument=str(path)), tmp_path / "out")


def test_a_config_without_a_sky_is_refused(tmp_path):
    with pytest.raises(InputError, match="no key 'sky'"):
        simulate({"model": 1}, tmp_path)


def test_a_negative_seed_is_refused(tmp_path):
    with pytest.raises(InputError, match="seed is -1"):
        simulate(Sky(), tmp_path, seed=-1)


def test_without_galsim_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "galsim", None)
    with pytest.raises(InputError, match=r"deepdisc\[sim\]"):
        simulate(Sky(), tmp_path)
