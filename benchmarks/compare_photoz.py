"""Redshifts beside a random forest and a constant guess, on the same held-out objects: one table.

Example:
    python benchmarks/compare_photoz.py TRAINING/recipe.yaml FIELD PREDICTION/catalog.parquet --output DIR

The forest learns from the true positions of the training objects, in fixed apertures on the training mosaics, and is
applied at the true positions of the held-out field; the constant is the median redshift of the training objects.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from baselines import colour_features, train_forest, training_rows

from deepdisc.catalog import read
from deepdisc.data.mosaic import Mosaic
from deepdisc.errors import InputError
from deepdisc.evaluation.bootstrap import Resampling
from deepdisc.evaluation.comparison import redshift_rows
from deepdisc.evaluation.photoz import POINT_ESTIMATES
from deepdisc.evaluation.printed import table_text
from deepdisc.evaluation.scoring import prepare, score
from deepdisc.files import write_text


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="recipe.yaml of the training fields")
    parser.add_argument("field", type=Path, help="held-out field: folder with mosaic.yaml and truth.parquet")
    parser.add_argument("prediction", type=Path, help="predicted catalogue of that field")
    parser.add_argument("--output", type=Path, help="folder for the table (default: print only)")
    parser.add_argument("--estimate", choices=POINT_ESTIMATES, default="z_mode")
    parser.add_argument("--max-distance-pix", type=float, default=2.0)
    parser.add_argument("--max-fields", type=int, help="use only so many training fields")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--replicates", type=int, default=500, help="bootstrap resamplings")
    return parser


def training_set(recipe: Path, max_fields: int | None) -> tuple[pd.DataFrame, np.ndarray]:
    """Features and redshifts of all labelled training galaxies.

    Raises:
        InputError: the recipe is missing or lists no fields.
    """
    if not recipe.is_file():
        raise InputError(f"no recipe at {recipe}; give the recipe.yaml that `deepdisc simulate` wrote")
    fields = (yaml.safe_load(recipe.read_text()) or {}).get("fields") or []
    if not fields:
        raise InputError(f"{recipe} lists no fields")
    features, redshifts = [], []
    for field in fields[:max_fields]:
        truth = read(recipe.parent / field["truth"])
        truth = truth[training_rows(truth)]
        with Mosaic.open(recipe.parent / field["mosaic"]) as mosaic:
            features.append(colour_features(mosaic, truth["x"].to_numpy(), truth["y"].to_numpy(), mosaic.ebv))
        redshifts.append(truth["redshift"].to_numpy(float))
    return pd.concat(features, ignore_index=True), np.concatenate(redshifts)


def main() -> int:
    """Train the forest, apply it, and print the table."""
    args = arguments().parse_args()
    features, redshifts = training_set(args.recipe, args.max_fields)
    forest = train_forest(features, redshifts, jobs=args.jobs)
    with Mosaic.open(args.field / "mosaic.yaml") as mosaic:
        (side,), setting = prepare(
            [args.prediction], args.field / "truth.parquet", mosaic=mosaic, match_by="pixels",
            max_distance_pix=args.max_distance_pix,
        )  # fmt: skip
        scored = score(side, setting, Resampling(2))
        pairs = scored.assessment.pairs
        truth = setting.truth.iloc[pairs.truth]
        ours = scored.pred[args.estimate].to_numpy(float)[pairs.pred]
        z_true = truth["redshift"].to_numpy(float)
        used = np.isfinite(z_true) & np.isfinite(ours)
        truth, ours, z_true = truth[used], ours[used], z_true[used]
        held_out = colour_features(mosaic, truth["x"].to_numpy(), truth["y"].to_numpy(), mosaic.ebv)
    theirs = forest.predict(held_out.to_numpy())
    constant = np.full(len(z_true), np.median(redshifts))
    snr = truth["snr"].to_numpy(float)
    texts = [
        f"{len(redshifts):,} training galaxies; {len(z_true):,} matched galaxies of the held-out field with a redshift "
        f"({(~used).sum():,} matched objects without one: stars). Estimate: {args.estimate}.\n"
    ]
    for label, chosen in (("all matched", snr > 0), ("S/N > 10", snr > 10), ("S/N > 30", snr > 30)):
        for name, guess in (("random forest", theirs), ("constant guess", constant)):
            rows = redshift_rows(ours[chosen], guess[chosen], z_true[chosen], Resampling(args.replicates))
            texts.append(f"{label}: {chosen.sum():,} objects\n\n{table_text(rows, ('deepdisc', name))}\n")
    text = "\n".join(texts)
    print(text)
    if args.output:
        write_text(args.output / "compare_photoz.md", text)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"compare_photoz: error: {error}", file=sys.stderr)
        sys.exit(2)
