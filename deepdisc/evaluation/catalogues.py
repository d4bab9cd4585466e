"""Catalogues of any program as the evaluation wants them: our column names and units, ICRS degrees, pixels from 0.

What is converted is noted; what cannot be right is an error that says what to do.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from astropy import units as u
from astropy.coordinates import FK4, FK5, SkyCoord

from deepdisc import catalog
from deepdisc.columns import ColumnMap
from deepdisc.errors import InputError, first_line
from deepdisc.tables import Units, read_table

Catalog = pd.DataFrame | str | os.PathLike
Columns = ColumnMap | str | os.PathLike | None

_PIXEL_UNITS = ("pix", "pixel", "pixels", "pix2", "pix^2")
_GALACTIC = (("glon", "glat"), ("l", "b"), ("gal_l", "gal_b"), ("gal_lon", "gal_lat"))


def load(
    source: Catalog,
    columns: Columns = None,
    *,
    label: str = "catalogue",
    band: str | None = None,
    unique: bool = True,
) -> tuple[pd.DataFrame, list[str]]:
    """Read a catalogue and check what every later step relies on.

    Args:
        source: a DataFrame, or a file in any form that `deepdisc.tables` knows.
        columns: a column map, the name of a shipped one, or its file; None: the columns have our names already.
        label: how messages call the catalogue: "predicted".
        band: what the photometry of a map for catalogues of one band is called.
        unique: whether an id that occurs twice is an error, or is noted.

    Returns:
        The catalogue, rows numbered from 0, and notes on what was converted or cannot be used.

    Raises:
        InputError: the file or map cannot be read, an id occurs twice, a declination is impossible, a unit is wrong.
    """
    if isinstance(source, pd.DataFrame):
        table, units, frame, where = source.reset_index(drop=True), {}, None, f"the {label} catalogue"
    else:
        table, units = read_table(source)
        frame, where = sky_frame(source), f"the {label} catalogue {source}"
    if columns is not None:
        column_map = columns if isinstance(columns, ColumnMap) else ColumnMap.load(columns)
        table = _mapped(table, units, column_map, band)
        frame = frame if column_map.sky_frame == "icrs" else None  # the map has converted them
    elif not isinstance(source, pd.DataFrame):
        table = _in_our_units(catalog.without_sentinels(table), units, where)
    if not len(table):  # a file without rows does not tell that its columns hold numbers
        table = table.astype({name: np.float64 for name in table if table[name].dtype.kind not in "iufb"})
    notes = []
    if frame is not None and {"ra", "dec"} <= set(table.columns):
        table = _to_icrs(table, frame)
        notes.append(f"positions of {where} were converted from {_frame_name(frame)} to ICRS, as its header says")
    check(table, where)
    repeated = _repeated(table, where)
    if repeated and unique:
        raise InputError(f"{repeated}; remove the copies, or leave the column out: what counts twice is scored twice")
    return table, notes + ([repeated] if repeated else []) + _unplaced(table, where)


def each(columns: Columns | Sequence[Columns], number: int) -> list[Columns]:
    """One column map for each of the catalogues: those given, in their order, and None for the rest.

    Raises:
        InputError: more maps than catalogues.
    """
    given = list(columns) if isinstance(columns, list | tuple) else [columns]
    if len(given) > number:
        raise InputError(
            f"{len(given)} column maps are given for {number} catalogues; give one for each, in their order"
        )
    return [item or None for item in given] + [None] * (number - len(given))


def _mapped(table: pd.DataFrame, units: Units, column_map: ColumnMap, band: str | None) -> pd.DataFrame:
    result = column_map.apply(table, units)
    if band is not None and f"mag_{band}" not in result:
        of_band = column_map.apply(table, units, bands=[band])
        result = pd.concat((result, of_band[[name for name in of_band if name not in result]]), axis=1)
    result["table_row"] = result.index.to_numpy(np.int64)
    result = result.reset_index(drop=True)
    if "catalogue_id" in result and "id" not in result:
        # Labels of segmentation maps are numbers; names stay text.
        numbers = pd.to_numeric(result["catalogue_id"], errors="coerce")
        if len(numbers) and (numbers == np.floor(numbers)).all():
            result["id"] = result["catalogue_id"].astype(np.int64)
    return result


# --------------------------------------------------------------------------------------------------------------- units
def _in_our_units(table: pd.DataFrame, units: Units, where: str) -> pd.DataFrame:
    """A table with our names, converted where the file states another unit than ours."""
    for name, stated in units.items():
        column = catalog.describe(name)
        if name not in table or column is None or not column.unit:
            continue
        if stated.lower() in _PIXEL_UNITS or (column.unit == "mag" and "mag" in stated.lower()):
            continue
        try:
            factor = u.Unit(stated).to(u.Unit(column.unit))
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{where}: column {name} has the unit {stated!r}, which cannot become {column.unit} "
                f"({first_line(error)}); give a column map (--columns) that states the unit or zero point"
            ) from error
        if factor != 1:
            table[name] = table[name].astype(np.float64) * factor
    return table


# -------------------------------------------------------------------------------------------------------------- frames
def sky_frame(path: str | os.PathLike) -> str | FK4 | FK5 | None:
    """The frame of sky positions that a FITS table's header states (RADESYS, EQUINOX), or None for ICRS or nothing."""
    text = str(path).partition("[")[0]
    if not text.lower().endswith((".fits", ".fit", ".fits.gz")) or not Path(text).is_file():
        return None
    from astropy.io import fits

    with fits.open(text) as file:
        headers = [hdu.header for hdu in file[1:2]] + [file[0].header]
    stated = {
        key: header[key] for header in reversed(headers) for key in ("RADESYS", "RADECSYS", "EQUINOX") if key in header
    }
    name = str(stated.get("RADESYS", stated.get("RADECSYS", ""))).strip().upper()
    equinox = stated.get("EQUINOX")
    if name.startswith("FK4") or (not name and equinox == 1950):
        return FK4(equinox=f"B{equinox or 1950}")
    if name.startswith("FK5"):
        return FK5(equinox=f"J{equinox or 2000}")
    return "galactic" if name.startswith("GAL") else None


