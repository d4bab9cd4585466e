"""The torch renderer draws what GalSim draws: its parts, single galaxies, whole fields, and the truth per pixel."""

import dataclasses

import galsim
import numpy as np
import pandas as pd
import pytest
import torch

from deepdisc.simulate import Sky, sersic
from deepdisc.simulate.agreement import deviations, worst
from deepdisc.simulate.conditions import draw_conditions
from deepdisc.simulate.fields import draw_field
from deepdisc.simulate.instruments import FOLDER, Instrument
from deepdisc.simulate.labelling import render_labelled
from deepdisc.simulate.painter import Painter
from deepdisc.simulate.renderer import Renderer
from deepdisc.simulate.scene import build_scene
from deepdisc.simulate.shapes import Shapes

SHIPPED = sorted(path.stem for path in FOLDER.glob("*.yaml"))
INDICES = (0.5, 1.0, 2.5, 4.0, 6.0)


def instrument_conditions(name, bands=None, side=1100):
    sky = Sky(instrument=name, bands=bands, shape=(side, side))
    return draw_conditions(sky, Instrument.load(name, bands), 0, np.random.default_rng(0))


def in_noise(conditions, light, reference):
    """Differences in units of each pixel's noise, the photons of the light included."""
    sigma, gain = conditions.sky_sigma_njy()[:, None, None], conditions.electrons_per_njy()[:, None, None]
    return (np.asarray(light) - reference) / np.sqrt(sigma**2 + np.maximum(reference, 0) / gain)


@pytest.mark.parametrize("n", [0.5, 1.0, 2.5, 4.0])
def test_the_transform_of_a_profile_is_galsims(n):
    fine = galsim.GSParams(kvalue_accuracy=1e-6)
    profile = galsim.Sersic(n, half_light_radius=1, gsparams=fine)
    place = np.arange(0, sersic.K_STEPS, 50)
    k = np.exp(sersic.LN_K_FIRST + sersic.LN_K_STEP * place)
    expected = np.array([profile.kValue(one, 0).real for one in k])
    np.testing.assert_allclose(sersic.transform(n)[place], expected, atol=3e-5)


@pytest.mark.parametrize("n", INDICES)
def test_gaussians_add_up_to_the_light_of_a_profile(n):
    weights, sigma = sersic.gaussians(n)
    profile = galsim.Sersic(n, half_light_radius=1, gsparams=galsim.GSParams(integration_relerr=1e-8))
    for radius in (0.1, 0.5, 1.0, 2.0, 5.0):
        within = (weights * (1 - np.exp(-0.5 * (radius / sigma) ** 2))).sum()
        assert within == pytest.approx(enclosed(profile, radius), abs=3e-3)


def enclosed(profile, radius):
    """The light within a radius, by summing GalSim's surface brightness over rings."""
    edges = np.geomspace(1e-7, radius, 4000)
    middle = np.sqrt(edges[1:] * edges[:-1])
    return sum(profile.xValue(r, 0) * w for r, w in zip(middle, np.pi * np.diff(edges**2), strict=True))


def check(table):
    figures = worst(table)
    assert (figures.flux < 0.005).all(), figures
    assert (figures["size"] < 0.01).all() and (figures.ellipticity < 0.01).all(), figures
    assert (figures.pixel < 0.1).all(), figures
    assert table["size"].isna().mean() < 0.2  # where GalSim's own moments do not converge


@pytest.mark.parametrize(
    ("name", "bands", "snr"),
    [("sdss", ["g"], 30.0), ("nircam", ["F090W", "F444W"], 5.0), ("nircam", ["F115W"], 1000.0), ("csst", ["y"], 30.0)],
)
def test_galaxies_agree_with_galsim(name, bands, snr):
    conditions = instrument_conditions(name, bands)
    check(deviations(conditions, (0.5, 1.0, 4.0), (0.1, 0.7), (0.2, 3.0), snr))


