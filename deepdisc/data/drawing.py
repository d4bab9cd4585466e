"""A look at a data set: random tiles with their truth, where the tiles lie, distributions and counts, as one page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from astropy.io import fits
from astropy.wcs import WCS
from rich.console import Console
from rich.progress import track

from deepdisc import catalog, plots, webpage
from deepdisc.bands import rgb_bands
from deepdisc.data import census
from deepdisc.data.dataset import read_description, read_tile
from deepdisc.errors import InputError, first_line
from deepdisc.files import atomic_folder, write_json
from deepdisc.sky import PixelGrid, edges_to_centers

MEASURED_TILES = 100
MOST_TEXTS = 60  # more redshifts than that in one tile cannot be read
PANELS_PER_FIGURE = 9
_CLASS_COLORS = ("#4ade80", "#fde047", "#f472b6", "#38bdf8", "#fb923c", "#c084fc")
_BAD_PIXEL = (0.32, 0.12, 0.16)
_NEEDED = ("tile", "class_id", "flags", "area_pix", *catalog.BOX_COLUMNS)


def draw_dataset(root: str | Path, output: str | Path, tiles: int = 4, seed: int = 0) -> Path:
    """Draw a data set.

    Args:
        root: folder written by `prepare`.
        output: folder to write report.html, report.json and the pictures into; must not exist.
        tiles: number of random tiles of each split that are drawn.
        seed: which tiles these are.

    Returns:
        The path of report.html.

    Raises:
        InputError: no data set there, a file of it is unreadable, the output exists or cannot be written.
    """
    root, output = Path(root), Path(output)
    if tiles < 1 or seed < 0:
        raise InputError(f"tiles={tiles}, seed={seed}: draw at least one tile of each split, with a seed from 0 on")
    description = read_description(root)
    table = census.read_tiles(root)
    truth = census.Truth(root, table.split)
    with atomic_folder(output) as folder:
        counts = census.count(root, table, truth)
        pixels = _measure(root, description["bands"], table, np.random.default_rng([seed, 1]))
        found = list(census.distributions(root, table, truth))
        sections = [
            webpage.paragraph(_summary(root, description, counts), "lead"),
            "<h2>Counts</h2>" + _counts(counts),
            _matches(description, folder),
            "<h2>Where the tiles lie</h2>" + _sky(root, table, folder),
            "<h2>Random tiles</h2>" + _tiles(root, description, table, tiles, seed, folder),
            "<h2>Noise and masked pixels</h2>" + _pixels(pixels, description["bands"], folder),
            *_histograms(found, folder),
        ]
        webpage.write_page(folder / "report.html", f"data set {description['name']}", "What is in this data set?",
                           sections)  # fmt: skip
        write_json(folder / "report.json", _numbers(description, counts, pixels, found))
    return output / "report.html"


def _summary(root: Path, description: Mapping[str, Any], counts: Mapping[str, Mapping[str, Any]]) -> str:
    rows = sum(part["labelled"] for part in counts.values())
    without = sum(part["missing"]["redshift"] for part in counts.values())
    return (
        f"{description['name']} ({root.name}): {sum(part['tiles'] for part in counts.values()):,} tiles of "
        f"{', '.join(description['bands'])} at {description['pixel_scale_arcsec']:.4g} arcsec per pixel, "
        f"{sum(part['area_arcmin2'] for part in counts.values()):.4g} square arcminutes, "
        f"{sum(part['objects'] for part in counts.values()):,} objects. Of {rows:,} labelled rows (an object on a "
        f"border has one in every tile it touches) {without:,} lack a redshift that they could have."
    )


def _numbers(description, counts, pixels, found: Iterable[census.Distribution]) -> dict[str, Any]:
    summaries = {item.name: item.summary for item in found}
    return {
        "name": description["name"],
        "bands": list(description["bands"]),
        "splits": counts,
        "distributions": summaries,
        "pixels": census.summarise_pixels(description["bands"], [numbers for _, numbers in pixels]),
        "tiles_measured": len(pixels),
    }


# -------------------------------------------------------------------------------------------------------------- tables
def _counts(counts: Mapping[str, Mapping[str, Any]]) -> str:
    splits = list(counts)
    rows: list[tuple[str, ...]] = []

    def line(label: str, values: Iterable[Any]) -> None:
        rows.append((label, *(f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" for value in values)))

    names = {"tiles": "tiles", "tiles_without_objects": "... without a labelled object",
             "area_arcmin2": "area, square arcminutes", "objects": "objects, each counted once",
             "rows": "objects in tiles (rows of the truth)", "faint": "... flagged FAINT: not labelled",
             "without_outline": "... without a pixel in the segmentation map: not labelled",
             "labelled": "... labelled"}  # fmt: skip
    for key, label in names.items():
        line(label, (counts[split][key] for split in splits))
    for name in counts[splits[0]]["classes"]:
        line(f"...... {name}", (counts[split]["classes"][name] for split in splits))
    for name in counts[splits[0]]["flags"]:
        if name != "FAINT" and any(counts[split]["flags"][name] for split in splits):
            line(f"...... flagged {name}", (counts[split]["flags"][name] for split in splits))
    missing = [
        (label, *(_share(counts[split]["missing"][label], counts[split]["labelled"]) for split in splits))
        for label in counts[splits[0]]["missing"]
    ]
    return (
        f'<div class="row"><div>{webpage.table(("", *splits), rows)}</div><div><h3>Labelled rows without</h3>'
        f"{webpage.table(('', *splits), missing)}</div></div>"
    )


def _matches(description: Mapping[str, Any], folder: Path) -> str:
    """How the catalogues of foreign programs were joined, all fields together; "" where there were none."""
    fields = (description.get("provenance") or {}).get("fields") or []
    reports = [field["report"] for field in fields if field.get("report")]
    if not reports:
        return ""
    totals: dict[str, int] = {}
    for report in reports:
        for label, number in _numbers_in(report):
            totals[label] = totals.get(label, 0) + number
    text = f"<h2>Catalogues and their matches</h2>{webpage.table(('', 'number'), totals.items())}"
    pairs = [part for report in reports if (part := (report.get("match") or {}).get("separations"))]
    edges = {(name, tuple(part[name])) for part in pairs for name in part if name.startswith("edges_")}
    if len(edges) != 1:  # fields that were matched within different distances cannot be added up
        return text
    [(name, bins)] = edges
    counts = np.sum([part["counts"] for part in pairs], axis=0)
    series = [plots.Series("", np.array(bins), counts, np.sqrt(counts), kind="steps")]
    label = f"separation, {name.removeprefix('edges_')}"
    panel = plots.Panel(label, "matched pairs", series, note=f"n = {counts.sum():,}")
    picture = webpage.image(plots.png(plots.panels([panel])), "Pairs, with Poisson errors.", folder / "matches.png")
    return f'<div class="row"><div>{text}</div>{picture}</div>'


def _numbers_in(report: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, int]]:
    """Whole numbers of nested mappings: (`match, matched`, 760)."""
    for name, value in report.items():
        label = f"{path}, {name}".removeprefix(", ").replace("_", " ")
        if isinstance(value, Mapping):
            yield from _numbers_in(value, label)
        elif isinstance(value, int):
            yield label, value


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({100 * part / whole:.1f} %)" if whole else "-"


def _value(values: Mapping[str, float], name: str, form: str = ".4g") -> str:
    """`1.02 ± 0.01`; a dash where nothing was measured."""
    value, err = values[name], values[f"{name}_err"]
    if not np.isfinite(value):
        return "-"
    return f"{value:{form}}" + (f" ± {err:.2g}" if np.isfinite(err) else "")


# ------------------------------------------------------------------------------------------------------------- the sky
def _sky(root: Path, tiles: pd.DataFrame, folder: Path) -> str:
    """The tiles' corners on the sky; in the pixels of their field where there is one field and no WCS."""
    corners = _corners(root, tiles)
    on_sky = np.isfinite(corners).all(axis=(1, 2))
    unplaced = int((~on_sky).sum())
    splits = census.splits_of(tiles)
    if not on_sky.any():
        if tiles.field.nunique() > 1:
            return webpage.paragraph(f"No map: none of the {tiles.field.nunique():,} fields has a WCS.", "quiet")
        areas = {split: _pixel_corners(tiles[tiles.split == split]) for split in splits}
        figure = plots.sky_map(areas, "x, pixels of the field", "y, pixels of the field", east_left=False)
        return webpage.image(plots.png(figure), "The field has no WCS: pixels.", folder / "sky.png")
    offsets, center, unit = _tangent(corners)
    areas = {split: offsets[on_sky & (tiles.split == split).to_numpy()] for split in splits}
    label = f"from RA {center[0]:.5f}, Dec {center[1]:.5f} deg"
    figure = plots.sky_map(areas, f"east, {unit} {label}", f"north, {unit}", east_left=True)
    caption = "Tiles by split; a dot marks the centre of each."
    caption += f" {unplaced:,} tiles have no sky position." if unplaced else ""
    return webpage.image(plots.png(figure), caption, folder / "sky.png")


