"""The detector gives detectron2's numbers, stage by stage, from the pixels to the masks and to the gradients.

Tolerances follow from the reference's own noise (one thread against two, single against double precision). Discrete
steps can swap near ties, so boxes are compared as sets, and each stage is also fed with the stored output of the last.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from golden import IMAGE_SIZES, Reference

from deepdisc.detector.cascade import CascadeROIHeads
from deepdisc.heads.mask import paste_masks
from deepdisc.structures import Instances, clip_boxes, nonempty

COMMITTED = Path(__file__).parents[1] / "data" / "golden"


@pytest.fixture(
    scope="module",
    params=["A_tiny selection", "A_tiny18 selection", "B_tiny selection", "A_tiny", "A_tiny18", "B_tiny"],
)
def reference(request):
    """The committed selections, then all numbers of all models where they are at hand."""
    name, _, selection = request.param.partition(" ")
    if selection:
        return Reference.compact(COMMITTED / f"{name}.npz")
    return Reference.full(request.getfixturevalue("shared_data") / "golden", name)


@pytest.fixture(scope="module")
def model(reference):
    return reference.model()


@pytest.fixture(scope="module")
def features(reference, model):
    with torch.no_grad():
        batch = model.preprocess([{"image": reference.image(i)} for i in range(2)])
        stages = model.backbone.bottom_up(batch.tensor)
        return {**stages, "image": batch.tensor, **model.backbone(batch.tensor)}


def assert_matched(given: dict, wanted: dict, fraction: float = 1.0):
    """Assert that sets of boxes agree: each wanted box has a given one within 2e-3 pixels and with the same values."""
    assert abs(len(given["boxes"]) - len(wanted["boxes"])) <= (1 - fraction) * len(wanted["boxes"])
    if not len(wanted["boxes"]):
        return
    same = (given["boxes"][:, None] - wanted["boxes"][None]).abs().amax(dim=2) < 2e-3
    for name, tolerance in {"scores": 1e-4, "logits": 5e-4, "classes": 0.5}.items():
        if name in wanted:
            same &= (given[name][:, None] - wanted[name][None]).abs() < tolerance
    assert same.any(dim=0).float().mean() >= fraction
    assert same.any(dim=1).float().mean() >= fraction


# ------------------------------------------------------------------------------------------------------- inference
def test_features_and_proposal_maps_are_those_of_detectron2(reference, model, features):
    compared = 0
    for name, given in features.items():
        wanted = reference.get(f"fpn/{name}" if name.startswith("p") else f"bottom_up/{name}")
        if wanted is not None:
            torch.testing.assert_close(given, wanted, atol=3e-4, rtol=0)
            compared += 1
    with torch.no_grad():
        logits, deltas = model.proposal_generator.rpn_head([features[f"p{i}"] for i in range(2, 7)])
    for name, maps, tolerance in [("logits", logits, 5e-4), ("deltas", deltas, 1e-4)]:
        for level, given in enumerate(maps, start=2):
            wanted = reference.get(f"rpn/{name}_p{level}")
            if wanted is not None:
                torch.testing.assert_close(given, wanted, atol=tolerance, rtol=0)
                compared += 1
    assert compared >= 9


def test_proposals_are_those_of_detectron2(reference, model, features):
    proposals, losses = model.proposal_generator(features, IMAGE_SIZES)
    assert losses == {}
    for i, given in enumerate(proposals):
        wanted = {
            "boxes": reference.get(f"rpn/proposal_boxes_{i}"),
            "logits": reference.get(f"rpn/proposal_logits_{i}"),
        }
        assert_matched({"boxes": given.proposal_boxes, "logits": given.objectness_logits}, wanted, fraction=0.998)


def box_stages(heads) -> list:
    """Box head and predictor of each stage."""
    if isinstance(heads, CascadeROIHeads):
        return list(zip(heads.box_head, heads.box_predictor, strict=True))
    return [(heads.box_head, heads.box_predictor)]


def test_class_and_box_outputs_on_stored_proposals(reference, model, features):
    heads = model.roi_heads
    assert len(box_stages(heads)) == reference.num_stages
    for i in range(2):
        boxes = reference.get(f"rpn/proposal_boxes_{i}")
        own = {name: features[name][i : i + 1] for name in heads.box_pooler.in_features}
        for stage, (head, predictor) in enumerate(box_stages(heads)):
            part = "box" if reference.num_stages == 1 else f"box_stage{stage}"
            if stage and reference.get(f"{part}/in_boxes_{i}") is not None:
                torch.testing.assert_close(boxes, reference.get(f"{part}/in_boxes_{i}"), atol=2e-3, rtol=0)
                boxes = reference.get(f"{part}/in_boxes_{i}")
            with torch.no_grad():
                pooled = heads.box_pooler(own, [boxes])
                logits, deltas = predictor(head(pooled))
            refined = predictor.box_coder.decode(deltas, boxes)
            for key, given, tolerance in [
                ("roi_first", pooled[:32], 3e-4),
                ("roi_mean", pooled.mean(dim=(2, 3)), 3e-4),
                ("feat_first", head(pooled[:32]), 3e-4),
                ("logits", logits, 5e-4),
                ("deltas", deltas, 5e-4),
                ("probs", logits.softmax(dim=1), 1e-4),
                ("pred_boxes", refined, 2e-3),
            ]:
                wanted = reference.get(f"{part}/{key}_{i}")
                if wanted is not None:
                    torch.testing.assert_close(given, wanted, atol=tolerance, rtol=1e-5)
            assert reference.get(f"{part}/logits_{i}") is not None
            boxes = clip_boxes(refined, IMAGE_SIZES[i]) if stage + 1 < reference.num_stages else boxes


def test_boxes_outside_empty_and_on_level_boundaries(reference, model, features):
    heads, given = model.roi_heads, reference.get("given/boxes")
    boxes = [given, given]
    with torch.no_grad():
        pooled = heads.box_pooler(features, boxes)
        outputs = [predictor(head(pooled)) for head, predictor in box_stages(heads)]
        classes = torch.arange(len(given)) % 2
        masks = heads.mask_head.probabilities(features, boxes, [classes, classes])
    if reference.get("given/roi_box") is not None:
        torch.testing.assert_close(pooled, reference.get("given/roi_box"), atol=3e-4, rtol=0)
    for stage, (logits, deltas) in enumerate(outputs):
        torch.testing.assert_close(logits, reference.get(f"given/logits_stage{stage}"), atol=5e-4, rtol=0)
        torch.testing.assert_close(deltas, reference.get(f"given/deltas_stage{stage}"), atol=5e-4, rtol=0)
    for i in range(2):
        torch.testing.assert_close(masks[i], reference.get(f"given/mask_probs_{i}"), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("tag", "score", "nms", "topk"),
    [
        ("t000", 0.0, 0.5, 100),
        ("t005", 0.05, 0.5, 100),
        ("t050", 0.5, 0.5, 100),
        ("t005_nms03_top1000", 0.05, 0.3, 1000),
    ],
)
def test_detections_from_pixels(reference, model, monkeypatch, tag, score, nms, topk):
    if reference.get(f"det_{tag}/boxes_0") is None:
        pytest.skip(f"the committed selection does not have {tag}")
    monkeypatch.setattr(model.roi_heads.final_predictor, "test_score_thresh", score)
    monkeypatch.setattr(model.roi_heads.final_predictor, "test_nms_thresh", nms)
    monkeypatch.setattr(model.roi_heads.final_predictor, "test_topk_per_image", topk)
    with torch.no_grad():
        found = model([{"image": reference.image(i)} for i in range(2)])
    for i, record in enumerate(found):
        given = record["instances"]
        wanted = {name: reference.get(f"det_{tag}/{name}_{i}") for name in ("boxes", "scores", "classes")}
        own = {"boxes": given.pred_boxes, "scores": given.scores, "classes": given.pred_classes}
        assert_matched(own, wanted, fraction=0.99)
        torch.testing.assert_close(given.scores, wanted["scores"], atol=1e-4, rtol=0)
        masks = reference.evaluation.get(f"det_{tag}/post1x_masks_packed_{i}")
        if masks is not None and len(masks):
            order = torch.cdist(given.pred_boxes, wanted["boxes"]).argmin(dim=0)
            assert_masks_agree(given.pred_masks[order], masks)


def assert_masks_agree(given, packed: np.ndarray):
    """Assert that masks differ in a few pixels at most, those whose probability is one half to within rounding."""
    wanted = torch.from_numpy(np.unpackbits(packed, axis=-1, count=given.image_size[1]).astype(bool))
    assert wanted.any() or not len(wanted)
    different = (given.to_dense() != wanted).sum()
    assert different <= 1e-4 * wanted.sum() + 3


def test_mask_probabilities_and_pasting(reference, model, features):
    compared = 0
    for tag in ("t000", "t005", "t050"):
        for i, (height, width) in enumerate(IMAGE_SIZES):
            wanted = reference.get(f"det_{tag}/mask_probs_{i}")
            if wanted is None:
                continue
            boxes, classes = reference.get(f"det_{tag}/boxes_{i}"), reference.get(f"det_{tag}/classes_{i}")
            own = {name: feature[i : i + 1] for name, feature in features.items()}
            given = model.roi_heads.mask_head.probabilities(own, [boxes], [classes])[0]
            torch.testing.assert_close(given, wanted, atol=1e-3, rtol=0)
            for scale, label in [(1.0, "post1x"), (1.5, "post1p5x")]:
                size = (int(scale * height), int(scale * width))
                scaled = clip_boxes(boxes * boxes.new_tensor([size[1] / width, size[0] / height] * 2), size)
                keep = nonempty(scaled)
                torch.testing.assert_close(scaled[keep], reference.get(f"det_{tag}/{label}_boxes_{i}"))
                packed = reference.evaluation[f"det_{tag}/{label}_masks_packed_{i}"]
                assert_masks_agree(paste_masks(wanted[keep], scaled[keep], size), packed)
                compared += 1
    if not compared:
        pytest.skip("the committed selection does not have mask probabilities")


# -------------------------------------------------------------------------------------------------------- training
def _numpy_permutation(n, **_):
    return torch.from_numpy(np.random.RandomState(n).permutation(n))


CASES = ["train_bit_permnumpy", "train_poly_permnumpy", "train_poly_permnumpy_empty2", "train_poly_permtorch"]


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients(reference, monkeypatch, case):
    if case not in reference.training:
        pytest.skip(f"the committed selection does not have {case}")
    stored = reference.training[case]
    model = reference.model().train()
    targets = [reference.truth(i, polygons="poly" in case) for i in range(2)]
    if "empty2" in case:
        targets[1] = Instances(IMAGE_SIZES[1])
    if "permnumpy" in case:
        monkeypatch.setattr(torch, "randperm", _numpy_permutation)
    else:
        torch.manual_seed(0)
    targets_seen = record_mask_targets(monkeypatch, stored)
    losses = model([{"image": reference.image(i), "instances": target} for i, target in enumerate(targets)])

    assert {f"loss/{name}" for name in losses} == {key for key in stored if key.startswith("loss/")}
    for name, value in losses.items():
        assert value.item() == pytest.approx(float(stored[f"loss/{name}"]), rel=2e-5), name
    assert targets_seen
    sum(losses.values()).backward()
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert set(parameters) == set(stored["grad/names"].tolist())
    for i, name in enumerate(stored["grad/names"].tolist()):
        gradient, norm = parameters[name].grad.double(), stored["grad/l2"][i]
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-3, abs=ZERO), name
        spread = max(1e-3 * norm * gradient.numel() ** 0.5, ZERO)
        assert gradient.sum().item() == pytest.approx(stored["grad/sum"][i], abs=spread), name
        first = stored["grad/first4"][i][: gradient.numel()]
        np.testing.assert_allclose(gradient.flatten()[:4], first, atol=max(1e-3 * norm, ZERO), err_msg=name)


def test_stochastic_depth_draws_the_same_random_numbers(reference):
    case = "train_poly_permtorch_droppath0.2_seed0"
    if case not in reference.training:
        pytest.skip(f"{reference.name} has no stochastic depth")
    model = reference.model("model.backbone.bottom_up.drop_path_rate=0.2").train()
    torch.manual_seed(0)
    losses = model([{"image": reference.image(i), "instances": reference.truth(i, polygons=True)} for i in range(2)])
    wanted = {name.removeprefix("loss/"): float(value) for name, value in reference.training[case].items()}
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(wanted, rel=2e-5)


# a key's bias in global attention moves all logits alike: its gradient is zero but for rounding
ZERO = 1e-7


def record_mask_targets(monkeypatch, stored: dict) -> list:
    """Compare the mask head's boxes and targets with the stored ones."""
    from deepdisc.heads import mask

    compute, seen = mask.mask_targets, []

    def spy(masks, boxes, side):
        i = len(seen)
        wanted = torch.from_numpy(np.unpackbits(stored[f"mask/targets_packed_{i}"], axis=-1, count=side).astype(bool))
        torch.testing.assert_close(boxes, torch.from_numpy(stored[f"mask/target_boxes_{i}"]), atol=2e-3, rtol=0)
        seen.append(boxes)
        own = compute(masks, boxes, side)
        assert (own != wanted).sum() <= 3
        return own

    monkeypatch.setattr(mask, "mask_targets", spy)
    return seen


