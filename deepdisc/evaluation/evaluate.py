"""Score a catalogue against the truth: `metrics.json` and `report.html`.

Only catalogues are needed, so any program's catalogue can be scored. Pixels (a mosaic) add the picture, and brightness
to detections that have no photometry; segmentation maps add the AP of outlines.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from deepdisc.evaluation.comparison import compare_scored
from deepdisc.evaluation.scoring import Catalog, located, prepare, read_segmentation, score
from deepdisc.files import write_json


def evaluate(
    pred: Catalog,
    truth: Catalog,
    output: str | os.PathLike | None = None,
    *,
    mosaic=None,
    match_by: str | None = None,
    iou_threshold: float | None = None,
    max_distance_pix: float | None = None,
    max_distance_arcsec: float | None = None,
    band: str | None = None,
    mag_limit: float | None = None,
    fwhm_pix: float | None = None,
    pred_segmentation=None,
    truth_segmentation=None,
    compare: Catalog | None = None,
    names: tuple[str, str] = ("this catalogue", "the other"),
    replicates: int = 200,
    seed: int = 0,
) -> dict:
    """Score a predicted catalogue against the truth.

    Args:
        pred: catalogue, or its path (.parquet, .fits, .ecsv, .csv).
        truth: likewise; objects flagged FAINT are neither required nor is a detection of them false.
        output: folder for `metrics.json` and `report.html`; None writes nothing.
        mosaic: the field's pixels (`deepdisc.data.mosaic.Mosaic` or alike), optional.
        match_by: "iou", "pixels" or "sky"; default: the first of these for which both catalogues have the columns, or
            the one whose limit is given.
        iou_threshold: smallest intersection over union of boxes for a match, default 0.5.
        max_distance_pix: largest distance for a match by position, pixels, default 2.
        max_distance_arcsec: largest distance on the sky, default 1.
        band: band of the magnitudes; default r, i or the middle one of the truth.
        mag_limit: true objects fainter than this in `band` are not required; the detections need `mag_<band>` as well,
            or a mosaic with that band.
        fwhm_pix: of the PSF, for blended pairs; default from the mosaic.
        pred_segmentation: (h, w) labels = id in `pred`, or a FITS file; with `truth_segmentation`: AP of outlines.
        truth_segmentation: (h, w) labels = id in `truth`, or a FITS file.
        compare: another program's catalogue, to be put beside this one.
        names: what to call the two.
        replicates: bootstrap resamplings behind every `_err`.
        seed: of the resampling.

    Returns:
        `{"detection": {...}, "redshift": {...}, "comparison": {...}}` as in metrics.json, each figure with `_err`.

    Raises:
        InputError: unreadable catalogue, missing columns, unknown band, wrong limit, no magnitudes for `mag_limit`.
    """
    pred, setting = prepare(
        pred, truth, mosaic=mosaic, match_by=match_by, iou_threshold=iou_threshold, max_distance_pix=max_distance_pix,
        max_distance_arcsec=max_distance_arcsec, band=band, mag_limit=mag_limit, fwhm_pix=fwhm_pix,
    )  # fmt: skip
    maps = [read_segmentation(item) for item in (pred_segmentation, truth_segmentation)]
    scored = score(pred, setting, *maps, replicates=replicates, seed=seed)
    metrics = scored.metrics
    other = None
    if compare is not None:
        other = score(located(compare, mosaic), setting, replicates=replicates, seed=seed)
        metrics["comparison"] = compare_scored(scored, other, setting, names=names, replicates=replicates, seed=seed)
    if output is not None:
        from deepdisc.evaluation.report import write_report  # matplotlib is slow to import and not always wanted

        output = Path(output)
        write_report(output / "report.html", scored, setting, outlines=maps[0], other=other, names=names)
        write_json(output / "metrics.json", _without_arrays(metrics))
    return metrics


def _without_arrays(value):
    """The metrics without per-object arrays, for JSON."""
    if isinstance(value, dict):
        return {key: _without_arrays(item) for key, item in value.items() if not isinstance(item, np.ndarray)}
    return value
