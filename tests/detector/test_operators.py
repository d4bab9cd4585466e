"""Each operator of the detector against detectron2's numbers for it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import batched_nms

from deepdisc.backbones.layers import FrozenBatchNorm2d
from deepdisc.detector.anchors import AnchorGenerator
from deepdisc.detector.box_coder import BoxCoder
from deepdisc.detector.matcher import Matcher
from deepdisc.detector.pooling import ROIPooler
from deepdisc.heads.mask import mask_targets, paste_masks
from deepdisc.structures import RegionMasks, box_iou

FOLDER = Path(__file__).parents[1] / "data" / "golden"


@pytest.fixture(scope="module")
def stored():
    with np.load(FOLDER / "operators.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def test_anchors(stored):
    grids = [(3, 5), (2, 3)]
    given = AnchorGenerator([[32.0], [64.0]], [0.5, 1.0, 2.0])(grids, [4, 8])
    for anchors, wanted in zip(given, [v for k, v in stored.items() if k.startswith("anchors/")], strict=True):
        torch.testing.assert_close(anchors, wanted, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("label", "weights"), [("1_1", (1, 1, 1, 1)), ("10_5", (10, 10, 5, 5)), ("30_15", (30, 30, 15, 15))]
)
def test_box_coder(stored, label, weights):
    coder = BoxCoder(weights)
    encoded = coder.encode(stored["coder/src"], stored["coder/dst"])
    torch.testing.assert_close(encoded, stored[f"coder/get_deltas_w{label}"], rtol=1e-6, atol=1e-6)
    decoded = coder.decode(stored["coder/deltas"], stored["coder/src"])
    torch.testing.assert_close(decoded, stored[f"coder/apply_deltas_w{label}"], rtol=1e-6, atol=1e-4)


def test_overlaps_and_matcher(stored):
    torch.testing.assert_close(box_iou(stored["coder/src"], stored["coder/dst"]), stored["iou/pairwise"])
    overlaps = stored["matcher/iou"]
    for label, matcher in [
        ("rpn", Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True)),
        ("roi05", Matcher([0.5], [0, 1])),
    ]:
        for blocks in ([overlaps], overlaps.split(1), overlaps.split(3)):
            index, labels = matcher.assign(blocks, overlaps.shape[1])
            assert torch.equal(index, stored[f"matcher/{label}_idx"])
            assert torch.equal(labels, stored[f"matcher/{label}_label"])


def test_pooler_levels(stored):
    pooler = ROIPooler(7, ["p2", "p3", "p4", "p5"])
    assert torch.equal(pooler.levels(stored["levels/boxes"]), stored["levels/level_minus_2"])


@pytest.mark.parametrize("side", [7, 14])
def test_roi_align(stored, side):
    rois = stored["roialign/rois"]
    order = torch.argsort(rois[:, 0], stable=True)
    boxes = [rois[rois[:, 0] == i, 1:] for i in range(2)]
    given = ROIPooler(side, ["p2"])({"p2": stored["roialign/feat"]}, boxes)
    torch.testing.assert_close(given, stored[f"roialign/v2_{side}_scale0.25"][order], rtol=1e-6, atol=1e-6)


def test_non_maximum_suppression(stored):
    for threshold in (0.3, 0.5, 0.7):
        kept = batched_nms(stored["nms/boxes"], stored["nms/scores"], stored["nms/idxs"], threshold)
        assert torch.equal(kept, stored[f"nms/keep_0{round(10 * threshold)}"])


def test_mask_targets(stored):
    with np.load(FOLDER / "A_tiny18.npz") as file:
        masks = np.unpackbits(file["inputs:gt_bitmasks_0_packed"], axis=-1, count=256).astype(bool)
    boxes, wanted = stored["mask_target/boxes"], stored["mask_target/bit28"]
    given = mask_targets(RegionMasks.from_dense(torch.from_numpy(masks)), boxes, 28)
    assert wanted.any() and torch.equal(given, wanted)


def test_pasted_masks(stored):
    size = tuple(stored["paste/size"].tolist())
    given = paste_masks(stored["paste/probs"], stored["paste/boxes"], size)
    assert torch.equal(given.to_dense(), stored["paste/masks"])


def test_frozen_batch_norm(stored):
    norm = FrozenBatchNorm2d(5)
    norm.load_state_dict({name: stored[f"frozenbn/{name}"] for name in norm.state_dict()})
    x = stored["frozenbn/x"]
    torch.testing.assert_close(norm(x), stored["frozenbn/y_eval"], rtol=0, atol=0)
    torch.testing.assert_close(norm(x.clone().requires_grad_()), stored["frozenbn/y_grad"], rtol=0, atol=0)
