"""Catalogues: the schema as data, the table of flags, and reading and writing in Parquet and FITS.

Every column that the program writes is described here once: name, type, unit, meaning. Head authors add rows to
`SCHEMA`. Missing values are NaN; the sentinels of other programs (-99, 99, ...) are recognised when a file is read.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import fitsio
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from deepdisc.errors import InputError, nearest
from deepdisc.files import atomic_path
from deepdisc.tables import read_table

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Column:
    """One column: its name, NumPy type, unit (astropy/FITS spelling, '' for none) and meaning.

    `per_component` marks a list column that holds one value per mixture component.
    """

    name: str
    dtype: str
    unit: str
    description: str
    per_component: bool = False


@dataclass(frozen=True)
class Flag:
    """One bit of the `flags` column."""

    bit: int
    name: str
    description: str

    @property
    def value(self) -> int:
        """The bit's integer value."""
        return 1 << self.bit


FLAGS = {
    flag.name: flag
    for flag in (
        Flag(0, "EDGE", "the outline touches the mosaic's edge"),
        Flag(1, "SEAM", "larger than the tiles' overlap: put together from pieces, or cut off at a border"),
        Flag(2, "MASKED", "some pixels of the outline are masked in at least one band"),
        Flag(3, "NO_COVERAGE", "at least one band has no valid pixel in the outline: what it would tell is NaN"),
        Flag(4, "BLENDED", "the outline overlaps or touches another object's"),
        Flag(5, "SATURATED", "contains saturated pixels; predicted only where the mosaic tells their level"),
        Flag(6, "NO_REDSHIFT", "no redshift was estimated"),
        Flag(7, "FAINT", "truth only: below the signal-to-noise that training labels require"),
        Flag(8, "EXTRAPOLATION", "unlike the objects that the model was calibrated with: novelty above 1"),
        Flag(9, "UNPHYSICAL", "a flux below 0 by 5 errors, a shear of 1 or more, or an impossible colour"),
    )
}


def flag_names(value: int) -> list[str]:
    """The names of the bits set in a `flags` value."""
    return [flag.name for flag in FLAGS.values() if int(value) & flag.value]


