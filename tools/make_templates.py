"""Make the table of spectral templates that ships with the simulator, deepdisc/simulate/data/templates.parquet.

The spectra are those of BPZ (Benitez et al. 2004; Coe et al. 2006), thinned; deepdisc/simulate/data/README.md says
where they come from and what is made of them. Run once, from the root of the repository:

    python tools/make_templates.py FOLDER deepdisc/simulate/data/templates.parquet

FOLDER holds the files of desc_bpz/data_files/SED (two columns: wavelength in Angstrom, flux per Angstrom).
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from make_filters import thin

NAMES = {
    "El": "El_B2004a", "Sbc": "Sbc_B2004a", "Scd": "Scd_B2004a", "Im": "Im_B2004a", "SB3": "SB3_B2004a",
    "SB2": "SB2_B2004a", "SSP25Myr": "ssp_25Myr_z008", "SSP5Myr": "ssp_5Myr_z008",
}  # fmt: skip
BLUEST, REDDEST = 91.0, 60_000.0
# Beyond 1.65 um the observed templates are not stars any more (they fall to zero at 2.56 um). Their red end is that of
# old stars: Vega colours H-K = 0.2, K-[3.6] = 0.2, [3.6]-[4.5] = -0.05, as slopes of f_nu between these wavelengths.
RED_FROM, RED_SLOPES = 16_500.0, ((16_500.0, -0.9), (22_000.0, -1.4), (36_000.0, -2.1))
# "HII" is the 5 Myr population with the emission lines of an H II galaxy: equivalent width of H beta (Angstrom), then
# wavelengths, and fluxes in units of H beta. Hydrogen: case B (Osterbrock & Ferland 2006); metals: round numbers, as go
# with a low metallicity. No Lyman alpha.
HBETA_WIDTH, LINE_SIGMA = 200.0, 3.0
LINES = {
    3727.0: 2.0, 3869.0: 0.35, 4101.7: 0.26, 4340.5: 0.47, 4861.3: 1.0, 4958.9: 1.34, 5006.8: 4.0, 5875.6: 0.12,
    6548.0: 0.07, 6562.8: 2.86, 6583.5: 0.2, 6716.4: 0.15, 6730.8: 0.12, 9068.6: 0.2, 9530.6: 0.5, 10830.0: 0.3,
    12818.1: 0.16, 18751.0: 0.34,
}  # fmt: skip
THINNING = 3e-3  # mag between the points


def red_end(wavelength: np.ndarray) -> np.ndarray:
    """f_nu beyond RED_FROM, in units of that there."""
    ln = np.zeros_like(wavelength)
    for (start, slope), stop in zip(RED_SLOPES, [*(s for s, _ in RED_SLOPES[1:]), np.inf], strict=True):
        ln += slope * np.log(np.clip(wavelength, start, stop) / start)
    return np.exp(ln)


def read_template(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Wavelength (Angstrom) and f_nu (1 at 5500 Angstrom), from the Lyman continuum to 6 um."""
    wavelength, flux = np.loadtxt(path, unpack=True)
    keep = (wavelength >= BLUEST) & (flux > 0) & (wavelength <= REDDEST)
    wavelength, flux = wavelength[keep], flux[keep] * wavelength[keep] ** 2
    if wavelength[-1] < REDDEST / 2:
        bound = np.interp(RED_FROM, wavelength, flux)
        red = np.concatenate([[RED_FROM], np.geomspace(RED_FROM * 1.02, REDDEST, 30)])
        kept = wavelength < RED_FROM
        wavelength = np.concatenate([wavelength[kept], red])
        flux = np.concatenate([flux[kept], bound * red_end(red)])
    return wavelength, flux / np.interp(5500.0, wavelength, flux)


def with_lines(wavelength: np.ndarray, flux: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Add emission lines to f_nu, on a grid that resolves them."""
    near = np.concatenate([line + LINE_SIGMA * np.linspace(-5, 5, 41) for line in LINES])
    grid = np.union1d(wavelength, near)
    per_angstrom = np.interp(grid, wavelength, flux) / grid**2
    strength = HBETA_WIDTH * np.interp(4861.3, grid, per_angstrom)
    for line, ratio in LINES.items():
        shape = np.exp(-0.5 * ((grid - line) / LINE_SIGMA) ** 2) / (LINE_SIGMA * np.sqrt(2 * np.pi))
        per_angstrom = per_angstrom + strength * ratio * shape
    return grid, per_angstrom * grid**2


def main() -> None:
    """Read the templates, thin them and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", type=Path, help="folder of .sed files")
    parser.add_argument("output", type=Path, help="Parquet file to write")
    arguments = parser.parse_args()
    tables = []
    spectra = {name: read_template(arguments.inputs / f"{file}.sed") for name, file in NAMES.items()}
    spectra["HII"] = with_lines(*spectra["SSP5Myr"])
    for name, (wavelength, flux) in spectra.items():
        kept = thin(np.log(wavelength), 2.5 * np.log10(flux), THINNING)
        tables.append(pd.DataFrame({"template": name, "wavelength_angstrom": wavelength[kept], "f_nu": flux[kept]}))
    table = pd.concat(tables, ignore_index=True).astype({"wavelength_angstrom": np.float32, "f_nu": np.float32})
    arrow = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata({})
    pq.write_table(arrow, arguments.output, compression="zstd", compression_level=19)
    print(f"{arguments.output}: {len(spectra)} templates, {len(table)} points, {arguments.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
