"""Detection beside SEP on real and simulated fields with known truth: one report, one table.

Example:
    python benchmarks/compare_detection.py benchmarks/detection.yaml --output bench/detection

The list of fields is that of `deepdisc compare`, with one catalogue for each field: SEP's is made here, from the same
pixels.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

from baselines import SepSettings, detect_with_sep

from deepdisc.data.mosaic import Mosaic
from deepdisc.errors import InputError
from deepdisc.evaluation import compare_fields, read_fields
from deepdisc.evaluation.printed import markdown, overview, table_text
from deepdisc.files import write_text


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fields", type=Path, help="YAML file: each field with one catalogue, truth and mosaic")
    parser.add_argument("--output", type=Path, required=True, help="folder for the report, the table, SEP's catalogues")
    parser.add_argument("--sep-threshold", type=float, default=SepSettings.threshold)
    parser.add_argument("--replicates", type=int, default=200, help="bootstrap resamplings")
    return parser


def with_sep(settings: dict, path: Path, threshold: float, stack: ExitStack) -> dict:
    """A field with its mosaic opened, and SEP's catalogue of it, written to `path`, as the second.

    Raises:
        InputError: the field has no mosaic.
    """
    if not settings.get("mosaic"):
        raise InputError(f"{settings['catalogues'][0]}: SEP needs the field's mosaic; give mosaic: FILE")
    mosaic = stack.enter_context(Mosaic.open(settings["mosaic"]))
    found, labels = detect_with_sep(mosaic, SepSettings(threshold=threshold))
    path.parent.mkdir(parents=True, exist_ok=True)
    found.to_parquet(path)
    ours = settings["catalogues"][0]
    own_map = Path(ours).parent / "segmentation.fits"
    return settings | {
        "catalogues": [ours, str(path)],
        "names": (settings["names"][0], "SEP"),
        "segmentations": [own_map if own_map.is_file() else None, labels],
        "mosaic": mosaic,
    }


def main() -> int:
    """Compare on all fields, and print the tables."""
    args = arguments().parse_args()
    listed = read_fields(args.fields)
    with ExitStack() as stack:
        fields = {
            name: with_sep(settings, args.output / "sep" / f"{k}.parquet", args.sep_threshold, stack)
            for k, (name, settings) in enumerate(listed.items(), start=1)
        }
        metrics = compare_fields(fields, args.output, replicates=args.replicates)
    texts = [markdown(*overview(metrics))]
    for name, of_field in metrics["fields"].items():
        detection = of_field["comparison"]["detection"]
        texts.append(f"{name}: matched by {detection['matched_by']}; {detection['equal_purity']['note']}.")
        texts.append(table_text(detection["rows"], metrics["names"]))
    text = "\n\n".join(texts) + "\n"
    print(text)
    write_text(args.output / "compare_detection.md", text)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"compare_detection: error: {error}", file=sys.stderr)
        sys.exit(2)
