"""Heads one after the other: what each sees of those before it, of which views, and an order that cannot be."""

import pytest
import torch
from narrow_model import narrow, scene
from torch import nn

from deepdisc.catalog import FLAGS
from deepdisc.config import L, instantiate, load
from deepdisc.detector.pooling import ROIPooler
from deepdisc.detector.roi_heads import ROIHeads
from deepdisc.errors import InputError
from deepdisc.heads.flux_colours import FluxColours
from deepdisc.heads.head import Head
from deepdisc.heads.redshift import RedshiftHead
from deepdisc.mixture import Mixture


class Width(Head):
    """Measures the boxes' widths, for itself and for others; its calibration shows whether it was applied."""

    adds = ("pred_width",)
    calibrated = {"pred_width": "width"}  # noqa: RUF012

    def __init__(self, exclude_flags=()):
        super().__init__(exclude_flags)
        self.scale = nn.Parameter(torch.ones(()))
        self.calibration = lambda width: width + 1000

    def losses(self, features, instances):
        self.seen = instances
        for objects in instances:
            objects.pred_width = objects.proposal_boxes[:, 2] - objects.proposal_boxes[:, 0]
        error = [self.scale * x.pred_width - x.gt_size for x in self.labelled(instances, "size") if len(x)]
        return {"loss_width": torch.cat(error).abs().mean() if error else self.scale * 0.0}

    def predict(self, features, instances):
        for objects in instances:
            objects.pred_width = self.scale * (objects.pred_boxes[:, 2] - objects.pred_boxes[:, 0])
        return instances


class Area(Head):
    """Squares what `Width` has measured."""

    needs = ("pred_width",)

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def losses(self, features, instances):
        self.seen = instances
        return {"loss_area": self.scale * sum((x.pred_width**2).sum() for x in instances)}

    def predict(self, features, instances):
        for objects in instances:
            objects.pred_area = self.scale * objects.pred_width**2
        return instances


def measuring(**settings) -> nn.Module:
    return narrow(roi_heads=roi_heads({"width": Width(), "area": Area()}, **settings))


def roi_heads(heads: dict, **settings) -> ROIHeads:
    cfg = load("configs/common/resnet_fpn.py", ["num_bands=3", "num_classes=2"])
    built = narrow().roi_heads
    parts = {name: getattr(built, name) for name in cfg.model.roi_heads if hasattr(built, name) and name != "heads"}
    return ROIHeads(**{**parts, **settings}, heads=heads)


def test_a_head_sees_what_those_before_it_measured_in_losses_and_in_prediction():
    model = measuring()
    losses = model([scene(seed=1), scene(seed=2)])
    width, area = model.roi_heads.heads.values()
    assert area.seen is width.seen
    total = sum(((x.proposal_boxes[:, 2] - x.proposal_boxes[:, 0]) ** 2).sum() for x in area.seen)
    assert losses["loss_area"].item() == pytest.approx(total.item())
    model.eval().roi_heads.box_predictor.test_score_thresh = 0.0
    with torch.no_grad():
        found = model([{"image": scene()["image"]}])[0]["instances"]
    width = found.pred_boxes[:, 2] - found.pred_boxes[:, 0]
    assert len(found) and torch.equal(found.pred_area, width**2), "what others read is not calibrated"
    assert torch.equal(found.pred_width, width + 1000), "what the catalogue gets is"


@pytest.mark.parametrize("record", [{"image": torch.zeros(3, 64, 64)}, {"image": torch.zeros(3, 40, 70)}])
def test_without_detections_the_fields_exist(record):
    model = measuring().eval()
    model.roi_heads.box_predictor.test_score_thresh = 1.0
    with torch.no_grad():
        found = model([record])[0]["instances"]
    assert len(found) == len(found.pred_area) == len(found.pred_width) == 0


def test_every_proposal_names_its_true_object():
    model, records = measuring(), [scene(seed=1), scene(seed=2, count=2)]
    model(records)
    for objects, record in zip(model.roi_heads.heads["area"].seen, records, strict=True):
        truth = record["instances"]
        assert set(objects.gt_object.tolist()) == set(range(len(truth)))
        assert torch.equal(objects.gt_boxes, truth.gt_boxes[objects.gt_object])


@pytest.mark.parametrize("views", [1, 3])
def test_each_object_is_measured_in_at_most_so_many_views_and_none_is_lost(views):
    records = [scene(seed=1), scene(seed=2), scene(count=0)]
    full, limited = measuring(), measuring(views_per_object=views)
    for model in (full, limited):
        torch.manual_seed(5)
        model.all_losses = model(records)
    for everything, chosen in zip(full.roi_heads.heads["area"].seen, limited.roi_heads.heads["area"].seen, strict=True):
        before, after = (torch.bincount(x.gt_object, minlength=4) for x in (everything, chosen))
        assert torch.equal(after, before.clamp(max=views))
        boxes = {tuple(box) for box in everything.proposal_boxes.tolist()}
        assert all(tuple(box) in boxes for box in chosen.proposal_boxes.tolist())
    assert before.sum() == 0 and max(len(x) for x in full.roi_heads.heads["area"].seen) > 4 * views
    for name in ("loss_rpn_cls", "loss_cls", "loss_box_reg", "loss_mask"):
        assert torch.equal(full.all_losses[name], limited.all_losses[name]), "not for the mask, nor for the boxes"


