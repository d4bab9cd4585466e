"""Instruments: the noise they produce against their published depths, zero points against their curves, wrong input."""

import galsim
import numpy as np
import pytest
import yaml
from astropy.io import fits
from astropy.stats import mad_std
from photutils.aperture import CircularAperture
from scipy.signal import fftconvolve

from deepdisc.errors import InputError
from deepdisc.simulate import Sky
from deepdisc.simulate.conditions import draw_conditions
from deepdisc.simulate.filters import load_filter
from deepdisc.simulate.instruments import FOLDER, Instrument, shipped_instruments

BANDS = [
    (name, band)
    for name in shipped_instruments()
    for band in yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["bands"]
]


def published(instrument, **settings):
    sky = Sky(instrument=instrument, shape=(64, 64), **settings)
    return draw_conditions(sky, Instrument.load(instrument, sky.bands), 0, np.random.default_rng(0))


def test_what_ships():
    assert {"nircam", "csst", "hsc", "lsst", "euclid", "sdss", "stripe82"} <= set(shipped_instruments())
    assert [band.name for band in Instrument.load("nircam").bands] == (
        "F090W F115W F150W F200W F277W F335M F356W F410M F444W".split()
    )
    assert [band.name for band in Instrument.load("csst").bands] == ["NUV", *"ugrizy"]


