"""Transmission curves: shipped ones against their sources, files of a user, extinction against published numbers."""

import numpy as np
import pandas as pd
import pytest

from deepdisc.errors import InputError
from deepdisc.simulate.filters import Filter, extinction_coefficient, load_filter, shipped_filters
from deepdisc.simulate.spectra import load_templates


def test_every_filter_of_the_instruments_is_there():
    names = set(shipped_filters())
    wanted = {"nircam": "F090W F115W F150W F200W F277W F335M F356W F410M F444W", "csst": "NUV u g r i z y"}
    wanted |= {"hsc": "g r i z y", "lsst": "u g r i z y", "euclid": "VIS Y J H", "sdss": "u g r i z"}
    assert {f"{name}_{band}" for name, bands in wanted.items() for band in bands.split()} <= names


def test_pivot_wavelengths_are_those_of_the_whole_curves(shared_data):
    table = pd.read_csv(shared_data / "data/filters/filters.csv")
    for row in table.itertuples():
        assert load_filter(f"{row.instrument}_{row.filter}").pivot_angstrom == pytest.approx(row.pivot_A, rel=1e-3)


def magnitude(wavelength, throughput, spectrum, flux, redshift):
    """AB magnitude but for a constant, by trapezoids on all points of both curves."""
    grid = np.union1d(wavelength, spectrum * (1 + redshift))
    grid = grid[(grid >= wavelength[0]) & (grid <= wavelength[-1])]
    weight = np.interp(grid, wavelength, throughput) / grid
    f_nu = np.interp(grid, spectrum * (1 + redshift), flux)
    return -2.5 * np.log10(np.trapezoid(weight * f_nu, grid) / np.trapezoid(weight, grid))


@pytest.mark.parametrize(
    ("blue", "red"),
    [
        *[("nircam_F090W", "nircam_F115W"), ("nircam_F150W", "nircam_F200W"), ("nircam_F277W", "nircam_F444W")],
        *[("csst_NUV", "csst_g"), ("csst_r", "csst_z"), ("lsst_u", "lsst_g"), ("lsst_z", "lsst_y")],
        *[("hsc_g", "hsc_i"), ("euclid_VIS", "euclid_H"), ("sdss_u", "sdss_r"), ("sdss_i", "sdss_z")],
    ],
)
def test_thinning_hardly_moves_colours(shared_data, blue, red):
    templates = load_templates()
    for name in ("El", "Sbc", "Im"):
        for redshift in (0.0, 0.35, 0.8):
            colours = []
            for read in (_whole, _thinned):
                curves = [read(shared_data, one) for one in (blue, red)]
                colours.append(np.subtract(*[magnitude(*curve, *templates[name], redshift) for curve in curves]))
            assert colours[0] == pytest.approx(colours[1], abs=5e-4)


def _whole(shared_data, name):
    instrument, band = name.split("_")
    return np.loadtxt(shared_data / f"data/filters/{instrument}/{band}.dat", unpack=True)


def _thinned(shared_data, name):
    curve = load_filter(name)
    return curve.wavelength_angstrom, curve.throughput


def test_a_filter_can_be_a_text_file(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("# a box\n5000 0\n5001 1\n6000 1\n6001 0\n")
    box = load_filter(str(path))
    # A box from a to b: sqrt((b^2 - a^2) / 2 / ln(b / a)).
    assert box.pivot_angstrom == pytest.approx(np.sqrt((6000.5**2 - 5000.5**2) / 2 / np.log(6000.5 / 5000.5)), rel=1e-5)
    assert np.diff(box.sampled(7.0).wavelength_angstrom).max() <= 7.0
    assert box.sampled(7.0).pivot_angstrom == pytest.approx(box.pivot_angstrom, rel=1e-5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("5000 1\n", "not a filter; wavelengths"),
        ("5000 1\n4000 1\n", "must increase"),
        ("5000 a\n6000 1\n", "not a filter .*two columns of numbers"),
        ("5000 0\n6000 0\n", "some throughput be positive"),
    ],
)
def test_a_file_that_is_no_filter_is_named(tmp_path, content, message):
    (tmp_path / "mine.txt").write_text(content)
    with pytest.raises(InputError, match=f"mine.txt: .*{message}|mine.txt: {message}"):
        load_filter(str(tmp_path / "mine.txt"))


def test_an_unknown_filter_is_named_with_the_nearest():
    with pytest.raises(InputError, match="no filter 'nircam_f444w'.*did you mean 'nircam_F444W'"):
        load_filter("nircam_f444w")


def test_extinction_is_that_of_schlafly_and_finkbeiner():
    pytest.importorskip("dust_extinction")
    # ApJ 737, 103, table 6, R_V = 3.1.
    published = {
        "sdss_u": 4.239, "sdss_g": 3.303, "sdss_r": 2.285, "sdss_i": 1.698, "sdss_z": 1.263, "lsst_g": 3.237,
        "lsst_y": 1.088, "acs_F435W": 3.610, "acs_F814W": 1.526, "wfc3ir_F105W": 0.969, "wfc3ir_F160W": 0.512,
    }  # fmt: skip
    for name, coefficient in published.items():
        assert extinction_coefficient(name) == pytest.approx(coefficient, rel=0.04)
    # Falls on beyond the red end of the law of 1999, without a large step.
    red = [extinction_coefficient(f"nircam_{band}") for band in ("F277W", "F335M", "F356W", "F444W")]
    assert (np.diff(red) < 0).all() and 0.05 < red[-1] < 0.12


def test_the_zero_point_is_the_number_of_photons():
    # A box of throughput 0.5 from 5000 to 6000 Angstrom: 0.5 ln(1.2) 3631 Jy / h photons per second and m2 at AB 0.
    box = Filter("box", np.array([5000.0, 6000.0]), np.array([0.5, 0.5])).sampled(1.0)
    photons = 0.5 * np.log(1.2) * 3631e-26 / 6.62607015e-34 * 10.0
    assert box.electrons_zero_point(10.0) == pytest.approx(2.5 * np.log10(photons), abs=1e-4)
    # Rubin's note SMTN-002 has 28.36 in r and 26.52 in u.
    area = np.pi * (6.423 / 2) ** 2
    assert load_filter("lsst_r").electrons_zero_point(area) == pytest.approx(28.36, abs=0.05)
    assert load_filter("lsst_u").electrons_zero_point(area) == pytest.approx(26.52, abs=0.1)
