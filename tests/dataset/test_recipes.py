"""The shipped recipes on small imitations of the files they describe."""

import imitations
import numpy as np
import pandas as pd
import pytest
import yaml

from deepdisc.data.prepare import prepare
from deepdisc.data.recipe import read_recipe
from deepdisc.files import sha256

pytest.importorskip("sep", reason='needs the extra: pip install "deepdisc[classical]"')


def run(repository, folder, name, output, *overrides, **options):
    """Prepare a shipped recipe; its truth, each object once, and dataset.yaml."""
    root = prepare(
        repository / "datasets" / f"{name}.yaml", output, overrides=[f"data={folder}", *overrides], **options
    )
    truth = pd.read_parquet(root / "truth.parquet")
    about = yaml.safe_load((root / "dataset.yaml").read_text())
    return truth.sort_values("area_pix").drop_duplicates(["field", "id"], keep="last"), about


def true_rows(truth, skies):
    """For each row of the truth the row of the sky that it should be."""
    true = pd.concat(skies) if isinstance(skies, list) else skies
    return true.set_index("number").loc[truth.catalogue_id.astype(int)].reset_index()


def check_matches(truth, true, bands):
    """Redshifts, classes, fluxes and, through the outline, the pixels are those of the same object."""
    assert len(truth) > 50
    np.testing.assert_array_equal(truth.class_name == "star", true.star)
    for band in bands:
        np.testing.assert_allclose(truth[f"flux_{band}"], true[f"flux_{band}"], rtol=1e-5)
    np.testing.assert_allclose(truth[["ra", "dec"]], true[["ra", "dec"]], atol=1e-7)


def test_jades(repository, tmp_path):
    sky = imitations.jades(tmp_path)
    truth, about = run(repository, tmp_path, "jades_goods_s", tmp_path / "out", "splits.block_arcmin=0.05",
                       "splits.guard_pix=8", tile_size=100)  # fmt: skip
    true = true_rows(truth, sky.truth.assign(number=sky.truth.id))
    check_matches(truth, true, sky.bands)
    assert about["bands"] == sky.bands and about["pixel_scale_arcsec"] == pytest.approx(0.03)
    # 1 nJy came in MJy/sr: the noise tells that the zero point is right (weights are scaled to the sky's scatter).
    assert about["normalisation"]["F444W"]["noise_njy"] == pytest.approx(imitations.NOISE_NJY, rel=0.08)
    report, hashes = (about["provenance"]["fields"][0][key] for key in ("report", "sha256"))
    assert len(hashes) == 3 and hashes["jades_dr3_prism_public_gs_v1.1.fits"] == sha256(
        tmp_path / "jades_dr3_prism_public_gs_v1.1.fits"
    )
    assert report["catalogues"]["JADES"]["used"] == len(sky.truth) == report["match"]["matched"]
    good = sky.spectra[sky.spectra.grade.isin(["A", "B", "C"])]
    found = truth[truth.redshift.notna()]
    assert report["redshifts"]["NIRSpec"]["used"] == len(good) and set(found.redshift_source) == {"NIRSpec"}
    expected = good.set_index("id").redshift.loc[found.catalogue_id.astype(int)]
    np.testing.assert_allclose(found.redshift, expected, rtol=1e-5)


def test_hsc_patches(repository, tmp_path):
    patches = imitations.hsc(tmp_path)
    truth, about = run(repository, tmp_path, "hsc_pdr3", tmp_path / "out")
    skies = [sky.truth.assign(number=sky.truth.id + 10000 * i + 4 * 10**16) for i, sky in enumerate(patches)]
    true = true_rows(truth[truth.catalogue != ""], skies)
    check_matches(truth[truth.catalogue != ""], true, "grizy")
    assert {field["name"] for field in about["provenance"]["fields"]} == {"9813_0,4", "9813_1,4", "9813_2,4"}
    assert about["provenance"]["fields"][0]["ebv"] == "column of the catalogue"
    np.testing.assert_allclose(truth.ebv, 0.02, rtol=1e-5)
    total = about["provenance"]["report"]
    assert total["match"]["matched"] == total["catalogues"]["forced"]["used"] == sum(len(sky.truth) for sky in patches)
    with_redshift = truth[truth.redshift.notna()]
    assert len(with_redshift) == total["redshifts"]["specz"]["used"] == len(pd.concat(skies).query("~star")[::4]) - 1
    assert {split["tiles"] for split in about["splits"].values()} == {1}
    import fitsio

    with fitsio.FITS(str(tmp_path / "out/tiles/00000.fits")) as tile:
        mask = tile["MASK"].read()
        assert mask[:, :, :4].all() and not mask[:, 100:200, 4:].any()
        np.testing.assert_allclose(tile["EBV"].read(), 0.02, rtol=1e-5)
        variance = tile["VARIANCE"].read()[:, :, 4:]
    np.testing.assert_allclose(variance, imitations.NOISE_NJY**2, rtol=1e-4)


