"""The shear head: exact symmetry, losses against numbers by hand, and a response that shape noise does not bias."""

import math

import pytest
import torch

from deepdisc.catalog import FLAGS, SCHEMA
from deepdisc.errors import InputError
from deepdisc.heads import shear as shear_head
from deepdisc.heads.shape_network import ShapeNetwork, binned_psf, psf_shapes
from deepdisc.heads.shear import ShearHead, gradient_loss
from deepdisc.heads.symmetry import spin2_signs
from deepdisc.heads.windows import cut_windows
from deepdisc.structures import Instances

HEIGHT, WIDTH, BANDS = 61, 50, 3  # odd and even: the middles of mirrored boxes differ


def make_head(psf: str | None = "image", **settings) -> ShearHead:
    torch.manual_seed(0)
    head = ShearHead(ShapeNetwork(BANDS, window=25, width=8, num_maps=4, hidden=16, psf=psf), **settings)
    for layer in (head.scales[-1], head.network.gates[-1]):
        torch.nn.init.normal_(layer.weight, std=0.3)
    with torch.no_grad():
        head.scales[-1].weight[3] *= 30  # components that are correlated
    return head


def make_features(images: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    psf = torch.rand(images, BANDS, 25, 25, generator=generator).pow(8)
    shape = (images, BANDS, HEIGHT, WIDTH)
    return {
        "flux": torch.randn(shape, generator=generator) * 3 + 1,
        "variance": torch.rand(shape, generator=generator) + 0.5,
        "valid": torch.rand(shape, generator=generator) > 0.05,
        "psf": psf / psf.sum((-2, -1), keepdim=True),
    }


# centres within a pixel, on the edge between two, of a box that is seen in binned pixels, at the border, outside
BOXES = torch.tensor(
    [[4.0, 6, 18, 21], [10, 10, 20, 22], [3, 4, 47, 44], [44.5, 20.25, 52, 31], [30.5, 41, 37, 47.75], [-9, 3, -3, 9]]
)


def objects(boxes=BOXES, field: str = "proposal_boxes", size=(HEIGHT, WIDTH), **labels) -> Instances:
    return Instances(size, **{field: boxes}, gt_classes=torch.zeros(len(boxes), dtype=torch.int64), **labels)


def labelled(has_shear: bool = True, has_shape: bool = True, boxes=BOXES, **more) -> Instances:
    generator = torch.Generator().manual_seed(2)
    n = len(boxes)
    return objects(
        boxes,
        gt_shear=torch.randn(n, 2, generator=generator) * 0.05,
        gt_has_shear=torch.full((n,), has_shear),
        gt_ellipticity=torch.randn(n, 2, generator=generator) * 0.3,
        gt_has_ellipticity=torch.full((n,), has_shape),
        **more,
    )


def predicted(head: ShearHead, features: dict, boxes: torch.Tensor, size: tuple[int, int]):
    with torch.no_grad():
        return head.predict(features, [objects(boxes, "pred_boxes", size)])[0].pred_shear


def quarter_turn(boxes: torch.Tensor) -> torch.Tensor:
    """As `transforms.quarter_turns`: (x, y) -> (y, width - x)."""
    x0, y0, x1, y1 = boxes.T
    return torch.stack((y0, WIDTH - x1, y1, WIDTH - x0), dim=1)


# ----------------------------------------------------------------------------------------------------------- symmetry
@pytest.mark.parametrize("psf", ["image", "shape", None])
def test_a_turned_picture_gives_the_turned_shear(psf):
    head, features = make_head(psf), make_features()
    before = predicted(head, features, BOXES, (HEIGHT, WIDTH))
    turned = {name: torch.rot90(value, 1, (-2, -1)) for name, value in features.items()}
    after = predicted(head, turned, quarter_turn(BOXES), (WIDTH, HEIGHT))
    assert before.component_mean.abs().max() > 1e-3
    torch.testing.assert_close(after.component_mean, -before.component_mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(after.scale_tril, before.scale_tril, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("psf", ["image", "shape", None])
def test_a_mirrored_picture_gives_the_mirrored_shear(psf):
    head, features = make_head(psf), make_features()
    before = predicted(head, features, BOXES, (HEIGHT, WIDTH))
    x0, y0, x1, y1 = BOXES.T
    boxes = torch.stack((WIDTH - x1, y0, WIDTH - x0, y1), dim=1)
    after = predicted(head, {name: value.flip(-1) for name, value in features.items()}, boxes, (HEIGHT, WIDTH))
    signs = torch.tensor([1.0, -1.0])
    torch.testing.assert_close(after.component_mean, before.component_mean * signs, atol=1e-6, rtol=0)
    torch.testing.assert_close(after.scale_tril, before.scale_tril * signs[:, None] * signs, atol=1e-6, rtol=1e-6)
    assert before.scale_tril[..., 1, 0].abs().max() > 1e-4  # there was a correlation to turn


def test_one_view_alone_is_not_symmetric():
    """Else the two tests above would test nothing."""
    head, features = make_head(), make_features()
    turned = {name: torch.rot90(value, 1, (-2, -1)) for name, value in features.items()}
    found = [
        head.measure(
            cut_windows(maps, [objects(boxes, size=size)], "proposal_boxes", 25), maps["psf"].expand(6, -1, -1, -1)
        )
        for maps, boxes, size in (
            (features, BOXES, (HEIGHT, WIDTH)),
            (turned, quarter_turn(BOXES), (WIDTH, HEIGHT)),
        )
    ]
    assert (found[0][0] + found[1][0]).abs().max() > 1e-3


def test_signs_are_those_of_a_stretched_picture():
    """Moments of an ellipse drawn, mirrored and exchanged."""
    y, x = torch.meshgrid(*[torch.arange(-20.0, 21)] * 2, indexing="ij")
    light = torch.exp(-0.5 * (x**2 / 9 + y**2 / 25 + 0.08 * x * y))

    def shape(image):
        return torch.stack((((x**2 - y**2) * image).sum(), (2 * x * y * image).sum())) / image.sum()

    for mirror_x in (False, True):
        for mirror_y in (False, True):
            for exchange in (False, True):
                axes = [axis for axis, wanted in ((-1, mirror_x), (-2, mirror_y)) if wanted]
                image = light.flip(axes) if axes else light
                image = image.t() if exchange else image
                signs = torch.tensor(spin2_signs(mirror_x, mirror_y, exchange))
                torch.testing.assert_close(shape(image), shape(light) * signs)


def test_padding_a_batch_changes_nothing():
    head, features = make_head(), make_features()
    alone = predicted(head, features, BOXES, (HEIGHT, WIDTH))
    padded = {
        name: value if name == "psf" else torch.nn.functional.pad(value, (0, 14, 0, 3))
        for name, value in features.items()
    }
    torch.testing.assert_close(predicted(head, padded, BOXES, (HEIGHT, WIDTH)).component_mean, alone.component_mean)


# ------------------------------------------------------------------------------------------------------------- losses
def test_the_gradient_term_is_that_of_the_plane_through_the_field():
    place = torch.tensor([[0.1, 0.1], [0.9, 0.1], [0.1, 0.9], [0.9, 0.9]])
    true = torch.stack((0.02 + 0.03 * place[:, 0], torch.zeros(4)), dim=1)  # ||g|| rises by 0.03 along x
    found = torch.stack((torch.zeros(4), 0.05 - 0.01 * place[:, 1]), dim=1)  # falls by 0.01 along y
    # Variance of the places is 0.16 along each axis, the ridge 0.0025.
    expected = (0.03 + 0.01) * 0.16 / (0.16 + 0.0025)
    assert gradient_loss(place, found, true).item() == pytest.approx(expected, rel=1e-5)


def test_the_gradient_term_vanishes_for_equal_and_constant_fields_and_for_single_objects():
    place = torch.rand(5, 2, generator=torch.Generator().manual_seed(3))
    constant = torch.tensor([[0.03, -0.04]]).expand(5, 2)
    assert gradient_loss(place, constant, constant * 0.5).item() == pytest.approx(0, abs=1e-8)
    field = torch.randn(5, 2) * 0.1
    assert gradient_loss(place, field, field).item() == 0
    assert gradient_loss(place[:1], field[:1], constant[:1]).item() == 0
    assert gradient_loss(place[:0], field[:0], constant[:0]).item() == 0


def test_a_pair_of_objects_has_the_gradient_along_its_line():
    place = torch.tensor([[0.25, 0.5], [0.75, 0.5]])
    found, true = torch.tensor([[0.0, 0.0], [0.06, 0.08]]), torch.zeros(2, 2)
    assert gradient_loss(place, found, true).item() == pytest.approx(0.1 / 0.5 * 0.0625 / (0.0625 + 0.0025), rel=1e-5)


def test_losses_are_the_means_over_labelled_objects(monkeypatch):
    head, features, batch = make_head(likelihood_weight=1.0), make_features(2), [labelled(), labelled(False)]
    batch[0].gt_has_shear[1] = False
    batch[1].gt_has_ellipticity[2:] = False
    generator = torch.Generator().manual_seed(5)
    statistic, scales = torch.randn(8, 2, generator=generator), torch.randn(8, 4, generator=generator) * 0.2
    monkeypatch.setattr(head, "_any_view", lambda windows, psf: (statistic, scales))
    losses = head.losses(features, batch)
    shapes = torch.cat((batch[0].gt_ellipticity, batch[1].gt_ellipticity[:2]))
    assert losses["loss_shear"].item() == pytest.approx((statistic - shapes).abs().sum(1).mean().item(), rel=1e-5)
    known = torch.tensor([0, 2, 3, 4, 5])
    tril = torch.zeros(5, 2, 2)
    tril[:, 0, 0], tril[:, 1, 1] = scales[known, 1].exp(), scales[known, 2].exp()
    tril[:, 1, 0] = scales[known, 3] * tril[:, 1, 1]
    center = scales[known, 0].exp()[:, None] * batch[0].gt_shear[known]
    expected = torch.distributions.MultivariateNormal(center, scale_tril=tril).log_prob(statistic[known])
    assert losses["loss_shear_likelihood"].item() == pytest.approx(-expected.mean().item(), rel=1e-5)


def nan_labels(**wanted) -> Instances:
    batch = labelled(False, False, **wanted)
    batch.gt_shear, batch.gt_ellipticity = torch.full_like(batch.gt_shear, math.nan), batch.gt_ellipticity * math.nan
    return batch


@pytest.mark.parametrize("target", ["ellipticity", "shear"])
@pytest.mark.parametrize(
    "batch",
    [
        lambda: [nan_labels(), nan_labels()],
        lambda: [labelled(boxes=BOXES[:0]), labelled(boxes=BOXES[:0])],
        lambda: [objects(), objects()],
    ],
    ids=["no labels", "no objects", "no label fields"],
)
def test_a_batch_without_labels_costs_exactly_zero_and_keeps_every_gradient(target, batch):
    head = make_head(target=target, gradient_weight=float(target == "shear"))
    losses = head.losses(make_features(2), batch())
    assert [loss.item() for loss in losses.values()] == [0.0] * (3 if target == "shear" else 2)
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.all(p.grad == 0) for p in head.parameters())


def test_every_parameter_learns_where_there_are_labels():
    head = make_head(target="shear", gradient_weight=1.0)
    sum(head.losses(make_features(), [labelled()]).values()).backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.any() for p in head.parameters())


def test_response_and_covariance_do_not_change_what_is_looked_at():
    """The likelihood of a statistic is largest when the statistic says nothing."""
    head = make_head(mean_weight=0.0)
    sum(head.losses(make_features(), [labelled()]).values()).backward()
    assert all(not p.grad.any() for p in head.network.parameters())
    assert all(p.grad.any() for p in head.scales.parameters())


def test_stars_and_flagged_objects_are_not_learned_from():
    head, features = make_head(exclude_flags=["EDGE"]), make_features()
    flags = torch.tensor([0, FLAGS["EDGE"].value, 0, 0, 0, 0])
    batch = labelled(gt_flags=flags)
    batch.gt_classes[2] = 1
    kept = head._learned_from([batch])[0]
    assert torch.equal(kept.gt_shear, batch.gt_shear[[0, 3, 4, 5]])
    assert torch.isfinite(head.losses(features, [batch])["loss_shear"])
    assert len(make_head(classes=None)._learned_from([batch])[0]) == 6


def test_the_regression_on_the_true_shear_is_not_biased_by_shape_noise():
    """Statistic = 0.5 (shear + shape): the response must come out as 0.5, while predicting g gives 0.5 * 0.1 or so."""
    head, generator = make_head(), torch.Generator().manual_seed(4)
    n = 4000
    shear = (torch.rand(n, 2, generator=generator) - 0.5) * 0.2
    shape = torch.randn(n, 2, generator=generator) * 0.2
    shape = torch.cat((shape[: n // 2], -shape[: n // 2]))  # ring pairs
    shear = shear[: n // 2].repeat(2, 1)
    statistic = 0.5 * (shear + shape)
    scales = torch.tensor([0.0, -1.0, -1.0, 0.0], requires_grad=True)
    optimizer = torch.optim.LBFGS([scales], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = -shear_head._log_likelihood(statistic, shear, scales.expand(n, 4)).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert scales[0].exp().item() == pytest.approx(0.5, abs=1e-3)
    assert scales[1].exp().item() == pytest.approx(0.1, rel=0.02)
    assert head.scales[-1].bias[0].exp().item() == pytest.approx(0.6)


# ---------------------------------------------------------------------------------------------------------- bad input
def test_predictions_exist_for_empty_images():
    head = make_head()
    batch = [objects(BOXES[:0], "pred_boxes"), objects(BOXES, "pred_boxes"), objects(BOXES[:0], "pred_boxes")]
    found = head.predict(make_features(3), batch)
    assert [len(item.pred_shear) for item in found] == [0, 6, 0]
    assert found[1].pred_shear.component_mean.shape == (6, 1, 2)
    assert found[1].pred_shear.scale_tril.shape == (6, 1, 2, 2)
    assert len(head.predict(make_features(), [objects(BOXES[:0], "pred_boxes")])[0].pred_shear) == 0


@pytest.mark.parametrize("psf", ["image", "shape"])
@pytest.mark.parametrize("damage", ["no psf", "a band without psf", "a masked band", "all masked", "infinite noise"])
def test_damaged_input_gives_finite_losses_and_predictions(psf, damage):
    head, features = make_head(psf), make_features()
    if damage == "no psf":
        features["psf"].zero_()
    elif damage == "a band without psf":
        features["psf"][:, 1] = 0
    elif damage == "a masked band":
        features["valid"][:, 1] = False
        features["flux"][:, 1] = 1e6  # must not matter
    elif damage == "all masked":
        features["valid"].zero_()
    else:
        features["variance"][:, 0] = math.inf
    losses = head.losses(features, [labelled()])
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())
    found = predicted(head, features, BOXES, (HEIGHT, WIDTH))
    assert torch.isfinite(found.component_mean).all() and torch.isfinite(found.scale_tril).all()
    if damage == "a masked band":
        features["flux"][:, 1] = -1e6
        assert torch.equal(predicted(head, features, BOXES, (HEIGHT, WIDTH)).component_mean, found.component_mean)


def test_pictures_without_a_psf_are_those_with_an_unknown_one():
    head, features = make_head(), make_features()
    features["psf"].zero_()
    unknown = predicted(head, features, BOXES, (HEIGHT, WIDTH))
    del features["psf"]
    assert torch.equal(predicted(head, features, BOXES, (HEIGHT, WIDTH)).component_mean, unknown.component_mean)


def test_a_detector_without_pixels_or_with_other_bands_is_refused():
    head, features = make_head(), make_features()
    with pytest.raises(InputError, match="the shear head has num_bands=3, the images 2 bands"):
        head.losses({name: value[:, :2] for name, value in features.items()}, [labelled()])
    with pytest.raises(InputError, match="set model.stretch"):
        head.predict({"image": features["flux"]}, [objects(BOXES, "pred_boxes")])


def test_autocast_to_bfloat16_changes_nothing():
    head, features = make_head(), make_features()
    before = predicted(head, features, BOXES, (HEIGHT, WIDTH))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        after = predicted(head, features, BOXES, (HEIGHT, WIDTH))
        losses = head.losses(features, [labelled()])
    assert torch.equal(after.component_mean, before.component_mean)
    assert all(loss.dtype == torch.float32 for loss in losses.values())


def test_bands_in_another_order_give_the_same_shear_after_their_weights_are_mixed():
    order = [2, 0, 1]
    for psf in ("image", "shape", None):
        head, features = make_head(psf), make_features()
        before = predicted(head, features, BOXES, (HEIGHT, WIDTH))
        moved = {name: value[:, order] for name, value in features.items()}
        assert (
            predicted(head, moved, BOXES, (HEIGHT, WIDTH)).component_mean - before.component_mean
        ).abs().max() > 1e-4
        state = head.state_dict()
        mixed = {f"network.{name}": mixing for name, mixing in head.network.band_weights(order).items()}
        head.load_state_dict({name: state[name] @ mixing for name, mixing in mixed.items()}, strict=False)
        after = predicted(head, moved, BOXES, (HEIGHT, WIDTH))
        torch.testing.assert_close(after.component_mean, before.component_mean, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ShapeNetwork(3, psf="moments"), "psf='moments': choose 'image', 'shape' or None"),
        (lambda: ShapeNetwork(3, window=32), "window=32 must be a multiple of 4 plus 1"),
        (lambda: make_head(target="g1"), "target='g1': choose 'ellipticity' or 'shear'"),
        (lambda: make_head(gradient_weight=1.0), "gradient_weight=1.0 .* set target='shear'"),
        (lambda: make_head(mean_weight=-1.0), "mean_weight=-1.0 must be finite and not negative"),
        (lambda: make_head(response=0.0), "response=0.0 must be between 0.01 and 2"),
        (lambda: make_head(exclude_flags=["EGDE"]), "'EGDE' is no flag"),
    ],
)
def test_settings_without_meaning_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_the_columns_are_in_the_schema():
    assert set(ShearHead.columns) <= set(SCHEMA)


# ---------------------------------------------------------------------------------------------------------------- PSF
def gaussian(side: int, xx: float, yy: float, xy: float = 0.0) -> torch.Tensor:
    place = torch.arange(side, dtype=torch.float32) - side // 2
    y, x = place[:, None], place
    det = xx * yy - xy * xy
    light = torch.exp(-0.5 * (yy * x**2 - 2 * xy * x * y + xx * y**2) / det)
    return (light / light.sum())[None, None]


def test_a_binned_psf_keeps_its_light_and_its_middle():
    psf = gaussian(25, 3.0, 3.0).repeat(3, 2, 1, 1)
    binned = binned_psf(psf, torch.tensor([1, 2, 8]), 25)
    assert binned.shape == (3, 2, 25, 25)
    torch.testing.assert_close(binned[0], psf[0])
    torch.testing.assert_close(binned.sum((-2, -1)), torch.ones(3, 2), atol=1e-4, rtol=0)
    torch.testing.assert_close(binned, binned.flip(-1))
    torch.testing.assert_close(binned, binned.transpose(-2, -1))
    assert binned[2, 0, 12, 12] > 0.9  # within 8 pixels of 1.7 sigma
    # A sum over 2 + 2 half pixels across: by hand.
    by_hand = (psf[0, 0, 11:14, 11:14] * torch.tensor([[0.5], [1], [0.5]]) * torch.tensor([0.5, 1, 0.5])).sum()
    assert binned[1, 0, 12, 12].item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_a_psf_larger_or_smaller_than_the_window_is_cut_or_padded():
    psf = gaussian(25, 3.0, 3.0)
    assert torch.equal(binned_psf(psf, torch.tensor([1]), 13), psf[..., 6:19, 6:19])
    assert torch.equal(binned_psf(psf, torch.tensor([1]), 33)[..., 4:29, 4:29], psf)


def test_the_shape_of_a_gaussian_psf_is_its_own():
    psf = torch.cat(
        (gaussian(25, 4.0, 4.0), gaussian(25, 4.8, 3.2), gaussian(25, 4.0, 4.0, 0.8), torch.zeros(1, 1, 25, 25))
    )
    size, known, ellipticity = psf_shapes(psf, torch.tensor([1, 2, 1, 1]))
    assert known[:, 0].tolist() == [1, 1, 1, 0]
    assert size[0, 0].item() == pytest.approx(math.log(2), abs=0.01)
    assert size[1, 0].item() == pytest.approx(0.5 * math.log(math.sqrt(4.8 * 3.2)) - math.log(2), abs=0.01)
    # Under a weight of the PSF's own width s^2 the variances become a s^2 / (a + s^2): e is about half of 0.2.
    s2 = math.sqrt(4.8 * 3.2)
    a, b = (v * s2 / (v + s2) for v in (4.8, 3.2))
    assert ellipticity[1, 0].tolist() == pytest.approx([(a - b) / (a + b), 0], abs=2e-3)
    assert ellipticity[2, 0, 1].item() > 0.09 and ellipticity[2, 0, 0].abs().item() < 1e-5
    assert not ellipticity[3].any() and size[3] == 0
