"""The flux head: exact units, missing data, labels, bands in another order, and a training that improves."""

import math

import pytest
import torch

from deepdisc.catalog import FLAGS
from deepdisc.detector.pooling import ROIPooler
from deepdisc.errors import InputError
from deepdisc.heads.flux import FluxHead
from deepdisc.structures import Instances
from deepdisc.training.loading import ReadsBands

SIZE, BANDS = 64, 3
POSITIONS = ((20.3, 18.6), (42.9, 40.2), (30.0, 52.4))
FLUX = torch.tensor([[400.0, 800, 1600], [2000.0, 1000, 500], [50.0, 30, 20]])


def features(noise: float = 1.0, seed: int = 1) -> dict[str, torch.Tensor]:
    """One image of three Gaussian sources (sigma 1.6 pixels) in noise of this sigma."""
    grid = torch.arange(SIZE) + 0.5
    shapes = torch.stack(
        [torch.exp(-((grid - x) ** 2 + (grid[:, None] - y) ** 2) / (2 * 1.6**2)) for x, y in POSITIONS]
    )
    light = torch.einsum("nc,nyx->cyx", FLUX, shapes / shapes.sum((1, 2), keepdim=True))
    white = torch.randn(light.shape, generator=torch.Generator().manual_seed(seed))
    return {
        "flux": (light + noise * white)[None],
        "variance": torch.full((1, BANDS, SIZE, SIZE), noise**2),
        "valid": torch.ones(1, BANDS, SIZE, SIZE, dtype=torch.bool),
        "psf": torch.rand(1, BANDS, 25, 25, generator=torch.Generator().manual_seed(2)),
    }


def objects(field: str = "proposal_boxes", **more: torch.Tensor) -> Instances:
    boxes = torch.tensor([[x - 3, y - 3, x + 3, y + 3] for x, y in POSITIONS])
    known = torch.ones(3, BANDS, dtype=torch.bool)
    labels = {"gt_flux": FLUX.clone(), "gt_has_flux": known} | more
    return Instances((SIZE, SIZE), **{field: boxes}, **labels)


def nothing(field: str = "proposal_boxes") -> Instances:
    return Instances((SIZE, SIZE), **{field: torch.zeros(0, 4)})


def make_head(**settings) -> FluxHead:
    torch.manual_seed(0)
    head = FluxHead(BANDS, widths=(8, 8, 16), hidden=16, **settings)
    with torch.no_grad():  # as after some training: nothing is at the value where it starts
        for parameter in head.parameters():
            parameter += 0.02 * torch.randn(parameter.shape)
    return head


def measure(head: FluxHead, maps: dict[str, torch.Tensor]):
    with torch.no_grad():
        found = head.predict(maps, [objects("pred_boxes")])[0]
    return found.pred_flux, found.pred_flux_measured


def test_before_any_training_it_is_the_photometry_of_a_matched_gaussian():
    torch.manual_seed(0)
    pdf, measured = measure(FluxHead(BANDS), features())
    assert pdf.batch_shape == (3, BANDS) and measured.all()
    error = 2 * math.sqrt(math.pi) * 1.6  # of optimal weights in white noise of sigma 1
    assert ((pdf.mean() - FLUX).abs() < 0.12 * FLUX + 3 * error).all()


