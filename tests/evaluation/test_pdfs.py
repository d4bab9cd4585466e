"""PDFs of catalogues, as mixtures and on grids: scores against quadrature, hand-made cases, SciPy, qp and RAIL."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch
from honest_pdfs import catalogue, honest
from scipy import integrate, stats

from deepdisc.errors import InputError
from deepdisc.evaluation import pit
from deepdisc.evaluation.bootstrap import Resampling
from deepdisc.evaluation.pdf_columns import ABSENT, IMPOSSIBLE, UNNORMALISED, add_pdfs, read_pdfs
from deepdisc.evaluation.pdf_scores import coverage_curve, pdf_metrics, pdf_scores, score_pdfs
from deepdisc.evaluation.pdfs import GriddedPDFs, MixturePDFs
from deepdisc.evaluation.photoz import point_metrics
from deepdisc.mixture import Mixture


def mixtures(weights, means, sigmas, lower=0.0):
    return MixturePDFs(Mixture.from_columns(weights, means, sigmas, lower))


# ---------------------------------------------------------------------------------------------------------------- CRPS
def test_crps_of_one_truncated_normal_by_scipy():
    mean, sigma, x = 0.1, 0.4, 0.35

    def cdf(t):
        below = stats.norm.cdf(0, mean, sigma)
        return (stats.norm.cdf(t, mean, sigma) - below) / (1 - below)

    expected = integrate.quad(lambda t: (cdf(t) - (t >= x)) ** 2, 0, 5, points=[x], epsabs=1e-12)[0]
    single = Mixture.from_columns(np.ones((1, 1)), [[mean]], [[sigma]], 0.0)
    assert MixturePDFs(single).crps(np.array([x]))[0] == pytest.approx(expected, abs=1e-9)
    # Without a bound: Gneiting & Raftery (2007), eq. 20.
    pull = (x - mean) / sigma
    normal = sigma * (pull * (2 * stats.norm.cdf(pull) - 1) + 2 * stats.norm.pdf(pull) - 1 / np.sqrt(np.pi))
    free = Mixture.from_columns(np.ones((1, 1)), [[mean]], [[sigma]], None)
    assert MixturePDFs(free).crps(np.array([x]))[0] == pytest.approx(normal, abs=1e-12)


# ---------------------------------------------------------------------------------------------------------------- PDFs
def test_scores_by_quadrature():
    weights, means, sigmas, z = honest(4, seed=3)

    def density(i, x):
        parts = stats.norm.pdf(x, means[i], sigmas[i]) / stats.norm.sf(0, means[i], sigmas[i])
        return float((weights[i] * parts).sum()) if x >= 0 else 0.0

    def integral(function, i):
        return integrate.quad(function, 0, 8, points=[*np.clip(means[i], 0, 8), z[i]], limit=400)[0]

    pdfs = mixtures(weights, means, sigmas)
    scores = pdf_scores(pdfs, z)
    for i in range(4):
        below = integrate.quad(lambda x, i=i: density(i, x), 0, z[i], limit=400)[0]
        assert scores["pit"][i] == pytest.approx(below, abs=1e-7)
        assert scores["norm2"][i] == pytest.approx(integral(lambda x, i=i: density(i, x) ** 2, i), abs=1e-6)
        assert pdfs.mean()[i] == pytest.approx(integral(lambda x, i=i: x * density(i, x), i), abs=1e-6)
        assert pdfs.second_moment()[i] == pytest.approx(integral(lambda x, i=i: x**2 * density(i, x), i), abs=1e-6)
    losses = [scores["norm2"][i] - 2 * density(i, z[i]) for i in range(4)]
    assert pdf_metrics(**scores)["cde_loss"] == pytest.approx(np.mean(losses))


def test_density_level_of_a_normal():
    pdfs = mixtures(np.ones((3, 1)), np.full((3, 1), 1.0), np.full((3, 1), 0.1), None)
    np.testing.assert_allclose(pdfs.density_level(np.array([1.0, 1.1, 1.3])), [0, 0.682689, 0.9973], atol=1e-5)


def triangle():
    """Density rising from 0 at z = 0 to 1 at 1 and falling to 0 at 2."""
    return GriddedPDFs(np.array([0.0, 1.0, 2.0]), np.array([[0.0, 1.0, 0.0]] * 3))


def test_a_triangle_by_hand():
    pdfs, z = triangle(), np.array([0.5, 1.0, 3.0])
    np.testing.assert_allclose(pdfs.cdf(z), [0.125, 0.5, 1.0])
    np.testing.assert_allclose(pdfs.density(z), [0.5, 1.0, 0.0])
    np.testing.assert_allclose(pdfs.norm2(), 2 / 3)
    np.testing.assert_allclose(pdfs.density_level(z), [0.75, 0.0, 1.0])  # more likely than at 0.5: 0.5 .. 1.5
    np.testing.assert_allclose(pdfs.mean(), 1.0)
    np.testing.assert_allclose(pdfs.second_moment(), 1 + 1 / 6)
    np.testing.assert_allclose(pdfs.median(), 1.0)
    np.testing.assert_allclose(pdfs.mode(), 1.0)
    np.testing.assert_allclose(pdfs.binned(np.array([-1.0, 0.5, 1.0, 5.0]))[0], [0.125, 0.375, 0.5])
    # CRPS at the middle: 2 int_0^1 (t^2/2)^2 dt; one unit beyond the end: int_0^2 F^2 + 1.
    assert pdfs.crps(z)[1] == pytest.approx(2 / 20)
    assert pdfs.crps(z)[2] == pytest.approx(1 + 1 / 20 + integrate.quad(lambda t: (1 - (2 - t) ** 2 / 2) ** 2, 1, 2)[0])


def test_a_step_is_two_grid_points_at_one_redshift():
    pdfs = GriddedPDFs(np.array([0.0, 1.0, 1.0, 2.0]), np.array([[0.25, 0.25, 0.75, 0.75]] * 2))
    np.testing.assert_allclose(pdfs.cdf(np.array([0.5, 1.5])), [0.125, 0.625])
    np.testing.assert_allclose(pdfs.density(np.array([0.99, 1.01])), [0.25, 0.75])
    np.testing.assert_allclose(pdfs.density_level(np.array([0.5, 1.5])), [0.75, 0.0])
    np.testing.assert_allclose(pdfs.median(), 1 + 1 / 3)
    np.testing.assert_allclose(pdfs.mean(), 0.25 * 0.5 + 0.75 * 1.5)


def test_gridded_pdfs_approach_the_mixtures_they_sample():
    weights, means, sigmas, z = honest(60, seed=2)
    exact, grid = mixtures(weights, means, sigmas), np.linspace(0, 6, 3001)
    gridded = GriddedPDFs(grid, exact.mixture.prob(torch.as_tensor(grid)[:, None]).numpy().T)
    for name in ("cdf", "crps"):
        np.testing.assert_allclose(getattr(gridded, name)(z), getattr(exact, name)(z), atol=2e-5, err_msg=name)
    np.testing.assert_allclose(gridded.density(z), exact.density(z), rtol=2e-3)
    np.testing.assert_allclose(gridded.density_level(z), exact.density_level(z), atol=2e-3)
    np.testing.assert_allclose(gridded.norm2(), exact.norm2(), rtol=1e-3)
    for name in ("mean", "second_moment", "median"):
        np.testing.assert_allclose(getattr(gridded, name)(), getattr(exact, name)(), atol=5e-5, err_msg=name)
    np.testing.assert_allclose(gridded.mode(), exact.mode(), atol=0.0021)
    edges = np.linspace(0, 3, 13)
    np.testing.assert_allclose(gridded.binned(edges), exact.binned(edges), atol=5e-5)


def test_honest_pdfs_have_uniform_pit_and_nominal_coverage():
    weights, means, sigmas, z = honest(3000)
    scores = pdf_scores(mixtures(weights, means, sigmas), z)
    metrics = pdf_metrics(**scores)
    assert metrics["pit_ks"] < 1.63 / np.sqrt(3000)  # the 1 % point of Kolmogorov's distribution
    assert metrics["pit_ad"] < 3.86 and metrics["pit_cvm"] < 0.743  # the 1 % points
    assert all(value > 0.01 for value in pit.p_values(scores["pit"]).values())
    for name, level in (("68", 0.68), ("95", 0.95)):
        spread = 3 * np.sqrt(level * (1 - level) / 3000)
        assert metrics[f"coverage_{name}"] == pytest.approx(level, abs=spread)
        assert metrics[f"coverage_hdi_{name}"] == pytest.approx(level, abs=spread + 0.005)
    for row in coverage_curve(scores["pit"], scores["level"]):
        assert abs(row["central"] - row["nominal"]) < 4 * row["central_err"] + 1e-3
        assert abs(row["hdi"] - row["nominal"]) < 4 * row["hdi_err"] + 6e-3
    assert metrics["pit_outliers"] < 0.002
    table = pit.histogram(scores["pit"])
    assert np.abs(np.array(table["counts"]) - table["expected"]).max() < 4 * table["expected_err"]
    curve = pit.quantile_quantile(scores["pit"])
    np.testing.assert_allclose(curve["observed"], curve["expected"], atol=0.04)


def test_overconfident_pdfs_are_found_out():
    weights, means, sigmas, z = honest(1000)
    scores = pdf_scores(mixtures(weights, means, sigmas / 4), z)
    metrics = pdf_metrics(**scores)
    limit = 0.68 - 5 * np.sqrt(0.68 * 0.32 / 1000)
    assert metrics["pit_ks"] > 2 * 1.63 / np.sqrt(1000)  # twice the 1 % point
    assert metrics["coverage_68"] < limit and metrics["coverage_hdi_68"] < limit
    assert max(pit.p_values(scores["pit"]).values()) < 1e-6


# ----------------------------------------------------------------------------------------------------------------- PIT
def test_uniformity_equals_scipy():
    u = np.random.default_rng(2).beta(1.2, 1.0, 80)
    result, p = pit.uniformity(u), pit.p_values(u)
    for name, scipys in (("ks", stats.kstest(u, "uniform")), ("cvm", stats.cramervonmises(u, "uniform"))):
        assert result[name] == pytest.approx(scipys.statistic, abs=1e-12) and p[f"{name}_p"] == scipys.pvalue
    fit = stats.goodness_of_fit(
        stats.uniform, u, known_params={"loc": 0, "scale": 1}, statistic="ad", n_mc_samples=4000,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    assert result["ad"] == pytest.approx(fit.statistic, abs=1e-9)
    assert p["ad_p"] == pytest.approx(fit.pvalue, abs=4 * np.sqrt(fit.pvalue * (1 - fit.pvalue) / 4000) + 0.002)


def test_anderson_darling_by_its_definition():
    u = np.sort(np.random.default_rng(2).beta(1.3, 1.0, 60))

    def integrand(x):
        return (np.searchsorted(u, x, side="right") / len(u) - x) ** 2 / (x * (1 - x))

    edges = np.concatenate(([0], u, [1]))
    expected = len(u) * sum(integrate.quad(integrand, a, b)[0] for a, b in zip(edges[:-1], edges[1:], strict=True))
    assert pit.anderson_darling(u) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("statistic", "p"), [(1.933, 0.1), (2.492, 0.05), (3.070, 0.025), (3.857, 0.01)])
def test_anderson_darling_points_of_the_tables(statistic, p):
    assert pit.anderson_darling_p(statistic) == pytest.approx(p, rel=0.03)


def test_outliers_by_hand():
    u = np.array([0.0, 0.5e-4, 0.3, 0.5, 0.99995, 1.0, 0.9, 0.2, 0.1, 0.4])
    assert pit.uniformity(u)["outliers"] == 0.4


# ------------------------------------------------------------------------------------------------------------- columns
def test_bounds_come_from_the_catalogue():
    pred = catalogue(np.ones((2, 1)), np.zeros((2, 1)), np.ones((2, 1)))
    z = np.array([0.6745, 0.0])
    np.testing.assert_allclose(read_pdfs(pred).pdfs.cdf(z), [0.5, 0.0], atol=1e-4)
    np.testing.assert_allclose(read_pdfs(pred.assign(z_lower=np.nan)).pdfs.cdf(z), [0.75, 0.5], atol=1e-4)
    for lower in ([0.0, 0.1], [0.0, np.nan]):
        with pytest.raises(InputError, match="z_lower is not the same in all rows.*same bound"):
            read_pdfs(pred.assign(z_lower=lower))


def test_rows_of_different_numbers_of_components():
    pred = pd.DataFrame(
        {"z_weights": [[1.0], [0.5, 0.5]], "z_means": [[0.5], [0.5, 2.0]], "z_sigmas": [[0.1], [0.1, 0.1]]}
    )
    np.testing.assert_allclose(read_pdfs(pred).pdfs.mean(), [0.5, 1.25])
    np.testing.assert_allclose(read_pdfs(pred).pdfs.cdf(np.array([0.5, 1.0])), [0.5, 0.5], atol=1e-6)


def test_pdfs_that_are_none_are_counted_by_reason():
    good = [0.25, 0.75]
    pred = pd.DataFrame(
        {
            "z_weights": [good, good, [0.4, 0.4], [1.2, -0.2], good, good, None],
            "z_means": [[0.5, 1.0]] * 5 + [[np.nan, 1.0], None],
            "z_sigmas": [[0.1, 0.2], [0.1, 0.2], [0.1, 0.2], [0.1, 0.2], [0.1, 0.0], [0.1, 0.2], None],
        }
    )
    found = read_pdfs(pred)
    assert found.usable.tolist() == [True, True, False, False, False, False, False]
    assert found.excluded == {ABSENT: 2, UNNORMALISED: 1, IMPOSSIBLE: 2}
    result = score_pdfs(pred, np.full(7, 0.6), {}, resampling=Resampling(5))
    assert result["n"] == 2 and sum(result["excluded"].values()) == 5
    none = score_pdfs(pred[2:], np.full(5, 0.6), {}, resampling=Resampling(5))
    assert not none["available"] and none["reason"] == "no row has a usable PDF" and none["n"] == 0


def test_gridded_columns():
    grid = np.linspace(0, 2, 201)
    density = stats.norm.pdf(grid, 1.0, 0.1)
    pred = pd.DataFrame({"z_grid": [grid] * 4, "z_pdf": [density, 2 * density, -density, None]})
    found = read_pdfs(pred)
    assert found.excluded == {ABSENT: 1, UNNORMALISED: 1, IMPOSSIBLE: 1}
    assert found.pdfs.cdf(np.array([1.1]))[0] == pytest.approx(stats.norm.cdf(1), abs=3e-4)
    with pytest.raises(InputError, match="row 1 has another grid"):
        read_pdfs(pd.DataFrame({"z_grid": [grid, grid + 0.1], "z_pdf": [density] * 2}))
    with pytest.raises(InputError, match="finite and increasing"):
        read_pdfs(pd.DataFrame({"z_grid": [grid[::-1]], "z_pdf": [density]}))


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_pdfs(n):
    weights, means, sigmas, z = honest(3)
    result = score_pdfs(catalogue(weights, means, sigmas)[:n], z[:n], {}, resampling=Resampling(10))
    assert result["n"] == n and result["available"] == (n > 0)
    if n:
        assert np.isfinite(result["crps"]) and np.isfinite(result["pit_ad"])
        assert np.isnan(result["crps_err"]) == np.isnan(result["pit_ks_p"]) == (n == 1)


# ---------------------------------------------------------------------------------------------------------- qp and RAIL
def reference():
    """Untruncated mixtures on which RAIL's figures are known; true redshifts on the points of the grid."""
    rng = np.random.default_rng(11)
    n, k = 40, 3
    weights, means = rng.dirichlet(np.ones(k), n), rng.uniform(0.5, 1.5, (n, k))
    sigmas = rng.uniform(0.05, 0.2, (n, k))
    grid = np.linspace(-1, 4, 5001)
    k = [rng.choice(3, p=row) for row in weights]
    z = grid[np.searchsorted(grid, rng.normal(means[range(n), k], sigmas[range(n), k]))]
    return weights, means, sigmas, grid, z


