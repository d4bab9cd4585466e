"""Catalogues against the truth and against each other: evaluate, compare, match."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path

from deepdisc.arguments import fraction, positive_float
from deepdisc.commands.command import DONE, command
from deepdisc.errors import InputError

_KINDS = "FITS, Parquet, CSV, ECSV, VOTable or text; file.fits[EXT] names an extension"


def add_evaluate(commands) -> None:
    """Add `deepdisc evaluate`."""
    parser = command(
        commands,
        "evaluate",
        run_evaluate,
        "score a catalogue against the truth",
        "deepdisc evaluate catalogue/catalog.parquet sky/truth.parquet --mosaic sky/mosaic.yaml --output scores\n"
        "  deepdisc evaluate field.cat deep.fits --columns sextractor,lsst --max-distance-arcsec 1 --output scores",
        "Any program's catalogue: columns x, y or ra, dec; redshifts where it has z_mode; others by a column map.\n"
        "Writes metrics.json and report.html. Two catalogues on one truth: deepdisc compare.",
    )
    parser.add_argument("pred", metavar="PRED", help=f"catalogue ({_KINDS})")
    parser.add_argument("truth", metavar="TRUTH", help="truth catalogue, or a deeper one")
    _add_scoring(parser, "PRED, then TRUTH", "redshift PDFs of PRED, as qp writes them (.hdf5)")


def add_compare(commands) -> None:
    """Add `deepdisc compare`."""
    parser = command(
        commands,
        "compare",
        run_compare,
        "score two catalogues on the same truth, with intervals of their difference",
        "deepdisc compare catalogue/catalog.parquet sep.fits sky/truth.parquet --columns ,sep --output scores\n"
        "  deepdisc compare fields.yaml --output scores",
        "What `deepdisc evaluate` does for one, for two: at equal purity, on the same objects, resampled together.\n"
        "Writes metrics.json and report.html. Several fields in one report are listed in a YAML file, each with its\n"
        "catalogues, truth, mosaic and options (there --max-distance-pix is max_distance_pix):\n\n"
        "  names: [ours, SEP]\n"
        "  fields:\n"
        "    SDSS: {catalogues: [ours.parquet, sep.fits], truth: deep.fits, mosaic: mosaic.yaml, mag_limit: 20.5}\n"
        "    simulated: {catalogues: [sim/ours.parquet, sim/sep.fits], truth: sim/truth.parquet}",
    )
    parser.add_argument("pred", metavar="A", help=f"catalogue ({_KINDS}); or, alone, a YAML file that lists fields")
    parser.add_argument("other", metavar="B", nargs="?", help="another program's")
    parser.add_argument("truth", metavar="TRUTH", nargs="?", help="truth catalogue, or a deeper one")
    _add_scoring(parser, "A, B, then TRUTH", "redshift PDFs of A, then of B, as qp writes them (.hdf5): FILE,FILE")
    parser.add_argument(
        "--names", type=_two_names, metavar="A,B", help="what to call them (default: their files' names)"
    )


def add_match(commands) -> None:
    """Add `deepdisc match`."""
    parser = command(
        commands,
        "match",
        run_match,
        "join two catalogues one-to-one by position or outline",
        "deepdisc match catalogue/catalog.parquet sky/truth.parquet --output joined.fits\n"
        "  deepdisc match field.cat specz.csv --columns sextractor --max-distance-arcsec 0.5 --output joined.csv",
        "The matching has the largest total quality of all one-to-one matchings. The table has both ids, separations,\n"
        "the blend (group) that an object belongs to, and flags for those with a second candidate.",
    )
    parser.add_argument("a", metavar="A", help=f"catalogue ({_KINDS})")
    parser.add_argument("b", metavar="B", help="another")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help=".parquet, .fits, .ecsv or .csv")
    _add_columns(parser, "A, then B")
    _add_criterion(parser)
    parser.add_argument("--segmentations", type=_two_names, metavar="MAP_A,MAP_B", help="for --match-by masks")
    parser.add_argument("--keep", choices=("all", "matched", "a", "b"), default="all",
                        help="rows: all, pairs only, or all of A or B with their partners (default: all)")  # fmt: skip
    parser.add_argument("--all-columns", action="store_true", help="append the columns of both, with _a and _b")


# ------------------------------------------------------------------------------------------------------------- options
def _add_scoring(parser: argparse.ArgumentParser, order: str, pdfs: str) -> None:
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument("--mosaic", metavar="M", help="the field's mosaic.yaml: pictures, magnitudes in boxes")
    parser.add_argument(
        "--segmentation", action="store_true", help="also score outlines: segmentation.fits beside each catalogue"
    )
    parser.add_argument("--band", help="band of the magnitudes (default: r, i or the middle one)")
    parser.add_argument("--mag-limit", type=float, metavar="MAG", help="fainter objects are neither required nor false")
    parser.add_argument(
        "--resample", choices=("objects", "fields"), default="objects",
        help="what the bootstrap draws behind the errors of measured quantities (default: objects)",
    )  # fmt: skip
    parser.add_argument("--pdfs", type=_files, default=[], metavar="FILE", help=pdfs)
    parser.add_argument("--figures", action="store_true", help="also write figures/*.png and figures.pdf")
    _add_columns(parser, order)
    _add_criterion(parser)


def _add_columns(parser: argparse.ArgumentParser, order: str) -> None:
    parser.add_argument(
        "--columns", type=_files, metavar="MAP,...",
        help=f"column maps of {order}: sextractor, sep, photutils, lsst, eazy, lephare, deepdisc_jades, or a file; "
        "nothing between commas: our own names",
    )  # fmt: skip


def _add_criterion(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what makes two objects the same (default: boxes, else pixels, else the sky)")
    group.add_argument(
        "--match-by", metavar="WAY",
        help="iou (boxes), ellipses, masks, pixels, sky, id (of the same detections); or an outline and a position, "
        "such as iou+sky: the position where one of the two has no outline",
    )  # fmt: skip
    group.add_argument("--iou-threshold", type=fraction, metavar="X", help="least overlap of outlines (default: 0.5)")
    group.add_argument("--max-distance-pix", type=positive_float, metavar="D", help="pixels (default: 2)")
    group.add_argument("--max-distance-arcsec", type=positive_float, metavar="D", help="arcsec (default: 1)")


def _files(text: str) -> list[str | None]:
    return [part.strip() or None for part in text.split(",")]


def _two_names(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not two names with a comma between them")
    return parts


def _criterion(args: argparse.Namespace) -> dict:
    names = ("match_by", "iou_threshold", "max_distance_pix", "max_distance_arcsec")
    return {"columns": args.columns, **{name: getattr(args, name) for name in names}}


def _setting(args: argparse.Namespace) -> dict:
    """What evaluate and compare have in common."""
    truth_map = _beside(args.truth) if args.segmentation else None
    given = {name: getattr(args, name) for name in ("band", "mag_limit", "resample")}
    return {"truth_segmentation": truth_map, **given, **_criterion(args)}


def _beside(catalogue: str) -> Path:
    return Path(catalogue).parent / "segmentation.fits"


def _map_of(catalogue: str, wanted: bool = False) -> Path | None:
    """The segmentation map beside a catalogue: needed where outlines are scored, else drawn if it is there.

    What lies beside `catalog.parquet` or `catalog.fits` is surely its map; beside other names it may be another's.
    """
    path = _beside(catalogue)
    return path if wanted or (path.is_file() and Path(catalogue).stem == "catalog") else None


def _open(mosaic: str | None):
    from deepdisc.data.mosaic import Mosaic

    return Mosaic.open(mosaic) if mosaic else nullcontext()


# ---------------------------------------------------------------------------------------------------------------- runs
def run_evaluate(args: argparse.Namespace) -> int:
    """`deepdisc evaluate`."""
    from deepdisc.evaluation import evaluate
    from deepdisc.evaluation.printed import evaluation_text

    own_map = _map_of(args.pred, args.segmentation)
    with _open(args.mosaic) as mosaic:
        metrics = evaluate(
            args.pred, args.truth, args.output, mosaic=mosaic, pdfs=(args.pdfs or [None])[0], pred_segmentation=own_map,
            figures=args.figures, **_setting(args),
        )  # fmt: skip
    return _tell(evaluation_text(metrics), metrics["notes"], args.output)


def run_compare(args: argparse.Namespace) -> int:
    """`deepdisc compare`."""
    from deepdisc.evaluation import compare
    from deepdisc.evaluation.printed import comparison_text

    if args.other is None:
        return _run_fields(args)
    if args.truth is None:
        raise InputError(
            f"deepdisc compare needs A, B and TRUTH, or a YAML file that lists fields; given are {args.pred} and "
            f"{args.other}; one catalogue against a truth: deepdisc evaluate"
        )
    names = args.names or [str(Path(path).with_suffix("")) for path in (args.pred, args.other)]
    maps = [_map_of(path, args.segmentation) for path in (args.pred, args.other)]
    if args.segmentation and maps[0] == maps[1]:
        raise InputError(
            f"--segmentation takes segmentation.fits beside each catalogue, but both lie in {maps[0].parent}; put one "
            "of them with its map into another folder"
        )
    with _open(args.mosaic) as mosaic:
        metrics = compare(
            args.pred, args.other, args.truth, args.output, mosaic=mosaic, names=tuple(names), segmentations=maps,
            pdfs=args.pdfs, figures=args.figures, **_setting(args),
        )  # fmt: skip
    return _tell(comparison_text(metrics["comparison"]), metrics["notes"], args.output)


def _run_fields(args: argparse.Namespace) -> int:
    """`deepdisc compare FIELDS.yaml`."""
    from deepdisc.evaluation import compare_fields, read_fields
    from deepdisc.evaluation.printed import markdown, overview

    given = {name: value for name, value in (_setting(args) | {"names": args.names, "mosaic": args.mosaic}).items()
             if value not in (None, []) and name != "resample"}  # fmt: skip
    if given or args.pdfs or args.resample != "objects":
        options = ", ".join(sorted(given) + ["pdfs"] * bool(args.pdfs) + ["resample"] * (args.resample != "objects"))
        raise InputError(
            f"of several fields all but --output and --figures stands in {args.pred}; write there: {options}"
        )
    fields = read_fields(args.pred)
    with ExitStack() as stack:
        for settings in fields.values():
            settings["segmentations"] = settings["segmentations"] or [_map_of(path) for path in settings["catalogues"]]
            if settings.get("mosaic"):
                settings["mosaic"] = stack.enter_context(_open(settings["mosaic"]))
        metrics = compare_fields(fields, args.output, figures=args.figures)
    notes = [f"{name}: {note}" for name, item in metrics["fields"].items() for note in item["notes"]]
    return _tell(markdown(*overview(metrics)), notes, args.output)


def run_match(args: argparse.Namespace) -> int:
    """`deepdisc match`."""
    from deepdisc.evaluation import crossmatch

    table = crossmatch(
        args.a, args.b, args.output, segmentations=args.segmentations and tuple(args.segmentations), keep=args.keep,
        all_columns=args.all_columns, **_criterion(args),
    )  # fmt: skip
    about = table.attrs
    _tell_notes(about["notes"])
    print(f"{about['matched']:,} pairs of {about['n_a']:,} and {about['n_b']:,} objects: {about['criterion']}")
    print(f"with a second candidate: {about['ambiguous_a']:,} of A, {about['ambiguous_b']:,} of B")
    blends = {size: count for size, count in about["groups"].items() if size not in ("1-1", "1-0", "0-1")}
    if blends:
        most = list(blends.items())[:8]
        print("blends (A-B): " + ", ".join(f"{size}: {count:,}" for size, count in most))
    print(args.output)
    return DONE


def _tell(text: str, notes: list[str], output: Path) -> int:
    _tell_notes(notes)
    print(text)
    print(output / "report.html")
    return DONE


def _tell_notes(notes: list[str]) -> None:
    for note in dict.fromkeys(notes):
        print(f"note: {note}", file=sys.stderr)