_COLUMNS = (
    Column("id", "int64", "", "number of the object, = its label in segmentation.fits"),
    Column("x", "float64", "pix", "centroid in x, 0-based, pixel centres at integers"),
    Column("y", "float64", "pix", "centroid in y, 0-based, pixel centres at integers"),
    Column("ra", "float64", "deg", "right ascension, ICRS; NaN without a WCS"),
    Column("dec", "float64", "deg", "declination, ICRS; NaN without a WCS"),
    Column("x_min", "float32", "pix", "left edge of the box; pixel i covers [i, i+1)"),
    Column("y_min", "float32", "pix", "lower edge of the box; pixel i covers [i, i+1)"),
    Column("x_max", "float32", "pix", "right edge of the box; pixel i covers [i, i+1)"),
    Column("y_max", "float32", "pix", "upper edge of the box; pixel i covers [i, i+1)"),
    Column("score", "float32", "", "detection score, 0 to 1"),
    Column("class_id", "int16", "", "index of the class"),
    Column("class_name", "str", "", "name of the class"),
    Column("area_pix", "int32", "pix2", "number of pixels inside the outline"),
    Column("flags", "int32", "", "bit mask: " + ", ".join(f"{flag.value}={flag.name}" for flag in FLAGS.values())),
    Column("ebv", "float32", "mag", "Milky Way reddening E(B-V) used for the object"),
    Column("z_mode", "float32", "", "redshift of highest probability density"),
    Column("z_mean", "float32", "", "expected redshift"),
    Column("z_median", "float32", "", "median of the redshift PDF"),
    Column("z_q025", "float32", "", "2.5 percent quantile of the redshift PDF"),
    Column("z_q160", "float32", "", "16 percent quantile of the redshift PDF"),
    Column("z_q840", "float32", "", "84 percent quantile of the redshift PDF"),
    Column("z_q975", "float32", "", "97.5 percent quantile of the redshift PDF"),
    Column("z_odds", "float32", "", "probability within 0.06 (1 + z_mode) of z_mode"),
    Column("z_weights", "float32", "", "weights of the PDF's components", per_component=True),
    Column("z_means", "float32", "", "means of the PDF's components before truncation at z_lower", per_component=True),
    Column("z_sigmas", "float32", "", "standard deviations of the components before truncation", per_component=True),
    Column("z_lower", "float32", "", "bound below which the PDF is zero; NaN for none"),
    Column("g1", "float32", "", "reduced shear, positive along North-South"),
    Column("g2", "float32", "", "reduced shear, positive from South-West to North-East"),
    Column("g1_err", "float32", "", "1-sigma error of g1, of the single galaxy"),
    Column("g2_err", "float32", "", "1-sigma error of g2, of the single galaxy"),
    Column("g12_cov", "float32", "", "covariance of the errors of g1 and g2"),
    Column("novelty", "float32", "", "distance from the calibration set in the features, 1 = 99.9 percent of it"),
    # Truth catalogues have these as well.
    Column("tile", "int32", "", "tile of the data set that holds the object"),
    Column("field", "str", "", "field that holds the object"),
    Column("redshift", "float32", "", "true or spectroscopic redshift; NaN where unknown or a star"),
    Column("snr", "float32", "", "total signal-to-noise over all bands, matched to the object's own profile"),
    Column("hlr_arcsec", "float32", "arcsec", "half-light radius before the PSF"),
    Column("blendedness", "float32", "", "share of the light inside its own profile that belongs to neighbours"),
    Column("neighbours", "int32", "", "number of labelled objects whose outlines overlap or touch this one's"),
    Column("neighbour_arcsec", "float32", "arcsec", "distance to the nearest other labelled object; NaN for none"),
    Column("kappa", "float32", "", "convergence"),
    Column("pair_id", "int64", "", "the same for the two objects of a ring pair"),
    Column("psf_e1", "float32", "", "ellipticity (a-b)/(a+b) of the PSF, mean of the bands, frame of g1"),
    Column("psf_e2", "float32", "", "ellipticity (a-b)/(a+b) of the PSF, mean of the bands, frame of g2"),
    Column("e1", "float32", "", "ellipticity (a-b)/(a+b) of the lensed galaxy before the PSF, frame of g1"),
    Column("e2", "float32", "", "ellipticity (a-b)/(a+b) of the lensed galaxy before the PSF, frame of g2"),
    Column("angle_rad", "float32", "rad", "angle of the major axis before lensing, from +x to +y"),
    Column("disk_hlr_arcsec", "float32", "arcsec", "half-light radius sqrt(ab) of the disc before lensing"),
    Column("disk_axis_ratio", "float32", "", "axis ratio b/a of the disc before lensing"),
    Column("disk_n", "float32", "", "Sersic index of the disc"),
    Column("bulge_hlr_arcsec", "float32", "arcsec", "half-light radius sqrt(ab) of the bulge before lensing"),
    Column("bulge_axis_ratio", "float32", "", "axis ratio b/a of the bulge before lensing"),
    Column("bulge_n", "float32", "", "Sersic index of the bulge"),
    Column("knot_share", "float32", "", "share of the disc's light in star-forming knots"),
    Column("knots", "int16", "", "number of star-forming knots"),
    Column("stamp", "int32", "", "row of the catalogue of real galaxies whose picture it is; -1 for none"),
    Column("catalogue", "str", "", "catalogue of the recipe that lists the object; empty for a mere detection"),
    Column("catalogue_id", "str", "", "number or name of the object in that catalogue"),
    Column("redshift_source", "str", "", "where the redshift comes from; empty without one"),
    Column("population_row", "int64", "", "row of the population table the object was drawn from"),
)
SCHEMA = {column.name: column for column in _COLUMNS}
# The longer of two prefixes comes first.
_PREFIXED = {
    "flux_weights_": Column("", "float32", "", "weights of the components of the flux PDF in band {}", True),
    "flux_means_": Column("", "float32", "nJy", "means of the components of the flux PDF in band {}", True),
    "flux_sigmas_": Column("", "float32", "nJy", "standard deviations of the components in band {}", True),
    "flux_lower_": Column("", "float32", "nJy", "bound below which the flux PDF in band {} is zero; NaN for none"),
    "flux_": Column("", "float64", "nJy", "total flux in band {}; of a prediction the median of its PDF"),
    "fluxerr_": Column("", "float64", "nJy", "1-sigma error of the flux in band {}"),
    "mag_": Column("", "float64", "mag", "total AB magnitude in band {}; NaN where the flux is not positive"),
    "magerr_": Column("", "float64", "mag", "1-sigma error of the magnitude in band {}"),
    "snr_": Column("", "float32", "", "signal-to-noise of the flux in band {}"),
    "color_": Column("", "float32", "mag", "AB magnitude in the first less that in the second of the bands {}"),
    "colorerr_": Column("", "float32", "mag", "1-sigma error of the colour of the bands {}"),
    "bulge_share_": Column("", "float32", "", "share of the flux in the bulge in band {}"),
}
POSITION_COLUMNS = ("x", "y")
BOX_COLUMNS = ("x_min", "y_min", "x_max", "y_max")


