"""What the network is compared with: SEP for detection and fluxes; trees on SEP's fluxes for redshifts.

Needs the extras `classical` (sep) and `bench` (scikit-learn). The baselines hold a whole field in memory.

Legend: C bands, N objects, (h, w) pixels of the field; fluxes in nJy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from deepdisc.data.kron import kron_fluxes
from deepdisc.errors import require_extra
from deepdisc.evaluation.scoring import mosaic_fwhm_pix
from deepdisc.photometry import asinh_mag

FWHM_TO_SIGMA = 1 / 2.3548


# ------------------------------------------------------------------------------------------------------------ detection
@dataclass(frozen=True)
class SepSettings:
    """How SEP detects; the defaults were tuned for completeness at equal purity, and blends, on the training fields.

    Against the usual 1.5 sigma, kernel of one FWHM, 32 levels and contrast 0.005 they raise the completeness for
    S/N > 10 from 81 to 89 % at the same purity. SEP's "matched" filter with a noise map deblends worse than "conv".

    Attributes:
        threshold: detection threshold on the filtered image, in units of the unfiltered image's noise per pixel.
        min_area: smallest number of connected pixels.
        deblend_nthresh: number of deblending levels.
        deblend_cont: smallest share of the light that makes a branch an object of its own.
        kernel_fwhm: width of the detection filter in units of the PSF's.
        background_mesh: side, in pixels, of the meshes of SEP's background, which is subtracted from every band; None:
            the images have no background.
    """

    threshold: float = 1.2
    min_area: int = 5
    deblend_nthresh: int = 64
    deblend_cont: float = 0.0001
    kernel_fwhm: float = 0.6
    background_mesh: int | None = None


@dataclass(frozen=True)
class Pixels:
    """A whole field in memory: image and variance (C, h, w) float64, mask (C, h, w) bool; read like a mosaic."""

    bands: list[str]
    image: np.ndarray
    variance: np.ndarray
    mask: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.image.shape[1:]

    def select(self, bands: list[str]) -> Pixels:
        """Some of the bands."""
        rows = [self.bands.index(band) for band in bands]
        return Pixels(list(bands), self.image[rows], self.variance[rows], self.mask[rows])

    def read(self, y0: int, x0: int, y1: int, x1: int) -> Pixels:
        """A rectangle."""
        return Pixels(self.bands, *(part[:, y0:y1, x0:x1] for part in (self.image, self.variance, self.mask)))


def read_pixels(mosaic, background_mesh: int | None = None) -> Pixels:
    """All pixels of a mosaic, without SEP's background if a mesh is given; see `SepSettings`."""
    field = mosaic.read(0, 0, *mosaic.shape)
    image = np.ascontiguousarray(field.image, np.float64)
    masked = np.ascontiguousarray(field.mask)
    if background_mesh is not None:
        sep = require_extra("sep", "classical")
        for band, bad in zip(image, masked, strict=True):
            band -= sep.Background(band, mask=bad, bw=background_mesh, bh=background_mesh).back()
    return Pixels(list(mosaic.bands), image, np.ascontiguousarray(field.variance, np.float64), masked)


def detect_with_sep(mosaic, settings: SepSettings | None = None) -> tuple[pd.DataFrame, np.ndarray]:
    """Detect, deblend and measure with SEP (Bertin & Arnouts 1996; Barbary 2016).

    Detection runs on the bands' sum weighted by s_b / variance_b, with s_b the typical spectrum of the objects of a
    first pass (the best linear combination for such objects), filtered with a Gaussian somewhat narrower than the PSF.

    Args:
        mosaic: the field (`deepdisc.data.mosaic.Mosaic`).
        settings: of SEP.

    Returns:
        A catalogue with the columns of `deepdisc.catalog` (id, x, y, ra, dec, box, score = signal-to-noise at the
        filtered peak, snr, area, flags, and in Kron apertures flux_<band>, fluxerr_<band>, mag_<band>), and the
        segmentation map (h, w).
    """
    sep = require_extra("sep", "classical")
    settings = settings or SepSettings()
    sep.set_extract_pixstack(5_000_000)
    sep.set_sub_object_limit(100_000)
    pixels = read_pixels(mosaic, settings.background_mesh)
    fwhm = mosaic_fwhm_pix(mosaic) or 3.0
    spectrum = np.ones(len(pixels.image))
    for last in (False, True):
        detection, noise, empty = weighted_sum(pixels.image, pixels.variance, pixels.mask, spectrum)
        objects, labels = sep.extract(
            detection, settings.threshold, err=noise, mask=empty, minarea=settings.min_area,
            filter_kernel=gaussian_kernel(fwhm * settings.kernel_fwhm), filter_type="conv",
            deblend_nthresh=settings.deblend_nthresh,
            deblend_cont=settings.deblend_cont, clean=True, segmentation_map=True,
        )  # fmt: skip
        if not last and len(objects) >= 20:
            fluxes, _ = aperture_fluxes(pixels, objects["x"], objects["y"], fwhm)
            spectrum = np.clip(np.nanmedian(fluxes / np.nansum(fluxes, axis=1, keepdims=True), axis=0), 0.01, None)
    return _sep_catalog(objects, mosaic, pixels, (detection, noise, labels), fwhm), labels


