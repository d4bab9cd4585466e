"""Score one catalogue against the truth, or two beside each other: `metrics.json`, `report.html`.

Only catalogues are needed, so any program's catalogue can be scored. Pixels (a mosaic) add the picture, and brightness
to detections that have no photometry; segmentation maps add the AP of outlines.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deepdisc.evaluation.bootstrap import DEFAULT, Resampling
from deepdisc.evaluation.catalogues import Catalog, Columns
from deepdisc.evaluation.comparison import compare_scored
from deepdisc.evaluation.scoring import Outcome, prepare, score
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
        match_by: "iou" (boxes), "ellipses", "masks", "pixels", "sky", "id", or an outline and a position as
            "iou+sky"; default: by the limit that is given, else the first of iou, pixels, sky for which all have the
            columns.
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
        metrics.json, each figure with `_err`; see `bootstrap`.

    Raises:
        InputError: unreadable catalogue, missing columns, unknown band, wrong limit, no magnitudes for `mag_limit`,
            catalogues that do not overlap, an id that occurs twice.
    """
    options = {
        "match_by": match_by, "iou_threshold": iou_threshold, "max_distance_pix": max_distance_pix,
        "max_distance_arcsec": max_distance_arcsec, "band": band, "mag_limit": mag_limit, "fwhm_pix": fwhm_pix,
        "resample": resample, "truth_segmentation": truth_segmentation, "mosaic": mosaic,
    }  # fmt: skip
    task = Task([pred], truth, columns=columns, pdfs=[pdfs], segmentations=[pred_segmentation], options=options)
    outcome = task.run(Resampling(replicates, seed))
    if output is not None:
        _write(Path(output), outcome, figures)
    return outcome.metrics


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
        The metrics of `a` as `evaluate` gives them, and `comparison`: `names`, the parts, `table`
        (rows; see `printed.table_text`) and `other`, the metrics of `b`.
    """
    task = Task([a, b], truth, names, columns=columns, pdfs=pdfs, segmentations=segmentations, options=options)
    outcome = task.run(Resampling(replicates, seed))
    if output is not None:
        _write(Path(output), outcome, figures)
    return outcome.metrics


@dataclass(frozen=True)
class Task:
    """One field to be scored.

    Attributes:
        preds: one or two catalogues or their paths.
        truth: likewise.
        names: what to call the catalogues, as many as they are; one alone needs none.
        columns: column maps, for the catalogues and the truth.
        pdfs: files of redshift PDFs, for the catalogues.
        segmentations: segmentation maps, for the catalogues.
        options: other keywords of `scoring.prepare`.
    """

    preds: Sequence[Catalog]
    truth: Catalog
    names: Sequence[str] = ("",)
    columns: Columns | Sequence[Columns] = None
    pdfs: Sequence = ()
    segmentations: Sequence = ()
    options: dict = field(default_factory=dict)

    def run(self, resampling: Resampling = DEFAULT) -> Outcome:
        """Score the catalogues, and put two beside each other."""
        sides, setting = prepare(
            self.preds, self.truth, columns=self.columns, pdfs=self.pdfs, segmentations=self.segmentations,
            **self.options,
        )  # fmt: skip
        scored = [score(side, setting, resampling) for side in sides]
        metrics = scored[0].metrics
        if len(scored) == 2:
            metrics["comparison"] = compare_scored(*scored, setting, names=tuple(self.names), resampling=resampling)
            metrics["comparison"]["other"] = scored[1].metrics
        return Outcome(tuple(self.names), sides, scored, setting, metrics, self.record(resampling))

    def record(self, resampling: Resampling) -> tuple[list[tuple[str, object]], dict]:
        """For the report's provenance: (role, file or rows), and the options."""
        order = ("first", "second") if len(self.preds) == 2 else ("",)
        roles = [f"predicted catalogue, {place}" if place else "predicted catalogue" for place in order]
        files = [*zip(roles, self.preds, strict=True), ("truth", self.truth)]
        files += [("redshift PDFs", item) for item in self.pdfs]
        files += [("segmentation map", item) for item in self.segmentations]
        files += [("segmentation map of the truth", self.options.get("truth_segmentation"))]
        given = {name: value for name, value in self.options.items() if name not in ("mosaic", "truth_segmentation")}
        return files, {"columns": self.columns, **given, "replicates": resampling.replicates, "seed": resampling.seed}


def _write(folder: Path, outcome: Outcome, figures: bool) -> None:
    from deepdisc.evaluation import report  # matplotlib is slow to import and not always wanted

    metrics = report.with_provenance(outcome)
    report.write_report(folder, {"": outcome}, metrics, figure_files=figures)
    write_json(folder / "metrics.json", metrics)
