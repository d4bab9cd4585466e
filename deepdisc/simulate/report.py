"""What a simulated sky looks like, and whether it is what it was drawn from: report.html and report.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from astropy.io import fits
from scipy import ndimage

from deepdisc import catalog, plots, webpage
from deepdisc.bands import rgb_bands
from deepdisc.errors import InputError
from deepdisc.files import write_json
from deepdisc.photometry import mag_from_njy
from deepdisc.simulate import comparison
from deepdisc.simulate.conditions import Conditions
from deepdisc.simulate.depth import measure_depth
from deepdisc.simulate.objects import effective_hlr_arcsec, lit_objects
from deepdisc.simulate.population import GALAXY, STAR, Population
from deepdisc.simulate.settings import Sky

MEASURED_FIELDS = 6  # depths are measured in no more
EXPECTED_ROWS = 40_000  # rows of the population that the fields are compared with, all together
PICTURE_SIDE = 1000
STAMPS = 8
DEPTH_TOLERANCE = 0.1  # mag
_AROUND_OBJECTS = 3  # pixels around an outline that are not taken to be empty


def write_report(
    output: Path,
    sky: Sky,
    conditions: Sequence[Conditions],
    folders: Sequence[Path],
    compare: Path | None = None,
    compare_area_arcmin2: float | None = None,
) -> Path:
    """Write report.html and report.json for simulated fields.

    Args:
        output: folder to write them into.
        sky: the settings.
        conditions: of each field.
        folders: of each field; as `fields.simulate` writes them.
        compare: another catalogue to draw beside the population: mag_<band> (AB) or flux_<band> (nJy) and, if it has
            them, redshift, hlr_arcsec, class_id.
        compare_area_arcmin2: its area; without it, its numbers are scaled to those drawn.

    Returns:
        The path of report.html.

    Raises:
        InputError: the catalogue is unreadable or has no band of the sky.
    """
    bands = _bands(conditions[0])
    truths = [catalog.read(folder / "truth.parquet") for folder in folders]
    truth = pd.concat(
        [part[comparison.is_centred(part, c.grid.shape)] for part, c in zip(truths, conditions, strict=True)],
        ignore_index=True,
    )
    area = sum(_area_deg2(one) for one in conditions)
    drawn = comparison.without_magnification(truth, bands)
    sides = {"population": comparison.compare(drawn, expected_objects(sky, conditions), area, bands)}
    if compare is not None:
        other = weighted(read_catalogue(compare, bands), drawn, area, compare_area_arcmin2)
        sides[compare.stem] = comparison.compare(drawn, other, area, bands)
    depths = measure_depths(conditions[:MEASURED_FIELDS], folders[:MEASURED_FIELDS])
    numbers = {
        "fields": len(folders), "area_arcmin2": area * 3600, "bands": bands,
        "objects": len(truth), "labelled": int(comparison.is_labelled(truth).sum()),
        "depth": depths, **{f"against_{name}": side for name, side in sides.items()},
    }  # fmt: skip
    first = _Field(folders[0], conditions[0], truths[0])
    webpage.write_page(
        output / "report.html",
        f"simulated sky, {conditions[0].instrument.name}",
        "Is this sky what it was drawn from?",
        [
            webpage.paragraph(_summary(numbers, conditions[0], sides["population"]), "lead"),
            _picture(first, bands),
            _depth_section(depths, bands),
            *_comparisons(sides, bands, sky),
            _distributions(truth),
            _stamps(first, bands),
        ],
    )
    write_json(output / "report.json", numbers)
    return output / "report.html"


def _bands(conditions: Conditions) -> list[str]:
    """From blue to red."""
    return [band.name for band in sorted(conditions.bands, key=lambda band: band.pivot_nm)]


def _area_deg2(conditions: Conditions) -> float:
    height, width = conditions.grid.shape
    return height * width * (conditions.instrument.pixel_scale_arcsec / 3600) ** 2


def _summary(numbers: Mapping[str, Any], conditions: Conditions, against: Mapping[str, Any]) -> str:
    amounts = " and ".join(
        f"{row['n']:,} {name.replace('galaxy', 'galaxies').replace('star', 'stars')} where the population lets expect "
        f"{row['expected']:,.4g} ± {np.sqrt(row['expected']):,.2g}"
        for name, row in against["numbers"].items()
    )
    deviating = [
        f"{band} ({row['difference']:+.2f} ± {row['depth_err']:.2f})"
        for band, row in numbers["depth"].items()
        if abs(row["difference"]) > DEPTH_TOLERANCE
    ]
    depth = f"off by more than {DEPTH_TOLERANCE} mag in {', '.join(deviating)}" if deviating else "as stated"
    return (
        f"{numbers['fields']} field{'s' if numbers['fields'] > 1 else ''} of {conditions.instrument.name}, "
        f"{numbers['area_arcmin2']:.4g} square arcminutes, {len(numbers['bands'])} bands. Drawn were {amounts}; "
        f"{numbers['labelled']:,} objects are labelled. The measured depths are {depth}."
    )


# ------------------------------------------------------------------------------------------------------- what to expect
def expected_objects(sky: Sky, conditions: Sequence[Conditions], seed: int = 0) -> pd.DataFrame:
    """Rows of the population under the fields' conditions, cut as the drawn objects are, with their `weight`.

    Returns:
        class_id, redshift, hlr_arcsec, mag_<band>, weight: the number of objects in all fields that a row stands for.
    """
    population = Population.load(sky.population, sky.population_part, sky.templates)
    rng = np.random.default_rng(seed)
    share = max(1, EXPECTED_ROWS // len(conditions))
    parts = []
    for one in conditions:
        for kind, factor in ((GALAXY, one.galaxy_density), (STAR, one.star_density)):
            rows = population.rows[population.rows.class_id == kind]
            total = population.density_per_deg2[kind] * factor * _area_deg2(one)
            rows = rows.sample(min(share, len(rows)) if total > 0 else 0, random_state=rng)
            objects = lit_objects(population, rows, one)
            objects["weight"] = total * rows.weight.to_numpy() / rows.weight.sum()
            parts.append(objects[objects.estimated_snr >= sky.draw_snr])
    objects = pd.concat(parts, ignore_index=True)
    return objects.assign(hlr_arcsec=effective_hlr_arcsec(objects))


def read_catalogue(path: Path, bands: Sequence[str]) -> pd.DataFrame:
    """Another catalogue to compare with: class_id (galaxies where it has none) and mag_<band>; see `write_report`.

    Raises:
        InputError: it is unreadable, or has no brightness in any band of the sky.
    """
    frame = catalog.read(path)
    for band in bands:
        if f"mag_{band}" not in frame and f"flux_{band}" in frame:
            frame[f"mag_{band}"] = mag_from_njy(frame[f"flux_{band}"])
    if not any(f"mag_{band}" in frame for band in bands):
        raise InputError(
            f"{path}: it has neither mag_BAND nor flux_BAND for any of {', '.join(bands)}; its columns are "
            f"{', '.join(frame.columns)}; rename them"
        )
    return frame.assign(class_id=frame.get("class_id", GALAXY))


def weighted(
    catalogue: pd.DataFrame, drawn: pd.DataFrame, area_deg2: float, catalogue_arcmin2: float | None
) -> pd.DataFrame:
    """The catalogue with the `weight` that its area gives its rows; without one, it gets as many galaxies as drawn.

    Raises:
        InputError: the area is not positive.
    """
    if catalogue_arcmin2 is None:
        counts = [(frame.class_id == GALAXY).sum() for frame in (drawn, catalogue)]
        return catalogue.assign(weight=counts[0] / max(counts[1], 1))
    if not catalogue_arcmin2 > 0:
        raise InputError(f"area of the catalogue: {catalogue_arcmin2} square arcminutes; it must be positive")
    return catalogue.assign(weight=area_deg2 * 3600 / catalogue_arcmin2)


# --------------------------------------------------------------------------------------------------------------- depth
class _Field:
    """The files of one field."""

    def __init__(self, folder: Path, conditions: Conditions, truth: pd.DataFrame | None = None):
        self.folder, self.conditions, self.truth = folder, conditions, truth
        self.segmentation = fits.getdata(folder / "segmentation.fits")

    def read(self, band: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(H, W) image (nJy, NaN where bad), variance (nJy^2), and bool: good."""
        with fits.open(self.folder / f"{band}.fits", memmap=False) as hdus:
            image, variance = hdus[0].data.astype(np.float32), hdus["VARIANCE"].data.astype(np.float32)
            good = np.isfinite(image) & np.isfinite(variance)
            if "MASK" in hdus:
                good &= hdus["MASK"].data == 0
        image[~good] = np.nan
        return image, variance, good


