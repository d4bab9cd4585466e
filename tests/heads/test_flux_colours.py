"""Colours of the flux head's PDFs: numbers by hand, missing bands, another order of bands, and what they teach."""

import math

import pytest
import torch

from deepdisc.detector.pooling import ROIPooler
from deepdisc.errors import InputError
from deepdisc.heads.flux_colours import FluxColours
from deepdisc.heads.redshift import RedshiftHead
from deepdisc.mixture import Mixture
from deepdisc.structures import Instances


def objects(flux, sigma, measured=None) -> Instances:
    """Objects with Gaussian flux PDFs (R, C) of these means and standard deviations."""
    flux = torch.as_tensor(flux, dtype=torch.float32)
    sigma = torch.as_tensor(sigma, dtype=torch.float32).expand_as(flux)
    pdf = Mixture(torch.zeros_like(flux)[..., None], flux[..., None], sigma[..., None])
    measured = torch.ones_like(flux, dtype=torch.bool) if measured is None else torch.as_tensor(measured)
    boxes = torch.tensor([[2.0, 2, 10, 10]]).repeat(len(flux), 1)
    return Instances(
        (16, 16),
        proposal_boxes=boxes,
        pred_boxes=boxes,
        pred_flux=pdf,
        pred_flux_measured=measured,
        ebv=torch.zeros(len(flux)),
    )


def test_numbers_by_hand():
    [row] = FluxColours(2)({}, [objects([[1000.0, 500.0]], [[10.0, 100.0]])], "pred_boxes").tolist()
    magnitudes = [math.asinh(50) + math.log(10), math.asinh(2.5) + math.log(100)]
    assert magnitudes[0] == pytest.approx(math.log(1000), abs=1e-3), "bright: the logarithm of the flux"
    assert row[:2] == pytest.approx([m / 4 - 1 for m in magnitudes], rel=1e-5)
    assert row[2] == pytest.approx(magnitudes[1] - magnitudes[0], rel=1e-5)
    errors = [10 / math.hypot(1000, 20), 100 / math.hypot(500, 200)]
    assert row[3:5] == pytest.approx([2 * e for e in errors], rel=1e-5)
    assert row[5:7] == pytest.approx([math.asinh(100) / 3, math.asinh(5) / 3], rel=1e-5)
    assert row[7:] == [1, 1]


def test_the_stated_error_is_that_of_the_magnitude():
    """Linear propagation: the slope of the asinh magnitude times sigma."""
    flux, sigma = torch.tensor([[300.0]], requires_grad=True), 100.0
    magnitude = torch.asinh(flux / (2 * sigma))
    slope = torch.autograd.grad(magnitude.sum(), flux)[0]
    row = FluxColours(1)({}, [objects(flux.detach(), sigma)], "pred_boxes")
    assert row[0, 1].item() / 2 == pytest.approx(slope.item() * sigma, rel=1e-5)


def test_components_count_with_their_weights():
    """Two components of one band: mean 2, variance 1 + 4."""
    two = objects([[0.0]], 1.0)
    two.pred_flux = Mixture(torch.zeros(1, 1, 2), torch.tensor([[[0.0, 4.0]]]), torch.ones(1, 1, 2))
    one = objects([[2.0]], math.sqrt(5))
    torch.testing.assert_close(*(FluxColours(1)({}, [x], "pred_boxes") for x in (two, one)))


def test_any_flux_and_any_missing_band_give_finite_numbers_of_order_one():
    flux = torch.tensor([[-3e3, 0.0, 1e9], [1e-3, 50.0, float("nan")], [1.0, float("inf"), 2.0], [5.0, 5.0, 5.0]])
    measured = torch.tensor([[True, True, True], [True, True, False], [True, True, True], [False, False, False]])
    rows = FluxColours(3)({}, [objects(flux, 10.0, measured)], "pred_boxes")
    assert rows.shape == (4, FluxColours(3).num_outputs) and torch.isfinite(rows).all() and rows.abs().max() < 25
    assert rows[1, -3:].tolist() == [1, 1, 0] and rows[2, -3:].tolist() == [1, 0, 1]
    # a band that is missing: the mean magnitude of the others, no signal, the largest error
    assert rows[1, 2].item() == pytest.approx(rows[1, :2].mean().item(), rel=1e-5)
    assert rows[1, 7].item() == 1 and rows[1, 10].item() == 0
    assert rows[3].tolist() == [-1, -1, -1, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0]


def test_what_a_missing_band_holds_does_not_matter():
    measured = [[True, False, True]]
    a, b = (FluxColours(3)({}, [objects([[10.0, value, 30.0]], 2.0, measured)], "pred_boxes") for value in (0.0, 1e6))
    assert torch.equal(a, b)


def test_images_without_objects_are_fine():
    empty = objects(torch.zeros(0, 2), 1.0)
    full = objects([[5.0, 6.0]], 1.0)
    assert FluxColours(2)({}, [empty, empty], "pred_boxes").shape == (0, 9)
    rows = FluxColours(2)({}, [empty, full, empty], "pred_boxes")
    assert torch.equal(rows, FluxColours(2)({}, [full], "pred_boxes"))
    assert FluxColours(1).num_outputs == 4


