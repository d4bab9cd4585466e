"""The population table: what galaxies and stars there are, how many per square degree, and their light in any filters.

Its columns are described in data/README.md. Galaxies are sums of at most four atoms of spectra.py, the reddest first;
the bulge takes their light in this order, until it holds its share of the light at the rest wavelength 5500 Angstrom.
Stars are magnitudes at fixed wavelengths, with straight lines (magnitude against ln wavelength) between them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from deepdisc.errors import InputError, first_line, nearest
from deepdisc.files import atomic_path
from deepdisc.photometry import njy_from_mag
from deepdisc.simulate.filters import load_filter
from deepdisc.simulate.spectra import Atom, flux_table

FOLDER = Path(__file__).parent / "data" / "populations"
PARTS = ("train", "test", "all")
GALAXY, STAR = 0, 1
CLASS_NAMES = ("galaxy", "star")
MOST_ATOMS = 4
ATOM_COLUMNS = tuple(f"atom_{number}" for number in range(MOST_ATOMS))
LIGHT_COLUMNS = tuple(f"light_{number}" for number in range(MOST_ATOMS))
SHAPE_COLUMNS = (
    *(f"disk_{name}" for name in ("hlr_arcsec", "n", "axis_ratio")),
    *(f"bulge_{name}" for name in ("hlr_arcsec", "n", "axis_ratio")),
)
POSITION_COLUMNS = ("x_arcsec", "y_arcsec")
COLUMNS = (
    *("class_id", "redshift", "weight", "held_out", "bulge_fraction"),
    *(*ATOM_COLUMNS, *LIGHT_COLUMNS, *SHAPE_COLUMNS, *POSITION_COLUMNS),
)


@dataclass(frozen=True)
class Population:
    """Rows to draw objects from.

    Attributes:
        rows: the table; the index is the row's number in the whole table, whatever part was chosen.
        everything: the whole table, whatever part was chosen: for the places of its galaxies.
        density_per_deg2: number of objects of class 0 (galaxies) and 1 (stars) per square degree.
        atoms: the atoms that `atom_0`.. number.
        star_angstrom: wavelengths of the stars' magnitudes.
        templates: folder of the atoms' templates; None for those of the package.
    """

    rows: pd.DataFrame
    everything: pd.DataFrame
    density_per_deg2: tuple[float, float]
    atoms: tuple[Atom, ...]
    star_angstrom: tuple[float, ...]
    templates: str | None = None

    @classmethod
    def load(cls, source: str, part: str = "all", templates: str | None = None) -> Population:
        """Read one part of a population; its rows stand for the density of the whole.

        Args:
            source: "wide" or "deep", which ship with the package, or the path of a Parquet file of the same form.
            part: "train" (four rows in five), "test" (the held-out fifth) or "all".
            templates: folder of spectral templates, for a population that was made with it.

        Raises:
            InputError: another word for `part`, no such population, or the file lacks a column or what it must say.
        """
        if part not in PARTS:
            raise InputError(f"sky.population_part is {part!r}; it must be one of {', '.join(PARTS)}")
        path = _path_of(source)
        return cls._read(path, path.stat().st_mtime_ns, part, templates)

    @classmethod
    @functools.lru_cache(maxsize=8)
    def _read(cls, path: Path, changed: int, part: str, templates: str | None) -> Population:
        """As `load`; kept, because streams of fields ask for it again and again. `changed` tells files apart."""
        try:
            table = pq.read_table(path)
            about = {
                key.decode(): json.loads(value) for key, value in table.schema.metadata.items() if key != b"pandas"
            }
            areas = [float(about[key]) for key in ("galaxy_area_deg2", "star_area_deg2")]
            atoms = tuple((str(name), float(ebv)) for name, ebv in about["atoms"])
            star_angstrom = tuple(float(one) for one in about["star_angstrom"])
        except (OSError, pa.ArrowInvalid, KeyError, AttributeError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: not a population ({first_line(error)}); make it with tools/make_population.py"
            ) from error
        wanted = [*COLUMNS, *star_columns(len(star_angstrom))]
        missing = [name for name in wanted if name not in table.column_names]
        if missing:
            raise InputError(f"{path}: column {missing[0]!r} is missing; make it with tools/make_population.py")
        rows = table.select(wanted).to_pandas()
        number = [float(rows.weight[rows.class_id == kind].sum()) for kind in (GALAXY, STAR)]
        density = tuple(count / area if area > 0 else 0.0 for count, area in zip(number, areas, strict=True))
        chosen = rows if part == "all" else rows[rows.held_out == (part == "test")]
        return cls(chosen, rows, density, atoms, star_angstrom, templates)

    def draw(self, kind: int, area_deg2: float, factor: float, rng: np.random.Generator) -> pd.DataFrame:
        """A Poisson number of rows of one class, with replacement, as often as their weights say.

        Args:
            kind: GALAXY or STAR.
            area_deg2: area to fill, square degrees.
            factor: multiplies the density.
            rng: source of randomness.

        Returns:
            Rows of the table, index = population row (repeated where drawn twice).
        """
        number = rng.poisson(self.density_per_deg2[kind] * area_deg2 * factor)
        candidates = np.flatnonzero(self.rows.class_id.to_numpy() == kind)
        cumulative = np.cumsum(self.rows.weight.to_numpy(np.float64)[candidates])
        place = np.searchsorted(cumulative, rng.uniform(0, cumulative[-1] if number else 0.0, number), side="right")
        return self.rows.iloc[candidates[np.minimum(place, len(candidates) - 1)]]

    def light(self, rows: pd.DataFrame, filters: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Light of rows in filters, without Galactic dust.

        Args:
            rows: of this population; N of them.
            filters: B names or paths (see filters.py).

        Returns:
            (N, B) total fluxes in nJy, (N, B) the bulge's share of them (0 for stars).
        """
        total, bulge = np.zeros((2, len(rows), len(filters)))
        galaxy = rows.class_id.to_numpy() == GALAXY
        total[galaxy], bulge[galaxy] = self._galaxy_light(rows[galaxy], tuple(filters))
        stars = rows.loc[~galaxy, star_columns(len(self.star_angstrom))].to_numpy(np.float64)
        total[~galaxy] = star_fluxes(np.array(self.star_angstrom), stars, filters)
        return total, bulge / np.where(total > 0, total, 1)

    def blueness(self, rows: pd.DataFrame) -> np.ndarray:
        """(N,) share of the light (rest 5500 Angstrom) that comes from the bluer half of the atoms; 0 for stars."""
        light = rows[list(LIGHT_COLUMNS)].fillna(0).to_numpy(np.float64)
        blue = np.where(rows[list(ATOM_COLUMNS)].to_numpy() >= len(self.atoms) / 2, light, 0).sum(axis=1)
        return blue / np.where(light.sum(axis=1) > 0, light.sum(axis=1), 1)

    def _galaxy_light(self, rows: pd.DataFrame, filters: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        table = flux_table(self.atoms, filters, self.templates)
        atom = rows[list(ATOM_COLUMNS)].to_numpy(np.int64)
        light = np.where(atom >= 0, rows[list(LIGHT_COLUMNS)].to_numpy(np.float64), 0.0)
        fluxes = light[..., None] * table(rows.redshift.to_numpy(np.float64)[:, None], np.maximum(atom, 0))
        wanted = rows.bulge_fraction.to_numpy(np.float64) * light.sum(axis=1)
        before = np.cumsum(light, axis=1) - light
        in_bulge = np.clip((wanted[:, None] - before) / np.where(light > 0, light, 1), 0, 1)
        return fluxes.sum(axis=1), (in_bulge[..., None] * fluxes).sum(axis=1)


def star_columns(number: int) -> list[str]:
    """Names of the columns of the stars' magnitudes."""
    return [f"star_{one}" for one in range(number)]


def star_fluxes(angstrom: np.ndarray, magnitudes: np.ndarray, filters: Sequence[str]) -> np.ndarray:
    """(N, B) nJy of spectra that are straight lines of magnitude against ln wavelength, level outside.

    Args:
        angstrom: (M,) wavelengths, increasing.
        magnitudes: (N, M) AB magnitudes at them.
        filters: B names or paths.
    """
    out = np.zeros((len(magnitudes), len(filters)))
    for band, name in enumerate(filters):
        below, share, weights = _star_weights(tuple(angstrom), name)
        for start in range(0, len(magnitudes), 4096):  # bounds the memory
            some = magnitudes[start : start + 4096]
            spectrum = njy_from_mag(some[:, below] * (1 - share) + some[:, below + 1] * share)
            out[start : start + 4096, band] = spectrum @ weights
    return out


@functools.cache
def _star_weights(angstrom: tuple[float, ...], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For the wavelengths of a filter: the point before, the share of the next one, and the weight in the mean."""
    curve = load_filter(name).sampled(20.0)
    weights = curve.throughput * np.gradient(np.log(curve.wavelength_angstrom))
    place = np.interp(np.log(curve.wavelength_angstrom), np.log(angstrom), np.arange(len(angstrom)))
    below = np.clip(place.astype(int), 0, len(angstrom) - 2)
    return below, place - below, weights / weights.sum()


def write_population(path: Path, rows: pd.DataFrame, about: Mapping[str, object]) -> None:
    """Write a population file.

    Args:
        path: Parquet file.
        rows: columns COLUMNS (those that are absent become 0, -1 or NaN) and the stars'.
        about: galaxy_area_deg2, star_area_deg2, atoms, star_angstrom.
    """
    absent = {"weight": 1.0, **dict.fromkeys(ATOM_COLUMNS, -1)}
    wanted = [*COLUMNS, *star_columns(len(about["star_angstrom"]))]
    lacking = {name: False if name == "held_out" else np.nan for name in wanted if name not in rows}
    rows = rows.assign(**lacking)[wanted].fillna(absent)
    kinds = dict.fromkeys(wanted, np.float32) | dict.fromkeys([*ATOM_COLUMNS, "class_id"], np.int8)
    rows = rows.astype({**kinds, "held_out": bool})
    arrow = pa.Table.from_pandas(rows, preserve_index=False)
    arrow = arrow.replace_schema_metadata({key: json.dumps(value) for key, value in about.items()})
    floats = [name for name in wanted if rows[name].dtype == np.float32]
    with atomic_path(path) as temporary:
        pq.write_table(
            arrow, temporary, compression="zstd", compression_level=19, use_dictionary=False,
            column_encoding=dict.fromkeys(floats, "BYTE_STREAM_SPLIT"),
        )  # fmt: skip


def _path_of(source: str) -> Path:
    shipped = {path.stem: path for path in sorted(FOLDER.glob("*.parquet"))}
    path = shipped.get(source, Path(source))
    if not path.is_file():
        guess = nearest(source, shipped)
        hint = f"; did you mean {guess!r}?" if guess else ""
        raise InputError(f"no population {source!r}: give one of {', '.join(shipped)}, or the path of a file{hint}")
    return path
