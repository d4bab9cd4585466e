"""Outlines of the light mask head against those of the standard one, trained alike on the same data.

    python benchmarks/compare_mask_heads.py DATASET FIELD [--model ugriz_r18] [--steps 800] [--output DIR]

DATASET is a folder of `deepdisc prepare`, FIELD one of `deepdisc simulate` that was never trained on. Both networks
start from the weights of the model without its mask head; then everything learns for the same steps, with the same
crops and seed. "light" is two convolutions of 64 channels, as in our own configurations, "standard" four of 256 as in
Mask R-CNN. A run that was interrupted is continued.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from deepdisc.config import instantiate, load
from deepdisc.data.mosaic import Mosaic
from deepdisc.evaluation import evaluate
from deepdisc.inference.predict import predict
from deepdisc.model_zoo import load_model
from deepdisc.training import train
from deepdisc.training.checkpoint import save_state

HEADS = {"light": (64, 2), "standard": (256, 4)}
FIGURES = ("ap", "ap50", "ap75")


def start_weights(model: str, folder: Path) -> Path:
    """The model's weights without its mask head."""
    trained, _ = load_model(model)
    path = folder / "start.pth"
    state = {name: value for name, value in trained.state_dict().items() if ".mask_head." not in name}
    save_state({"model": state}, path)
    return path


def train_head(name: str, args: argparse.Namespace, start: Path) -> Path:
    """Train the network with one of the heads; returns its last checkpoint."""
    width, number = HEADS[name]
    folder = args.output / name
    cfg = load(
        "configs/ugriz_r18.py",
        [
            f"data.path={args.dataset}",
            f"model.roi_heads.mask_head.conv_dim={width}",
            f"model.roi_heads.mask_head.num_conv={number}",
            f"train.output_dir={folder}",
            f"train.init_checkpoint={start}",
            f"train.max_iter={args.steps}",
            f"train.eval_period={args.steps}",
            "train.checkpoint_period=100",
            "train.precision=bfloat16",
            "optim.optimizer.lr=5e-4",
            "optim.schedule.warmup_iters=50",
        ],
    )
    train(cfg, resume=True)
    return folder / "model_final.pth"


def score(checkpoint: Path, field: Path, folder: Path) -> dict:
    """Figures of the outlines on the field, at a low score threshold."""
    model, cfg = load_model(checkpoint)
    model.roi_heads.final_predictor.test_score_thresh = 0.05
    with Mosaic.open(field / "mosaic.yaml") as mosaic:
        predict(
            mosaic, model, folder, bands=cfg.bands, class_names=cfg.class_names, score_threshold=0.05, overwrite=True
        )
        metrics = evaluate(
            folder / "catalog.parquet",
            field / "truth.parquet",
            folder / "scores",
            mosaic=mosaic,
            pred_segmentation=folder / "segmentation.fits",
            truth_segmentation=field / "segmentation.fits",
        )
    return metrics["detection"]


def main() -> None:
    """Train both, score both, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("field", type=Path)
    parser.add_argument("--model", default="ugriz_r18")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--output", type=Path, default=Path("bench/mask_heads"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    start = start_weights(args.model, args.output)
    print(f"| {args.steps} steps | parameters of the head | objects found | AP of outlines | AP50 | AP75 |")
    print("|---|---|---|---|---|---|")
    for name in HEADS:
        checkpoint = train_head(name, args, start)
        figures = score(checkpoint, args.field, args.output / f"{name}_catalogue")
        outlines = figures["outlines"]
        head = instantiate(load(args.output / name / "config.yaml").model).roi_heads.mask_head
        size = sum(parameter.numel() for parameter in head.parameters())
        values = " | ".join(f"{outlines[key]:.3f} ± {outlines[f'{key}_err']:.3f}" for key in FIGURES)
        print(f"| {name} | {size:,} | {figures['n_matched']:,} of {figures['n_truth']:,} | {values} |", flush=True)


if __name__ == "__main__":
    main()
