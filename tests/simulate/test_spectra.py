"""Spectra to fluxes: against quadrature on other grids, the published absorption, breaks, and units."""

import numpy as np
import pytest
from scipy.integrate import quad

from deepdisc.errors import InputError
from deepdisc.photometry import mag_from_njy
from deepdisc.simulate.catalogues import STAR_ANGSTROM, star_magnitudes
from deepdisc.simulate.filters import load_filter
from deepdisc.simulate.population import star_fluxes
from deepdisc.simulate.spectra import calzetti, flux_table, igm_optical_depth, load_templates

NIRCAM = tuple(f"nircam_{band}" for band in "F090W F115W F150W F200W F277W F335M F356W F410M F444W".split())


def test_fluxes_are_those_of_a_fine_quadrature():
    """The same integral by adaptive quadrature, with the template's own points, dust and absorption."""
    filters = ("lsst_g", "sdss_r", "nircam_F150W", "csst_NUV")
    for name, ebv, redshift in (("El", 0.0, 0.4), ("Scd", 0.3, 1.1), ("SSP25Myr", 0.2, 2.6), ("HII", 0.1, 3.4)):
        wavelength, flux = load_templates()[name]
        near = np.linspace(5450, 5550, 2001)
        level = np.mean(np.interp(near, wavelength, flux) * 10 ** (-0.4 * ebv * calzetti(near)))
        table = flux_table(((name, ebv),), filters)(redshift, 0)
        for band, filter_name in enumerate(filters):
            curve = load_filter(filter_name)
            x = np.linspace(curve.wavelength_angstrom[0], curve.wavelength_angstrom[-1], 3_001)
            rest = x / (1 + redshift)
            seen = np.interp(rest, wavelength, flux) * 10 ** (-0.4 * ebv * calzetti(rest))
            seen *= np.exp(-igm_optical_depth(x, redshift))
            weight = np.interp(x, curve.wavelength_angstrom, curve.throughput) / x
            expected = np.trapezoid(seen * weight, x) / np.trapezoid(weight, x) / level
            if expected > 1e-3:
                assert table[band] == pytest.approx(expected, rel=0.01)


def test_a_smooth_spectrum_is_integrated_exactly(tmp_path):
    # f_nu ~ wavelength^2, that is f_lambda constant, through a box: closed form.
    (tmp_path / "filters").mkdir()
    (tmp_path / "filters/box.txt").write_text("8000 0\n8000.01 1\n9999.99 1\n10000 0\n")
    # The template is a straight line in f_nu between its points: fine ones, for a parabola.
    grid = np.geomspace(100, 60000, 4000)
    np.savetxt(tmp_path / "flat.sed", np.column_stack([grid, np.ones_like(grid)]))
    table = flux_table((("flat", 0.0),), (str(tmp_path / "filters/box.txt"),), str(tmp_path))
    for redshift in (0.0, 0.5, 1.0):
        integral, _ = quad(lambda x, z=redshift: (x / (1 + z) / 5500) ** 2 / x, 8000, 10000)
        assert table(redshift, 0)[0] == pytest.approx(integral / np.log(10 / 8), rel=2e-3)


def test_a_constant_f_nu_has_the_same_magnitude_in_every_band_at_every_redshift(tmp_path):
    grid = np.geomspace(50, 100_000, 5000)
    np.savetxt(tmp_path / "ab.sed", np.column_stack([grid, grid**-2.0]))
    table = flux_table((("ab", 0.0),), (*NIRCAM, "lsst_r", "euclid_VIS"), str(tmp_path))
    np.testing.assert_allclose(table(np.array([0.0, 0.3, 1.0, 2.0]), 0), 1.0, rtol=2e-3)


def test_the_tables_rows_are_close_enough_in_redshift():
    table = flux_table((("HII", 0.0), ("El", 0.0)), NIRCAM)
    middle = (table.fluxes[:-2:2] + table.fluxes[2::2]) / 2
    strong = table.fluxes[1:-1:2][: len(middle)] > 0.05
    change = np.abs(middle[: len(strong)] / np.where(strong, table.fluxes[1:-1:2][: len(middle)], 1) - 1)
    assert np.percentile(change[strong], 99) < 0.02


def test_galaxies_drop_out_of_the_bands_blueward_of_lyman_alpha():
    table = flux_table((("SSP25Myr", 0.0),), NIRCAM)
    mags = {z: -2.5 * np.log10(np.maximum(table(z, 0), 1e-12)) for z in (5.0, 8.0, 10.5)}
    assert abs(mags[5.0][0] - mags[5.0][2]) < 0.5  # z = 5: Lyman alpha at 0.73 um, F090W is clear of it
    assert mags[8.0][0] - mags[8.0][2] > 5  # z = 8: 1.09 um; F090W lies below, F115W is cut
    assert 0.1 < mags[8.0][1] - mags[8.0][2] < 1.0
    assert mags[10.5][1] - mags[10.5][2] > 5  # z = 10.5: 1.40 um; F115W is gone, F150W is cut
    assert mags[10.5][2] - mags[10.5][3] > 0.1