# What RAIL (pz-rail-base 2.0.11) and qp (1.1.4) say of `reference`.
RAIL = {
    "pit_ks": 0.08511775728841703,
    "pit_cvm": 0.05687968461351387,
    "cde_loss": -1.5898364700073757,
    "bias": -0.004366377658169989,
    "sigma_iqr": 0.1436161147669807,
    "sigma_nmad": 0.13435319517761732,
}


def our_figures(weights, means, sigmas, z):
    point = point_metrics((weights * means).sum(1), z)
    return {**pdf_metrics(**pdf_scores(mixtures(weights, means, sigmas, None), z)), **point}


def test_figures_that_rail_gave():
    weights, means, sigmas, _, z = reference()
    ours = our_figures(weights, means, sigmas, z)
    for name, value in RAIL.items():
        assert ours[name] == pytest.approx(value, abs=1e-6), name


def test_figures_of_the_installed_rail():
    """PIT, KS, CvM, CDE loss and all point figures: the definitions coincide, 1e-6.

    They do not for two: RAIL's `ad` compares the PITs with an even grid by the k-sample statistic; its rate of PIT
    outliers is read off a quantile function through at most 100 points instead of being counted.
    """
    qp = pytest.importorskip("qp", reason="needs the extra `pz`")
    pytest.importorskip("rail.evaluation.metrics", reason="needs the extra `pz`")
    from qp.metrics.pit import PIT
    from rail.evaluation.metrics import cdeloss, pointestimates

    weights, means, sigmas, grid, z = reference()
    ensemble = qp.Ensemble(qp.mixmod, data={"weights": weights, "means": means, "stds": sigmas})
    theirs = PIT(ensemble, z)
    ours = our_figures(weights, means, sigmas, z)
    u = mixtures(weights, means, sigmas, None).cdf(z)
    np.testing.assert_allclose(u, theirs.pit_samps, atol=1e-6)
    p = pit.p_values(u)
    for name, result in (("ks", theirs.evaluate_PIT_KS()), ("cvm", theirs.evaluate_PIT_CvM())):
        assert ours[f"pit_{name}"] == pytest.approx(result.statistic, abs=1e-6)
        assert p[f"{name}_p"] == pytest.approx(result.pvalue, abs=1e-6)
    assert ours["cde_loss"] == pytest.approx(cdeloss.CDELoss(ensemble, grid, z).evaluate().statistic, abs=1e-6)
    z_phot = (weights * means).sum(1)
    for name, kind in {
        "bias": "PointBias", "sigma_iqr": "PointSigmaIQR", "sigma_nmad": "PointSigmaMAD", "eta_iqr": "PointOutlierRate"
    }.items():  # fmt: skip
        assert ours[name] == pytest.approx(getattr(pointestimates, kind)(z_phot, z).evaluate(), abs=1e-6), name


