"""Tables of fluxes, redshifts and shears by all methods, on the same objects, with bootstrap errors; in Markdown.

Legend: T true objects; f measured and f0 true flux; "x / this" is our figure over that of the line, with its paired
95 % interval.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from measurement_objects import APERTURE, KRON, OPTIMAL, OURS, TRUE_APERTURE, WITHOUT_FLUXES, Objects

from deepdisc.evaluation import pit as pit_tests
from deepdisc.evaluation.bootstrap import Resampling, paired_differences, with_errors
from deepdisc.evaluation.flux import flux_metrics, flux_of, sigma_68, uncertainty
from deepdisc.evaluation.pdf_columns import read_pdfs
from deepdisc.evaluation.pdf_scores import pdf_metrics, pdf_scores
from deepdisc.evaluation.pdfs import PDFs
from deepdisc.evaluation.photoz import point_metrics
from deepdisc.evaluation.printed import format_difference, markdown, measured
from deepdisc.evaluation.shear import bias_metrics, usable_shears, without_shapes

LEAST_SNR = 10.0
LEAST_OBJECTS = 10  # of a line
KS_OBJECTS = 5000  # any PDF fails a test on enough objects: the second p is of so many drawn at random
SNR_CUTS = (0.0, 10.0, 30.0)
SHEAR_SNR_CUTS = (10.0, 20.0, 40.0)


# -------------------------------------------------------------------------------------------------------------- fluxes
def flux_text(objects: Objects, resampling: Resampling) -> str:
    """All tables of fluxes."""
    ours, truth = objects.found[OURS], objects.truth
    if f"flux_{objects.bands[0]}" not in ours:
        return "The catalogue has no fluxes."
    isolated = {band: truth["isolated"].to_numpy() for band in objects.bands}
    blended = {band: truth[f"blend_{band}"].to_numpy() for band in objects.bands}
    return "\n\n".join(
        [
            f"**Isolated objects, S/N > {LEAST_SNR:g} in the band**: f against f0; {found_shares(objects, isolated)}.",
            flux_table(objects, isolated, (OURS, OPTIMAL, KRON, APERTURE), resampling),
            f"**Blends** (S/N > {LEAST_SNR:g}; a neighbour within 2 r50, between half and twice as bright), those that "
            f"both found; {found_shares(objects, blended)}.",
            flux_table(objects, blended, (OURS, KRON, APERTURE), resampling),
            "The same, all that we found (apertures at true positions; weights as if alone):",
            flux_table(objects, blended, (OURS, TRUE_APERTURE, OPTIMAL), resampling),
            "**Honesty of our errors and PDFs**, all matched objects that are not spoilt (edge, masked, saturated):",
            honesty_table(objects, resampling),
        ]
    )


def bright(truth: pd.DataFrame, band: str) -> np.ndarray:
    """(T,) bool: true signal-to-noise in the band, with the object's own profile as weight, above LEAST_SNR."""
    return (truth[f"flux_{band}"] / truth[f"fluxerr_{band}"] > LEAST_SNR).to_numpy()


def found_shares(objects: Objects, chosen: dict[str, np.ndarray]) -> str:
    """How many of the chosen bright objects (of any band) each program finds."""
    some = np.any([chosen[band] & bright(objects.truth, band) for band in objects.bands], axis=0)
    shares = [
        f"{name.split()[0]} finds {int((some & np.isfinite(objects.found[name]['x'].to_numpy(float))).sum()):,}"
        for name in (OURS, KRON)
    ]
    return f"{int(some.sum()):,} in any band, of which {' and '.join(shares)}"


def flux_table(objects: Objects, chosen: dict[str, np.ndarray], methods: Sequence[str], resampling: Resampling) -> str:
    """Bias, scatter and width of pulls of each method, band by band, on the objects that all methods measured."""
    body = []
    for band in objects.bands:
        true = objects.truth[f"flux_{band}"].to_numpy(float)
        fluxes = {name: flux_of(objects.found[name], band) for name in methods}
        used = chosen[band] & bright(objects.truth, band) & np.isfinite(list(fluxes.values())).all(0)
        n = int(used.sum())
        if n < LEAST_OBJECTS:
            body.append([band, f"only {n} objects", *[""] * 5])
            continue
        for name, flux in fluxes.items():
            error = objects.found[name][f"fluxerr_{band}"].to_numpy(float)
            found = with_errors(flux_metrics, flux[used], true[used], resampling=resampling)
            pull = with_errors(_width, (flux - true)[used] / error[used], resampling=resampling)
            ratio = "" if name == OURS else _ratio(fluxes[OURS][used], flux[used], true[used], resampling)
            body.append(
                [band, name, f"{n:,}", _figure(found, "bias"), _figure(found, "scatter"), ratio, _figure(pull, "width")]
            )
    head = ("band", "", "n", "bias", "scatter", "our scatter / this", "sigma_68 of (f - f0) / error")
    return markdown(head, body)


