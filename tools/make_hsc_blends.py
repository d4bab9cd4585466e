"""Turn the HSC UltraDeep COSMOS blends of lsst/testdata_deblender (real_data/hsc_cosmos, .npz) into FITS stamps.

    python tools/make_hsc_blends.py FOLDER --output hsc_blends
    deepdisc prepare datasets/hsc_blends.yaml data=hsc_blends --output hsc

Each NUMBER.npz (images and weights (5, y, x) in g, r, i, z, y; peaks (n, 2) as x, y) becomes NUMBER.fits with the cubes
IMAGE and WEIGHT, and its peaks rows of peaks.csv (blend, id, x, y). Where all five weights are 0 there are no data.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import fitsio
import numpy as np
import pandas as pd

from deepdisc.errors import InputError
from deepdisc.files import atomic_folder

BANDS = "g,r,i,z,y"


def main(arguments: list[str] | None = None) -> None:
    """Read the arguments and write the stamps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, default=Path("hsc_blends"))
    args = parser.parse_args(arguments)
    try:
        print(f"{make_stamps(args.folder, args.output)} stamps in {args.output}")
    except InputError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")


def make_stamps(folder: Path, output: Path) -> int:
    """Write the stamps of all blends in `folder` to the new folder `output`; returns their number.

    Raises:
        InputError: no blend is there, or `output` exists or cannot be written.
    """
    blends = sorted(path for path in folder.glob("*.npz") if path.stem.isdigit())
    if not blends:
        raise InputError(f"{folder} holds no NUMBER.npz; see the head of this script")
    peaks = []
    with atomic_folder(output) as temporary:
        for path in blends:
            with np.load(path) as arrays:
                images, weights, places = (arrays[name] for name in ("images", "weights", "peaks"))
            with fitsio.FITS(str(temporary / f"{path.stem}.fits"), "rw") as file:
                file.write(images.astype(np.float32), extname="IMAGE", header={"BANDS": BANDS, "MAGZERO": 27.0})
                file.write(weights.astype(np.float32), extname="WEIGHT")
            ids = [f"{path.stem}_{number}" for number in range(len(places))]
            peaks.append(pd.DataFrame({"blend": path.stem, "id": ids, "x": places[:, 0], "y": places[:, 1]}))
        pd.concat(peaks).to_csv(temporary / "peaks.csv", index=False)
    return len(blends)


if __name__ == "__main__":
    main()