@pytest.mark.slow
@pytest.mark.parametrize("snr", [5.0, 30.0, 1000.0])
@pytest.mark.parametrize("name", SHIPPED)
def test_every_galaxy_agrees_with_galsim_in_every_band(name, snr):
    conditions = instrument_conditions(name)
    check(deviations(conditions, INDICES, (0.1, 1.0), (0.2, 1.0, 5.0), snr))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "band"), [("sdss", "r"), ("nircam", "F150W"), ("csst", "i")])
def test_large_galaxies_agree_with_galsim(name, band):
    conditions = instrument_conditions(name, [band])
    check(deviations(conditions, (0.5, 1.0, 2.5, 4.0), (0.25, 1.0), (50.0,), 300.0))


def test_a_field_agrees_with_the_painters():
    sky = Sky(shape=(220, 220), knot_fraction=(0.2, 0.5), psf_width_rms=0.05, psf_ellipticity_rms=0.03, psf_cells=2)
    field = draw_field(sky, 0, seed=4)
    assert len(np.unique(Shapes.of(field.objects, field.conditions).cell)) == 4 and (field.objects.knots > 0).any()
    scene = build_scene(sky, field.conditions, field.objects)
    rendered = render_labelled(sky, field.conditions, field.objects, Renderer(field.conditions))
    assert abs(in_noise(field.conditions, rendered.light, scene.light)).max() < 0.1
    np.testing.assert_allclose(rendered.light.sum(dim=(1, 2)), scene.light.sum(axis=(1, 2)), rtol=0.005)
    # The same truth, but for pixels where two objects are equally bright or an outline ends.
    rows = np.array([-1, *(outline.row for outline in scene.outlines)])
    np.testing.assert_array_equal(rendered.rows, rows[1:])
    assert (np.array([-1, *rendered.rows])[rendered.segmentation] == rows[scene.segmentation]).mean() > 0.999
    np.testing.assert_allclose(rendered.snr, scene.snr[rendered.rows], rtol=1e-3)
    assert (abs(rendered.boxes - scene.boxes[rendered.rows]) <= 1).mean() > 0.99
    np.testing.assert_allclose(rendered.area_pix, scene.area_pix[rendered.rows], rtol=0.1)
    np.testing.assert_array_equal(rendered.edge, scene.edge[rendered.rows])


def test_colour_gradients_knots_and_lensing_are_those_of_the_painter(conditions, make_objects):
    shares = {f"bulge_share_{band}": share for band, share in zip("ugriz", (0.0, 0.2, 0.4, 0.7, 1.0), strict=True)}
    objects = make_objects(
        {"x": 30.3, "y": 45.6, "angle_rad": 0.7, "g1": 0.2, "g2": -0.3, "kappa": 0.1, "bulge_n": 2.5, **shares},
        {"x": 55.8, "y": 60.1, "knots": 7, "knot_share": 0.6, "population_row": 12, "disk_n": 1.5},
        {"x": 60.2, "y": 20.4, "class_id": 1},
    )
    objects = objects.fillna({"g1": 0.0, "g2": 0.0, "kappa": 0.0, "knots": 0, "knot_share": 0.0}).assign(
        estimated_snr=1e4
    )
    scene = build_scene(Sky(shape=(96, 80)), conditions, objects)
    light = Renderer(conditions).render(objects).numpy()
    assert abs(in_noise(conditions, light, scene.light)).max() < 0.02


def test_real_galaxies_are_the_painters(conditions, make_objects, shared_data):
    path = shared_data / "data/images/hst_cosmos_realgalaxies_100/real_galaxy_catalog_26_extension_example.fits"
    objects = make_objects({"x": 40.0, "y": 40.0, "stamp": 3}, {"x": 20.0, "y": 70.0, "stamp": -1})
    scene = build_scene(Sky(shape=(96, 80), real_galaxies=str(path)), conditions, objects)
    light = Renderer(conditions, real_galaxies=str(path)).render(objects).numpy()
    assert abs(in_noise(conditions, light, scene.light)).max() < 0.05