def _corners(root: Path, tiles: pd.DataFrame) -> np.ndarray:
    """(N, 4, 2) RA, Dec of the tiles' corners, NaN without a WCS; one header is read for each field."""
    corners = np.full((len(tiles), 4, 2), np.nan)
    field = tiles.field.to_numpy()
    for _, rows in pd.Series(np.arange(len(tiles))).groupby(field):
        first = tiles.iloc[rows.iloc[0]]
        wcs = _wcs(root / first.file)
        if wcs is None:
            continue
        grid = PixelGrid((int(first.height), int(first.width)), 1.0, wcs)
        edges = _pixel_corners(tiles.iloc[rows.to_numpy()]) - np.array([first.x0, first.y0])
        ra, dec = grid.to_sky(*edges_to_centers(edges).reshape(-1, 2).T)
        corners[rows.to_numpy()] = np.stack((ra, dec), axis=1).reshape(-1, 4, 2)
    return corners


def _wcs(path: Path) -> WCS | None:
    """The celestial WCS of a tile, for 0-based pixels of the tile."""
    try:
        with fits.open(path, memmap=True) as hdus:
            wcs = WCS(hdus["IMAGE"].header, naxis=2)
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {first_line(error)}; prepare the data set anew") from error
    return wcs if wcs.has_celestial else None


