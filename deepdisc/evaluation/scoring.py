"""How a catalogue is scored: what matches, what must be found, what is left out; then the metrics of one catalogue."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from deepdisc.catalog import BOX_COLUMNS
from deepdisc.errors import InputError, first_line, nearest
from deepdisc.evaluation import pixels
from deepdisc.evaluation.assessment import Assessment, Assessor, is_faint
from deepdisc.evaluation.bootstrap import DEFAULT, Resampling, named_fraction
from deepdisc.evaluation.catalogues import Catalog, Columns, each, load
from deepdisc.evaluation.colours import score_colours
from deepdisc.evaluation.conventions import check_overlap, measure_offset
from deepdisc.evaluation.detection import score_detections
from deepdisc.evaluation.flux import score_fluxes
from deepdisc.evaluation.groups import blend_groups
from deepdisc.evaluation.match import MAX_DISTANCE_PIX, OUTLINES, Criterion, choose_criterion, common_groups
from deepdisc.evaluation.overlaps import box_overlaps, segmentation_overlaps
from deepdisc.evaluation.pdf_columns import add_pdfs
from deepdisc.evaluation.photoz import score_redshifts
from deepdisc.evaluation.shear import score_shear
from deepdisc.matching import Pairs

PREFERRED_BANDS = ("r", "i", "R", "I", "F277W", "F200W", "F444W")
BLEND_IOU = 0.1  # outlines that overlap more belong to one blend


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
        truth_segmentation: (h, w) labels = id of the truth, or None.
        resample: "objects" or "fields": what the bootstrap draws behind the errors of what is measured.
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
    truth_segmentation: object = None
    resample: str = "objects"
    excluded: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def options(self) -> dict:
        """Keywords for `Assessor` and what is built on it."""
        limit = None if self.mag_limit is None else (f"mag_{self.band}", self.mag_limit)
        return {"required": self.required, "excuse": self.excuse, "mag_limit": limit}


@dataclass(frozen=True)
class Prediction:
    """A catalogue to be scored: its rows, its segmentation map or None, and notes on how it was read."""

    frame: pd.DataFrame
    segmentation: object = None
    notes: tuple[str, ...] = ()


@dataclass
class Scored:
    """One scored catalogue: its metrics, and what the report's figures are drawn from.

    Attributes:
        pred: its rows, with brightness measured on the mosaic where the program gave none.
        assessment: which of them are right.
        metrics: the figures.
        criterion: that of the setting, for this catalogue's own segmentation map.
        frame: its rows as the program made them.
    """

    pred: pd.DataFrame
    assessment: Assessment
    metrics: dict
    criterion: Criterion
    frame: pd.DataFrame


@dataclass
class Outcome:
    """What came of one field: for the report.

    Attributes:
        names: of the catalogues; one alone needs none.
        sides: one or two catalogues as they were read.
        scored: the same, scored.
        setting: under which they were.
        metrics: of the first catalogue, with `comparison` where there are two.
        record: files by their roles, and options; see `report.provenance.describe`.
    """

    names: tuple[str, ...]
    sides: list[Prediction]
    scored: list[Scored]
    setting: Setting
    metrics: dict
    record: tuple[list[tuple[str, object]], dict]


def prepare(
    preds: Sequence[Catalog],
    truth: Catalog,
    *,
    columns: Columns | Sequence[Columns] = None,
    pdfs: Sequence = (),
    segmentations: Sequence = (),
    truth_segmentation=None,
    mosaic=None,
    match_by: str | None = None,
    iou_threshold: float | None = None,
    max_distance_pix: float | None = None,
    max_distance_arcsec: float | None = None,
    band: str | None = None,
    mag_limit: float | None = None,
    fwhm_pix: float | None = None,
    resample: str = "objects",
) -> tuple[list[Prediction], Setting]:
    """Read the catalogues and settle how they are compared, all of `preds` in the same way.

    Arguments as in `evaluate`; `columns` are maps for each of `preds` and then for the truth, `pdfs` and
    `segmentations` one for each of `preds`.
    """
    maps = each(columns, len(preds) + 1)
    truth, notes = located(truth, mosaic, maps[-1], "true", band)
    if not len(truth):
        raise InputError("the true catalogue has no rows: there is nothing to score against")
    labels = read_segmentation(truth_segmentation)
    sides = []
    for k, (pred, column_map) in enumerate(zip(preds, maps, strict=False)):
        frame, said = located(pred, mosaic, column_map, "predicted", band)
        if k < len(pdfs) and pdfs[k] is not None:
            frame = add_pdfs(frame, pdfs[k])
        own = read_segmentation(segmentations[k]) if k < len(segmentations) else None
        sides.append(Prediction(frame, own, tuple(said)))
    outlined = labels is not None and all(side.segmentation is not None for side in sides)
    criterion = choose_criterion(
        [side.frame for side in sides], truth, match_by, iou_threshold=iou_threshold, max_distance_pix=max_distance_pix,
        max_distance_arcsec=max_distance_arcsec, maps=(sides[0].segmentation, labels) if outlined else None,
    )  # fmt: skip
    for side in sides:
        check_overlap(side.frame, truth, criterion)
    excuse = Criterion("pixels", max_distance_pix or MAX_DISTANCE_PIX) if criterion.kind in OUTLINES else None
    band = _band(truth, band)
    required, excluded = _required(truth, mosaic, band, mag_limit)
    setting = Setting(
        truth, criterion, excuse, required, band, fwhm_pix or mosaic_fwhm_pix(mosaic), mosaic, mag_limit, labels,
        _checked_resample(resample, truth), excluded, notes,
    )  # fmt: skip
    return sides, setting


def _required(
    truth: pd.DataFrame, mosaic, band: str | None, mag_limit: float | None
) -> tuple[np.ndarray, dict[str, int]]:
    """Bool (T,): true objects that must be found; and how many are not, by reason."""
    faint = is_faint(truth)
    required = ~faint
    excluded = {"true objects below the label threshold (FAINT)": int(faint.sum())}
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
    return required, excluded


def score(side: Prediction, setting: Setting, resampling: Resampling = DEFAULT) -> Scored:
    """Score one catalogue under a setting."""
    pred, notes = side.frame, [*setting.notes, *side.notes]
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
    criterion = setting.criterion.with_maps(side.segmentation, setting.truth_segmentation)
    assessment = Assessor(pred, truth, criterion, **setting.options).assess()
    overlaps = None
    if side.segmentation is not None and setting.truth_segmentation is not None:
        ids = (_ids(pred, "predicted"), _ids(truth, "true"))
        overlaps = segmentation_overlaps(side.segmentation, setting.truth_segmentation, *ids)
    detection = score_detections(
        pred, truth, assessment, magnitude=f"mag_{setting.band}" if setting.band else None, fwhm_pix=setting.fwhm_pix,
        shape=_shape(setting), outline_overlaps=overlaps, groups=_blends(pred, truth, assessment, overlaps),
        resampling=resampling,
    )  # fmt: skip
    offset = measure_offset(pred, truth)
    notes += [offset["warning"]] if offset["warning"] else []
    detection["matched_by"] = criterion.name
    detection["match_limit"] = criterion.limit
    detection["offset"] = offset
    detection["excluded"] = setting.excluded
    detection["by_position"] = _by_position(pred, setting)
    metrics = {"detection": detection, **_measured(side.frame, setting, assessment, resampling), "notes": notes}
    return Scored(pred, assessment, metrics, criterion, side.frame)


def _measured(pred: pd.DataFrame, setting: Setting, assessment: Assessment, resampling: Resampling) -> dict:
    """Redshifts, fluxes, colours and shears of matched objects, as the program itself measured them."""
    truth, pairs = setting.truth, assessment.pairs
    ours, theirs = pred.iloc[pairs.pred].reset_index(drop=True), truth.iloc[pairs.truth].reset_index(drop=True)
    with_redshift = (
        np.isfinite(truth["redshift"].to_numpy(float)) if "redshift" in truth else np.zeros(len(truth), bool)
    )
    missed = int((with_redshift & assessment.required & ~assessment.found).sum())
    magnitude = f"mag_{setting.band}" if setting.band else None
    drawn = replace(resampling, blocks=blocks_of(theirs, setting.resample))
    return {
        "redshift": score_redshifts(ours, theirs, n_unmatched=missed, magnitude=magnitude, resampling=drawn),
        "flux": score_fluxes(ours, theirs, resampling=drawn),
        "colour": score_colours(ours, theirs, resampling=drawn),
        "shear": score_shear(ours, theirs, magnitude=magnitude, resampling=drawn),
    }


def _checked_resample(resample: str, truth: pd.DataFrame) -> str:
    if resample not in ("objects", "fields"):
        raise InputError(f"resample is {resample!r}; choose objects or fields")
    if resample == "fields" and not {"field", "tile"} & set(truth.columns):
        raise InputError("resample is 'fields', but the truth has no column field or tile; resample objects")
    return resample


def blocks_of(truth: pd.DataFrame, resample: str) -> np.ndarray | None:
    """Labels (N,) of the fields (or tiles) that are resampled as a whole, or None for objects."""
    if resample == "objects":
        return None
    return pd.factorize(truth["field" if "field" in truth.columns else "tile"])[0]


def _shape(setting: Setting) -> tuple[int, int] | None:
    """(height, width) of the field in pixels, if anything says it."""
    source = setting.mosaic if setting.mosaic is not None else setting.truth_segmentation
    return None if source is None else tuple(source.shape)


def _blends(
    pred: pd.DataFrame, truth: pd.DataFrame, assessment: Assessment, outlines: Pairs | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Numbers of true objects and of detections in each group of overlapping outlines; excused ones left out."""
    if outlines is None:
        if not set(BOX_COLUMNS) <= set(pred.columns) & set(truth.columns):
            return None
        boxes = (catalog[list(BOX_COLUMNS)].to_numpy(np.float64) for catalog in (pred, truth))
        outlines = box_overlaps(*boxes, common_groups(pred, truth))
    counted = (~assessment.excused)[outlines.pred] & assessment.required[outlines.truth]
    groups = blend_groups(outlines.select((outlines.quality >= BLEND_IOU) & counted), len(pred), len(truth))
    n_groups = len(groups.table)
    n_truth = np.bincount(groups.truth[assessment.required], minlength=n_groups)
    n_pred = np.bincount(groups.pred[~assessment.excused], minlength=n_groups)
    some = (n_truth + n_pred) > 0
    return n_truth[some], n_pred[some]