def measure_depths(conditions: Sequence[Conditions], folders: Sequence[Path]) -> dict[str, dict[str, float]]:
    """Band -> depth, depth_err, stated (means over the fields), difference, n (places), fields."""
    rows: dict[str, list[dict[str, float]]] = {band.name: [] for band in conditions[0].bands}
    for number, (one, folder) in enumerate(zip(conditions, folders, strict=True)):
        field = _Field(folder, one)
        away = ~ndimage.binary_dilation(field.segmentation > 0, iterations=_AROUND_OBJECTS)
        for index, band in enumerate(one.bands):
            image, _, good = field.read(band.name)
            found = measure_depth(image, away & good, one, index, np.random.default_rng([number, index]))
            if np.isfinite(found["depth"]):
                rows[band.name].append(found)
    return {band: _mean_depth(found) for band, found in rows.items()}


def _mean_depth(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    if not found:
        return dict.fromkeys(("depth", "depth_err", "stated", "difference"), float("nan")) | {"n": 0, "fields": 0}
    depth, err, stated = (np.array([row[key] for row in found]) for key in ("depth", "depth_err", "stated"))
    return {
        "depth": float(depth.mean()), "depth_err": float(np.sqrt((err**2).sum()) / len(found)),
        "stated": float(stated.mean()), "difference": float((depth - stated).mean()),
        "n": int(sum(row["n"] for row in found)), "fields": len(found),
    }  # fmt: skip


def _depth_section(depths: Mapping[str, Mapping[str, float]], bands: Sequence[str]) -> str:
    measured = [band for band in bands if depths[band]["fields"]]
    rows = [
        (band, f"{d['stated']:.2f}", f"{d['depth']:.2f} ± {d['depth_err']:.2f}", f"{d['difference']:+.2f}",
         f"{d['n']:,}", d["fields"])
        for band, d in ((band, depths[band]) for band in measured)
    ]  # fmt: skip
    text = "<h2>Depth</h2>" + webpage.paragraph(
        "5 sigma, point source, AB mag: what the noise of the instrument stands for, and what the scatter of fluxes in "
        "empty places of the written images says (in the same aperture, or with the PSF as weight). Faint sources and "
        "correlated noise make the measured depth shallower.",
        "quiet",
    )
    if not measured:
        return text + webpage.paragraph("Nothing measured: too few places without objects.")
    y = np.array([depths[band]["difference"] for band in measured])
    err = np.array([depths[band]["depth_err"] for band in measured])
    series = [plots.Series("", np.arange(len(measured)), y, err)]
    limit = max(0.15, 1.3 * float(np.abs(y).max()))
    panel = plots.Panel("", "measured - stated depth, mag", series, level=0.0, ticks=measured, ylim=(-limit, limit))
    head = ("band", "stated", "measured", "difference", "empty places", "fields")
    return (
        f'{text}<div class="row">{webpage.table(head, rows)}'
        f"{webpage.image(plots.png(plots.panels([panel])), 'Bars: bootstrap over the places.')}</div>"
    )


# --------------------------------------------------------------------------------------------------------- comparisons
def _comparisons(sides: Mapping[str, Mapping[str, Any]], bands: Sequence[str], sky: Sky) -> list[str]:
    note = (
        f"Population: the rows that the sky is drawn from, under the fields' conditions, fainter ones left out as they "
        f"are from the sky (estimated signal-to-noise below {sky.draw_snr:g}); lensing is taken out of the magnitudes. "
        "Error bars are Poisson; galaxies that cluster scatter more."
    )
    first = next(iter(sides.values()))
    star_bands = [band for band in bands if first["star_counts"][band]["rows"]]
    counts = [_count_panel(sides, "counts", band) for band in bands]
    stars = [_count_panel(sides, "star_counts", band) for band in star_bands]
    colours = [_median_panel({n: s["colours"][name] for n, s in sides.items()}, "redshift", f"{name}, mag")
               for name in first["colours"]]  # fmt: skip
    sections = [
        "<h2>Number counts</h2>" + webpage.paragraph(note, "quiet") + _figure(counts, "Galaxies.") + _chi2(sides, bands)
    ]
    if stars:
        sections.append("<h3>Stars</h3>" + _figure(stars[:: max(1, len(stars) // 3)][:3], "Stars."))
    caption = "Median (points with errors, lines) and central 68 % (shaded: population; thin bars: drawn)."
    if any(panel.series for panel in colours):
        sections.append("<h2>Colours against redshift</h2>" + _figure(colours, caption))
    band = first["size_band"]
    sizes = {name: side["size_magnitude"] for name, side in sides.items()}
    shapes = [
        _histogram_panel(sides, "sizes", "half-light radius, arcsec", log_x=True),
        _median_panel(sizes, f"{band}, AB mag", "log10 (half-light radius / arcsec)"),
        _histogram_panel(sides, "redshifts", "redshift", log_x=False),
    ]
    limits = [
        (f"{what}, against {name}", f"{side[f'{key}_ks']:.3f}", f"{side[f'{key}_ks_limit']:.3f}")
        for name, side in sides.items()
        for what, key in (("sizes", "size"), ("redshifts", "redshift"))
        if np.isfinite(side[f"{key}_ks"])
    ]
    head = ("largest distance of the cumulative distributions", "found", "exceeded by chance once in 20")
    sections.append("<h2>Sizes and redshifts</h2>" + _figure(shapes, caption) + webpage.table(head, limits))
    return sections


def _figure(items: Sequence[plots.Panel], caption: str) -> str:
    return webpage.image(plots.png(plots.panels(items)), caption)


def _chi2(sides: Mapping[str, Mapping[str, Any]], bands: Sequence[str]) -> str:
    rows = [
        (band, *(f"{s['counts'][band]['chi2']:.1f} in {s['counts'][band]['bins']} bins" for s in sides.values()))
        for band in bands
    ]
    return webpage.table(("chi2 of the galaxies' counts", *(f"against {name}" for name in sides)), rows)


def _middles(rows: comparison.Rows) -> np.ndarray:
    return np.array([(row["low"] + row["high"]) / 2 for row in rows])


def _count_panel(sides: Mapping[str, Mapping[str, Any]], kind: str, band: str) -> plots.Panel:
    first = next(iter(sides.values()))[kind][band]["rows"]
    found = [row for row in first if row["n"]]
    y, err = (np.array([row[key] for row in found]) for key in ("density", "density_err"))
    series = [plots.Series("drawn", _middles(found), y, np.minimum(err, 0.7 * y))]
    for side, color, name in zip(sides.values(), (plots.ORANGE, plots.GREEN), sides, strict=False):
        rows = [row for row in side[kind][band]["rows"] if row["expected_density"] > 0]
        line = np.array([row["expected_density"] for row in rows])
        series.append(plots.Series(name, _middles(rows), line, kind="line", color=color))
    note = f"n = {sum(row['n'] for row in first):,}"
    return plots.Panel(f"{band}, AB mag", "objects per mag and deg$^2$", series, log_y=True, note=note)


def _median_panel(sides: Mapping[str, comparison.Rows], xlabel: str, ylabel: str) -> plots.Panel:
    first = next(iter(sides.values()))
    series = []
    for rows, color, name in zip(sides.values(), (plots.ORANGE, plots.GREEN), sides, strict=False):
        rows = [row for row in rows if np.isfinite(row["expected_median"])]
        x, y, width = _middles(rows), *(np.array([r[k] for r in rows]) for k in ("expected_median", "expected_scatter"))
        series.append(plots.Series("", x, y - width, y + width, kind="band", color=color))
        series.append(plots.Series(name, x, y, kind="line", color=color))
    x, y, err, width = _middles(first), *(np.array([r[k] for r in first]) for k in ("median", "median_err", "scatter"))
    series.append(plots.Series("", x, y, width, kind="bars", color=plots.BLUE))
    series.append(plots.Series("drawn", x, y, err, color=plots.BLUE))
    note = f"n = {sum(row['n'] for row in first):,}"
    return plots.Panel(xlabel, ylabel, series if first else [], note=note)


def _histogram_panel(sides: Mapping[str, Mapping[str, Any]], key: str, xlabel: str, log_x: bool) -> plots.Panel:
    first = next(iter(sides.values()))[key]
    n = np.array([row["n"] for row in first], dtype=float)
    series = []
    for side, color, name in zip(sides.values(), (plots.ORANGE, plots.GREEN), sides, strict=False):
        rows = side[key]
        if any(row["expected"] for row in rows):
            y = np.array([row["expected"] for row in rows])
            series.append(plots.Series(name, _bin_edges(rows), y, kind="steps", color=color))
    if len(first):
        series.append(plots.Series("drawn", _bin_edges(first), n, np.sqrt(n), kind="steps", color=plots.BLUE))
    return plots.Panel(xlabel, "galaxies in a bin", series, log_x=log_x, note=f"n = {int(n.sum()):,}")


def _bin_edges(rows: comparison.Rows) -> np.ndarray:
    return np.array([rows[0]["low"], *(row["high"] for row in rows)])


# ------------------------------------------------------------------------------------------------- what is in the truth
def _distributions(truth: pd.DataFrame) -> str:
    labelled = comparison.is_labelled(truth)
    faint = truth[~labelled]
    truth = truth[labelled]
    items = [
        _shares("signal-to-noise, all bands", {"labelled": truth.snr, "faint": faint.snr}, True),
        _shares("blendedness", {"labelled": truth.blendedness}, False),
        _shares("area of the outline, pixels", {"labelled": truth.area_pix}, True),
    ]
    caption = "Share of the objects in a bin, Poisson errors. Faint: drawn, but below the label's signal-to-noise."
    median = truth.blendedness.median()
    blended = (truth.blendedness > 0.1).mean() if len(truth) else float("nan")
    err = np.sqrt(blended * (1 - blended) / len(truth)) if len(truth) else float("nan")
    text = f"Of {len(truth):,} labelled objects {100 * blended:.1f} ± {100 * err:.1f} % are blended by more than 0.1 "
    text += f"(median {median:.3f}): neighbours give more than a tenth of the light in their outline."
    return "<h2>Signal-to-noise and blending</h2>" + webpage.paragraph(text) + _figure(items, caption)


def _shares(label: str, parts: Mapping[str, pd.Series], log_x: bool) -> plots.Panel:
    values = {
        name: (v := part.to_numpy(float))[np.isfinite(v) & ((v > 0) | (not log_x))] for name, part in parts.items()
    }
    everything = np.concatenate(list(values.values()))
    low, high = np.percentile(everything, (0.2, 99.8)) if len(everything) else (1.0, 2.0)
    high = high if high > low else low + 1
    edges = np.geomspace(low, high, 31) if log_x else np.linspace(low, high, 31)
    series = []
    for name, own in values.items():
        counts = np.histogram(own, edges)[0]
        scale = 1 / max(len(own), 1)
        series.append(plots.Series(name, edges, counts * scale, np.sqrt(counts) * scale, kind="steps"))
    note = "n = " + ", ".join(f"{len(own):,}" for own in values.values())
    return plots.Panel(label, "share of the objects", series, log_x=log_x, note=note)


# ------------------------------------------------------------------------------------------------------------ pictures
def _picture(field: _Field, bands: Sequence[str]) -> str:
    chosen = rgb_bands(bands)
    height, width = field.conditions.grid.shape
    h, w = min(height, PICTURE_SIDE), min(width, PICTURE_SIDE)
    y0, x0 = (height - h) // 2, (width - w) // 2
    planes = {band: field.read(band)[0][y0 : y0 + h, x0 : x0 + w] for band in dict.fromkeys(chosen)}
    figure = plots.picture(plots.asinh_rgb(np.stack([planes[band] for band in chosen])), (x0, y0))
    arcsec = field.conditions.instrument.pixel_scale_arcsec
    caption = (
        f"{field.folder.name}, {w * arcsec:.4g} x {h * arcsec:.4g} arcsec; red, green, blue = {', '.join(chosen)}, "
        "asinh scale. Black: bad pixels."
    )
    return "<h2>The field</h2>" + webpage.image(plots.png(figure), caption)


def _stamps(field: _Field, bands: Sequence[str]) -> str:
    assert field.truth is not None
    truth = field.truth[comparison.is_labelled(field.truth) & (field.truth.class_id == GALAXY)]
    middle = f"mag_{bands[len(bands) // 2]}"
    scale = field.conditions.instrument.pixel_scale_arcsec
    half = max(12, round(1.2 / scale))
    height, width = field.conditions.grid.shape
    inside = truth.x.between(half, width - half - 1) & truth.y.between(half, height - half - 1)
    truth = truth[inside & np.isfinite(truth[middle])].sort_values(middle)
    if truth.empty:
        return ""
    mags = truth[middle].to_numpy()
    chosen = truth.iloc[np.unique(np.searchsorted(mags, np.linspace(mags[0], mags[-1], STAMPS)))]
    places = [(round(y), round(x)) for y, x in zip(chosen.y, chosen.x, strict=True)]
    windows = [(slice(y - half, y + half + 1), slice(x - half, x + half + 1)) for y, x in places]
    by_band = []
    for band in bands:  # a field in all bands at once may not fit into the memory
        image, variance, _ = field.read(band)
        by_band.append([image[window] / np.sqrt(variance[window]) for window in windows])
    texts = [
        f"{mag:.1f} mag\nz {z:.2f}\nS/N {snr:.0f}"
        for mag, z, snr in zip(chosen[middle], chosen.redshift, chosen.snr, strict=True)
    ]
    images = list(zip(*by_band, strict=True))
    side = (2 * half + 1) * scale
    caption = f"Galaxies from bright to faint (magnitude: {middle[4:]}), {side:.2g} arcsec wide, asinh scale."
    return "<h2>Galaxies</h2>" + webpage.image(plots.png(plots.stamps(images, texts, bands)), caption)
