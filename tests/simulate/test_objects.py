"""Objects of a field: numbers, places, light, shapes, against the catalogues that the populations were made from."""

import galsim
import numpy as np
import pandas as pd
import pytest
from astropy.table import Table

from deepdisc.config import load
from deepdisc.data.mosaic import Mosaic
from deepdisc.errors import InputError
from deepdisc.photometry import mag_from_njy
from deepdisc.simulate import Sky, simulate
from deepdisc.simulate.conditions import draw_conditions
from deepdisc.simulate.instruments import Instrument
from deepdisc.simulate.objects import draw_objects, effective_hlr_arcsec, lit_objects
from deepdisc.simulate.population import GALAXY, STAR, Population


def drawn(seed=0, **settings):
    """Objects of a large field, not drawn, and the area (deg2) of the field with its margin."""
    sky = Sky(**{"shape": (3000, 3000), "bands": ("r",), "depth_offset": (3.0, 3.0), "draw_snr": 0.0, **settings})
    rng = np.random.default_rng(seed)
    conditions = draw_conditions(sky, Instrument.load(sky.instrument, sky.bands), 0, rng)
    objects = draw_objects(sky, conditions, Population.load(sky.population, sky.population_part), rng)
    return objects, ((sky.shape[0] + 2 * 40 / 0.396) * 0.396 / 3600) ** 2


@pytest.mark.parametrize("factor", [1.0, 2.5])
def test_counts_follow_the_stated_density(factor):
    objects, area = drawn(galaxy_density=(factor, factor), star_density=(factor, factor))
    population = Population.load("wide")
    magnitude = mag_from_njy(population.light(population.rows.loc[objects.population_row], ["lsst_r"])[0][:, 0])
    # Per square degree, counted in the source tables: deepdisc/simulate/data/README.md.
    for kind, faintest, density in ((GALAXY, 22.0, 15_960), (GALAXY, 24.0, 79_400), (STAR, 21.0, 4_080)):
        expected = density * factor * area
        number = ((objects.class_id == kind) & (magnitude < faintest)).sum()
        assert abs(number - expected) < 4 * np.sqrt(expected) + 0.02 * expected


def test_positions_are_uniform_over_field_and_margin_unless_clustered():
    uniform, _ = drawn(star_density=(0, 0))
    clustered, _ = drawn(star_density=(0, 0), clustered_fraction=1.0)
    cells = [np.histogram2d(one.y, one.x, bins=100)[0] for one in (uniform, clustered)]
    dispersion = [counts.var() / counts.mean() for counts in cells]
    assert dispersion[0] == pytest.approx(1, abs=0.06) and dispersion[1] > 1.3
    assert uniform.x.min() < -100 and uniform.x.max() > 3099 and uniform.y.min() < -100
    assert clustered.x.mean() == pytest.approx(1499.5, abs=30)


def test_pairs_are_a_few_psf_widths_apart():
    settings = {"star_density": (0, 0), "galaxy_density": (0.05, 0.05), "depth_offset": (0, 0), "label_snr": 10.0}

    def close(objects):
        bright = objects[objects.estimated_snr > 10.0]
        distance = np.hypot(*(bright[[axis]].to_numpy() - bright[axis].to_numpy() for axis in "xy"))
        np.fill_diagonal(distance, np.inf)
        nearest = distance.min(axis=1) * 0.396 / 1.32
        return nearest < 3.01, nearest

    alone, _ = close(drawn(**settings)[0])
    paired, nearest = close(drawn(pair_fraction=0.8, pair_separation_fwhm=(0.5, 3.0), **settings)[0])
    assert alone.mean() < 0.05 and paired.mean() == pytest.approx(0.8, abs=0.05)
    assert np.sort(nearest)[: int(0.7 * len(nearest))].min() == pytest.approx(0.5, abs=0.3)


