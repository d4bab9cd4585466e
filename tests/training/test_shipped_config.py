"""The shipped training config: it builds, steps and learns."""

import blob_sky
import pytest
import torch
from runs import trainer_of

from deepdisc.config import load
from deepdisc.data.dataset import TileDataset
from deepdisc.data.prepare import prepare
from deepdisc.model_zoo import load_model
from deepdisc.structures import box_iou
from deepdisc.training import train

SMALL = ["bands=[g,r]", "data.crop_size=64", "data.batch_size=2", "train.device=cpu"]


def test_the_shipped_config_steps_once_and_every_parameter_gets_a_finite_gradient(blobs, tmp_path):
    cfg = load("configs/ugriz_r18.py", [*SMALL, f"data.path={blobs}", f"train.output_dir={tmp_path}"])
    trainer = trainer_of(cfg)
    model = trainer.plain_model
    trainer.step(iter(trainer.loader))
    expected = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"}
    expected |= {"loss_flux", "loss_redshift", "loss_shear"}
    assert expected <= set(trainer.last)
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(("scale", "told"), [(0.396, True), (0.2, False)])
def test_a_training_tells_that_its_data_have_another_pixel_scale(blobs, tmp_path, capsys, scale, told):
    run = [*SMALL, *NARROW, f"data.path={blobs}", f"train.output_dir={tmp_path}", "train.max_iter=1"]
    train(load("configs/ugriz_r18.py", [*run, f"pixel_scale_arcsec={scale}"]))
    text = f"has 0.2 arcsec per pixel, the config says pixel_scale_arcsec={scale}"
    assert (text in capsys.readouterr().err) == told


@pytest.mark.parametrize(
    ("name", "narrower"),
    [
        ("mask_rcnn_r50", ["model.backbone.bottom_up.stem_out_channels=8", "model.roi_heads.box_head.fc_dim=16"]),
        ("cascade_mvitv2_t", ["model.backbone.bottom_up.embed_dim=8", "model.roi_heads.box_heads.0.fc_dim=16"]),
    ],
)
def test_the_configs_for_fine_tuning_step_and_predict(blobs, tmp_path, name, narrower):
    widths = ["model.backbone.out_channels=16", "model.roi_heads.mask_head.conv_dim=16", *narrower]
    phases = ["optim.phases.0.iters=1", "train.max_iter=2", "train.eval_period=2"]
    run = [*SMALL, f"data.path={blobs}", f"train.output_dir={tmp_path}", "pixel_scale_arcsec=0.2"]
    cfg = load(f"configs/{name}.py", [*run, *widths, *phases])
    model, _ = load_model(train(cfg))
    predictor = model.roi_heads.final_predictor
    assert (predictor.test_topk_per_image, predictor.one_class_per_object) == (3000, True)
    predictor.test_score_thresh = 0.0
    dataset = TileDataset(blobs, "val", bands=["g", "r"])
    with torch.no_grad():
        assert len(model([dataset[0]])[0]["instances"])


@pytest.mark.parametrize("name", ["configs/common/data.py", "configs/common/optim.py", "configs/ugriz_r18.py"])
def test_configs_load_alone(name):
    assert load(name)


# The shipped architecture with a quarter of its widths.
NARROW = [
    "model.backbone.bottom_up.stem_out_channels=16",
    "model.backbone.bottom_up.res2_out_channels=16",
    "model.backbone.out_channels=32",
    "model.roi_heads.batch_size_per_image=64",
]


@pytest.mark.slow
def test_a_minute_of_training_finds_the_objects_and_their_redshifts(tmp_path):
    """On a field never seen: nearly all objects found, redshifts four times better than the constant guess."""
    entries = [blob_sky.write_field(tmp_path / f"f{i}", shape=(192, 192), count=50, seed=i) for i in range(10)]
    for i, entry in enumerate(entries):
        entry["split"] = "train" if i < 8 else ("val", "test")[i - 8]
    root = prepare(blob_sky.write_recipe(tmp_path, entries), tmp_path / "dataset", tile_size=192)
    settings = [
        "bands=[g,r]", f"data.path={root}", f"train.output_dir={tmp_path / 'run'}", "data.crop_size=96",
        "data.batch_size=2", "train.max_iter=120", "train.eval_period=1000", "train.ema_decay=0.98",
        "train.device=cpu", "optim.schedule.warmup_iters=20", "optim.optimizer.lr=1e-3",
    ]  # fmt: skip
    model, _ = load_model(train(load("configs/ugriz_r18.py", [*settings, *NARROW])))
    sample = TileDataset(root, "test")[0]
    truth = sample["instances"]
    with torch.no_grad():
        found = model([sample])[0]["instances"]
    found = found[found.scores > 0.7]
    overlap, match = box_iou(truth.gt_boxes, found.pred_boxes).max(dim=1)
    assert (overlap > 0.5).float().mean() > 0.9
    assert len(found) < 1.1 * len(truth)
    matched = (overlap > 0.5) & truth.gt_has_redshift
    redshift = truth.gt_redshift[matched]
    error = (found.pred_redshift[match[matched]].median() - redshift).abs().median()
    assert error < (redshift - redshift.median()).abs().median() / 4
