"""Truth from a mosaic and a catalogue: matches, outlines, redshifts; and every kind of bad input."""

import imitations
import numpy as np
import pandas as pd
import pytest
import yaml
from astropy.io import fits

from deepdisc.catalog import FLAGS
from deepdisc.data.mosaic import Mosaic
from deepdisc.data.prepare import prepare
from deepdisc.data.recipe import read_recipe
from deepdisc.data.survey import MASKED, make_truth
from deepdisc.data.truth import read_segmentation
from deepdisc.errors import InputError

COLUMNS = {"id": "id", "ra": "ra", "dec": "dec", "redshift": "redshift", "class": {"star": "star", "galaxy": True}}
COLUMNS |= {"flux_{band}": {"column": "flux_{band}", "unit": "nJy"}}


@pytest.fixture(scope="module")
def sky():
    return imitations.Sky("gr", shape=(150, 170), scale_arcsec=0.2, ra=150.0, dec=2.0)


@pytest.fixture
def made(sky, tmp_path):
    """A function that writes a field, with changes, and makes its truth: rows, segmentation map, report."""

    def make(change=None, entry=None, catalogue=None, wcs=True, of=sky):
        path = write_recipe(tmp_path, of, change, entry, catalogue, wcs)
        recipe = read_recipe(path)
        [field] = recipe.fields
        with Mosaic.open(field.mosaic) as mosaic:
            return make_truth(field.survey, mosaic, recipe.class_names, field.name)

    return make


def write_recipe(folder, sky, change=None, entry=None, catalogue=None, wcs=True):
    bands = {}
    for band in sky.bands:
        header = sky.header if wcs else None
        fits.PrimaryHDU(sky.image(band), header).writeto(folder / f"{band}.fits", overwrite=True)
        bands[band] = {"image": f"{band}.fits", "unit": "nJy", "rms": imitations.NOISE_NJY}
    fits.PrimaryHDU(sky.segmentation).writeto(folder / "seg.fits", overwrite=True)
    truth = sky.truth if change is None else change(sky.truth.copy())
    truth.to_csv(folder / "cat.csv", index=False)
    field = {"name": "f", "mosaic": {"bands": bands} | ({} if wcs else {"pixel_scale_arcsec": 0.2})}
    field["catalogue"] = {"file": "cat.csv", "columns": COLUMNS} | (catalogue or {})
    field |= {"segmentation": "seg.fits"} if entry is None else entry
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"fields": [field]}))
    return folder / "recipe.yaml"


# Matching -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("match", [{"by": "id"}, {}, {"radius_pix": 2}])
def test_every_row_gets_the_pixels_of_its_object(made, sky, match):
    truth, segmentation, report = made(entry={"segmentation": "seg.fits", "match": match})
    assert report["match"]["matched"] == len(sky.truth) == len(truth)
    for row in truth.itertuples():
        np.testing.assert_array_equal(segmentation == row.id, sky.segmentation == int(row.catalogue_id))
        assert row.area_pix == (segmentation == row.id).sum()
        ys, xs = np.nonzero(segmentation == row.id)
        assert [row.x_min, row.y_min, row.x_max, row.y_max] == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    np.testing.assert_allclose(truth.x, sky.truth.x, atol=1e-4)
    np.testing.assert_allclose(truth.flux_r, sky.truth.flux_r)


@pytest.mark.parametrize("method", ["sep", "photutils"])
def test_objects_are_detected(made, sky, method):
    pytest.importorskip(method, reason='needs the extra: pip install "deepdisc[classical]"')
    pytest.importorskip("skimage")
    truth, segmentation, report = made(entry={"detect": {"method": method, "threshold": 5}})
    assert report["match"]["matched"] == len(sky.truth)
    assert report["match"]["median_separation_arcsec"] < 0.05
    overlap = [(segmentation == row.id)[sky.segmentation == int(row.catalogue_id)].mean() for row in truth.itertuples()]
    assert min(overlap) > 0.5


def test_snr_is_that_of_the_pixels_inside(made, sky):
    truth, segmentation, _ = made()
    inside = sky.segmentation == int(truth.catalogue_id[3])
    noise = imitations.NOISE_NJY * np.sqrt(inside.sum())
    expected = np.hypot(*(sky.images[band][inside].sum() / noise for band in "gr"))
    assert truth.snr[3] == pytest.approx(expected, rel=1e-4)