def test_an_image_in_other_units_gives_the_same_pdfs_in_those_units():
    head, maps = make_head(), features()
    pdf, _ = measure(head, maps)
    scaled, _ = measure(head, maps | {"flux": maps["flux"] * 1e3, "variance": maps["variance"] * 1e6})
    torch.testing.assert_close(scaled.component_mean, pdf.component_mean * 1e3, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(scaled.component_sigma, pdf.component_sigma * 1e3, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(scaled.weights, pdf.weights, rtol=1e-4, atol=1e-5)


def test_a_band_without_pixels_is_not_measured_and_disturbs_nothing():
    head, maps = make_head(), features()
    maps["valid"][:, 1] = False
    clean, measured = measure(head, maps)
    maps["flux"][:, 1], maps["variance"][:, 1] = float("nan"), float("inf")
    dirty, _ = measure(head, maps)
    assert measured.tolist() == [[True, False, True]] * 3
    for one, other in zip(clean.numpy().values(), dirty.numpy().values(), strict=True):
        assert (one == other).all()
    assert all(torch.isfinite(torch.as_tensor(part)).all() for part in clean.numpy().values())


@pytest.mark.parametrize("spoil", ["no psf", "unknown psf", "infinite noise", "masked", "off the image", "empty box"])
def test_whatever_the_input_losses_and_gradients_are_finite(spoil):
    head, maps, batch = make_head(), features(), [objects()]
    if spoil == "no psf":
        del maps["psf"]
    elif spoil == "unknown psf":
        maps["psf"].zero_()
    elif spoil == "infinite noise":
        maps["variance"][:, 2] = float("inf")
    elif spoil == "masked":
        maps["valid"].zero_()
    elif spoil == "off the image":
        batch[0].proposal_boxes = batch[0].proposal_boxes + 500
    else:
        batch[0].proposal_boxes = batch[0].proposal_boxes[:, [0, 1, 0, 1]]
    losses = head.losses(maps, batch)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(parameter.grad is not None and torch.isfinite(parameter.grad).all() for parameter in head.parameters())
    if spoil in ("masked", "off the image"):
        assert all(loss == 0 for loss in losses.values())


@pytest.mark.parametrize(
    "batch",
    [
        lambda: [nothing(), nothing()],
        lambda: [objects(gt_has_flux=torch.zeros(3, BANDS, dtype=torch.bool)), nothing()],
        lambda: [Instances((SIZE, SIZE), proposal_boxes=torch.rand(2, 4) * 30), nothing()],
    ],
    ids=["no objects", "no labels", "no label fields"],
)
def test_a_batch_without_labels_costs_exactly_zero_and_hands_its_fluxes_on(batch):
    head, batch = make_head(), batch()
    maps = {name: value.repeat(2, 1, 1, 1) for name, value in features().items()}
    losses = head.losses(maps, batch)
    assert [loss.item() for loss in losses.values()] == [0]
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.all(p.grad == 0) for p in head.parameters())
    for item in batch:
        assert item.pred_flux.batch_shape == (len(item), BANDS) and item.pred_flux_measured.shape == (len(item), BANDS)


def test_losses_hand_fluxes_on_without_gradient():
    head, batch = make_head(), [objects()]
    head.losses(features(), batch)
    assert not batch[0].pred_flux.component_mean.requires_grad and batch[0].pred_flux_measured.all()
    found = head.predict(features(), [objects("pred_boxes")])[0]
    torch.testing.assert_close(found.pred_flux.mean(), batch[0].pred_flux.mean())


def test_values_of_unlabelled_bands_and_of_flagged_objects_do_not_matter():
    head, maps = make_head(exclude_flags=["BLENDED"]), features()
    known = torch.ones(3, BANDS, dtype=torch.bool)
    known[0, 1] = False
    flags = torch.tensor([0, 0, FLAGS["BLENDED"].value])
    before = head.losses(maps, [objects(gt_has_flux=known, gt_flags=flags)])
    other = FLUX.clone()
    other[0, 1], other[2] = float("nan"), 1e9
    after = head.losses(maps, [objects(gt_flux=other, gt_has_flux=known, gt_flags=flags)])
    assert before == after
    assert before != head.losses(maps, [objects(gt_has_flux=known, gt_flags=flags * 0)])


def test_a_wrong_label_costs_a_bounded_gradient():
    head, maps = make_head(), features()
    wrong = FLUX.clone()
    wrong[0, 0] = 1e9
    loss = head.losses(maps, [objects(gt_flux=wrong)])["loss_flux"]
    loss.backward()
    assert loss.item() < 20 and all(p.grad.abs().max() < 100 for p in head.parameters() if p.grad is not None)


def test_negative_fluxes_are_legal_unless_the_likelihood_is_truncated():
    maps, negative = features(), FLUX.clone()
    negative[2] = torch.tensor([-3.0, -1, 4])
    known = torch.ones(3, BANDS, dtype=torch.bool)
    free = make_head().losses(maps, [objects(gt_flux=negative)])["loss_flux"]
    assert torch.isfinite(free)
    head = make_head(truncated=True)
    bounded = head.losses(maps, [objects(gt_flux=negative)])["loss_flux"]
    known[2, :2] = False
    assert bounded == head.losses(maps, [objects(gt_flux=negative, gt_has_flux=known)])["loss_flux"]
    pdf, _ = measure(head, maps)
    assert pdf.lower == 0 and (pdf.cdf(torch.zeros(3, BANDS)) == 0).all()


def test_half_precision_around_it_changes_little():
    head, maps = make_head(), features()
    exact, _ = measure(head, maps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, _ = measure(head, maps)
    assert rough.component_mean.dtype == torch.float32
    assert ((rough.mean() - exact.mean()).abs() < 0.1 * exact.std()).all()


def test_bands_in_another_order_give_the_same_pdfs_after_their_weights_are_moved():
    head, maps, order = make_head(), features(), [2, 0, 1]
    before, _ = measure(head, maps)
    moved = {name: value[:, order] for name, value in maps.items()}
    wrong, _ = measure(head, moved)
    assert (wrong.mean() - before.mean()[:, order]).abs().max() > 1
    state = head.state_dict()
    for prefix, part in head.named_modules():
        for key, mixing in part.band_weights(order).items() if isinstance(part, ReadsBands) else ():
            state[f"{prefix}.{key}"] = state[f"{prefix}.{key}"] @ mixing
    head.load_state_dict(state)
    after, _ = measure(head, moved)
    torch.testing.assert_close(after.component_mean, before.component_mean[:, order], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(after.weights, before.weights[:, order], rtol=1e-4, atol=1e-5)


def test_pooled_features_are_read_where_wanted():
    head = make_head(pooler=ROIPooler(3, ["p2"], canonical_box_size=16, canonical_level=2), in_channels=4)
    maps = features() | {"p2": torch.randn(1, 4, SIZE // 4, SIZE // 4)}
    pdf, _ = measure(head, maps)
    other, _ = measure(head, maps | {"p2": maps["p2"] + 1})
    assert not torch.allclose(pdf.component_mean, other.component_mean)


def test_a_window_that_cannot_be_halved_twice_is_refused():
    with pytest.raises(InputError, match="window=32: the flux head needs 4 n \\+ 1 pixels"):
        FluxHead(BANDS, window=32)


def test_images_without_measured_pixels_or_of_other_bands_are_refused():
    maps = features()
    with pytest.raises(InputError, match="without a stretch does not keep: set model.stretch"):
        make_head().losses({"image": maps["flux"]}, [objects()])
    with pytest.raises(InputError, match="num_bands=3, the images 2 bands"):
        make_head().losses({name: value[:, :2] for name, value in maps.items()}, [objects()])


def test_a_few_steps_of_training_find_the_fluxes_of_noisy_sources():
    torch.manual_seed(0)
    head = FluxHead(BANDS, widths=(8, 8, 16), hidden=16)
    optimizer = torch.optim.Adam(head.parameters(), lr=5e-3)
    losses = []
    for step in range(60):
        loss = sum(head.losses(features(noise=3.0, seed=step), [objects()]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < sum(losses[:10]) - 3
    pdf, _ = measure(head, features(noise=3.0, seed=1000))
    error = 3 * 2 * math.sqrt(math.pi) * 1.6
    assert ((pdf.mean() - FLUX).abs() < 0.03 * FLUX + 3 * error).all()