@pytest.mark.parametrize(("instrument", "name"), BANDS, ids=[f"{one}-{band}" for one, band in BANDS])
def test_noise_drawn_and_measured_as_the_depth_is_defined_reproduces_it(instrument, name):
    conditions = published(instrument, bands=[name])
    band, scale = conditions.bands[0], conditions.instrument.pixel_scale_arcsec
    noise = np.random.default_rng(5).normal(scale=conditions.sky_sigma_njy()[0], size=(320, 320))
    side = 127
    star = conditions.psf(0).drawImage(nx=side, ny=side, scale=scale, method="auto", dtype=float).array
    if band.depth_aperture_arcsec is None:
        weights = star / (star**2).sum()  # the unbiased estimate of least variance for white noise
    else:
        aperture = CircularAperture((side // 2, side // 2), band.depth_aperture_arcsec / 2 / scale)
        weights = aperture.to_mask("exact").to_image((side, side))
        weights = weights / (weights * star).sum()  # total flux of a point source
    measured = fftconvolve(noise, weights, mode="same")[60:-60, 60:-60]
    depth = 31.4 - 2.5 * np.log10(5 * measured.std())
    assert depth == pytest.approx(band.depth_5sigma, abs=0.1)
    assert conditions.depth_5sigma[0] == pytest.approx(band.depth_5sigma, abs=0.02)


# Collecting areas (m2) that the comments of the files name.
AREAS = {"nircam": 25.4, "csst": 3.14, "lsst": np.pi * (6.423 / 2) ** 2, "hsc": 47.5, "euclid": 1.0}


@pytest.mark.parametrize("instrument", AREAS)
def test_zero_points_are_those_of_the_throughputs(instrument):
    for band in Instrument.load(instrument).bands:
        expected = load_filter(band.filter).electrons_zero_point(AREAS[instrument])
        assert band.electrons_zero_point == pytest.approx(expected, abs=0.05)


_EXPLAINED = ("noise_scale", "depth_5sigma", "psf", "sky_mag_arcsec2", "exposure", "electrons_zero_point", "reddening")


def test_every_number_has_its_source():
    for name in shipped_instruments():
        text = (FOLDER / f"{name}.yaml").read_text()
        assert all(any(key in line for line in text.splitlines() if line[0] == "#") for key in _EXPLAINED), name
        assert all(0.5 < band.noise_scale < 2 for band in Instrument.load(name).bands)


@pytest.mark.slow
def test_photon_statistics_give_the_noise_of_a_real_sdss_frame(shared_data):
    [band] = Instrument.load("sdss", ["r"]).bands
    [path] = (shared_data / "data/images/sdss_run94_field12_ugriz").glob("frame-r-*")
    expected = band.noise_density_njy() / band.noise_scale * 0.396
    # Nanomaggies to nJy. Faint galaxies and a little correlation add some per cent.
    assert 0.97 < mad_std(fits.getdata(path)[::3, ::3]) * 3630.8 / expected < 1.10


def test_deeper_means_more_exposures():
    plain, deep = published("csst"), published("csst", depth_offset=(1.0, 1.0))
    np.testing.assert_allclose(deep.exposures / plain.exposures, 10**0.8)
    np.testing.assert_allclose(deep.depth_5sigma - plain.depth_5sigma, 1.0, atol=1e-6)
    np.testing.assert_allclose(deep.electrons_per_njy() / plain.electrons_per_njy(), 10**0.8)


def test_sky_noise_is_its_photons():
    # r of the SDSS by hand: 53.907 s, 25.66 mag = 1 e-/s, sky 20.64 mag/arcsec2, 0.396 arcsec, 6.4 e- read noise.
    sky = 10 ** (0.4 * (25.66 - 20.64)) * 0.396**2 * 53.907
    per_njy = 53.907 * 10 ** (0.4 * (25.66 - 31.4))
    conditions = published("sdss", bands=["r"])
    assert conditions.sky_sigma_njy()[0] == pytest.approx(0.83 * np.sqrt(sky + 6.4**2) / per_njy, rel=1e-6)
    assert conditions.electrons_per_njy()[0] == pytest.approx(per_njy, rel=1e-6)


def test_noise_per_area_does_not_depend_on_the_mosaics_pixel(tmp_path):
    text = (FOLDER / "nircam.yaml").read_text().replace("pixel_scale_arcsec: 0.03", "pixel_scale_arcsec: 0.06", 1)
    (tmp_path / "coarse.yaml").write_text(text)
    fine, coarse = published("nircam"), published(str(tmp_path / "coarse.yaml"))
    np.testing.assert_allclose(coarse.sky_sigma_njy() / fine.sky_sigma_njy(), 2.0)


GOOD = {
    "pixel_scale_arcsec": 0.2,
    "bands": {
        "g": {
            "filter": "lsst_g", "psf": {"kind": "moffat", "fwhm_arcsec": 0.8}, "depth_5sigma": 24.0, "exposures": 2,
            "sky_mag_arcsec2": 22.0, "exposure_s": 30, "electrons_zero_point": 28.0, "read_noise_e": 5, "dark_e_s": 0,
            "saturation_e": 1e5,
        }
    },
}  # fmt: skip


def test_an_instrument_of_ones_own_needs_no_reddening_and_no_calibration(tmp_path):
    pytest.importorskip("dust_extinction")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(GOOD))
    mine = Instrument.load(str(tmp_path / "mine.yaml"))
    assert mine.name == "mine" and mine.bands[0].noise_scale == 1
    assert mine.bands[0].reddening == pytest.approx(3.237, rel=0.02)  # Schlafly & Finkbeiner 2011
    assert mine.bands[0].detector_pixel_arcsec == 0.2


def test_files_beside_the_yaml_are_found(tmp_path):
    pytest.importorskip("dust_extinction")
    (tmp_path / "g.txt").write_text("4000 0\n4100 1\n5400 1\n5500 0\n")
    star = galsim.Moffat(beta=3, fwhm=0.8).drawImage(nx=41, ny=41, scale=0.1).array
    fits.PrimaryHDU(star, fits.Header({"PIXSCL": 0.1})).writeto(tmp_path / "star.fits")
    band = {**GOOD["bands"]["g"], "filter": "g.txt", "psf": {"kind": "image", "file": "star.fits"}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**GOOD, "bands": {"g": band}}))
    conditions = published(str(tmp_path / "mine.yaml"))
    assert conditions.psf_fwhm_arcsec[0] == pytest.approx(0.8, abs=0.03)
    assert conditions.bands[0].pivot_nm == pytest.approx(473, abs=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth_5sigma": None}, "band g: not an instrument: 'depth_5sigma' is missing; a band has filter, psf"),
        ({"colour": 3}, "unknown key 'colour'"),
        ({"exposure_s": 0}, "band g: exposure_s is 0; it must be positive"),
        ({"read_noise_e": -1}, "read_noise_e is -1; it must be finite and not negative"),
        ({"sky_mag_arcsec2": "dark"}, "sky_mag_arcsec2 is 'dark'; it must be a number"),
        ({"filter": "lsst_k"}, "band g: no filter '.*lsst_k'"),
        ({"psf": {"kind": "moffat"}}, "band g: psf of kind moffat: 'fwhm_arcsec' is missing"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, change, message):
    band = {key: value for key, value in {**GOOD["bands"]["g"], **change}.items() if value is not None}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**GOOD, "bands": {"g": band}}))
    with pytest.raises(InputError, match=f"mine.yaml: .*{message}"):
        Instrument.load(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("content", [[1, 2], {"bands": {"g": 3}}, {"pixel_scale_arcsec": 0.2}])
def test_what_is_no_instrument_at_all_is_refused(tmp_path, content):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="mine.yaml: not an instrument; it needs pixel_scale_arcsec and bands"):
        Instrument.load(str(tmp_path / "mine.yaml"))
