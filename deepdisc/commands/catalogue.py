"""From a mosaic to its catalogue."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from deepdisc.arguments import fraction, natural, number_or_text, positive, positive_float, zero_points
from deepdisc.commands.command import DONE, PARTS_UNREAD, choose_device, command
from deepdisc.files import sha256


def add_predict(commands) -> None:
    """Add `deepdisc predict`."""
    parser = command(
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
    from deepdisc.model_zoo import load_model, weights_path

    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    with _open_mosaic(args) as mosaic:
        model, cfg = load_model(args.model)
        if args.score_threshold is not None:
            model.roi_heads.final_predictor.test_score_thresh = args.score_threshold
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
            provenance={
                "model": args.model,
                "weights_sha256": sha256(weights_path(args.model)),
                "mosaic": args.mosaic,
            },  # fmt: skip
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
