"""The detector as a whole, on small random models: any image, any truth, every part learns."""

import hashlib

import pytest
import torch
from narrow_model import LOSSES, narrow, scene
from torch import nn

from deepdisc.config import instantiate, load
from deepdisc.errors import InputError
from deepdisc.heads.head import Head
from deepdisc.structures import Instances, RegionMasks


# -------------------------------------------------------------------------------------------------------- training
def test_every_parameter_gets_a_finite_gradient():
    model = narrow()
    # enough scenes that some regions are pooled from every map
    losses = model([scene(seed=seed) for seed in range(6)])
    assert set(losses) == LOSSES
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_a_few_steps_on_one_scene_bring_the_loss_down():
    model = narrow()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    history = []
    for _ in range(20):
        losses = model([scene(seed=0), scene(seed=1)])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        # the box loss grows at first: with better proposals more of them match an object
        history.append(sum(losses[name].item() for name in ("loss_rpn_cls", "loss_cls", "loss_mask")))
    assert history[-1] < 0.5 * history[0]


@pytest.mark.parametrize("empty", [(True, True), (False, True)])
def test_images_without_objects_are_background(empty):
    records = [scene(seed=1), scene(seed=2)]
    for record, is_empty in zip(records, empty, strict=True):
        if is_empty:
            record["instances"] = Instances((64, 64))
    losses = narrow()(records)
    assert set(losses) == LOSSES
    assert all(torch.isfinite(value) for value in losses.values())
    assert losses["loss_cls"] > 0 and losses["loss_rpn_cls"] > 0
    for name in ("loss_rpn_loc", "loss_box_reg", "loss_mask"):
        assert losses[name].requires_grad
        assert (losses[name] == 0) == all(empty)
    sum(losses.values()).backward()


def test_an_empty_truth_with_all_its_fields_is_the_same_as_one_without():
    records, bare = [scene(), scene(seed=1)], [scene(), scene(seed=1)]
    records[1]["instances"] = records[1]["instances"][:0]
    bare[1]["instances"] = Instances((64, 64))
    model = narrow()
    losses = []
    for batch in (records, bare):
        torch.manual_seed(1)
        losses.append(model.losses(batch))
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in LOSSES)


def test_dense_masks_and_region_masks_give_the_same_losses():
    model = narrow().eval()
    dense, regional = scene(), scene()
    regional["instances"].gt_masks = RegionMasks.from_dense(dense["instances"].gt_masks)
    losses = []
    for record in (dense, regional):
        torch.manual_seed(1)
        losses.append(model.losses([record]))
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in LOSSES)


def test_losses_in_evaluation_mode_leave_batch_norm_alone():
    model = narrow().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        assert set(model.losses([scene()])) == LOSSES
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_divergence_is_an_error_not_a_nan():
    model = narrow()
    with torch.no_grad():
        model.proposal_generator.rpn_head.anchor_deltas.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="diverged"):
        model([scene()])


# ------------------------------------------------------------------------------------------------------ prediction
@pytest.mark.parametrize("size", [(1, 1), (1, 70), (33, 17), (64, 64)])
def test_any_image_size_gives_boxes_inside_the_image(size):
    model = narrow("model.roi_heads.box_predictor.test_score_thresh=0.0").eval()
    with torch.no_grad():
        found = model([{"image": torch.randn(3, *size)}])[0]["instances"]
    boxes = found.pred_boxes
    assert len(found) > 0 and found.image_size == size
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= size[1]).all() and (boxes[:, 3] <= size[0]).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert torch.isfinite(found.scores).all() and (found.scores.diff() <= 0).all()
    assert found.pred_masks.image_size == size and len(found.pred_masks) == len(found)
    for region, box in zip(found.pred_masks.regions, boxes, strict=True):
        assert (region[:2] <= box[:2]).all() and (region[:2] > box[:2] - 1).all()
        assert (region[2:] >= box[2:]).all() and (region[2:] < box[2:] + 1).all()


def test_a_batch_of_unlike_sizes_gives_what_each_image_gives_in_the_same_padding():
    model = narrow().eval()
    small, large = torch.randn(3, 40, 50), torch.randn(3, 64, 64)
    with torch.no_grad():
        together = model([{"image": small}, {"image": large}])
        alone = model([{"image": large}])
    assert [x["instances"].image_size for x in together] == [(40, 50), (64, 64)]
    torch.testing.assert_close(together[1]["instances"].pred_boxes, alone[0]["instances"].pred_boxes)
    torch.testing.assert_close(together[1]["instances"].scores, alone[0]["instances"].scores)