def test_absorption_coefficients_are_those_of_the_eazy_files(shared_data):
    from deepdisc.simulate.spectra import _lyman_series

    forest = np.loadtxt(shared_data / "data/templates/LAFcoeff.txt")
    damped = np.loadtxt(shared_data / "data/templates/DLAcoeff.txt")
    np.testing.assert_allclose(_lyman_series()[:, :4], forest[:, 1:], rtol=1e-5)
    np.testing.assert_allclose(_lyman_series()[:, 4:], damped[:, 2:], rtol=1e-5)


def test_absorption_is_that_of_the_formulas_written_out():
    # Inoue et al. 2014, by hand at z = 3: between Lyman beta and alpha only the first line absorbs.
    x = 4500.0 / 1215.67
    expected = 2.35379e-3 * x**3.7 + 5.38995e-5 * x**3
    assert igm_optical_depth(np.array([4500.0]), 3.0)[0] == pytest.approx(expected, rel=1e-4)
    assert igm_optical_depth(np.array([1215.67 * 4 + 1]), 3.0)[0] == 0
    # The mean transmission of the forest at z = 3 is 0.7 (Faucher-Giguere et al. 2008 measure tau = 0.36).
    forest = np.linspace(1050, 1180, 200) * 4
    assert np.exp(-igm_optical_depth(forest, 3.0)).mean() == pytest.approx(0.70, abs=0.05)


@pytest.mark.parametrize("redshift", [1.2, 2.0, 4.7])
def test_absorption_has_no_step_where_its_formulas_change(redshift):
    wavelength = np.linspace(500, 911, 50) * (1 + redshift)
    below, above = (igm_optical_depth(wavelength, redshift + step) for step in (-1e-6, 1e-6))
    np.testing.assert_allclose(below, above, rtol=0.01, atol=0.03)  # the printed coefficients have three digits


def test_absorption_grows_with_redshift_and_is_never_negative():
    wavelength = np.linspace(1000, 15000, 500)
    depths = [igm_optical_depth(wavelength, z) for z in (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)]
    assert all((depth >= 0).all() for depth in depths)
    assert all((later >= earlier - 0.03).all() for earlier, later in zip(depths, depths[1:], strict=False))


def test_dust_is_calzettis():
    # R_V = 4.05 by definition at V; k(0.16 um) = 9.97 and k(2.2 um) = 0.37, from eq. 4 by hand.
    assert calzetti(np.array([5500.0, 1600.0, 22000.0])) == pytest.approx([4.05, 9.97, 0.37], abs=0.02)
    assert (calzetti(np.array([32_000.0])) == 0).all()
    both = calzetti(np.array([6299.0, 6301.0]))
    assert both[0] == pytest.approx(both[1], abs=0.03)


def test_templates_of_a_folder_are_read_and_checked(tmp_path):
    with pytest.raises(InputError, match="no template in .*folder of .sed"):
        load_templates(str(tmp_path))
    (tmp_path / "one.dat").write_text("6000 1\n7000 1\n")
    with pytest.raises(InputError, match="one.dat: not a template; wavelengths .* enclose 5500"):
        load_templates(str(tmp_path))
    with pytest.raises(InputError, match="no template 'E' in the package, which has El, .*sky.templates"):
        flux_table((("E", 0.0),), ("lsst_r",))


def test_stars_have_the_magnitudes_they_are_given():
    given = np.array([[22.0, 20.5, 19.9, 19.6, 19.5, 19.4], [25.0, 22.4, 21.0, 19.5, 18.7, 18.3]])
    nodes = star_magnitudes(given)
    filters = [f"lsst_{band}" for band in "ugrizy"]
    assert mag_from_njy(star_fluxes(np.array(STAR_ANGSTROM), nodes, filters)) == pytest.approx(given, abs=0.01)
    # In the infrared f_nu falls, for the hot star faster.
    infrared = mag_from_njy(star_fluxes(np.array(STAR_ANGSTROM), nodes, ["nircam_F200W", "nircam_F444W"]))
    assert infrared[0, 1] - infrared[0, 0] > infrared[1, 1] - infrared[1, 0] > 0.5
    flat = star_fluxes(np.array([3000.0, 10_000.0]), np.full((1, 2), 20.0), [*filters, "nircam_F444W"])
    assert mag_from_njy(flat) == pytest.approx(np.full((1, 7), 20.0), abs=1e-6)
