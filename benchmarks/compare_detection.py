"""Detection beside SEP on a field with known truth: one table with both sides, counts and errors.

Example:
    python benchmarks/compare_detection.py FIELD PREDICTION/catalog.parquet --output DIR

FIELD is a folder with mosaic.yaml, truth.parquet and segmentation.fits, as `deepdisc simulate` writes it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from baselines import SepSettings, detect_with_sep

from deepdisc.catalog import read
from deepdisc.data.mosaic import Mosaic
from deepdisc.errors import InputError
from deepdisc.evaluation import compare
from deepdisc.evaluation.comparison import table_text
from deepdisc.files import write_text

NAMES = ("deepdisc", "SEP")


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("field", type=Path, help="folder with mosaic.yaml, truth.parquet, segmentation.fits")
    parser.add_argument("prediction", type=Path, help="predicted catalogue (its segmentation.fits beside it is used)")
    parser.add_argument("--output", type=Path, help="folder for the reports (default: print only)")
    parser.add_argument("--max-distance-pix", type=float, default=2.0)
    parser.add_argument("--iou-threshold", type=float, default=0.5)
    parser.add_argument("--sep-threshold", type=float, default=SepSettings.threshold)
    parser.add_argument("--replicates", type=int, default=200, help="bootstrap resamplings")
    return parser


def main() -> int:
    """Run both comparisons, by position and by overlap, and print the tables."""
    args = arguments().parse_args()
    truth = read(args.field / "truth.parquet")
    pred = read(args.prediction)
    with Mosaic.open(args.field / "mosaic.yaml") as mosaic:
        other, _ = detect_with_sep(mosaic, SepSettings(threshold=args.sep_threshold))
        own_map = args.prediction.parent / "segmentation.fits"
        maps = {"segmentations": [own_map], "truth_segmentation": args.field / "segmentation.fits"}
        texts = []
        for kind in ("pixels", "iou"):
            metrics = compare(
                pred, other, truth, args.output / f"by_{kind}" if args.output else None, mosaic=mosaic, match_by=kind,
                iou_threshold=args.iou_threshold, max_distance_pix=args.max_distance_pix, names=NAMES,
                replicates=args.replicates, **(maps if own_map.is_file() else {}),
            )  # fmt: skip
            detection = metrics["comparison"]["detection"]
            rows, note = detection["rows"], f"; {detection['equal_purity']['note']}"
            if kind == "iou":
                # Where an outline ends is each program's convention, which no score threshold can bring to equality.
                rows, note = [row for row in rows if "uncut" in row["quantity"] or "AP" in row["quantity"]], ""
            texts.append(f"Matched by {detection['matched_by']}{note}.\n")
            texts.append(table_text(rows, NAMES) + "\n")
    text = "\n".join(texts)
    print(text)
    if args.output:
        write_text(args.output / "compare_detection.md", text)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"compare_detection: error: {error}", file=sys.stderr)
        sys.exit(2)
