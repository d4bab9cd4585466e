"""Peak memory of a field prediction against the area of the mosaic.

    python benchmarks/memory.py [--sides 2048 8192] [--model NAME|CHECKPOINT] [--bands 5]

Writes synthetic mosaics (noise and Gaussian blobs; one FITS file per band) into a temporary folder, predicts each in a
fresh process, and prints the peak resident memory of each and the ratio to the first. Without `--model` a cheap
threshold detector is used, so that what is measured is reading, merging and writing. The goal is a ratio below 1.15.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import fitsio
import numpy as np
import torch
from scipy import ndimage

from deepdisc.data.mosaic import Mosaic
from deepdisc.inference.predict import predict
from deepdisc.mixture import Mixture
from deepdisc.structures import Instances, RegionMasks

NOISE_NJY = 10.0
STRIPE_ROWS = 512
OBJECTS_PER_MEGAPIXEL = 3000
THRESHOLD_SIGMAS = 4.0
MIN_PIXELS = 5


def write_mosaic(folder: Path, side: int, bands: list[str]) -> dict[str, str]:
    """Write one side x side image per band, stripe by stripe; return {band: file}."""
    files = {}
    for number, band in enumerate(bands):
        files[band] = str(folder / f"{band}_{side}.fits")
        with fitsio.FITS(files[band], "rw", clobber=True) as fits:
            fits.create_image_hdu(dims=[side, side], dtype="f4")
            fits[0].write_key("BUNIT", "nJy")
            for start in range(0, side, STRIPE_ROWS):
                rows = min(STRIPE_ROWS, side - start)
                fits[0].write(stripe(rows, side, start, number), start=[start, 0])
    return files


def stripe(rows: int, width: int, seed: int, band: int) -> np.ndarray:
    """Noise and blobs, the blobs at the same places in all bands."""
    places = np.random.default_rng(seed)
    pixels = np.zeros((rows, width), np.float32)
    count = int(rows * width / 1e6 * OBJECTS_PER_MEGAPIXEL)
    y, x = places.integers(0, rows, count), places.integers(0, width, count)
    pixels[y, x] = places.uniform(500, 5000, count)
    pixels = ndimage.gaussian_filter(pixels, 1.8)
    return pixels + np.random.default_rng((seed, band)).normal(0, NOISE_NJY, pixels.shape).astype(np.float32)


def threshold_detector(inputs: list[dict[str, torch.Tensor]]) -> list[dict[str, Instances]]:
    """Connected pixels above a threshold in the stack of the bands; every redshift PDF is the same."""
    return [{"instances": connected_pixels(item)} for item in inputs]


def connected_pixels(item: dict[str, torch.Tensor]) -> Instances:
    """The detections of one tile."""
    image, variance = item["image"].numpy(), item["variance"].numpy()
    significance = (image / np.sqrt(variance)).sum(0) / np.sqrt(len(image))
    labels, _ = ndimage.label(significance > THRESHOLD_SIGMAS)
    regions, crops, scores = [], [], []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        crop = labels[rows, columns] == number
        if crop.sum() >= MIN_PIXELS:
            regions.append([columns.start, rows.start, columns.stop, rows.stop])
            crops.append(torch.from_numpy(crop))
            scores.append(float(np.tanh(significance[rows, columns].max() / 20)))
    boxes = torch.tensor(regions, dtype=torch.int64).reshape(-1, 4)
    means = torch.linspace(0.2, 1.0, 5).expand(len(boxes), 5)
    return Instances(
        significance.shape,
        pred_boxes=boxes.float(),
        scores=torch.tensor(scores),
        pred_classes=torch.zeros(len(boxes), dtype=torch.int64),
        pred_masks=RegionMasks(boxes, crops, significance.shape),
        pred_redshift=Mixture(torch.zeros_like(means), means, torch.full_like(means, 0.1), lower=0.0),
    )


def predict_one(files: dict[str, str], output: Path, model_name: str | None, tile: int, overlap: int) -> dict:
    """Predict one mosaic in this process and return its run.json."""
    torch.set_num_threads(1)
    model, classes = threshold_detector, ["galaxy", "star"]
    if model_name is not None:
        from deepdisc.model_zoo import load_model

        model, cfg = load_model(model_name)
        classes = list(cfg.class_names)
    with Mosaic.open(files, pixel_scale=0.2) as mosaic:
        predict(mosaic, model, output, bands=list(files), class_names=classes, tile=tile, overlap=overlap)
    return json.loads((output / "run.json").read_text())


def main() -> None:
    """Compare sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[2048, 8192], metavar="PIXELS")
    parser.add_argument("--model", metavar="NAME|CHECKPOINT", help="default: a cheap threshold detector")
    parser.add_argument("--bands", default="u,g,r,i,z", help="default: u,g,r,i,z")
    parser.add_argument("--tile-size", type=int, default=512)
    parser.add_argument("--overlap", type=int, default=128)
    parser.add_argument("--folder", type=Path, help="where to put the mosaics (default: the system's temporary folder)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        order = json.loads(args.child)
        report = predict_one(order["files"], Path(order["output"]), args.model, args.tile_size, args.overlap)
        print(json.dumps(report))
        return
    first = None
    print(f"{'side':>6} {'objects':>8} {'seconds':>8} {'peak MiB':>9} {'ratio':>6}")
    for side in args.sides:
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            folder = Path(name)
            order = {"files": write_mosaic(folder, side, args.bands.split(",")), "output": str(folder / "out")}
            command = [sys.executable, __file__, "--child", json.dumps(order)]
            command += ["--tile-size", str(args.tile_size), "--overlap", str(args.overlap)]
            command += ["--model", args.model] if args.model else []
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        report = json.loads(done.stdout.splitlines()[-1])
        peak = report["peak_memory_mib"]
        first = first or peak
        print(f"{side:6d} {report['objects']:8d} {report['seconds']['total']:8.1f} {peak:9.0f} {peak / first:6.3f}")
        print("       " + ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in report["seconds"].items()))


if __name__ == "__main__":
    main()