def weighted_sum(
    image: np.ndarray, variance: np.ndarray, masked: np.ndarray, spectrum: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One detection image from bands (C, h, w): sum of s f / v, divided by sum of s^2 / v, so in units of flux.

    Returns:
        image, noise and bool "no data in any band", each (h, w).
    """
    weight = np.where(masked, 0.0, 1 / np.where(masked, 1.0, variance))
    total = np.einsum("c,chw->hw", spectrum**2, weight)
    empty = total <= 0
    safe = np.where(empty, 1.0, total)
    return np.einsum("c,chw,chw->hw", spectrum, weight, image) / safe, 1 / np.sqrt(safe), empty


def gaussian_kernel(fwhm_pix: float) -> np.ndarray:
    """A Gaussian of this width on a square of odd side, about 2.5 FWHM wide; peak 1."""
    half = max(2, int(np.ceil(1.25 * fwhm_pix)))
    r2 = np.add.outer(*[np.arange(-half, half + 1) ** 2] * 2)
    return np.exp(-0.5 * r2 / (fwhm_pix * FWHM_TO_SIGMA) ** 2)


def _sep_catalog(objects, mosaic, pixels: Pixels, detection, fwhm: float) -> pd.DataFrame:
    sep = require_extra("sep", "classical")
    height, width = mosaic.shape
    fluxes = kron_fluxes(pixels, detection[2], len(objects), detection[0])
    flux, flux_err = (fluxes[[f"{kind}_{band}" for band in mosaic.bands]].to_numpy() for kind in ("flux", "fluxerr"))
    score = peak_significance(*detection[:2], fwhm)[objects["ycpeak"], objects["xcpeak"]]
    ra, dec = mosaic.grid.to_sky(objects["x"], objects["y"])
    # SEP counts pixels from 0 and includes the last one; boxes here end at that pixel's far edge.
    x0, y0, x1, y1 = (
        side.astype(np.float32) for side in (objects["xmin"], objects["ymin"], objects["xmax"] + 1, objects["ymax"] + 1)
    )
    edge = (x0 <= 0) | (y0 <= 0) | (x1 >= width) | (y1 >= height)
    blended = (objects["flag"] & sep.OBJ_MERGED) > 0
    columns = {
        "id": np.arange(1, len(objects) + 1, dtype=np.int64), "x": objects["x"], "y": objects["y"],
        "ra": ra, "dec": dec,
        "x_min": x0, "y_min": y0, "x_max": x1, "y_max": y1, "score": score.astype(np.float32),
        "area_pix": objects["npix"].astype(np.int32), "flags": (edge * 1 + blended * 16).astype(np.int32),
        "snr": np.sqrt(np.nansum(np.clip(flux / flux_err, 0, None) ** 2, axis=1)).astype(np.float32),
    }  # fmt: skip
    return pd.concat([pd.DataFrame(columns), fluxes], axis=1)


def peak_significance(detection: np.ndarray, noise: np.ndarray, fwhm_pix: float) -> np.ndarray:
    """Signal-to-noise (h, w) of a point source at every pixel: sum(k f / v) / sqrt(sum(k^2 / v))."""
    from scipy.signal import fftconvolve

    kernel = gaussian_kernel(fwhm_pix)
    weight = 1 / noise**2
    signal = fftconvolve(detection * weight, kernel, mode="same")
    return signal / np.sqrt(np.clip(fftconvolve(weight, kernel**2, mode="same"), 1e-30, None))


def aperture_fluxes(pixels: Pixels, x: np.ndarray, y: np.ndarray, radius_pix: float) -> tuple[np.ndarray, np.ndarray]:
    """Fluxes and errors (N, C) in circles around x, y (0-based pixel centres); NaN where a band has no valid pixel."""
    sep = require_extra("sep", "classical")
    flux, err = np.empty((2, len(x), len(pixels.image)))
    for i, (image, variance, masked) in enumerate(zip(pixels.image, pixels.variance, pixels.mask, strict=True)):
        flux[:, i], err[:, i], flag = sep.sum_circle(
            image, np.asarray(x, float), np.asarray(y, float), radius_pix, var=variance, mask=masked, subpix=5
        )
        flux[(flag & sep.APER_ALLMASKED) > 0, i] = np.nan
    return flux, err


# ------------------------------------------------------------------------------------------------------------- redshift
def colour_features(
    mosaic, x: np.ndarray, y: np.ndarray, ebv: float | None, diameters_arcsec=(1.5, 3.0)
) -> pd.DataFrame:
    """What trees see of objects at given positions: `brightness_features` of fixed circular apertures."""
    pixels = read_pixels(mosaic)
    radii = {f"{diameter}": diameter / 2 / mosaic.pixel_scale_arcsec for diameter in diameters_arcsec}
    return brightness_features(
        {name: aperture_fluxes(pixels, x, y, radius) for name, radius in radii.items()}, mosaic.bands, ebv
    )


def brightness_features(
    fluxes: dict[str, tuple[np.ndarray, np.ndarray]], bands: list[str], ebv: float | str | None
) -> pd.DataFrame:
    """Asinh magnitudes softened at the flux error, their errors, colours of neighbouring bands, and E(B-V).

    Errors of magnitudes are 2.5/ln 10 * sigma_f/max(f, sigma_f); the difference of the first and the last magnitude of
    a band says how large an object is.

    Args:
        fluxes: name of an aperture -> fluxes and errors, (N, C) each.
        bands: names of the C bands.
        ebv: of the field; what is no number is missing.
    """
    columns: dict[str, np.ndarray] = {}
    for name, (flux, err) in fluxes.items():
        magnitude = asinh_mag(flux, err)
        for i, band in enumerate(bands):
            columns[f"mag_{band}_{name}"] = magnitude[:, i]
            columns[f"err_{band}_{name}"] = 1.0857 * err[:, i] / np.maximum(flux[:, i], err[:, i])
        for i in range(len(bands) - 1):
            columns[f"{bands[i]}-{bands[i + 1]}_{name}"] = magnitude[:, i] - magnitude[:, i + 1]
    small, large = list(fluxes)[0], list(fluxes)[-1]
    for band in bands:
        columns[f"size_{band}"] = columns[f"mag_{band}_{small}"] - columns[f"mag_{band}_{large}"]
    columns["ebv"] = np.full(len(flux), np.nan if ebv is None or isinstance(ebv, str) else float(ebv))
    return pd.DataFrame(columns).fillna(-9.0)  # a value far off all others: a tree splits it away


def train_forest(features: pd.DataFrame, redshift: np.ndarray, seed: int = 0, jobs: int = 2):
    """A random forest (Breiman 2001; for redshifts, Carliles et al. 2010): 300 trees, leaves of at least 3 galaxies."""
    ensemble = require_extra("sklearn.ensemble", "bench")
    forest = ensemble.RandomForestRegressor(
        n_estimators=300, min_samples_leaf=3, max_features=0.4, random_state=seed, n_jobs=jobs
    )
    return forest.fit(features.to_numpy(), redshift)


def train_boosted_trees(features: pd.DataFrame, redshift: np.ndarray, seed: int = 0):
    """Gradient-boosted trees (Friedman 2001; histograms as in LightGBM) for the median of the redshift.

    Early stopping on a tenth of the galaxies chooses the number of trees.
    """
    ensemble = require_extra("sklearn.ensemble", "bench")
    trees = ensemble.HistGradientBoostingRegressor(
        loss="absolute_error", max_iter=1000, learning_rate=0.05, early_stopping=True, random_state=seed
    )
    return trees.fit(features.to_numpy(), redshift)


def training_rows(truth: pd.DataFrame) -> np.ndarray:
    """Bool (N,): objects that the network may learn from: with a redshift, not FAINT."""
    from deepdisc.evaluation.assessment import is_faint

    return np.isfinite(truth["redshift"].to_numpy(float)) & ~is_faint(truth)
