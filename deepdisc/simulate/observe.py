"""One image of the field: from noiseless light to what a camera delivers, and the flags this gives the truth.

B = number of bands, H, W = height and width of the field in pixels. Light is in nJy per pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import ndimage

from deepdisc.catalog import FLAGS
from deepdisc.photometry import njy_from_mag
from deepdisc.simulate import defects, noise
from deepdisc.simulate.conditions import Conditions
from deepdisc.simulate.effects import MASK_BITS, Effects, FieldEffects, coverage_map, gap_mask
from deepdisc.simulate.population import STAR


@dataclass(frozen=True)
class Camera:
    """What the noise and the effects of one image of one band depend on.

    Attributes:
        band: its number.
        pixel_scale_arcsec: side of a pixel.
        fwhm_pix: of the PSF.
        sigma_njy: noise of the sky per pixel.
        electrons_per_njy: of the image.
        sky_njy: level of the sky per pixel, which has been subtracted.
        full_njy: light above the sky at which a pixel is full.
        full_variance: whether the variance includes the objects' photon noise.
        trails: mean number of satellite trails.
        chip_offset: y, x: pixels by which the detectors were moved against the sky.
    """

    band: int
    pixel_scale_arcsec: float
    fwhm_pix: float
    sigma_njy: float
    electrons_per_njy: float
    sky_njy: float
    full_njy: float
    full_variance: bool
    trails: float = 0.0
    chip_offset: tuple[int, int] = (0, 0)


@dataclass
class Observed:
    """An image as delivered: (H, W) float32 nJy and variance (nJy^2), NaN without data; (H, W) uint8 bits of MASK_BITS.

    The mask is None where no effects were asked for.
    """

    image: np.ndarray
    variance: np.ndarray
    mask: np.ndarray | None


def camera_of(
    conditions: Conditions, band: int, images: int = 1, transparency: float = 1.0, trails: float = 0.0, **more
) -> Camera:
    """The camera of one of `images` equal parts of a band's exposure time, seen through clouds of this transparency.

    Clouds take light from objects and not from the sky, so that in nJy the noise grows and the gain falls.
    """
    one, scale = conditions.bands[band], conditions.instrument.pixel_scale_arcsec
    gain = conditions.electrons_per_njy()[band] / images * transparency
    sky_njy = float(njy_from_mag(one.sky_mag_arcsec2)) * scale**2 / transparency
    # The well is that of the detector's pixel; of one exposure even where the image holds several.
    well_e = one.saturation_e * (scale / one.detector_pixel_arcsec) ** 2
    return Camera(
        band=band,
        pixel_scale_arcsec=scale,
        fwhm_pix=float(conditions.psf_fwhm_arcsec[band]) / scale,
        sigma_njy=float(conditions.sky_sigma_njy()[band]) * math.sqrt(images) / transparency,
        electrons_per_njy=float(gain),
        sky_njy=sky_njy,
        full_njy=max(well_e / (min(one.electrons_per_njy, gain / transparency) * transparency) - sky_njy, 0.0),
        full_variance=conditions.full_variance,
        trails=trails,
        **more,
    )


def stars_of(objects: pd.DataFrame, band_name: str) -> list[noise.Star]:
    """x, y (0-based pixel centres) and flux (nJy) of the stars, brightest first."""
    stars = objects.loc[objects.class_id == STAR, ["x", "y", f"flux_{band_name}"]].to_numpy(np.float64)
    return [tuple(star) for star in stars[np.argsort(-stars[:, 2], kind="stable")]]


def observe(
    light: np.ndarray,
    camera: Camera,
    effects: Effects | None,
    field: FieldEffects | None,
    stars: Sequence[noise.Star],
    noise_rng: np.random.Generator,
    effects_rng: np.random.Generator,
) -> Observed:
    """Take one image.

    Args:
        light: (H, W) float32 noiseless light; overwritten.
        camera: of this image.
        effects: settings; None: noise only.
        field: what the field has drawn of them; None with None.
        stars: of the band, see `stars_of`.
        noise_rng: source of the noise alone, so that effects do not change it.
        effects_rng: source of all else.
    """
    if effects is None:
        image, variance = noise.add_noise(
            light, camera.sigma_njy, camera.electrons_per_njy, camera.full_variance, noise_rng
        )
        return Observed(image, variance, None)
    light = _optics(light, camera, effects, field, stars, effects_rng)
    image, variance = noise.add_noise(
        light,
        camera.sigma_njy,
        camera.electrons_per_njy,
        camera.full_variance,
        noise_rng,
        coverage_map(light.shape, field.depth_lines[camera.band]),
        field.kernels[camera.band],
    )
    _uneven_sky(image, camera, effects, effects_rng)
    mask = np.zeros(image.shape, dtype=np.uint8)
    _hits(image, mask, camera, effects, effects_rng)
    if effects.saturation:
        mask[defects.saturate(image, np.float32(camera.full_njy), effects.bleed_trails)] |= MASK_BITS["saturated"]
    for column in defects.dead_columns(image.shape, effects.dead_columns, effects_rng):
        image[:, column] = -camera.sky_njy  # no electron was counted, and the sky was subtracted all the same
        if effects_rng.uniform() >= effects.unmasked_share:
            mask[:, column] |= MASK_BITS["defect"]
    if effects.chip_pix is not None:
        gap = gap_mask(image.shape, effects.chip_pix, effects.gap_pix, np.add(field.chip_phase, camera.chip_offset))
        image[gap] = variance[gap] = np.nan
        mask[gap] = MASK_BITS["no_data"]
    return Observed(image, variance, mask)


def _optics(
    light: np.ndarray,
    camera: Camera,
    effects: Effects,
    field: FieldEffects,
    stars: Sequence[noise.Star],
    rng: np.random.Generator,
) -> np.ndarray:
    """Light of bright stars where it should not be, and all of it where the WCS does not say."""
    scale, sigma = camera.pixel_scale_arcsec, camera.sigma_njy
    if effects.spikes:
        angle = math.radians(effects.spike_angle_deg)
        defects.add_spikes(light, stars, effects.spikes, angle, effects.spike_share, camera.fwhm_pix, sigma)
    halo, ghost = rng.uniform(*effects.halo_share), rng.uniform(*effects.ghost_share)
    if halo:
        noise.add_halos(light, stars, halo, effects.halo_radius_arcsec / scale, sigma)
    if ghost:
        noise.add_ghosts(light, stars, ghost, effects.ghost_radius_arcsec / scale, sigma)
    return displaced(light, field.shift_pix[camera.band])


def displaced(light: np.ndarray, shift_pix: Sequence[float]) -> np.ndarray:
    """(H, W) light moved by (y, x) pixels, interpolated by cubic splines."""
    return ndimage.shift(light, shift_pix, order=3, mode="nearest") if np.any(shift_pix) else light


def _uneven_sky(image: np.ndarray, camera: Camera, effects: Effects, rng: np.random.Generator) -> None:
    shape, sigma = image.shape, np.float32(camera.sigma_njy)
    gradient = rng.uniform(*effects.sky_gradient)
    if gradient:
        image += np.float32(gradient) * sigma * noise.sky_plane(shape, rng)
    if effects.sky_residual:
        scale_pix = effects.sky_residual_arcsec / camera.pixel_scale_arcsec
        image += np.float32(effects.sky_residual) * sigma * noise.smooth_field(shape, scale_pix, rng)
    if effects.wisps:
        image += np.float32(rng.uniform(*effects.wisp_level)) * sigma * noise.wisps(shape, effects.wisps, rng)


def _hits(image: np.ndarray, mask: np.ndarray, camera: Camera, effects: Effects, rng: np.random.Generator) -> None:
    """Add trails, cosmic rays and hot pixels; mark those that are noticed."""
    njy_per_electron, flat, marks = 1 / camera.electrons_per_njy, image.reshape(-1), mask.reshape(-1)
    for _ in range(rng.poisson(camera.trails)):
        streak = defects.satellite_trail(image.shape, effects.trail_width_arcsec / camera.pixel_scale_arcsec, rng)
        streak *= np.float32(rng.uniform(*effects.trail_level) * camera.sigma_njy)
        image += streak
        if rng.uniform() >= effects.unmasked_share:
            mask[streak > 0.5 * camera.sigma_njy] |= MASK_BITS["trail"]
    tracks = defects.cosmic_ray_tracks(
        image.shape, effects.cosmic_rays, effects.cosmic_ray_length_pix, effects.cosmic_ray_electrons, rng
    )
    for pixels, charges in tracks:
        flat[pixels] += (charges * njy_per_electron).astype(np.float32)
        if rng.uniform() >= effects.unmasked_share:
            marks[pixels] |= MASK_BITS["cosmic_ray"]
    pixels, charges = defects.hot_pixels(image.shape, effects.hot_pixels, effects.hot_electrons, rng)
    flat[pixels] += (charges * njy_per_electron).astype(np.float32)
    marks[pixels[rng.uniform(size=len(pixels)) >= effects.unmasked_share]] |= MASK_BITS["defect"]


class PixelFlags:
    """Collects the masks of a field's bands and says of each object what they mean."""

    def __init__(self, segmentation: np.ndarray):
        self._segmentation = segmentation
        self._masked = np.zeros(segmentation.shape, dtype=bool)
        self._saturated = np.zeros(segmentation.shape, dtype=bool)
        self._uncovered: list[np.ndarray] = []
        self._blank_centers: list[np.ndarray] = []

    def add(self, mask: np.ndarray, masked_bits: int) -> None:
        """Take the mask of one more band; only `masked_bits` of it are written, but all are known."""
        bad = (mask & masked_bits) > 0
        self._masked |= bad
        self._saturated |= (mask & MASK_BITS["saturated"]) > 0
        count = int(self._segmentation.max(initial=0)) + 1
        self._uncovered.append(np.bincount(self._segmentation[~bad], minlength=count) == 0)
        self._blank_centers.append(bad)

    def flags(self, truth: pd.DataFrame) -> np.ndarray:
        """(N,) int32 MASKED, SATURATED and NO_COVERAGE bits of the rows of a truth table.

        What counts are the object's pixels in the segmentation; without any there, the pixel at its centre.
        """
        height, width = self._segmentation.shape
        ids = truth.id.to_numpy()
        y, x = (np.floor(truth[axis].to_numpy() + 0.5).astype(int) for axis in "yx")
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
        areas = np.bincount(self._segmentation.ravel())
        labelled = (ids < len(areas)) & (areas[np.minimum(ids, len(areas) - 1)] > 0)
        label = np.where(labelled, ids, 0)

        def touched(pixels: np.ndarray) -> np.ndarray:
            hit = np.bincount(self._segmentation[pixels], minlength=len(areas)) > 0
            return np.where(labelled, hit[label], inside & pixels[y, x])

        blank = np.zeros(len(truth), dtype=bool)
        for uncovered, bad in zip(self._uncovered, self._blank_centers, strict=True):
            blank |= np.where(labelled, uncovered[label], inside & bad[y, x])
        return (
            FLAGS["MASKED"].value * touched(self._masked)
            | FLAGS["SATURATED"].value * touched(self._saturated)
            | FLAGS["NO_COVERAGE"].value * blank
        ).astype(np.int32)
