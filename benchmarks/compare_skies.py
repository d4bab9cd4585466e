"""Models trained on different skies, and SEP, on a real SDSS field: what they find, and what is not there.

    python benchmarks/compare_skies.py FOLDER MODEL [MODEL ...] [--mag-limit 22] [--output DIR]

FOLDER holds the frames and catalogues of run 94, camcol 1, field 12 (head of datasets/sdss_run94.yaml), MODEL is a name
or a file. Every catalogue is scored twice, by position within two pixels:

- against the *coadd* catalogue of Stripe 82 as it is;
- against objects *listed twice*, by the coadd and by the field's own photoObj: neither satellites and asteroids of one
  visit nor entries on the spikes of a bright star. What only one of them lists counts neither way.

Given are completeness and purity of the catalogue as it is written (score of at least 0.5; SEP: all), and the purity
at the highest threshold that still finds 99 % of the objects. Errors, and intervals of differences to the first model,
are from 1,000 resamplings of blocks of 256 x 256 pixels, at fixed thresholds.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from astropy.table import Table
from baselines import detect_with_sep

from deepdisc import catalog
from deepdisc.data.mosaic import Mosaic
from deepdisc.evaluation.assessment import Assessor
from deepdisc.evaluation.match import Criterion
from deepdisc.evaluation.pixels import add_brightness
from deepdisc.inference.predict import predict
from deepdisc.matching import close_pairs
from deepdisc.model_zoo import load_model
from deepdisc.photometry import mag_from_njy, njy_from_mag

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from make_sdss_sample import SINGLE, make_sample  # noqa: E402

BAND = "r"
RADIUS_PIX = 2.0
LOWEST_SCORE = 0.05
WRITTEN = 0.5  # the models' own threshold
FOUND = 0.99
BLOCK_PIX = 256
SHAPE = (1489, 2048)
REPLICATES = 1000
NANOMAGGY = 22.5


@dataclass(frozen=True)
class Counts:
    """Numbers in each block of the sky, (M,) each: objects asked for and found, detections right and false."""

    asked: np.ndarray
    found: np.ndarray
    right: np.ndarray
    false: np.ndarray

    def resampled(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(R,) completeness and purity when blocks are taken `times` (R, M)."""
        asked, found, right, false = (times @ part for part in (self.asked, self.found, self.right, self.false))
        return found / asked, right / (right + false)