def test_pdfs_of_every_form_of_qp(tmp_path):
    qp = pytest.importorskip("qp", reason="needs the extra `pz`")
    weights, means, sigmas, grid, z = reference()
    catalog = pd.DataFrame({"id": np.arange(len(z)) + 7})
    ensemble = qp.Ensemble(qp.mixmod, data={"weights": weights, "means": means, "stds": sigmas})
    grid = grid[::10]
    # Between its grid points qp's `interp` draws straight lines through the CDF, we through the density.
    forms = {
        "mixmod": (ensemble, 1e-9),
        "hist": (ensemble.convert_to(qp.hist_gen, bins=np.linspace(0, 3, 61)), 1e-9),
        "interp": (ensemble.convert_to(qp.interp_gen, xvals=grid), 5e-4),
        "quant": (ensemble.convert_to(qp.quant_gen, quants=np.linspace(0.001, 0.999, 200)), 2e-3),
    }
    for name, (form, tolerance) in forms.items():
        with_pdfs = add_pdfs(catalog, form)
        pdfs = read_pdfs(with_pdfs).pdfs
        np.testing.assert_allclose(pdfs.cdf(z), form.cdf(z[:, None])[:, 0], atol=tolerance, err_msg=name)
        np.testing.assert_allclose(with_pdfs["z_median"], mixtures(weights, means, sigmas, None).median(), atol=0.05)
        assert with_pdfs["z_odds"].between(0, 1).all()
        if name == "interp":
            np.testing.assert_allclose(pdfs.density(z), form.pdf(z[:, None])[:, 0], atol=1e-9)
            at_grid = pdfs.binned(np.concatenate(([-9.0], grid))).cumsum(1)
            np.testing.assert_allclose(at_grid, form.cdf(grid), atol=1e-9)
            form.write_to(str(tmp_path / "pdfs.hdf5"))
            again = add_pdfs(catalog.assign(z_mode=1.5), tmp_path / "pdfs.hdf5")
            np.testing.assert_allclose(again["z_mean"], with_pdfs["z_mean"])
            assert (again["z_mode"] == 1.5).all()  # the catalogue's own


