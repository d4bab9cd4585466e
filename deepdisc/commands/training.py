"""From fields with truth to a trained model."""

from __future__ import annotations

import argparse
from pathlib import Path

from deepdisc.arguments import natural, positive, shares
from deepdisc.commands.command import DONE, add_overrides, command


def add_prepare(commands) -> None:
    """Add `deepdisc prepare`."""
    parser = command(
        commands,
        "prepare",
        run_prepare,
        "cut mosaics with truth into a data set for training",
        "deepdisc prepare sky/recipe.yaml --output sky_dataset",
        "Splits by area of the sky: no object, and no neighbour of it, is in two splits.",
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE.yaml", help="fields with their truth; simulate writes one")
    parser.add_argument("--output", required=True, type=Path, metavar="DATASET")
    parser.add_argument("--tile-size", type=positive, default=512, metavar="PIXELS", help="default: 512")
    parser.add_argument(
        "--split", type=shares, metavar="train=F,val=F,test=F", help="shares of the sky; default: 0.8, 0.1, 0.1"
    )
    parser.add_argument("--seed", type=natural, default=0, help="which fields go where; default: 0")


def run_prepare(args: argparse.Namespace) -> int:
    """`deepdisc prepare`."""
    from deepdisc.data.prepare import prepare

    print(prepare(args.recipe, args.output, tile_size=args.tile_size, fractions=args.split, seed=args.seed))
    return DONE


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
    from deepdisc.training import train

    print(train(cfg, resume=args.resume, eval_only=args.eval_only, num_gpus=args.num_gpus))
    return DONE
