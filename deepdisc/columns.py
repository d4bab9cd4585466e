"""Column maps: which column of a foreign catalogue is which of ours, and in which unit.

A map is a part of a recipe, or a YAML file of its own, with these keys::

    where: use_phot == 1 and mag_auto < 24       # rows to take; default all
    missing: [-99]                               # values that mean "not measured"; default see `ColumnMap`
    sky_frame: galactic                          # what ra and dec are; default icrs
    optional: true                               # what the table lacks is left out; default: it is an error
    columns:
      id: NUMBER
      ra: ALPHA_J2000
      x: X_IMAGE - 1                             # any expression of `deepdisc.expressions`
      flux_r: {column: FLUX_AUTO, error: FLUXERR_AUTO, zero_point: 25.9}
      flux_{band}: {column: "{band}_KRON", error: "{band}_KRON_e", unit: nJy}     # each band that the file has
      redshift: [z_spec, zspec]                  # the first whose columns the table has
      class: {star: CLASS_STAR > 0.9, galaxy: true}    # the first condition that holds; or one name for all

Units come from the map, else from the file; a quantity whose unit neither states is an error. Fluxes become nJy,
angles deg or arcsec. Keys of `columns` are those of `OWN` and of `deepdisc.catalog`.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from astropy import units as u
from astropy.coordinates import SkyCoord

from deepdisc import catalog, photometry
from deepdisc.config import shipped
from deepdisc.errors import InputError, nearest
from deepdisc.expressions import column_names, evaluate, select
from deepdisc.files import read_yaml
from deepdisc.tables import Units

# Keys that are no columns of ours by themselves.
OWN = {
    "id": "the catalogue's own number or name of the object; becomes catalogue_id, text",
    "a": "half of the major axis of the outline, unit pix or an angle; becomes a_pix or a_arcsec",
    "b": "half of the minor axis, likewise",
    "theta": "angle of the major axis from +x to +y; becomes theta_deg",
    "position_angle": "angle of the major axis from North through East; becomes position_angle_deg",
    "class": "a name, or conditions by name; becomes class_name",
}
_ANGLES = {"ra": "deg", "dec": "deg", "theta": "deg", "position_angle": "deg"}
_SPEC_KEYS = ("column", "unit", "zero_point", "error")
_MAP_KEYS = ("columns", "where", "missing", "sky_frame", "optional", "description")
SKY_FRAMES = ("icrs", "fk5", "fk4", "galactic")
_MAGNITUDES = ("mag", "abmag", "mag(ab)", "ab", "mag_ab")
_PIXELS = ("pix", "pixel", "pixels")
_LOW_SENTINELS = (-99.0, -999.0, -9999.0)
_HIGH_SENTINELS = (99.0, 999.0, 9999.0)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Spec:
    """Where one of our columns comes from: an expression, its unit or zero point, and the expression of its error."""

    column: str
    unit: str | None = None
    zero_point: float | None = None
    error: str | None = None

    @classmethod
    def read(cls, value: Any, label: str) -> Spec:
        """Read an expression, a number, or a mapping with the key `column`."""
        value = value if isinstance(value, Mapping) else {"column": value}
        for key in value:
            if key not in _SPEC_KEYS:
                raise InputError(f"{label}: unknown key {key!r}; there are {', '.join(_SPEC_KEYS)}")
        column, error = value.get("column"), value.get("error")
        if not isinstance(column, str | int | float) or not isinstance(error, str | None):
            raise InputError(f"{label}: give a column's name or an expression, not {column!r}")
        zero_point = value.get("zero_point")
        if zero_point is not None and (isinstance(zero_point, bool) or not isinstance(zero_point, int | float)):
            raise InputError(f"{label}: zero_point is {zero_point!r}; it is the AB magnitude of one unit, a number")
        if zero_point is not None and value.get("unit") is not None:
            raise InputError(f"{label}: unit and zero_point are both given; keep one")
        return cls(str(column), value.get("unit"), zero_point, error)

    def fits(self, columns: Sequence[str], label: str) -> bool:
        """Whether the table has all columns that are needed."""
        needed = [column_names(text, label) for text in (self.column, self.error) if text is not None]
        return set().union(*needed) <= set(columns)

    def of_band(self, band: str) -> Spec:
        """With the band's name put in for {band}."""
        error = None if self.error is None else _fill(self.error, band)
        return Spec(_fill(self.column, band), self.unit, self.zero_point, error)


