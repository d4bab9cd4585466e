"""Join two catalogues by position or outline: one table with both ids, how far apart, and what is doubtful.

Legend: A and B the two catalogues; a row of the table is a pair, or an object of one that has no partner in the other.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import pandas as pd

from deepdisc.errors import InputError
from deepdisc.evaluation.catalogues import Catalog, Columns, each, load
from deepdisc.evaluation.conventions import check_overlap, measure_offset
from deepdisc.evaluation.match import Matching, choose_criterion, match_rows
from deepdisc.evaluation.scoring import read_segmentation
from deepdisc.files import atomic_path
from deepdisc.matching import sky_vectors

KEEP = ("all", "matched", "a", "b")
_MEANING = {
    "row_a": ("", "row in catalogue A, from 0; missing: no partner"),
    "row_b": ("", "row in catalogue B, from 0; missing: no partner"),
    "id_a": ("", "id in catalogue A"),
    "id_b": ("", "id in catalogue B"),
    "quality": ("", "intersection over union, or 1 - distance / limit, of the pair"),
    "separation_arcsec": ("arcsec", "distance on the sky"),
    "separation_pix": ("pix", "distance in pixels"),
    "ambiguous_a": ("", "the object of A has another candidate in B within the limit"),
    "ambiguous_b": ("", "the object of B has another candidate in A within the limit"),
    "group": ("", "number of the blend: objects that hang together by candidates"),
    "group_n_a": ("", "objects of A in the group"),
    "group_n_b": ("", "objects of B in the group"),
}


def crossmatch(
    a: Catalog,
    b: Catalog,
    output: str | os.PathLike | None = None,
    *,
    columns: Columns | Sequence[Columns] = None,
    match_by: str | None = None,
    iou_threshold: float | None = None,
    max_distance_pix: float | None = None,
    max_distance_arcsec: float | None = None,
    segmentations: tuple | None = None,
    keep: str = "all",
    all_columns: bool = False,
) -> pd.DataFrame:
    """Match two catalogues one-to-one, with the largest total quality, and join them.

    Args:
        a: catalogue or its path.
        b: likewise.
        output: table to write: .parquet, .fits, .ecsv or .csv; None writes nothing.
        columns: column maps for `a` and `b`; see `evaluate`.
        match_by: as in `evaluate`; also the limits.
        iou_threshold: smallest intersection over union, default 0.5.
        max_distance_pix: largest distance in pixels, default 2.
        max_distance_arcsec: largest distance on the sky, default 1.
        segmentations: the two segmentation maps or their files, for "masks".
        keep: rows of the table: "all", "matched" pairs only, or all of "a" or "b" with their partners.
        all_columns: append the columns of both catalogues, with _a and _b at the end of their names.

    Returns:
        One row per pair or lone object, columns as in `_MEANING`, ids and separations where the catalogues have them.
        `attrs` has `criterion` (words), `n_a`, `n_b`, `matched`, `ambiguous_a`, `ambiguous_b`, `groups` (how many of
        n-m), `offset` (see `conventions.measure_offset`) and `notes`.

    Raises:
        InputError: unreadable catalogue, nothing to match by, no overlap.
    """
    if keep not in KEEP:
        raise InputError(f"keep is {keep!r}; choose one of {', '.join(KEEP)}")
    maps = each(columns, 2)
    (a, notes_a), (b, notes_b) = (
        load(part, how, label=name, unique=False)
        for part, how, name in zip((a, b), maps, ("first", "second"), strict=True)
    )
    outlines = None if segmentations is None else tuple(map(read_segmentation, segmentations))
    criterion = choose_criterion(
        [a], b, match_by, iou_threshold=iou_threshold, max_distance_pix=max_distance_pix,
        max_distance_arcsec=max_distance_arcsec, maps=outlines,
    )  # fmt: skip
    check_overlap(a, b, criterion)
    matching = match_rows(a, b, criterion)
    offset = measure_offset(a, b)
    table = join_table(a, b, matching, keep, all_columns)
    table.attrs = {
        "criterion": str(criterion),
        "n_a": len(a),
        "n_b": len(b),
        "matched": len(matching.pairs),
        "ambiguous_a": int(matching.ambiguous_pred.sum()),
        "ambiguous_b": int(matching.ambiguous_truth.sum()),
        "groups": matching.groups.counts(),
        "offset": offset,
        "notes": notes_a + notes_b + ([offset["warning"]] if offset["warning"] else []),
    }
    if output is not None:
        write_table(table, output)
    return table


def join_table(
    a: pd.DataFrame, b: pd.DataFrame, matching: Matching, keep: str = "all", all_columns: bool = False
) -> pd.DataFrame:
    """The table of `crossmatch`: pairs in the order of A, then lone objects of A, then those of B."""
    order = np.argsort(matching.pairs.pred)
    pair_a, pair_b = matching.pairs.pred[order], matching.pairs.truth[order]
    lone_a = np.flatnonzero(matching.partner_of_pred < 0) if keep in ("all", "a") else np.zeros(0, np.int64)
    lone_b = np.flatnonzero(matching.partner_of_truth < 0) if keep in ("all", "b") else np.zeros(0, np.int64)
    row_a = np.concatenate((pair_a, lone_a, np.full(len(lone_b), -1)))
    row_b = np.concatenate((pair_b, np.full(len(lone_a), -1), lone_b))
    n_lone = len(lone_a) + len(lone_b)
    table = pd.DataFrame({"row_a": _nullable(row_a), "row_b": _nullable(row_b)})
    for side, catalog, row in (("a", a, row_a), ("b", b, row_b)):
        name = next((name for name in ("catalogue_id", "id") if name in catalog), None)
        if name:
            table[f"id_{side}"] = _taken(catalog[name], row)
    table["quality"] = np.concatenate((matching.pairs.quality[order], np.full(n_lone, np.nan)))
    for name, distance in _separations(a, b, pair_a, pair_b).items():
        table[name] = np.concatenate((distance, np.full(n_lone, np.nan)))
    table["ambiguous_a"] = np.where(row_a >= 0, _at(matching.ambiguous_pred, row_a), False)
    table["ambiguous_b"] = np.where(row_b >= 0, _at(matching.ambiguous_truth, row_b), False)
    groups = matching.groups
    table["group"] = np.where(row_a >= 0, _at(groups.pred, row_a), _at(groups.truth, row_b))
    for side, name in (("a", "n_pred"), ("b", "n_truth")):
        table[f"group_n_{side}"] = _at(groups.table[name].to_numpy(), table["group"].to_numpy())
    if not all_columns:
        return table
    parts = [
        pd.DataFrame({f"{name}_{side}": _taken(catalog[name], row) for name in catalog})
        for side, catalog, row in (("a", a, row_a), ("b", b, row_b))
    ]
    extra = pd.concat(parts, axis=1)
    return pd.concat((table, extra[[name for name in extra if name not in table]]), axis=1)


def _at(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`values[rows]`; whatever where the row is -1."""
    return values[rows] if len(values) else np.zeros(len(rows), values.dtype)