def test_reddening_dims_and_reddens():
    clear, _ = drawn(bands=("u", "z"), ebv=(0.0, 0.0))
    dusty, _ = drawn(bands=("u", "z"), ebv=(0.3, 0.3))
    np.testing.assert_array_equal(clear.population_row, dusty.population_row)
    # Schlafly & Finkbeiner 2011, table 6, R_V = 3.1: 4.239 in u and 1.263 in z.
    np.testing.assert_allclose(dusty.mag_u - clear.mag_u, 0.3 * 4.239, atol=1e-6)
    np.testing.assert_allclose(clear.flux_z / dusty.flux_z, 10 ** (0.4 * 0.3 * 1.263), rtol=1e-6)


def test_the_held_out_part_holds_no_row_of_the_training_part():
    train, test, every = (Population.load("wide", part).rows for part in ("train", "test", "all"))
    assert set(train.index).isdisjoint(test.index) and len(train) + len(test) == len(every)
    assert 0.18 < len(test) / len(every) < 0.22
    assert not every.duplicated(["redshift", "light_0", *(f"star_{k}" for k in range(1, 7))]).any()
    objects, _ = drawn(population_part="test")
    assert set(objects.population_row) <= set(test.index)
    # Each part stands for the whole: as many objects per area.
    assert Population.load("wide", "test").density_per_deg2 == Population.load("wide", "all").density_per_deg2


# ---------------------------------------------------------------------------------- against the source catalogues
@pytest.fixture(scope="module")
def nircam_objects():
    """All objects of a NIRCam field of 8192 x 8192 pixels, and its area with the margin (arcmin2)."""
    sky = Sky(instrument="nircam", population="deep", shape=(8192, 8192), draw_snr=0.0)
    rng = np.random.default_rng(11)
    conditions = draw_conditions(sky, Instrument.load("nircam"), 0, rng)
    objects = draw_objects(sky, conditions, Population.load("deep"), rng)
    return objects, ((8192 + 2 * 512) * 0.03 / 60) ** 2


@pytest.fixture(scope="module")
def goods_south(shared_data):
    """The galaxies of the 3D-HST catalogue with a redshift, and their area (arcmin2)."""
    table = Table.read(shared_data / "data/catalogues/sim_inputs/goodss_3dhst_jwst_galfit.fits.gz").to_pandas()
    table["redshift"] = table.z_spec.where(table.z_spec > 0, table.z_phot)
    return table[table.star_flag != 1], 182.75


def test_number_counts_are_those_of_the_catalogue_and_go_on_beyond_it(nircam_objects, goods_south):
    (objects, area), (source, source_area) = nircam_objects, goods_south
    galaxies = objects[objects.class_id == GALAXY]
    for low, high in ((20, 22), (22, 24), (24, 25), (25, 25.5)):
        expected = source["mag_nircam-f150w"].between(low, high).sum() / source_area * area
        number = galaxies.mag_F150W.between(low, high).sum()
        assert abs(number - expected) < 4 * np.sqrt(expected) + 0.03 * expected
    # Beyond the catalogue: log N rises by 0.2 per magnitude.
    bins = np.histogram(galaxies.mag_F150W, np.arange(26, 31.1, 1.0))[0]
    assert np.diff(np.log10(bins)) == pytest.approx(np.full(4, 0.2), abs=0.06)


@pytest.mark.parametrize(("blue", "red"), [("F090W", "F150W"), ("F150W", "F277W"), ("F277W", "F444W")])
def test_colours_against_redshift_are_those_of_the_catalogue(goods_south, blue, red):
    source = goods_south[0]
    source = source[source["mag_nircam-f150w"] < 25.5]
    theirs = source[f"mag_nircam-{blue.lower()}"] - source[f"mag_nircam-{red.lower()}"]
    population = Population.load("deep")
    rows = population.rows[(population.rows.class_id == GALAXY) & (population.rows.weight == 1)]
    mags = mag_from_njy(population.light(rows, [f"nircam_{band}" for band in (blue, red, "F150W")])[0])
    bright = mags[:, 2] < 25.5
    ours, redshift = (mags[:, 0] - mags[:, 1])[bright], rows.redshift[bright]
    for low, high in ((0.3, 0.8), (0.8, 1.4), (1.4, 2.2), (2.2, 3.5)):
        wanted = np.percentile(theirs[source.redshift.between(low, high)], [25, 50, 75])
        assert np.percentile(ours[redshift.between(low, high)], [25, 50, 75]) == pytest.approx(wanted, abs=0.15)


