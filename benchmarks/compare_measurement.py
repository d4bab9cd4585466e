"""Fluxes, redshifts and shears on held-out simulated skies beside the usual methods, on the same objects.

Example:
    python benchmarks/compare_measurement.py benchmarks/measurement.yaml --output bench

The YAML file lists skies by name. Paths count from the file:

    SDSS-like:
      sky: sdss/test                  # what `deepdisc simulate` wrote: one field or several
      predictions: sdss/predictions   # catalog.parquet, or for several fields <field>/catalog.parquet
      without_fluxes: sdss/other      # optional: predictions of a model whose redshift head sees no fluxes
      training: sdss/train            # optional: the sky that the trees learn from; without it there are none
      shear:                          # optional: skies of constant shear with ring pairs, best two of opposite shear
                                      # with one seed, and their predictions
        - {sky: sdss/shear_0, predictions: sdss/shear_0_predictions}
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from baseline_shear import hsm_ellipticities, shears_from_ellipticities
from baseline_templates import TemplateFit
from baselines import train_boosted_trees, train_forest
from measurement_objects import FEATURES, OURS, Objects, iterate_shear_fields, read_objects, training_features
from measurement_tables import SHEAR_SNR_CUTS, flux_text, redshift_text, shear_text

from deepdisc.errors import InputError, first_line
from deepdisc.evaluation.bootstrap import Resampling
from deepdisc.evaluation.photoz import POINT_ESTIMATES
from deepdisc.files import write_text
from deepdisc.simulate.population import Population

HSM = "re-Gaussianisation (GalSim HSM)"
_SETTINGS = ("sky", "predictions", "without_fluxes", "training", "shear")


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("skies", type=Path, help="YAML file: the skies and what was predicted of them")
    parser.add_argument("--output", type=Path, help="folder for compare_measurement.md (default: print only)")
    parser.add_argument("--estimate", choices=POINT_ESTIMATES, default="z_median", help="redshift that is compared")
    parser.add_argument("--max-distance-pix", type=float, default=2.0)
    parser.add_argument("--max-training-fields", type=int, help="let the trees learn from only so many fields")
    parser.add_argument("--jobs", type=int, default=1, help="threads of the random forest")
    parser.add_argument("--replicates", type=int, default=200, help="bootstrap resamplings")
    return parser


def read_skies(path: Path) -> dict[str, dict]:
    """The skies of a YAML file, with full paths.

    Raises:
        InputError: no such file, an unknown setting, or one that is missing.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as a list of skies in YAML: {first_line(error)}") from error
    if not isinstance(content, dict) or not all(isinstance(given, dict) for given in content.values()):
        raise InputError(f"{path} lists no skies; write a name and the settings below it: {', '.join(_SETTINGS)}")
    skies = {}
    for name, given in content.items():
        unknown = [key for key in given if key not in _SETTINGS]
        missing = [key for key in _SETTINGS[:2] if key not in given]
        if unknown or missing:
            what = f"there is no setting {unknown[0]!r}" if unknown else f"{missing[0]} is missing"
            raise InputError(f"{path}, sky {name!r}: {what}; the settings are {', '.join(_SETTINGS)}")
        paths = {key: path.parent / given[key] for key in _SETTINGS[:4] if key in given}
        sheared = [{key: path.parent / one[key] for key in _SETTINGS[:2]} for one in given.get("shear", [])]
        skies[str(name)] = paths | {"shear": sheared}
    return skies


def trees(objects: Objects, training: Path, args: argparse.Namespace) -> tuple[str, dict[str, np.ndarray]]:
    """What the trees have learned from, and their redshifts of the objects that SEP finds."""
    features, redshifts = training_features(training, args.max_training_fields, args.max_distance_pix, say)
    seen = objects.found[FEATURES]
    found = seen["ebv"].notna().to_numpy()
    guesses = {}
    for name, model in (
        ("random forest, SEP fluxes", train_forest(features, redshifts, jobs=args.jobs)),
        ("boosted trees, SEP fluxes", train_boosted_trees(features, redshifts)),
    ):
        guesses[name] = np.full(len(seen), np.nan)
        guesses[name][found] = model.predict(seen[found].to_numpy())
    return f"The trees learned from {len(redshifts):,} galaxies that SEP finds on the training fields.", guesses


