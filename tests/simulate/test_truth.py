"""Outlines, boxes, flags and the segmentation of the synthetic sky agree with each other and with the light."""

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from pycocotools import mask as run_lengths
from scipy import ndimage

from deepdisc.catalog import FLAGS, validate
from deepdisc.simulate import Sky
from deepdisc.simulate.fields import draw_field
from deepdisc.simulate.noise import add_noise
from deepdisc.simulate.outlines import amodal_table, count_neighbours
from deepdisc.simulate.scene import build_scene, truth_table

BOX = ["x_min", "y_min", "x_max", "y_max"]


def has(truth, flag):
    return (truth["flags"] & FLAGS[flag].value) > 0


@pytest.fixture(scope="module")
def truth(ordinary_field):
    return pd.read_parquet(ordinary_field / "truth.parquet")


@pytest.fixture(scope="module")
def segmentation(ordinary_field):
    return fits.getdata(ordinary_field / "segmentation.fits")


def test_the_truth_is_a_valid_catalogue(truth):
    validate(truth, ["id", "x", "y", "ra", "dec", *BOX, "class_id", "redshift", "snr", "flux_r", "mag_r", "flags"])
    assert len(truth) > 100 and has(truth, "FAINT").any() and has(truth, "BLENDED").any() and has(truth, "EDGE").any()


def test_labels_are_the_ids_of_the_objects_that_are_not_faint(truth, segmentation):
    labels = np.unique(segmentation)
    np.testing.assert_array_equal(labels[labels > 0], np.sort(truth.id[~has(truth, "FAINT")]))
    assert segmentation.dtype.newbyteorder("=") == np.int32
    assert (truth.snr[~has(truth, "FAINT")] >= 6).all()


def test_every_label_lies_in_the_box_of_its_object(truth, segmentation):
    y, x = np.nonzero(segmentation)
    box = truth.set_index("id").loc[segmentation[y, x], BOX].to_numpy()
    assert ((x >= box[:, 0]) & (y >= box[:, 1]) & (x + 1 <= box[:, 2]) & (y + 1 <= box[:, 3])).all()
    visible = np.bincount(segmentation.ravel())[truth.id[~has(truth, "FAINT")]]
    assert (visible <= truth.area_pix[~has(truth, "FAINT")]).all()


def test_boxes_stay_in_the_field_and_hold_their_centre(truth):
    assert (truth[["x_min", "y_min"]] >= 0).all(axis=None)
    assert (truth.x_max <= 480).all() and (truth.y_max <= 400).all()
    touching = (truth.x_min == 0) | (truth.y_min == 0) | (truth.x_max == 480) | (truth.y_max == 400)
    np.testing.assert_array_equal(touching, has(truth, "EDGE"))
    inside = truth[~has(truth, "EDGE")]
    assert inside.x.between(inside.x_min, inside.x_max - 1).all()
    assert inside.y.between(inside.y_min, inside.y_max - 1).all()
    assert ((inside.x_max - inside.x_min >= 3) & (inside.y_max - inside.y_min >= 3)).all()


def test_stars_have_no_redshift_and_galaxies_have_one(truth):
    stars = truth.class_id == 1
    assert stars.any() and truth.redshift[stars].isna().all() and (truth.redshift[~stars] > 0).all()
    assert (truth.class_name[stars] == "star").all() and (truth.hlr_arcsec[stars] == 0).all()


def test_signal_to_noise_is_that_of_the_noiseless_light(conditions, make_objects):
    objects = make_objects({"x": 40.0, "y": 48.0, "class_id": 1, "bulge_fraction": np.nan})
    scene = build_scene(Sky(shape=(96, 80)), conditions, objects)
    # A point source at the 5-sigma depth has a signal-to-noise of five in that band; bands add in squares.
    expected = np.sqrt(sum((5 * 20_000 / 10 ** (0.4 * (31.4 - m))) ** 2 for m in (22.15, 23.13, 22.70, 22.20, 20.71)))
    assert scene.snr[0] == pytest.approx(expected, rel=0.01)
    table = truth_table(conditions, objects, scene)
    assert table["flags"].tolist() == [0] and table.blendedness[0] == pytest.approx(0, abs=1e-3)


