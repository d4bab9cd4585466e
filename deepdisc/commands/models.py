"""The models that are shipped, and taking one along."""

from __future__ import annotations

import argparse
from pathlib import Path

from deepdisc.commands.command import DONE, add_overrides, command, print_yaml
from deepdisc.errors import InputError


def add_models(commands) -> None:
    """Add `deepdisc models`."""
    parser = command(commands, "models", run_models, "list, show or verify the models that are shipped",
                      "deepdisc models show ugriz_r18")  # fmt: skip
    parser.add_argument("action", choices=("list", "show", "verify"))
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")


def run_models(args: argparse.Namespace) -> int:
    """`deepdisc models`."""
    from deepdisc import model_zoo

    for name in args.names or model_zoo.entries():
        entry = model_zoo.entry(name)
        if args.action == "list":
            scale = entry["pixel_scale_arcsec"]
            print(f"{name}: {','.join(entry['bands'])}, {scale} arcsec/px, {entry['training_set']}")
        elif args.action == "show":
            print_yaml({name: {**entry, "weights": str(entry["weights"])}})
        else:
            print(f"{name}: {model_zoo.verify(name)} is as it was shipped")
    return DONE


def add_export(commands) -> None:
    """Add `deepdisc export`."""
    parser = command(
        commands,
        "export",
        run_export,
        "write a checkpoint or a data set in the form that other programs read",
        "deepdisc export runs/first/model_best.pth --output mine.safetensors\n"
        "  deepdisc export runs/first/model_best.pth --to detectron2 --output model.pth\n"
        "  deepdisc export sky_dataset --to coco --output annotations",
        "safetensors: weights and config in one file, all that `deepdisc predict --model` needs; key=value changes\n"
        "settings it carries.\n"
        "detectron2: weights alone, for detectron2's DetectionCheckpointer; says what its config must have.\n"
        "coco: the annotations of a data set, one JSON file per split.",
    )
    parser.add_argument("source", type=Path, metavar="CHECKPOINT|DATASET")
    parser.add_argument("--to", choices=("safetensors", "detectron2", "coco"), help="default: by what is given")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE|DIR")
    parser.add_argument("--keep-heads", action="store_true", help="detectron2: the measurement heads, too")
    parser.add_argument("--polygons", action="store_true", help="coco: outlines as polygons where they have no holes")
    add_overrides(parser)


def run_export(args: argparse.Namespace) -> int:
    """`deepdisc export`."""
    target = args.to or ("coco" if args.source.is_dir() else "safetensors")
    if args.keep_heads and target != "detectron2":
        raise InputError("--keep-heads: only --to detectron2 leaves heads away; leave it out")
    if target == "coco":
        if args.overrides:
            raise InputError(f"{args.overrides[0]}: a data set has no settings to change; leave it out")
        from deepdisc.data.coco import export

        print(export(args.source, args.output, polygons=args.polygons))
        return DONE
    if args.polygons:
        raise InputError("--polygons: only the annotations of a data set have outlines (--to coco); leave it out")
    from deepdisc.model_zoo import export

    print(export(args.source, args.output, args.overrides, target, args.keep_heads))
    return DONE
