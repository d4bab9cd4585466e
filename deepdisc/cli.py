"""The command line: `deepdisc COMMAND ...`. Arguments in, one call of the public API, an exit code out.

Exit codes: 0 done; 2 the user's input is wrong; 3 done, but parts of the field could not be read; 1 a fault of ours.
Heavy modules are imported inside the handlers, so that `deepdisc --help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from deepdisc import __version__
from deepdisc.arguments import fraction, natural, number_or_text, positive, positive_float, shares, zero_points
from deepdisc.errors import InputError

DONE, FAULT, WRONG_INPUT, PARTS_UNREAD, INTERRUPTED = 0, 1, 2, 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `argv` defaults to the arguments of the process."""
    try:
        args = parse(sys.argv[1:] if argv is None else argv)
    except SystemExit as exit_:  # argparse has printed its help or its message
        return int(exit_.code or 0)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        with _terminated_like_interrupted():
            return args.run(args)
    except InputError as error:
        print(f"deepdisc: error: {' '.join(str(error).split())}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        print("deepdisc: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone (`deepdisc models list | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception:
        traceback.print_exc()
        print(f"deepdisc {__version__}: a fault of deepdisc; please report it with the lines above", file=sys.stderr)
        return FAULT


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM, by which batch systems end a job, clean up as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Parser(argparse.ArgumentParser):
    """Prints a mistake as one line, without the usage."""

    def error(self, message: str):
        self.exit(WRONG_INPUT, f"deepdisc: error: {message}; see {self.prog} --help\n")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse arguments; `key=value` arguments may stand anywhere among the flags, which argparse alone refuses."""
    parser = make_parser()
    args, rest = parser.parse_known_args(list(argv))
    strangers = [text for text in rest if text.startswith("-") or "=" not in text or "many" not in args]
    if strangers:
        parser.error(f"unrecognized arguments: {' '.join(strangers)}")
    if rest:
        setattr(args, args.many, [*getattr(args, args.many), *rest])
    return args


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = _Parser(
        prog="deepdisc",
        description="Pixels in, a photo-z catalogue out: find, separate and measure the galaxies of a mosaic.",
        epilog="`deepdisc COMMAND --help` shows an example of each command.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"deepdisc {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (_simulate, _prepare, _train, _predict, _evaluate, _models, _export, _regrid, _inspect):
        add(commands)
    return parser


def _command(commands, name: str, run, summary: str, example: str, details: str = "") -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.\n{details}",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the config file to change")
    parser.set_defaults(many="overrides")


# simulate -------------------------------------------------------------------------------------------------------


def _simulate(commands) -> None:
    parser = _command(
        commands,
        "simulate",
        run_simulate,
        "draw synthetic mosaics with their truth (extra: sim)",
        "deepdisc simulate --config-file configs/sky/demo.py --output sky --seed 7 sky.shape=[256,256]",
        "Each field: mosaic.yaml, one FITS file per band, segmentation.fits, truth.parquet; and one recipe.yaml.",
    )
    parser.add_argument("--config-file", "--config", required=True, metavar="FILE", help="e.g. configs/sky/demo.py")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes (default: 0)")
    _add_overrides(parser)


def run_simulate(args: argparse.Namespace) -> int:
    """`deepdisc simulate`."""
    from deepdisc.config import load
    from deepdisc.simulate import simulate

    for folder in simulate(load(args.config_file, args.overrides), args.output, seed=args.seed):
        print(folder)
    return DONE


# prepare --------------------------------------------------------------------------------------------------------


def _prepare(commands) -> None:
    parser = _command(
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


# train ----------------------------------------------------------------------------------------------------------


def _train(commands) -> None:
    parser = _command(
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
    _add_overrides(parser)


def run_train(args: argparse.Namespace) -> int:
    """`deepdisc train`."""
    from deepdisc.config import load

    cfg = load(args.config_file, args.overrides)
    from deepdisc.training import train

    print(train(cfg, resume=args.resume, eval_only=args.eval_only, num_gpus=args.num_gpus))
    return DONE


# predict --------------------------------------------------------------------------------------------------------


def _predict(commands) -> None:
    parser = _command(
        commands,
        "predict",
        run_predict,
        "make the catalogue of a mosaic",
        "deepdisc predict sky/mosaic.yaml --model ugriz_r18 --output catalogue\n"
        "  deepdisc predict g=g.fits.fz r=r.fits.fz --model runs/first/model_best.pth --pixel-scale 0.2 --output cat",
        "Writes catalog.parquet, catalog.fits, segmentation.fits, regions.reg and run.json.\n"
        "Exit code 3: done, but parts of the field could not be read.",
    )
    parser.add_argument("mosaic", nargs="+", metavar="MOSAIC", help="a mosaic.yaml, one FITS cube, or BAND=FILE ...")
    parser.add_argument("--model", required=True, metavar="NAME|CHECKPOINT", help="see `deepdisc models list`")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument("--overwrite", action="store_true", help="replace the results that DIR holds")
    _add_mosaic_options(parser)
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: a GPU where there is one)")
    parser.add_argument("--tile-size", type=positive, default=512, metavar="PIXELS", help="default: 512")
    parser.add_argument("--overlap", type=natural, default=128, metavar="PIXELS",
                        help="at least twice the half-size of the largest object (default: 128)")  # fmt: skip
    parser.add_argument("--batch-size", type=positive, default=1, metavar="TILES", help="tiles at once (default: 1)")
    parser.add_argument("--score-threshold", type=fraction, metavar="P",
                        help="least score, above or below the model's own, which is the default")  # fmt: skip
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: all cores)")


def _add_mosaic_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(many="mosaic")
    group = parser.add_argument_group("what the mosaic itself may not say")
    group.add_argument(
        "--bands", metavar="u,g,z=Z", help="bands; model=mosaic where names differ; names of a cube's planes"
    )
    group.add_argument("--pixel-scale", type=positive_float, metavar="ARCSEC", help="where there is no WCS")
    group.add_argument(
        "--zero-point", type=zero_points, metavar="Z|BAND=Z,...", help="AB zero point, or unit such as nJy"
    )
    group.add_argument("--ebv", type=number_or_text, metavar="MAG|MAP", help="Milky Way E(B-V): a number or a FITS map")
    for name, meaning in _MAPS.items():
        group.add_argument(f"--{name}", action="append", metavar="BAND=FILE", help=f"{meaning}; repeat for each band")
    group.add_argument("--background", choices=("none", "subtract"), help="subtract the measured sky (default: none)")


_MAPS = {
    "variance": "variance map",
    "rms": "map of the standard deviation",
    "weight": "map of the inverse variance",
    "mask": "map whose nonzero pixels are bad",
}


def run_predict(args: argparse.Namespace) -> int:
    """`deepdisc predict`."""
    import torch

    from deepdisc.inference.predict import predict
    from deepdisc.model_zoo import load_model

    if args.threads:
        torch.set_num_threads(args.threads)
    device = _device(args.device)
    with _open_mosaic(args) as mosaic:
        model, cfg = load_model(args.model)
        if args.score_threshold is not None:
            model.roi_heads.box_predictor.test_score_thresh = args.score_threshold
        _warn(mosaic, cfg.pixel_scale_arcsec)
        result = predict(
            mosaic,
            model.to(device),
            args.output,
            bands=cfg.bands,
            class_names=cfg.class_names,
            tile=args.tile_size,
            overlap=args.overlap,
            batch=args.batch_size,
            device=device,
            score_threshold=args.score_threshold,
            provenance={"model": args.model, "mosaic": args.mosaic},
            overwrite=args.overwrite,
        )
    print(f"{result.count} objects: {result.catalog}")
    for part in result.unreadable:
        print(f"could not read {part}", file=sys.stderr)
    return PARTS_UNREAD if result.unreadable else DONE


def _open_mosaic(args: argparse.Namespace):
    from deepdisc.data.mosaic import Mosaic

    return Mosaic.open(
        args.mosaic,
        args.bands,
        args.pixel_scale,
        args.zero_point,
        **{name: getattr(args, name) for name in _MAPS},
        background=args.background,
        ebv=args.ebv,
    )


def _warn(mosaic, model_scale: float) -> None:
    """Say on standard error what the user may not expect of the catalogue."""
    if mosaic.grid.wcs is None:
        print("no WCS: the catalogue has no sky positions (ra and dec are NaN)", file=sys.stderr)
    if not 1 / 1.5 <= mosaic.pixel_scale_arcsec / model_scale <= 1.5:
        print(
            f"warning: the mosaic has {mosaic.pixel_scale_arcsec:.3g} arcsec/px, the model was trained at "
            f"{model_scale:.3g}; objects will look too large or too small to it",
            file=sys.stderr,
        )


def _device(name: str):
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"--device {name}: {str(error).splitlines()[0]}; use --device cpu") from error
    return device


# evaluate -------------------------------------------------------------------------------------------------------


def _evaluate(commands) -> None:
    parser = _command(
        commands,
        "evaluate",
        run_evaluate,
        "score a catalogue against the truth",
        "deepdisc evaluate catalogue/catalog.parquet sky/truth.parquet --mosaic sky/mosaic.yaml --output scores",
        "Any program's catalogue: columns x, y or ra, dec; redshifts where it has z_mode.\n"
        "Writes metrics.json and report.html.",
    )
    parser.add_argument("pred", type=Path, metavar="PRED", help="catalogue (.parquet, .fits, .ecsv, .csv)")
    parser.add_argument("truth", type=Path, metavar="TRUTH", help="truth catalogue, or a deeper one")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument("--mosaic", metavar="M", help="the field's mosaic.yaml: pictures, magnitudes in boxes")
    parser.add_argument(
        "--segmentation", action="store_true", help="also score outlines: segmentation.fits beside both"
    )
    parser.add_argument("--compare", type=Path, metavar="CATALOGUE", help="another program's, put beside PRED")
    parser.add_argument("--band", help="band of the magnitudes (default: r, i or the middle one)")
    parser.add_argument("--mag-limit", type=float, metavar="MAG", help="fainter objects are neither required nor false")
    limits = parser.add_mutually_exclusive_group()
    limits.add_argument(
        "--iou-threshold", type=fraction, metavar="X", help="least overlap of matched boxes (default: 0.5)"
    )
    limits.add_argument("--max-distance-pix", type=positive_float, metavar="D", help="match by position instead")
    limits.add_argument("--max-distance-arcsec", type=positive_float, metavar="D", help="match on the sky instead")


def run_evaluate(args: argparse.Namespace) -> int:
    """`deepdisc evaluate`."""
    from contextlib import nullcontext

    from deepdisc.data.mosaic import Mosaic
    from deepdisc.evaluation import evaluate
    from deepdisc.evaluation.comparison import table_text

    names = (args.pred.parent.name or str(args.pred), args.compare.stem if args.compare else "")
    maps = [path.parent / "segmentation.fits" if args.segmentation else None for path in (args.pred, args.truth)]
    with Mosaic.open(args.mosaic) if args.mosaic else nullcontext() as mosaic:
        metrics = evaluate(
            args.pred,
            args.truth,
            args.output,
            mosaic=mosaic,
            iou_threshold=args.iou_threshold,
            max_distance_pix=args.max_distance_pix,
            max_distance_arcsec=args.max_distance_arcsec,
            band=args.band,
            mag_limit=args.mag_limit,
            pred_segmentation=maps[0],
            truth_segmentation=maps[1],
            compare=args.compare,
            names=names,
        )
    if args.compare:
        print(table_text(metrics["comparison"]["table"], names))
    for part in ("detection", "redshift"):
        _print_figures(part, metrics[part])
    print(args.output / "report.html")
    return DONE


def _print_figures(part: str, figures: dict) -> None:
    for name, value in figures.items():
        if f"{name}_err" in figures and value == value:  # NaN: this catalogue or truth has no such figure
            print(f"{part}.{name} = {value:.4g} +- {figures[f'{name}_err']:.2g}")


# models, export, regrid, inspect -------------------------------------------------------------------------------


def _models(commands) -> None:
    parser = _command(commands, "models", run_models, "list, show or verify the models that are shipped",
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
            _print_yaml({name: {**entry, "weights": str(entry["weights"])}})
        else:
            print(f"{name}: {model_zoo.verify(name)} is as it was shipped")
    return DONE


def _export(commands) -> None:
    parser = _command(
        commands,
        "export",
        run_export,
        "write a checkpoint's weights and config as one .safetensors file",
        "deepdisc export runs/first/model_best.pth --output mine.safetensors",
        "The file is all that `deepdisc predict --model` needs; key=value changes settings it carries.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.safetensors")
    _add_overrides(parser)


def run_export(args: argparse.Namespace) -> int:
    """`deepdisc export`."""
    from deepdisc.model_zoo import export

    print(export(args.checkpoint, args.output, args.overrides))
    return DONE


def _regrid(commands) -> None:
    parser = _command(
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


def _inspect(commands) -> None:
    parser = _command(
        commands,
        "inspect",
        run_inspect,
        "say what a file is: mosaic, catalogue, config, checkpoint, data set",
        "deepdisc inspect sky/mosaic.yaml",
    )
    parser.add_argument("path", type=Path, metavar="PATH")


def run_inspect(args: argparse.Namespace) -> int:
    """`deepdisc inspect`."""
    from deepdisc.inspection import inspect

    _print_yaml(inspect(args.path))
    return DONE


def _print_yaml(values: dict) -> None:
    import yaml

    print(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120), end="")


if __name__ == "__main__":
    sys.exit(main())
