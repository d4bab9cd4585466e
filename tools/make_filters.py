"""Make the tables of filters and PSF images that ship with the simulator, deepdisc/simulate/data.

Curves are thinned: points are dropped where straight lines between the others come as close as THINNING says. What they
are and where they come from is in deepdisc/simulate/data/README.md. Run once, from the root of the repository:

    python tools/make_filters.py FILTERS PSFS deepdisc/simulate/data

FILTERS holds filters.csv (columns instrument, filter, pivot_A, source, licence) and INSTRUMENT/FILTER.dat (two columns:
wavelength in Angstrom, throughput); PSFS holds psf-smacs0723-<filter>.fits with the keyword PIXSCL.
"""

import argparse
from pathlib import Path

import galsim
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io import fits

from deepdisc.simulate.filters import load_filter

LICENCES = ("MIT", "BSD-3")
COARSEST = 5.0  # Angstrom: finer structure (the atmosphere's lines) is averaged before thinning
THINNING = 4e-4  # of the root of the curve's peak: finer where little light comes through, as in red leaks
PSF_PIXELS, PSF_SCALE = 151, 0.02  # a square of 3 arcsec
PSF_TAPER, JWST_DIAMETER_M = 0.9, 6.5
PSF_LEVEL = 3e-7  # of the total light: steps in which the images are stored


def thin(wavelength: np.ndarray, throughput: np.ndarray, tolerance: float) -> np.ndarray:
    """Indices of the points to keep (Ramer 1972; Douglas & Peucker 1973, with vertical distances)."""
    keep, stack = {0, len(wavelength) - 1}, [(0, len(wavelength) - 1)]
    while stack:
        first, last = stack.pop()
        if last - first < 2:
            continue
        inner = slice(first + 1, last)
        line = np.interp(wavelength[inner], wavelength[[first, last]], throughput[[first, last]])
        distance = np.abs(throughput[inner] - line)
        worst = int(distance.argmax())
        if distance[worst] > tolerance:
            middle = first + 1 + worst
            keep.add(middle)
            stack += [(first, middle), (middle, last)]
    return np.array(sorted(keep))


def averaged(wavelength: np.ndarray, throughput: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over COARSEST, where the curve is sampled finer."""
    if len(wavelength) < 2 * (wavelength[-1] - wavelength[0]) / COARSEST:
        return wavelength, throughput
    edges = np.arange(wavelength[0], wavelength[-1] + COARSEST, COARSEST)
    integral = np.concatenate([[0], np.cumsum(np.diff(wavelength) * (throughput[1:] + throughput[:-1]) / 2)])
    at_edges = np.interp(edges, wavelength, integral)
    return (edges[1:] + edges[:-1]) / 2, np.diff(at_edges) / np.minimum(COARSEST, wavelength[-1] - edges[:-1])


def thinned_curve(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Wavelength (Angstrom) and throughput of a curve, thinned, with the curve's integral."""
    wavelength, throughput = np.loadtxt(path, unpack=True)
    throughput = np.clip(throughput, 0, None)
    x, y = averaged(wavelength, throughput)
    kept = thin(x, np.sqrt(y / y.max()), THINNING)
    x, y = x[kept], y[kept]
    return x, y * np.trapezoid(throughput / wavelength, wavelength) / np.trapezoid(y / x, x)


def make_filters(folder: Path, output: Path) -> None:
    """Write filters.parquet: filter, wavelength_angstrom, throughput; pivots and sources as metadata."""
    about = pd.read_csv(folder / "filters.csv")
    about = about[about.licence.isin(LICENCES)]
    tables = []
    for row in about.itertuples():
        x, y = thinned_curve(folder / row.instrument / f"{row.filter}.dat")
        name = f"{row.instrument}_{row.filter}"
        tables.append(pd.DataFrame({"filter": name, "wavelength_angstrom": x, "throughput": y}))
    table = pd.concat(tables, ignore_index=True).astype({"wavelength_angstrom": np.float32, "throughput": np.float32})
    arrow = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata({})
    pq.write_table(arrow, output, compression="zstd", compression_level=19)
    print(f"{output}: {len(about)} filters, {len(table)} points, {output.stat().st_size} bytes")


def passed(image: np.ndarray, band: str) -> np.ndarray:
    """The image without frequencies beyond what the telescope passes in a filter, which are noise of the measurement.

    The limit is 2 pi D / wavelength (rad per angle) at the filter's blue edge; a cosine from PSF_TAPER of it on.
    """
    curve = load_filter(f"nircam_{band.upper()}")
    edge = curve.wavelength_angstrom[curve.throughput > 0.05 * curve.throughput.max()][0] * 1e-10
    limit = 2 * np.pi * JWST_DIAMETER_M / edge / 206_265
    frequency = 2 * np.pi * np.fft.fftfreq(len(image), PSF_SCALE)
    k = np.hypot(frequency[:, None], frequency[None]) / limit
    taper = 0.5 * (1 + np.cos(np.pi * np.clip((k - PSF_TAPER) / (1 - PSF_TAPER), 0, 1)))
    return np.fft.ifft2(np.fft.fft2(image) * taper).real


def make_psf(path: Path, output: Path) -> None:
    """Write one PSF image, centred on its core, of sum 1, RICE-compressed."""
    image = fits.getdata(path).astype(np.float64)
    profile = galsim.InterpolatedImage(galsim.Image(image, scale=fits.getheader(path)["PIXSCL"]), flux=1.0)
    offset = galsim.PositionD(0, 0)
    for _ in range(4):
        core = profile.shift(-offset).drawImage(nx=101, ny=101, scale=0.01, method="no_pixel").FindAdaptiveMom()
        offset += (core.moments_centroid - galsim.PositionD(51, 51)) * 0.01
    centred = profile.shift(-offset).drawImage(nx=PSF_PIXELS, ny=PSF_PIXELS, scale=PSF_SCALE, method="no_pixel").array
    centred = passed(centred, path.stem.split("-")[-1])
    centred = np.round(centred / centred.sum() / PSF_LEVEL).astype(np.int32)
    header = fits.Header()
    header["PIXELSCL"] = (PSF_SCALE, "[arcsec] pixel scale")
    header["SOURCE"] = (path.name, "grizli-psf-library")
    hdu = fits.CompImageHDU(centred, header, compression_type="RICE_1", tile_shape=centred.shape)
    hdu.writeto(output, overwrite=True)
    print(f"{output}: moved by {offset}, {output.stat().st_size} bytes")


def main() -> None:
    """Read the sources, write the tables and say what they hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("filters", type=Path, help="folder of transmission curves")
    parser.add_argument("psfs", type=Path, help="folder of PSF images")
    parser.add_argument("output", type=Path, help="folder to write into")
    arguments = parser.parse_args()
    make_filters(arguments.filters, arguments.output / "filters.parquet")
    (arguments.output / "psfs").mkdir(exist_ok=True)
    for path in sorted(arguments.psfs.glob("psf-smacs0723-*.fits")):
        name = path.stem.split("-")[-1]
        make_psf(path, arguments.output / "psfs" / f"nircam_{name}.fits")


if __name__ == "__main__":
    main()