def test_redshifts_and_sizes_are_those_of_the_catalogue(nircam_objects, goods_south):
    objects, source = nircam_objects[0], goods_south[0]
    galaxies = objects[(objects.class_id == GALAXY) & (objects.mag_F150W < 25)]
    source = source[source["mag_nircam-f150w"] < 25]
    wanted = np.percentile(source.redshift, [10, 25, 50, 75, 90])
    assert np.percentile(galaxies.redshift, [10, 25, 50, 75, 90]) == pytest.approx(wanted, rel=0.15)
    good = source[(source.f == 0) & (source.re > 0)]
    for low, high in ((21, 23), (23, 24), (24, 25)):
        theirs = np.median((good.re * np.sqrt(good.q))[good["mag_nircam-f150w"].between(low, high)])
        ours = np.median(effective_hlr_arcsec(galaxies[galaxies.mag_F150W.between(low, high)]))
        assert ours == pytest.approx(theirs, rel=0.15)


def test_a_csst_field_has_the_counts_and_colours_of_cosmodc2(shared_data):
    sky = Sky(instrument="csst", population="wide", shape=(8192, 8192), draw_snr=0.0, star_density=(0, 0))
    rng = np.random.default_rng(3)
    conditions = draw_conditions(sky, Instrument.load("csst"), 0, rng)
    objects = draw_objects(sky, conditions, Population.load("wide"), rng)
    source = Table.read(shared_data / "data/catalogues/sim_inputs/cosmodc2_100k_ugrizy_z.fits.gz").to_pandas()
    area = ((8192 + 2 * 512) * 0.074 / 3600) ** 2 / 0.1722  # in units of the area that the table stands for
    for low, high in ((20, 22), (22, 23), (23, 24), (24, 25)):
        expected = source.r.between(low, high).sum() * area
        number = objects.mag_r.between(low, high).sum()
        assert abs(number - expected) < 4 * np.sqrt(expected) + 0.05 * expected
    bright, theirs = objects[objects.mag_r < 24.5], source[source.r < 24.5]
    for low, high in ((0.2, 0.5), (0.5, 0.8), (0.8, 1.2), (1.2, 2.0)):
        ours = bright[bright.redshift.between(low, high)]
        them = theirs[theirs.redshift.between(low, high)]
        assert np.median(ours.mag_g - ours.mag_r) == pytest.approx(np.median(them.g - them.r), abs=0.1)
        assert np.median(ours.mag_r - ours.mag_i) == pytest.approx(np.median(them.r - them.i), abs=0.1)


# ------------------------------------------------------------------------------------------------ places, dust, shapes
def placed(part="all", seed=0, **settings):
    """Objects of a NIRCam field that lie as in the catalogue."""
    given = {"instrument": "nircam", "bands": ("F200W",), "population": "deep", "positions": "catalogue"}
    sky = Sky(**{**given, "shape": (3000, 3000), "population_part": part, "draw_snr": 0.0, **settings})
    rng = np.random.default_rng(seed)
    conditions = draw_conditions(sky, Instrument.load("nircam", sky.bands), 0, rng)
    return draw_objects(sky, conditions, Population.load(sky.population, part), rng), conditions