def test_kron_fluxes_are_nearly_all_of_the_light(made, sky):
    pytest.importorskip("sep")
    columns = {key: value for key, value in COLUMNS.items() if "flux" not in key}
    truth, *_ = made(entry={"segmentation": "seg.fits", "fluxes": "kron"}, catalogue={"columns": columns})
    ratio = truth.flux_r / sky.truth.flux_r
    assert ratio.median() == pytest.approx(0.96, abs=0.04)  # 94 to 99 % of the light, by the profile
    # Errors are those of the pixels: the scatter of bright objects' ratios is explained by them.
    pull = (truth.flux_r - ratio.median() * sky.truth.flux_r) / truth.fluxerr_r
    assert 0.5 < 1.4826 * np.median(np.abs(pull)) < 2


def drop_half(truth):
    return truth[truth.id % 2 == 0]


def test_segments_without_a_row_are_masked_kept_or_background(made, sky):
    odd = np.isin(sky.segmentation, sky.truth.id[sky.truth.id % 2 == 1])
    truth, segmentation, report = made(drop_half)
    assert (segmentation[odd] == MASKED).all() and not (segmentation[~odd] == MASKED).any()
    assert report["segments_without_row"] == (sky.truth.id % 2 == 1).sum()
    for policy, listed in (("drop", False), ("keep", True)):
        truth, segmentation, _ = made(drop_half, {"segmentation": "seg.fits", "match": {"without_row": policy}})
        assert ((segmentation[odd] > 0) == listed).all()
        assert len(truth) == (len(sky.truth) if listed else (sky.truth.id % 2 == 0).sum())
    assert (truth[truth.catalogue == ""].class_name == "galaxy").all() and (truth.catalogue_id == "").any()


def test_masked_light_is_masked_in_the_tiles(sky, tmp_path):
    path = write_recipe(tmp_path, sky, drop_half)
    root = prepare(path, tmp_path / "out", fractions={"train": 1.0}, tile_size=512)
    odd = np.isin(sky.segmentation, sky.truth.id[sky.truth.id % 2 == 1])
    with fits.open(root / "tiles/00000.fits") as tile:
        np.testing.assert_array_equal(tile["MASK"].data.astype(bool), np.stack([odd, odd]))
        assert (tile["IMAGE"].data[:, odd] == 0).all() and tile["SEGMENTATION"].data.min() == 0
        assert (tile["SEGMENTATION"].data > 0).sum() == (sky.segmentation > 0).sum() - odd.sum()


def test_light_that_a_given_map_does_not_know_is_masked(made, sky, tmp_path):
    pytest.importorskip("sep")
    lost = sky.truth.id[:5]
    known = np.where(np.isin(sky.segmentation, lost), 0, sky.segmentation)

    def without(truth):
        fits.PrimaryHDU(known).writeto(tmp_path / "known.fits", overwrite=True)
        return truth[5:]

    truth, segmentation, report = made(without, {"segmentation": "known.fits", "detect": {"threshold": 5}})
    assert report["unknown_light_masked"] == 5
    core = np.isin(sky.segmentation, lost) & (sky.images["r"] > 10)
    assert (segmentation[core] == MASKED).all()
    assert not (segmentation[known > 0] == MASKED).any()


def half_mapped(sky, folder):
    """A map that lacks the segments of odd ids."""
    even = np.where(sky.segmentation % 2 == 0, sky.segmentation, 0)
    fits.PrimaryHDU(even).writeto(folder / "even.fits", overwrite=True)
    return even