def describe(name: str) -> Column | None:
    """The schema's row for a column; per-band columns (`flux_r`) are described by their prefix; None if unknown."""
    if name in SCHEMA:
        return SCHEMA[name]
    for prefix, column in _PREFIXED.items():
        if name.startswith(prefix) and len(name) > len(prefix):
            return replace(column, name=name, description=column.description.format(name[len(prefix) :]))
    return None


def validate(catalog: pd.DataFrame, required: Iterable[str], source: str = "catalogue") -> None:
    """Check that the columns exist, ids are unique, positions finite and boxes not inverted.

    Raises:
        InputError: names the catalogue, the column, the first offending row and the remedy.
    """
    for name in required:
        if name not in catalog.columns:
            guess = nearest(name, catalog.columns)
            hint = f"; the nearest is {guess!r}: rename it" if guess else ""
            raise InputError(f"{source}: column {name!r} is missing; there are {', '.join(catalog.columns)}{hint}")
    if "id" in catalog.columns and catalog["id"].duplicated().any():
        raise InputError(f"{source}: id {catalog['id'][catalog['id'].duplicated()].iloc[0]} occurs more than once")
    for name in (*POSITION_COLUMNS, *BOX_COLUMNS):
        if name in catalog.columns and len(catalog):
            bad = ~np.isfinite(catalog[name].to_numpy(dtype=float))
            if bad.any():
                row = int(np.argmax(bad))
                raise InputError(f"{source}: {name} is not finite in row {row}; remove the row or mend it")
    if all(name in catalog.columns for name in BOX_COLUMNS) and len(catalog):
        x0, y0, x1, y1 = (catalog[name].to_numpy(dtype=float) for name in BOX_COLUMNS)
        bad = (x1 <= x0) | (y1 <= y0)
        if bad.any():
            raise InputError(
                f"{source}: the box of row {int(np.argmax(bad))} is empty or inverted; boxes are x_min, y_min, x_max, "
                "y_max in pixel-edge coordinates"
            )


# ------------------------------------------------------------------------------------------------------- writing
def arrow_schema(names: Sequence[str], metadata: Mapping[str, object] | None = None) -> pa.Schema:
    """The Arrow schema of these columns, with unit and meaning as field metadata and `metadata` as JSON."""
    fields = []
    for name in names:
        column = describe(name)
        if column is None:
            raise KeyError(f"column {name!r} is not in the schema; add it to deepdisc/catalog.py")
        kind = pa.string() if column.dtype == "str" else pa.from_numpy_dtype(np.dtype(column.dtype))
        kind = pa.list_(kind) if column.per_component else kind
        fields.append(pa.field(name, kind, metadata={"unit": column.unit, "description": column.description}))
    about = {"deepdisc": json.dumps({"schema_version": SCHEMA_VERSION, **(metadata or {})})}
    return pa.schema(fields, metadata=about)


class ParquetStream:
    """Write a catalogue piece by piece, one row group each; nothing is at `path` until it is complete.

    Example:
        with ParquetStream(path, ["id", "x", "y"], {"bands": ["g", "r"]}) as stream:
            stream.append(frame)

    Raises:
        InputError: the file cannot be written; nothing is left of it.
    """

    def __init__(self, path: str | os.PathLike, columns: Sequence[str], metadata: Mapping[str, object] | None = None):
        self.schema = arrow_schema(columns, metadata)
        self.rows = 0
        self._path = path

    def __enter__(self) -> ParquetStream:
        # The file's end is written when the writer is closed: that, too, may fail, and must before the renaming.
        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self._path))
            self._writer = stack.enter_context(pq.ParquetWriter(temporary, self.schema, compression="zstd"))
            self._open = stack.pop_all()
        return self

    def append(self, frame: pd.DataFrame) -> None:
        """Append rows; the frame must have the stream's columns."""
        self._writer.write_table(to_arrow(frame, self.schema))
        self.rows += len(frame)

    def __exit__(self, kind, error, trace) -> bool | None:
        return self._open.__exit__(kind, error, trace)