def _pixel_corners(tiles: pd.DataFrame) -> np.ndarray:
    """(N, 4, 2) x, y of the corners, pixel edges of the field."""
    x0, y0 = tiles.x0.to_numpy(float), tiles.y0.to_numpy(float)
    x1, y1 = x0 + tiles.width.to_numpy(), y0 + tiles.height.to_numpy()
    return np.stack([np.stack(pair, axis=1) for pair in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))], axis=1)


def _tangent(corners: np.ndarray) -> tuple[np.ndarray, tuple[float, float], str]:
    """Offsets (east times cos Dec, north) from the middle of all corners; their unit: arcmin, or deg if far apart."""
    angle = np.radians(corners[..., 0])
    # The circular mean: right ascensions may lie on both sides of 0.
    ra = np.degrees(np.arctan2(np.nanmean(np.sin(angle)), np.nanmean(np.cos(angle)))) % 360
    dec = (np.nanmin(corners[..., 1]) + np.nanmax(corners[..., 1])) / 2
    east = (corners[..., 0] - ra + 180) % 360 - 180
    offsets = np.stack((east * np.cos(np.radians(dec)), corners[..., 1] - dec), axis=-1)
    is_wide = np.nanmax(np.abs(offsets)) > 2
    return offsets * (1 if is_wide else 60), (float(ra), float(dec)), "deg" if is_wide else "arcmin"


# --------------------------------------------------------------------------------------------------------------- tiles
def _tiles(
    root: Path, description: Mapping[str, Any], tiles: pd.DataFrame, number: int, seed: int, folder: Path
) -> str:
    rng = np.random.default_rng([seed, 0])
    chosen = {
        split: sorted(rng.choice(own, size=min(number, len(own)), replace=False).tolist())
        for split in census.splits_of(tiles)
        if len(own := tiles.tile[tiles.split == split].to_numpy())
    }
    truth = _truth_of(root, [tile for own in chosen.values() for tile in own])
    text = webpage.paragraph(_legend(description), "quiet")
    for split, own in chosen.items():
        text += f"<h3>{split}</h3>"
        for tile in own:
            text += _tile(root, description, tiles.loc[tile], truth[truth.tile == tile], folder)
    return text


