"""What fluxes, redshifts and shears are compared with is as good as it is said to be."""

import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from deepdisc.sky import PixelGrid

pytest.importorskip("sep", reason="needs the extra `classical`")
galsim = pytest.importorskip("galsim", reason="needs the extra `sim`")
DRAWS = 40  # of the noise


@pytest.fixture(scope="module", autouse=True)
def benchmarks(repository):
    sys.path.insert(0, str(repository / "benchmarks"))
    yield
    sys.path.remove(str(repository / "benchmarks"))


# -------------------------------------------------------------------------------------------------------------- fluxes
@pytest.fixture(scope="module")
def field():
    """A small field with a misaligned band, and one bright galaxy in its middle."""
    from deepdisc.simulate import Effects, Sky
    from deepdisc.simulate.fields import draw_field

    sky = Sky(bands=["g", "r"], shape=(96, 96), effects=Effects(misalignment_pix=0.3), population_part="test")
    drawn = draw_field(sky, 0, seed=4)
    one = drawn.objects[drawn.objects.class_id == 0].nlargest(1, "disk_hlr_arcsec").assign(x=47.3, y=48.9)
    for band, flux in (("g", 2.0e5), ("r", 4.0e5)):
        one[f"flux_{band}"] = flux
    return drawn, one.reset_index(drop=True)


def test_optimal_weights_are_unbiased_and_reach_the_variance_of_the_matched_filter(field):
    from baseline_profiles import optimal_fluxes

    from deepdisc.simulate.observe import displaced
    from deepdisc.simulate.painter import Painter
    from deepdisc.simulate.shapes import Shapes

    drawn, one = field
    stamp = Painter(drawn.conditions).paint(Shapes.of(one, drawn.conditions), 0)
    light = np.zeros((2, 96, 96))
    where, inside = stamp.clip((96, 96))
    light[:, *where] = stamp.light[:, *inside]
    light = np.stack([displaced(part, shift) for part, shift in zip(light, drawn.effects.shift_pix, strict=True)])
    sigma, gain = drawn.conditions.sky_sigma_njy()[:, None, None], drawn.conditions.electrons_per_njy()[:, None, None]
    noise, mask = np.sqrt(sigma**2 + np.maximum(light, 0) / gain), np.zeros(light.shape, bool)
    exact = optimal_fluxes(drawn, one, light, mask)
    rng = np.random.default_rng(0)
    drawn_often = pd.concat(
        [optimal_fluxes(drawn, one, light + noise * rng.standard_normal(light.shape), mask) for _ in range(DRAWS)]
    )
    for i, band in enumerate("gr"):
        assert exact[f"flux_{band}"][0] == pytest.approx(one[f"flux_{band}"][0], rel=2e-3)
        error = exact[f"fluxerr_{band}"][0]
        assert error == pytest.approx(stamp.flux_error[i], rel=5e-3)  # the painter's own: Horne 1986, eq. 9
        pull = (drawn_often[f"flux_{band}"] - one[f"flux_{band}"][0]) / error
        assert abs(pull.mean()) < 4 / np.sqrt(DRAWS) and pull.std() == pytest.approx(1, abs=4 / np.sqrt(2 * DRAWS))


def test_masked_pixels_cost_signal_but_no_flux(field):
    from baseline_profiles import optimal_fluxes

    drawn, one = field
    light = np.zeros((2, 96, 96))
    blank = optimal_fluxes(drawn, one, light, np.zeros(light.shape, bool))
    assert (blank[["flux_g", "flux_r"]].to_numpy() == 0).all()
    masked = np.zeros(light.shape, bool)
    masked[0, :, 48:], masked[1] = True, True
    part = optimal_fluxes(drawn, one, np.where(masked, np.nan, light), masked)
    assert part["flux_g"][0] == 0 and part["fluxerr_g"][0] > 1.2 * blank["fluxerr_g"][0]
    assert part[["flux_r", "fluxerr_r"]].isna().to_numpy().all()


def test_a_field_is_drawn_again_from_its_recipe(field, tmp_path):
    from baseline_profiles import read_recipe, redraw

    from deepdisc.errors import InputError
    from deepdisc.simulate.instruments import Instrument
    from deepdisc.simulate.writing import describe, write_recipe

    drawn, _ = field
    write_recipe(tmp_path, drawn.sky, Instrument.load("sdss", ["g", "r"]), 4, [tmp_path], [describe(drawn.conditions)])
    recipe = read_recipe(tmp_path / "recipe.yaml")
    pd.testing.assert_frame_equal(redraw(recipe, 0).objects, drawn.objects)
    recipe["fields"][0]["conditions"]["ebv"] += 0.1
    with pytest.raises(InputError, match="field 0 cannot be drawn again"):
        redraw(recipe, 0)


def test_isolated_objects_and_blends_by_hand(field):
    from measurement_objects import with_surroundings

    drawn, _ = field
    fwhm = float(drawn.conditions.psf_fwhm_arcsec[0])  # points: 2 r50 is the FWHM, in pixels of 0.396 arcsec
    near = 0.9 * fwhm / 0.396
    table = pd.DataFrame({"x": [10, 10 + near, 50, 50 + near, 80.0], "y": 20.0, "hlr_arcsec": 0.0, "flags": 0})
    table = table.assign(flux_g=[1.0, 1.9, 1.0, 2.1, 1.0], neighbours=[1, 1, 1, 1, 0], blendedness=[0.2] * 4 + [0.001])
    found = with_surroundings(table.assign(flux_r=table["flux_g"]), drawn)
    assert found["blend_g"].tolist() == [True, True, False, False, False]
    assert found["isolated"].tolist() == [False] * 4 + [True]
    assert not with_surroundings(table.assign(flux_r=1.0, flags=1), drawn)[["blend_g", "isolated"]].to_numpy().any()


