"""How a catalogue is scored: what matches, what must be found, what is left out; then the metrics of one catalogue."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from deepdisc import catalog
from deepdisc.errors import InputError, first_line, nearest
from deepdisc.evaluation import pixels
from deepdisc.evaluation.detection import Assessment, Assessor, is_faint, score_detections
from deepdisc.evaluation.match import Criterion, segmentation_overlaps
from deepdisc.evaluation.photoz import score_redshifts

IOU_THRESHOLD = 0.5
MAX_DISTANCE_PIX = 2.0
MAX_DISTANCE_ARCSEC = 1.0
PREFERRED_BANDS = ("r", "i", "R", "I", "F277W", "F200W", "F444W")

Catalog = pd.DataFrame | str | os.PathLike


@dataclass
class Setting:
    """What is scored and how; made once by `prepare`, the same for both sides of a comparison.

    Attributes:
        truth: true catalogue inside the mosaic.
        criterion: what makes a match; `excuse` is the one by position for ignored objects.
        required: (T,) bool, true objects that must be found.
        band: of the magnitudes, or None.
        fwhm_pix: of the PSF, or None.
        mosaic: the pixels, or None.
        mag_limit: true objects fainter than this in `band` are not required.
        excluded: counts of true objects left out, by reason.
        notes: statements for the report.
    """

    truth: pd.DataFrame
    criterion: Criterion
    excuse: Criterion | None
    required: np.ndarray
    band: str | None
    fwhm_pix: float | None
    mosaic: object = None
    mag_limit: float | None = None
    excluded: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def options(self) -> dict:
        """Keywords for `Assessor` and what is built on it."""
        limit = None if self.mag_limit is None else (f"mag_{self.band}", self.mag_limit)
        return {"required": self.required, "excuse": self.excuse, "mag_limit": limit}


@dataclass
class Scored:
    """One scored catalogue: its metrics, and what the report's figures are drawn from."""

    pred: pd.DataFrame
    assessment: Assessment
    metrics: dict


def prepare(
    pred: Catalog,
    truth: Catalog,
    *,
    mosaic=None,
    match_by: str | None = None,
    iou_threshold: float | None = None,
    max_distance_pix: float | None = None,
    max_distance_arcsec: float | None = None,
    band: str | None = None,
    mag_limit: float | None = None,
    fwhm_pix: float | None = None,
) -> tuple[pd.DataFrame, Setting]:
    """Read both catalogues and settle how they are compared; arguments as in `evaluate`."""
    pred, truth = located(pred, mosaic), located(truth, mosaic)
    excluded, notes = {}, []
    limits = {
        "iou": (iou_threshold, IOU_THRESHOLD),
        "pixels": (max_distance_pix, MAX_DISTANCE_PIX),
        "sky": (max_distance_arcsec, MAX_DISTANCE_ARCSEC),
    }
    criterion = _criterion(pred, truth, match_by, limits)
    excuse = None
    if criterion.kind == "iou":
        excuse = Criterion("pixels", max_distance_pix or MAX_DISTANCE_PIX)
    band = _band(truth, band)
    faint = is_faint(truth)
    required = ~faint
    excluded["true objects below the label threshold (FAINT)"] = int(faint.sum())
    if mosaic is not None and {"x", "y"} <= set(truth.columns):
        off = required & pixels.without_data(mosaic, truth["x"].to_numpy(float), truth["y"].to_numpy(float))
        excluded["true objects centred off the mosaic, or where all bands are masked"] = int(off.sum())
        required &= ~off
    if mag_limit is not None:
        if band is None:
            raise InputError(f"mag_limit={mag_limit} needs magnitudes, but the truth has no column mag_<band>")
        fainter = required & ~(truth[f"mag_{band}"].to_numpy(float) < mag_limit)
        excluded[f"true objects not brighter than {band} = {mag_limit:g}"] = int(fainter.sum())
        required &= ~fainter
    fwhm_pix = fwhm_pix or mosaic_fwhm_pix(mosaic)
    return pred, Setting(truth, criterion, excuse, required, band, fwhm_pix, mosaic, mag_limit, excluded, notes)


def score(
    pred: pd.DataFrame, setting: Setting, pred_segmentation=None, truth_segmentation=None, *, replicates: int, seed: int
) -> Scored:
    """Score one catalogue under a setting."""
    notes = list(setting.notes)
    if setting.mosaic is not None:
        band = setting.band if setting.band in list(setting.mosaic.bands) else None
        pred, note = pixels.add_brightness(pred, setting.mosaic, band)
        notes += [note] if note else []
    if setting.mag_limit is not None and len(pred) and f"mag_{setting.band}" not in pred.columns:
        raise InputError(
            f"mag_limit={setting.mag_limit:g}: the detections have no magnitude mag_{setting.band}, so that faint ones "
            f"cannot be told from false ones; give --mosaic, a mosaic with the band {setting.band!r}, to measure it in "
            "their boxes"
        )
    truth = setting.truth
    assessment = Assessor(pred, truth, setting.criterion, **setting.options).assess()
    overlaps = None
    if pred_segmentation is not None and truth_segmentation is not None:
        ids = (_ids(pred, "predicted"), _ids(truth, "true"))
        overlaps = segmentation_overlaps(pred_segmentation, truth_segmentation, *ids)
    detection = score_detections(
        pred, truth, assessment, magnitude=f"mag_{setting.band}" if setting.band else None, fwhm_pix=setting.fwhm_pix,
        outline_overlaps=overlaps, replicates=replicates, seed=seed,
    )  # fmt: skip
    detection["matched_by"] = setting.criterion.kind
    detection["match_limit"] = setting.criterion.limit
    detection["excluded"] = setting.excluded
    detection["by_position"] = _by_position(pred, setting)
    pairs = assessment.pairs
    with_redshift = (
        np.isfinite(truth["redshift"].to_numpy(float)) if "redshift" in truth else np.zeros(len(truth), bool)
    )
    redshift = score_redshifts(
        pred.iloc[pairs.pred].reset_index(drop=True),
        truth.iloc[pairs.truth].reset_index(drop=True),
        n_unmatched=int((with_redshift & assessment.required & ~assessment.found).sum()),
        replicates=replicates,
        seed=seed,
    )
    return Scored(pred, assessment, {"detection": detection, "redshift": redshift, "notes": notes})


