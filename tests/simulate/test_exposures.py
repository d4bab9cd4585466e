"""Several exposures: telemetry and zero points by their model, independent noise, and a mean that has the depth."""

import numpy as np
import pandas as pd
import pytest
import yaml
from astropy.io import fits

from deepdisc.data.mosaic import Mosaic
from deepdisc.errors import InputError
from deepdisc.simulate import Effects, Exposures, Lensing, Sky, simulate
from deepdisc.simulate.exposures import WeightedMean, airmass, blurred, draw_exposures

STARS = {"galaxy_density": (0, 0), "depth_offset": (2.0, 2.0), "shape": (200, 240), "bands": ("g", "r")}
COEFFICIENTS = {"extinction": {"g": 0.18, "r": 0.1}, "temperature_coefficient": 0.004, "humidity_coefficient": -0.05}


def rng(seed=0):
    return np.random.default_rng(seed)


# telemetry and zero points -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("latitude", "dec", "hour", "expected"),
    # On the meridian the zenith distance is the difference of latitude and declination; on the equator the hour angle.
    [(-30.0, 2.0, 0.0, 1 / np.cos(np.radians(32))), (0.0, 0.0, 4.0, 2.0), (45.0, 45.0, 0.0, 1.0)],
)
def test_airmass_of_places_that_can_be_computed_by_hand(latitude, dec, hour, expected):
    assert airmass(Exposures(latitude_deg=latitude), dec, np.array([hour]))[0] == pytest.approx(expected, rel=1e-9)


def test_zero_points_follow_the_stated_coefficients(conditions):
    settings = Exposures(number=999, nights=40, extinction=0.17, temperature_coefficient=0.004,
                         humidity_coefficient=-0.05, header_error=0.02)  # fmt: skip
    table = draw_exposures(settings, conditions, rng())
    one = table[table.band == "r"]
    design = np.stack(
        [np.ones(999), one.airmass - 1, one.temperature_c - 10, (one.humidity_percent - 30) / 100], axis=1
    )
    found = np.linalg.lstsq(design, one.zero_point, rcond=None)[0]
    assert found == pytest.approx([conditions.bands[2].electrons_zero_point, -0.17, 0.004, -0.05], abs=1e-9)
    error = table.zero_point_header - table.zero_point
    assert error.std() == pytest.approx(0.02, rel=0.05) and error.mean() == pytest.approx(0, abs=0.002)


def test_nights_and_clouds_move_the_zero_point(conditions):
    settings = Exposures(number=999, nights=200, extinction=0.0, night_rms=0.03, cloudy_nights=0.5, clouds_mag=0.2)
    one = draw_exposures(settings, conditions, rng()).query("band == 'g'")
    offset = one.zero_point - conditions.bands[1].electrons_zero_point + one.clouds_mag
    nightly = offset.groupby(one.night).agg(["mean", "std"])
    assert nightly["std"].max() < 1e-9 and nightly["mean"].std() == pytest.approx(0.03, rel=0.2)
    cloudy = one.clouds_mag > 0
    assert cloudy.mean() == pytest.approx(0.5, abs=0.12) and one.clouds_mag[cloudy].mean() == pytest.approx(
        0.2, rel=0.15
    )
    assert (cloudy.groupby(one.night).nunique() == 1).all()


def test_telemetry_looks_like_nights(conditions):
    table = draw_exposures(Exposures(number=300, nights=30, wind_m_s=6.0), conditions, rng(1)).query("band == 'g'")
    assert (table.airmass >= 1).all() and table.airmass.max() < 2 and np.ptp(table.airmass) > 0.2
    assert table.wind_m_s.mean() == pytest.approx(6, rel=0.15) and (table.wind_m_s > 0).all()
    residual = table[["temperature_c", "humidity_percent"]] - table.groupby("night")[
        ["temperature_c", "humidity_percent"]
    ].transform("mean")
    hour = (table.mjd_obs - table.mjd_obs.groupby(table.night).transform("mean")) * 24
    assert np.corrcoef(hour, residual.temperature_c)[0, 1] < -0.7, "nights cool down"
    assert np.corrcoef(residual.temperature_c, residual.humidity_percent)[0, 1] < -0.2, "warmer is drier"
    assert table.humidity_percent.between(0, 100).all()


def test_seeing_grows_with_airmass(conditions):
    settings = Exposures(number=200, seeing_airmass_power=0.6)
    table = draw_exposures(settings, conditions, rng()).query("band == 'i'")
    np.testing.assert_allclose(table.seeing_arcsec, conditions.psf_fwhm_arcsec[3] * table.airmass**0.6, rtol=1e-12)


# images -------------------------------------------------------------------------------------------------------------