def test_the_outline_is_an_isophote_and_wide_enough_for_faint_objects(conditions, make_objects):
    sky = Sky(shape=(96, 80), isophote=1.5, peak_fraction=0.2, label_snr=3.0)
    faint = {f"flux_{band}": 1_500.0 for band in "ugriz"}
    objects = make_objects({"x": 40.0, "y": 70.0}, {"x": 40.0, "y": 20.0, "estimated_snr": 5.0, **faint})
    scene = build_scene(sky, conditions, objects)
    significance = np.sqrt(((scene.light / conditions.sky_sigma_njy()[:, None, None]) ** 2).sum(axis=0))
    np.testing.assert_array_equal(scene.segmentation == 1, (significance > 1.5) & (np.indices((96, 80))[0] > 45))
    assert significance[:45].max() < 1.5
    np.testing.assert_array_equal(scene.segmentation[:45] == 2, significance[:45] > 0.2 * significance[:45].max())


def test_overlapping_objects_are_blended_and_the_brighter_wins_the_pixel(conditions, make_objects):
    bright, faint = ({f"flux_{band}": flux for band in "ugriz"} for flux in (40_000.0, 10_000.0))
    place = {"y": 48.0, "class_id": 1, "bulge_fraction": np.nan}
    objects = make_objects(
        {"x": 40.0, **place, **bright}, {"x": 44.0, **place, **faint}, {"x": 10.0, **place, "y": 10.0, **bright}
    )
    scene = build_scene(Sky(shape=(96, 80)), conditions, objects)
    table = truth_table(conditions, objects, scene)
    assert has(table, "BLENDED").tolist() == [True, True, False]
    assert table.blendedness[1] > 0.3 > table.blendedness[0] > 0.01 > table.blendedness[2]
    assert scene.segmentation[48, 40] == 1 and scene.segmentation[48, 45] == 2
    # The box is the object's own, not what the neighbour leaves of it.
    assert table.x_max[0] > table.x_min[1] + 2


def test_an_object_that_others_outshine_everywhere_is_not_labelled(conditions, make_objects):
    faint = {f"flux_{band}": 3_000.0 for band in "ugriz"}
    objects = make_objects({"x": 40.0, "y": 48.0}, {"x": 40.0, "y": 48.0, **faint})
    scene = build_scene(Sky(shape=(96, 80)), conditions, objects)
    table = truth_table(conditions, objects, scene)
    assert has(table, "FAINT").tolist() == [False, True] and table.snr[1] > 6
    assert set(np.unique(scene.segmentation)) == {0, 1}


def test_an_object_centred_outside_keeps_what_reaches_into_the_field(conditions, make_objects):
    objects = make_objects({"x": -2.0, "y": 48.0}, {"x": -30.0, "y": 48.0})
    scene = build_scene(Sky(shape=(96, 80)), conditions, objects)
    table = truth_table(conditions, objects, scene)
    assert table.x.tolist() == [-2.0] and has(table, "EDGE").all() and table.x_min[0] == 0 and table.x_max[0] > 1
    assert scene.light[2, 48, 0] > 0