def _by_position(pred: pd.DataFrame, setting: Setting) -> dict:
    """The same fractions when matched by position only: programs differ in where an outline ends."""
    criterion = setting.excuse or setting.criterion
    if criterion.kind != "pixels" or not criterion.usable(pred, setting.truth):
        return {"available": False, "reason": "one of the catalogues has no x, y"}
    result = Assessor(pred, setting.truth, criterion, **{**setting.options, "excuse": None}).assess()
    return {
        "available": True,
        "max_distance_pix": criterion.limit,
        "completeness": result.completeness,
        "purity": result.purity,
        "n_matched": len(result.pairs),
    }


# --------------------------------------------------------------------------------------------------------------- input
def located(source: Catalog, mosaic) -> pd.DataFrame:
    """Read a catalogue; add x, y from ra, dec where it has only sky positions and the mosaic has a WCS."""
    frame = source.reset_index(drop=True) if isinstance(source, pd.DataFrame) else catalog.read(source)
    grid = getattr(mosaic, "grid", None)
    if {"x", "y"} <= set(frame.columns) or grid is None or not {"ra", "dec"} <= set(frame.columns):
        return frame
    x, y = grid.to_pixel(frame["ra"].to_numpy(float), frame["dec"].to_numpy(float))
    return frame.assign(x=x, y=y) if np.isfinite(x).any() else frame


def _criterion(pred: pd.DataFrame, truth: pd.DataFrame, match_by: str | None, limits: dict) -> Criterion:
    """The way of matching asked for, or the first whose limit is given, or the first that both catalogues allow."""
    given = [kind for kind, (limit, _) in limits.items() if limit is not None]
    kinds = [match_by] if match_by else given if len(given) == 1 else list(limits)
    for kind in kinds:
        if kind not in limits:
            raise InputError(f"unknown way of matching {kind!r}; choose one of {', '.join(limits)}")
        limit, default = limits[kind]
        criterion = Criterion(kind, default if limit is None else limit)
        if len(kinds) == 1 or criterion.usable(pred, truth):
            criterion.candidates(pred.iloc[:0], truth.iloc[:0])  # names the missing column
            return criterion
    raise InputError(
        "the catalogues have no columns in common to match by; both need x_min, y_min, x_max, y_max, or x, y, or "
        f"ra, dec. Predicted: {', '.join(map(str, pred.columns))}. True: {', '.join(map(str, truth.columns))}"
    )


def _band(truth: pd.DataFrame, band: str | None) -> str | None:
    bands = [name[4:] for name in truth.columns if str(name).startswith("mag_")]
    if band is not None and band not in bands:
        guess = nearest(band, bands)
        raise InputError(
            f"the truth has no magnitude in band {band!r}: it has {', '.join(bands) or 'none'}"
            + (f"; did you mean {guess!r}?" if guess else "")
        )
    if band is not None or not bands:
        return band
    return next((name for name in PREFERRED_BANDS if name in bands), bands[len(bands) // 2])


def mosaic_fwhm_pix(mosaic) -> float | None:
    """Median width of the PSF over the bands, pixels, if the mosaic's description states it."""
    bands = getattr(mosaic, "metadata", {}).get("bands", {})
    widths = [band["psf_fwhm_arcsec"] for band in bands.values() if band.get("psf_fwhm_arcsec")]
    return float(np.median(widths)) / mosaic.pixel_scale_arcsec if widths else None


def read_segmentation(source) -> np.ndarray | None:
    """A segmentation map: an array as it is, or the first image of a FITS file."""
    if source is None or not isinstance(source, str | os.PathLike):
        return source
    import fitsio

    if not Path(source).is_file():
        raise InputError(f"no segmentation map at {source}; give the segmentation.fits of the catalogue")
    try:
        with fitsio.FITS(str(source)) as fits:
            for hdu in fits:
                if hdu.has_data() and hdu.get_exttype() == "IMAGE_HDU":
                    return hdu.read()
    except OSError as error:
        raise InputError(f"{source}: cannot be read as FITS: {first_line(error)}") from error
    raise InputError(f"{source}: holds no image; give the segmentation.fits of the catalogue")


def _ids(frame: pd.DataFrame, which: str) -> np.ndarray:
    if "id" not in frame.columns:
        raise InputError(
            f"the {which} catalogue has no column 'id', which must equal the labels of its segmentation map"
        )
    return frame["id"].to_numpy(np.int64)