def test_fields_exist_where_nothing_is_found():
    model = narrow("model.roi_heads.box_predictor.test_score_thresh=1.0").eval()
    for image in (torch.zeros(3, 64, 64), torch.full((3, 64, 64), float("nan"))):
        with torch.no_grad():
            found = model([{"image": image}])[0]["instances"]
        assert len(found) == 0
        assert set(found.fields()) == {"pred_boxes", "scores", "pred_classes", "pred_masks", "ebv"}
        assert found.pred_boxes.shape == (0, 4)


def test_limits_of_score_and_number_hold_and_chunks_change_nothing():
    model = narrow("model.roi_heads.box_predictor.test_score_thresh=0.0").eval()
    model.roi_heads.box_predictor.test_topk_per_image = 17
    record = {"image": scene()["image"]}
    with torch.no_grad():
        found = model([record])[0]["instances"]
        model.roi_heads.chunk_size, model.roi_heads.mask_head.chunk_size = 10, 3
        chunked = model([record])[0]["instances"]
        model.roi_heads.box_predictor.test_score_thresh = float(found.scores[5])
        fewer = model([record])[0]["instances"]
    assert len(found) == 17
    torch.testing.assert_close(found.pred_boxes, chunked.pred_boxes, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found.scores, chunked.scores)
    assert 0 < len(fewer) <= 6


# ----------------------------------------------------------------------------------------------------------- heads
class SizeHead(Head):
    """Records what it is given; its one parameter times the mean error of the labelled objects is its loss."""

    columns = ("size",)

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.seen = None

    def losses(self, features, instances):
        self.seen = (features, instances)
        labelled = [x[x.gt_has_size] for x in instances if len(x)]
        sizes = torch.cat([x.gt_size for x in labelled]) if labelled else torch.zeros(0)
        return {"loss_size": (self.scale * sizes).sum() / max(1, len(sizes))}

    def predict(self, features, instances):
        for found in instances:
            found.pred_size = self.scale * (found.pred_boxes[:, 2] - found.pred_boxes[:, 0])
        return instances


def with_size_head() -> nn.Module:
    model = narrow()
    model.roi_heads.heads["size"] = SizeHead()
    return model


def test_a_head_sees_every_label_of_the_objects_its_proposals_match():
    model = with_size_head()
    records = [scene(seed=1), scene(seed=2)]
    losses = model(records)
    features, foreground = model.roi_heads.heads["size"].seen
    assert set(losses) == LOSSES | {"loss_size"} and losses["loss_size"] > 0
    assert features["image"].shape == (2, 3, 64, 64) and {"p1", "p2", "p3", "p4", "p5"} < set(features)
    for objects, record in zip(foreground, records, strict=True):
        truth = record["instances"]
        assert len(objects) >= len(truth)
        assert {"proposal_boxes", "ebv", "gt_boxes", "gt_classes", "gt_masks", "gt_size"} < set(objects.fields())
        assert objects.ebv.tolist() == pytest.approx([0.1] * len(objects))
        for i in range(len(objects)):
            match = int(torch.nonzero((truth.gt_boxes == objects.gt_boxes[i]).all(dim=1))[0])
            assert objects.gt_size[i] == truth.gt_size[match] and objects.gt_classes[i] == truth.gt_classes[match]
            assert torch.equal(objects.gt_masks[i].to_dense()[0], truth.gt_masks[match])


def test_a_batch_without_any_label_costs_a_head_exactly_nothing():
    model = with_size_head()
    losses = model([{"image": torch.randn(3, 64, 64), "instances": Instances((64, 64))}])
    assert losses["loss_size"] == 0 and losses["loss_size"].requires_grad


def test_a_head_predicts_on_detections():
    model = with_size_head().eval()
    model.roi_heads.box_predictor.test_score_thresh = 0.0
    with torch.no_grad():
        found = model([{"image": scene()["image"]}])[0]["instances"]
    assert len(found) and torch.equal(found.pred_size, found.pred_boxes[:, 2] - found.pred_boxes[:, 0])


