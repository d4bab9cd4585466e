"""Tables of other programs, read as they are: FITS, Parquet, CSV, ECSV, VOTable and text in columns.

Which column means what, and in which unit, is for `deepdisc.columns` to say.
"""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from deepdisc.errors import InputError, first_line, nearest

Units = dict[str, str]

_TEXT_SUFFIXES = (".txt", ".dat", ".cat", ".ascii", ".tab")
_EXTENSION = re.compile(r"(.*\S)\s*\[\s*([^\[\]]+?)\s*\]")
_SEXTRACTOR_LINE = re.compile(r"#\s+\d+\s+[A-Za-z_]\w*(\s|$)")


def read_table(source: str | os.PathLike) -> tuple[pd.DataFrame, Units]:
    """Read a table with its columns as the file names them.

    Args:
        source: path of a .fits, .parquet, .csv, .ecsv or VOTable (.vot, .xml) file, or of text in columns (.txt, .dat,
            .cat, .ascii: names in the first line or in the comment before the data, as EAZY and SExtractor write them);
            also compressed (.gz). `file.fits[KRON]` and `file.fits[2]` name an extension; default: the first table.

    Returns:
        The table, masked values as NaN; and the unit of each column whose unit the file states.

    Raises:
        InputError: the file is missing, of an unknown kind or unreadable, or lacks the extension.
    """
    path, extension = _split(os.fspath(source))
    if not path.is_file():
        raise InputError(f"no catalogue at {path}; give a .parquet, .fits, .ecsv, .csv, VOTable or text file")
    read = _reader(path)
    if extension is not None and read is not _read_fits:
        raise InputError(f"{source}: only FITS files have extensions; leave [{extension}] out")
    try:
        return read(path, extension)
    except InputError:
        raise
    # astropy and pandas raise what they like at damaged files.
    except (OSError, ValueError, TypeError, KeyError, IndexError, EOFError, pa.ArrowInvalid) as error:
        raise InputError(
            f"{path}: cannot be read as a catalogue: {first_line(error)}; is the file complete?"
        ) from error


def _split(text: str) -> tuple[Path, str | None]:
    match = _EXTENSION.fullmatch(text)
    if match is None or os.path.exists(text):
        return Path(text), None
    return Path(match.group(1)), match.group(2)


def _reader(path: Path) -> Callable[[Path, str | None], tuple[pd.DataFrame, Units]]:
    name = path.name.lower().removesuffix(".gz")
    for suffixes, reader in (
        ((".parquet", ".pq"), _read_parquet),
        ((".fits", ".fit"), _read_fits),
        ((".ecsv",), _read_ecsv),
        ((".csv",), _read_csv),
        ((".vot", ".votable", ".xml"), _read_votable),
        (_TEXT_SUFFIXES, _read_text),
    ):
        if name.endswith(suffixes):
            return reader
    raise InputError(
        f"{path}: unknown kind of catalogue; give a .parquet, .fits, .ecsv, .csv, VOTable (.vot, .xml) or text "
        f"({', '.join(_TEXT_SUFFIXES)}) file"
    )


def _read_parquet(path: Path, _: str | None) -> tuple[pd.DataFrame, Units]:
    table = pq.read_table(path)
    stated = {field.name: (field.metadata or {}).get(b"unit", b"").decode() for field in table.schema}
    return table.to_pandas(), {name: unit for name, unit in stated.items() if unit}


def _read_fits(path: Path, extension: str | None) -> tuple[pd.DataFrame, Units]:
    from astropy.io import fits
    from astropy.table import Table

    with fits.open(path) as file:
        tables = {hdu.name: hdu for hdu in file if isinstance(hdu, fits.BinTableHDU | fits.TableHDU)}
        if not tables:
            raise InputError(f"{path}: holds no table; is it an image?")
        if extension is None:
            hdu = next(iter(tables.values()))
        elif extension.isdigit():
            hdu = file[int(extension)]
        elif extension.upper() in tables:
            hdu = tables[extension.upper()]
        else:
            close = nearest(extension, tables)
            hint = f"; the nearest is {close}" if close else ""
            raise InputError(f"{path}: has no table {extension}, only {', '.join(map(str, tables))}{hint}")
        return _from_astropy(Table.read(hdu))


def _read_ecsv(path: Path, _: str | None) -> tuple[pd.DataFrame, Units]:
    from astropy.table import Table

    return _from_astropy(Table.read(path, format="ascii.ecsv"))


def _read_votable(path: Path, _: str | None) -> tuple[pd.DataFrame, Units]:
    from astropy.table import Table

    return _from_astropy(Table.read(path, format="votable"))


def _read_csv(path: Path, _: str | None) -> tuple[pd.DataFrame, Units]:
    return pd.read_csv(path, comment="#", skipinitialspace=True), {}


def _read_text(path: Path, _: str | None) -> tuple[pd.DataFrame, Units]:
    """Text in columns: SExtractor's ASCII_HEAD, names in the last fitting comment line, or names in the first line."""
    comments, first = _head(path)
    if any(_SEXTRACTOR_LINE.match(line) for line in comments):
        from astropy.table import Table

        return _from_astropy(Table.read(path, format="ascii.sextractor"))
    if not first:
        raise InputError(f"{path}: holds no row; is the file complete?")
    width = len(first.split())
    # EAZY's catalogues have the names and, below, the numbers of the filters: the first fitting line is the names.
    named = [words for words in (line.lstrip("#").split() for line in comments) if len(words) == width]
    if named:
        names, header = named[0], None
    else:
        names, header = None, 0
    frame = pd.read_csv(path, sep=r"\s+", comment="#", names=names, header=header)
    if names is None and all(_is_number(name) for name in frame.columns):
        raise InputError(f"{path}: its columns have no names; write them into the first line")
    return frame, {}


def _head(path: Path) -> tuple[list[str], str]:
    """The comment lines before the data, and the first line of data."""
    comments = []
    opened = gzip.open(path, "rt", errors="replace") if path.suffix == ".gz" else open(path, errors="replace")
    with opened as lines:
        for line in lines:
            if line.lstrip().startswith("#"):
                comments.append(line.strip())
            elif line.strip():
                return comments, line
    return comments, ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _from_astropy(table) -> tuple[pd.DataFrame, Units]:
    """An astropy table as native arrays; vectors become lists of arrays, positions name.ra and name.dec (ICRS)."""
    from astropy.coordinates import SkyCoord

    data, units = {}, {}
    for name in table.colnames:
        column = table[name]
        if isinstance(column, SkyCoord):
            data |= {f"{name}.ra": column.icrs.ra.deg, f"{name}.dec": column.icrs.dec.deg}
            units |= {f"{name}.ra": "deg", f"{name}.dec": "deg"}
            continue
        if column.unit is not None and str(column.unit):
            units[name] = str(column.unit)
        mask = np.asarray(column.mask) if getattr(column, "mask", None) is not None else np.zeros(0, bool)
        values = np.asarray(column.filled(column.fill_value) if mask.size else column)
        if values.dtype.kind == "S":
            values = np.char.decode(values, "utf-8", "replace")
        if mask.any() and values.dtype.kind in "iuf":
            values = values.astype(np.float64 if values.dtype.kind in "iu" else values.dtype)
            values[mask] = np.nan
        values = values.astype(values.dtype.newbyteorder("="))
        data[name] = list(values) if values.ndim > 1 else values
    return pd.DataFrame(data), units