def _frame_name(frame: str | FK4 | FK5) -> str:
    return frame if isinstance(frame, str) else f"{frame.name.upper()} of equinox {frame.equinox.value}"


def _to_icrs(table: pd.DataFrame, frame: str | FK4 | FK5) -> pd.DataFrame:
    sky = SkyCoord(table["ra"].to_numpy(float), table["dec"].to_numpy(float), unit="deg", frame=frame).icrs
    return table.assign(ra=sky.ra.deg, dec=sky.dec.deg)


# -------------------------------------------------------------------------------------------------------------- checks
def check(table: pd.DataFrame, where: str) -> None:
    """Refuse what no matching can be trusted with.

    Raises:
        InputError: positions are no numbers or impossible.
    """
    for name in ("x", "y", "ra", "dec", *catalog.BOX_COLUMNS, "redshift"):
        if name in table and table[name].dtype.kind not in "iufb":
            raise InputError(
                f"{where}: column {name} holds text, not numbers; write numbers, with nothing for missing ones"
            )
    if "dec" in table and (np.abs(table["dec"]) > 90).any():
        worst = table["dec"].abs().max()
        raise InputError(
            f"{where}: a declination of {worst:g}, beyond 90 degrees; are ra and dec exchanged, or the unit another? "
            "Missing positions must be NaN"
        )


def _repeated(table: pd.DataFrame, where: str) -> str | None:
    """Words on ids that occur more than once in a field; rows without an id do not count."""
    for name in ("id", "catalogue_id"):
        if name in table:
            place = [other for other in ("field", "tile") if other in table]
            known = table[name].notna() & (table[name].astype(str) != "")
            again = table[known].duplicated([*place, name])
            if again.any():
                value = table.loc[again.index[again][0], name]
                return f"{where}: {name} {value} occurs more than once, and so do {again.sum()} rows in all"
    return None


def _unplaced(table: pd.DataFrame, where: str) -> list[str]:
    """Notes on rows without a position, or with an impossible box."""
    notes = []
    for names in (("x", "y"), ("ra", "dec")):
        if set(names) <= set(table.columns):
            lost = int((~np.isfinite(table[list(names)].to_numpy(float)).all(1)).sum())
            if lost:
                notes.append(
                    f"{lost:,} of {len(table):,} rows of {where} have no {names[0]}, {names[1]}: they match nothing"
                )
    if set(catalog.BOX_COLUMNS) <= set(table.columns):
        x0, y0, x1, y1 = table[list(catalog.BOX_COLUMNS)].to_numpy(float).T
        turned = int(((x1 <= x0) | (y1 <= y0)).sum())
        if turned:
            notes.append(
                f"{turned:,} of {len(table):,} boxes of {where} end where they begin, or before (x_max <= x_min or "
                "y_max <= y_min): they overlap nothing"
            )
    if not {"ra", "dec"} & set(table.columns):
        lower = {str(name).lower() for name in table.columns}
        galactic = next((pair for pair in _GALACTIC if set(pair) <= lower), None)
        if galactic:
            notes.append(
                f"{where} has galactic positions ({', '.join(galactic)}) and no ra, dec: give a column map with "
                f"sky_frame: galactic and ra: {galactic[0]}, dec: {galactic[1]} to match on the sky"
            )
    return notes
