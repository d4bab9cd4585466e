"""Flux, redshift and shear heads together, in the shipped configuration for ground-based mosaics."""

import pytest
import torch
from torch import nn

from deepdisc.catalog import FLAGS
from deepdisc.config import L, instantiate, load
from deepdisc.detector.loss_weights import LossWeights
from deepdisc.errors import InputError
from deepdisc.heads.flux import FluxHead
from deepdisc.heads.flux_colours import FluxColours
from deepdisc.heads.shape_network import ShapeNetwork
from deepdisc.heads.shear import ShearHead
from deepdisc.psf import PSF_SIDE, moffat_psf
from deepdisc.structures import Instances
from deepdisc.training.optim import build_optimizer

SIZE, BANDS = 64, 5
MEASURED = {"loss_flux", "loss_redshift", "loss_shear", "loss_shear_likelihood"}


def build(heads: tuple[str, ...] = ("flux", "redshift", "shear"), **parts) -> nn.Module:
    """The shipped detector, narrower still, with these heads in this order."""
    cfg = load("configs/ugriz_r18.py")
    cfg.model.backbone.out_channels = 16
    cfg.model.roi_heads.box_head.fc_dim = 32
    cfg.model.roi_heads.views_per_object = 2
    redshift = cfg.model.roi_heads.heads.redshift
    redshift.photometry = L(FluxColours)(num_bands="${num_bands}")
    redshift.exclude_flags = ["EDGE"]
    known = {
        "flux": L(FluxHead)(num_bands="${num_bands}", num_components=3, widths=[4, 8, 8], hidden=16),
        "redshift": redshift,
        "shear": L(ShearHead)(network=L(ShapeNetwork)(num_bands="${num_bands}", width=8, num_maps=4, hidden=8)),
    }
    cfg.model.roi_heads.heads = {name: known[name] for name in heads}
    torch.manual_seed(0)
    return instantiate(cfg.model, **parts)


def record(seed: int = 0, labels: bool = True) -> dict:
    """Four round galaxies of known flux, redshift and shear on white noise; the third is cut by the tile's edge."""
    generator = torch.Generator().manual_seed(seed)
    center = torch.tensor([[14.0, 15], [45, 18], [20, 61], [46, 44]]) + torch.rand(4, 2, generator=generator)
    flux = 3000 * torch.rand(4, BANDS, generator=generator) + 1000
    grid = torch.arange(SIZE) + 0.5
    sigma = 2.5
    along = torch.exp(-0.5 * ((grid - center[..., None]) / sigma).square()) / (sigma * (2 * torch.pi) ** 0.5)
    profile = along[:, 1, :, None] * along[:, 0, None, :]
    image = torch.einsum("nc,nyx->cyx", flux, profile) + 2 * torch.randn(BANDS, SIZE, SIZE, generator=generator)
    truth = Instances(
        (SIZE, SIZE),
        gt_boxes=torch.cat((center - 6, center + 6), dim=1).clamp(0, SIZE),
        gt_classes=torch.tensor([0, 0, 0, 1]),
        gt_masks=profile > 0.1 * profile.amax((1, 2), keepdim=True),
    )
    if labels:
        truth.gt_flux, truth.gt_has_flux = flux, torch.ones(4, BANDS, dtype=torch.bool)
        truth.gt_has_flux[1, 2] = False
        truth.gt_redshift, truth.gt_has_redshift = torch.rand(4, generator=generator), torch.tensor([1, 1, 1, 0]) > 0
        for name in ("shear", "ellipticity"):
            truth.set(f"gt_{name}", 0.2 + 0.02 * torch.randn(4, 2, generator=generator))
            truth.set(f"gt_has_{name}", torch.tensor([True, True, False, False]))
        truth.gt_flags = torch.tensor([0, 0, FLAGS["EDGE"].value, 0])
    return {
        "image": image,
        "variance": torch.full_like(image, 4.0),
        "mask": torch.zeros_like(image, dtype=torch.bool),
        "psf": torch.from_numpy(moffat_psf(3.0)).float().expand(BANDS, -1, -1),
        "ebv": torch.tensor(0.03),
        "instances": truth,
    }


def test_a_step_trains_every_head_and_every_parameter():
    groups = {"box": ["loss_cls", "loss_box_reg"], "mask": ["loss_mask"], "shear": ["loss_shear"]}
    model = build(loss_weights=LossWeights(groups))
    batch = [record(seed) for seed in range(3)]
    losses = model(batch)
    assert MEASURED | {"loss_weighting"} <= set(losses)
    assert all(losses[name] != 0 for name in MEASURED)
    # some layers begin at zero, and those before them then have no gradient in the first step
    optimizer = build_optimizer(model, lr=1e-3)
    seen = set()
    for _ in range(3):
        optimizer.zero_grad()
        losses = model(batch)
        assert all(torch.isfinite(value) for value in losses.values())
        sum(losses.values()).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
            if parameter.grad.abs().max() > 0:
                seen.add(name)
        optimizer.step()
    learning = [name for name, _ in model.named_parameters() if name.startswith(("roi_heads.heads", "loss_weights"))]
    assert set(learning) - seen == set()