def test_the_views_are_drawn_anew_each_time():
    model, drawn = measuring(views_per_object=1), set()
    for seed in range(4):
        torch.manual_seed(seed)
        model([scene(seed=1)])
        drawn.add(str(model.roi_heads.heads["area"].seen[0].proposal_boxes.tolist()))
    assert len(drawn) > 1


def test_without_a_limit_no_random_number_is_drawn_for_it():
    """Published trainings repeat number by number."""
    states = []
    for model in (measuring(), narrow()):
        torch.manual_seed(5)
        model([scene(seed=1)])
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_excluded_flags_change_that_heads_loss_and_nothing_else():
    record = scene(seed=1)
    record["instances"].gt_flags = torch.tensor([FLAGS["EDGE"].value, 0, 0, 0])
    record["instances"].gt_has_size = torch.ones(4, dtype=torch.bool)
    results = []
    for excluded in ((), ("BLENDED",), ("EDGE",)):
        model = narrow(roi_heads=roi_heads({"width": Width(excluded), "area": Area()}))
        torch.manual_seed(5)
        results.append(model([record]))
        assert 0 in model.roi_heads.heads["width"].seen[0].gt_object
    none, other, edge = results
    assert none["loss_width"] == other["loss_width"] != edge["loss_width"]
    for name in none:
        assert name == "loss_width" or torch.equal(none[name], edge[name]), name


def redshift_head(**settings) -> RedshiftHead:
    return RedshiftHead(ROIPooler(3, ["p1"]), 16, hidden=(8, 8), photometry=FluxColours(3), **settings)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({"area": Area(), "width": Width()}, "'area' reads 'pred_width'.*: area, width.*list 'width' before 'area'"),
        ({"area": Area()}, "'area' reads 'pred_width'.*add the head that measures it before"),
        ({"redshift": redshift_head()}, "'redshift' reads 'pred_flux', which none of the heads before it"),
    ],
)
def test_a_head_that_cannot_see_what_it_needs_is_named(heads, message):
    with pytest.raises(InputError, match=message):
        roi_heads(heads)


@pytest.mark.parametrize("views", [-1, 1.5, True])
def test_a_number_of_views_that_cannot_be_is_named(views):
    with pytest.raises(InputError, match=f"views_per_object={views} must be an integer; 0 takes all"):
        roi_heads({}, views_per_object=views)


def test_a_cascade_limits_views_and_checks_the_order_likewise():
    overrides = ["model.backbone.out_channels=8", "model.roi_heads.batch_size_per_image=64"]
    cfg = load("configs/common/cascade_resnet_fpn.py", ["num_bands=3", "num_classes=2", *overrides])
    cfg.model.backbone.bottom_up.depth = 18
    cfg.model.backbone.bottom_up.res2_out_channels = 8
    cfg.model.roi_heads.views_per_object = 1
    cfg.model.roi_heads.heads = {"width": L(Width)(), "area": L(Area)()}
    model = instantiate(cfg.model)
    model([scene(seed=1)])
    assert sorted(model.roi_heads.heads["area"].seen[0].gt_object.tolist()) == [0, 1, 2, 3]
    cfg.model.roi_heads.heads = {"area": L(Area)()}
    with pytest.raises(InputError, match="'area' reads 'pred_width'"):
        instantiate(cfg.model)


class Fluxes(Head):
    """Stands for the flux head: PDFs of all objects, in training too."""

    adds = ("pred_flux", "pred_flux_measured")

    def _measure(self, instances, field):
        for objects in instances:
            width = objects.get(field)[:, 2:3] - objects.get(field)[:, :1]
            mean = width[..., None].expand(-1, 3, 1)
            objects.pred_flux = Mixture(torch.zeros_like(mean), mean, torch.ones_like(mean))
            objects.pred_flux_measured = torch.ones(len(objects), 3, dtype=torch.bool)
        return instances

    def losses(self, features, instances):
        self._measure(instances, "proposal_boxes")
        return {}

    def predict(self, features, instances):
        return self._measure(instances, "pred_boxes")


@pytest.mark.parametrize("views", [0, 2])
def test_a_redshift_head_learns_from_fluxes_of_one_and_the_same_pass(views):
    heads = {"flux": Fluxes(), "redshift": redshift_head()}
    model = narrow(roi_heads=roi_heads(heads, views_per_object=views))
    record = scene(seed=1)
    record["instances"].gt_redshift = torch.tensor([0.3, 0.6, 0.9, float("nan")])
    record["instances"].gt_has_redshift = torch.tensor([True, True, True, False])
    loss = model([record, scene(count=0)])["loss_redshift"]
    loss.backward()
    assert loss != 0 and torch.isfinite(model.roi_heads.heads["redshift"].colors[0].weight.grad).all()
    assert model([scene(count=0)])["loss_redshift"] == 0
