"""Labels of a data set's objects: which columns of the truth they are, in which frame and range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from deepdisc import catalog
from deepdisc.data.band import celestial_wcs
from deepdisc.errors import InputError, first_line
from deepdisc.sky import PixelGrid

Columns = str | Sequence[str]
Truth = Mapping[str, np.ndarray]


def listed(columns: Columns) -> list[str]:
    """The names of one column, or of several."""
    return [columns] if isinstance(columns, str) else list(columns)


def values(truth: Truth, columns: Columns) -> np.ndarray:
    """(N,) values of a column, (N, k) of several."""
    return truth[columns] if isinstance(columns, str) else np.stack([truth[name] for name in columns], axis=1)


def turned_to_pixels(
    truth: Truth, pairs: Mapping[str, Sequence[str]], tile: Path, pixel_scale_arcsec: float
) -> dict[str, np.ndarray]:
    """Spin-2 labels along the pixel axes of a tile, (N, 2) each; NaN where the tile has no WCS.

    Args:
        truth: of the tile, with x, y and the columns.
        pairs: label -> two columns in sky orientation; see `deepdisc.sky`.
        tile: its file.
        pixel_scale_arcsec: of the data set.

    Raises:
        InputError: the file cannot be read.
    """
    if not pairs:
        return {}
    try:
        wcs = celestial_wcs(fits.getheader(tile, "IMAGE"))
    except (OSError, KeyError) as error:
        raise InputError(f"{tile}: cannot be read: {first_line(error)}; prepare it anew") from error
    grid, (x, y) = PixelGrid((0, 0), pixel_scale_arcsec, wcs), (truth[name] for name in catalog.POSITION_COLUMNS)
    return {
        label: np.stack(grid.shear_to_pixel(x, y, *(truth[name] for name in pair)), axis=1)
        for label, pair in pairs.items()
    }


def check_ranges(
    ranges: Mapping[str, tuple[float, float]],
    labels: Mapping[str, Columns],
    truths: Mapping[Any, Truth],
    root: Path,
) -> None:
    """Refuse labels out of their range.

    Args:
        ranges: label -> (lowest, highest); missing values (NaN) are in every range.
        labels: label -> its columns.
        truths: tile -> truth.
        root: of the data set, for messages.

    Raises:
        InputError: names the first such object, its tile and value; or a range is none, or of no label.
    """
    for label, (low, high) in ranges.items():
        if label not in labels:
            raise InputError(f"ranges: {label!r} is no label; the labels are {', '.join(labels) or 'none'}")
        if not low < high:
            raise InputError(f"ranges: {label} is ({low}, {high}); give its lowest and highest value")
        for tile, truth in truths.items():
            for name in listed(labels[label]):
                outside = np.isfinite(truth[name]) & ~((truth[name] >= low) & (truth[name] <= high))
                if outside.any():
                    first = int(outside.argmax())
                    raise InputError(
                        f"data set {root}: {name} of object {truth['id'][first]} in tile {tile} is "
                        f"{truth[name][first]:g}, outside of the range {low:g} to {high:g} of label {label!r}; "
                        "correct the truth, or the range"
                    )
