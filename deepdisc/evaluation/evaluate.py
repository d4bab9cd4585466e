"""Score one catalogue against the truth, or two beside each other: `metrics.json`, `report.html`.

Only catalogues are needed, so any program's catalogue can be scored. Pixels (a mosaic) add the picture, and brightness
to detections that have no photometry; segmentation maps add the AP of outlines.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepdisc.evaluation.bootstrap import Resampling
from deepdisc.evaluation.catalogues import Catalog, Columns
from deepdisc.evaluation.comparison import compare_scored
from deepdisc.evaluation.scoring import Prediction, Scored, Setting, prepare, score
from deepdisc.files import write_json


def evaluate(
    pred: Catalog,
    truth: Catalog,
    output: str | os.PathLike | None = None,
    *,
    columns: Columns | Sequence[Columns] = None,
    pdfs=None,
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
    resample: str = "objects",
    replicates: int = 200,
    seed: int = 0,
    figures: bool = False,
) -> dict:
    """Score a predicted catalogue against the truth.

    Args:
        pred: catalogue, or its path (FITS, Parquet, CSV, ECSV, VOTable, text).
        truth: likewise; objects flagged FAINT are neither required nor is a detection of them false.
        output: folder for `metrics.json`, `report.html`; None writes nothing.
        columns: column maps, for `pred` alone or for both: names of shipped ones ("sextractor"), files, or None.
        pdfs: redshift PDFs of the prediction: a file of qp (.hdf5) or an ensemble; default: columns of the catalogue.
        mosaic: the field's pixels (`deepdisc.data.mosaic.Mosaic` or alike), optional.
        match_by: "iou" (boxes), "ellipses", "masks", "pixels", "sky", or an outline and a position such as "iou+sky";
            default: by the limit that is given, else the first of iou, pixels, sky for which all have the columns.
        iou_threshold: smallest intersection over union for a match, default 0.5.
        max_distance_pix: largest distance for a match by position, pixels, default 2.
        max_distance_arcsec: largest distance on the sky, default 1.
        band: band of the magnitudes; default r, i or the middle one of the truth.
        mag_limit: true objects fainter than this in `band` are not required; the detections need `mag_<band>` as well,
            or a mosaic with that band.
        fwhm_pix: of the PSF, for blended pairs; default from the mosaic.
        pred_segmentation: (h, w) labels = id in `pred`, or a FITS file; drawn in the report, and with
            `truth_segmentation`: AP of outlines.
        truth_segmentation: (h, w) labels = id in `truth`, or a FITS file.
        resample: what the bootstrap draws behind the errors of redshifts, fluxes, colours and shears: "objects", or
            whole "fields" (column field or tile of the truth), whose objects share seeing and large-scale structure.
        replicates: bootstrap resamplings behind every `_err`.
        seed: of the resampling.
        figures: also write the figures as `figures/*.png` and figures.pdf.

    Returns:
        `{"detection": {...}, "redshift": {...}, "flux": {...}, "colour": {...}, "shear": {...}, "notes": [...]}` as in
        metrics.json, each figure with `_err`.

    Raises:
        InputError: unreadable catalogue, missing columns, unknown band, wrong limit, no magnitudes for `mag_limit`,
            catalogues that do not overlap, an id that occurs twice.
    """
    options = {
        "columns": columns, "match_by": match_by, "iou_threshold": iou_threshold, "max_distance_pix": max_distance_pix,
        "max_distance_arcsec": max_distance_arcsec, "band": band, "mag_limit": mag_limit, "fwhm_pix": fwhm_pix,
        "resample": resample,
    }  # fmt: skip
    (side,), setting = prepare(
        [pred], truth, pdfs=[pdfs], segmentations=[pred_segmentation], truth_segmentation=truth_segmentation,
        mosaic=mosaic, **options,
    )  # fmt: skip
    scored = score(side, setting, Resampling(replicates, seed))
    if output is not None:
        files = [
            ("predicted catalogue", pred), ("truth", truth), ("redshift PDFs", pdfs),
            ("segmentation map", pred_segmentation), ("segmentation map of the truth", truth_segmentation),
        ]  # fmt: skip
        about = _Run(files, {**options, "replicates": replicates, "seed": seed}, figures)
        _write(Path(output), [side], [scored], setting, about)
    return scored.metrics


def compare(
    a: Catalog,
    b: Catalog,
    truth: Catalog,
    output: str | os.PathLike | None = None,
    *,
    names: tuple[str, str] = ("this catalogue", "the other"),
    columns: Columns | Sequence[Columns] = None,
    pdfs: Sequence = (),
    segmentations: Sequence = (),
    replicates: int = 200,
    seed: int = 0,
    figures: bool = False,
    **options,
) -> dict:
    """Score two catalogues against the same truth, with paired intervals of their differences.

    Args:
        a: catalogue or its path; its score threshold is the first to be raised to reach equal purity.
        b: likewise.
        truth: likewise.
        output: folder for `metrics.json`, `report.html`; None writes nothing.
        names: what to call the two.
        columns: column maps, for `a`, `b` and the truth.
        pdfs: files of redshift PDFs, for `a` and `b`.
        segmentations: segmentation maps, for `a` and `b`.
        replicates: bootstrap resamplings.
        seed: of the resampling.
        figures: also write the figures as `figures/*.png` and figures.pdf.
        options: others of `evaluate`.

    Returns:
        The metrics of `a` as `evaluate` gives them, and `comparison`: `names`, `detection`, `redshift`, `flux`,
        `table` (rows; see `comparison.table_text`) and `other`, the metrics of `b`.
    """
    sides, setting = prepare([a, b], truth, columns=columns, pdfs=pdfs, segmentations=segmentations, **options)
    resampling = Resampling(replicates, seed)
    one, two = (score(side, setting, resampling) for side in sides)
    one.metrics["comparison"] = compare_scored(one, two, setting, names=names, resampling=resampling)
    one.metrics["comparison"]["other"] = two.metrics
    if output is not None:
        files = [("predicted catalogue, first", a), ("predicted catalogue, second", b), ("truth", truth)]
        files += [("redshift PDFs", item) for item in pdfs] + [("segmentation map", item) for item in segmentations]
        files += [("segmentation map of the truth", options.pop("truth_segmentation", None))]
        given = {name: value for name, value in options.items() if name != "mosaic"}
        about = _Run(files, {"columns": columns, **given, "replicates": replicates, "seed": seed}, figures)
        _write(Path(output), sides, [one, two], setting, about, names)
    return one.metrics


@dataclass(frozen=True)
class _Run:
    """What a run was given, for the record: (role, file or rows), options; and whether figures are wanted as files."""

    files: list[tuple[str, object]]
    options: dict
    figures: bool


def _write(
    folder: Path,
    sides: Sequence[Prediction],
    scored: Sequence[Scored],
    setting: Setting,
    run: _Run,
    names: Sequence[str] = ("",),
) -> None:
    from deepdisc.evaluation import report  # matplotlib is slow to import and not always wanted

    provenance = report.describe(run.files, run.options, setting.mosaic)
    metrics = {**_without_arrays(scored[0].metrics), "provenance": provenance}
    maps = [side.segmentation for side in sides]
    report.write_report(folder, scored, setting, metrics, names=names, segmentations=maps, figure_files=run.figures)
    write_json(folder / "metrics.json", metrics)


def _without_arrays(value):
    """The metrics without per-object arrays, for JSON."""
    if isinstance(value, dict):
        return {key: _without_arrays(item) for key, item in value.items() if not isinstance(item, np.ndarray)}
    return value