def test_places_of_the_catalogue_are_kept_but_for_turn_and_mirror():
    objects, _ = placed()
    population = Population.load("deep")
    own = objects[np.isfinite(population.rows.x_arcsec.reindex(objects.population_row)).to_numpy()]
    assert len(own) > 500 and not own.population_row.duplicated().any()
    sky = population.rows.loc[own.population_row, ["x_arcsec", "y_arcsec"]].to_numpy(float)
    field = own[["x", "y"]].to_numpy() * 0.03
    first, second = np.arange(0, len(own) - 1, 2), np.arange(1, len(own), 2)
    distances = [np.hypot(*(xy[first] - xy[second]).T) for xy in (sky, field)]
    np.testing.assert_allclose(distances[0], distances[1], atol=0.02)


def test_another_seed_shows_another_part_of_the_sky():
    rows = [set(placed(seed=seed)[0].population_row) for seed in (0, 1)]
    assert len(rows[0] & rows[1]) < 0.8 * len(rows[0])


def test_a_part_of_the_catalogue_is_as_dense_as_the_whole_and_holds_its_own_rows_only():
    (test, _), (every, _) = placed("test"), placed("all")
    assert set(test.population_row) <= set(Population.load("deep", "test").rows.index)
    bright = [(one.mag_F200W < 25.5).sum() for one in (test, every)]
    assert bright[0] == pytest.approx(bright[1], rel=0.15)


def test_density_factors_thin_and_thicken_the_catalogue():
    counts = [(placed(galaxy_density=(f, f))[0].mag_F200W < 26).sum() for f in (0.5, 1.0, 2.0)]
    assert counts[0] / counts[1] == pytest.approx(0.5, rel=0.25) and counts[2] / counts[1] == pytest.approx(2, rel=0.25)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"population": "wide"}, "the population has no positions; make it 'clustered'"),
        ({"shape": (30_000, 30_000)}, "sky.shape with its margin is 15.5 x 15.5 arcmin, more than .* cover"),
        ({"positions": "real"}, "sky.positions is 'real'; it must be one of clustered, catalogue"),
    ],
)
def test_places_that_cannot_be_had_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        placed(**settings)


def test_dust_varies_smoothly_over_a_field_and_dims_where_it_is():
    objects, conditions = placed(bands=("F090W",), ebv=(0.2, 0.2), ebv_rms=0.3, shape=(1500, 3000))
    assert objects.ebv.mean() == pytest.approx(0.2, rel=0.15) and 0.02 < objects.ebv.std() < 0.1
    population = Population.load("deep")
    bare = population.light(population.rows.loc[objects.population_row], ["nircam_F090W"])[0][:, 0]
    coefficient = conditions.bands[0].reddening
    np.testing.assert_allclose(objects.flux_F090W, bare * 10 ** (-0.4 * coefficient * objects.ebv), rtol=1e-6)
    # The map that is written for the mosaic says the same at the centres of its cells.
    cells, wcs = conditions.ebv_map()
    assert cells.shape == (16, 32)
    ra, dec = wcs.all_pix2world([5, 20], [3, 9], 0)
    x, y = conditions.grid.to_pixel(ra, dec)
    np.testing.assert_allclose(conditions.ebv_at(x, y), cells[[3, 9], [5, 20]], rtol=1e-6)


def test_the_size_of_disc_and_bulge_together_is_that_of_galsim():
    row = {"class_id": 0, "disk_hlr_arcsec": 0.8, "disk_n": 1.0, "disk_axis_ratio": 1.0, "bulge_hlr_arcsec": 0.3,
           "bulge_n": 4.0, "bulge_axis_ratio": 1.0}  # fmt: skip
    table = pd.DataFrame([{**row, "bulge_share_r": share} for share in (0.0, 0.35, 1.0)] + [{**row, "class_id": 1}])
    radius = effective_hlr_arcsec(table.fillna({"bulge_share_r": 0}))
    assert radius[[0, 2, 3]] == pytest.approx([0.8, 0.3, 0.0], rel=1e-6)
    mixture = galsim.Exponential(half_light_radius=0.8) * 0.65 + galsim.DeVaucouleurs(half_light_radius=0.3) * 0.35
    light = mixture.drawImage(nx=801, ny=801, scale=0.02, method="auto").array
    y, x = np.indices(light.shape) - 400
    assert light[np.hypot(x, y) * 0.02 <= radius[1]].sum() == pytest.approx(0.5, abs=0.005)


