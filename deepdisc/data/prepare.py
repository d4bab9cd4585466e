"""Fields with truth, or with catalogues to make it from -> an on-disk data set of tiles, split by sky area.

What a recipe says is read by `deepdisc.data.recipe` and described in datasets/README.md.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fitsio
import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import Progress

from deepdisc.data.match_report import report_lines, summed
from deepdisc.data.mosaic import Mosaic
from deepdisc.data.recipe import Entry, Recipe, read_recipe
from deepdisc.data.regrid import regrid
from deepdisc.data.splits import plan_areas
from deepdisc.data.survey import make_truth
from deepdisc.data.tile_writer import TileWriter
from deepdisc.data.truth import check_truth, read_segmentation, read_truth
from deepdisc.errors import InputError, first_line
from deepdisc.files import atomic_folder, refuse_to_overwrite, sha256

DEFAULT_FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}

logger = logging.getLogger(__name__)

_OUTLINE_COLUMNS = ["id", "y0", "x0", "height", "width", "rle"]


@dataclass
class Field:
    """One entry of a recipe, its truth read or made, and checked.

    Attributes:
        name: of the field.
        mosaic: what `Mosaic.open` takes.
        segmentation_path: FITS map of the truth's ids; negative where light is to be masked.
        split: given by the recipe, or None.
        ebv: in place of what the mosaic says; "column" for the objects' own.
        shape: (height, width) in pixels.
        bands: names.
        pixel_scale_arcsec: side of a pixel.
        truth: one row per object, in the pixels of the field.
        outlines: whole outlines by id, or None.
        provenance: what dataset.yaml says of the field.
    """

    name: str
    mosaic: Any
    segmentation_path: Path
    split: str | None
    ebv: Any = None
    shape: tuple[int, int] = (0, 0)
    bands: tuple[str, ...] = ()
    pixel_scale_arcsec: float = float("nan")
    truth: pd.DataFrame = field(default_factory=pd.DataFrame)
    outlines: pd.DataFrame | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def segmentation(self) -> np.ndarray:
        """Read the segmentation map anew: keeping those of all fields would need their total size in memory."""
        return read_segmentation(self.segmentation_path, self.shape)


def prepare(
    recipe: str | Path,
    output: str | Path,
    *,
    tile_size: int = 512,
    fractions: Mapping[str, float] | None = None,
    bands: Sequence[str] | None = None,
    guard_pix: int | None = None,
    seed: int | None = None,
    overrides: Sequence[str] = (),
) -> Path:
    """Write the data set that `deepdisc.data.dataset.TileDataset` reads.

    Whole fields go to one split; fields that show the same sky stay together. With too few fields, or where the recipe
    asks for it, they are cut into blocks that are dealt out like a chequerboard, with a gap between blocks of different
    splits; an object that still reaches across a gap keeps its pixels only in the split that has most of them and is
    masked in the other.

    Args:
        recipe: YAML file; see `deepdisc.data.recipe`.
        output: folder to create; must not exist.
        tile_size: largest side of a tile in pixels; tiles of an area are equal to within a pixel and do not overlap.
        fractions: share of the sky for each of "train", "val", "test"; default those of the recipe, else 0.8, 0.1, 0.1.
        bands: names and order; default those of the recipe, else of the first field.
        guard_pix: width of the gap; default that of the recipe, else 32.
        seed: decides which field or block goes to which split; default that of the recipe, else 0.
        overrides: "KEY=VALUE" in place of what the recipe says, such as "data=FOLDER".

    Returns:
        `output`.

    Raises:
        InputError: anything wrong in recipe, mosaics, catalogues or truth; the output exists or cannot be written.
    """
    recipe, output = Path(recipe), Path(output)
    refuse_to_overwrite([output])
    if tile_size < 32:
        raise InputError(f"tile_size={tile_size} is too small; use at least 32 pixels")
    contents = read_recipe(recipe, overrides)
    if fractions and contents.fields[0].split is not None:
        raise InputError(f"{recipe}: its fields say their splits; leave --split out, or `split` in the recipe")
    shares = dict(fractions or contents.splits.fractions or DEFAULT_FRACTIONS)
    seed = contents.splits.seed if seed is None else seed
    with atomic_folder(output) as temporary:
        scratch = temporary / "scratch"
        scratch.mkdir()
        fields = _open_fields(contents, bands or contents.bands, scratch)
        reports = {item.name: item.provenance["report"] for item in fields if "report" in item.provenance}
        for line in report_lines(reports) if reports else ():
            logger.info(line)
        block_pix = _block_pix(contents, fields[0].pixel_scale_arcsec)
        guard_pix = contents.splits.guard_pix if guard_pix is None else guard_pix
        areas = plan_areas(fields, shares, guard_pix, seed, block_pix, tile_size)
        writer = TileWriter(temporary, fields[0].bands)
        with Progress(console=Console(stderr=True), transient=True) as progress:
            bar = progress.add_task("tiles", total=len(areas))
            for i, source in enumerate(fields):
                own = [area for area in areas if area.field == i]
                writer.write_field(source, own, tile_size, lambda: progress.advance(bar))
        shutil.rmtree(scratch)
        about: dict[str, Any] = {"seed": seed, "tile_size": tile_size}
        if fields[0].split is None:
            about |= {"fractions": shares, "guard_pix": guard_pix, "block_pix": block_pix}
        about["fields"] = [{"name": item.name, **item.provenance} for item in fields]
        if len(reports) > 1:
            about["report"] = summed(list(reports.values()))
        if contents.provenance is not None:
            about["recipe"] = contents.provenance
        named = {"name": contents.name, "survey": contents.survey}
        writer.finish(named, contents.class_names, fields[0].pixel_scale_arcsec, about)
    return output


def _block_pix(contents: Recipe, pixel_scale_arcsec: float) -> int | None:
    splits = contents.splits
    if splits.block_arcmin is not None:
        return max(1, round(splits.block_arcmin * 60 / pixel_scale_arcsec))
    return splits.block_pix


def _open_fields(contents: Recipe, bands: Sequence[str] | None, scratch: Path) -> list[Field]:
    fields: list[Field] = []
    for entry in contents.fields:
        found = _open_field(entry, contents.class_names, bands, scratch / f"{len(fields):05d}")
        if fields:
            _check_alike(fields[0], found)
        fields.append(found)
    return fields


def _open_field(entry: Entry, class_names: Sequence[str], bands: Sequence[str] | None, scratch: Path) -> Field:
    """Open a field, with its bands brought onto one grid and its truth made where the recipe says so.

    What has to be kept on disk until the tiles are written goes to the folder `scratch`.
    """
    source = entry.mosaic
    if entry.regrid is not None:
        source = str(regrid(source, scratch / "mosaic", entry.regrid, bands=bands).parent)
    ebv = None if entry.ebv == "column" else entry.ebv
    with Mosaic.open(source, ebv=ebv) as opened:
        mosaic = opened if bands is None else opened.select(list(bands))
        found = Field(
            name=entry.name,
            mosaic=source,
            segmentation_path=entry.segmentation or scratch / "segmentation.fits",
            split=entry.split,
            ebv=entry.ebv,
            shape=tuple(mosaic.shape),
            bands=tuple(mosaic.bands),
            pixel_scale_arcsec=float(mosaic.pixel_scale_arcsec),
            provenance={"conditions": entry.conditions, "ebv": mosaic.ebv_source},
        )
        if entry.survey is None:
            found.truth = read_truth(entry.truth, found.segmentation(), class_names)
            found.provenance = {"truth_sha256": sha256(entry.truth)} | found.provenance
            found.outlines = None if entry.outlines is None else _read_outlines(entry.outlines)
            return found
        found.truth, segmentation, report = make_truth(entry.survey, mosaic, class_names, entry.name)
    scratch.mkdir(exist_ok=True)
    fitsio.write(str(found.segmentation_path), segmentation)
    found.truth = check_truth(found.truth, np.maximum(segmentation, 0), class_names, f"field {entry.name}")
    if entry.ebv == "column":
        if "ebv" not in found.truth or found.truth.ebv.isna().all():
            raise InputError(f"field {entry.name}: `ebv: column` needs a catalogue whose `columns` say ebv")
        found.provenance["ebv"] = "column of the catalogue"
    found.provenance["sha256"] = {Path(file).name: sha256(file) for file in entry.survey.files}
    found.provenance["report"] = report
    return found


def _read_outlines(path: Path) -> pd.DataFrame:
    """Whole outlines: run-length codes (pycocotools' counts) of the rectangle at y0, x0 of each object."""
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a table of outlines: {first_line(error)}") from error
    lacking = [name for name in _OUTLINE_COLUMNS if name not in table]
    if lacking:
        raise InputError(f"{path}: lacks {', '.join(lacking)}; a table of outlines has {', '.join(_OUTLINE_COLUMNS)}")
    return table[_OUTLINE_COLUMNS]


def _check_alike(first: Field, other: Field) -> None:
    if set(other.bands) != set(first.bands):
        raise InputError(
            f"field {other.name!r} has bands {','.join(other.bands)}, {first.name!r} has {','.join(first.bands)}; list "
            "those they share as `bands` in the recipe"
        )
    if abs(other.pixel_scale_arcsec / first.pixel_scale_arcsec - 1) > 0.01:
        raise InputError(
            f"field {other.name!r} has {other.pixel_scale_arcsec:.4g} arcsec per pixel, {first.name!r} has "
            f"{first.pixel_scale_arcsec:.4g}; make one data set per pixel scale"
        )
