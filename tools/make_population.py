"""Make a population of galaxies and stars for the simulator from catalogues.

The two that ship with the package (deepdisc/simulate/data/README.md says what is in them), from the folder of their
source tables:

    python tools/make_population.py wide FOLDER deepdisc/simulate/data/populations/wide.parquet
    python tools/make_population.py deep FOLDER deepdisc/simulate/data/populations/deep.parquet

One of any catalogue with redshifts, AB magnitudes and single Sersic fits, for `sky.population=FILE`; columns may be
expressions, filters are names of the shipped table or paths:

    python tools/make_population.py table CATALOGUE FILE --area-deg2 1.64 --redshift zphot --mag acs_F814W=mag_i \\
        --mag vista_Ks="23.9 - 2.5 * log10(flux_ks)" --radius hlr --sersic n --axis-ratio q --position ra dec
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from deepdisc.errors import InputError
from deepdisc.expressions import evaluate
from deepdisc.simulate.catalogues import (
    STAR_ANGSTROM,
    fit_atoms,
    held_out,
    reddest_first,
    rounded,
    similar_rows,
    size_factor,
    star_magnitudes,
    take_apart,
)
from deepdisc.simulate.population import LIGHT_COLUMNS, SHAPE_COLUMNS, star_columns, write_population
from deepdisc.tables import read_table

SEED = 20_180_626

# wide: CosmoDC2's magnitudes and redshifts, CatSim's shapes
R_FAINTEST = 26.0
# The 10,000 CatSim rows are a random part of the 858,502 galaxies that its square degree holds to r < 28.
CATSIM_AREA_DEG2 = 10_000 / 858_502
R_NORMALISE = 24.0  # CosmoDC2's counts are scaled to CatSim's number density brighter than this

# stars: CatSim's
R_BRIGHTEST_STAR, R_FAINTEST_STAR = 13.0, 26.0
STAR_SHARE = 0.4
R_BRIGHTEST, BRIGHT_ROWS = 8.0, 100  # brighter than the table's, down to R_BRIGHTEST_STAR: made of its brightest
STAR_AREA_DEG2 = 1.0 * 0.942  # extent of the star table: RA -0.5..0.5, Dec -0.471..0.471

# deep: 3D-HST GOODS-S
GOODS_AREA_DEG2 = 182.75 / 3600  # half-arcmin cells that hold more than 15 of its rows
GOODS_BANDS = (
    *("F070W", "F090W", "F115W", "F140M", "F150W", "F162M", "F182M", "F200W", "F210M", "F250M"),
    *("F277W", "F300M", "F335M", "F356W", "F360M", "F410M", "F430M", "F444W", "F460M", "F480M"),
)
H_COMPLETE = 25.5  # F160W: counts fall behind a straight line beyond
H_REAL = 26.5  # fainter rows are replaced
H_FAINTEST = 32.0
COUNTS_SLOPE = 0.2  # dex per mag, of the counts beyond H_COMPLETE
FAINT_ROWS = 16_000
BLUER_PART = 0.65
# Faint copies: radii shrink as L^FAINT_SIZES down to SMALLEST (arcsec), less than those of nearby galaxies: so look
# pictures of PRIMER in F444W; parents are taken as (1 + z)^(REDSHIFT_SHIFT mag beyond the limit), so that the
# share of z > 6 rises to a few per cent at 28 to 31 mag.
FAINT_SIZES, SMALLEST, REDSHIFT_SHIFT = 0.15, 0.02, 0.33
NEARBY, NEARBY_SHARE = 0.25, ((24.0, 26.0), (0.05, 0.025))


def report(name: str, filters: list[str], residual: np.ndarray) -> None:
    """Print median and scatter of the fits' residuals, band by band, as lines of a table."""
    middle = np.nanmedian(residual, axis=0)
    scatter = 1.4826 * np.nanmedian(np.abs(residual - middle), axis=0)
    for band, one, two in zip(filters, middle, scatter, strict=True):
        print(f"| {name} | {band} | {one:+.3f} | {two:.3f} |")


def compact(table: pd.DataFrame) -> pd.DataFrame:
    """Round what is stored to about 0.05 %, magnitudes to 0.001."""
    for name in table.columns:
        if name in LIGHT_COLUMNS or name in (*SHAPE_COLUMNS, "bulge_fraction", "x_arcsec", "y_arcsec", "weight"):
            table[name] = rounded(table[name], 16 if name.endswith("y_arcsec") or name == "x_arcsec" else 10)
        elif name.startswith("star_"):
            table[name] = rounded(table[name].round(3), 15)
    return table


