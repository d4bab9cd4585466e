"""The truth of a field from what surveys publish: catalogues, redshift tables, a segmentation map or a detection.

Steps: read and rank the catalogues, put their rows on the mosaic, match them with the segments one to one, give the
rest the treatment that the recipe states, look up redshifts. Everything that is left out is counted in the report.

Legend: *row* = object of a catalogue; *segment* = object of the segmentation map; *object* = what the truth lists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from deepdisc import catalog
from deepdisc.data.crossmatch import Match, common_offset, crossmatch
from deepdisc.data.detection import Detect, detect, segment_table, stack
from deepdisc.data.fits_plane import split_extension
from deepdisc.data.foreign import Catalogue, Problems, Redshifts, read_catalogues, read_list
from deepdisc.data.keys import check_choice, check_positive, from_keys
from deepdisc.data.kron import kron_fluxes
from deepdisc.data.mosaic import Mosaic
from deepdisc.data.shapes import draw_outlines, measure_light, outline_table
from deepdisc.data.truth import read_segmentation
from deepdisc.errors import InputError
from deepdisc.expressions import select

WITHOUT_SEGMENT = ("ellipse", "circle", "keep", "drop")
WITHOUT_ROW = ("mask", "keep", "drop")
BY = ("position", "id")
MASKED = -1  # in the segmentation map: light that nobody knows; masked in every band


@dataclass(frozen=True)
class Matching:
    """How rows and segments find each other; the key `match` of a recipe.

    Attributes:
        by: "position", or "id": the map's ids are those of the (only) catalogue.
        radius_arcsec: largest distance on the sky; default 1 where there are sky positions.
        radius_pix: largest distance in pixels; default 3 where there are none.
        without_segment: what becomes of rows without a segment: the pixels of their "ellipse" (columns a, b, theta or
            position_angle) or a "circle" that no other object has; or none, "keep" (listed, not trained on) or "drop".
        ellipse_scale: the semi-axes are multiplied by this. 2.5 suits rms widths such as SExtractor's A_IMAGE.
        circle_arcsec: radius of the circle.
        without_row: what becomes of segments without a row: "mask" their pixels, "keep" them as objects of the first
            class, or "drop": background.
        min_share: a smaller matched share of the shorter list is an error.
    """

    by: str = "position"
    radius_arcsec: float | None = None
    radius_pix: float | None = None
    without_segment: str = "drop"
    ellipse_scale: float = 2.5
    circle_arcsec: float | None = None
    without_row: str = "mask"
    min_share: float = 0.2

    def __post_init__(self) -> None:
        check_choice(self.by, BY, "match: by")
        check_choice(self.without_segment, WITHOUT_SEGMENT, "match: without_segment")
        check_choice(self.without_row, WITHOUT_ROW, "match: without_row")
        for name in ("radius_arcsec", "radius_pix", "ellipse_scale", "circle_arcsec"):
            check_positive(getattr(self, name), f"match: {name}")
        if self.radius_arcsec is not None and self.radius_pix is not None:
            raise InputError("match: radius_arcsec and radius_pix are both given; keep one")
        if (self.without_segment == "circle") != (self.circle_arcsec is not None):
            raise InputError("match: `without_segment: circle` and `circle_arcsec` belong together; give both")
        if not 0 <= self.min_share <= 1:
            raise InputError(f"match: min_share is {self.min_share}; it is a share, 0 to 1")


@dataclass(frozen=True)
class Survey:
    """Where a field's truth comes from; the keys of a field without `truth`.

    Attributes:
        catalogues: in order of rank.
        same_object_arcsec: rows of a later catalogue this close to one of an earlier are the same object.
        redshifts: in order of rank; before the catalogues' own.
        segmentation: a given map, or None.
        detection: how to make one; with a given map: how to find light that it does not know, which is masked.
        fluxes: "kron" to measure those that no catalogue says; None for none.
        match: of rows and segments.
        problems: what to do about bad rows.
        faint: condition on the truth's columns; objects for which it holds are flagged FAINT: listed, not trained on.
    """

    catalogues: tuple[Catalogue, ...] = ()
    same_object_arcsec: float | None = None
    redshifts: tuple[Redshifts, ...] = ()
    segmentation: Path | None = None
    detection: Detect | None = None
    fluxes: str | None = None
    match: Matching = field(default_factory=Matching)
    problems: Problems = field(default_factory=Problems)
    faint: str | None = None

    @classmethod
    def read(cls, content: Mapping[str, Any], folder: Path, place: str) -> Survey:
        """Check what a recipe says of a field; its relative paths start from `folder`.

        Raises:
            InputError: an unknown key, a wrong value, or keys that exclude each other.
        """
        catalogues = read_list(Catalogue, content.get("catalogue"), folder, f"{place}: catalogue")
        segmentation, settings = content.get("segmentation"), content.get("detect")
        if not isinstance(segmentation, str | None):
            raise InputError(f"{place}: segmentation is {segmentation!r}; it is the path of a FITS map of ids")
        same = content.get("same_object_arcsec")
        if (len(catalogues) > 1) != (same is not None):
            raise InputError(
                f"{place}: `same_object_arcsec` says when rows of two catalogues are one object; it belongs to a list "
                "of several catalogues, and they need it"
            )
        check_positive(same, f"{place}: same_object_arcsec")
        check_choice(content.get("fluxes", "kron"), ["kron"], f"{place}: fluxes")
        match = from_keys(Matching, content.get("match", {}), f"{place}: match")
        if match.by == "id" and (segmentation is None or len(catalogues) != 1):
            raise InputError(f"{place}: `match: {{by: id}}` needs a segmentation map and the one catalogue of its ids")
        if segmentation is None and settings is None and match.without_segment in ("keep", "drop"):
            raise InputError(
                f"{place}: whence the outlines? Give segmentation, detect, or match: {{without_segment: circle}}"
            )
        return cls(
            catalogues=catalogues,
            same_object_arcsec=same,
            redshifts=read_list(Redshifts, content.get("redshifts"), folder, f"{place}: redshifts"),
            segmentation=None if segmentation is None else folder / segmentation,
            detection=None if settings is None else from_keys(Detect, settings, f"{place}: detect"),
            fluxes=content.get("fluxes"),
            match=match,
            problems=from_keys(Problems, content.get("problems", {}), f"{place}: problems"),
            faint=content.get("faint"),
        )

    @property
    def files(self) -> list[str]:
        """Paths of the catalogues, redshift tables and the map, each once, without [EXTENSION]."""
        stated = [file for source in (*self.catalogues, *self.redshifts) for file in source.files]
        stated += [] if self.segmentation is None else [str(self.segmentation)]
        return list(dict.fromkeys(split_extension(file)[0] for file in stated))


def make_truth(
    survey: Survey, mosaic: Mosaic, class_names: Sequence[str], label: str
) -> tuple[pd.DataFrame, np.ndarray, dict[str, Any]]:
    """Make the truth of a field.

    Args:
        survey: where it comes from.
        mosaic: the field.
        class_names: names by index.
        label: the field's name, for messages.

    Returns:
        The truth as `deepdisc.data.truth` has it, ids from 1 on; the segmentation map (height, width) int32 of these
        ids, with `MASKED` where light is to be masked; the report.

    Raises:
        InputError: anything wrong in catalogues or maps, or nothing of them fits the mosaic.
    """
    rows, report = read_catalogues(survey, mosaic, class_names, label)
    segmentation, segments, light = _segments(survey, mosaic, label)
    report["segments"] = len(segments)
    if survey.catalogues:
        match = _match(survey.match, rows, segments, mosaic, label)
        objects = _joined(rows, segments, match, survey.match, report)
        objects["class_name"] = objects.class_name.fillna(class_names[0])
    else:
        match, objects = None, segments.assign(class_name=class_names[0])
    if match is not None:
        report["match"] = match.report()
    unclaimed = segments.segment[~segments.segment.isin(objects.segment)].to_numpy()
    segmentation = _relabelled(segmentation, objects, unclaimed, survey.match.without_row)
    if survey.segmentation is not None and survey.detection is not None:
        report["unknown_light_masked"] = _mask_unknown(segmentation, mosaic, survey.detection)
    if survey.match.without_segment in ("ellipse", "circle"):
        report["drawn"] = draw_outlines(segmentation, objects, survey.match, mosaic, label)
    measured = measure_light(segmentation, len(objects), mosaic)
    report["coverage"] = _checked_coverage(measured.coverage, label)
    truth = outline_table(objects, segmentation, measured)
    if survey.fluxes == "kron":
        kron = kron_fluxes(mosaic, segmentation, len(truth), light)
        truth = truth.combine_first(kron)[[*truth, *(name for name in kron if name not in truth)]]
    _add_redshifts(truth, survey, mosaic, report, label)
    report |= {"objects": len(truth), "faint": _flag_faint(truth, survey.faint, label)}
    return truth, segmentation, report


def _segments(survey: Survey, mosaic: Mosaic, label: str) -> tuple[np.ndarray, pd.DataFrame, np.ndarray]:
    """The map of segments, their table, and the stack of light."""
    if survey.segmentation is not None:
        segmentation = read_segmentation(survey.segmentation, mosaic.shape)
        if segmentation.min(initial=0) < 0:
            raise InputError(f"{survey.segmentation}: negative ids; 0 is the background, ids are positive")
        light, _ = stack(mosaic, Detect(noise="stated"))
    elif survey.detection is not None:
        light, bad = stack(mosaic, survey.detection)
        segmentation = detect(light, bad, survey.detection)
    else:
        segmentation = np.zeros(mosaic.shape, np.int32)
        light = np.zeros(mosaic.shape, np.float32)
    segments = segment_table(segmentation, light)
    if mosaic.grid.wcs is not None:
        segments["ra"], segments["dec"] = mosaic.grid.to_sky(segments.x, segments.y)
    if segments.empty and survey.segmentation:
        raise InputError(f"field {label}: {survey.segmentation} holds no object; is it the map of this field?")
    if segments.empty and survey.detection:
        raise InputError(f"field {label}: nothing is detected; lower the threshold, or check noise and bands")
    return segmentation, segments, light


def _match(settings: Matching, rows: pd.DataFrame, segments: pd.DataFrame, mosaic: Mosaic, label: str) -> Match | None:
    """Pairs of rows and segments; None without segments."""
    if segments.empty:
        return None
    if settings.by == "id":
        return _match_ids(rows, segments, mosaic, label)
    on_sky = mosaic.grid.wcs is not None and settings.radius_pix is None
    if settings.radius_arcsec is not None and not on_sky:
        raise InputError(f"field {label}: match: radius_arcsec needs a WCS in the mosaic; give radius_pix")
    names, unit = (["ra", "dec"], "arcsec") if on_sky else (["x", "y"], "pix")
    radius = settings.radius_arcsec or settings.radius_pix or (1.0 if on_sky else 3.0)
    positions = rows[names].to_numpy(float), segments[names].to_numpy(float)
    match = crossmatch(*positions, radius, unit)
    if match.share < settings.min_share:
        raise InputError(f"field {label}: {_why_so_few(match, positions, unit)}")
    return match


def _match_ids(rows: pd.DataFrame, segments: pd.DataFrame, mosaic: Mosaic, label: str) -> Match:
    place = pd.Series(np.arange(len(segments)), index=segments.segment.astype(str))
    known = rows.catalogue_id.isin(place.index).to_numpy()
    first = np.flatnonzero(known)
    second = place.loc[rows.catalogue_id[known]].to_numpy()
    if len(first) == 0:
        raise InputError(
            f"field {label}: no id of the catalogue ({', '.join(rows.catalogue_id[:3])}, ...) is in the segmentation "
            f"map ({', '.join(place.index[:3])}, ...); do they belong together? Or match: {{by: position}}"
        )
    here = rows[["x", "y"]].to_numpy(float)[first]
    apart = segments[["x", "y"]].to_numpy(float)[second] - here
    return Match(
        first, second, np.hypot(*apart.T), np.zeros(len(first), bool), "pix", 10.0, (len(rows), len(segments)),
        tuple(np.nanmedian(apart, axis=0).tolist()), 0.0,
    )  # fmt: skip


def _why_so_few(match: Match, positions: tuple[np.ndarray, np.ndarray], unit: str) -> str:
    """What may be wrong with a match of too few pairs."""
    if not match.sizes[0]:
        return "no catalogue has a row here; see what `where` leaves, or say `match: {min_share: 0}`"
    text = (
        f"only {len(match)} of {match.sizes[0]} catalogue rows and {match.sizes[1]} segments match within "
        f"{match.radius:g} {unit} ({match.by_chance:.0%} would by chance)"
    )
    rows, segments = positions
    exchanged = crossmatch(rows[:, ::-1], segments, match.radius, unit)
    if unit == "pix" and len(exchanged) > 3 * max(len(match), 3):
        return f"{text}; with x and y exchanged {len(exchanged)} do: exchange them in the recipe"
    offset = common_offset(rows, segments, match.radius, unit)
    if offset is not None:
        along = "RA, Dec" if unit == "arcsec" else "x, y"
        return (
            f"{text}; {offset[2]} would if the catalogue moved by {offset[0]:+.2f}, {offset[1]:+.2f} {unit} in {along}"
            ": correct its positions (frame, first pixel 0 or 1) or the mosaic's WCS"
        )
    return (
        f"{text}; is it the catalogue of this field and depth? Otherwise a larger match: radius, or a lower min_share"
    )


def _joined(
    rows: pd.DataFrame, segments: pd.DataFrame, match: Match | None, settings: Matching, report: dict[str, Any]
) -> pd.DataFrame:
    """The objects: rows (with their segment, 0 for none) and, where they are kept, segments without a row."""
    objects = rows.assign(segment=np.int64(0))
    if match is not None:
        objects.loc[objects.index[match.first], "segment"] = segments.segment.to_numpy()[match.second]
    report["rows_without_segment"] = int((objects.segment == 0).sum())
    if settings.without_segment == "drop":
        objects = objects[objects.segment > 0]
    alone = segments[~segments.segment.isin(objects.segment)]
    report["segments_without_row"] = len(alone)
    report["policies"] = [settings.without_segment, settings.without_row]
    if settings.without_row == "keep":
        objects = pd.concat((objects, alone.drop(columns="area_pix")), ignore_index=True)
    return objects.reset_index(drop=True)


def _relabelled(segmentation: np.ndarray, objects: pd.DataFrame, unclaimed: np.ndarray, policy: str) -> np.ndarray:
    """The map with the objects' numbers from 1 on, in place of the segments' ids."""
    ids = np.unique(segmentation)
    new = np.zeros(len(ids), np.int32)
    owned = objects.segment.to_numpy() > 0
    new[np.searchsorted(ids, objects.segment.to_numpy()[owned])] = np.flatnonzero(owned) + 1
    if policy == "mask":
        new[np.searchsorted(ids, unclaimed)] = MASKED
    return new[np.searchsorted(ids, segmentation)]


def _checked_coverage(coverage: dict[str, float], label: str) -> dict[str, float]:
    """Refuse a field of which no pixel has data in all bands: nothing in it looks like what will be predicted on."""
    if coverage["all bands"] == 0:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in coverage.items() if name != "all bands")
        raise InputError(
            f"field {label}: no pixel has data in all bands (covered: {shares}); leave bands out with `bands: [...]`, "
            "or the field"
        )
    return coverage


def _mask_unknown(segmentation: np.ndarray, mosaic: Mosaic, settings: Detect) -> int:
    """Mask, in place, what is detected outside the given map's objects and does not touch any; returns how many."""
    found = detect(*stack(mosaic, settings), settings)
    known = np.unique(found[segmentation != 0])
    unknown = (found > 0) & ~np.isin(found, known)
    segmentation[unknown] = MASKED
    return len(np.unique(found[unknown]))