def _legend(description: Mapping[str, Any]) -> str:
    red, green, blue = rgb_bands(description["bands"])
    names = ("green", "yellow", "pink", "blue", "orange", "violet")
    classes = ", ".join(f"{names[i % len(names)]} {name}" for i, name in enumerate(description["class_names"]))
    return (
        f"Red, green, blue = {red}, {green}, {blue} on an asinh scale. White: outlines of the segmentation map; boxes: "
        f"labelled objects ({classes}); the number beside a box is its redshift (of the {MOST_TEXTS} largest objects). "
        "Dark red: masked in every band shown."
    )


def _truth_of(root: Path, tiles: Sequence[int]) -> pd.DataFrame:
    """The labelled rows of some tiles."""
    rows = pd.read_parquet(root / "truth.parquet", filters=[("tile", "in", tiles)])
    for name in _NEEDED:
        if name not in rows:
            raise InputError(f"{root / 'truth.parquet'}: there is no column {name!r}; prepare the data set anew")
    return rows[((rows["flags"] & catalog.FLAGS["FAINT"].value) == 0) & (rows["area_pix"] > 0)]


def _tile(root: Path, description: Mapping[str, Any], tile: pd.Series, truth: pd.DataFrame, folder: Path) -> str:
    bands = list(description["bands"])
    pixels = read_tile(root / tile.file, [bands.index(name) for name in rgb_bands(bands)])
    rgb = plots.asinh_rgb(pixels.image)
    rgb[pixels.mask.all(axis=0)] = _BAD_PIXEL
    has_redshift = np.isfinite(truth.redshift) if "redshift" in truth else np.zeros(len(truth), bool)
    title = (
        f"tile {tile.tile}, {tile.split}: x {tile.x0} to {tile.x0 + tile.width}, y {tile.y0} to "
        f"{tile.y0 + tile.height} of {tile.field}; {len(truth):,} labelled objects, {int(has_redshift.sum()):,} with "
        "a redshift"
    )
    boxes = truth[list(catalog.BOX_COLUMNS)].to_numpy(float)
    colors = [_CLASS_COLORS[int(i) % len(_CLASS_COLORS)] for i in truth.class_id]
    borders = plots.label_borders(pixels.segmentation)
    figure = plots.tile(rgb, borders, boxes, colors, _redshift_texts(truth, boxes), title)
    return webpage.image(plots.png(figure, dpi=130), f"Tile {tile.tile}", folder / "tiles" / f"{tile.tile:05d}.png")


def _redshift_texts(truth: pd.DataFrame, boxes: np.ndarray) -> list[str]:
    if "redshift" not in truth:
        return [""] * len(truth)
    sizes = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    largest = set(np.argsort(-sizes)[:MOST_TEXTS].tolist())
    return [f"{z:.2f}" if i in largest and np.isfinite(z) else "" for i, z in enumerate(truth.redshift.to_numpy(float))]


# -------------------------------------------------------------------------------------------------------------- pixels
def _measure(
    root: Path, bands: Sequence[str], tiles: pd.DataFrame, rng: np.random.Generator
) -> list[tuple[str, dict[str, Any]]]:
    """(split, numbers of `census.measure_pixels`) of a random sample of the tiles."""
    chosen = np.sort(rng.choice(len(tiles), size=min(MEASURED_TILES, len(tiles)), replace=False))
    measured = []
    for row in track(chosen.tolist(), description="tiles", console=Console(stderr=True), transient=True):
        tile = tiles.iloc[row]
        pixels = read_tile(root / tile.file, list(range(len(bands))))
        is_sky = pixels.segmentation == 0
        measured.append((tile.split, census.measure_pixels(pixels.image, pixels.variance, pixels.mask, is_sky)))
    return measured