def test_no_gradient_reaches_the_fluxes():
    x = objects([[5.0, 6.0]], 1.0)
    x.pred_flux.component_mean.requires_grad_(True)
    assert not FluxColours(2)({}, [x], "pred_boxes").requires_grad


def test_missing_fluxes_and_other_bands_are_named():
    bare = Instances((8, 8), pred_boxes=torch.zeros(2, 4))
    with pytest.raises(InputError, match="reads pred_flux and pred_flux_measured.* list the flux head before"):
        FluxColours(2)({}, [bare], "pred_boxes")
    with pytest.raises(InputError, match=r"num_bands=3, the flux head measures \(2,\)"):
        FluxColours(3)({}, [objects([[5.0, 6.0]], 1.0)], "pred_boxes")


def make_head(photometry, **settings) -> RedshiftHead:
    torch.manual_seed(0)
    pooler = ROIPooler(3, ["p2"], canonical_box_size=16, canonical_level=2)
    return RedshiftHead(pooler, in_channels=2, hidden=(16, 32), num_components=3, photometry=photometry, **settings)


def test_bands_in_another_order_give_the_same_redshifts_after_their_weights_are_mixed():
    bands, order = 4, [2, 0, 3, 1]
    generator = torch.Generator().manual_seed(1)
    flux = 100 * torch.randn(6, bands, generator=generator)
    sigma = 10 * torch.rand(6, bands, generator=generator) + 1
    measured = torch.rand(6, bands, generator=generator) > 0.3
    maps = {"p2": torch.randn(1, 2, 4, 4, generator=generator)}
    head = make_head(FluxColours(bands))
    before = head.forward(maps, [objects(flux, sigma, measured)], "pred_boxes")
    moved = [objects(flux[:, order], sigma[:, order], measured[:, order])]
    assert (head.forward(maps, moved, "pred_boxes").mean() - before.mean()).abs().max() > 1e-4
    ((name, mixing),) = head.band_weights(order).items()
    head.load_state_dict({name: head.state_dict()[name] @ mixing}, strict=False)
    after = head.forward(maps, moved, "pred_boxes")
    torch.testing.assert_close(after.mean(), before.mean())
    torch.testing.assert_close(after.logits, before.logits)


# --------------------------------------------------------------------------------------------------------- learning
def synthetic(count: int, seed: int) -> tuple[dict, Instances]:
    """Fluxes of a break that moves through five bands with redshift, noise, and a map that knows the redshift badly."""
    generator = torch.Generator().manual_seed(seed)
    z = 1.5 * torch.rand(count, generator=generator) + 0.05
    middle = torch.linspace(0.0, 1.6, 5)
    light = 0.1 + torch.sigmoid((middle - z[:, None]) / 0.15)
    bright = torch.exp(3 + 2 * torch.rand(count, 1, generator=generator))
    flux = bright * light + 3 * torch.randn(count, 5, generator=generator)
    batch = objects(flux, 3.0)
    batch.gt_redshift, batch.gt_has_redshift = z, torch.ones(count, dtype=torch.bool)
    # every object has a cell of its own in a map of one row, whose first channel is a bad redshift
    hint = z + 0.5 * torch.randn(count, generator=generator)
    row = torch.stack((hint, torch.randn(count, generator=generator)))[None, :, None].repeat_interleave(4, -1)
    x = 16.0 * torch.arange(count)
    batch.proposal_boxes = torch.stack((x, 0 * x, x + 16, 0 * x + 16), dim=1)
    return {"p2": row.expand(-1, -1, 4, -1)}, batch


def scores(head: RedshiftHead, count: int = 800, steps: int = 120) -> tuple[float, float]:
    """NLL and sigma_NMAD on a test sample after a short training on `count` other objects."""
    (maps, train), (test_maps, test) = synthetic(count, 1), synthetic(800, 2)
    optimizer = torch.optim.Adam(head.parameters(), lr=5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        head.losses(maps, [train])["loss_redshift"].backward()
        optimizer.step()
    with torch.no_grad():
        pdf = head.forward(test_maps, [test], "proposal_boxes")
    error = (pdf.median() - test.gt_redshift) / (1 + test.gt_redshift)
    nmad = 1.4826 * (error - error.median()).abs().median()
    return -pdf.log_prob(test.gt_redshift).mean().item(), nmad.item()


@pytest.fixture(scope="module")
def without() -> tuple[float, float]:
    """What a head reaches that does not know the fluxes."""
    return scores(make_head(None))


def test_fluxes_make_redshifts_better(without):
    with_fluxes = scores(make_head(FluxColours(5)))
    assert with_fluxes[0] < without[0] - 0.7
    assert with_fluxes[1] < 0.6 * without[1]


def test_the_point_loss_learns_redshifts_too(without):
    assert scores(make_head(FluxColours(5), loss="point"))[1] < 0.6 * without[1]


@pytest.mark.slow
def test_the_crps_learns_redshifts_too():
    assert scores(make_head(FluxColours(5), loss="crps"), 200)[1] < 0.7 * scores(make_head(None), 200)[1]
