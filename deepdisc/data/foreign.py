"""Catalogues and redshift tables of a recipe: read, ranked, and put on the mosaic, with every lost row counted."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from deepdisc.columns import ColumnMap
from deepdisc.data.crossmatch import crossmatch
from deepdisc.data.keys import check_choice, check_keys, check_positive
from deepdisc.data.mosaic import Mosaic
from deepdisc.data.noise import blocks
from deepdisc.errors import InputError
from deepdisc.matching import chord, close_pairs, sky_vectors
from deepdisc.sky import PixelGrid
from deepdisc.tables import read_table

T = TypeVar("T", bound="Source")

_POLICIES = ("drop", "refuse")
_MAP_KEYS = ("columns", "where", "missing", "sky_frame", "optional")
_SAME_REDSHIFT_ARCSEC, _SAME_REDSHIFT = 0.3, 0.005  # two spectra of one object; difference over 1 + z

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Problems:
    """What to do about bad rows of the catalogues, "drop" or "refuse"; the key `problems` of a recipe.

    Attributes:
        no_position: NaN or impossible positions.
        outside: beyond the mosaic.
        no_data: on pixels that are masked in every band.
        duplicate_id: the same id again; the first row is kept.
        no_class: none of the class conditions holds.
    """

    no_position: str = "drop"
    outside: str = "drop"
    no_data: str = "drop"
    duplicate_id: str = "refuse"
    no_class: str = "refuse"

    def __post_init__(self) -> None:
        for item in fields(self):
            check_choice(getattr(self, item.name), _POLICIES, f"problems: {item.name}")


@dataclass(frozen=True)
class Source:
    """One or several files with a column map.

    Attributes:
        name: how messages and the truth call it.
        files: paths, perhaps with [EXTENSION].
        columns: the map.
        join: column by which the files' columns are put side by side; None: the files' rows follow each other.
    """

    name: str
    files: tuple[str, ...]
    columns: ColumnMap
    join: str | None = None

    def read(self, bands: Sequence[str]) -> pd.DataFrame:
        """All rows in our columns; see `ColumnMap.apply`.

        Raises:
            InputError: a file is missing or unreadable, or lacks a column.
        """
        tables, units = [], {}
        for file in self.files:
            table, stated = read_table(file)
            tables.append(table)
            units = stated | units
        if len(tables) > 1 and self.join is None:
            return self.columns.apply(pd.concat(tables, ignore_index=True), units, bands)
        joined = tables[0]
        for file, table in zip(self.files[1:], tables[1:], strict=True):
            joined = self._join(joined, table, file)
        return self.columns.apply(joined, units, bands)

    def _join(self, left: pd.DataFrame, right: pd.DataFrame, file: str) -> pd.DataFrame:
        for table, name in ((left, self.files[0]), (right, file)):
            if self.join not in table:
                raise InputError(f"{name}: has no column {self.join!r} to join by")
            if table[self.join].duplicated().any():
                raise InputError(
                    f"{name}: {self.join} {table[self.join][table[self.join].duplicated()].iloc[0]} is twice"
                )
        new = [name for name in right.columns if name == self.join or name not in left]
        joined = left.merge(right[new], on=self.join, how="inner", sort=False)
        if len(joined) < max(len(left), len(right)):
            logger.warning("%s: %d rows in common of %d and %d", file, len(joined), len(left), len(right))
        return joined


@dataclass(frozen=True)
class Catalogue(Source):
    """A catalogue of objects."""

    needs = ()


@dataclass(frozen=True)
class Redshifts(Source):
    """A table of redshifts, matched with the objects by position.

    Attributes:
        radius_arcsec: largest distance on the sky; default 0.5 where there are sky positions.
        radius_pix: largest distance in pixels; default 2 where there are none.
        ambiguous: "keep" the nearest, or "drop" pairs where another candidate lies within the radius.
    """

    radius_arcsec: float | None = None
    radius_pix: float | None = None
    ambiguous: str = "keep"
    needs = ("redshift",)

    def __post_init__(self) -> None:
        check_positive(self.radius_arcsec, f"redshifts {self.name}: radius_arcsec")
        check_positive(self.radius_pix, f"redshifts {self.name}: radius_pix")
        check_choice(self.ambiguous, ("keep", "drop"), f"redshifts {self.name}: ambiguous")

    def values_for(self, truth: pd.DataFrame, mosaic: Mosaic, label: str) -> tuple[np.ndarray, dict[str, Any]]:
        """Redshift of each object, NaN without one; and the numbers of the match."""
        rows = self.read(mosaic.bands)
        about: dict[str, Any] = {"rows": rows.attrs["rows"], "selected": len(rows)}
        rows = rows[rows.redshift >= 0]
        about["with_redshift"] = len(rows)
        rows = place(rows, mosaic.grid, f"field {label}: redshifts {self.name}")
        rows = rows[_inside(rows, mosaic.shape)]
        about["on_the_mosaic"] = len(rows)
        on_sky = mosaic.grid.wcs is not None and self.radius_pix is None
        rows = _without_repeats(rows) if on_sky else rows
        about["distinct"] = len(rows)
        names, unit = (["ra", "dec"], "arcsec") if on_sky else (["x", "y"], "pix")
        radius = self.radius_arcsec if on_sky and self.radius_arcsec else self.radius_pix or (0.5 if on_sky else 2.0)
        match = crossmatch(truth[names].to_numpy(float), rows[names].to_numpy(float), radius, unit)
        values = np.full(len(truth), np.nan)
        kept = np.ones(len(match), bool) if self.ambiguous == "keep" else ~match.ambiguous
        values[match.first[kept]] = rows.redshift.to_numpy()[match.second[kept]]
        report = match.report()
        return values, about | {key: report[key] for key in report if key not in ("first", "second", "first_unmatched")}


def read_list(kind: type[T], content: Any, folder: Path, place: str) -> tuple[T, ...]:
    """Read one source or a list of them.

    Raises:
        InputError: a key or value is wrong.
    """
    if content is None:
        return ()
    items = content if isinstance(content, list) else [content]
    found = tuple(_read_source(kind, item, i, folder, f"{place}[{i}]") for i, item in enumerate(items))
    names = [item.name for item in found]
    if len(set(names)) < len(names):
        raise InputError(f"{place}: the name {max(names, key=names.count)!r} is given twice; name each differently")
    return found


def _read_source(kind: type[T], content: Any, index: int, folder: Path, place: str) -> T:
    if not isinstance(content, Mapping):
        raise InputError(f"{place} is {content!r}; it is a mapping of file, columns, ...")
    extra = [item.name for item in fields(kind) if item.name not in ("name", "files", "columns", "join")]
    check_keys(content, ["name", "file", "join", *_MAP_KEYS, *extra], place)
    files = content.get("file")
    files = files if isinstance(files, list) else [files]
    if not all(isinstance(file, str) for file in files):
        raise InputError(f"{place}: file is {content.get('file')!r}; it is a path, or a list of paths")
    columns = _column_map({key: content[key] for key in _MAP_KEYS if key in content}, folder, place)
    for name in kind.needs:
        if name not in columns.columns:
            raise InputError(f"{place}: `columns` must say which is the {name}")
    name = str(content.get("name", Path(files[0]).name.partition(".")[0]))
    return kind(
        name=name,
        files=tuple(str(folder / file) for file in files),
        columns=columns,
        join=content.get("join"),
        **{key: content[key] for key in extra if key in content},
    )


def _column_map(content: Mapping[str, Any], folder: Path, place: str) -> ColumnMap:
    """The map stated in the recipe, or one of a file with the recipe's `where` and `missing` in place of its own."""
    named = content.get("columns")
    if not isinstance(named, str):
        return ColumnMap.from_mapping(content, place)
    loaded = ColumnMap.load(folder / named if (folder / named).is_file() else named)
    rest = {"columns": {"ra": "ra"}, **{key: value for key, value in content.items() if key != "columns"}}
    own = ColumnMap.from_mapping(rest, place)
    changed = {key: getattr(own, key) for key in _MAP_KEYS[1:] if key in content}
    return replace(loaded, label=f"{place} ({loaded.label})", **changed)


