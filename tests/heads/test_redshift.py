"""The redshift head: labels, likelihood, empty images, and photometry against numbers by hand."""

import math

import numpy as np
import pytest
import torch

from deepdisc.catalog import FLAGS, SCHEMA
from deepdisc.detector.pooling import ROIPooler
from deepdisc.errors import InputError
from deepdisc.heads.label_weights import LabelWeights
from deepdisc.heads.photometry import AperturePhotometry
from deepdisc.heads.redshift import LOSSES, POINT_DELTA, RedshiftHead
from deepdisc.inference.measured_columns import redshift_columns
from deepdisc.mixture import Mixture
from deepdisc.structures import Instances


def make_head(photometry=None, num_components: int = 3, **settings) -> RedshiftHead:
    torch.manual_seed(0)
    pooler = ROIPooler(7, ["p2"], canonical_box_size=16, canonical_level=2)
    return RedshiftHead(
        pooler, in_channels=4, hidden=(16, 8), num_components=num_components, photometry=photometry, **settings
    )


def features(n: int = 2, bands: int = 3, size: int = 48) -> dict:
    generator = torch.Generator().manual_seed(1)
    return {
        "p2": torch.randn(n, 4, size // 4, size // 4, generator=generator),
        "flux": torch.randn(n, bands, size, size, generator=generator),
        "variance": torch.ones(n, bands, size, size),
        "valid": torch.ones(n, bands, size, size, dtype=torch.bool),
    }


def objects(n: int, labelled: list[bool], field: str = "proposal_boxes") -> Instances:
    boxes = torch.tensor([[4.0, 6, 18, 20]]).repeat(n, 1) + torch.arange(n)[:, None]
    return Instances(
        (48, 48),
        **{field: boxes},
        ebv=torch.full((n,), 0.02),
        gt_redshift=torch.linspace(0.2, 1.0, n),
        gt_has_redshift=torch.tensor(labelled, dtype=torch.bool),
    )


@pytest.mark.parametrize("photometry", [None, AperturePhotometry(3)])
def test_loss_is_the_mean_nll_of_the_labelled_objects(photometry):
    head, maps = make_head(photometry), features()
    batch = [objects(3, [True, False, True]), objects(2, [False, True])]
    loss = head.losses(maps, batch)["loss_redshift"]
    mixture = head.forward(maps, batch, "proposal_boxes")
    truth = torch.cat([item.gt_redshift for item in batch])
    chosen = torch.tensor([True, False, True, False, True])
    assert loss.item() == pytest.approx(-mixture.log_prob(truth)[chosen].mean().item(), rel=1e-5)


def test_values_of_unlabelled_objects_do_not_matter():
    head, maps = make_head(), features()
    batch = [objects(3, [True, False, True]), objects(2, [False, False])]
    before = head.losses(maps, batch)["loss_redshift"]
    batch[0].gt_redshift[1] = float("nan")
    batch[1].gt_redshift[:] = float("nan")
    after = head.losses(maps, batch)["loss_redshift"]
    assert torch.equal(before, after) and torch.isfinite(after)


def test_a_redshift_below_the_bound_counts_as_no_label():
    head, maps = make_head(), features()
    batch = [objects(3, [True, False, True]), objects(2, [False, False])]
    before = head.losses(maps, batch)["loss_redshift"]
    batch[1].gt_has_redshift[0], batch[1].gt_redshift[0] = True, -0.001
    after = head.losses(maps, batch)["loss_redshift"]
    assert torch.equal(before, after) and torch.isfinite(after)


@pytest.mark.parametrize(
    "batch",
    [
        [objects(3, [False] * 3), objects(2, [False] * 2)],
        [objects(0, []), objects(0, [])],
        [Instances((48, 48), proposal_boxes=torch.rand(2, 4), ebv=torch.zeros(2))] * 2,
    ],
    ids=["no labels", "no objects", "no label fields"],
)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_without_redshifts_costs_exactly_zero_and_keeps_every_gradient(batch, loss):
    head = make_head(AperturePhotometry(3), loss=loss, label_weights=LabelWeights([0.0], [2.0]))
    loss = head.losses(features(), batch)["loss_redshift"]
    assert loss.item() == 0.0
    loss.backward()
    assert all(p.grad is not None and torch.all(p.grad == 0) for p in head.parameters())


def test_without_photometry_it_is_the_published_head():
    """Pooled features flattened, E(B-V) behind them, dense layers with tanh between, 3K numbers, truncated at zero."""
    head, maps = make_head(), features(1)
    batch = objects(2, [True, True])
    pooled = head.pooler(maps, [batch.proposal_boxes]).flatten(1)
    weights = [value for name, value in head.named_parameters() if name.startswith(("first", "rest"))]
    assert len(weights) == len(list(head.parameters())) == 6
    x = torch.cat((pooled, batch.ebv[:, None]), dim=1)
    for weight, bias in zip(weights[0:4:2], weights[1:4:2], strict=True):
        x = torch.tanh(x @ weight.T + bias)
    raw = x @ weights[4].T + weights[5]
    found = head.forward(maps, [batch], "proposal_boxes")
    torch.testing.assert_close(found.logits, raw[:, :3])
    torch.testing.assert_close(found.component_mean, raw[:, 3:6])
    torch.testing.assert_close(found.component_sigma, (raw[:, 6:].exp().square() + 0.003**2).sqrt())
    assert found.lower == 0
    assert head.rest[-1].bias.tolist() == pytest.approx([0, 0, 0, 0.1, 0.8, 1.5, -1.2, -1.2, -1.2])


@pytest.mark.parametrize("components", [1, 2, 9])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_gives_finite_gradients_with_any_number_of_components(components, loss):
    head = make_head(AperturePhotometry(3), components, loss=loss, start_range=[0.5, 8.0])
    head.losses(features(), [objects(3, [True] * 3), objects(0, [])])["loss_redshift"].backward()
    for name, parameter in head.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        # a single component has no weight to learn, and no other way to lose one
        assert components == 1 or parameter.grad.abs().max() > 0, name
    assert head.rest[-1].bias[components : 2 * components].mean().item() == pytest.approx(4.25)


def test_the_crps_loss_is_that_of_the_truncated_pdf():
    """Against a sum over a fine grid: the integral of (F(t) - [t >= z])^2 from zero up."""
    head, maps, batch = make_head(loss="crps"), features(1), objects(3, [True] * 3)
    with torch.no_grad():
        loss = head.losses(maps, [batch])["loss_redshift"].item()
        pdf = head.forward(maps, [batch], "proposal_boxes")
        t = torch.linspace(0, 6, 60_001, dtype=torch.float64)
        below = torch.stack([pdf[i : i + 1].to(torch.float64).cdf(t) for i in range(3)])
    step = (t >= batch.gt_redshift[:, None]).double()
    assert loss == pytest.approx(torch.trapezoid((below - step).square(), t).mean().item(), rel=1e-3)


@pytest.mark.parametrize("loss", ["crps", "point"])
def test_gradients_are_those_of_finite_differences(loss):
    head = make_head(loss=loss)
    # of 3K numbers of two objects: one PDF cut by the bound, one far from it
    raw = torch.tensor([[0.3, -0.2, 0.1, -0.3, 0.2, 0.5, -1, -1.5, -0.5], [0.0, 1.0, -1, 0.9, 1.4, 2.0, -2, -1, -1.5]])
    truth = torch.tensor([0.15, 1.3], dtype=torch.float64)

    def score(raw):
        logits, mean, log_sigma = raw.chunk(3, dim=-1)
        return head._score(Mixture(logits, mean, log_sigma.exp(), lower=0.0), truth).sum()

    torch.autograd.gradcheck(score, raw.double().requires_grad_(True), atol=1e-5, rtol=1e-3)


def test_the_point_loss_is_hubers_of_the_relative_error():
    head, maps, batch = make_head(loss="point"), features(1), objects(4, [True] * 4)
    with torch.no_grad():
        mean = head.forward(maps, [batch], "proposal_boxes").mean()
        batch.gt_redshift = mean + torch.tensor([0.01, -0.3, 0.0, 0.5])
        loss = head.losses(maps, [batch])["loss_redshift"].item()
    error = ((mean - batch.gt_redshift) / (1 + batch.gt_redshift)).abs().tolist()
    # in units of POINT_DELTA: x^2 / 2 below it, x - 1/2 above
    wanted = [0.5 * (x / POINT_DELTA) ** 2 if x < POINT_DELTA else x / POINT_DELTA - 0.5 for x in error]
    assert [x < POINT_DELTA for x in error] == [True, False, True, False]
    assert loss == pytest.approx(POINT_DELTA * np.mean(wanted), rel=1e-4)


def test_weights_by_redshift_multiply_each_objects_loss():
    maps, batch = features(1), objects(3, [True] * 3)  # z = 0.2, 0.6, 1.0
    single = [make_head().losses(maps, [batch[i]])["loss_redshift"].item() for i in range(3)]
    head = make_head(label_weights=LabelWeights([0.2, 1.0], [3.0, 0.0]), loss_weight=0.1)
    loss = head.losses(maps, [batch])["loss_redshift"].item()
    assert loss == pytest.approx(0.1 * (3 * single[0] + 1.5 * single[1]) / 3, rel=1e-5)


def test_flagged_objects_are_left_out_of_the_loss_and_measured_all_the_same():
    maps, batch = features(1), objects(3, [True] * 3)
    batch.gt_flags = torch.tensor([0, FLAGS["BLENDED"].value, 0])
    kept = make_head().losses(maps, [batch[torch.tensor([0, 2])]])["loss_redshift"]
    excluding = make_head(exclude_flags=["BLENDED"])
    torch.testing.assert_close(excluding.losses(maps, [batch])["loss_redshift"], kept)
    assert not torch.isclose(make_head().losses(maps, [batch])["loss_redshift"], kept)
    batch.pred_boxes = batch.proposal_boxes
    assert len(excluding.predict(maps, [batch])[0].pred_redshift) == 3


def test_calibration_comes_on_top_of_the_prediction():
    head, maps = make_head(), features(1)
    [found] = head.predict(maps, [objects(2, [True] * 2, "pred_boxes")])
    raw = found.pred_redshift
    assert head.calibrate([found])[0].pred_redshift is raw, "nothing was fitted"
    head.calibration.log_sigma += math.log(2)
    torch.testing.assert_close(head.calibrate([found])[0].pred_redshift.component_sigma, 2 * raw.component_sigma)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "nil"}, "loss='nil' is not one of nll, crps, point; did you mean 'nll'"),
        ({"num_components": 0}, "num_components=0: a redshift PDF has at least one"),
        ({"start_range": [1.5, 0.1]}, r"start_range=\[1.5, 0.1\] must be two redshifts, the lower one first"),
        ({"exclude_flags": ["BLEND"]}, "'BLEND' is no flag"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        make_head(**settings)


def test_predictions_exist_for_empty_images_and_have_no_mass_below_zero():
    head = make_head()
    out = head.predict(features(), [objects(0, [], "pred_boxes"), objects(2, [True, True], "pred_boxes")])
    assert [len(item.pred_redshift) for item in out] == [0, 2]
    assert out[1].pred_redshift.cdf(torch.tensor(0.0)).tolist() == [0, 0]


def test_reddening_is_an_input():
    head, maps = make_head(), features(1)
    clear, dusty = objects(2, [True, True]), objects(2, [True, True])
    dusty.ebv = dusty.ebv + 1.0
    a, b = (head.forward(maps, [item], "proposal_boxes").component_mean for item in (clear, dusty))
    assert not torch.allclose(a, b)


def test_the_head_names_the_columns_that_the_catalogue_gets():
    with torch.no_grad():
        found = make_head().predict(features(1), [objects(2, [True, True], "pred_boxes")])
    made = redshift_columns(found[0], [])
    assert sorted(made) == sorted(RedshiftHead.columns) and set(made) <= set(SCHEMA)


def test_a_window_without_a_middle_pixel_is_refused():
    with pytest.raises(AssertionError, match="window=20 has no middle pixel"):
        AperturePhotometry(3, window=20)


def gaussian_source(x: float, y: float, sigma: float, flux, size: int = 64) -> torch.Tensor:
    """Image (C, size, size) of a Gaussian source of total flux `flux` (C,), centre in edge coordinates."""
    grid = torch.arange(size) + 0.5
    profile = torch.exp(-0.5 * (((grid - x) / sigma) ** 2 + ((grid[:, None] - y) / sigma) ** 2))
    return torch.as_tensor(flux, dtype=torch.float32)[:, None, None] * profile / profile.sum()


def test_aperture_flux_of_a_gaussian_source_is_its_flux_and_the_error_that_of_white_noise():
    flux = np.array([3000.0, 1500.0])
    photometry = AperturePhotometry(2, sigmas_pix=(2.5,))
    pixels = {
        "flux": gaussian_source(31.3, 30.8, 2.5, flux)[None],
        "variance": torch.full((1, 2, 64, 64), 4.0),
        "valid": torch.ones(1, 2, 64, 64, dtype=torch.bool),
    }
    # The box is off by 1.2 pixels: the measurement must find the source.
    boxes = torch.tensor([[27.0, 25.0, 38.0, 36.0]])
    row = photometry(pixels, [Instances((64, 64), pred_boxes=boxes)], "pred_boxes")[0]
    # Weights w = exp(-r^2 / 2 s^2): sum w f / sum w^2 = F * peak * sum w^2 / sum w^2 with peak = 1 / (2 pi s^2).
    peak = flux / (2 * math.pi * 2.5**2)
    error = 2.0 / math.sqrt(math.pi * 2.5**2)  # sqrt(v) / sqrt(sum w^2), sum w^2 = pi s^2
    expected = np.arcsinh(peak / (2 * error)) + np.log(2 * error)
    assert row[:2].numpy() == pytest.approx(expected / 4 - 1, abs=2e-3)
    assert row[2].item() == pytest.approx(math.log(0.5), abs=0.02)  # the colour: half the flux
    assert row[3:5].numpy() == pytest.approx(np.arcsinh(peak / error) / 3, abs=2e-3)
    assert row[5:].tolist() == [1, 1]


def test_photometry_ignores_masked_pixels_and_survives_a_band_without_any():
    photometry = AperturePhotometry(2)
    pixels = {
        "flux": gaussian_source(32, 32, 2.5, [1000.0, 1000.0])[None],
        "variance": torch.ones(1, 2, 64, 64),
        "valid": torch.ones(1, 2, 64, 64, dtype=torch.bool),
    }
    box = [Instances((64, 64), pred_boxes=torch.tensor([[26.0, 26, 38, 38], [-3, -3, 3, 3]]))]
    clean = photometry(pixels, box, "pred_boxes")
    pixels["valid"][:, 1] = False
    pixels["valid"][:, 0, 40:, :] = False
    pixels["flux"][:, 0, 40:, :] = 1e6
    masked = photometry(pixels, box, "pred_boxes")
    assert torch.isfinite(masked).all()
    assert masked[0, 0].item() == pytest.approx(clean[0, 0].item(), abs=0.01)
    assert masked[0, -1] == 0


def test_bands_in_another_order_give_the_same_redshifts_after_their_weights_are_mixed():
    """The colours of neighbouring bands are other colours then, yet sums of those there were."""
    bands, order = 4, [2, 0, 3, 1]
    head, maps = make_head(AperturePhotometry(bands)), features(bands=bands)
    maps["variance"] += torch.rand(maps["variance"].shape, generator=torch.Generator().manual_seed(2))
    batch = [objects(3, [True] * 3), objects(2, [True] * 2)]
    before = head.forward(maps, batch, "proposal_boxes")
    moved = maps | {name: maps[name][:, order] for name in ("flux", "variance", "valid")}
    wrong = head.forward(moved, batch, "proposal_boxes")
    assert (wrong.mean() - before.mean()).abs().max() > 1e-4
    ((name, mixing),) = head.band_weights(order).items()
    head.load_state_dict({name: head.state_dict()[name] @ mixing}, strict=False)
    after = head.forward(moved, batch, "proposal_boxes")
    torch.testing.assert_close(after.mean(), before.mean())
    torch.testing.assert_close(after.logits, before.logits)
    assert torch.equal(head.band_weights(range(bands))[name], torch.eye(len(mixing)))


def test_a_head_without_photometry_has_no_inputs_for_single_bands():
    assert make_head().band_weights([1, 0]) == {}
    assert AperturePhotometry(1).band_mixing([0]).equal(torch.eye(7))