def test_the_picture_of_an_object_does_not_depend_on_what_else_is_drawn(conditions, make_objects):
    rows = [
        {"x": 20.0 + 7 * k, "y": 30.0 + 9 * k, "disk_hlr_arcsec": 0.2 * 2**k, "bulge_fraction": 0.2 * k}
        for k in range(5)
    ]
    renderer = Renderer(conditions)
    together = renderer.render(make_objects(*rows)).numpy()
    alone = sum(renderer.render(make_objects(row)).numpy().astype(np.float64) for row in rows)
    np.testing.assert_allclose(together, alone, atol=2e-4 * together.max())
    np.testing.assert_array_equal(together, renderer.render(make_objects(*rows)).numpy())


def test_objects_outside_and_empty_tables_are_no_trouble(conditions, make_objects):
    far = make_objects({"x": -500.0, "y": 10.0})
    assert not Renderer(conditions).render(far).any() and not Renderer(conditions).render(far[:0]).any()
    rendered = render_labelled(Sky(shape=(96, 80)), conditions, far[:0], Renderer(conditions))
    assert len(rendered.rows) == 0 and not rendered.segmentation.any() and rendered.boxes.shape == (0, 4)


def test_a_renderer_of_another_field_keeps_the_psfs_only_if_they_are_the_same(conditions, make_objects):
    objects = make_objects({"x": 40.0, "y": 40.0})
    first = Renderer(conditions)
    deeper = dataclasses.replace(conditions, exposure_factor=conditions.exposure_factor * 10)
    wider = dataclasses.replace(conditions, psf_width=conditions.psf_width * 1.3)
    for other in (deeper, wider):
        expected = Renderer(other).render(objects).numpy()
        np.testing.assert_array_equal(first.for_conditions(other).render(objects).numpy(), expected)
    peaks = [one.render(objects).amax() for one in (first, first.for_conditions(wider))]
    assert peaks[1] < 0.8 * peaks[0]


@pytest.mark.gpu
def test_a_gpu_draws_the_same():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    field = draw_field(Sky(shape=(200, 200)), 0, seed=4)
    pictures = [Renderer(field.conditions, device).render(field.objects).cpu().numpy() for device in ("cpu", "cuda")]
    assert abs(in_noise(field.conditions, pictures[1], pictures[0])).max() < 0.01


def test_the_painter_draws_shapes_at_every_accuracy(conditions, make_objects):
    """The painter's levels of accuracy differ by less than the noise of the objects they are for."""
    for snr, allowed in ((25.0, 0.1), (250.0, 0.1), (2500.0, 0.1)):
        flux = snr * float(conditions.sky_sigma_njy()[2]) * 6
        row = {"x": 40.4, "y": 40.2, "bulge_fraction": 0.4, **{f"flux_{band}": flux for band in "ugriz"}}
        pictures = []
        for estimate in (snr, 1e6):
            shapes = Shapes.of(make_objects({**row, "estimated_snr": estimate}), conditions)
            pictures.append(Painter(conditions).paint(shapes, 0).light)
        assert abs(in_noise(conditions, pictures[0], pictures[1])).max() < allowed


def test_truth_columns_stay_with_their_objects():
    """Rows of the rendered truth are rows of the objects: a star is labelled where the star is."""
    sky = Sky(shape=(200, 200), star_density=(5.0, 5.0))
    field = draw_field(sky, 1, seed=8)
    rendered = render_labelled(sky, field.conditions, field.objects, Renderer(field.conditions))
    labelled = field.objects.iloc[rendered.rows].reset_index(drop=True)
    inside = labelled.x.between(5, 194) & labelled.y.between(5, 194) & ~pd.Series(rendered.edge)
    boxes = rendered.boxes[inside]
    x, y = labelled.x[inside].to_numpy() + 0.5, labelled.y[inside].to_numpy() + 0.5
    assert len(boxes) > 5 and (labelled.class_id[inside] == 1).any()
    assert ((boxes[:, 0] <= x) & (x <= boxes[:, 2]) & (boxes[:, 1] <= y) & (y <= boxes[:, 3])).all()