def template_fit(objects: Objects, seed: int = 0):
    """Posteriors of all objects from true fluxes with the noise of the matched profile: name, PDFs."""
    truth, rng = objects.truth, np.random.default_rng(seed)
    say("template fit")
    flux, error = (truth[[f"{kind}_{band}" for band in objects.bands]].to_numpy(float) for kind in ("flux", "fluxerr"))
    bright = 10 ** (0.4 * np.outer(truth["ebv"].to_numpy(float), [band.reddening for band in objects.simulated_bands]))
    noisy = flux + error * rng.standard_normal(flux.shape)
    source, templates = objects.population
    fit = TemplateFit(Population.load(source, "train", templates), [band.filter for band in objects.simulated_bands])
    return "template fit, true fluxes + noise", fit.posterior(noisy * bright, error * bright)


def sheared(pairs: list[dict[str, Path]], max_distance_pix: float) -> tuple[dict, pd.DataFrame, np.ndarray]:
    """Galaxies of skies of constant shear: method -> shears, truth, and blocks: the fields of the same galaxies."""
    truths, ours, shapes = [], [], []
    for number, one in enumerate(pairs):
        for field, mosaic, truth, found in iterate_shear_fields(one["sky"], one["predictions"], max_distance_pix):
            say(f"{one['sky'].name}/{field.entry['name']}: shapes")
            if "pair_id" not in truth:
                raise InputError(f"{one['sky']}: has no ring pairs; simulate it with sky.lensing.ring_pairs=True")
            chosen = (truth["class_id"] == 0) & (truth["snr"] > min(SHEAR_SNR_CUTS)) & ((truth["flags"] & 1) == 0)
            chosen &= found["x"].notna()
            truth, found = truth[chosen], found[chosen]
            x, y = truth["x"].to_numpy(), truth["y"].to_numpy()
            e1, e2, error = hsm_ellipticities(mosaic, x, y)
            shapes.append(np.stack([*mosaic.grid.shear_to_sky(x, y, e1, e2), error]))
            # Skies of one seed show the same galaxies and noise: they are drawn together.
            block = f"{field.recipe['provenance']['seed']} {field.number // 2}"
            label = {"block": block, "turned": field.number % 2 == 1}
            ours.append(found)
            truths.append(truth.assign(pair_id=truth["pair_id"] + number * 10**12, **label))
    ours, truth = (pd.concat(frames, ignore_index=True) for frames in (ours, truths))
    if "g1" not in ours:
        raise InputError("the predictions of the sheared skies have no g1, g2; use a model with a shear head")
    sides = {OURS: ours, HSM: shears_from_ellipticities(*np.concatenate(shapes, axis=1))}
    return sides, truth, truth["block"].to_numpy()


def sky_text(name: str, paths: dict, args: argparse.Namespace) -> str:
    """All tables of one sky."""
    objects = read_objects(paths["sky"], paths["predictions"], paths.get("without_fluxes"), args.max_distance_pix, say)
    resampling = Resampling(args.replicates)
    texts = [f"## {name}", "### Fluxes", flux_text(objects, resampling), "### Redshifts"]
    guesses = {}
    if "training" in paths:
        learned, guesses = trees(objects, paths["training"], args)
        texts.append(learned)
    texts.append(redshift_text(objects, guesses, template_fit(objects), args.estimate, resampling))
    if paths["shear"]:
        sides, truth, blocks = sheared(paths["shear"], args.max_distance_pix)
        texts += ["### Shears", shear_text(sides, truth, Resampling(args.replicates, blocks=blocks))]
    return "\n\n".join(texts)


def say(message: str) -> None:
    """Tell what is being done."""
    print(message, file=sys.stderr)


def main() -> int:
    """Compare on all skies, and print the tables."""
    args = arguments().parse_args()
    text = "\n\n".join(sky_text(name, paths, args) for name, paths in read_skies(args.skies).items()) + "\n"
    print(text)
    if args.output:
        write_text(args.output / "compare_measurement.md", text)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"compare_measurement: error: {error}", file=sys.stderr)
        sys.exit(2)