@pytest.mark.slow
def test_a_few_steps_bring_the_loss_of_each_head_down():
    model, batch = build(), [record(0), record(1)]
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    history = []
    for step in range(20):
        torch.manual_seed(step % 2)
        losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()})
    for name in ("loss_flux", "loss_redshift", "loss_shear"):
        start, end = (sum(row[name] for row in rows) / 5 for rows in (history[:5], history[-5:]))
        assert end < start, name


@pytest.mark.parametrize("kind", ["no labels", "no objects", "nothing measured"])
def test_what_has_no_labels_costs_exactly_nothing(kind):
    model = build()
    batch = [record(0, labels=False), record(1)]
    if kind == "no labels":
        batch = batch[:1]
    elif kind == "no objects":
        batch = batch[:1] * 2
        batch = [{**x, "instances": Instances((SIZE, SIZE))} for x in batch]
    else:
        batch[0]["mask"] = torch.ones_like(batch[0]["mask"])
        batch = batch[:1]
    losses = model(batch)
    assert all(torch.isfinite(value) for value in losses.values())
    assert {name: losses[name].item() for name in MEASURED} == dict.fromkeys(MEASURED, 0.0)
    sum(losses.values()).backward()
    for name, parameter in model.roi_heads.heads.named_parameters():
        assert parameter.grad is not None and torch.all(parameter.grad == 0), name


def test_images_with_and_without_labels_train_together():
    model = build()
    bare, empty = record(0, labels=False), {**record(1), "instances": Instances((SIZE, SIZE))}
    losses = model([bare, record(2), empty])
    assert all(torch.isfinite(losses[name]) and losses[name] != 0 for name in MEASURED)


@pytest.mark.parametrize(
    "broken", ["a band masked", "all masked", "infinite noise", "no PSF", "no variance of a pixel", "huge values"]
)
def test_bad_pixels_never_make_a_loss_or_a_prediction_nan(broken):
    model, bad = build(), record(0)
    if broken == "a band masked":
        bad["mask"][2] = True
    elif broken == "all masked":
        bad["mask"][:] = True
    elif broken == "infinite noise":
        bad["variance"][1] = float("inf")
    elif broken == "no PSF":
        bad["psf"] = torch.zeros(BANDS, PSF_SIDE, PSF_SIDE)
    elif broken == "no variance of a pixel":
        bad["variance"][:, 15, 14] = 0.0
    else:
        bad["image"][:, 15, 14] = 1e12
    losses = model([bad, record(1)])
    assert all(torch.isfinite(value) for value in losses.values())
    sum(losses.values()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    model.eval().roi_heads.box_predictor.test_score_thresh = 0.0
    model.roi_heads.box_predictor.test_topk_per_image = 10
    with torch.no_grad():
        found = model([bad])[0]["instances"]
    assert len(found)
    for part in (found.pred_flux, found.pred_redshift, found.pred_shear):
        assert torch.isfinite(part.logits).all() and torch.isfinite(part.component_mean).all()
    if broken in ("a band masked", "infinite noise"):
        assert found.pred_flux_measured.float().mean(0)[[1, 2]].min() == 0


@pytest.mark.parametrize("found", [False, True])
def test_an_empty_image_has_every_field(found):
    model = build().eval()
    model.roi_heads.box_predictor.test_score_thresh = 0.0 if found else 1.0
    model.roi_heads.box_predictor.test_topk_per_image = 10
    empty = record(0) | {"image": torch.zeros(BANDS, SIZE, SIZE)}
    with torch.no_grad():
        results = model([empty, record(1)])
    for result in results:
        objects = result["instances"]
        count = len(objects)
        assert (count > 0) == found
        assert tuple(objects.pred_flux.batch_shape) == tuple(objects.pred_flux_measured.shape) == (count, BANDS)
        assert tuple(objects.pred_redshift.batch_shape) == tuple(objects.pred_shear.batch_shape) == (count,)


def test_prediction_is_the_same_one_image_at_a_time():
    model = build().eval()
    model.roi_heads.box_predictor.test_score_thresh = 0.0
    model.roi_heads.box_predictor.test_topk_per_image = 20
    batch = [record(0), record(1)]
    with torch.no_grad():
        together = [x["instances"] for x in model(batch)]
        alone = [model([x])[0]["instances"] for x in batch]
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a.pred_boxes, b.pred_boxes, rtol=1e-4, atol=1e-3)
        for field in ("pred_flux", "pred_redshift"):
            torch.testing.assert_close(a.get(field).mean(), b.get(field).mean(), rtol=1e-2, atol=1e-2)


def test_the_redshift_head_needs_the_flux_head_before_it():
    with pytest.raises(InputError, match="list 'flux' before 'redshift'"):
        build(("redshift", "flux"))
    with pytest.raises(InputError, match="'redshift' reads 'pred_flux'.*add the head that measures it"):
        build(("shear", "redshift"))
    build(("shear", "flux", "redshift"))