def test_reddening_is_sampled_at_the_centre_of_each_box():
    model = narrow("model.roi_heads.box_predictor.test_score_thresh=0.0").eval()
    grid = torch.tensor([[0.25, 0.75], [0.25, 0.75]]).float()
    with torch.no_grad():
        records = [{"image": scene()["image"], **extra} for extra in ({}, {"ebv": 0.3}, {"ebv": grid})]
        none, scalar, gridded = (x["instances"] for x in model(records))
    assert (none.ebv == 0).all()
    torch.testing.assert_close(scalar.ebv, torch.full((len(scalar),), 0.3))
    # the grid's cells are centred at x = 16 and 48: linear between, constant outside
    x = (gridded.pred_boxes[:, 0] + gridded.pred_boxes[:, 2]) / 2
    torch.testing.assert_close(gridded.ebv, 0.25 + 0.5 * ((x - 16) / 32).clamp(0, 1))


# --------------------------------------------------------------------------------------------------------- stretch
class Halve(nn.Module):
    """A stretch that can be followed: half the image, masked pixels zero."""

    def forward(self, image, variance, mask):
        assert variance.shape == mask.shape == image.shape
        return torch.where(mask, 0.0, image / 2)


def test_the_stretch_comes_before_mean_and_std_and_the_heads_get_the_pixels():
    model = narrow("model.pixel_mean=[1.0, 2.0, 3.0]", "model.pixel_std=[2.0]")
    model.stretch = Halve()
    model.roi_heads.heads["size"] = SizeHead()
    record = scene(40, 50)
    record["variance"] = torch.full((3, 40, 50), 4.0)
    record["mask"] = torch.zeros(3, 40, 50, dtype=torch.bool)
    record["mask"][0, 5, 6] = True
    record["image"][2, 7, 8] = float("nan")
    losses = model([record])
    assert all(torch.isfinite(value) for value in losses.values())
    features, _ = model.roi_heads.heads["size"].seen
    assert features["image"].shape == features["flux"].shape == (1, 3, 48, 64)
    torch.testing.assert_close(features["image"][0, 1, 9, 9], (record["image"][1, 9, 9] / 2 - 2) / 2)
    assert features["image"][0, 0, 5, 6] == -0.5
    assert features["flux"][0, 1, 9, 9] == record["image"][1, 9, 9]
    for c, y, x in [(0, 5, 6), (2, 7, 8), (1, 45, 3), (1, 3, 55)]:
        assert not features["valid"][0, c, y, x]
        assert features["flux"][0, c, y, x] == features["variance"][0, c, y, x] == 0
    assert features["valid"].sum() == 3 * 40 * 50 - 2


# ---------------------------------------------------------------------------------------------------- wrong inputs
def test_wrong_inputs_are_named():
    model = narrow().eval()
    with pytest.raises(InputError, match="5 bands, but the model was made for 3"):
        model([{"image": torch.zeros(5, 32, 32)}])
    with pytest.raises(InputError, match=r"not empty; this one is \(3, 0, 32\)"):
        model([{"image": torch.zeros(3, 0, 32)}])
    with pytest.raises(InputError, match=r"\(band, y, x\)"):
        model([{"image": torch.zeros(32, 32)}])
    with pytest.raises(InputError, match="without 'instances'"):
        model.losses([{"image": torch.zeros(3, 32, 32)}])
    model.stretch = Halve()
    with pytest.raises(InputError, match="needs 'variance'"):
        model([{"image": torch.zeros(3, 32, 32)}])
    with pytest.raises(InputError, match=r"variance is \(1, 32, 32\), the image \(3, 32, 32\)"):
        model([{"image": torch.zeros(3, 32, 32), "variance": torch.ones(1, 32, 32)}])