def test_dc2_patches(repository, tmp_path):
    patches = imitations.dc2(tmp_path)
    truth, about = run(repository, tmp_path, "dc2", tmp_path / "out")
    skies = [sky.truth.assign(number=sky.truth.id + 10000 * i) for i, sky in enumerate(patches)]
    true = true_rows(truth, skies)
    check_matches(truth, true, "ugrizy")
    np.testing.assert_allclose(truth.redshift, np.where(true.star, np.nan, true.redshift), rtol=1e-5)
    assert about["provenance"]["fields"][0]["ebv"] == "not given, taken as 0"


def test_csst(repository, tmp_path):
    sky = imitations.csst(tmp_path)
    truth, about = run(repository, tmp_path, "csst_sim", tmp_path / "out", "splits.block_arcmin=0.12",
                       "splits.guard_pix=8", tile_size=128)  # fmt: skip
    true = true_rows(truth, sky.truth.assign(number=sky.truth.id))
    check_matches(truth, true, ["i"])
    np.testing.assert_allclose(truth.redshift, np.where(true.star, np.nan, true.redshift), rtol=1e-5)
    assert about["provenance"]["fields"][0]["report"]["match"]["median_separation_arcsec"] < 0.05


def test_the_worked_example_of_the_readme(repository, tmp_path):
    """The recipe as it stands there, on three bands, weights, a SExtractor catalogue and a table of redshifts."""
    from astropy.io import fits
    from astropy.table import Table

    readme = (repository / "datasets" / "README.md").read_text(encoding="utf-8")
    [block] = [part.split("```")[0] for part in readme.split("```yaml\n")[1:] if part.startswith("name: mine")]
    (tmp_path / "mine.yaml").write_text(block)
    sky = imitations.Sky("gri", shape=(320, 340), scale_arcsec=1.2, ra=150.0, dec=2.0)
    counts = 10 ** (0.4 * (27 - 31.4))
    for band in "gri":
        fits.PrimaryHDU(sky.image(band, counts), sky.header).writeto(tmp_path / f"{band}.fits")
        weight = 1 / sky.noise(counts, power=2)
        fits.PrimaryHDU(weight, sky.header).writeto(tmp_path / f"{band}_weight.fits")
    table = Table({"NUMBER": sky.truth.id, "ALPHA_J2000": sky.truth.ra, "DELTA_J2000": sky.truth.dec})
    table["FLAGS"], table["CLASS_STAR"] = 0, np.where(sky.truth.star, 0.99, 0.02)
    table["MAG_AUTO"] = 31.4 - 2.5 * np.log10(sky.truth.flux_r.to_numpy())
    table["FLAGS"][:3], table["MAG_AUTO"][3:5] = 8, 99.0
    table.write(tmp_path / "photometry.fits")
    spectra = sky.truth[~sky.truth.star].assign(z=sky.truth.redshift, quality=3)
    spectra.loc[spectra.index[::2], "quality"] = 1
    spectra[["ra", "dec", "z", "quality"]].to_csv(tmp_path / "spectra.csv", index=False)
    root = prepare(tmp_path / "mine.yaml", tmp_path / "mine_dataset")
    about = yaml.safe_load((root / "dataset.yaml").read_text())
    report = about["provenance"]["fields"][0]["report"]
    chosen = sky.truth[(table["FLAGS"] < 4) & (table["MAG_AUTO"] < 25)]
    assert len(sky.truth) - 20 < len(chosen) <= len(sky.truth) - 5
    assert report["catalogues"]["photometry"]["selected"] == len(chosen) == report["match"]["matched"]
    assert report["segments_without_row"] == len(sky.truth) - len(chosen) and report["rows_without_segment"] == 0
    usable = spectra[(spectra.quality == 3) & spectra.id.isin(chosen.id)]
    assert report["redshifts"]["spectra"]["used"] == len(usable) and about["provenance"]["block_pix"] == 100
    assert set(about["splits"]) == {"train", "val", "test"}
    truth = pd.read_parquet(root / "truth.parquet")
    true = true_rows(truth, sky.truth.assign(number=sky.truth.id))
    np.testing.assert_allclose(truth.flux_r, true.flux_r, rtol=1e-5)
    assert about["normalisation"]["g"]["noise_njy"] == pytest.approx(imitations.NOISE_NJY, rel=1e-3)