def test_rows_without_a_segment_get_an_ellipse_of_their_shape(made, sky, tmp_path):
    half_mapped(sky, tmp_path)
    shapes = {"a": {"column": "a", "unit": "arcsec"}, "b": {"column": "b", "unit": "arcsec"}}
    entry = {"segmentation": "even.fits", "match": {"without_segment": "ellipse", "ellipse_scale": 2.0}}

    def shaped(truth):
        return truth.assign(a=0.8, b=0.4, pa=30.0, theta=120.0)  # 8 x 4 pixels with the scale of 2

    for name, angle in (("position_angle", "pa"), ("theta", "theta")):
        columns = COLUMNS | shapes | {name: angle}
        truth, segmentation, report = made(shaped, entry, {"columns": columns})
        assert report["drawn"] == (sky.truth.id % 2 == 1).sum() and len(truth) == len(sky.truth)
        inner = truth[truth.x.between(12, 157) & truth.y.between(12, 137) & (truth.catalogue_id.astype(int) % 2 == 1)]
        row = inner.iloc[(inner.area_pix - np.pi * 8 * 4).abs().argmin()]
        assert row.area_pix == pytest.approx(np.pi * 8 * 4, rel=0.05)
        y, x = np.nonzero(segmentation == row.id)
        covariance = np.cov(x, y)
        # North is up and East is left: 30 degrees from North through East is 120 degrees from +x.
        tilt = 0.5 * np.degrees(np.arctan2(2 * covariance[0, 1], covariance[0, 0] - covariance[1, 1])) % 180
        assert tilt == pytest.approx(120, abs=4)


@pytest.mark.parametrize(("policy", "listed"), [("circle", True), ("keep", True), ("drop", False)])
def test_other_treatments_of_rows_without_a_segment(made, sky, tmp_path, policy, listed):
    even = half_mapped(sky, tmp_path)
    match = {"without_segment": policy} | ({"circle_arcsec": 0.6} if policy == "circle" else {})
    truth, segmentation, report = made(entry={"segmentation": "even.fits", "match": match})
    odd = truth[truth.catalogue_id.astype(int) % 2 == 1]
    assert len(odd) == (listed * (sky.truth.id % 2 == 1)).sum()
    if policy == "circle":
        # A disc of 3 pixels has 25 to 32 pixels by its centre; neighbours' pixels stay theirs.
        assert odd.area_pix.between(20, 33).all()
        np.testing.assert_array_equal(segmentation[even > 0] > 0, True)
    if policy == "keep":
        assert (odd.area_pix == 0).all() and ((segmentation > 0) == (even > 0)).all()


def test_a_catalogue_alone_with_circles(made, sky):
    truth, segmentation, report = made(entry={"match": {"without_segment": "circle", "circle_arcsec": 0.8}})
    assert report["segments"] == 0 and "match" not in report and (truth.area_pix > 30).all()


def test_faint_objects_are_listed_and_flagged(made, sky):
    truth, *_ = made(entry={"segmentation": "seg.fits", "faint": "flux_r < 1000"})
    faint = (truth["flags"] & FLAGS["FAINT"].value) > 0
    np.testing.assert_array_equal(faint, truth.flux_r < 1000)
    assert 0 < faint.sum() < len(truth)


def test_a_second_catalogue_adds_what_the_first_lacks(made, sky, tmp_path):
    sky.truth.assign(ra=sky.truth.ra + 5e-5, id="b" + sky.truth.id.astype(str)).to_csv(tmp_path / "b.csv", index=False)
    both = [{"name": "a", "file": "cat.csv", "columns": COLUMNS}, {"name": "b", "file": "b.csv", "columns": COLUMNS}]
    truth, _, report = made(
        drop_half, {"segmentation": "seg.fits", "catalogue": both, "same_object_arcsec": 0.5, "match": {}}
    )
    assert report["catalogues"]["b"]["listed_before"] == report["catalogues"]["a"]["used"]
    assert len(truth) == len(sky.truth)
    assert set(truth[truth.catalogue == "b"].catalogue_id) == {f"b{i}" for i in sky.truth.id if i % 2 == 1}


def test_pixel_positions_without_a_wcs(made, sky):
    columns = {key: value for key, value in COLUMNS.items() if key not in ("ra", "dec")} | {
        "x": "x1 - 1",
        "y": "y1 - 1",
    }
    truth, _, report = made(lambda t: t.assign(x1=t.x + 1, y1=t.y + 1), catalogue={"columns": columns}, wcs=False)
    assert report["match"]["matched"] == len(sky.truth) and report["match"]["median_separation_pix"] < 0.2
    with pytest.raises(InputError, match="has no WCS, so ra and dec do not help; map x and y"):
        made(wcs=False)


# Redshifts ----------------------------------------------------------------------------------------------------------