def _add_redshifts(truth: pd.DataFrame, survey: Survey, mosaic: Mosaic, report: dict[str, Any], label: str) -> None:
    """Fill redshift and redshift_source, in place: the first source that has one, then the catalogue's own."""
    own = truth.get("redshift", pd.Series(np.nan, truth.index)).astype(float)
    names = truth.get("catalogue", pd.Series("", truth.index))
    found, source = np.full(len(truth), np.nan), np.full(len(truth), "", object)
    report["redshifts"] = {}
    for item in survey.redshifts:
        values, about = item.values_for(truth, mosaic, label)
        new = np.isfinite(values) & ~np.isfinite(found)
        found[new], source[new] = values[new], item.name
        report["redshifts"][item.name] = about | {"used": int(new.sum())}
    own_new = (own >= 0).to_numpy() & ~np.isfinite(found)
    found[own_new], source[own_new] = own[own_new], names[own_new]
    truth["redshift"], truth["redshift_source"] = found.astype(np.float32), source


def _flag_faint(truth: pd.DataFrame, condition: str | None, label: str) -> int:
    """Flag the objects for which the condition holds, in place; returns their number."""
    faint = np.zeros(len(truth), bool) if condition is None else select(condition, truth, f"field {label}: faint")
    truth["flags"] |= np.where(faint, catalog.FLAGS["FAINT"].value, 0).astype(np.int32)
    return int(faint.sum())
