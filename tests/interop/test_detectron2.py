"""Our heads inside detectron2's ROI heads, and data to it and back: with a stand-in, and with detectron2 if present."""

import copy
import pickle
import sys

import fake_detectron2
import numpy as np
import pytest
import torch

from deepdisc import interop
from deepdisc.config import L
from deepdisc.detector.pooling import ROIPooler
from deepdisc.errors import InputError
from deepdisc.heads.flux_colours import FluxColours
from deepdisc.heads.head import Head
from deepdisc.heads.photometry import AperturePhotometry
from deepdisc.heads.redshift import RedshiftHead
from deepdisc.interop import detectron2 as bridge
from deepdisc.mixture import Mixture
from deepdisc.structures import Instances, PolygonMasks, RegionMasks

SIZE = (40, 48)


@pytest.fixture
def stand_in(monkeypatch):
    fake_detectron2.install(monkeypatch)
    return fake_detectron2


@pytest.fixture(params=["stand-in", "detectron2"])
def structures(request, monkeypatch):
    """`detectron2.structures`, of the stand-in and of the real one."""
    if request.param == "detectron2":
        return pytest.importorskip("detectron2.structures", reason="detectron2 is not installed")
    fake_detectron2.install(monkeypatch)
    return fake_detectron2


def redshift_head(**options):
    pooler = L(ROIPooler)(output_size=3, in_features=["p2"])
    return L(RedshiftHead)(pooler=pooler, in_channels=4, hidden=[8, 8], num_components=2, **options)


def make_heads(name="StandardMeasuringROIHeads", heads=None):
    torch.manual_seed(0)
    heads = {"redshift": redshift_head()} if heads is None else heads
    return getattr(bridge, name)(num_classes=2, heads=heads)


def make_batch(theirs):
    """Images, features, proposals and targets of two images, the second without objects."""
    torch.manual_seed(1)
    images = theirs.ImageList(torch.randn(2, 3, *SIZE), [SIZE, SIZE])
    features = {"p2": torch.randn(2, 4, 10, 12)}
    boxes = torch.tensor([[2.0, 3, 12, 13], [20, 20, 30, 32], [1, 30, 9, 38]])
    proposals = [theirs.Instances(SIZE, proposal_boxes=theirs.Boxes(boxes[:n].clone())) for n in (3, 2)]
    truth = theirs.Instances(
        SIZE,
        gt_boxes=theirs.Boxes(torch.tensor([[1.0, 1, 14, 14], [18, 18, 34, 34]])),
        gt_classes=torch.tensor([0, 1]),
        gt_redshift=torch.tensor([0.5, float("nan")]),
        gt_masks=theirs.BitMasks(torch.ones(2, *SIZE)),
    )
    return images, features, proposals, [truth, truth[torch.zeros(2, dtype=torch.bool)]]


# ------------------------------------------------------------------------------------------------------ ROI heads
@pytest.mark.parametrize("name", ["StandardMeasuringROIHeads", "CascadeMeasuringROIHeads"])
def test_the_loss_is_that_of_our_head_on_the_labelled_foreground(stand_in, name):
    heads = make_heads(name).train()
    images, features, proposals, targets = make_batch(stand_in)
    sampled, losses = heads(images, features, proposals, targets)
    # only the first proposal lies in an object with a redshift
    ours = Instances(SIZE, proposal_boxes=proposals[0].proposal_boxes.tensor[:1], ebv=torch.zeros(1))
    mixture = heads.heads["redshift"].forward({"p2": features["p2"][:1]}, [ours], "proposal_boxes")
    assert losses["loss_redshift"].item() == pytest.approx(-mixture.log_prob(torch.tensor([0.5])).item(), rel=1e-5)
    assert {"loss_redshift", "loss_cls" if name.startswith("S") else "loss_cls_stage2"} <= set(losses)
    losses["loss_redshift"].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in heads.heads.parameters())
    assert not sampled[0].has("ebv") and sampled[0].has("gt_redshift")