# --------------------------------------------------------------------------------------------------------------- wide
def wide_shapes(galaxies: pd.DataFrame, catsim: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Bulge and disc of one of the nearest CatSim galaxies in (r, z), its size moved along R ~ L^0.26.

    Args:
        galaxies: columns r, redshift.
        catsim: columns r_ab, redshift, fluxnorm_disk, fluxnorm_bulge and the half-light semi-axes a_d, b_d, a_b, b_b
            (arcsec).
        rng: chooses among the nearest, so that rare bright galaxies do not all share one shape.
    """
    row = similar_rows(galaxies.r, galaxies.redshift, catsim.r_ab, catsim.redshift, rng)
    chosen = catsim.iloc[row]
    scale = size_factor(galaxies.r.to_numpy() - chosen.r_ab.to_numpy())
    fraction = (chosen.fluxnorm_bulge / (chosen.fluxnorm_bulge + chosen.fluxnorm_disk)).to_numpy()
    shapes = {"bulge_fraction": fraction}
    for part, suffix, index in (("disk", "d", 1.0), ("bulge", "b", 4.0)):
        major, minor = chosen[f"a_{suffix}"].to_numpy(), chosen[f"b_{suffix}"].to_numpy()
        present = major > 0
        # Circularised: a shear that keeps the area turns it into the ellipse.
        shapes[f"{part}_hlr_arcsec"] = np.where(present, np.sqrt(major * minor) * scale, np.nan)
        shapes[f"{part}_axis_ratio"] = np.where(present, minor / np.where(present, major, 1), np.nan)
        shapes[f"{part}_n"] = np.where(present, index, np.nan)
    return pd.DataFrame(shapes)


def wide_galaxies(folder: Path) -> tuple[pd.DataFrame, float]:
    """The galaxies and the area (deg2) whose galaxies they are."""
    source, _ = read_table(folder / "cosmodc2_100k_ugrizy_z.fits.gz")
    catsim, _ = read_table(folder / "catsim_onedegsq_10k.fits.gz")
    catsim_density = (catsim.r_ab < R_NORMALISE).sum() / CATSIM_AREA_DEG2
    area = float((source.r < R_NORMALISE).sum() / catsim_density)
    print(f"galaxies r < {R_NORMALISE}: {catsim_density:.0f} per deg2; the table stands for {area:.4f} deg2")
    kept = np.flatnonzero(source.r < R_FAINTEST)
    galaxies = source.iloc[kept].reset_index(drop=True)
    shapes = wide_shapes(galaxies, catsim[catsim.r_ab < R_FAINTEST + 0.7], np.random.default_rng(SEED))
    filters = [f"lsst_{band}" for band in "ugrizy"]
    light, residual = fit_atoms(
        galaxies[list("ugrizy")].to_numpy(), galaxies.redshift.to_numpy(), filters, reddest_first()
    )
    report("wide", filters, residual)
    table = pd.concat([galaxies[["redshift"]], light, shapes], axis=1)
    return table.assign(class_id=0, held_out=held_out(kept)), area


def stars(folder: Path) -> pd.DataFrame:
    """CatSim's stars, a part of them."""
    source, _ = read_table(folder / "lsst_stars_med_june2018.fits.gz")
    share = np.modf(np.arange(len(source)) * 0.6180339887498949)[0] < STAR_SHARE
    kept = np.flatnonzero(share & source.r_ab.between(R_BRIGHTEST_STAR, R_FAINTEST_STAR))
    magnitudes = star_magnitudes(source.iloc[kept][[f"{band}_ab" for band in "ugrizy"]].to_numpy(np.float64))
    table = pd.DataFrame(magnitudes, columns=star_columns(len(STAR_ANGSTROM))).assign(weight=1.0)
    table = table.assign(class_id=1, held_out=held_out(kept + 1_000_000))
    return pd.concat([table, bright_stars(table)], ignore_index=True)


def bright_stars(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of 13 to 15 mag made brighter; their weights continue log N of 13 to 16 mag as a straight line."""
    rng = np.random.default_rng(SEED)
    column = star_columns(len(STAR_ANGSTROM))[STAR_ANGSTROM.index(6208.0)]
    r = table[column].to_numpy()
    numbers = [np.count_nonzero((r >= low) & (r < low + 1.5)) for low in (13.0, 14.5)]
    slope = np.log10(numbers[1] / numbers[0]) / 1.5
    wanted = rng.uniform(R_BRIGHTEST, R_BRIGHTEST_STAR, BRIGHT_ROWS)
    per_mag = numbers[0] / 1.5 * 10 ** (slope * (wanted - 13.75))
    parents = table.iloc[rng.choice(np.flatnonzero(r < 15), BRIGHT_ROWS)]
    rows = parents.assign(weight=per_mag * (R_BRIGHTEST_STAR - R_BRIGHTEST) / BRIGHT_ROWS)
    shift = wanted - rows[column].to_numpy()
    rows[star_columns(len(STAR_ANGSTROM))] += shift[:, None]
    return rows.assign(held_out=held_out(np.arange(BRIGHT_ROWS) + 2_000_000))


# --------------------------------------------------------------------------------------------------------------- deep
def goods_rows(folder: Path) -> pd.DataFrame:
    """The galaxies of 3D-HST GOODS-S that are bright enough, with h (F160W), redshift and position (arcsec, x west)."""
    source, _ = read_table(folder / "goodss_3dhst_jwst_galfit.fits.gz")
    source["h"] = source.mag_wfc3_f160w
    source["redshift"] = source.z_spec.where(source.z_spec > 0, source.z_phot)
    usable = (source.star_flag != 1) & (source.h < H_REAL) & (source["mag_nircam-f200w"] < 32)
    rows = source[usable].reset_index(drop=True)
    ra, dec = source.ra.median(), source.dec.median()
    rows["redshift"] = without_failures(rows)
    rows["x_arcsec"] = -(rows.ra - ra) * np.cos(np.radians(rows.dec)) * 3600
    rows["y_arcsec"] = (rows.dec - dec) * 3600
    return rows


def without_failures(rows: pd.DataFrame) -> np.ndarray:
    """Redshifts in which fewer of the faint galaxies are at z < NEARBY: there photometric redshifts fail most often.

    A tenth and more of the rows beyond F160W = 24 have one; the volume holds NEARBY_SHARE at most. The others, chosen
    at random, take the redshift of a row like them in brightness and colours.
    """
    rng = np.random.default_rng(SEED)
    redshift, h = rows.redshift.to_numpy(np.float64).copy(), rows.h.to_numpy()
    near = (redshift < NEARBY) & ~(rows.z_spec > 0).to_numpy()
    steps = np.arange(NEARBY_SHARE[0][0], H_REAL + 0.5, 0.5)
    place = np.digitize(h, steps)
    share = np.bincount(place, near, minlength=len(steps) + 1) / np.maximum(
        np.bincount(place, minlength=len(steps) + 1), 1
    )
    wanted = np.interp(h, *NEARBY_SHARE) / np.maximum(share[place], 1e-9)
    wrong = np.flatnonzero(near & (place > 0) & (rng.uniform(size=len(h)) > wanted))
    names = [f"mag_nircam-{band}" for band in ("f070w", "f090w", "f115w", "f150w", "f200w", "f277w")]
    colours = np.clip(-np.diff(rows[names].to_numpy(np.float64), axis=1), -1, 3)
    features = np.column_stack([0.5 * h, 3 * colours])
    good = np.flatnonzero(redshift >= NEARBY)
    _, index = cKDTree(features[good]).query(features[wrong], k=5)
    redshift[wrong] = redshift[good[index[np.arange(len(wrong)), rng.integers(5, size=len(wrong))]]]
    print(f"deep: {len(wrong)} galaxies moved away from z < {NEARBY}")
    return redshift


def goods_shapes(rows: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """GALFIT's half-light radius, index and axis ratio; where the fit is bad, those of a galaxy like it."""
    good = (rows.f == 0) | ((rows.f == 1) & (rows.sn > 30))
    good &= rows.re.between(0.02, 3.0) & rows.n.between(0.21, 7.9) & (rows.q > 0.05) & (rows.dre < 0.5 * rows.re)
    known = rows[good]
    row = similar_rows(rows.h, rows.redshift, known.h, known.redshift, rng)
    chosen = known.iloc[row].reset_index(drop=True)
    scale = size_factor(rows.h - chosen.h)
    print(f"deep: shapes of {good.sum()} of {len(rows)} galaxies are their own")
    take = {name: np.where(good, rows[name], chosen[name]) for name in ("n", "q")}
    radius = np.where(good, rows.re, chosen.re * scale)
    return take_apart(radius * np.sqrt(take["q"]), np.clip(take["n"], 0.3, 4.0), take["q"])


def bluer_part(rows: pd.DataFrame) -> np.ndarray:
    """(N,) bool: the bluer BLUER_PART of the galaxies of like redshift, by F150W - F444W.

    The reddest near the catalogue's limit are massive galaxies, or noise of the mid-infrared; fainter galaxies are
    neither, and copied by their F160W they would crowd the red bands.
    """
    colour = rows["mag_nircam-f150w"] - rows["mag_nircam-f444w"]
    like = pd.cut(rows.redshift, [0, 0.5, 1, 1.5, 2, 2.5, 3, 4, 5, 15])
    return (colour.groupby(like, observed=True).rank(pct=True) <= BLUER_PART).to_numpy()


def faint_galaxies(table: pd.DataFrame, rows: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Galaxies beyond H_COMPLETE, where the catalogue falls behind: fainter and smaller copies of the faintest.

    Their weights make the counts go on as a straight line of COUNTS_SLOPE in log N.
    """
    h = rows.h.to_numpy()
    steps = np.arange(H_COMPLETE, H_FAINTEST, 0.25)
    at_limit = ((h > H_COMPLETE - 0.5) & (h <= H_COMPLETE)).sum() / 2
    wanted = at_limit * 10 ** (COUNTS_SLOPE * (steps + 0.125 - (H_COMPLETE - 0.25)))
    missing = np.maximum(wanted - np.histogram(h, [*steps, H_FAINTEST])[0], 0)
    # As many rows as weights need: half as steep, so that bright ones are not drawn again and again.
    number = np.maximum((FAINT_ROWS * np.sqrt(missing) / np.sqrt(missing).sum()).round().astype(int), 1)
    parents = np.flatnonzero((h > H_COMPLETE - 0.5) & (h <= H_REAL) & bluer_part(rows))
    distance = 1 + table.redshift.to_numpy()[parents]
    shares = [distance ** (REDSHIFT_SHIFT * (step - H_COMPLETE)) for step in steps]
    chosen = [rng.choice(parents, n, p=share / share.sum()) for n, share in zip(number, shares, strict=True)]
    chosen = np.concatenate(chosen)
    magnitude = np.repeat(steps, number) + rng.uniform(0, 0.25, number.sum())
    fainter = magnitude - h[chosen]
    copies = table.iloc[chosen].reset_index(drop=True)
    copies[list(LIGHT_COLUMNS)] *= 10 ** (-0.4 * fainter)[:, None]
    size = np.fmax(copies.disk_hlr_arcsec, copies.bulge_hlr_arcsec)
    factor = np.maximum(size_factor(fainter, FAINT_SIZES), np.minimum(SMALLEST / size, 1))
    copies[["disk_hlr_arcsec", "bulge_hlr_arcsec"]] = copies[["disk_hlr_arcsec", "bulge_hlr_arcsec"]].mul(
        factor, axis=0
    )
    nowhere = {"x_arcsec": np.nan, "y_arcsec": np.nan}
    return copies.assign(weight=np.repeat(missing / number, number), **nowhere)


def deep_galaxies(folder: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """The galaxies, and F160W of those that are the catalogue's own."""
    rng = np.random.default_rng(SEED)
    rows = goods_rows(folder)
    filters = [f"nircam_{band}" for band in GOODS_BANDS]
    mags = rows[[f"mag_nircam-{band.lower()}" for band in GOODS_BANDS]].to_numpy(np.float64)
    light, residual = fit_atoms(np.minimum(mags, 35), rows.redshift.to_numpy(), filters, reddest_first())
    report("deep", filters, np.where(mags < 28, residual, np.nan))
    table = pd.concat([rows[["redshift", "x_arcsec", "y_arcsec"]], light, goods_shapes(rows, rng)], axis=1)
    table = table.assign(weight=1.0, class_id=0, held_out=held_out(rows.id.to_numpy()))
    return pd.concat([table, faint_galaxies(table, rows, rng)], ignore_index=True), rows.h.to_numpy()


# -------------------------------------------------------------------------------------------------------------- table
def table_galaxies(arguments: argparse.Namespace) -> pd.DataFrame:
    """A user's catalogue."""
    source, _ = read_table(arguments.input)
    columns = {name: source[name].to_numpy() for name in source.columns}

    def values(text: str | None, otherwise: float) -> np.ndarray:
        if text is None:
            return np.full(len(source), otherwise)
        return np.asarray(evaluate(text, columns, str(arguments.input)), dtype=np.float64)

    redshift, pairs = values(arguments.redshift, np.nan), [one.split("=", 1) for one in arguments.mag]
    if any(len(pair) != 2 for pair in pairs):
        raise InputError("--mag is not FILTER=COLUMN; e.g. --mag hsc_r=mag_r")
    mags = np.stack([values(text, np.nan) for _, text in pairs], axis=1)
    radius = values(arguments.radius, np.nan)
    ok = (redshift >= 0) & (redshift < 15) & (radius > 0) & np.isfinite(np.where(mags < 40, mags, np.nan)).any(axis=1)
    print(f"{arguments.input}: {ok.sum()} of {len(source)} rows have a redshift, a radius and magnitudes")
    mags = np.where((mags > 0) & (mags < 40), mags, np.nan)[ok]
    filters = [name for name, _ in pairs]
    atoms = reddest_first() if arguments.templates is None else user_atoms(arguments.templates)
    light, residual = fit_atoms(mags, redshift[ok], filters, atoms, templates=arguments.templates)
    report("table", filters, residual)
    ratio = np.clip(values(arguments.axis_ratio, 0.7)[ok], 0.05, 1)
    shapes = take_apart(radius[ok], np.clip(values(arguments.sersic, 1.0)[ok], 0.3, 4.0), ratio)
    table = pd.concat([pd.DataFrame({"redshift": redshift[ok]}), light, shapes], axis=1)
    if arguments.position:
        ra, dec = (values(text, np.nan)[ok] for text in arguments.position)
        table["x_arcsec"] = -(ra - np.median(ra)) * np.cos(np.radians(dec)) * 3600
        table["y_arcsec"] = (dec - np.median(dec)) * 3600
    return table.assign(class_id=0, held_out=held_out(np.flatnonzero(ok)))


def user_atoms(folder: str) -> tuple:
    """Each template of a folder, without and with dust, the reddest first."""
    from deepdisc.simulate.spectra import load_templates

    return reddest_first([(name, ebv) for name in load_templates(folder) for ebv in (0.0, 0.2, 0.4)], folder)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind in ("wide", "deep", "table"):
        part = kinds.add_parser(kind)
        part.add_argument("input", type=Path, help="catalogue" if kind == "table" else "folder of the source tables")
        part.add_argument("output", type=Path, help="Parquet file to write")
        if kind != "table":
            continue
        part.add_argument("--area-deg2", type=float, required=True, help="area of sky that the catalogue covers")
        part.add_argument("--redshift", required=True, help="column or expression")
        part.add_argument("--mag", action="append", required=True, help="FILTER=COLUMN, AB; give it for every band")
        part.add_argument("--radius", required=True, help="circularised half-light radius, arcsec")
        part.add_argument("--sersic", help="Sersic index (default: 1)")
        part.add_argument("--axis-ratio", help="minor over major axis (default: 0.7)")
        part.add_argument("--position", nargs=2, metavar=("RA", "DEC"), help="degrees")
        part.add_argument("--templates", help="folder of templates in place of the package's")
    return parser.parse_args()


def main() -> None:
    """Read the sources, write the table and say what it holds."""
    arguments = parse()
    atoms, star_area = reddest_first(), STAR_AREA_DEG2 * STAR_SHARE
    if arguments.kind == "wide":
        galaxies, area = wide_galaxies(arguments.input)
        table = pd.concat([galaxies, stars(arguments.input)], ignore_index=True)
    elif arguments.kind == "deep":
        galaxies, _ = deep_galaxies(arguments.input)
        some = stars(arguments.input)
        some = some[np.arange(len(some)) % 4 == 0]  # as few as there are in GOODS-S are enough
        table, area = pd.concat([galaxies, some], ignore_index=True), GOODS_AREA_DEG2
        star_area = star_area_of_goods(arguments.input, some)
    else:
        table, area, star_area = table_galaxies(arguments), arguments.area_deg2, 0.0
        atoms = atoms if arguments.templates is None else user_atoms(arguments.templates)
    about = {"galaxy_area_deg2": area, "star_area_deg2": star_area, "atoms": atoms, "star_angstrom": STAR_ANGSTROM}
    write_population(arguments.output, compact(table), about)
    size, share = arguments.output.stat().st_size, table.held_out.mean()
    print(f"{arguments.output}: {len(table)} rows, {size} bytes, held out {share:.3f}")


def star_area_of_goods(folder: Path, some: pd.DataFrame) -> float:
    """Area (deg2) in which GOODS-S has as many stars of 19 < F160W < 23 as the table."""
    source, _ = read_table(folder / "goodss_3dhst_jwst_galfit.fits.gz")
    density = ((source.star_flag == 1) & source.mag_wfc3_f160w.between(19, 23)).sum() / GOODS_AREA_DEG2
    h = some[f"star_{STAR_ANGSTROM.index(16500.0)}"]
    print(f"deep: {density:.0f} stars of 19 < F160W < 23 per deg2")
    return float(some.weight[h.between(19, 23)].sum() / density)


if __name__ == "__main__":
    main()
