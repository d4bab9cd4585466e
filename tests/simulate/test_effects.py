"""Imaging effects: rates, levels and geometry of each, and what the files and the truth say of them."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import yaml
from astropy.io import fits

from deepdisc.catalog import FLAGS
from deepdisc.data.mosaic import Mosaic
from deepdisc.errors import InputError
from deepdisc.simulate import Effects, Sky, simulate
from deepdisc.simulate.defects import (
    add_spikes,
    cosmic_ray_tracks,
    dead_columns,
    hot_pixels,
    satellite_trail,
    saturate,
)
from deepdisc.simulate.effects import MASK_BITS, coverage_map, draw_field_effects, gap_mask
from deepdisc.simulate.observe import camera_of

EMPTY = {"shape": (256, 320), "bands": ("g", "r"), "galaxy_density": (0, 0), "star_density": (0, 0)}


def rng(seed=0):
    return np.random.default_rng(seed)


def planes(path):
    with fits.open(path) as file:
        return {hdu.name: hdu.data for hdu in file}


# single effects -----------------------------------------------------------------------------------------------------


def test_a_full_pixel_bleeds_up_and_down_its_column_and_no_electron_is_lost():
    image = np.full((101, 5), 10.0, dtype=np.float32)
    image[50, 2] = 1010.0 + 9 * 90 * 2
    over = saturate(image, 100.0, bleed=True)
    # The pixel keeps 100; 2530 of excess fill pixels with room for 90: 14 on each side, and 5 are left.
    assert image.sum() == pytest.approx(101 * 5 * 10 - 10 + 2630, rel=1e-6)
    assert over[:, 2].sum() == 29 and over[50 - 14 : 50 + 15, 2].all() and not over[:, [0, 1, 3, 4]].any()
    assert image[50 - 15, 2] == pytest.approx(10 + 5) == image[50 + 15, 2]
    assert (image <= 100).all()


def test_trails_of_two_stars_in_one_column_join_without_loss():
    image = np.zeros((200, 1), dtype=np.float32)
    image[[90, 95], 0] = 1000.0, 3000.0
    assert image.sum() == 4000
    over = saturate(image, 100.0, bleed=True)
    assert image.sum() == pytest.approx(4000, rel=1e-6) and over.sum() in (39, 40)


def test_without_bleeding_pixels_are_cut_at_the_full_level():
    image = np.array([[5.0, 99.0, 100.0, 1e6]], dtype=np.float32)
    over = saturate(image, 100.0, bleed=False)
    assert over.tolist() == [[False, False, True, True]] and image.tolist() == [[5, 99, 100, 100]]


def test_a_trail_that_reaches_the_edge_ends_there():
    image = np.zeros((20, 1), dtype=np.float32)
    image[3, 0] = 1e5
    assert saturate(image, 100.0, bleed=True).all() and (image == 100).all()


def test_the_well_of_an_exposure_sets_where_pixels_of_the_mosaic_are_full(conditions):
    """One SDSS exposure: electrons = nJy x electrons_per_njy; the sky fills part of the well."""
    camera = camera_of(conditions, 2)
    band = conditions.bands[2]
    gain = band.exposure_s * 10 ** (0.4 * (band.electrons_zero_point - 31.4))
    sky = 10 ** (0.4 * (31.4 - band.sky_mag_arcsec2)) * 0.396**2
    assert camera.full_njy == pytest.approx(band.saturation_e / gain - sky, rel=1e-6)
    # Four times the exposures: the same well in each of them, so the same level in the mean.
    deeper = dataclasses.replace(conditions, exposure_factor=conditions.exposure_factor * 4)
    assert camera_of(deeper, 2).full_njy == pytest.approx(camera.full_njy)
    assert camera_of(deeper, 2).electrons_per_njy == pytest.approx(4 * camera.electrons_per_njy)


def test_spikes_lie_at_their_angles_and_hold_their_share():
    light = np.zeros((801, 801), dtype=np.float32)
    add_spikes(light, [(400.0, 400.0, 1e9)], 4, np.radians(30), 0.02, 3.0, 0.01)
    # Outside a radius R a spike of core a = 12 holds a / (a + R) of its light.
    y, x = np.indices(light.shape) - 400
    radius, angle = np.hypot(y, x), np.degrees(np.arctan2(y, x)) % 90
    far = (radius > 50) & (radius < 350)
    assert light[far].sum() == pytest.approx(2e7 * (12 / 62 - 12 / 362), rel=0.02)
    assert light[far & (abs(angle - 30) < 4)].sum() == pytest.approx(light[far].sum(), rel=1e-3)
    quarter = np.floor((np.degrees(np.arctan2(y, x)) - 30 + 45) % 360 / 90)
    shares = [light[far & (quarter == k)].sum() / light[far].sum() for k in range(4)]
    assert shares == pytest.approx([0.25] * 4, rel=0.01)


def test_cosmic_rays_come_at_their_rate_with_their_charge_and_length():
    tracks = cosmic_ray_tracks((1000, 2000), 100.0, 8.0, 1000.0, rng())
    assert abs(len(tracks) - 200) < 4 * np.sqrt(200)
    charges = np.array([charge.sum() for pixels, charge in tracks if len(pixels)])
    lengths = np.array([np.ptp(np.unravel_index(pixels, (1000, 2000)), axis=1).max() for pixels, _ in tracks])
    # Mean of max(length, 1) of an exponential: 8 exp(-1/8) + 1 ... and log-normal of 0.5 dex: mean exp(s^2 / 2).
    length = 8 * np.exp(-1 / 8) + 1
    assert charges.mean() == pytest.approx(length * 1000 * np.exp((0.5 * np.log(10)) ** 2 / 2), rel=0.5)
    assert np.median(charges) == pytest.approx(6 * 1000, rel=0.5)
    # The longer side of a straight track's box, over all directions: 0.9 of its length.
    assert lengths.mean() == pytest.approx(0.9 * length, rel=0.2)
    assert all((pixels >= 0).all() and (pixels < 2_000_000).all() for pixels, _ in tracks)


def test_hot_pixels_and_dead_columns_come_at_their_rates():
    counts = [len(hot_pixels((500, 400), 50.0, 300.0, rng(seed))[0]) for seed in range(60)]
    assert np.mean(counts) == pytest.approx(10, abs=4 * np.sqrt(10 / 60))
    charges = np.concatenate([hot_pixels((500, 400), 50.0, 300.0, rng(seed))[1] for seed in range(60)])
    assert charges.mean() == pytest.approx(300, rel=0.2)
    columns = [len(dead_columns((500, 400), 5.0, rng(seed))) for seed in range(60)]
    assert np.mean(columns) == pytest.approx(2, abs=4 * np.sqrt(2 / 60))


def test_a_satellite_trail_is_a_straight_streak_across():
    streak = satellite_trail((300, 300), 4.0, rng(2))
    y, x = np.indices(streak.shape)
    bright = streak > 0.5
    moments = np.linalg.eigvalsh(np.cov(np.stack([y[bright], x[bright]])))
    assert moments[0] == pytest.approx(4.0**2 / 12, rel=0.15), "as wide as its full width at half maximum"
    assert sum(edge.any() for edge in (bright[0], bright[-1], bright[:, 0], bright[:, -1])) >= 2


def test_gaps_lie_between_the_chips_and_move_with_the_dither():
    gap = gap_mask((100, 130), (40, 60), 5, (0, 0))
    assert gap[:, 60:65].all() and gap[40:45].all() and gap[85:90].all() and gap[:, 125:].all()
    assert gap.sum() == 130 * 10 + 100 * 10 - 100
    assert (gap_mask((100, 130), (40, 60), 5, (3, 7))[:90, :120] == gap[3:93, 7:127]).all()


def test_a_depth_step_is_a_straight_border():
    share = coverage_map((60, 100), [(0.0, 0.2, 0.25)])
    assert (share[:, :70] == 1).all() and (share[:, 70:] == 0.25).all()
    assert coverage_map((60, 100), ()) is None


# fields -------------------------------------------------------------------------------------------------------------


def test_effects_that_are_all_off_change_no_pixel(tmp_path):
    simulate(Sky(shape=(64, 80), bands=("g", "r")), tmp_path / "none", seed=1)
    simulate(Sky(shape=(64, 80), bands=("g", "r"), effects=Effects()), tmp_path / "off", seed=1)
    none, off = planes(tmp_path / "none" / "g.fits"), planes(tmp_path / "off" / "g.fits")
    assert np.array_equal(none["PRIMARY"], off["PRIMARY"]) and np.array_equal(none["VARIANCE"], off["VARIANCE"])
    assert not off["MASK"].any() and off["MASK"].dtype == np.uint8
    truths = [pd.read_parquet(tmp_path / name / "truth.parquet") for name in ("none", "off")]
    pd.testing.assert_frame_equal(*truths)


def test_depth_steps_show_in_pixels_and_variance(tmp_path):
    effects = Effects(depth_steps=1, depth_step_share=(0.25, 0.25))
    simulate(Sky(**EMPTY, effects=effects, background_only_variance=1.0), tmp_path, seed=4)
    for band in "gr":
        data = planes(tmp_path / f"{band}.fits")
        levels = np.unique(data["VARIANCE"])
        assert len(levels) == 2 and levels[1] == pytest.approx(4 * levels[0], rel=1e-5)
        ratio = [data["PRIMARY"][data["VARIANCE"] == level].var() / level for level in levels]
        assert ratio == pytest.approx([1, 1], rel=0.06)


def test_masks_hold_what_was_noticed(tmp_path):
    """Hot pixels are brighter than any noise; 30 per cent of them are not in the mask."""
    effects = Effects(hot_pixels=5000.0, hot_electrons=1e6, unmasked_share=0.3)
    simulate(Sky(**EMPTY, effects=effects), tmp_path, seed=4)
    data = planes(tmp_path / "r.fits")
    hot = data["PRIMARY"] > 8 * np.sqrt(np.median(data["VARIANCE"]))
    number = 5000 * 256 * 320 / 1e6
    assert abs(hot.sum() - number) < 4 * np.sqrt(number)
    assert (data["MASK"][hot] == MASK_BITS["defect"]).mean() == pytest.approx(0.7, abs=4 * np.sqrt(0.21 / number))
    assert not data["MASK"][~hot].astype(bool).sum() > 0.02 * number


def test_dead_columns_count_no_electron(tmp_path, conditions):
    simulate(Sky(**EMPTY, effects=Effects(dead_columns=50.0)), tmp_path, seed=4)
    data = planes(tmp_path / "g.fits")
    dead = (data["MASK"] > 0).all(axis=0)
    assert 4 < dead.sum() < 40 and (data["MASK"][:, ~dead] == 0).all()
    sky = 10 ** (0.4 * (31.4 - conditions.bands[1].sky_mag_arcsec2)) * 0.396**2
    np.testing.assert_allclose(data["PRIMARY"][:, dead], -sky, rtol=1e-5)


def test_gaps_hold_no_data_and_the_mosaic_reads_as_masked(tmp_path):
    effects = Effects(chip_pix=(100, 120), gap_pix=9)
    (path,) = simulate(Sky(**EMPTY, effects=effects), tmp_path, seed=4)
    data = planes(tmp_path / "g.fits")
    blank = np.isnan(data["PRIMARY"])
    assert (blank == np.isnan(data["VARIANCE"])).all() and (blank == (data["MASK"] == MASK_BITS["no_data"])).all()
    assert 0.08 < blank.mean() < 0.25
    assert yaml.safe_load(path.read_text())["bands"]["g"]["mask"] == "g.fits[MASK]"
    with Mosaic.open(path) as mosaic:
        cutout = mosaic.read(0, 0, 256, 320)
    assert (cutout.mask[0] == blank).all() and (cutout.variance > 0).all()


def test_kinds_that_are_not_to_be_masked_leave_no_mark(tmp_path):
    effects = Effects(hot_pixels=2000.0, dead_columns=20.0, cosmic_rays=500.0, masked=["cosmic_ray"])
    simulate(Sky(**EMPTY, effects=effects), tmp_path, seed=4)
    assert np.unique(planes(tmp_path / "g.fits")["MASK"]).tolist() == [0, MASK_BITS["cosmic_ray"]]


def test_truth_says_which_objects_are_saturated_masked_or_not_covered(tmp_path, simulate_stars):
    effects = Effects(
        saturation=True, bleed_trails=True, chip_pix=(150, 150), gap_pix=30, unmasked_share=0.5, dead_columns=10.0
    )
    sky = Sky(shape=(320, 320), bands=("g", "r"), effects=effects)
    places = [(20.0 + 28 * column, 20.0 + 28 * row) for column in range(11) for row in range(11)]
    stars = [(*place, 12.0 if number % 40 == 5 else 19.0) for number, place in enumerate(places)]
    simulate_stars(sky, tmp_path, 8, *stars)
    truth = pd.read_parquet(tmp_path / "truth.parquet")
    segmentation = fits.getdata(tmp_path / "segmentation.fits")
    data = [planes(tmp_path / f"{band}.fits") for band in "gr"]
    found = {
        "MASKED": [one["MASK"] > 0 for one in data],
        "SATURATED": [one["MASK"] & MASK_BITS["saturated"] > 0 for one in data],
        "NO_COVERAGE": [one["MASK"] == 0 for one in data],
    }
    assert len(truth) == segmentation.max() > 100
    for name, pixels in found.items():
        flagged = (truth["flags"] & FLAGS[name].value) > 0
        touched = [[one[segmentation == number].any() for one in pixels] for number in truth.id]
        expected = ~np.all(touched, axis=1) if name == "NO_COVERAGE" else np.any(touched, axis=1)
        assert flagged.tolist() == expected.tolist(), name
        assert 0 < expected.sum() < 0.7 * len(truth), f"the field should have some that are {name}"
    assert (truth[(truth["flags"] & FLAGS["SATURATED"].value) > 0].mag_r == 12).mean() > 0.3
    assert ((truth[truth.mag_r == 12]["flags"] & FLAGS["SATURATED"].value) > 0).mean() > 0.5, "one may lie in a gap"
    with Mosaic.open(tmp_path / "mosaic.yaml") as mosaic:
        saturated = mosaic.read(0, 0, *mosaic.shape).saturated
    no_data = np.stack([one["MASK"] & MASK_BITS["no_data"] > 0 for one in data])
    expected = np.stack(found["SATURATED"]) & ~no_data
    assert saturated[expected].mean() > 0.99, "but where a dead column runs through a full pixel"
    assert not saturated[~expected].any()


def test_headers_may_be_wrong_about_the_psf_and_say_so_in_no_other_way(tmp_path):
    sky = Sky(**EMPTY, effects=Effects(psf_mismatch=0.1))
    (path,) = simulate(sky, tmp_path, seed=4)
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())["fields"][0]["conditions"]["psf_fwhm_arcsec"]
    mosaic = yaml.safe_load(path.read_text())["bands"]
    ratios = [mosaic[band]["psf_fwhm_arcsec"] / recipe[band] for band in "gr"]
    assert all(0.9 <= ratio <= 1.1 and abs(ratio - 1) > 1e-3 for ratio in ratios) and ratios[0] != ratios[1]
    assert fits.getheader(tmp_path / "g.fits")["PSFFWHM"] == pytest.approx(mosaic["g"]["psf_fwhm_arcsec"])


def test_a_displaced_band_is_displaced_by_what_was_drawn(tmp_path, conditions):
    effects = Effects(misalignment_pix=0.8)
    field = draw_field_effects(effects, conditions, rng(3))
    assert (abs(field.shift_pix) <= 0.8).all() and abs(field.shift_pix).max() > 0.3
    from deepdisc.simulate.observe import displaced

    y, x = np.indices((60, 60))
    star = np.exp(-((y - 30) ** 2 + (x - 28) ** 2) / 8).astype(np.float32)
    moved = displaced(star, field.shift_pix[2])
    centroid = [(axis * moved).sum() / moved.sum() for axis in (y, x)]
    assert centroid == pytest.approx(np.array([30, 28]) + field.shift_pix[2], abs=0.01)
    assert moved.sum() == pytest.approx(star.sum(), rel=1e-3)


def test_the_reference_band_keeps_white_noise(tmp_path):
    simulate(Sky(**EMPTY, effects=Effects(resampling="bilinear", resampling_reference="r")), tmp_path, seed=4)
    scatter = {}
    for band in "gr":
        data = planes(tmp_path / f"{band}.fits")
        scatter[band] = data["PRIMARY"].std() / np.sqrt(data["VARIANCE"].mean())
    assert scatter["r"] == pytest.approx(1, rel=0.02) and 0.45 < scatter["g"] < 0.95


def test_trails_and_uneven_sky_reach_the_pixels(tmp_path):
    effects = Effects(satellite_trails=20.0, trail_level=(30.0, 30.0), sky_gradient=(5.0, 5.0), sky_residual=1.0)
    simulate(Sky(**EMPTY, effects=effects), tmp_path, seed=4)
    data = planes(tmp_path / "g.fits")
    per_sigma = data["PRIMARY"] / np.sqrt(data["VARIANCE"])
    trail = data["MASK"] == MASK_BITS["trail"]
    assert trail.any() and np.median(per_sigma[trail]) > 5
    rest = per_sigma[~trail]
    assert 1.3 < rest.std() < 3, "a plane of 5 sigma from side to side has an rms of about 1.1 to 1.4"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cosmic_rays": -1}, "sky.effects.cosmic_rays is -1; it must be within 0"),
        ({"resampling": "cubic"}, "must be one of none, bilinear, lanczos3, gaussian"),
        ({"bleed_trails": True}, "only with saturation=True"),
        ({"chip_pix": [10, 200]}, "sky.effects.chip_pix is .*at least 16"),
        ({"chip_pix": [200]}, r"sky.effects.chip_pix is \[200\]; it needs two numbers"),
        ({"chip_pix": 200}, r"sky.effects.chip_pix is \[200\]; it needs two numbers"),
        ({"chip_pix": [200.5, 200]}, "sky.effects.chip_pix is 200.5; it must be a whole number"),
        ({"wisps": 1.5}, "sky.effects.wisps is 1.5; it must be a whole number"),
        ({"saturation": "no"}, "sky.effects.saturation is 'no'; it must be True or False"),
        ({"masked": "saturated"}, r"sky.effects.masked is 'saturated'; it must be a list"),
        ({"masked": ["cosmics"]}, "sky.effects.masked holds 'cosmics'; it may hold no_data, defect"),
        ({"halo_share": [0.1, 2]}, "sky.effects.halo_share"),
    ],
)
def test_a_wrong_setting_is_named(settings, message):
    with pytest.raises(InputError, match=message):
        Effects(**settings)


def test_an_unknown_reference_band_is_named(conditions):
    with pytest.raises(InputError, match="resampling_reference is 'K'; the bands are u, g, r, i, z"):
        draw_field_effects(Effects(resampling_reference="K"), conditions, rng())


def test_effects_must_be_effects():
    with pytest.raises(InputError, match=r"sky.effects is .*; it must be L\(Effects\)\(...\) or None"):
        Sky(effects={"saturation": True})