def _pixels(measured: Sequence[tuple[str, Mapping[str, Any]]], bands: Sequence[str], folder: Path) -> str:
    summary = census.summarise_pixels(bands, [numbers for _, numbers in measured])
    rows = [
        (band, _value(v, "noise_njy"), _value(v, "scatter", ".3f"), _value(v, "sky", "+.3f"),
         f"{100 * v['masked']:.2f} ± {100 * np.nan_to_num(v['masked_err']):.2g} %", v["noise_njy_n"])
        for band, v in summary.items()
    ]  # fmt: skip
    head = ("band", "noise per pixel, nJy", "sky scatter / noise", "sky level / noise", "masked", "tiles")
    note = (
        f"Medians over {len(measured)} random tiles. Sky: pixels of no object. Its scatter over the stated noise is 1 "
        "where the noise is what is stated; below 1 neighbouring pixels are correlated (or the noise is overstated)."
    )
    return webpage.paragraph(note, "quiet") + webpage.table(head, rows) + _noise_figure(measured, bands, folder)


def _noise_figure(measured: Sequence[tuple[str, Mapping[str, Any]]], bands: Sequence[str], folder: Path) -> str:
    splits = list(dict.fromkeys(split for split, _ in measured))
    items = []
    for key, label in (("noise_njy", "noise per pixel, nJy"), ("scatter", "sky scatter / noise"),
                       ("masked", "masked share of the pixels")):  # fmt: skip
        series = []
        for number, split in enumerate(splits):
            values = np.array([numbers[key] for name, numbers in measured if name == split], dtype=float)
            x = np.tile(np.arange(len(bands)) + 0.12 * (number - (len(splits) - 1) / 2), len(values))
            series.append(plots.Series(split, x, values.ravel(), color=plots.SERIES[number % len(plots.SERIES)]))
        items.append(plots.Panel("", label, series, log_y=key == "noise_njy", ticks=bands,
                                 level=1.0 if key == "scatter" else None,
                                 ylim=(0, None) if key == "masked" else None))  # fmt: skip
    return webpage.image(plots.png(plots.panels(items)), "Each dot is a tile.", folder / "noise.png")


# ---------------------------------------------------------------------------------------------------------- histograms
_TITLES = {"magnitudes": "Magnitudes", "colours": "Colours", "objects": "Objects", "tiles": "Crowding"}


def _histograms(found: Sequence[census.Distribution], folder: Path) -> list[str]:
    sections = []
    for group, title in _TITLES.items():
        items = [item for item in found if item.group == group]
        if not items:
            continue
        text = f"<h2>{title}</h2>"
        for start in range(0, len(items), PANELS_PER_FIGURE):
            part = items[start : start + PANELS_PER_FIGURE]
            figure = plots.panels([_panel(item) for item in part])
            keep = folder / f"{group}_{start // PANELS_PER_FIGURE}.png"
            caption = "Share of each split's rows in a bin, with Poisson errors; n = rows with a value."
            text += webpage.image(plots.png(figure), caption, keep)
        sections.append(text + _summaries(items))
    return sections


def _panel(item: census.Distribution) -> plots.Panel:
    series = []
    for split, counts in item.counts.items():
        n = item.summary[split]["n"]
        scale = 1 / n if n else 0.0
        series.append(plots.Series(split, item.edges, counts * scale, np.sqrt(counts) * scale, kind="steps"))
    note = "n = " + ", ".join(f"{item.summary[split]['n']:,}" for split in item.counts)
    return plots.Panel(item.label, "share of the rows", series, log_x=item.logarithmic, note=note)


def _summaries(items: Sequence[census.Distribution]) -> str:
    rows = [
        (item.name, split, f"{s['n']:,}", f"{s['missing']:,}", *(_plain(s[key]) for key in ("median", "p16", "p84")))
        for item in items
        for split, s in item.summary.items()
    ]
    return webpage.table(("", "split", "n", "missing", "median", "16 %", "84 %"), rows)


def _plain(value: float) -> str:
    return f"{value:.4g}" if np.isfinite(value) else "-"