def test_parts_that_do_not_fit_are_named():
    with pytest.raises(InputError, match="pixel_mean has 2 values but the model 3 bands"):
        narrow("model.pixel_mean=[1.0, 2.0]")
    with pytest.raises(InputError, match=r"RPN reads the map 'p6', .* nearest: 'p\d' of p1, p2, p3, p4, p5"):
        narrow("model.proposal_generator.in_features=[p2,p3,p4,p5,p6]")
    with pytest.raises(InputError, match="sizes for 4 levels, but the proposal network has 5"):
        narrow("model.proposal_generator.anchor_generator.sizes=[[8],[16],[32],[64]]")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.roi_heads.num_classes=1", "have num_classes=1, their BoxPredictor 2: set the one num_classes"),
        ("model.roi_heads.mask_head.num_classes=1", "have num_classes=2, their MaskHead 1"),
        ("num_classes=0", "num_classes=0: there must be at least one class"),
        ("model.proposal_generator.anchor_generator.aspect_ratios=[1.0]", r"num_anchors=3 .* give \[1, 1, 1, 1, 1\]"),
        ("model.proposal_generator.anchor_generator.aspect_ratios=[0.5,0.0,1.0]", "aspect_ratios=.* must be positive"),
        ("model.proposal_generator.anchor_generator.aspect_ratios=[]", "aspect_ratios=.* one at least"),
        ("model.proposal_generator.anchor_generator.sizes=[[8],[16],[-1],[64],[128]]", r"sizes\[2\]=\[-1\] must be"),
        ("model.proposal_generator.head.num_anchors=1", "scores num_anchors=1 anchors in a cell"),
        ("model.proposal_generator.head.num_conv=0", "num_conv=0: .* at least one convolution"),
        ("model.proposal_generator.post_nms_topk=[100]", "must be two positive numbers: in training, in prediction"),
        ("model.proposal_generator.pre_nms_topk=[-1,-1]", "must be two positive numbers"),
        ("model.proposal_generator.anchor_matcher.thresholds=[0.7,0.3]", "rising thresholds and one label more"),
        ("model.proposal_generator.anchor_matcher.labels=[0,1]", "rising thresholds and one label more"),
        ("model.proposal_generator.box_coder.weights=[1.0,1.0]", "four positive weights"),
        ("model.roi_heads.box_pooler.in_features=[]", "the pooler needs successive levels"),
        ("model.roi_heads.box_pooler.in_features=['p²']", "unknown feature map"),
        ("model.roi_heads.box_head.num_fc=0", "num_fc=0: a box head ends in"),
        ("model.roi_heads.box_predictor.test_topk_per_image=0", "keep at least one detection"),
        ("model.pixel_std=[0.0]", "pixel_std positive ones"),
        ("model.pixel_mean=[.nan]", "must be finite numbers"),
    ],
)
def test_settings_that_do_not_fit_are_named_when_building(override, message):
    with pytest.raises(InputError, match=message):
        narrow(override)


def test_wrong_calls_are_named():
    model = narrow().eval()
    with pytest.raises(InputError, match="no images"):
        model([])
    with pytest.raises(InputError, match="torch tensor .* not ndarray"):
        model([{"image": torch.zeros(3, 32, 32).numpy()}])


def test_fewer_proposals_than_detections_wanted_are_told_once(caplog):
    model = narrow("model.roi_heads.box_predictor.test_topk_per_image=2000").eval()
    with torch.no_grad():
        for _ in range(2):
            model([{"image": torch.zeros(3, 32, 32)}])
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1 and "post_nms_topk makes at most 1000 proposals" in told[0]


# --------------------------------------------------------------------------------------------- detectron2's model
def test_the_standard_model_has_detectron2_parameters():
    cfg = load("configs/common/resnet_fpn.py", ["num_bands=9", "num_classes=2"])
    state = instantiate(cfg.model).state_dict()
    # names and their order are those of detectron2's mask_rcnn_fpn (R50), as listed beside the reference numbers
    digest = hashlib.sha256("\n".join(state).encode()).hexdigest()
    assert len(state) == 307 and digest == "9f1f6fec4396d55214559afb4d132de969767991cea2251856744efce0d1bdd6"
    for name, shape in {
        "backbone.bottom_up.stem.conv1.weight": (64, 9, 7, 7),
        "backbone.bottom_up.res5.0.shortcut.weight": (2048, 1024, 1, 1),
        "backbone.fpn_lateral5.weight": (256, 2048, 1, 1),
        "proposal_generator.rpn_head.anchor_deltas.weight": (12, 256, 1, 1),
        "roi_heads.box_head.fc1.weight": (1024, 12544),
        "roi_heads.box_predictor.cls_score.weight": (3, 1024),
        "roi_heads.box_predictor.bbox_pred.weight": (8, 1024),
        "roi_heads.mask_head.predictor.weight": (2, 256, 1, 1),
    }.items():
        assert state[name].shape == shape, name
    parameters = sum(v.numel() for k, v in state.items() if ".norm." not in k)
    assert parameters == 43_942_236