def test_every_shipped_recipe_is_tried_in_a_test(repository):
    here = (repository / "tests" / "dataset").glob("test_*.py")
    tests = "".join(path.read_text() for path in here)
    names = {path.stem for path in (repository / "datasets").glob("*.yaml")}
    assert len(names) >= 10
    assert [name for name in sorted(names) if f'"{name}"' not in tests] == []


# Real files, beside the repository ---------------------------------------------------------------------------------


@pytest.fixture
def images(shared_data):
    return shared_data / "data" / "images"


@pytest.mark.slow
def test_sdss_run_94(repository, images, tmp_path):
    truth, about = run(repository, images / "sdss_run94_field12_ugriz", "sdss_run94", tmp_path / "out")
    report = about["provenance"]["fields"][0]["report"]
    assert report["catalogues"]["coadd"] | {"outside": 88, "used": 813} == report["catalogues"]["coadd"]
    assert report["catalogues"]["photoobj"]["listed_before"] == 546
    match = report["match"]
    assert match["matched"] > 740 and match["ambiguous"] < 10
    assert match["median_separation_arcsec"] < 0.2 and np.hypot(*match["median_offset_arcsec"]) < 0.1
    bright = truth[truth.mag_r.between(17, 20) & (truth["flags"] & 1 == 0)]
    assert len(bright) > 120 and (bright.area_pix > 0).mean() > 0.95
    # The outline of a star holds about the light that the catalogue says.
    assert set(about["splits"]) == {"train", "val", "test"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "folder", "fields", "objects", "redshifts"),
    [("ceers_stamps", "jwst_ceers_stamps", 8, 16, 8), ("jof_stamps", "jwst_jof_stamps", 5, 14, 5)],
)
def test_jwst_stamps(repository, images, tmp_path, name, folder, fields, objects, redshifts):
    truth, about = run(repository, images / folder, name, tmp_path / "out")
    assert len(about["provenance"]["fields"]) == fields and len(truth) == objects
    central = truth[truth.catalogue_id != ""]
    assert len(central) == redshifts == central.redshift.notna().sum()
    if name == "jof_stamps":
        assert len(about["bands"]) == 19
        assert central[central.catalogue_id == "531"].redshift.iloc[0] == pytest.approx(5.2365, abs=1e-3)


@pytest.mark.slow
def test_primer_uds(repository, images, shared_data, tmp_path):
    import gzip

    (tmp_path / "specz").mkdir()
    for path in (images / "jwst_primer_uds_A").glob("uds-test-*"):
        (tmp_path / path.name).symlink_to(path)
    tables = shared_data / "data" / "catalogues" / "specz"
    (tmp_path / "specz/all_with_z_spec.ascii").symlink_to(tables / "jwst_uds_cosmos_jades_zspec_dev80.ascii")
    (tmp_path / "specz/DJA_v2.csv").write_bytes(gzip.decompress((tables / "DJA_v2.csv.gz").read_bytes()))
    truth, about = run(repository, tmp_path, "primer_uds", tmp_path / "out")
    report = about["provenance"]["fields"][0]["report"]
    assert report["segments"] == 384 and report["unknown_light_masked"] > 20
    assert report["redshifts"]["DJA"]["on_the_mosaic"] == 0
    # Blends and faint objects aside, two measurements of the F444W flux agree: Kron, and the map's own pixels.
    assert truth[truth.snr > 20].mag_F444W.between(18, 29).all()


@pytest.mark.slow
def test_kids_viking(repository, images, tmp_path):
    truth, about = run(repository, images / "kids_viking_9band", "kids_viking", tmp_path / "out")
    bright = truth[truth.mag_r < 21]
    assert len(bright) > 250 and len(truth) > 2000
    # Median colours of bright objects as far as they depend on zero points: physical, see the recipe's comment.
    for blue, red, colour in (("g", "r", 0.9), ("r", "i", 0.4), ("J", "H", 0.15), ("H", "Ks", 0.03)):
        assert (bright[f"mag_{blue}"] - bright[f"mag_{red}"]).median() == pytest.approx(colour, abs=0.12)


@pytest.mark.slow
def test_hsc_blends(repository, images, tmp_path):
    import sys

    sys.path.insert(0, str(repository / "tools"))
    try:
        from make_hsc_blends import make_stamps
    finally:
        sys.path.pop(0)
    assert make_stamps(images / "hsc_cosmos_blends", tmp_path / "stamps") == 111
    recipe = repository / "datasets" / "hsc_blends.yaml"
    assert len(read_recipe(recipe, [f"data={tmp_path}/stamps"]).fields) == 111
    truth, about = run(repository, tmp_path / "stamps", "hsc_blends", tmp_path / "out")
    total = about["provenance"]["report"]
    assert total["catalogues"]["HSC"]["selected"] == 778 and total["match"]["matched"] > 560