def to_arrow(frame: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    """The frame's columns in the schema's order and types; list columns may be (N, K) arrays, one per row."""
    arrays = []
    for field in schema:
        values = frame[field.name]
        if pa.types.is_list(field.type):
            arrays.append(pa.array([np.asarray(row, dtype=np.float32) for row in values], type=field.type))
        elif pa.types.is_string(field.type):
            arrays.append(pa.array([str(value) for value in values], type=field.type))
        else:
            arrays.append(pa.array(values.to_numpy(), type=field.type, from_pandas=False))
    return pa.Table.from_arrays(arrays, schema=schema)


def write_parquet(frame: pd.DataFrame, path: str | os.PathLike, metadata: Mapping[str, object] | None = None) -> None:
    """Write a whole catalogue; every column must be in the schema."""
    with ParquetStream(path, list(frame.columns), metadata) as stream:
        stream.append(frame)


def parquet_to_fits(source: str | os.PathLike, target: str | os.PathLike, rows_per_chunk: int = 50_000) -> None:
    """Copy a Parquet catalogue to a FITS binary table in pieces, units and meanings included."""
    parquet = pq.ParquetFile(source)
    schema = parquet.schema_arrow
    lengths = _fixed_lengths(parquet, schema)
    with atomic_path(target) as temporary, fitsio.FITS(str(temporary), "rw", clobber=True) as fits:
        dtype = _structured_dtype(schema, lengths)
        units = [(field.metadata or {}).get(b"unit", b"").decode() for field in schema]
        fits.create_table_hdu(dtype=dtype, units=units, extname="CATALOG")
        for i, field in enumerate(schema, start=1):
            text = (field.metadata or {}).get(b"description", b"").decode()
            fits[-1].write_key(f"TCOMM{i}", text[:68])
        for key, value in json.loads((schema.metadata or {}).get(b"deepdisc", b"{}")).items():
            if isinstance(value, str | int | float | bool):
                fits[-1].write_key(f"HIERARCH deepdisc {key}", value)
        for batch in parquet.iter_batches(batch_size=rows_per_chunk):
            rows = np.zeros(batch.num_rows, dtype=dtype)
            for field, column in zip(schema, batch.columns, strict=True):
                if pa.types.is_list(field.type):
                    flat = column.flatten().to_numpy(zero_copy_only=False)
                    rows[field.name] = flat.reshape(batch.num_rows, -1) if len(flat) else 0
                elif pa.types.is_string(field.type):
                    rows[field.name] = np.array([str(value or "").encode() for value in column.to_pylist()])
                else:
                    rows[field.name] = column.to_numpy(zero_copy_only=False)
            if len(rows):
                fits[-1].append(rows)


def _fixed_lengths(parquet: pq.ParquetFile, schema: pa.Schema) -> dict[str, int]:
    """Length of each list column (constant over rows) and of the longest string of each text column."""
    lengths = {field.name: 1 for field in schema if pa.types.is_list(field.type) or pa.types.is_string(field.type)}
    for batch in parquet.iter_batches(columns=list(lengths), batch_size=50_000) if lengths else ():
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if pa.types.is_list(column.type):
                longest = int(column.value_lengths().to_numpy(zero_copy_only=False).max()) if len(column) else 1
            else:
                longest = max((len(str(value or "").encode()) for value in column.to_pylist()), default=1)
            lengths[name] = max(lengths[name], longest)
    return lengths


def _structured_dtype(schema: pa.Schema, lengths: Mapping[str, int]) -> np.dtype:
    fields = []
    for field in schema:
        if pa.types.is_string(field.type):
            fields.append((field.name, f"S{lengths[field.name]}"))
        elif pa.types.is_list(field.type):
            fields.append((field.name, np.dtype(field.type.value_type.to_pandas_dtype()), (lengths[field.name],)))
        else:
            fields.append((field.name, np.dtype(field.type.to_pandas_dtype())))
    return np.dtype(fields)


# ------------------------------------------------------------------------------------------------------- reading
_SENTINELS = (-99.0, 99.0, -999.0, 999.0, -9999.0)
# Positions and indices may rightly have these values; a measured magnitude, flux error or redshift may not.
_MEASURED = ("mag", "redshift", "z_", "zspec", "zphot", "flux", "color", "snr", "hlr")


def read(path: str | os.PathLike) -> pd.DataFrame:
    """Read a catalogue in any form that `deepdisc.tables` knows. Sentinels in measured columns become NaN.

    Raises:
        InputError: the file is missing, of an unknown kind, or unreadable.
    """
    return without_sentinels(read_table(path)[0])


def without_sentinels(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with NaN in measured columns where other programs write -99, 99, ..."""
    for name in frame.columns:
        values = frame[name]
        if name.lower().startswith(_MEASURED) and values.dtype.kind == "f":
            frame[name] = values.where(~values.isin(_SENTINELS))
    return frame


def metadata(path: str | os.PathLike) -> dict:
    """The metadata (bands, model, ...) of a Parquet catalogue written by this program; {} otherwise."""
    if not str(path).endswith(".parquet"):
        return {}
    about = pq.read_schema(path).metadata or {}
    return json.loads(about.get(b"deepdisc", b"{}"))