def test_a_batch_without_objects_costs_exactly_nothing(stand_in):
    heads = make_heads().train()
    images, features, proposals, targets = make_batch(stand_in)
    _, losses = heads(images, features, proposals, [targets[1], targets[1]])
    assert losses["loss_redshift"].item() == 0 and losses["loss_redshift"].requires_grad


@pytest.mark.parametrize("name", ["StandardMeasuringROIHeads", "CascadeMeasuringROIHeads"])
def test_predictions_survive_what_detectron2_does_to_its_instances(stand_in, name):
    heads = make_heads(name).eval()
    images, features, proposals, _ = make_batch(stand_in)
    with torch.no_grad():
        found, losses = heads(images, features, proposals)
    assert losses == {} and [len(x.pred_redshift) for x in found] == [3, 2]
    mixture = found[0].pred_redshift
    assert isinstance(mixture, Mixture) and not found[0].has("ebv")
    flipped = found[0][torch.tensor([2, 0])].pred_redshift
    assert torch.equal(flipped.mean(), mixture.mean()[[2, 0]])
    assert len(found[0][torch.tensor([True, False, True])].pred_redshift) == 2 == len(found[0][1:].pred_redshift)
    assert len(found[0][1].pred_redshift) == 1
    assert torch.equal(found[0].to("cpu").pred_redshift.mean(), mixture.mean())
    assert len(stand_in.Instances.cat(found).pred_redshift) == 5
    found[0].pred_boxes.tensor[1, 2:] = 0  # an empty box is dropped
    assert len(stand_in.detector_postprocess(found[0], 80, 96).pred_redshift) == 2
    # the same as our own head gives on the same boxes
    ours = Instances(SIZE, pred_boxes=proposals[1].proposal_boxes.tensor, ebv=torch.zeros(2))
    with torch.no_grad():
        [ours] = heads.heads["redshift"].predict({"p2": features["p2"][1:]}, [ours])
    torch.testing.assert_close(found[1].pred_redshift.mean(), ours.pred_redshift.mean())


def test_an_image_without_detections_has_the_fields_too(stand_in):
    heads = make_heads().eval()
    images, features, proposals, _ = make_batch(stand_in)
    found, _ = heads(images, features, [proposals[0][:0], proposals[1][:0]])
    assert [len(x.pred_redshift) for x in found] == [0, 0]


def test_heads_are_built_from_lazy_calls_and_keep_our_keys(stand_in):
    heads = make_heads(heads={"redshift": redshift_head(), "other": RedshiftHead(ROIPooler(3, ["p2"]), 4)})
    assert isinstance(heads.heads["redshift"], RedshiftHead)
    assert "heads.redshift.first.0.weight" in heads.state_dict()
    assert not list(make_heads(heads={}).parameters())


def test_the_classes_have_importable_names_and_are_made_once(stand_in):
    one = bridge.StandardMeasuringROIHeads
    assert one is bridge.StandardMeasuringROIHeads and issubclass(one, stand_in.StandardROIHeads)
    assert pickle.loads(pickle.dumps(one)) is one
    assert L(one)(num_classes=2)._target_ == "deepdisc.interop.detectron2.StandardMeasuringROIHeads"
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        bridge.Nothing  # noqa: B018


def test_a_head_on_the_image_works_and_one_on_missing_pixels_says_so(stand_in):
    images, features, proposals, targets = make_batch(stand_in)
    on_image = RedshiftHead(ROIPooler(3, ["image"]), 3, hidden=(8, 8))
    _, losses = make_heads(heads={"z": on_image})(images, features, proposals, targets)
    ours = Instances(SIZE, proposal_boxes=proposals[0].proposal_boxes.tensor[:1], ebv=torch.zeros(1))
    mixture = on_image.forward({"image": images.tensor[:1]}, [ours], "proposal_boxes")
    assert losses["loss_redshift"].item() == pytest.approx(-mixture.log_prob(torch.tensor([0.5])).item(), rel=1e-5)
    with_pixels = make_heads(heads={"z": redshift_head(photometry=L(AperturePhotometry)(num_bands=3))})
    with pytest.raises(InputError, match="a head needs 'flux', .* there are p2, image: use MeasuringRCNN"):
        with_pixels(images, features, proposals, targets)
    found = [stand_in.Instances(SIZE, pred_boxes=x.proposal_boxes, pred_classes=torch.zeros(len(x))) for x in proposals]
    with pytest.raises(InputError, match="a head needs 'image', .* there are p2: use"):
        make_heads(heads={"z": on_image}).eval().forward_with_given_boxes(features, found)