def _width(pull: np.ndarray) -> dict[str, float]:
    return {"width": sigma_68(pull)}


def _ratio(ours: np.ndarray, theirs: np.ndarray, true: np.ndarray, resampling: Resampling) -> str:
    found = paired_differences(flux_metrics, [ours], [theirs], [true], ratios=("scatter",), resampling=resampling)
    return format_difference(found["scatter"]["difference"])


def _figure(found: dict, name: str) -> str:
    return measured(found[name], found[f"{name}_err"])


def honesty_table(objects: Objects, resampling: Resampling) -> str:
    """Pulls and PIT of our fluxes, band by band, and of all bands together."""
    ours, truth = objects.found[OURS], objects.truth
    body, pooled = [], []
    for band in objects.bands:
        flux, true = flux_of(ours, band), truth[f"flux_{band}"].to_numpy(float)
        stated = uncertainty(ours, band, flux, true)
        used = stated.known & np.isfinite(flux) & ~truth["spoilt"].to_numpy()
        error = ours[f"fluxerr_{band}"].to_numpy(float)
        columns = (((flux - true) / error)[used], stated.pull[used], stated.pit[used])
        pooled.append(columns)
        body.append([band, *_honesty_cells(*columns, resampling)])
    everything = [np.concatenate(parts) for parts in zip(*pooled, strict=True)]
    body.append(["all", *_honesty_cells(*everything, resampling)])
    head = (
        "band", "n", "sigma_68 of (f - f0) / error", "of the PDF's mean and deviation", "KS of PIT", "p",
        f"p of {KS_OBJECTS:,} at random", "PIT outliers",
    )  # fmt: skip
    return markdown(head, body)


def _honesty_cells(pull: np.ndarray, pdf_pull: np.ndarray, u: np.ndarray, resampling: Resampling) -> list[str]:
    if len(u) < LEAST_OBJECTS:
        return [f"{len(u):,}", *[""] * 6]
    widths = [_figure(with_errors(_width, part, resampling=resampling), "width") for part in (pull, pdf_pull)]
    figures = with_errors(_uniformity, u, resampling=resampling)
    some = u if len(u) <= KS_OBJECTS else np.random.default_rng(0).choice(u, KS_OBJECTS, replace=False)
    p = [f"{pit_tests.p_values(part)['ks_p']:.3g}" for part in (u, some)]
    p[1] = p[1] if len(u) > KS_OBJECTS else ""
    return [f"{len(u):,}", *widths, _figure(figures, "ks"), *p, _figure(figures, "pit_outliers")]


def _uniformity(u: np.ndarray) -> dict[str, float]:
    found = pit_tests.uniformity(u)
    return {"ks": found["ks"], "pit_outliers": found["outliers"]}


# ----------------------------------------------------------------------------------------------------------- redshifts
def redshift_text(
    objects: Objects, guesses: dict[str, np.ndarray], posterior: tuple[str, PDFs] | None, estimate: str,
    resampling: Resampling,
) -> str:  # fmt: skip
    """Tables of redshifts for several limits of signal-to-noise, on the galaxies that all methods measured.

    Args:
        objects: with our catalogue, and that without fluxes where there is one.
        guesses: method -> (T) redshifts without PDFs; NaN: none.
        posterior: name and PDFs (T) of the template fit.
        estimate: column of our point estimate: z_mode, z_median or z_mean.
        resampling: how errors are drawn.
    """
    if estimate not in objects.found[OURS]:
        return f"The catalogue has no {estimate}."
    own = [name for name in (OURS, WITHOUT_FLUXES) if name in objects.found]
    points = {name: objects.found[name][estimate].to_numpy(float) for name in own} | guesses
    pdfs = {name: read_pdfs(objects.found[name]) for name in own}
    pdfs = {name: (found.pdfs, np.cumsum(found.usable) - 1) for name, found in pdfs.items() if found.pdfs is not None}
    z_true, snr = (objects.truth[name].to_numpy(float) for name in ("redshift", "snr"))
    if posterior is not None:
        name, densities = posterior
        points[name] = getattr(densities, estimate.removeprefix("z_"))()
        pdfs[name] = densities, np.arange(len(z_true))
    used = np.isfinite([z_true, *points.values()]).all(0)
    texts = []
    for cut in SNR_CUTS:
        chosen = used & (snr > cut)
        texts.append(f"**S/N > {cut:g}**, {chosen.sum():,} galaxies" if cut else f"**All**, {chosen.sum():,} galaxies")
        texts.append(_redshift_table(points, pdfs, z_true, np.flatnonzero(chosen), resampling))
    return "\n\n".join(texts)