def test_qp_rows_are_found_by_id_and_bad_files_are_named(tmp_path):
    qp = pytest.importorskip("qp", reason="needs the extra `pz`")
    data = {"weights": np.ones((3, 1)), "means": [[0.5], [1.0], [1.5]], "stds": np.full((3, 1), 0.1)}
    ensemble = qp.Ensemble(qp.mixmod, data={key: np.array(value) for key, value in data.items()})
    with pytest.raises(InputError, match="3 PDFs for 2 rows"):
        add_pdfs(pd.DataFrame({"id": [30, 10]}), ensemble)
    ensemble.set_ancil({"id": np.array([10, 20, 30])})
    assert add_pdfs(pd.DataFrame({"id": [30, 10]}), ensemble)["z_mean"].tolist() == [1.5, 0.5]
    with pytest.raises(InputError, match="no id 40"):
        add_pdfs(pd.DataFrame({"id": [30, 40]}), ensemble)
    with pytest.raises(InputError, match="no PDFs at .*absent.hdf5"):
        add_pdfs(pd.DataFrame({"id": [1]}), tmp_path / "absent.hdf5")
    (tmp_path / "text.hdf5").write_text("no PDFs")
    with pytest.raises(InputError, match="text.hdf5: cannot be read as PDFs by qp"):
        add_pdfs(pd.DataFrame({"id": [1]}), tmp_path / "text.hdf5")


def test_without_qp_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "qp", None)
    with pytest.raises(InputError, match=r'pip install "deepdisc\[pz\]"'):
        add_pdfs(pd.DataFrame({"id": [1]}), "pdfs.hdf5")