class Brightness(Head):
    """Stands for the flux head: unit fluxes in two bands, for the heads after it; its calibration doubles them."""

    adds = ("pred_flux", "pred_flux_measured")
    calibrated = {"pred_flux": "flux"}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.calibration = lambda pdf: pdf.affine(2.0)

    def losses(self, features, instances):
        self.seen = self.predict(features, instances)
        return {}

    def predict(self, features, instances):
        for objects in instances:
            one = torch.ones(len(objects), 2, 1)
            objects.pred_flux, objects.pred_flux_measured = Mixture(one, one, one), one[..., 0] > 0
        return instances


def test_heads_see_those_before_them_and_the_number_of_their_object(stand_in):
    colours = redshift_head(photometry=L(FluxColours)(num_bands=2))
    heads = make_heads(heads={"flux": Brightness(), "redshift": colours})
    images, features, proposals, targets = make_batch(stand_in)
    _, losses = heads.train()(images, features, proposals, targets)
    assert losses["loss_redshift"] != 0
    # the first two proposals lie in the two objects of the first image
    assert [x.gt_object.tolist() for x in heads.heads["flux"].seen if x.has("gt_object")] == [[0, 1]]
    found, _ = heads.eval()(images, features, proposals)
    assert [x.pred_flux.mean().unique().tolist() for x in found] == [[2.0], [2.0]], "calibrated last"
    with pytest.raises(InputError, match="list 'flux' before 'redshift'"):
        make_heads(heads={"redshift": colours, "flux": Brightness()})


# ---------------------------------------------------------------------------------------------------------- model
class Spy(RedshiftHead):
    """Keeps what it is given."""

    def predict(self, features, instances):
        self.seen = features, [objects.ebv for objects in instances]
        return super().predict(features, instances)


def make_records(theirs):
    torch.manual_seed(2)
    records = []
    for height, width in ((40, 48), (33, 50)):
        boxes = theirs.Boxes(torch.tensor([[2.0, 3, 12, 13], [30, 20, 42, 32]]))
        shape = (3, height, width)
        records.append(
            {"image": torch.randn(shape), "variance": torch.rand(shape) + 0.1, "ebv": torch.tensor([[0.1, 0.3]])}
            | {"proposals": theirs.Instances(shape[1:], proposal_boxes=boxes)}
        )
    records[0]["mask"] = torch.zeros(3, 40, 48, dtype=torch.bool)
    records[0]["mask"][1, 5, 6] = True
    records[1]["image"][0, 2, 3] = float("nan")
    records[0]["psf"] = torch.zeros(3, 25, 25)
    records[0]["psf"][:, 12, 12] = 1
    return records