def test_boxes_are_like_those_of_a_classical_detector(ordinary_field, truth):
    sep = pytest.importorskip("sep", reason='needs the extra "classical"')
    weighted = total = 0.0
    for band in "ugriz":
        with fits.open(ordinary_field / f"{band}.fits") as file:
            inverse = 1 / np.median(file["VARIANCE"].data)
            weighted, total = weighted + file[0].data.astype(float) * inverse, total + inverse
    found = sep.extract(np.ascontiguousarray(weighted / np.sqrt(total)), 1.5, minarea=5)
    alone = truth[~has(truth, "BLENDED") & ~has(truth, "EDGE") & (truth.snr > 20)]
    distance = np.hypot(found["x"][None] - alone.x.to_numpy()[:, None], found["y"][None] - alone.y.to_numpy()[:, None])
    nearest = distance.argmin(axis=1)
    assert (distance.min(axis=1) < 2).mean() > 0.95
    theirs = np.stack([found["xmin"], found["ymin"], found["xmax"] + 1, found["ymax"] + 1], axis=1)[nearest]
    ours = alone[BOX].to_numpy(float)
    sides = np.minimum(theirs[:, 2:], ours[:, 2:]) - np.maximum(theirs[:, :2], ours[:, :2])
    shared = np.clip(sides, 0, None).prod(axis=1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (theirs, ours)]
    assert np.median(shared / (sum(areas) - shared)) > 0.6


# -------------------------------------------------------------------------------------------- processes and new columns
def test_the_scene_does_not_depend_on_the_number_of_processes():
    sky = Sky(shape=(160, 180), knot_fraction=(0.2, 0.5), star_density=(3.0, 3.0))
    field, told = draw_field(sky, 0, seed=2), []
    alone = build_scene(sky, field.conditions, field.objects, workers=1)
    three = build_scene(sky, field.conditions, field.objects, workers=3, progress=told.append)
    for name in ("light", "snr", "flux_error", "boxes", "area_pix", "edge", "segmentation"):
        assert getattr(alone, name).tobytes() == getattr(three, name).tobytes(), name
    tables = [truth_table(field.conditions, field.objects, scene) for scene in (alone, three)]
    pd.testing.assert_frame_equal(*tables)
    assert sum(told) == len(field.objects) > 128  # more than two chunks


def test_light_is_added_once_and_in_full(conditions, make_objects):
    """The field is the sum of its objects alone."""
    rows = [{"x": 20.0 + 6 * k, "y": 20.0 + 8 * k, "bulge_fraction": 0.3} for k in range(6)]
    together = build_scene(Sky(shape=(96, 80)), conditions, make_objects(*rows)).light
    alone = sum(build_scene(Sky(shape=(96, 80)), conditions, make_objects(row)).light.astype(float) for row in rows)
    np.testing.assert_allclose(together, alone, atol=1e-3)


def test_the_flux_error_is_the_scatter_of_a_matched_flux(conditions, make_objects):
    objects = make_objects({"x": 40.2, "y": 48.1, "estimated_snr": 1e4}, {"x": 15.0, "y": 15.0, "class_id": 1})
    scene = build_scene(Sky(shape=(96, 80)), conditions, objects.iloc[:1])
    light, sigma, gain = scene.light[2].astype(float), conditions.sky_sigma_njy()[2], conditions.electrons_per_njy()[2]
    profile, rng, fluxes = light / 20_000, np.random.default_rng(0), []
    weight = profile / (sigma**2 + light / gain)
    for _ in range(400):
        image, _ = add_noise(light.astype(np.float32), sigma, gain, True, rng)
        fluxes.append((image * weight).sum() / (profile * weight).sum())
    assert np.std(fluxes) == pytest.approx(scene.flux_error[0, 2], rel=0.12)
    assert np.mean(fluxes) == pytest.approx(20_000, abs=4 * scene.flux_error[0, 2] / 20)
    # A point source at the depth: five sigma, and the photons of a faint source do not count.
    faint = make_objects({"x": 40.0, "y": 40.0, "class_id": 1, **{f"flux_{band}": 10.0 for band in "ugriz"}})
    errors = build_scene(Sky(shape=(96, 80)), conditions, faint).flux_error[0]
    depth = 10 ** (0.4 * (31.4 - np.asarray(conditions.depth_5sigma)))
    np.testing.assert_allclose(5 * errors, depth, rtol=0.02)