def write_spectra(folder, sky, rows, offset_arcsec=0.0, **changes):
    table = sky.truth.iloc[rows].assign(z=1.0 + np.arange(len(rows)), grade=3, **changes)
    table["dec"] = table.dec + offset_arcsec / 3600
    table[["ra", "dec", "z", "grade"]].to_csv(folder / "z.csv", index=False)


REDSHIFTS = {"name": "spec", "file": "z.csv", "columns": {"ra": "ra", "dec": "dec", "redshift": "z"}}


def test_redshifts_are_ranked_and_their_source_recorded(made, sky, tmp_path):
    galaxies = np.flatnonzero(~sky.truth.star)[:8]
    write_spectra(tmp_path, sky, galaxies, offset_arcsec=0.3)
    first = REDSHIFTS | {"name": "best", "where": "z > 4.5"}
    truth, _, report = made(entry={"segmentation": "seg.fits", "redshifts": [first, REDSHIFTS]})
    assert report["redshifts"]["best"]["used"] == 4 and report["redshifts"]["spec"]["used"] == 4
    assert report["redshifts"]["spec"]["median_offset_arcsec"] == [pytest.approx(0, abs=0.01), pytest.approx(0.3, 0.02)]
    np.testing.assert_allclose(truth.redshift.iloc[galaxies], 1.0 + np.arange(8))
    assert truth.redshift_source.iloc[galaxies].tolist() == ["spec"] * 4 + ["best"] * 4
    others = np.setdiff1d(np.arange(len(truth)), galaxies)
    assert set(truth.redshift_source.iloc[others]) == {"cat"}
    np.testing.assert_allclose(truth.redshift.iloc[others], sky.truth.redshift.iloc[others], rtol=1e-6)


def test_redshifts_beyond_the_radius_or_of_bad_quality_are_not_used(made, sky, tmp_path):
    write_spectra(tmp_path, sky, np.arange(1, 6), offset_arcsec=0.8)
    entry = {"segmentation": "seg.fits", "redshifts": REDSHIFTS}
    assert made(entry=entry)[2]["redshifts"]["spec"]["used"] == 0
    write_spectra(tmp_path, sky, np.arange(1, 6))
    entry["redshifts"] = REDSHIFTS | {"where": "grade > 3"}
    about = made(entry=entry)[2]["redshifts"]["spec"]
    assert about["rows"] == 5 and about["selected"] == about["used"] == 0


def test_spectra_of_one_object_are_ambiguous_only_if_they_disagree(made, sky, tmp_path):
    write_spectra(tmp_path, sky, [1, 1, 2, 2])
    table = pd.read_csv(tmp_path / "z.csv").assign(z=[0.5, 0.5001, 1.0, 2.0])
    table.to_csv(tmp_path / "z.csv", index=False)
    for policy, used in (("keep", 2), ("drop", 1)):
        entry = {"segmentation": "seg.fits", "redshifts": REDSHIFTS | {"ambiguous": policy}}
        truth, _, report = made(entry=entry)
        about = report["redshifts"]["spec"]
        assert (about["distinct"], about["ambiguous"], about["used"]) == (3, 1, used)
    assert truth.redshift.iloc[1] == pytest.approx(0.5) and truth.redshift_source.iloc[2] == "cat"


# Bad input ----------------------------------------------------------------------------------------------------------


def outside(truth):
    return truth.assign(ra=np.where(truth.id < 104, truth.ra + 0.1, truth.ra))


def without_position(truth):
    return truth.assign(ra=np.where(truth.id < 104, np.nan, truth.ra))


def twice(truth):
    return truth.assign(id=np.where(truth.id < 104, 200, truth.id), more=0)


@pytest.mark.parametrize(
    ("change", "kind", "count", "words"),
    [
        (outside, "outside", 3, "3 of 30 rows lie outside the mosaic .first: id 101"),
        (without_position, "no_position", 3, "3 of 30 rows have no position .first: id 101"),
        (twice, "duplicate_id", 2, "2 of 30 rows have the id of another .first: id 200"),
    ],
)
def test_bad_rows_are_counted_and_dropped_or_refused(made, sky, change, kind, count, words):
    rows = len(sky.truth)
    truth, _, report = made(change, {"segmentation": "seg.fits", "problems": {kind: "drop"}})
    assert report["catalogues"]["cat"][kind] == count and len(truth) == rows - count
    with pytest.raises(InputError, match=words.replace("30", str(rows)) + f".*problems: {{{kind}: drop}}"):
        made(change, {"segmentation": "seg.fits", "problems": {kind: "refuse"}})