def test_the_model_hands_on_reddening_and_measured_pixels(stand_in):
    spy = Spy(ROIPooler(3, ["p2"]), 4, hidden=(8, 8), photometry=AperturePhotometry(3))
    model = bridge.MeasuringRCNN(make_heads(heads={"z": spy}), num_bands=3).eval()
    records = make_records(stand_in)
    with torch.no_grad():
        results = model(records)
    assert [len(x["instances"].pred_redshift) for x in results] == [2, 2]
    maps, ebv = spy.seen
    assert maps["flux"].shape == maps["valid"].shape == (2, 3, 64, 64)
    assert torch.equal(maps["flux"][0, 0, :40, :48], records[0]["image"][0]), "not normalised"
    assert maps["flux"][0, 1, 5, 6] == 0 and not maps["valid"][0, 1, 5, 6] and not maps["valid"][0, :, 40:].any()
    assert maps["flux"][1, 0, 2, 3] == 0 and not maps["valid"][1, 0, 2, 3] and maps["valid"][1, 1:, :33, :50].all()
    assert torch.equal(maps["variance"][1, 2, :33, :50], records[1]["variance"][2])
    # cells of 24 pixels: x = 7 lies in the first, x = 36 is the centre of the second
    assert ebv[0].tolist() == pytest.approx([0.1, 0.3])
    assert maps["psf"].shape == (2, 3, 25, 25) and maps["psf"][0, 1, 12, 12] == 1 and not maps["psf"][1].any()
    records[0]["psf"] = records[0]["psf"][:, 1:]
    with pytest.raises(InputError, match=r"psf is \(3, 24, 25\), it must be \(3, 25, 25\)"):
        model(records)
    records[0]["variance"] = records[0]["variance"][:, :9]
    with pytest.raises(InputError, match=r"variance is \(3, 9, 48\), the image \(3, 40, 48\)"):
        model(records)


def test_without_variance_the_model_works_for_heads_that_need_no_pixels(stand_in):
    model = bridge.MeasuringRCNN(make_heads(), num_bands=3).eval()
    records = [{name: r[name] for name in ("image", "proposals")} for r in make_records(stand_in)]
    records[1]["image"] = torch.zeros(3, 33, 50)
    assert [len(x["instances"].pred_redshift) for x in model(records)] == [2, 2]


# ----------------------------------------------------------------------------------------------------- converters
def our_instances():
    masks = torch.zeros(2, 8, 9, dtype=torch.bool)
    masks[0, 1:3, 2:5] = masks[1, 4:, 0] = True
    return Instances(
        (8, 9),
        gt_boxes=torch.tensor([[2.0, 1, 5, 3], [0, 4, 1, 8]]),
        gt_classes=torch.tensor([1, 0]),
        gt_masks=RegionMasks.from_dense(masks),
        gt_redshift=torch.tensor([0.3, float("nan")]),
        gt_has_redshift=torch.tensor([True, False]),
    )


def test_records_go_there_and_come_back(structures):
    record = {"image": torch.randn(3, 8, 9), "variance": torch.ones(3, 8, 9), "ebv": torch.tensor(0.1)}
    record |= {"instances": our_instances(), "tile": 7, "window": (0, 0, 8, 9)}
    theirs = bridge.to_record(record)
    assert (theirs["height"], theirs["width"], theirs["image_id"]) == (8, 9, 7) and "tile" not in theirs
    assert isinstance(theirs["instances"], structures.Instances)
    assert isinstance(theirs["instances"].gt_boxes, structures.Boxes)
    assert isinstance(theirs["instances"].gt_masks, structures.BitMasks)
    assert theirs["instances"].gt_masks.tensor.shape == (2, 8, 9)
    back = bridge.from_record(theirs)
    assert set(back) == set(record) and back["tile"] == 7 and back["image"] is record["image"]
    for name, value in record["instances"].fields().items():
        found = back["instances"].get(name)
        if name == "gt_masks":
            assert torch.equal(found.to_dense(), value.to_dense())
        else:
            assert torch.equal(found.nan_to_num(-1.0), value.nan_to_num(-1.0)) and found.dtype == value.dtype
    assert record["instances"].has("gt_masks") and record["tile"] == 7, "the record is as it was"


def test_a_label_of_theirs_is_known_where_it_is_finite(structures):
    theirs = structures.Instances(
        (8, 9),
        gt_boxes=structures.Boxes(torch.zeros(3, 4)),
        gt_classes=torch.zeros(3, dtype=torch.int64),
        gt_redshift=torch.tensor([0.2, float("nan"), 0.0]),
        gt_shear=torch.tensor([[0.1, 0.0], [0.1, float("inf")], [0.0, 0.0]]),
    )
    ours = bridge.from_instances(theirs)
    assert ours.gt_has_redshift.tolist() == [True, False, True] and ours.gt_has_shear.tolist() == [True, False, True]
    assert not ours.has("gt_has_classes") and not ours.has("gt_has_boxes")