def test_blurring_adds_the_kernels_variance_also_below_a_pixel():
    y, x = np.indices((61, 61)) - 30
    light = np.exp(-(x**2 + y**2) / (2 * 1.5**2)).astype(np.float32)
    for sigma in (0.3, 1.0, 2.0):
        wide = blurred(light, sigma)
        assert wide.sum() == pytest.approx(light.sum(), rel=1e-4)
        assert (wide * x**2).sum() / wide.sum() == pytest.approx(1.5**2 + sigma**2, rel=0.01)


def test_the_mean_of_images_weighs_them_by_their_variance_and_leaves_out_what_is_masked():
    mean = WeightedMean((1, 3))
    mean.add(np.full((1, 3), 10.0, np.float32), np.full((1, 3), 4.0, np.float32), np.array([[0, 0, 4]], np.uint8), 0.25)
    mean.add(np.array([[20.0, np.nan, 7.0]], np.float32), np.full((1, 3), 1.0, np.float32),
             np.array([[0, 1, 2]], np.uint8), 1.0)  # fmt: skip
    image, variance, mask = mean.result()
    assert image[0, :2].tolist() == pytest.approx([(10 * 0.25 + 20) / 1.25, 10.0]) and np.isnan(image[0, 2])
    assert variance[0, :2].tolist() == pytest.approx([1 / 1.25, 4.0]) and np.isnan(variance[0, 2])
    assert mask.tolist() == [[0, 0, 6]]


@pytest.fixture(scope="module")
def exposed(tmp_path_factory, simulate_stars):
    """Five exposures of a field of three stars, with everything that varies between them."""
    folder = tmp_path_factory.mktemp("exposed")
    settings = Exposures(number=5, nights=3, **COEFFICIENTS, header_error=0.02, seeing_scatter=0.2, cloudy_nights=0.5,
                         registration_pix=0.4, dither_pix=20)  # fmt: skip
    simulate_stars(Sky(**STARS, exposures=settings), folder, 6, (80.3, 90.8, 16.5), (180.0, 100.0, 18.0), (30, 30, 20))
    return folder


def test_what_is_written_for_each_exposure(exposed):
    table = pd.read_parquet(exposed / "exposures.parquet")
    assert len(table) == 10 and sorted(path.name for path in (exposed / "exposures").iterdir()) == sorted(
        path.split("/")[1] for path in table.file
    )
    for row in table.itertuples():
        header = fits.getheader(exposed / row.file)
        assert header["FILTER"] == row.band and header["BUNIT"] == "electron/s"
        stated = {"MAGZERO": row.zero_point_header, "AIRMASS": row.airmass, "TEMP": row.temperature_c,
                  "HUMIDITY": row.humidity_percent, "WIND": row.wind_m_s, "EXPTIME": row.exposure_s}  # fmt: skip
        for name, value in stated.items():
            assert header[name] == pytest.approx(value, abs=1e-3)
        assert header["MJD-OBS"] == pytest.approx(row.mjd_obs, abs=1e-7)


def test_stars_have_their_magnitudes_with_the_true_zero_point(exposed):
    table = pd.read_parquet(exposed / "exposures.parquet")
    star = pd.read_parquet(exposed / "truth.parquet").sort_values("mag_r").iloc[0]
    y, x = np.indices((200, 240))
    for row in table.itertuples():
        with fits.open(exposed / row.file) as file:
            light, sky = file[0].data.astype(float), np.median(file[0].data)
        center = star.x + row.shift_x_pix, star.y + row.shift_y_pix
        inside = np.hypot(x - center[0], y - center[1]) < 20
        counts = (light[inside] - sky).sum()
        assert row.zero_point - 2.5 * np.log10(counts) == pytest.approx(star[f"mag_{row.band}"], abs=0.02)
        core = inside * (light - sky) * (np.hypot(x - center[0], y - center[1]) < 6)
        found = [(axis * core).sum() / core.sum() for axis in (x, y)]
        assert found == pytest.approx(center, abs=0.1)


def test_the_mosaic_is_the_weighted_mean_of_the_exposures_as_their_headers_calibrate_them(exposed):
    table = pd.read_parquet(exposed / "exposures.parquet").query("band == 'r'")
    images, variances = [], []
    for file in table.file:
        with Mosaic.open({"r": str(exposed / file)}) as mosaic:  # reads MAGZERO
            cutout = mosaic.read(0, 0, 200, 240)
        images.append(cutout.image[0])
        variances.append(np.percentile(cutout.variance[0], 20))  # the sky's
    weights = (1 / np.array(variances))[:, None, None]
    expected = (weights * images).sum(axis=0) / weights.sum()
    with fits.open(exposed / "r.fits") as file:
        mean, variance = file[0].data, file["VARIANCE"].data
    assert abs(mean - expected).max() < 0.02 * abs(expected).max()
    assert np.median(variance) == pytest.approx(1 / weights.sum(), rel=0.05)
    seeing = yaml.safe_load((exposed / "mosaic.yaml").read_text())["bands"]["r"]["psf_fwhm_arcsec"]
    assert table.seeing_arcsec.min() < seeing < table.seeing_arcsec.max()


