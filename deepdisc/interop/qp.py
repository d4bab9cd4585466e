"""PDFs to and from qp, the container for one-dimensional PDFs of RAIL and the LSST Dark Energy Science Collaboration.

Without a bound, a `Mixture` is qp's `mixmod`: nothing is lost either way. qp has no truncated mixtures: with a bound,
the densities go out as `interp`, values on one grid for all objects, because that is the form that RAIL and
`deepdisc.evaluation` read without a further approximation. What is lost: the components (such a file does not come back
as a `Mixture`), the probability above the grid (1e-6 at most), and, of PDFs narrower than the grid's spacing, their
shape. (qp gives the CDF of a density that jumps at the bound as not quite 0 there; beyond, it is right.)

Never use `mean()`, `std()` and `rvs()` of qp's `mixmod` (wrong or failing in qp 1.1): those of `Mixture` are exact.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from deepdisc.errors import InputError, require_extra
from deepdisc.evaluation.pdf_columns import MIXTURE_COLUMNS, ensemble_columns, read_ensemble, read_mixtures
from deepdisc.mixture import Mixture

if TYPE_CHECKING:
    import qp

_GRID_POINTS = 1001
_OBJECTS_OF_GRID = 1000
_ABOVE = 1e-6  # probability above the grid


def to_qp(mixture: Mixture, ids: Sequence[int] | None = None, grid: np.ndarray | None = None) -> qp.Ensemble:
    """A qp ensemble of N PDFs; `ensemble.write_to("x.hdf5")` makes a file of it.

    Args:
        mixture: batch shape (N,), of one quantity.
        ids: (N,) identifiers, stored as the ensemble's ancillary `id`; `deepdisc evaluate` joins catalogues by them.
        grid: (G,) increasing values for densities with a bound, beginning at the bound; by default 1001, evenly and
            where the PDFs lie.

    Raises:
        InputError: qp is not installed, the mixture has no single batch axis, or `ids` or `grid` do not fit it.
    """
    qp = require_extra("qp", "pz")
    if len(mixture.batch_shape) != 1:
        raise InputError(
            f"PDFs of shape {tuple(mixture.batch_shape)}: an ensemble is one list; take one band at a time"
        )
    if ids is not None and len(ids) != len(mixture):
        raise InputError(f"{len(ids)} ids for {len(mixture)} PDFs; give one each")
    mixture = mixture.detach().to("cpu").to(torch.float64)
    ancillary = None if ids is None else {"id": np.asarray(ids)}
    if mixture.lower is None:
        parts = mixture.weights, mixture.component_mean, mixture.component_sigma
        data = {name: part.numpy() for name, part in zip(("weights", "means", "stds"), parts, strict=True)}
        return qp.Ensemble(qp.mixmod, data=data, ancil=ancillary)
    grid = _grid(mixture) if grid is None else _checked(grid, mixture.lower)
    density = mixture[:, None].prob(torch.as_tensor(grid)).numpy()
    return qp.Ensemble(qp.interp, data={"xvals": grid, "yvals": density}, ancil=ancillary)


def _checked(grid: np.ndarray, lower: float) -> np.ndarray:
    grid = np.asarray(grid, np.float64)
    if grid.ndim != 1 or len(grid) < 2 or not (np.diff(grid) > 0).all() or grid[0] != lower:
        raise InputError(
            f"grid: needs increasing values that begin at the bound {lower:g}, as np.linspace({lower:g}, ...)"
        )
    return grid


def _grid(mixture: Mixture) -> np.ndarray:
    """Half of the points evenly from the bound to where nothing is left, half at quantiles of objects chosen evenly."""
    if not len(mixture):
        return np.linspace(mixture.lower, mixture.lower + 1, _GRID_POINTS)
    top = float(mixture.quantile(1 - _ABOVE).max())
    even = np.linspace(mixture.lower, top, _GRID_POINTS // 2 + 1)
    rows = np.unique(np.linspace(0, len(mixture) - 1, _OBJECTS_OF_GRID).astype(int))
    each = max(_GRID_POINTS // len(rows), 25)
    quantiles = mixture[torch.as_tensor(rows)].quantile((torch.arange(each)[:, None] + 0.5).double() / each)
    pooled = np.quantile(quantiles.numpy(), np.linspace(0, 1, _GRID_POINTS - len(even)))
    return np.unique(np.concatenate((even, pooled)))


def from_qp(source: qp.Ensemble | str | os.PathLike) -> Mixture:
    """The mixtures of a qp ensemble of `mixmod`, or of the file of one; without a bound, in float64.

    Raises:
        InputError: qp is not installed, the file cannot be read, the PDFs are of another form, or some are impossible.
    """
    columns = ensemble_columns(read_ensemble(source))
    if not set(MIXTURE_COLUMNS) <= set(columns):
        raise InputError(
            "these PDFs are not Gaussian mixtures (qp's `mixmod`); `deepdisc evaluate` reads them as they are"
        )
    found = read_mixtures(pd.DataFrame(columns), MIXTURE_COLUMNS, "z_lower")
    if not found.usable.all():
        raise InputError(f"{int((~found.usable).sum())} of {len(found.usable)} PDFs: {', '.join(found.excluded)}")
    return found.pdfs.mixture
