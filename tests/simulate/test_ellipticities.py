"""The ellipticity of lensed galaxies in the truth, against GalSim's algebra of shears and against a picture."""

import galsim
import numpy as np
import pandas as pd
import pytest

from deepdisc.simulate import Lensing, Sky
from deepdisc.simulate.fields import draw_field
from deepdisc.simulate.painter import Painter
from deepdisc.simulate.shapes import Shapes, lensed_ellipticity


@pytest.mark.parametrize(("g1", "g2"), [(0.0, 0.0), (0.05, -0.02), (0.3, 0.2)])
def test_it_is_the_ellipse_sheared(conditions, make_objects, g1, g2):
    galaxy = {"x": 40.0, "y": 40.0, "g1": g1, "g2": g2, "kappa": 0.03, "disk_axis_ratio": 0.6, "angle_rad": 0.7}
    e1, e2 = lensed_ellipticity(make_objects(galaxy), conditions)
    # North is up and East is left: a stretch along x is one along East-West, that is minus g1; g2 changes sign as well.
    lens = galsim.Shear(g1=-g1, g2=-g2)
    expected = lens + galsim.Shear(q=0.6, beta=0.7 * galsim.radians)
    assert (-e1[0], -e2[0]) == pytest.approx((expected.g1, expected.g2), abs=1e-5)


def test_disc_and_bulge_count_by_their_light(conditions, make_objects):
    parts = {"disk_axis_ratio": 0.5, "bulge_axis_ratio": 0.9, "angle_rad": np.pi / 2}
    shares = (0.0, 0.25, 1.0)
    table = make_objects(*({"x": 40.0, "y": 40.0, "bulge_fraction": share, **parts} for share in shares))
    e1, e2 = lensed_ellipticity(table, conditions)
    disk, bulge = (1 - 0.5) / (1 + 0.5), (1 - 0.9) / (1 + 0.9)
    assert e1 == pytest.approx([disk, 0.75 * disk + 0.25 * bulge, bulge], abs=1e-6)  # along y is along North
    assert e2 == pytest.approx([0, 0, 0], abs=1e-5)


def test_stars_and_pictures_of_real_galaxies_have_none(conditions, make_objects):
    place = {"x": 40.0, "y": 40.0}
    table = make_objects(place, {**place, "class_id": 1}, {**place, "stamp": 3}).fillna({"stamp": -1})
    e1, e2 = lensed_ellipticity(table, conditions)
    assert np.isnan(e1).tolist() == np.isnan(e2).tolist() == [False, True, True]
    dark = make_objects({**place, **{f"flux_{band}": 0.0 for band in "ugriz"}})
    assert np.isnan(lensed_ellipticity(dark, conditions)[0]).all()


def test_a_picture_sharper_than_the_galaxy_shows_it(conditions, make_objects):
    row = {"x": 40.0, "y": 40.0, "disk_hlr_arcsec": 6.0, "disk_axis_ratio": 0.6, "angle_rad": 1.1, "estimated_snr": 1e4}
    bright = {f"flux_{band}": 1e7 for band in "ugriz"}
    objects = make_objects({**row, **bright, "g1": 0.1, "g2": 0.05})
    light = Painter(conditions).paint(Shapes.of(objects, conditions), 0).light[2].astype(float)
    shape = galsim.hsm.FindAdaptiveMom(galsim.Image(light, scale=1.0)).observed_shape
    sky = conditions.grid.shear_to_sky(np.array([40.0]), np.array([40.0]), np.array([shape.g1]), np.array([shape.g2]))
    assert np.ravel(sky) == pytest.approx(np.ravel(lensed_ellipticity(objects, conditions)), abs=0.015)


def test_every_field_says_it():
    sky = Sky(shape=(96, 96), bands=["g", "r"], depth_offset=(1.0, 1.0), lensing=Lensing(g1=(0.1, 0.1)))
    lensed = draw_field(sky, 0, 3).objects
    plain = draw_field(Sky(**{**vars(sky), "lensing": None}), 0, 3).objects
    galaxy = plain.class_id == 0
    pd.testing.assert_series_equal(plain.e1.notna(), galaxy, check_names=False)
    # e' = (e + g) / (1 + g* e), whose mean over all angles is g.
    change = (lensed.e1 - plain.e1)[galaxy]
    assert galaxy.sum() > 100 and change.mean() == pytest.approx(0.1, abs=0.01)
