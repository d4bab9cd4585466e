"""Time, memory and correctness of matching large catalogues, beside astropy's and a plain KD-tree's nearest neighbour.

Example:
    python benchmarks/compare_matching.py --objects 1000000 --output DIR

Two catalogues of the same objects with positional scatter, some lost and some added on either side, at a density of a
deep field. Each method runs in a process of its own, so that its peak memory is its own. "Right" are true pairs joined,
"twice" are objects of B that are claimed by more than one of A: nearest-neighbour methods are not one-to-one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from deepdisc.evaluation.match import Criterion, match_rows
from deepdisc.files import write_text

LIMIT_ARCSEC = 1.0


def catalogues(objects: int, density: float, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray]:
    """Catalogues A and B, and for each row of A the row of B that is the same object (-1: none).

    Args:
        objects: rows of each.
        density: objects per square arcmin (200 is a deep JWST field).
        seed: of everything.
    """
    rng = np.random.default_rng(seed)
    side = 60 * np.sqrt(objects / density)  # arcsec
    place = rng.uniform(0, side, (objects, 2))
    a = place + rng.normal(0, 0.1, place.shape)
    order = rng.permutation(objects)
    b = (place + rng.normal(0, 0.1, place.shape))[order]
    partner = np.empty(objects, np.int64)
    partner[order] = np.arange(objects)
    lost = rng.random(objects) < 0.1  # of B; in their places are objects that A does not have
    b[lost] = rng.uniform(0, side, (lost.sum(), 2))
    partner[order[lost]] = -1
    size = rng.lognormal(-1.0, 0.4, (2, objects))  # half of the box's side, arcsec
    return _frame(a, size[0]), _frame(b, size[0][order] * rng.normal(1, 0.05, objects).clip(0.5)), partner


def _frame(place: np.ndarray, size: np.ndarray) -> pd.DataFrame:
    x, y = place.T
    frame = pd.DataFrame({"ra": 150 + x / 3600 / np.cos(np.radians(2.0)), "dec": 2 + y / 3600, "x": x, "y": y})
    return frame.assign(
        x_min=x - size, y_min=y - size, x_max=x + size, y_max=y + size, a_pix=size, b_pix=0.6 * size, theta_deg=30.0
    )


def ours(a: pd.DataFrame, b: pd.DataFrame, criterion: Criterion) -> np.ndarray:
    """Partner in B of each row of A, -1 for none."""
    result = match_rows(a, b, criterion)
    assert len(result.groups.table)  # the groups are part of the work
    return result.partner_of_pred


def astropy_nearest(a: pd.DataFrame, b: pd.DataFrame) -> np.ndarray:
    """`match_coordinates_sky`, cut at the limit."""
    from astropy.coordinates import SkyCoord, match_coordinates_sky

    here, there = (SkyCoord(part.ra.to_numpy(), part.dec.to_numpy(), unit="deg") for part in (a, b))
    nearest, separation, _ = match_coordinates_sky(here, there)
    return np.where(separation.arcsec <= LIMIT_ARCSEC, nearest, -1)


def tree_nearest(a: pd.DataFrame, b: pd.DataFrame) -> np.ndarray:
    """A KD-tree of unit vectors and its nearest neighbour, cut at the limit."""
    from scipy.spatial import cKDTree

    from deepdisc.matching import chord, sky_vectors

    here, there = (sky_vectors(part.ra.to_numpy(), part.dec.to_numpy()) for part in (a, b))
    _, nearest = cKDTree(there).query(here, distance_upper_bound=chord(LIMIT_ARCSEC))
    return np.where(nearest < len(b), nearest, -1)


METHODS = {
    "ours, sky within 1 arcsec": lambda a, b: ours(a, b, Criterion("sky", LIMIT_ARCSEC)),
    "ours, pixels": lambda a, b: ours(a, b, Criterion("pixels", LIMIT_ARCSEC)),
    "ours, boxes, IoU 0.3": lambda a, b: ours(a, b, Criterion("iou", 0.3)),
    "ours, ellipses, IoU 0.3": lambda a, b: ours(a, b, Criterion("ellipses", 0.3)),
    "ours, boxes, else sky": lambda a, b: ours(a, b, Criterion("iou", 0.3, Criterion("sky", LIMIT_ARCSEC))),
    "astropy match_coordinates_sky": astropy_nearest,
    "KD-tree, nearest": tree_nearest,
}


def measure(name: str, objects: int, density: float, queue) -> None:
    """Run one method in this process and report its figures."""
    a, b, partner = catalogues(objects, density)
    start, start_cpu = time.perf_counter(), time.process_time()
    found = METHODS[name](a, b)
    seconds, seconds_cpu = time.perf_counter() - start, time.process_time() - start_cpu
    claimed = np.bincount(found[found >= 0], minlength=objects)
    queue.put(
        {
            "method": name,
            "seconds": seconds,
            "cpu": seconds_cpu,
            "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "joined": int((found >= 0).sum()),
            "right": float((found == partner)[partner >= 0].mean()),
            "wrong": float((found != partner)[found >= 0].mean()),
            "twice": int((claimed > 1).sum()),
        }
    )


def main() -> int:
    """Run all methods and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=1_000_000, help="rows of each catalogue")
    parser.add_argument("--density", type=float, default=200.0, help="objects per square arcmin")
    parser.add_argument("--output", type=Path, help="folder for the table (default: print only)")
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    lines = [
        f"{args.objects:,} x {args.objects:,} objects, {args.density:g} per square arcmin, scatter 0.14 arcsec, 10 % "
        "without a partner. Peak memory of the process, catalogues and libraries included.\n",
        "| method | seconds | CPU seconds | memory, MiB | joined | of the true pairs | wrong | claimed twice |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in METHODS:
        queue = context.Queue()
        process = context.Process(target=measure, args=(name, args.objects, args.density, queue))
        process.start()
        row = queue.get()
        process.join()
        cells = (
            f"{row['seconds']:.1f}", f"{row['cpu']:.1f}", f"{row['memory']:,.0f}", f"{row['joined']:,}",
            f"{100 * row['right']:.2f} %", f"{100 * row['wrong']:.2f} %", f"{row['twice']:,}",
        )  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if args.output:
        write_text(args.output / "compare_matching.md", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