# ----------------------------------------------------------------------------------------------------------- redshifts
def test_template_fit_recovers_the_redshifts_of_noiseless_fluxes():
    from baseline_templates import TemplateFit

    from deepdisc.simulate.instruments import Instrument
    from deepdisc.simulate.population import Population

    filters = [band.filter for band in Instrument.load("sdss", ["u", "g", "r", "i", "z"]).bands]
    population = Population.load("wide", "train")
    galaxies = population.rows[population.rows.class_id == 0].sample(1500, random_state=1)
    small = Population(
        galaxies, galaxies, population.density_per_deg2, population.atoms, population.star_angstrom, None
    )
    fit = TemplateFit(small, filters, spread=0.005, shifts=5, floor=0.0)
    some = galaxies[galaxies.redshift < 1.2].iloc[:60]
    flux, _ = population.light(some, filters)
    z = some.redshift.to_numpy(float)
    exact = fit.posterior(flux, 0.003 * flux)
    assert np.quantile(np.abs(exact.median() - z) / (1 + z), 0.9) < 0.006
    # With noise the widths are those of the errors, and a band that is missing makes them larger.
    noisy = flux * (1 + 0.05 * np.random.default_rng(0).standard_normal(flux.shape))
    wide, blind = (
        fit.posterior(noisy, 0.05 * flux),
        fit.posterior(np.where([1, 0, 0, 1, 1], noisy, np.nan), 0.05 * flux),
    )
    u = wide.cdf(z)
    assert np.mean((u > 0.025) & (u < 0.975)) > 0.8
    spread = [np.median(np.sqrt(pdf.second_moment() - pdf.mean() ** 2)) for pdf in (exact, wide, blind)]
    assert spread[0] < 0.5 * spread[1] < 0.5 * spread[2]


def test_trees_learn_colours():
    baselines = pytest.importorskip("baselines")
    pytest.importorskip("sklearn", reason="needs the extra `bench`")
    rng = np.random.default_rng(0)
    z = rng.uniform(0, 1, 1500)
    features = pd.DataFrame({"colour": z * 2 + rng.normal(0, 0.05, 1500), "noise": rng.normal(size=1500)})
    trees = baselines.train_boosted_trees(features[:1200], z[:1200])
    assert np.std(trees.predict(features[1200:].to_numpy()) - z[1200:]) < 0.2 * np.std(z)


# -------------------------------------------------------------------------------------------------------------- shears
class ShearedField:
    """Galaxies on a grid in two bands, in ring pairs of intrinsic shape, all sheared by (0.05, -0.03) in pixel axes."""

    bands = ["g", "r"]
    shape = (400, 400)
    pixel_scale_arcsec = 0.4
    metadata = {"bands": {band: {"psf_fwhm_arcsec": 1.0} for band in bands}}
    grid = PixelGrid(shape, 0.4)
    g1, g2 = 0.05, -0.03

    def __init__(self):
        rng = np.random.default_rng(2)
        psf = galsim.Moffat(beta=3, fwhm=2.5).shear(g1=0.03, g2=0.02)
        self.psf = psf.drawImage(nx=25, ny=25, scale=1).array
        self.x, self.y = (part.ravel() + 24.6 for part in np.meshgrid(np.arange(8) * 50.0, np.arange(8) * 50.0))
        picture = galsim.ImageD(400, 400, xmin=0, ymin=0, scale=1)
        angle = np.repeat(rng.uniform(0, np.pi, 32), 2) + np.tile([0, np.pi / 2], 32)
        for x, y, turn in zip(self.x, self.y, angle, strict=True):
            galaxy = galsim.Exponential(half_light_radius=2.5, flux=1e4).shear(g=0.25, beta=turn * galsim.radians)
            seen = galsim.Convolve(galaxy.shear(g1=self.g1, g2=self.g2), psf)
            seen.drawImage(picture, center=galsim.PositionD(x, y), add_to_image=True)
        noise = rng.normal(0, 1, (2, 400, 400)) * np.array([3.0, 6.0])[:, None, None]
        self.image = (np.array([1.0, 2.0])[:, None, None] * picture.array + noise).astype(np.float32)
        self.variance = np.broadcast_to(np.array([9.0, 36.0])[:, None, None], self.image.shape).astype(np.float32)

    def read(self, y0, x0, y1, x1):
        rows = slice(y0, y1), slice(x0, x1)
        image = self.image[:, *rows]
        return SimpleNamespace(image=image, variance=self.variance[:, *rows], mask=np.zeros(image.shape, bool))

    def psf_at(self, *box):
        return np.stack([self.psf, self.psf])


def test_shapes_give_the_shear_of_a_ring():
    from baseline_shear import hsm_ellipticities, shears_from_ellipticities

    field = ShearedField()
    e1, e2, error = hsm_ellipticities(field, field.x, field.y)
    assert np.isfinite(e1).all() and (error < 0.1).all()
    found = shears_from_ellipticities(e1, e2, error)
    assert found["g1"].mean() == pytest.approx(field.g1, abs=0.006)
    assert found["g2"].mean() == pytest.approx(field.g2, abs=0.006)
    missing = shears_from_ellipticities(np.append(e1, np.nan), np.append(e2, np.nan), np.append(error, np.nan))
    np.testing.assert_allclose(missing["g1"][:-1], found["g1"])
    assert missing.iloc[-1].isna().all()
