"""From fields with truth to a trained model."""

from __future__ import annotations

import argparse
from pathlib import Path

from deepdisc.arguments import names, natural, positive, positive_float, shares, zero_points
from deepdisc.commands.command import DONE, add_overrides, choose_device, command
from deepdisc.errors import InputError


def add_prepare(commands) -> None:
    """Add `deepdisc prepare`."""
    parser = command(
        commands,
        "prepare",
        run_prepare,
        "make a data set for training from mosaics with truth or catalogues, or from annotated images",
        "deepdisc prepare sky/recipe.yaml --output sky_dataset\n"
        "  deepdisc prepare datasets/sdss_run94.yaml data=sdss_frames --output sdss\n"
        "  deepdisc prepare train.json --images tiles --bands g,r,i --pixel-scale 0.2 --zero-point 27 --output mine",
        "Fields whose recipe gives no splits are divided by area of the sky: no object, and no neighbour of it, is in\n"
        "two splits. key=value changes the recipe: data=DIR says where its files are, splits.block_pix=400 cuts.\n"
        " Annotated images are divided image by image; where several show the same sky, give a folder.\n"
        "Annotations are COCO JSON or a list of detectron2's dataset dicts; or a folder with train.json, val.json and\n"
        "test.json, which are then the splits (`deepdisc export --to coco` writes one). Crowds are left out; where\n"
        "outlines overlap, a pixel goes to the smallest object.",
    )
    parser.add_argument(
        "recipe",
        type=Path,
        metavar="RECIPE.yaml|ANNOTATIONS",
        help="fields with their truth, simulate writes one; or annotated images: .json, or a folder of them",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DATASET")
    parser.add_argument("--tile-size", type=positive, default=512, metavar="PIXELS", help="default: 512")
    parser.add_argument(
        "--split", type=shares, metavar="train=F,val=F,test=F", help="shares of the sky; default: 0.8, 0.1, 0.1"
    )
    parser.add_argument("--seed", type=natural, help="which fields go where; default: that of the recipe, else 0")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the recipe to change")
    parser.set_defaults(many="overrides")
    group = parser.add_argument_group("what annotations and their images may not say")
    group.add_argument("--images", type=Path, metavar="DIR", help="folder of the FITS or .npy files; default: theirs")
    group.add_argument("--bands", type=names, metavar="g,r,i", help="bands of the images' planes, in their order")
    group.add_argument("--pixel-scale", type=positive_float, metavar="ARCSEC", help="where there is no WCS")
    group.add_argument(
        "--zero-point", type=zero_points, metavar="Z|BAND=Z,...", help="AB zero point, or unit such as nJy"
    )
    group.add_argument("--classes", type=names, metavar="NAME,NAME", help="names by index, or their order")


def run_prepare(args: argparse.Namespace) -> int:
    """`deepdisc prepare`."""
    if args.recipe.suffix == ".json" or args.recipe.is_dir():
        from deepdisc.data.coco import prepare_annotations

        options = {keyword: getattr(args, name) for name, keyword in _ANNOTATED.items()}
        if args.overrides:
            raise InputError(f"{args.overrides[0]}: key=value changes a recipe, but {args.recipe} are annotations")
        cut = {"tile_size": args.tile_size, "fractions": args.split, "seed": args.seed}
        print(prepare_annotations(args.recipe, args.output, **options, **cut))
        return DONE
    for name in _ANNOTATED:
        if getattr(args, name) is not None:
            option = "--" + name.replace("_", "-")
            raise InputError(f"{option}: the recipe says this; it is for annotations (.json or a folder): leave it out")
    from deepdisc.data.prepare import prepare

    cut = {"tile_size": args.tile_size, "fractions": args.split, "seed": args.seed}
    print(prepare(args.recipe, args.output, **cut, overrides=args.overrides))
    return DONE


_ANNOTATED = {
    "images": "images",
    "bands": "bands",
    "pixel_scale": "pixel_scale",
    "zero_point": "zero_points",
    "classes": "class_names",
}


def add_train(commands) -> None:
    """Add `deepdisc train`."""
    parser = command(
        commands,
        "train",
        run_train,
        "train the network of a config file",
        "deepdisc train --config-file configs/ugriz_r18.py data.path=sky_dataset train.output_dir=runs/first",
        "Checkpoints, the resolved config and logs go to train.output_dir of the config.",
    )
    parser.add_argument(
        "--config-file", "--config", required=True, metavar="FILE", help="a .py config, or a saved .yaml"
    )
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in the output folder")
    parser.add_argument("--eval-only", action="store_true", help="only the validation loss of the last checkpoint")
    parser.add_argument("--num-gpus", type=int, metavar="N", help="default: all there are; 0 trains on the CPU")
    add_overrides(parser)


def run_train(args: argparse.Namespace) -> int:
    """`deepdisc train`."""
    from deepdisc.config import load

    cfg = load(args.config_file, args.overrides)
    from deepdisc.model_zoo import weights_path
    from deepdisc.training import train

    if cfg.get("train") is not None and cfg.train.init_checkpoint is not None:
        cfg.train.init_checkpoint = str(weights_path(cfg.train.init_checkpoint))
    print(train(cfg, resume=args.resume, eval_only=args.eval_only, num_gpus=args.num_gpus))
    return DONE


def add_calibrate(commands) -> None:
    """Add `deepdisc calibrate`."""
    parser = command(
        commands,
        "calibrate",
        run_calibrate,
        "make a model's probabilities honest, measured on a validation set",
        "deepdisc calibrate --model runs/first/model_best.pth --data sky_dataset --output first.safetensors",
        "Matches detections with the truth and fits, for each band's flux, the redshift and the shear, widths, shifts\n"
        "and the shape of the PIT; keeps what makes objects held out more probable. The new file is a model as any\n"
        "other. Needs 400 matched objects with a label, and several thousand to be exact to a per cent.",
    )
    parser.add_argument("--model", required=True, metavar="NAME|CHECKPOINT", help="see `deepdisc models list`")
    parser.add_argument("--data", required=True, type=Path, metavar="DATASET", help="made by `deepdisc prepare`")
    parser.add_argument("--split", default="val", help="of the data set; never the one trained on (default: val)")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.safetensors")
    parser.add_argument("--report", type=Path, metavar="DIR", help="reliability before and after: report.html, JSON")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: a GPU where there is one)")


def run_calibrate(args: argparse.Namespace) -> int:
    """`deepdisc calibrate`."""
    from deepdisc.calibration.calibrate import calibrate
    from deepdisc.calibration.report import write_report
    from deepdisc.files import refuse_to_overwrite

    refuse_to_overwrite([args.report] if args.report else [])
    done = calibrate(args.model, args.data, args.output, args.split, choose_device(args.device))
    for item in done.quantities:
        print(f"{item.name}: {item.count} objects, {item.form}{f' ({item.reason})' if item.reason else ''}")
    if args.report:
        print(write_report(done, args.report))
    print(done.path)
    return DONE
