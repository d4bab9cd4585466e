"""The models that are shipped, and taking one along."""

from __future__ import annotations

import argparse
from pathlib import Path

from deepdisc.commands.command import DONE, add_overrides, command, print_yaml


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
        "write a checkpoint's weights and config as one .safetensors file",
        "deepdisc export runs/first/model_best.pth --output mine.safetensors",
        "The file is all that `deepdisc predict --model` needs; key=value changes settings it carries.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.safetensors")
    add_overrides(parser)


def run_export(args: argparse.Namespace) -> int:
    """`deepdisc export`."""
    from deepdisc.model_zoo import export

    print(export(args.checkpoint, args.output, args.overrides))
    return DONE
