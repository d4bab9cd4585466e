"""Each line of fine-tuning in a config, with the shipped architecture at a quarter of its widths."""

import pytest
import torch
from runs import trainer_of, weights_of

from deepdisc.config import load
from deepdisc.errors import InputError
from deepdisc.overrides import apply_override

BOTTOM_UP = "backbone.bottom_up."
SMALL = [
    "bands=[g,r]", "data.crop_size=64", "data.batch_size=2", "train.device=cpu", "train.ema_decay=0",
    "model.backbone.bottom_up.stem_out_channels=32", "model.backbone.bottom_up.res2_out_channels=32",
    "model.backbone.out_channels=32", "model.roi_heads.batch_size_per_image=32",
    "optim.schedule.warmup_iters=0", "optim.optimizer.lr=1e-3",
]  # fmt: skip


def trainer(blobs, tmp_path, *lines):
    lines = [*SMALL, f"data.path={blobs}", f"train.output_dir={tmp_path}", *lines]
    return trainer_of(load("configs/ugriz_r18.py", lines))


def mvit_trainer(blobs, tmp_path, *lines):
    """The same around a Cascade Mask R-CNN with a narrow MViTv2 of four blocks, at random depth."""
    cfg = load("configs/ugriz_r18.py", [*SMALL, f"data.path={blobs}", f"train.output_dir={tmp_path}"])
    narrow = [
        "model.backbone.bottom_up.embed_dim=16", "model.backbone.bottom_up.depth=4",
        "model.backbone.bottom_up.last_block_indexes=[0, 1, 2, 3]", "model.backbone.bottom_up.adaptive_window_size=8",
        "model.backbone.bottom_up.drop_path_rate=0.5", "model.backbone.out_channels=16",
        "model.roi_heads.batch_size_per_image=16", "model.roi_heads.box_heads.0.fc_dim=32",
        "model.roi_heads.box_heads.0.conv_dim=16", "model.roi_heads.mask_head.conv_dim=16",
    ]  # fmt: skip
    cfg.model = load("configs/common/mvitv2_fpn.py", narrow).model
    cfg.model.stretch = {"_target_": "deepdisc.detector.stretch.NoiseStretch", "softening": 1.0}
    for line in lines:
        apply_override(cfg, line)
    return trainer_of(cfg)


def one_step(trainer):
    trainer.step(iter(trainer.loader))
    return trainer


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def below(names, *prefixes):
    return {name for name in names if name.startswith(prefixes)}


def test_freeze_at_freezes_the_first_stages(blobs, tmp_path):
    tuned = trainer(blobs, tmp_path, "model.backbone.bottom_up.freeze_at=3")
    before = weights_of(tuned)
    found = moved(before, weights_of(one_step(tuned)))
    assert not below(found, *(BOTTOM_UP + part for part in ("stem", "res2", "res3")))
    learnable = {name for name, parameter in tuned.plain_model.named_parameters() if parameter.requires_grad}
    # biases of these heads begin at 0 and may not move in one step without their labels
    measuring = below(learnable, "roi_heads.heads.flux", "roi_heads.heads.shear")
    assert learnable - measuring <= found and below(found, BOTTOM_UP + "res4")


def test_heads_first_costs_the_backbone_nothing(blobs, tmp_path):
    phases = "optim.phases=[{iters: 1, lr: 1e-3, train: [roi_heads, proposal_generator]}, {lr: 1e-4}]"
    tuned = trainer(blobs, tmp_path, phases, "train.max_iter=2")
    before = weights_of(tuned)
    recorded = []
    tuned.plain_model.backbone.register_forward_hook(lambda _, inputs, maps: recorded.append(maps["p2"].requires_grad))
    after = weights_of(one_step(tuned))
    assert not below(moved(before, after), "backbone") and below(moved(before, after), "roi_heads")
    assert tuned.last["lr"] == pytest.approx(1e-3)
    one_step(tuned)
    assert below(moved(after, weights_of(tuned)), "backbone") and tuned.last["lr"] == pytest.approx(1e-4)
    assert recorded == [False, True]


def test_layer_decay_of_a_resnet(blobs, tmp_path):
    groups = trainer(blobs, tmp_path, "optim.optimizer.layer_decay=0.7").optimizer.param_groups
    rates = {name: group["lr"] / 1e-3 for group in groups for name in group["names"]}
    expected = {"stem": 5, "res2": 4, "res3": 3, "res4": 2, "res5": 1}
    for part, power in expected.items():
        found = [rates[name] for name in below(rates, BOTTOM_UP + part + ".")]
        assert found and found == pytest.approx([0.7**power] * len(found)), part
    assert {rates[name] for name in set(rates) - below(rates, BOTTOM_UP)} == {1.0}