def test_rows_on_masked_pixels_are_counted(made, sky):
    before = {band: sky.images[band].copy() for band in "gr"}
    try:
        for band in "gr":
            sky.images[band][:, :40] = np.nan
        report = made()[2]
    finally:
        sky.images.update(before)
    assert report["catalogues"]["cat"]["no_data"] == (sky.truth.x < 39.5).sum() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.assign(ra=t.ra + 50),
            r"none of its \d+ rows lies on the mosaic: RA 200.* the mosaic covers RA 150",
        ),
        (lambda t: t.assign(ra=t.dec, dec=t.ra), "declinations are beyond 90 degrees.*are ra and dec exchanged"),
        (lambda t: t.assign(dec=t.dec + 2 / 3600), r"would if the catalogue moved by .*-2.00 arcsec in RA, Dec"),
        (
            lambda t: t.assign(ra=150 + (t.ra - 150) * 0.2, dec=2 + (t.dec - 2) * 0.2),
            "is it the catalogue of this field",
        ),
        (lambda t: t.drop(columns="redshift"), "there is no column 'redshift'"),
    ],
)
def test_catalogues_of_another_place_are_recognised(made, sky, change, message):
    with pytest.raises(InputError, match=message):
        made(change, {"segmentation": "seg.fits", "match": {"radius_arcsec": 0.5, "min_share": 0.5}})


def test_exchanged_ra_and_dec_are_said(made):
    # A place where both may be declinations, so that only the mosaic can tell.
    moved = imitations.Sky("gr", shape=(150, 170), scale_arcsec=0.2, ra=50.0, dec=2.0)
    with pytest.raises(InputError, match="with ra and dec exchanged some do: exchange them in the recipe"):
        made(lambda t: t.assign(ra=t.dec, dec=t.ra), of=moved)