def test_bulges_are_redder_than_their_discs(nircam_objects):
    objects, _ = nircam_objects
    both = objects[objects.bulge_share_F200W.between(0.2, 0.8)]
    assert len(both) > 500
    assert (both.bulge_share_F444W >= both.bulge_share_F090W - 0.05).mean() > 0.85
    assert (both.bulge_share_F200W - both.bulge_share_F090W).median() > 0.02


def test_knots_are_in_blue_discs():
    objects, _ = placed(knot_fraction=(0.2, 0.4))
    assert objects.knot_share.between(0, 0.4).all() and (objects.knots[objects.class_id == STAR] == 0).all()
    assert ((objects.knots > 0) == (objects.knot_share > 0)).all() and (objects.knots > 0).mean() > 0.3
    none, _ = placed()
    assert (none.knots == 0).all() and (none.knot_share == 0).all()


def test_pictures_of_real_galaxies_stand_for_the_large_ones(shared_data):
    folder = shared_data / "data/images/hst_cosmos_realgalaxies_100"
    path = str(folder / "real_galaxy_catalog_26_extension_example.fits")
    objects, _ = placed(real_galaxies=path)
    plain, _ = placed()
    large = effective_hlr_arcsec(plain) >= 0.15
    np.testing.assert_array_equal(objects.stamp >= 0, large)
    assert objects.stamp.max() < 100 and objects.stamp[large].nunique() > 50
    np.testing.assert_allclose(effective_hlr_arcsec(objects)[large], effective_hlr_arcsec(plain)[large], rtol=1e-6)


def test_a_file_that_holds_no_real_galaxies_is_named(tmp_path):
    (tmp_path / "galaxies.fits").write_text("no FITS")
    with pytest.raises(InputError, match="sky.real_galaxies is .*galaxies.fits: no RealGalaxyCatalog"):
        placed(real_galaxies=str(tmp_path / "galaxies.fits"))


def test_objects_without_places_have_the_mean_reddening():
    _, conditions = placed(ebv=(0.1, 0.1))
    population = Population.load("deep")
    rows = population.rows.sample(50, random_state=1)
    objects = lit_objects(population, rows, conditions)
    assert (objects.ebv == conditions.ebv).all() and (objects.population_row == rows.index).all()
    assert "x" not in objects and len(objects) == 50


def test_the_map_of_dust_that_is_written_is_that_of_the_truth(tmp_path):
    sky = Sky(instrument="sdss", bands=("r",), shape=(256, 384), ebv=(0.1, 0.1), ebv_rms=0.3, draw_snr=3.0)
    (path,) = simulate(sky, tmp_path, seed=4)
    mosaic, truth = Mosaic.open(path), pd.read_parquet(tmp_path / "truth.parquet")
    inside = truth[truth.x.between(8, 375) & truth.y.between(8, 247)]
    read = [
        mosaic.ebv_at(int(y), int(x), int(y) + 1, int(x) + 1).mean() for x, y in zip(inside.x, inside.y, strict=True)
    ]
    assert np.ptp(inside.ebv) > 0.02
    np.testing.assert_allclose(read, inside.ebv, rtol=0.1)


@pytest.mark.parametrize(("name", "count"), [("nircam_deep", 9), ("csst_wide", 7)])
def test_shipped_skies_of_space_telescopes_can_be_made(name, count, tmp_path):
    cfg = load(f"configs/sky/{name}.py", ["sky.shape=[64,64]"])
    (path,) = simulate(cfg, tmp_path, seed=0)
    mosaic = Mosaic.open(path)
    assert len(mosaic.bands) == count and mosaic.shape == (64, 64)