def test_layer_decay_of_an_mvit(blobs, tmp_path):
    groups = mvit_trainer(blobs, tmp_path, "optim.optimizer.layer_decay=0.7").optimizer.param_groups
    rates = {name: group["lr"] / 1e-3 for group in groups for name in group["names"]}
    expected = {"patch_embed": 5, "blocks.0": 4, "blocks.1": 3, "blocks.2": 2, "blocks.3": 1, "scale5_norm": 0}
    for part, power in expected.items():
        found = [rates[name] for name in below(rates, BOTTOM_UP + part + ".")]
        assert found and found == pytest.approx([0.7**power] * len(found)), part
    assert {rates[name] for name in set(rates) - below(rates, BOTTOM_UP)} == {1.0}
    decay = {name: group["weight_decay"] for group in groups for name in group["names"]}
    kinds = {
        name: decay[BOTTOM_UP + "blocks.1." + name] for name in ("attn.rel_pos_h", "attn.rel_pos_w", "norm1.weight")
    }
    assert set(kinds.values()) == {0.0} and decay[BOTTOM_UP + "blocks.1.attn.qkv.weight"] == 0.05


@pytest.mark.parametrize("norm", ["FrozenBN", "BN", "GN"])
def test_each_norm_trains_and_is_not_decayed(blobs, tmp_path, norm):
    tuned = trainer(blobs, tmp_path, f"model.backbone.bottom_up.norm={norm}")
    before = weights_of(tuned)
    decay = {name: group["weight_decay"] for group in tuned.optimizer.param_groups for name in group["names"]}
    norms = {name for name in before if BOTTOM_UP in name and ".norm." in name}
    assert {decay[name] for name in norms if name in decay} == (set() if norm == "FrozenBN" else {0.0})
    assert decay[BOTTOM_UP + "res2.0.conv1.weight"] == 0.05
    found = moved(before, weights_of(one_step(tuned)))
    assert found & norms == (set() if norm == "FrozenBN" else norms)


@pytest.mark.parametrize(
    ("build", "lines"),
    [(trainer, [f"model.backbone.bottom_up.norm={norm}"]) for norm in ("FrozenBN", "BN", "GN")] + [(mvit_trainer, [])],
    ids=["FrozenBN", "BN", "GN", "MViT"],
)
def test_recomputing_activations_changes_neither_gradients_nor_statistics(blobs, tmp_path, build, lines):
    ends = []
    for recompute in ("false", "true"):
        lines = [*lines, f"model.backbone.bottom_up.checkpoint_activations={recompute}"]
        tuned = one_step(build(blobs, tmp_path, *lines))
        parameters = tuned.plain_model.named_parameters()
        gradients = {name: parameter.grad for name, parameter in parameters if parameter.grad is not None}
        ends.append((gradients, weights_of(tuned)))
    (kept, kept_weights), (recomputed, recomputed_weights) = ends
    assert below(kept, BOTTOM_UP)
    torch.testing.assert_close(recomputed, kept, rtol=1e-5, atol=1e-7)
    statistics = below(kept_weights, BOTTOM_UP) - set(kept)
    for name in statistics:
        torch.testing.assert_close(recomputed_weights[name], kept_weights[name], msg=name)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_the_detector_steps_in_sixteen_bits(blobs, tmp_path, precision):
    losses = {}
    for name in ("float32", precision):
        losses[name] = one_step(trainer(blobs, tmp_path, f"train.precision={name}")).last["loss"]
    assert losses[precision] == pytest.approx(losses["float32"], rel=0.05)


def test_the_lines_work_together(blobs, tmp_path):
    tuned = trainer(
        blobs,
        tmp_path,
        "model.backbone.bottom_up.freeze_at=2",
        "model.backbone.bottom_up.checkpoint_activations=true",
        "optim.optimizer.layer_decay=0.8",
        "optim.phases=[{iters: 1, lr: 1e-3, train: [roi_heads]}, {lr: 1e-4, warmup_iters: 1}]",
        "train.precision=float16",
        "train.ema_decay=0.9",
        "train.max_iter=4",
    )
    before = weights_of(tuned)
    for _ in range(4):
        one_step(tuned)
    found = moved(before, weights_of(tuned))
    assert tuned.last["skipped"] == 0
    assert not below(found, BOTTOM_UP + "stem", BOTTOM_UP + "res2") and below(found, BOTTOM_UP + "res5")


def test_a_frozen_backbone_cannot_be_what_a_phase_trains(blobs, tmp_path):
    lines = ["model.backbone.bottom_up.freeze_at=5", "optim.phases=[{iters: 1, train: [backbone.bottom_up]}, {}]"]
    with pytest.raises(InputError, match="freeze_at or lr_factors freezes all of 'backbone.bottom_up'"):
        trainer(blobs, tmp_path, *lines)