def _redshift_table(
    points: dict[str, np.ndarray], pdfs: dict[str, tuple[PDFs, np.ndarray]], z_true: np.ndarray, rows: np.ndarray,
    resampling: Resampling,
) -> str:  # fmt: skip
    body = []
    for name, z in points.items():
        if len(rows) < LEAST_OBJECTS:
            continue
        found = with_errors(point_metrics, z[rows], z_true[rows], resampling=resampling)
        cells = [name, *(_figure(found, figure) for figure in ("bias", "sigma_nmad", "eta_15"))]
        columns = ([points[OURS][rows]], [z[rows]], [z_true[rows]])
        ratio = paired_differences(point_metrics, *columns, ratios=("sigma_nmad",), resampling=resampling)
        cells.append("" if name == OURS else format_difference(ratio["sigma_nmad"]["difference"]))
        if name in pdfs:
            densities, place = pdfs[name]
            scores = pdf_scores(densities.take(place[rows]), z_true[rows])
            found = with_errors(pdf_metrics, *scores.values(), resampling=resampling)
            cells += [_figure(found, figure) for figure in ("coverage_68", "coverage_95", "crps")]
        body.append(cells + [""] * (8 - len(cells)))
    head = (
        "", "bias", "sigma_NMAD", "outliers beyond 0.15", "our sigma_NMAD / this", "68 % hold", "95 % hold", "CRPS",
    )  # fmt: skip
    return markdown(head, body)


# -------------------------------------------------------------------------------------------------------------- shears
def shear_text(sides: dict[str, pd.DataFrame], truth: pd.DataFrame, resampling: Resampling) -> str:
    """m and c of each method on the same galaxies: rings averaged, and of every ring only the first field.

    Args:
        sides: method -> (T) g1, g2 and their errors or weights, sky orientation; the first is ours, of which all its
            galaxies have a line of their own.
        truth: (T) with g1, g2, `pair_id` and, as `turned`, whether a row is of the second field of its ring.
        resampling: with blocks (T): whole rings of fields are drawn.
    """
    truth = truth.drop(columns=["psf_e1", "psf_e2"], errors="ignore")
    columns = {name: usable_shears(frame, truth)[:2] for name, frame in sides.items()}
    common = np.all([usable for _, usable in columns.values()], axis=0)
    first = next(iter(sides))
    lines = [(name, table, common) for name, (table, _) in columns.items()]
    lines.append((f"{first}, all its galaxies", *columns[first]))
    body = []
    for rings in (True, False):
        some = truth if rings else truth.assign(pair_id=-1)
        for cut in SHEAR_SNR_CUTS:
            chosen = (truth["snr"].to_numpy() > cut) & (rings | ~truth["turned"].to_numpy())
            for name, table, usable in lines:
                rows = np.flatnonzero(usable & chosen)
                part, kept, _ = without_shapes(some, rows, table[:5, rows])
                blocks = resampling.of(kept)
                found = with_errors(_shear_figures, *part, resampling=blocks)
                number = f"{len(kept):,} in {len(np.unique(blocks.blocks))}"
                figures = (_figure(found, figure) for figure in ("m", "m1", "m2", "c", "c1", "c2", "rms"))
                body.append([f"{'ring pairs' if rings else 'single'}, S/N > {cut:g}", name, number, *figures])
    return markdown(("", "", "n in fields", "m", "m1", "m2", "c", "c1", "c2", "rms residual"), body)


def _shear_figures(observed_1, observed_2, true_1, true_2, weight) -> dict[str, float]:
    square = ((observed_1 - true_1) ** 2 + (observed_2 - true_2) ** 2) / 2
    rms = float(np.sqrt(square.mean())) if len(square) else np.nan
    return {**bias_metrics(observed_1, observed_2, true_1, true_2, weight), "rms": rms}
