"""What there is before any model: synthetic fields, other pixel grids, a look at a file."""

from __future__ import annotations

import argparse
from pathlib import Path

from deepdisc.arguments import natural, positive, positive_float
from deepdisc.commands.command import DONE, add_overrides, command, print_yaml
from deepdisc.errors import InputError


def add_simulate(commands) -> None:
    """Add `deepdisc simulate`."""
    parser = command(
        commands,
        "simulate",
        run_simulate,
        "draw synthetic mosaics with their truth (extra: sim)",
        "deepdisc simulate --config-file configs/sky/demo.py --output sky --seed 7 sky.shape=[256,256]",
        "Each field: mosaic.yaml, one FITS file per band, segmentation.fits, truth.parquet, outlines.parquet; and one\n"
        "recipe.yaml and report.html.",
    )
    parser.add_argument("--config-file", "--config", required=True, metavar="FILE", help="e.g. configs/sky/demo.py")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes (default: 0)")
    parser.add_argument("--no-report", action="store_true", help="write no report.html")
    parser.add_argument("--compare", type=Path, metavar="CATALOGUE", help="draw its objects in the report as well")
    parser.add_argument("--compare-area", type=positive_float, metavar="ARCMIN2", help="the area of that catalogue")
    add_overrides(parser)


def run_simulate(args: argparse.Namespace) -> int:
    """`deepdisc simulate`."""
    from deepdisc.config import load
    from deepdisc.simulate import simulate

    if args.no_report and args.compare:
        raise InputError("--compare is for the report, which --no-report leaves out; give one of them")
    cfg = load(args.config_file, args.overrides)
    options = {"compare": args.compare, "compare_area_arcmin2": args.compare_area}
    for path in simulate(cfg, args.output, seed=args.seed, report=not args.no_report, **options):
        print(path)
    return DONE


def add_regrid(commands) -> None:
    """Add `deepdisc regrid`."""
    parser = command(
        commands,
        "regrid",
        run_regrid,
        "bring the bands of a mosaic onto one pixel grid (extra: regrid)",
        "deepdisc regrid g=g.fits Ks=ks.fits --reference g --output regridded",
    )
    parser.add_argument("mosaic", nargs="+", metavar="MOSAIC", help="a mosaic.yaml or BAND=FILE ...")
    parser.add_argument("--reference", metavar="BAND", help="the pixel grid to use (default: the first band)")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")


def run_regrid(args: argparse.Namespace) -> int:
    """`deepdisc regrid`."""
    from deepdisc.data.regrid import regrid

    print(regrid(args.mosaic, args.output, reference=args.reference))
    return DONE


def add_inspect(commands) -> None:
    """Add `deepdisc inspect`."""
    parser = command(
        commands,
        "inspect",
        run_inspect,
        "say what a file is: mosaic, catalogue, config, checkpoint, data set; draw a data set",
        "deepdisc inspect sky/mosaic.yaml\n  deepdisc inspect DATASET --output look --tiles 6",
        "With --output, a data set is drawn: random tiles with their truth, a map, distributions, noise (report.html).",
    )
    parser.add_argument("path", type=Path, metavar="PATH")
    parser.add_argument("--output", type=Path, metavar="DIR", help="draw the data set PATH into this new folder")
    parser.add_argument("--tiles", type=positive, metavar="N", help="random tiles drawn of each split (default: 4)")
    parser.add_argument("--seed", type=natural, metavar="N", help="which tiles are drawn (default: 0)")


def run_inspect(args: argparse.Namespace) -> int:
    """`deepdisc inspect`."""
    from deepdisc.inspection import draw, inspect

    chosen = {name: value for name in ("tiles", "seed") if (value := getattr(args, name)) is not None}
    if args.output is not None:
        print(draw(args.path, args.output, **chosen))
        return DONE
    if chosen:
        raise InputError(f"--{next(iter(chosen))}: nothing is drawn without --output; add it, or leave this out")
    print_yaml(inspect(args.path))
    return DONE
