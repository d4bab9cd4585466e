"""Make the population table that ships with the simulator, deepdisc/simulate/data/population.parquet.

Colours and redshifts of galaxies are CosmoDC2's, their shapes those of the CatSim galaxy nearest in r magnitude and
redshift, stars are CatSim's; deepdisc/simulate/data/README.md says where these come from. Run once, from the root of
the repository:

    python tools/make_population.py FOLDER deepdisc/simulate/data/population.parquet

FOLDER holds cosmodc2_100k_ugrizy_z.fits.gz, catsim_onedegsq_10k.fits.gz and lsst_stars_med_june2018.fits.gz.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.table import Table
from scipy.spatial import cKDTree

BANDS = "ugrizy"
R_FAINTEST = 25.3
R_BRIGHTEST_STAR = 13.0
STAR_SHARE = 0.5
STAR_AREA_DEG2 = 1.0 * 0.942  # extent of the star table: RA -0.5..0.5, Dec -0.471..0.471
# The 10,000 CatSim rows are a random part of the 858,502 galaxies that its square degree holds to r < 28.
CATSIM_AREA_DEG2 = 10_000 / 858_502
R_NORMALISE = 24.0  # CosmoDC2's counts are scaled to CatSim's number density brighter than this
NEIGHBOURS = 5
REDSHIFT_PER_MAG = 4.0  # the metric of "nearest": 0.25 in redshift counts as much as 1 mag
SIZE_LUMINOSITY = 0.26  # R ~ L^0.26, faint late-type galaxies, Shen et al. 2003, MNRAS 343, 978, eq. 15 and table 1
HELD_OUT_SHARE = 0.2
SEED = 20_180_626


def read_table(path: Path) -> pd.DataFrame:
    """Read a FITS table with native byte order."""
    return Table.read(path).to_pandas()


def held_out(source_row: np.ndarray) -> np.ndarray:
    """Whether a source row is held out: a hash (splitmix64) of its number in the source decides."""
    x = source_row.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return x.astype(np.float64) / 2.0**64 < HELD_OUT_SHARE


def shapes_for(galaxies: pd.DataFrame, catsim: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Bulge and disc of one of the nearest CatSim galaxies in (r, z), its size moved along R ~ L^0.26.

    Args:
        galaxies: columns r, redshift.
        catsim: columns r_ab, redshift, fluxnorm_disk, fluxnorm_bulge and the half-light semi-axes a_d, b_d, a_b, b_b
            (arcsec).
        rng: chooses among the nearest, so that rare bright galaxies do not all share one shape.
    """
    tree = cKDTree(np.column_stack([catsim.r_ab, REDSHIFT_PER_MAG * catsim.redshift]))
    _, index = tree.query(np.column_stack([galaxies.r, REDSHIFT_PER_MAG * galaxies.redshift]), k=NEIGHBOURS)
    chosen = catsim.iloc[index[np.arange(len(index)), rng.integers(NEIGHBOURS, size=len(index))]]
    scale = 10 ** (-0.4 * SIZE_LUMINOSITY * (galaxies.r.to_numpy() - chosen.r_ab.to_numpy()))
    fraction = chosen.fluxnorm_bulge / (chosen.fluxnorm_bulge + chosen.fluxnorm_disk)
    shapes = {"bulge_fraction": fraction.to_numpy()}
    for part, suffix in (("disk", "d"), ("bulge", "b")):
        major, minor = chosen[f"a_{suffix}"].to_numpy(), chosen[f"b_{suffix}"].to_numpy()
        present = major > 0
        # Circularised: a shear that keeps the area turns it into the ellipse.
        shapes[f"{part}_hlr_arcsec"] = np.where(present, np.sqrt(major * minor) * scale, np.nan)
        shapes[f"{part}_axis_ratio"] = np.where(present, minor / np.where(present, major, 1), np.nan)
    return pd.DataFrame(shapes)


def make_galaxies(folder: Path, rng: np.random.Generator) -> tuple[pd.DataFrame, float]:
    """The galaxies and the area (deg2) whose galaxies they are."""
    source = read_table(folder / "cosmodc2_100k_ugrizy_z.fits.gz")
    catsim = read_table(folder / "catsim_onedegsq_10k.fits.gz")
    catsim_density = (catsim.r_ab < R_NORMALISE).sum() / CATSIM_AREA_DEG2
    area = (source.r < R_NORMALISE).sum() / catsim_density
    print(f"galaxies r < {R_NORMALISE}: {catsim_density:.0f} per deg2; the table stands for {area:.4f} deg2")
    kept = np.flatnonzero(source.r < R_FAINTEST)
    galaxies = source.iloc[kept].reset_index(drop=True)
    shapes = shapes_for(galaxies, catsim[catsim.r_ab < R_FAINTEST + 0.7], rng)
    table = pd.concat([galaxies[["redshift", *BANDS]], shapes], axis=1)
    return table.assign(class_id=0, held_out=held_out(kept)), area


def make_stars(folder: Path) -> tuple[pd.DataFrame, float]:
    """The stars and the area (deg2) whose stars they are."""
    source = read_table(folder / "lsst_stars_med_june2018.fits.gz").rename(columns={f"{b}_ab": b for b in BANDS})
    rows = np.arange(len(source))
    share = np.modf(rows * 0.6180339887498949)[0] < STAR_SHARE
    kept = np.flatnonzero(share & (source.r < R_FAINTEST) & (source.r > R_BRIGHTEST_STAR))
    stars = source.iloc[kept][list(BANDS)].reset_index(drop=True)
    return stars.assign(class_id=1, held_out=held_out(kept + 1_000_000)), STAR_AREA_DEG2 * STAR_SHARE


def main() -> None:
    """Read the sources, write the table and say what it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", type=Path, help="folder with the three source tables")
    parser.add_argument("output", type=Path, help="Parquet file to write")
    arguments = parser.parse_args()
    galaxies, galaxy_area = make_galaxies(arguments.inputs, np.random.default_rng(SEED))
    stars, star_area = make_stars(arguments.inputs)
    table = pd.concat([galaxies, stars], ignore_index=True)
    floats = [name for name in table.columns if name not in ("class_id", "held_out")]
    table = table.astype({**dict.fromkeys(floats, np.float32), "class_id": np.int8})
    arrow = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(
        {"galaxy_area_deg2": f"{galaxy_area:.5f}", "star_area_deg2": f"{star_area:.5f}"}
    )
    codes = dict.fromkeys(floats, "BYTE_STREAM_SPLIT")
    pq.write_table(
        arrow, arguments.output, compression="zstd", compression_level=19, use_dictionary=False, column_encoding=codes
    )
    for name, part in (("galaxies", galaxies), ("stars", stars)):
        print(f"{name}: {len(part)} rows, {part.held_out.mean():.3f} of them held out")
    print(f"{arguments.output}: {arguments.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
