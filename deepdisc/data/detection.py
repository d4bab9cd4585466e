"""Classical detection and deblending on a stack of bands, by sep or photutils (extra `classical`).

The stack is the inverse-variance-weighted sum of the bands in units of its own noise. What a threshold means does
not depend on how well the noise maps are scaled: the stack's sky level and scatter are measured and taken out
(`noise: stated` believes the maps instead, for stamps that have no sky).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pandas as pd
from scipy import ndimage

from deepdisc.data.keys import check_choice, check_positive
from deepdisc.data.mosaic import Mosaic
from deepdisc.data.noise import blocks, estimate_mesh
from deepdisc.errors import InputError, require_extra

METHODS = ("sep", "photutils")
NOISE = ("measured", "stated")
_FWHM_IN_SIGMA = 2.354820


@dataclass(frozen=True)
class Detect:
    """How objects are found; the key `detect` of a recipe.

    Attributes:
        method: "sep" (SExtractor's algorithms, Bertin & Arnouts 1996) or "photutils".
        bands: of the stack; None for all.
        threshold: of a pixel of the smoothed stack, in its sigma. With 5 pixels, 4 lets 0.4 objects pass in a million
            pixels of white noise, 3.5 lets 10 and 3 lets 75.
        min_area_pix: fewest pixels of an object.
        smooth_fwhm_pix: of the Gaussian the stack is smoothed with; 0 for none. About the seeing is best.
        deblend_levels: number of levels between threshold and peak that are tried.
        deblend_contrast: smallest share of the light that makes a branch an object; 1 never deblends.
        noise: "measured" or "stated".
    """

    method: str = "sep"
    bands: list | None = None
    threshold: float = 4.0
    min_area_pix: int = 5
    smooth_fwhm_pix: float = 3.0
    deblend_levels: int = 32
    deblend_contrast: float = 0.005
    noise: str = "measured"

    def __post_init__(self) -> None:
        check_choice(self.method, METHODS, "detect: method")
        check_choice(self.noise, NOISE, "detect: noise")
        check_positive(self.threshold, "detect: threshold")
        check_positive(self.min_area_pix, "detect: min_area_pix")
        check_positive(self.deblend_levels, "detect: deblend_levels")
        if not (0 <= self.deblend_contrast <= 1 and self.smooth_fwhm_pix >= 0):
            raise InputError(
                f"detect: deblend_contrast={self.deblend_contrast} must be 0 to 1, "
                f"smooth_fwhm_pix={self.smooth_fwhm_pix} at least 0"
            )


def detect(significance: np.ndarray, bad: np.ndarray, settings: Detect) -> np.ndarray:
    """Find objects in a stack.

    Args:
        significance: (height, width) float32, see `stack`.
        bad: (height, width) bool, where there are no data.
        settings: how.

    Returns:
        (height, width) int32: 0 = background, objects numbered from 1.

    Raises:
        InputError: the library is missing.
    """
    library = require_extra(settings.method, "classical")
    if settings.method == "photutils" and settings.deblend_contrast < 1:
        require_extra("skimage", "classical")  # photutils deblends with it
    find = _find_sep if settings.method == "sep" else _find_photutils
    return find(library, significance, bad, settings).astype(np.int32)


def stack(mosaic: Mosaic, settings: Detect) -> tuple[np.ndarray, np.ndarray]:
    """The stack in units of its noise, float32 (height, width), 0 where no band has data; and where that is."""
    chosen = mosaic if settings.bands is None else mosaic.select(settings.bands)
    height, width = mosaic.shape
    significance, bad = np.zeros((height, width), np.float32), np.ones((height, width), bool)
    for _, _, y0, x0, y1, x1 in blocks(mosaic.shape, 1024):
        cutout = chosen.read(y0, x0, y1, x1)
        weight = np.where(cutout.mask, 0, 1 / cutout.variance)
        total = weight.sum(axis=0)
        known = total > 0
        summed = (weight * cutout.image).sum(axis=0)
        significance[y0:y1, x0:x1][known] = (summed[known] / np.sqrt(total[known])).astype(np.float32)
        bad[y0:y1, x0:x1] = ~known
    if settings.noise == "measured" and not bad.all():
        mesh = estimate_mesh(
            lambda y0, x0, y1, x1: (significance[y0:y1, x0:x1], bad[y0:y1, x0:x1]), mosaic.shape, "the stack"
        )
        for _, _, y0, x0, y1, x1 in blocks(mosaic.shape, 1024):
            part = significance[y0:y1, x0:x1]
            part -= mesh.level_at(y0, x0, y1, x1)
            part /= np.sqrt(mesh.variance_at(y0, x0, y1, x1))
        significance[bad] = 0
    return significance, bad


def _kernel(fwhm_pix: float) -> np.ndarray | None:
    """Gaussian of unit sum, odd side."""
    if fwhm_pix == 0:
        return None
    sigma = fwhm_pix / _FWHM_IN_SIGMA
    half = max(1, int(np.ceil(2.5 * sigma)))
    line = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * sigma**2))
    kernel = np.outer(line, line)
    return kernel / kernel.sum()


def _find_sep(library: ModuleType, significance: np.ndarray, bad: np.ndarray, settings: Detect) -> np.ndarray:
    # sep gives up on crowded fields with its default of 300,000 pixels in objects.
    library.set_extract_pixstack(max(300_000, significance.size // 2))
    library.set_sub_object_limit(max(1024, significance.size // 1000))
    _, segmentation = library.extract(
        np.ascontiguousarray(significance),
        settings.threshold,
        err=np.ones_like(significance),  # with a single number sep does not scale the threshold to the smoothed noise
        mask=bad,
        minarea=settings.min_area_pix,
        filter_kernel=_kernel(settings.smooth_fwhm_pix),
        filter_type="matched",
        deblend_nthresh=settings.deblend_levels,
        deblend_cont=settings.deblend_contrast,
        clean=False,  # it would take four in ten real objects of an SDSS frame for wings of brighter ones
        segmentation_map=True,
    )
    return segmentation


def _find_photutils(library: ModuleType, significance: np.ndarray, bad: np.ndarray, settings: Detect) -> np.ndarray:
    from photutils.segmentation import SourceFinder

    kernel = _kernel(settings.smooth_fwhm_pix)
    noise = 1.0
    if kernel is not None:
        significance = ndimage.convolve(significance, kernel.astype(np.float32), mode="constant")
        noise = float(np.sqrt((kernel**2).sum()))  # of smoothed white noise
    finder = SourceFinder(
        settings.min_area_pix,
        deblend=settings.deblend_contrast < 1,
        n_levels=settings.deblend_levels,
        contrast=settings.deblend_contrast,
        progress_bar=False,
    )
    found = finder(significance, settings.threshold * noise, mask=bad)
    return np.zeros(significance.shape, np.int32) if found is None else np.asarray(found.data)


def segment_table(segmentation: np.ndarray, weight: np.ndarray | None = None) -> pd.DataFrame:
    """Position and size of each object of a segmentation map.

    Args:
        segmentation: (height, width) int32, 0 = background.
        weight: (height, width) light by which the centroids are weighted, where positive; None for equal weights.

    Returns:
        `segment` (the map's id), `x`, `y` (0-based pixel centres), `area_pix`; one row per id in the map.
    """
    ids = np.unique(segmentation)
    ids = ids[ids > 0]
    y, x = np.nonzero(segmentation)
    index = np.searchsorted(ids, segmentation[y, x])
    light = np.ones(len(x)) if weight is None else np.clip(weight[y, x].astype(np.float64), 0, None)
    total = np.bincount(index, light, len(ids))
    lit = total > 0
    centres = []
    for position in (x, y):
        plain = np.bincount(index, position, len(ids)) / np.maximum(np.bincount(index, minlength=len(ids)), 1)
        weighted = np.bincount(index, light * position, len(ids)) / np.where(lit, total, 1)
        centres.append(np.where(lit, weighted, plain))
    area = np.bincount(index, minlength=len(ids))
    return pd.DataFrame({"segment": ids.astype(np.int64), "x": centres[0], "y": centres[1], "area_pix": area})