def _fill(text: str, band: str) -> str:
    return text.replace("{band}", band).replace("{BAND}", band.upper())


@dataclass(frozen=True)
class ColumnMap:
    """A checked map; see the top of this module.

    Attributes:
        columns: our name -> where it comes from; the first that fits the table.
        classes: class name -> condition, in the order of precedence; empty where the map states no class.
        where: condition for the rows to take.
        missing: values of measured columns (all but ids, positions and classes) that mean "not measured". None: -99,
            -999 and -9999, and for magnitudes and redshifts also 99, 999 and 9999.
        sky_frame: of ra and dec, one of `SKY_FRAMES`.
        optional: leave out what the table lacks; a program writes the columns it is asked for.
        label: how messages call the map.
    """

    columns: Mapping[str, tuple[Spec, ...]]
    classes: Mapping[str, str | bool] = field(default_factory=dict)
    where: str | None = None
    missing: tuple[float, ...] | None = None
    sky_frame: str = "icrs"
    optional: bool = False
    label: str = "columns"

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any], label: str) -> ColumnMap:
        """Check what a recipe or a YAML file says.

        Raises:
            InputError: an unknown key or column, or a value of a wrong kind.
        """
        for key in content:
            if key not in _MAP_KEYS:
                close = nearest(str(key), _MAP_KEYS)
                raise InputError(f"{label}: unknown key {key!r}" + (f"; the nearest is {close!r}" if close else ""))
        columns = content.get("columns")
        if not isinstance(columns, Mapping) or not columns:
            raise InputError(f"{label}: `columns:` maps our names to the catalogue's, for example {{ra: RA, dec: DEC}}")
        where = content.get("where")
        if not isinstance(where, str | None):
            raise InputError(f"{label}: where is {where!r}; it is a condition such as 'mag_r < 22'")
        specs = {}
        for name, value in columns.items():
            _check_name(str(name), label)
            if name != "class":
                choices = value if isinstance(value, list) and value else [value]
                specs[str(name)] = tuple(Spec.read(choice, f"{label}: {name}") for choice in choices)
        frame = content.get("sky_frame", "icrs")
        if frame not in SKY_FRAMES:
            raise InputError(f"{label}: sky_frame is {frame!r}; it is one of {', '.join(SKY_FRAMES)}")
        optional = content.get("optional", False)
        if not isinstance(optional, bool):
            raise InputError(f"{label}: optional is {optional!r}; it is true or false")
        missing = _missing(content.get("missing"), label)
        return cls(specs, _classes(columns.get("class"), label), where, missing, frame, optional, label)

    @classmethod
    def load(cls, name_or_path: str | os.PathLike) -> ColumnMap:
        """Read a map from a YAML file of its own, or the shipped one of that name (datasets/columns/NAME.yaml)."""
        path = Path(name_or_path)
        if not path.is_file() and path.name == str(name_or_path) and shipped("datasets").is_dir():
            folder = shipped("datasets") / "columns"
            path = folder / f"{path.name.removesuffix('.yaml')}.yaml"
            if not path.is_file():
                have = ", ".join(sorted(item.stem for item in folder.glob("*.yaml")))
                raise InputError(f"no column map {name_or_path}, neither a file nor shipped; shipped are: {have}")
        if not path.is_file():
            raise InputError(f"no column map at {path}; datasets/README.md describes what it holds")
        content = read_yaml(path, "column map")
        if not isinstance(content, Mapping):
            raise InputError(f"{path}: a column map holds `columns:` and perhaps `where:` and `missing:`")
        return cls.from_mapping(content, str(path))

    def apply(
        self, table: pd.DataFrame, units: Units | None = None, bands: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Take the rows and columns of a table that the map names, in our units.

        Args:
            table: as `deepdisc.tables.read_table` gives it.
            units: of its columns, where the file states them.
            bands: what {band} stands for; default: whatever the table has in its place.

        Returns:
            Columns of `deepdisc.catalog`, catalogue_id, a_, b_, theta_deg, position_angle_deg; the index is the row of
            the table. For each band flux_, mag_ and, where there is one, fluxerr_. class_name is None where no
            condition holds. `attrs["rows"]` is the number of rows before `where`.

        Raises:
            InputError: a column or unit is not there; a declination is impossible.
        """
        chosen = self._chosen(table)
        rows = table[chosen]
        ours: dict[str, Any] = {}
        for name, spec in self._expanded(table, bands):
            ours |= self._column(name, spec, rows, units or {})
        if self.classes and not self._skips("class", self.classes.values(), table):
            ours["class_name"] = self._class_names(rows)
        if not ours:
            raise InputError(
                f"{self.label}: the table has none of the map's columns; it has {', '.join(map(str, table.columns))}; "
                "give the map of the program that wrote it"
            )
        if self.sky_frame != "icrs" and {"ra", "dec"} <= set(ours):
            sky = SkyCoord(ours["ra"], ours["dec"], unit="deg", frame=self.sky_frame).icrs
            ours |= {"ra": sky.ra.deg, "dec": sky.dec.deg}
        result = pd.DataFrame(ours, index=np.flatnonzero(chosen))
        result.attrs["rows"] = len(table)
        return result

    def _chosen(self, table: pd.DataFrame) -> np.ndarray:
        """Bool (rows,): rows to take."""
        if self.where is None or self._skips("where", [self.where], table):
            return np.ones(len(table), bool)
        return select(self.where, table, f"{self.label}: where")

    def _skips(self, key: str, conditions: Iterable[str | bool], table: pd.DataFrame) -> bool:
        """Whether an optional map has conditions on columns that the table lacks."""
        needed = set().union(*(column_names(str(condition), f"{self.label}: {key}") for condition in conditions))
        lacking = sorted(needed - set(table.columns)) if self.optional else []
        if lacking and key == "where":
            logger.warning("%s: no column %s: rows are not selected", self.label, ", ".join(lacking))
        return bool(lacking)

    def _expanded(self, table: pd.DataFrame, bands: Sequence[str] | None) -> Iterator[tuple[str, Spec]]:
        """All columns, those of {band} once for each band."""
        for name, specs in self.columns.items():
            if "{band}" in name:
                yield from self._of_bands(name, specs, table, bands)
                continue
            fitting = [spec for spec in specs if spec.fits(table.columns, f"{self.label}: {name}")]
            if fitting or not self.optional:
                yield name, (fitting or specs)[0]

    def _of_bands(
        self, name: str, specs: Sequence[Spec], table: pd.DataFrame, bands: Sequence[str] | None
    ) -> Iterator[tuple[str, Spec]]:
        """A column with {band} in its name, once for each band; for each the first choice that has it."""
        done = []
        for spec in specs:
            found = _bands_in(spec.column, table.columns, bands)
            if spec.error is not None:
                found = [band for band in found if band in _bands_in(spec.error, table.columns, found)]
            found = [band for band in found if band not in done]
            if self.optional:
                found = [band for band in found if spec.of_band(band).fits(table.columns, f"{self.label}: {name}")]
            done += found
            for band in found:
                yield name.replace("{band}", band), spec.of_band(band)
        if not done and not self.optional:
            raise InputError(
                f"{self.label}: {name}: no column fits {specs[0].column!r}"
                + (f" for a band of {', '.join(bands)}" if bands else "")
            )
        lacking = [band for band in bands or () if band not in done]
        if lacking and not self.optional:
            logger.warning("%s: no %s for %s", self.label, name, ", ".join(lacking))

    def _column(self, name: str, spec: Spec, rows: pd.DataFrame, units: Units) -> dict[str, np.ndarray]:
        label = f"{self.label}: {name}"
        unit = spec.unit or units.get(spec.column)
        if name == "id":
            return {"catalogue_id": _as_text(evaluate(spec.column, rows, label))}
        if name in ("ra", "dec", "x", "y"):
            values = _numbers(evaluate(spec.column, rows, label), label)
            if name in ("x", "y"):
                return {name: values}
            return {name: _sky_angle(name, _converted(values, unit or "deg", "deg", label), label)}
        columns = _Measured(rows, self._sentinels(name))
        values = evaluate(spec.column, columns, label)
        if name.startswith(("flux_", "mag_")):
            error = None if spec.error is None else _numbers(evaluate(spec.error, columns, label), label)
            return _photometry(name, _numbers(values, label), error, spec, unit, label)
        column = catalog.describe(name)
        if column is not None and column.dtype == "str":
            return {name: _as_text(values)}
        values = _numbers(values, label)
        if name.startswith("fluxerr_"):
            return {name: values * _njy_per_unit(unit, spec.zero_point, label)}
        if name in ("a", "b"):
            return _axis(name, values, unit, label)
        if name in _ANGLES:
            return {f"{name}_deg": _converted(values, unit or "deg", "deg", label)}
        if column.unit and column.unit not in ("pix", "pix2", "mag"):
            values = _converted(values, unit, column.unit, label)
        return {name: _as_type(values, column.dtype)}

    def _sentinels(self, name: str) -> tuple[float, ...]:
        if self.missing is not None:
            return self.missing
        high = name.startswith(("mag_", "redshift", "z_", "hlr"))
        return _LOW_SENTINELS + _HIGH_SENTINELS if high else _LOW_SENTINELS

    def _class_names(self, rows: pd.DataFrame) -> np.ndarray:
        names = np.full(len(rows), None, dtype=object)
        for name, condition in reversed(self.classes.items()):
            names[select(condition, rows, f"{self.label}: class {name}")] = name
        return names


class _Measured(Mapping):
    """The columns of a table, with the values that mean "not measured" as NaN."""

    def __init__(self, rows: pd.DataFrame, sentinels: Sequence[float]):
        self._rows, self._sentinels = rows, sentinels

    def __getitem__(self, name: str) -> Any:
        values = self._rows[name]
        if values.dtype.kind not in "iuf":
            return values
        missing = values.isin(self._sentinels)
        return values.astype(np.float64).mask(missing) if missing.any() else values

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows.columns)

    def __len__(self) -> int:
        return len(self._rows.columns)


# ------------------------------------------------------------------------------------------------------ checking
def _check_name(name: str, label: str) -> None:
    plain = name.replace("{band}", "band")
    if plain in OWN or catalog.describe(plain) is not None:
        return
    known = [*OWN, *catalog.SCHEMA, "flux_{band}", "mag_{band}"]
    close = nearest(name, known)
    hint = f"the nearest is {close!r}" if close else f"there are {', '.join(known)}"
    raise InputError(f"{label}: columns: {name!r} is none of ours; {hint}")


def _classes(value: Any, label: str) -> dict[str, str | bool]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {value: True}
    if not isinstance(value, Mapping) or not value or any(not isinstance(item, str | bool) for item in value.values()):
        raise InputError(f"{label}: class is {value!r}; give a name, or conditions: {{star: type == 6, galaxy: true}}")
    return {str(name): condition for name, condition in value.items()}


def _missing(value: Any, label: str) -> tuple[float, ...] | None:
    if value is None:
        return None
    values = value if isinstance(value, list) else [value]
    if any(isinstance(item, bool) or not isinstance(item, int | float) for item in values):
        raise InputError(f"{label}: missing is {value!r}; it is a list of numbers such as [-99, 99]")
    return tuple(float(item) for item in values)


def _bands_in(pattern: str, columns: Sequence[str], bands: Sequence[str] | None) -> list[str]:
    """The bands whose columns are there: of those given, or whatever stands in the place of {band}."""
    if bands is not None:
        plain = re.fullmatch(r"[\w{}]+", pattern) is not None
        return [band for band in bands if not plain or _fill(pattern, band) in columns]
    if "{band}" not in pattern or re.fullmatch(r"[\w{}]+", pattern) is None:
        return []
    before, after = (re.escape(part) for part in pattern.split("{band}", 1))
    matches = (re.fullmatch(f"{before}([A-Za-z0-9]+){after}", str(name)) for name in columns)
    return [match.group(1) for match in matches if match]


# --------------------------------------------------------------------------------------------------------- units
def _numbers(values: np.ndarray, label: str) -> np.ndarray:
    try:
        return values.astype(np.float64)
    except (TypeError, ValueError) as error:
        example = next((value for value in values.tolist() if not isinstance(value, int | float)), None)
        raise InputError(f"{label}: the column holds {example!r}, which is no number") from error


def _converted(values: np.ndarray, unit: str | None, wanted: str, label: str) -> np.ndarray:
    if unit is None:
        raise InputError(
            f"{label}: neither the file nor the recipe says the unit; give {{column: ..., unit: {wanted}}}"
        )
    try:
        factor = u.Unit(unit).to(u.Unit(wanted))
    except (ValueError, TypeError) as error:
        raise InputError(f"{label}: the unit {unit!r} is unknown or cannot become {wanted}; state another") from error
    return values * factor


def _sky_angle(name: str, values: np.ndarray, label: str) -> np.ndarray:
    if name == "ra":
        return np.where((values >= -180) & (values <= 360), values % 360, np.nan)
    values = np.where(np.isin(values, _LOW_SENTINELS), np.nan, values)
    possible = ~(np.abs(values) > 90)
    if len(values) and possible.mean() < 0.99:
        raise InputError(
            f"{label}: {(~possible).sum()} of {len(values)} declinations are beyond 90 degrees, up to "
            f"{np.nanmax(np.abs(values)):g}; are ra and dec exchanged, or is the unit another?"
        )
    return np.where(possible, values, np.nan)


def _axis(name: str, values: np.ndarray, unit: str | None, label: str) -> dict[str, np.ndarray]:
    if unit is not None and unit.lower() in _PIXELS:
        return {f"{name}_pix": values}
    return {f"{name}_arcsec": _converted(values, unit, "arcsec", label)}


def _photometry(
    name: str, values: np.ndarray, error: np.ndarray | None, spec: Spec, unit: str | None, label: str
) -> dict[str, np.ndarray]:
    """flux_, mag_ and fluxerr_ of a band."""
    kind, _, band = name.partition("_")
    magnitudes = kind == "mag" or (unit is not None and unit.lower() in _MAGNITUDES)
    if magnitudes:
        if kind == "mag" and unit is not None and unit.lower() not in _MAGNITUDES:
            raise InputError(f"{label}: the unit {unit!r} is no magnitude; call it flux_{band}")
        mag, flux = values, photometry.njy_from_mag(values)
        flux_error = None if error is None else flux * error * (0.4 * np.log(10))  # of a small error
    else:
        factor = _njy_per_unit(unit, spec.zero_point, label)
        flux = values * factor
        mag = photometry.mag_from_njy(flux)
        flux_error = None if error is None else error * factor
    found = {f"flux_{band}": flux, f"mag_{band}": mag}
    if flux_error is not None:
        found[f"fluxerr_{band}"] = np.where(flux_error > 0, flux_error, np.nan)
    return found


def _njy_per_unit(unit: str | None, zero_point: float | None, label: str) -> float:
    if zero_point is not None:
        return photometry.njy_per_count(zero_point)
    if unit is None:
        raise InputError(
            f"{label}: neither the file nor the recipe says the flux's unit; give {{column: ..., unit: uJy}} (nJy, "
            "nanomaggy, mag, ...) or zero_point:"
        )
    found = photometry.zero_point_of_unit(unit, label)
    if found is not None:
        return photometry.njy_per_count(found)
    return float(_converted(np.ones(1), unit, "nJy", label)[0])


def _as_text(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f":
        return np.array([str(int(v)) if v == np.floor(v) else "" if np.isnan(v) else str(v) for v in values], object)
    return np.array([str(value).strip() for value in values.tolist()], object)


def _as_type(values: np.ndarray, dtype: str) -> np.ndarray:
    """Integers only where no value is missing."""
    if np.dtype(dtype).kind in "iu" and not np.isfinite(values).all():
        return values
    return values.astype(dtype)