def test_exchanged_x_and_y_are_said(made, sky):
    columns = {key: value for key, value in COLUMNS.items() if key not in ("ra", "dec")} | {"x": "y", "y": "x"}
    with pytest.raises(InputError, match="with x and y exchanged [0-9]+ do: exchange them"):
        made(lambda t: t[t.x < 149], catalogue={"columns": columns}, wcs=False,
             entry={"segmentation": "seg.fits", "match": {"radius_pix": 1, "min_share": 0.6}})  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"segmentation": "none.fits"}, "no segmentation map at"),
        ({"match": {"radius_arcsec": -1}}, "match: radius_arcsec is -1; it must be a positive number"),
        ({"match": {"without_segment": "circle"}}, "`circle_arcsec` belong together"),
        ({"match": {"without_segment": "box"}}, "without_segment is 'box'; it is one of ellipse, circle"),
        ({"match": {"radius": 1}}, "match: unknown key 'radius'; the nearest is 'radius_"),
        ({"match": {"radius_arcsec": "1"}}, "match: radius_arcsec is '1'; it must be a number"),
        ({"detect": {"threshold": True}}, "detect: threshold is True; it must be a number"),
        ({"detect": {"method": "scarlet"}}, "detect: method is 'scarlet'; it is one of sep, photutils"),
        ({"detect": {"bands": ["z"]}}, "has no band 'z'"),
        ({"match": {"by": "id"}, "detect": {}}, "needs a segmentation map and the one catalogue of its ids"),
        ({}, "whence the outlines"),
        ({"segmentation": "seg.fits", "truth": "t.csv"}, "exclude each other"),
        ({"segmentation": "seg.fits", "fluxes": "auto"}, "fluxes is 'auto'; it is one of kron"),
        ({"segmentation": "seg.fits", "problems": {"outside": "ignore"}}, "problems: outside is 'ignore'"),
        ({"segmentation": "seg.fits", "faint": "mag_z > 3"}, "field f: faint: there is no column 'mag_z'"),
        ({"segmentation": "seg.fits", "match": {"without_segment": "ellipse"}}, "needs the shapes: map a, b"),
        ({"segmentation": "seg.fits", "same_object_arcsec": 1}, "belongs to a list of several catalogues"),
        ({"segmentation": "seg.fits", "redshifts": {"file": "z", "columns": {"ra": "ra"}}}, "which is the redshift"),
        ({"segmentation": "seg.fits", "catalogue": {"columns": COLUMNS}}, "file is None; it is a path"),
        ({"segmentation": "seg.fits", "catalogue": {"file": "x.csv", "columns": COLUMNS}}, "no catalogue at"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(made, sky, tmp_path, entry, message):
    if entry.get("match", {}).get("without_segment") == "ellipse":
        half_mapped(sky, tmp_path)
        entry = entry | {"segmentation": "even.fits"}
    with pytest.raises(InputError, match=message):
        made(entry=entry)


def test_a_catalogue_without_positions_or_class_is_named(made):
    for lacking, message in (
        ("ra", "must say where the objects are"),
        ("class", "must say the class, one of galaxy, star"),
    ):
        columns = {key: value for key, value in COLUMNS.items() if key != lacking}
        with pytest.raises(InputError, match=message):
            made(catalogue={"columns": columns})
    with pytest.raises(InputError, match="are of no class"):
        made(catalogue={"columns": COLUMNS | {"class": {"star": "star"}}})
    with pytest.raises(InputError, match="class 'quasar' is not among"):
        made(catalogue={"columns": COLUMNS | {"class": "quasar"}})


def test_catalogues_and_maps_without_an_object_are_named(made, sky, tmp_path):
    entry = {"segmentation": "seg.fits"}
    with pytest.raises(InputError, match="no catalogue has a row here; see what `where` leaves"):
        made(entry=entry, catalogue={"where": "id < 0"})
    kept = entry | {"match": {"min_share": 0, "without_row": "keep"}}
    truth, *_ = made(entry=kept, catalogue={"where": "id < 0"})
    assert len(truth) == len(sky.truth) and (truth.class_name == "galaxy").all()
    fits.writeto(tmp_path / "empty.fits", np.zeros(sky.shape, np.int32))
    with pytest.raises(InputError, match="empty.fits holds no object; is it the map of this field"):
        made(entry={"segmentation": "empty.fits"})


def test_ids_of_another_map_are_named(made):
    with pytest.raises(InputError, match=r"no id of the catalogue \(901, .*do they belong together"):
        made(lambda t: t.assign(id=t.id + 800), {"segmentation": "seg.fits", "match": {"by": "id"}})


def test_files_side_by_side_are_joined_by_their_id(made, sky, tmp_path):
    sky.truth[["id", "ra", "dec", "star"]].to_csv(tmp_path / "a.csv", index=False)
    shuffled = sky.truth[["id", "redshift", "flux_g", "flux_r"]].sample(frac=1, random_state=1)
    shuffled.to_csv(tmp_path / "b.csv", index=False)
    catalogue = {"file": ["a.csv", "b.csv"], "join": "id"}
    truth, *_ = made(catalogue=catalogue)
    np.testing.assert_allclose(truth.flux_r, sky.truth.flux_r)
    with pytest.raises(InputError, match="has no column 'ID' to join by"):
        made(catalogue=catalogue | {"join": "ID"})
    shuffled.iloc[[0, 0, 1]].to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(InputError, match="is twice"):
        made(catalogue=catalogue)
    # Without `join` the rows follow each other.
    half = len(sky.truth) // 2
    sky.truth[:half].to_csv(tmp_path / "a.csv", index=False)
    sky.truth[half:].to_csv(tmp_path / "b.csv", index=False)
    assert len(made(catalogue={"file": ["a.csv", "b.csv"]})[0]) == len(sky.truth)


def test_segmentation_maps_in_an_extension(sky, tmp_path):
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(sky.image("r"), name="SCI"), fits.ImageHDU(sky.segmentation, name="SEG")]
    fits.HDUList(hdus).writeto(tmp_path / "s.fits")
    for name in ("s.fits", "s.fits[SEG]", "s.fits[2]"):
        np.testing.assert_array_equal(read_segmentation(f"{tmp_path}/{name}", sky.shape), sky.segmentation)
    with pytest.raises(InputError, match="holds no 2-d integer image"):
        read_segmentation(f"{tmp_path}/s.fits[SCI]", sky.shape)