# ------------------------------------------------------------------------------------------------------- catalogues
def read_catalogues(
    survey: Any, mosaic: Mosaic, class_names: Sequence[str], label: str
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The rows of all catalogues that lie on the mosaic, each object once, and what was lost on the way.

    Args:
        survey: `catalogues`, `same_object_arcsec` and `problems` of a `Survey`.
        mosaic: the field.
        class_names: names by index.
        label: the field's name.

    Returns:
        Rows with x, y (pixels of the field), ra, dec where there is a WCS, class_name, catalogue, catalogue_id and
        whatever else the maps name; and the numbers by catalogue.

    Raises:
        InputError: nothing lies on the mosaic, or the recipe refuses what was found.
    """
    parts: list[pd.DataFrame] = []
    report: dict[str, Any] = {"catalogues": {}}
    for source in survey.catalogues:
        where = f"field {label}: catalogue {source.name}"
        rows = source.read(mosaic.bands)
        about = {"rows": rows.attrs["rows"], "selected": len(rows)}
        rows = _usable(place(rows, mosaic.grid, where), survey.problems, mosaic, about, where)
        rows = _with_classes(rows, survey.problems, class_names, about, where)
        if parts:
            repeated = _listed_before(pd.concat(parts), rows, survey.same_object_arcsec, mosaic.grid)
            about["listed_before"] = int(repeated.sum())
            rows = rows[~repeated]
        about["used"] = len(rows)
        report["catalogues"][source.name] = about
        parts.append(rows.assign(catalogue=source.name))
    return (pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()), report


def place(rows: pd.DataFrame, grid: PixelGrid, where: str) -> pd.DataFrame:
    """The rows with x, y and, where there is a WCS, ra, dec; NaN far from the mosaic.

    Raises:
        InputError: the map names no positions, or only sky positions of a mosaic that has no WCS.
    """
    if {"ra", "dec"} <= set(rows) and grid.wcs is not None:
        ra, dec = rows.ra.to_numpy(), rows.dec.to_numpy()
        x, y = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
        near = _near(ra, dec, grid)  # what lies far away may have no place in the projection, or a wrong one
        x[near], y[near] = grid.to_pixel(ra[near], dec[near])
        return rows.assign(x=x, y=y)
    if not {"x", "y"} <= set(rows):
        has_sky = {"ra", "dec"} <= set(rows)
        raise InputError(
            f"{where}: the mosaic has no WCS, so ra and dec do not help; map x and y (0-based pixels)"
            if has_sky
            else f"{where}: `columns` must say where the objects are: ra and dec, or x and y (0-based pixels)"
        )
    if grid.wcs is None:
        return rows
    ra, dec = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    known = np.isfinite(rows[["x", "y"]].to_numpy(float)).all(1)
    ra[known], dec[known] = grid.to_sky(rows.x[known], rows.y[known])
    return rows.assign(ra=ra, dec=dec)


def _near(ra: np.ndarray, dec: np.ndarray, grid: PixelGrid) -> np.ndarray:
    """Which positions lie within twice the mosaic's radius of its centre."""
    height, width = grid.shape
    corners = sky_vectors(*grid.to_sky([0, width - 1, 0, width - 1], [0, 0, height - 1, height - 1]))
    centre = sky_vectors(*grid.to_sky((width - 1) / 2, (height - 1) / 2))[0]
    radius = np.linalg.norm(corners - centre, axis=1)
    reach = 2 * np.nanmax(radius) if np.isfinite(radius).any() else 2.0
    with np.errstate(invalid="ignore"):
        return np.linalg.norm(sky_vectors(ra, dec) - centre, axis=1) <= reach


def _inside(rows: pd.DataFrame, shape: tuple[int, int]) -> np.ndarray:
    x, y = rows.x.to_numpy(float), rows.y.to_numpy(float)
    with np.errstate(invalid="ignore"):
        return (x > -0.5) & (y > -0.5) & (x < shape[1] - 0.5) & (y < shape[0] - 0.5)


def _usable(rows: pd.DataFrame, problems: Problems, mosaic: Mosaic, about: dict, where: str) -> pd.DataFrame:
    """Rows with a position on pixels that hold data and with an id of their own."""
    names = ["ra", "dec"] if {"ra", "dec"} <= set(rows) and mosaic.grid.wcs is not None else ["x", "y"]
    lost = ~np.isfinite(rows[names].to_numpy(float)).all(1)
    rows = _dropped(rows, lost, "no_position", "have no position", problems, about, where)
    inside = _inside(rows, mosaic.shape)
    if len(rows) and not inside.any():
        raise InputError(f"{where}: {_nothing_inside(rows, mosaic)}")
    rows = _dropped(rows, ~inside, "outside", "lie outside the mosaic", problems, about, where)
    rows = _dropped(rows, _without_data(rows, mosaic), "no_data", "lie where no band has data", problems, about, where)
    if "catalogue_id" in rows:
        again = (rows.catalogue_id.duplicated() & (rows.catalogue_id != "")).to_numpy()
        rows = _dropped(rows, again, "duplicate_id", "have the id of another", problems, about, where)
    else:
        rows = rows.assign(catalogue_id=[str(number) for number in rows.index])
    return rows


def _dropped(
    rows: pd.DataFrame, lost: np.ndarray, kind: str, words: str, problems: Problems, about: dict, where: str
) -> pd.DataFrame:
    about[kind] = int(lost.sum())
    if lost.any() and getattr(problems, kind) == "refuse":
        example = rows[lost].iloc[0]
        which = f"id {example.catalogue_id}" if "catalogue_id" in rows else f"row {rows.index[lost][0]}"
        raise InputError(
            f"{where}: {lost.sum()} of {len(rows)} rows {words} (first: {which}); correct the catalogue, leave them "
            f"out with `where`, or say `problems: {{{kind}: drop}}`"
        )
    return rows[~lost]


def _nothing_inside(rows: pd.DataFrame, mosaic: Mosaic) -> str:
    """Why no row may lie on the mosaic."""
    height, width = mosaic.shape
    if mosaic.grid.wcs is None or not {"ra", "dec"} <= set(rows):
        text = f"none of its {len(rows)} rows lies on the {width} x {height} pixels of the mosaic"
        exchanged = rows.rename(columns={"x": "y", "y": "x"})
        hint = "; x and y look exchanged" if _inside(exchanged, mosaic.shape).any() else "; is it of this field?"
        return f"{text} (x {_span(rows.x)}, y {_span(rows.y)}){hint}"
    possible = rows[rows.ra.between(-90, 90)]
    exchanged = place(possible.rename(columns={"ra": "dec", "dec": "ra"}), mosaic.grid, "")
    if _inside(exchanged, mosaic.shape).any():
        return "none of its rows lies on the mosaic, but with ra and dec exchanged some do: exchange them in the recipe"
    ra, dec = mosaic.grid.to_sky([0, width - 1, 0, width - 1], [0, 0, height - 1, height - 1])
    return (
        f"none of its {len(rows)} rows lies on the mosaic: RA {_span(rows.ra)}, Dec {_span(rows.dec)}, but the mosaic "
        f"covers RA {_span(ra)}, Dec {_span(dec)}; is it of another field, or sky_frame another?"
    )


def _span(values: Any) -> str:
    return f"{np.nanmin(values):.5g} to {np.nanmax(values):.5g}"


def _without_data(rows: pd.DataFrame, mosaic: Mosaic) -> np.ndarray:
    """Which rows lie on pixels that are masked in every band."""
    x, y = (np.round(rows[name].to_numpy(float)).astype(int) for name in ("x", "y"))
    lost = np.zeros(len(rows), bool)
    for _, _, y0, x0, y1, x1 in blocks(mosaic.shape, 1024):
        here = np.flatnonzero((x >= x0) & (x < x1) & (y >= y0) & (y < y1))
        if len(here):
            masked = mosaic.read(y0, x0, y1, x1).mask.all(axis=0)
            lost[here] = masked[y[here] - y0, x[here] - x0]
    return lost


def _with_classes(
    rows: pd.DataFrame, problems: Problems, class_names: Sequence[str], about: dict, where: str
) -> pd.DataFrame:
    if "class_name" not in rows:
        if len(class_names) > 1:
            raise InputError(f"{where}: `columns` must say the class, one of {', '.join(class_names)}: class: ...")
        return rows.assign(class_name=class_names[0])
    unknown = sorted(set(rows.class_name.dropna()) - set(class_names))
    if unknown:
        raise InputError(f"{where}: class {unknown[0]!r} is not among the recipe's class_names {list(class_names)}")
    return _dropped(rows, rows.class_name.isna().to_numpy(), "no_class", "are of no class", problems, about, where)


def _listed_before(known: pd.DataFrame, rows: pd.DataFrame, radius_arcsec: float, grid: PixelGrid) -> np.ndarray:
    """Which rows lie within the radius of a row of an earlier catalogue."""
    near = np.zeros(len(rows), bool)
    if grid.wcs is not None:
        ours, theirs = (sky_vectors(part.ra, part.dec) for part in (rows, known))
        pairs = close_pairs(ours, theirs, chord(radius_arcsec))
    else:
        ours, theirs = (part[["x", "y"]].to_numpy(float) for part in (rows, known))
        pairs = close_pairs(ours, theirs, radius_arcsec / grid.pixel_scale_arcsec)
    near[pairs.pred] = True
    return near


def _without_repeats(rows: pd.DataFrame) -> pd.DataFrame:
    """Without further spectra of the same object: same place, same redshift; the first is kept."""
    positions = sky_vectors(rows.ra, rows.dec)
    pairs = close_pairs(positions, positions, chord(_SAME_REDSHIFT_ARCSEC))
    later = pairs.truth < pairs.pred
    z = rows.redshift.to_numpy()
    same = np.abs(z[pairs.pred] - z[pairs.truth]) <= _SAME_REDSHIFT * (1 + z[pairs.truth])
    keep = np.ones(len(rows), bool)
    keep[pairs.pred[later & same]] = False
    return rows[keep]