def test_noise_is_independent_and_the_mean_reaches_the_depth_of_one_image(tmp_path):
    empty = {**STARS, "star_density": (0, 0)}
    simulate(Sky(**empty), tmp_path / "one", seed=6)
    settings = Exposures(number=4, extinction=0.0)
    simulate(Sky(**empty, exposures=settings), tmp_path / "four", seed=6)
    images = [fits.getdata(tmp_path / "four" / "exposures" / f"{k:03d}_g.fits") for k in range(4)]
    correlation = np.corrcoef([image.ravel() for image in images])
    assert abs(correlation - np.eye(4)).max() < 5 / np.sqrt(images[0].size)
    one, four = (fits.getdata(tmp_path / name / "g.fits") for name in ("one", "four"))
    assert four.std() == pytest.approx(one.std(), rel=0.02)
    depths = [fits.getheader(tmp_path / name / "g.fits")["DEPTH5"] for name in ("one", "four")]
    assert depths[1] == pytest.approx(depths[0], abs=1e-4)


def test_exposures_through_clouds_are_noisier_and_count_less(tmp_path):
    empty = {**STARS, "star_density": (0, 0)}
    simulate(Sky(**empty, exposures=Exposures(number=2, extinction=0.0)), tmp_path / "clear", seed=6)
    cloudy = Exposures(number=2, extinction=0.0, cloudy_nights=1.0, clouds_mag=0.5)
    simulate(Sky(**empty, exposures=cloudy), tmp_path / "cloudy", seed=6)
    table = pd.read_parquet(tmp_path / "cloudy" / "exposures.parquet").query("band == 'g'")
    clear, dimmed = (fits.getdata(tmp_path / name / "g.fits").std() for name in ("clear", "cloudy"))
    # The sky's electrons stay the same; in nJy the noise grows by 10^(0.4 clouds).
    sigmas = 10 ** (0.4 * table.clouds_mag.to_numpy())
    assert dimmed / clear == pytest.approx(np.sqrt(2 / (1 / sigmas**2).sum()), rel=0.03)


def test_dithers_move_the_gaps_so_that_the_mean_has_none(tmp_path):
    sky = Sky(
        **{**STARS, "star_density": (0, 0)},
        effects=Effects(chip_pix=(90, 110), gap_pix=6, cosmic_rays=300.0),
        exposures=Exposures(number=6, dither_pix=40),
    )
    simulate(sky, tmp_path, seed=2)
    table = pd.read_parquet(tmp_path / "exposures.parquet").query("band == 'g'")
    gaps = []
    for file in table.file:
        with fits.open(tmp_path / file) as opened:
            gaps.append(np.isnan(opened[0].data))
            assert (opened["MASK"].data[gaps[-1]] == 1).all()
    assert len({gap.tobytes() for gap in gaps}) > 1 and 0.05 < gaps[0].mean() < 0.2
    with fits.open(tmp_path / "g.fits") as opened:
        mean, variance, mask = (hdu.data for hdu in opened)
    assert np.isnan(mean).mean() < 0.01 and (np.isnan(mean) == (mask > 0)).all()
    # With one exposure in a gap, five are left.
    count = 6 - np.sum(gaps, axis=0)
    assert np.nanmedian(variance[count == 5]) == pytest.approx(6 / 5 * np.nanmedian(variance[count == 6]), rel=0.05)


def test_ring_pairs_see_the_same_objects_under_the_same_exposures(tmp_path):
    sky = Sky(**STARS, fields=2, lensing=Lensing(ring_pairs=True), exposures=Exposures(number=2))
    simulate(sky, tmp_path, seed=2)
    tables = [pd.read_parquet(tmp_path / f"field_00{k}" / "exposures.parquet") for k in (0, 1)]
    pd.testing.assert_frame_equal(*tables)
    images = [fits.getdata(tmp_path / f"field_00{k}" / "g.fits") for k in (0, 1)]
    assert not np.array_equal(*images)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"number": 0}, "sky.exposures.number is 0"),
        ({"number": 1.5}, "sky.exposures.number is 1.5; it must be a whole number"),
        ({"extinction": "0.1"}, "sky.exposures.extinction holds '0.1'; mag per airmass must be within 0 to 5"),
        ({"extinction": {"u": 0.4, "g": float("nan")}}, "sky.exposures.extinction holds nan"),
        ({"hour_angle_h": (3, -3)}, r"sky.exposures.hour_angle_h is \[3.0, -3.0\]"),
        ({"extinction": {"g": 0.1}}, "sky.exposures.extinction has no band 'u'"),
        ({"latitude_deg": 80.0}, "declination 2.0 is below airmass 3"),
    ],
)
def test_a_wrong_setting_is_named(conditions, settings, message):
    with pytest.raises(InputError, match=message):
        draw_exposures(Exposures(**settings), conditions, rng())