@pytest.mark.parametrize("case", CASES)
def test_sampled_anchors_and_proposals(reference, monkeypatch, case):
    if case not in reference.training:
        pytest.skip(f"the committed selection does not have {case}")
    stored = reference.training[case]
    model = reference.model().train()
    if "permnumpy" in case:
        monkeypatch.setattr(torch, "randperm", _numpy_permutation)
    for i in range(2):
        target = reference.truth(i, polygons=False)
        if "empty2" in case and i == 1:
            target = target[:0]
        grids = [(-(-224 // s), -(-256 // s)) for s in model.proposal_generator.strides]
        anchors = torch.cat(model.proposal_generator.anchor_generator(grids, model.proposal_generator.strides))
        _, labels = model.proposal_generator.label_anchors(anchors, target)
        assert torch.equal(labels, torch.from_numpy(stored[f"rpn/labels_{i}"]))

        proposals = Instances(
            IMAGE_SIZES[i],
            proposal_boxes=torch.from_numpy(stored[f"rpn/proposal_boxes_{i}"]),
            objectness_logits=torch.from_numpy(stored[f"rpn/proposal_logits_{i}"]),
        )
        regions, objects = model.roi_heads.sample(proposals, target)
        assert len(objects) == len(stored[f"roi/pos_idx_{i}"])
        assert len(regions) == len(objects) + len(stored[f"roi/neg_idx_{i}"])
        if "permnumpy" in case:
            chosen = np.concatenate([stored[f"roi/pos_idx_{i}"], stored[f"roi/neg_idx_{i}"]])
            assert torch.equal(regions.gt_classes, torch.from_numpy(stored[f"roi/labels_{i}"][chosen]))
            everything = torch.cat((proposals.proposal_boxes, target.gt_boxes))
            assert torch.equal(regions.proposal_boxes, everything[chosen])


# ------------------------------------------------------------------------------------------------ the state dict
def test_state_dict_has_detectron2_keys_and_shapes(reference):
    if not reference.keys:
        pytest.skip("the committed selection does not have the list of keys")
    state = reference.model().state_dict()
    assert set(state) == set(reference.keys)
    assert {key: list(value.shape) for key, value in state.items()} == reference.keys


def test_images_made_by_rule_are_the_stored_ones(reference):
    if "image_0" not in reference.inputs:
        pytest.skip("the committed selection does not have the images")
    from golden import make_image

    for i in range(2):
        np.testing.assert_allclose(make_image(i), reference.inputs[f"image_{i}"], rtol=0, atol=2e-5)
