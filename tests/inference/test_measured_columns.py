"""Fluxes, colours, shears and flags of the catalogue, against numbers worked out by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from astropy.wcs import WCS

from deepdisc import catalog
from deepdisc.catalog import FLAGS
from deepdisc.evaluation.flux import score_fluxes
from deepdisc.inference.measured_columns import flux_columns, measured_columns, measured_flags, saturated_flags
from deepdisc.inference.predict import predict
from deepdisc.mixture import Mixture
from deepdisc.mixture_multivariate import MultivariateMixture
from deepdisc.structures import Instances

BANDS = ["z", "g", "r"]  # not in the order of wavelength


def gaussians(means, sigmas, components=2, lower=None):
    """PDFs (N, C) of equal components."""
    mean, sigma = (
        torch.tensor(part, dtype=torch.float32)[..., None].expand(-1, -1, components) for part in (means, sigmas)
    )
    return Mixture(torch.zeros_like(mean), mean, sigma, lower)


def instances(**fields):
    return Instances((64, 64), **fields)


def test_fluxes_magnitudes_and_colours_are_those_of_the_pdfs():
    found = instances(pred_flux=gaussians([[400.0, 100.0, 1000.0]], [[40.0, 5.0, 10.0]]))
    made = flux_columns(found, BANDS)
    assert made["flux_g"][0] == pytest.approx(100) and made["fluxerr_g"][0] == pytest.approx(5, rel=1e-5)
    assert made["snr_g"][0] == pytest.approx(20, rel=1e-5)
    assert made["mag_g"][0] == pytest.approx(31.4 - 5) and made["magerr_g"][0] == pytest.approx(0.05429, rel=1e-3)
    # neighbours in wavelength: g - r = 2.5 lg(1000 / 100) = 2.5, r - z = 2.5 lg(0.4)
    assert made["color_g_r"][0] == pytest.approx(2.5) and made["color_r_z"][0] == pytest.approx(-0.99485, abs=1e-4)
    assert made["colorerr_g_r"][0] == pytest.approx(1.0857 * np.hypot(0.05, 0.01), rel=1e-3)
    assert "color_z_g" not in made and "color_g_z" not in made
    assert set(made) <= {name for name in made if catalog.describe(name) is not None}


def test_the_flux_is_the_median_and_its_error_half_of_68_percent_of_a_lopsided_pdf():
    pdf = Mixture(torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[10.0, 40.0]]]), torch.tensor([[[3.0, 20.0]]]))
    made = flux_columns(instances(pred_flux=pdf), ["r"])
    draws = np.sort(pdf.sample(200_000, torch.Generator().manual_seed(0)).flatten().numpy())
    low, middle, high = draws[[int(share * len(draws)) for share in (0.158655, 0.5, 0.841345)]]
    assert made["flux_r"][0] == pytest.approx(middle, rel=0.01)
    assert made["fluxerr_r"][0] == pytest.approx((high - low) / 2, rel=0.02)


def test_a_band_that_was_not_measured_is_nan_in_all_its_columns_and_negative_fluxes_have_no_magnitude():
    found = instances(
        pred_flux=gaussians([[400.0, 100.0, 1000.0], [5.0, 100.0, -30.0]], [[40.0, 5.0, 10.0]] * 2),
        pred_flux_measured=torch.tensor([[True, False, True], [True, True, True]]),
    )
    made = flux_columns(found, BANDS)
    for name in ("flux_g", "fluxerr_g", "mag_g", "magerr_g", "snr_g", "color_g_r", "colorerr_g_r"):
        assert np.isnan(made[name][0]), name
    assert np.isnan(made["flux_means_g"][0]).all() and made["flux_means_g"].shape == (2, 2)
    assert made["flux_r"][1] == pytest.approx(-30) and np.isnan(made["mag_r"][1]) and np.isnan(made["color_g_r"][1])


def test_the_evaluation_reads_the_pdfs_under_these_names():
    rng = np.random.default_rng(0)
    truth = rng.uniform(100, 1000, (300, 3))
    found = instances(pred_flux=gaussians(truth + 10 * rng.normal(size=truth.shape), np.full(truth.shape, 10.0)))
    table = pd.DataFrame({name: list(part) for name, part in flux_columns(found, BANDS).items()})
    scored = score_fluxes(table, pd.DataFrame({f"flux_{band}": truth[:, i] for i, band in enumerate(BANDS)}))
    assert set(scored["by_band"]) == set(BANDS)
    for figures in scored["by_band"].values():
        assert figures["uncertainty"] == "PDFs" and figures["n_pull"] == 300
        assert figures["pit_ks_p"] > 0.01 and abs(figures["pull_width"] - 1) < 0.15


def test_flags_of_what_cannot_be_and_of_what_was_never_seen():
    flux = [[400.0, 100.0, 1000.0]] * 6
    flux[1] = [400.0, -30.0, 1000.0]  # 6 errors below 0
    flux[2] = [400.0, -20.0, 1000.0]  # 4 errors
    flux[3] = [400.0, 40.0, 1e5]  # 8.5 mag, both at S/N 8 or more
    flux[4] = [400.0, 15.0, 1e5]  # a break: g is not seen
    shear = torch.tensor([[0.1, 0.0]] * 5 + [[0.8, 0.7]])[:, None]
    found = instances(
        pred_flux=gaussians(flux, [[40.0, 5.0, 10.0]] * 6),
        pred_shear=MultivariateMixture(torch.zeros(6, 1), shear, 0.2 * torch.eye(2).expand(6, 1, 2, 2)),
        pred_novelty=torch.tensor([0.3, 1.2, 0.3, float("nan"), 0.3, 0.3]),
    )
    flags = measured_flags(measured_columns(found, BANDS), BANDS, 6)
    assert ((flags & FLAGS["UNPHYSICAL"].value) > 0).tolist() == [False, True, False, True, False, True]
    assert ((flags & FLAGS["EXTRAPOLATION"].value) > 0).tolist() == [False, True, False, False, False, False]
    assert ((flags & FLAGS["NO_REDSHIFT"].value) > 0).all()


def test_saturated_pixels_count_inside_the_outline_only():
    saturated = torch.zeros(2, 20, 20, dtype=torch.bool)
    saturated[1, 5, 5] = True
    boxes, regions = np.array([[2.0, 2, 8, 8]] * 3), np.array([[2, 2, 8, 8]] * 3)
    hole = np.ones((6, 6), bool)
    hole[3, 3] = False
    crops = [np.ones((6, 6), bool), hole, np.zeros((0, 0), bool)]  # the last has a box alone
    found = saturated_flags(saturated, boxes, regions, crops) > 0
    assert found.tolist() == [True, False, True]
    assert not saturated_flags(None, boxes, regions, crops).any()


# --------------------------------------------------------------------------------------------------- shear on the sky
def wcs_of(cd):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crpix, wcs.wcs.crval = [33.0, 33.0], [30.0, 0.0]
    wcs.wcs.cd = np.array(cd) * 0.2 / 3600
    return wcs


HALF = 0.5**0.5
# Pixel shear (0.1, 0.04) and covariance ((4, 1), (1, 9)) e-4: what they are on the sky, by hand. North up, East left:
# both signs flip, the covariance is as it was. Mirrored: g1 alone flips, and so does the covariance's sign. North along
# (1, 1) / sqrt 2: position angles are those from +x less 45 degrees, so that (g1, g2) -> (g2, -g1).
SKIES = {
    "North up, East left": ([[-1, 0], [0, 1]], (-0.1, -0.04), (0.02, 0.03, 1e-4)),
    "mirrored": ([[1, 0], [0, 1]], (-0.1, 0.04), (0.02, 0.03, -1e-4)),
    "North at 45 degrees": ([[-HALF, HALF], [HALF, HALF]], (0.04, -0.1), (0.03, 0.02, -1e-4)),
}


def with_heads(model, count_of_bands):
    """The model with fluxes, shears and novelties added to what it finds."""

    def measured(records):
        outputs = model(records)
        for output in outputs:
            found = output["instances"]
            n = len(found)
            found.pred_flux = gaussians(torch.full((n, count_of_bands), 100.0).tolist(), np.ones((n, count_of_bands))) \
                if n else Mixture(*(torch.ones(0, count_of_bands, 2),) * 3)  # fmt: skip
            tril = torch.linalg.cholesky(torch.tensor([[4e-4, 1e-4], [1e-4, 9e-4]]))
            found.pred_shear = MultivariateMixture(
                torch.zeros(n, 1), torch.tensor([0.1, 0.04]).expand(n, 1, 2), tril.expand(n, 1, 2, 2)
            )
            found.pred_novelty = torch.full((n,), 0.5)
        return outputs

    return measured


def run(mosaic, model, output):
    options = {
        "bands": ["r", "x", "y"],
        "class_names": ("galaxy", "star"),
        "progress": False,
        "tile": 48,
        "overlap": 16,
    }
    predict(mosaic, model, output, **options)
    return pd.read_parquet(output / "catalog.parquet")


@pytest.mark.parametrize("sky", list(SKIES))
def test_shears_in_the_catalogue_are_along_the_sky(memory_mosaic, truth_of_boxes, tmp_path, sky):
    cd, shear, errors = SKIES[sky]
    flux = np.zeros((64, 64))
    flux[28:38, 28:38] = 10
    model = with_heads(truth_of_boxes([[28, 28, 38, 38]]).detector(), 3)
    found = run(memory_mosaic(flux, wcs=wcs_of(cd)), model, tmp_path / "out").iloc[0]
    assert (found.g1, found.g2) == pytest.approx(shear, abs=1e-5)
    assert (found.g1_err, found.g2_err, found.g12_cov) == pytest.approx(errors, abs=1e-5)


def test_without_a_wcs_there_is_no_shear_and_an_empty_catalogue_has_all_columns(
    memory_mosaic, truth_of_boxes, tmp_path
):
    full = run(
        memory_mosaic(np.ones((64, 64))), with_heads(truth_of_boxes([[28, 28, 38, 38]]).detector(), 3), tmp_path / "a"
    )
    empty = run(memory_mosaic(np.ones((64, 64))), with_heads(truth_of_boxes([]).detector(), 3), tmp_path / "b")
    assert list(full.columns) == list(empty.columns) and len(full) == 1 and len(empty) == 0
    assert np.isnan(full.g1[0]) and full.flux_r[0] == pytest.approx(100)
    for name in full.columns:
        assert catalog.describe(name) is not None, name
    for path in (tmp_path / "a", tmp_path / "b"):
        copy = catalog.read(path / "catalog.fits")
        assert list(copy.columns) == list(full.columns)
    assert np.asarray(catalog.read(tmp_path / "a" / "catalog.fits")["flux_means_r"][0]).tolist() == [100, 100]


def test_prefixes_of_bands_are_described_by_their_own_rows():
    assert catalog.describe("flux_weights_F090W").per_component and catalog.describe("flux_F090W").unit == "nJy"
    assert not catalog.describe("flux_lower_r").per_component
    assert "F090W_F115W" in catalog.describe("color_F090W_F115W").description