def _nullable(rows: np.ndarray) -> pd.Series:
    return pd.Series(rows, dtype="Int64").mask(rows < 0)


def _taken(column: pd.Series, rows: np.ndarray) -> pd.Series:
    """A column's values at these rows, missing where the row is -1; whole numbers stay whole."""
    if column.dtype.kind in "iu":
        column = column.astype("Int64")
    elif column.dtype.kind == "b":
        column = column.astype("boolean")
    return column.reindex(np.where(rows < 0, len(column), rows)).reset_index(drop=True)


def _separations(a: pd.DataFrame, b: pd.DataFrame, row_a: np.ndarray, row_b: np.ndarray) -> dict[str, np.ndarray]:
    """Distances of the pairs, of each kind that both catalogues allow."""
    found = {}
    if {"ra", "dec"} <= set(a.columns) & set(b.columns):
        here, there = (
            sky_vectors(part["ra"].to_numpy()[row], part["dec"].to_numpy()[row])
            for part, row in ((a, row_a), (b, row_b))
        )
        chord = np.linalg.norm(here - there, axis=1)
        found["separation_arcsec"] = np.degrees(2 * np.arcsin(np.clip(chord / 2, 0, 1))) * 3600
    if {"x", "y"} <= set(a.columns) & set(b.columns):
        dx, dy = (a[name].to_numpy(float)[row_a] - b[name].to_numpy(float)[row_b] for name in ("x", "y"))
        found["separation_pix"] = np.hypot(dx, dy)
    return found


# ------------------------------------------------------------------------------------------------------------- writing
def write_table(table: pd.DataFrame, path: str | os.PathLike) -> None:
    """Write the joined table: .parquet, .fits, .ecsv or .csv, with units and meanings where the format has them.

    Raises:
        InputError: unknown kind of file, or it cannot be written.
    """
    from astropy.table import Table

    name = os.fspath(path).lower()
    kinds = {".parquet": None, ".fits": "fits", ".ecsv": "ascii.ecsv", ".csv": "ascii.csv"}
    suffix = next((suffix for suffix in kinds if name.endswith(suffix)), None)
    if suffix is None:
        raise InputError(f"cannot write {path}: unknown kind of table; call it .parquet, .fits, .ecsv or .csv")
    with atomic_path(path) as temporary:
        if suffix == ".parquet":
            _write_parquet(table, temporary)
        elif suffix == ".csv":
            table.to_csv(temporary, index=False)
        else:
            written = Table.from_pandas(_plain(table))
            for column in written.colnames:
                unit, meaning = _MEANING.get(column, ("", ""))
                written[column].unit, written[column].description = unit or None, meaning or None
            written.write(temporary, format=kinds[suffix])


def _write_parquet(table: pd.DataFrame, path: str | os.PathLike) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrow = pa.Table.from_pandas(table.copy(deep=False), preserve_index=False)
    fields = []
    for item in arrow.schema:
        unit, meaning = _MEANING.get(item.name, ("", ""))
        fields.append(item.with_metadata({"unit": unit, "description": meaning}) if meaning else item)
    pq.write_table(arrow.cast(pa.schema(fields)), path, compression="zstd")


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """Without columns of lists, which neither FITS nor ECSV take from pandas."""
    lists = [name for name in table if table[name].map(lambda value: isinstance(value, list | np.ndarray)).any()]
    return table.drop(columns=lists)