def listed_once_or_twice(folder: Path, mosaic: Mosaic, coadd: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """All objects of both catalogues (x, y, mag_r, id), and (T,) bool, listed by both."""
    table = Table.read(folder / SINGLE)
    table = table[(np.asarray(table["MODE"]) <= 2) & np.isin(table["OBJC_TYPE"], (3, 6))]
    x, y = mosaic.grid.to_pixel(np.asarray(table["RA"], float), np.asarray(table["DEC"], float))
    flux = np.where(table["OBJC_TYPE"] == 3, table["CMODELFLUX"][:, 2], table["PSFFLUX"][:, 2])
    single = pd.DataFrame({"x": x, "y": y, "mag_r": mag_from_njy(flux * njy_from_mag(NANOMAGGY))})
    height, width = mosaic.shape
    single = single[single.x.between(0, width - 1) & single.y.between(0, height - 1)]
    pairs = close_pairs(coadd[["x", "y"]].to_numpy(), single[["x", "y"]].to_numpy(), RADIUS_PIX)
    alone = np.setdiff1d(np.arange(len(single)), pairs.truth)
    both = pd.concat([coadd[["x", "y", "mag_r"]], single.iloc[alone]], ignore_index=True)
    both["id"] = np.arange(1, len(both) + 1)
    twice = np.zeros(len(both), bool)
    twice[pairs.pred] = True
    return both, twice


def count(assessor: Assessor, pred: pd.DataFrame, truth: pd.DataFrame, threshold: float) -> Counts:
    """Score the detections above a threshold, block by block."""
    done = assessor.assess((pred.score >= threshold).to_numpy())
    rows, columns = (math.ceil(side / BLOCK_PIX) for side in SHAPE)

    def sums(objects: pd.DataFrame, chosen: np.ndarray) -> np.ndarray:
        row = np.clip(objects.y.to_numpy() // BLOCK_PIX, 0, rows - 1).astype(int)
        column = np.clip(objects.x.to_numpy() // BLOCK_PIX, 0, columns - 1).astype(int)
        return np.bincount((row * columns + column)[chosen], minlength=rows * columns).astype(float)

    return Counts(
        sums(truth, done.required),
        sums(truth, done.found),
        sums(pred, done.correct),
        sums(pred, ~done.correct & ~done.excused),
    )


def threshold_for(assessor: Assessor, pred: pd.DataFrame) -> float:
    """The highest score at which FOUND of the objects are still found; NaN if never."""
    scores = np.sort(pred.score.to_numpy())
    low, high = 0, len(scores) - 1
    if assessor.assess().completeness < FOUND:
        return float("nan")
    while low < high:  # completeness falls with the threshold
        middle = (low + high + 1) // 2
        enough = assessor.assess((pred.score >= scores[middle]).to_numpy()).completeness >= FOUND
        low, high = (middle, high) if enough else (low, middle - 1)
    return float(scores[low])


def detect(name: str, mosaic: Mosaic, folder: Path) -> pd.DataFrame:
    """The catalogue of a model, at a low threshold, with the light in each box as magnitude."""
    model, cfg = load_model(name)
    model.roi_heads.final_predictor.test_score_thresh = LOWEST_SCORE
    predict(mosaic, model, folder, bands=cfg.bands, class_names=cfg.class_names, score_threshold=LOWEST_SCORE)
    return add_brightness(catalog.read(folder / "catalog.parquet"), mosaic, BAND)[0]


def rows(catalogs: dict[str, pd.DataFrame], truth: pd.DataFrame, required: np.ndarray, limit: float) -> list[str]:
    """Lines of one table, the differences to the first catalogue."""
    lines, first = [], {}
    for name, pred in catalogs.items():
        assessor = Assessor(pred, truth, Criterion("pixels", RADIUS_PIX), required, mag_limit=(f"mag_{BAND}", limit))
        cells = [Path(name).parent.name or name]
        for what, threshold in (("written", WRITTEN), ("found", threshold_for(assessor, pred))):
            if not np.isfinite(threshold):
                cells += ["never", ""]
                continue
            counts = count(assessor, pred, truth, threshold)
            blocks = len(counts.asked)
            # the same blocks for all
            times = np.random.default_rng(0).multinomial(blocks, np.full(blocks, 1 / blocks), REPLICATES)
            drawn = counts.resampled(times)
            values = counts.resampled(np.ones((1, len(counts.asked))))
            for k in (0, 1) if what == "written" else (1,):
                text = f"{values[k][0]:.3f} ± {drawn[k].std():.3f}"
                reference = first.setdefault((what, k), (name, drawn[k], values[k][0]))
                if reference[0] != name:
                    low, high = np.quantile(drawn[k] - reference[1], [0.025, 0.975])
                    text += f" ({values[k][0] - reference[2]:+.3f} [{low:+.3f}, {high:+.3f}])"
                cells.append(text)
            cells.append(f"{int(counts.false.sum())}" + (f" (score ≥ {threshold:.2f})" if what == "found" else ""))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def table(catalogs: dict[str, pd.DataFrame], folder: Path, mosaic: Mosaic, coadd: pd.DataFrame, limit: float) -> str:
    """Both tables in Markdown."""
    union, twice = listed_once_or_twice(folder, mosaic, coadd)
    head = (
        f"| | completeness | purity | false | purity where {FOUND:.0%} are found | false |\n|---|---|---|---|---|---|"
    )
    parts = []
    for title, truth, required in (
        ("against the coadd catalogue", coadd, (coadd.mag_r < limit).to_numpy()),
        ("against objects listed twice", union, (union.mag_r < limit).to_numpy() & twice),
    ):
        parts += [f"r < {limit:g}, {title} (n = {int(required.sum())}):\n", head]
        parts += [*rows(catalogs, truth, required, limit), ""]
    return "\n".join(parts)


def main() -> None:
    """Predict, score and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--mag-limit", type=float, nargs="+", default=[20.5, 22.0])
    parser.add_argument("--output", type=Path, metavar="DIR", help="also write compare_skies.md there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        field = Path(scratch) / "field"
        make_sample(args.folder, field, (0, 0, *SHAPE))
        coadd = catalog.read(field / "truth.parquet")
        with Mosaic.open(field / "mosaic.yaml") as mosaic:
            catalogs = {}
            for number, name in enumerate(args.models):
                catalogs[name] = detect(name, mosaic, Path(scratch) / str(number))
            sep, _ = detect_with_sep(mosaic)
            catalogs["SEP"] = sep
            text = "\n".join(table(catalogs, args.folder, mosaic, coadd, limit) for limit in args.mag_limit)
    print(text)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "compare_skies.md").write_text(f"# Skies\n\n{text}", encoding="utf-8")


if __name__ == "__main__":
    main()