def _by_position(pred: pd.DataFrame, setting: Setting) -> dict:
    """The same fractions when matched by position only: programs differ in where an outline ends."""
    criterion = setting.excuse or setting.criterion
    if criterion.kind != "pixels" or not criterion.usable(pred, setting.truth):
        return {"available": False, "reason": "one of the catalogues has no x, y"}
    result = Assessor(pred, setting.truth, criterion, **{**setting.options, "excuse": None}).assess()
    return {
        "available": True,
        "max_distance_pix": criterion.limit,
        **named_fraction(result.found[setting.required], "completeness"),
        **named_fraction(result.correct[~result.excused], "purity"),
        "n_matched": len(result.pairs),
    }


# --------------------------------------------------------------------------------------------------------------- input
def located(
    source: Catalog, mosaic, columns: Columns = None, label: str = "catalogue", band: str | None = None
) -> tuple[pd.DataFrame, list[str]]:
    """`catalogues.load`; adds x, y from ra, dec where there are only sky positions and the mosaic has a WCS."""
    frame, notes = load(source, columns, label=label, band=band)
    grid = getattr(mosaic, "grid", None)
    if {"x", "y"} <= set(frame.columns) or grid is None or not {"ra", "dec"} <= set(frame.columns):
        return frame, notes
    x, y = grid.to_pixel(frame["ra"].to_numpy(float), frame["dec"].to_numpy(float))
    return (frame.assign(x=x, y=y) if np.isfinite(x).any() else frame), notes


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