def test_polygons_stay_polygons(structures):
    corners = np.array([1.0, 1, 5, 1, 5, 4, 1, 4])
    theirs = structures.Instances((8, 9), gt_masks=structures.PolygonMasks([[corners]]))
    ours = bridge.from_instances(theirs)
    assert isinstance(ours.gt_masks, PolygonMasks) and [len(parts) for parts in ours.gt_masks.polygons] == [1]
    assert np.array_equal(bridge.to_instances(ours).gt_masks.polygons[0][0], corners)


def test_results_become_ours(structures):
    masks = torch.rand(2, 8, 9) > 0.5
    theirs = structures.Instances(
        (8, 9), pred_boxes=structures.Boxes(torch.ones(2, 4)), scores=torch.ones(2), pred_masks=masks
    )
    ours = bridge.from_record({"instances": theirs})["instances"]
    assert torch.equal(ours.pred_masks.to_dense(), masks) and torch.equal(ours.pred_boxes, torch.ones(2, 4))
    assert torch.equal(bridge.to_instances(ours).pred_masks, masks)
    theirs.set("pred_masks", torch.zeros(2, 1, 28, 28))
    with pytest.raises(InputError, match=r"pred_masks is \(2, 1, 28, 28\), the image \(8, 9\): paste"):
        bridge.from_instances(theirs)


def test_without_detectron2_one_line_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2", None)
    for name in ("structures", "modeling", "modeling.roi_heads", "config"):
        monkeypatch.delitem(sys.modules, f"detectron2.{name}", raising=False)
    assert interop.detectron2 is bridge
    for use in (
        lambda: bridge.StandardMeasuringROIHeads,
        lambda: bridge.MeasuringRCNN,
        lambda: bridge.to_record({"image": torch.zeros(1, 8, 9), "instances": our_instances()}),
    ):
        with pytest.raises(InputError, match="needs detectron2, which is not installed: .*does not need it"):
            use()


def test_a_broken_detectron2_shows_its_own_error(stand_in, monkeypatch):
    monkeypatch.delitem(sys.modules, "detectron2.structures")
    sys.modules["detectron2"].__path__ = []

    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "detectron2.structures":
                raise ModuleNotFoundError("No module named 'fvcore'", name="fvcore")

    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    with pytest.raises(ModuleNotFoundError, match="fvcore"):
        bridge.to_instances(our_instances())


# ------------------------------------------------------------------------------------------------ the real program
def test_the_real_detectron2_carries_a_head():
    """Mask R-CNN of its own LazyConfig with a redshift head: a training step, and a prediction."""
    pytest.importorskip("detectron2", reason="detectron2 is not installed")
    from detectron2 import model_zoo
    from detectron2.config import LazyCall, instantiate
    from detectron2.utils.events import EventStorage

    model = copy.deepcopy(model_zoo.get_config("common/models/mask_rcnn_fpn.py").model)
    model.backbone.bottom_up.stem.in_channels = 3
    model._target_ = bridge.MeasuringRCNN
    model.roi_heads._target_ = bridge.StandardMeasuringROIHeads
    pooler = LazyCall(ROIPooler)(output_size=7, in_features=["p2", "p3", "p4", "p5"])
    model.roi_heads.heads = {"redshift": LazyCall(RedshiftHead)(pooler=pooler, in_channels=256, hidden=[16, 8])}
    torch.manual_seed(0)
    model = instantiate(model)
    objects = our_instances()
    record = {"image": torch.rand(3, 8, 9) * 255, "instances": objects, "ebv": torch.tensor(0.1)}
    theirs = bridge.to_record(record)
    with EventStorage():
        losses = model.train()([theirs])
    assert torch.isfinite(losses["loss_redshift"])
    [result] = model.eval()([theirs])
    assert len(result["instances"].pred_redshift) == len(result["instances"])