def test_bands_without_light_have_a_flux_error_all_the_same(conditions, make_objects):
    objects = make_objects({"x": 40.0, "y": 40.0, "flux_u": 0.0})
    scene = build_scene(Sky(shape=(96, 80)), conditions, objects)
    assert not scene.light[0].any() and 0 < scene.flux_error[0, 0] < 1e4


def test_neighbours_are_counted_where_outlines_touch(conditions, make_objects):
    star = {"class_id": 1, "y": 40.0}
    objects = make_objects(*({"x": x, **star} for x in (12.0, 20.0, 62.0)), {"x": 60.0, "y": 90.0, "class_id": 1})
    scene = build_scene(Sky(shape=(96, 80)), conditions, objects)
    table = truth_table(conditions, objects, scene)
    assert table.neighbours.tolist() == [1, 1, 0, 0] and has(table, "BLENDED").tolist() == [True, True, False, False]
    np.testing.assert_allclose(table.neighbour_arcsec, np.array([8, 8, 42, np.hypot(2, 50)]) * 0.396, rtol=1e-5)


def test_counted_neighbours_are_those_of_brute_force():
    sky = Sky(shape=(250, 250), depth_offset=(2.0, 2.0), galaxy_density=(2.0, 2.0))
    field = draw_field(sky, 0, seed=3)
    scene = build_scene(sky, field.conditions, field.objects)
    grown = []
    for outline in scene.outlines:
        whole = np.zeros((252, 252), dtype=bool)
        whole[1:-1, 1:-1][outline.where] = outline.inside
        grown.append((whole, ndimage.binary_dilation(whole, np.ones((3, 3)))))
    expected = [sum((wide & whole).any() for whole, _ in grown) - 1 for _, wide in grown]
    counts = count_neighbours(scene.outlines)
    assert counts.tolist() == expected and counts.max() > 3


def test_whole_outlines_decode_to_what_was_outlined(conditions, make_objects):
    bright, faint = ({f"flux_{band}": flux for band in "ugriz"} for flux in (60_000.0, 10_000.0))
    objects = make_objects({"x": 40.0, "y": 48.0, **bright}, {"x": 45.0, "y": 50.0, **faint}, {"x": 2.0, "y": 90.0})
    scene = build_scene(Sky(shape=(96, 80)), conditions, objects)
    table = amodal_table(scene.outlines)
    assert table.id.tolist() == [1, 2, 3] and list(table.columns) == ["id", "y0", "x0", "height", "width", "rle"]
    for row, outline in zip(table.itertuples(), scene.outlines, strict=True):
        inside = run_lengths.decode({"size": [row.height, row.width], "counts": row.rle})
        np.testing.assert_array_equal(inside.astype(bool), outline.inside)
        shown = scene.segmentation[row.y0 : row.y0 + row.height, row.x0 : row.x0 + row.width] == row.id
        assert not (shown & ~inside.astype(bool)).any()
    # The fainter one is whole: larger than what the segmentation shows of it.
    assert scene.area_pix[1] == run_lengths.area([{"size": [table.height[1], table.width[1]], "counts": table.rle[1]}])
    assert scene.area_pix[1] > (scene.segmentation == 2).sum() + 10
    assert len(amodal_table([])) == 0


def test_shear_and_parts_of_the_objects_are_in_the_truth(conditions, make_objects):
    objects = make_objects({"x": 40.0, "y": 48.0, "bulge_fraction": 0.25}).assign(g1=0.03, g2=-0.02, kappa=0.05)
    table = truth_table(conditions, objects, build_scene(Sky(shape=(96, 80)), conditions, objects))
    row = table.iloc[0]
    assert (row.g1, row.g2, row.kappa) == pytest.approx((0.03, -0.02, 0.05)) and row.bulge_share_r == 0.25
    assert row.disk_n == 1 and row.bulge_n == 4 and row.disk_hlr_arcsec == pytest.approx(0.6)
    assert "estimated_snr" not in table
