"""What spoils an image besides noise: settings, and what a field draws once for all its images.

B = number of bands, H, W = height and width of the field in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from deepdisc.errors import InputError
from deepdisc.simulate.checks import Range, check_choice, check_numbers, check_ranges, whole_pair
from deepdisc.simulate.noise import KERNELS, resampling_kernel

if TYPE_CHECKING:
    from deepdisc.simulate.conditions import Conditions

# The bits of the MASK extension. The order is also that of the words in `Effects.masked`.
MASK_BITS = {"no_data": 1, "defect": 2, "cosmic_ray": 4, "saturated": 8, "trail": 16}


@dataclass(frozen=True)
class Effects:
    """Imaging effects of the fields. All are off unless set. Ranges are (low, high), drawn for every image.

    An *image* is what the noise is drawn for: a band of the field or, with `sky.exposures`, each exposure of it.
    "Sigma" is the sky's noise per pixel. A defect is what cosmic rays, trails, hot pixels and dead columns leave.

    Attributes:
        resampling: correlates the noise as regridding would, by a random part of a pixel in each band ("bilinear",
            "lanczos3"), or as many exposures drizzled together ("gaussian"). The VARIANCE plane keeps the variance of
            the noise in large apertures, so that single pixels scatter less than it says, as in surveys.
        resampling_sigma_pix: width of the "gaussian" kernel.
        resampling_reference: the band whose grid the others were brought to: its noise stays white.
        sky_gradient: range, sigma: rise of a tilted sky from one side of the field to the other.
        sky_residual: sigma: rms of a smooth error of the sky level ...
        sky_residual_arcsec: ... over about this length.
        halo_share: range: share of every star's light in a wide halo, on top of it; negative for the bowls of a sky
            subtraction.
        halo_radius_arcsec: core of the halo, outside of which it falls as r^-3.
        ghost_share: range: share of a star's light in a ring opposite to it in the field.
        ghost_radius_arcsec: outer radius of the ring.
        wisps: number of long patches of stray light ...
        wisp_level: ... and range of their peaks, sigma.
        spikes: number of diffraction spikes, for PSFs that have none of their own.
        spike_angle_deg: of the first, from +x to +y.
        spike_share: share of a star's light in all spikes, on top of it.
        saturation: whether pixels fill up at the band's `saturation_e` electrons in one exposure.
        bleed_trails: whether what a full pixel cannot hold runs along its column (y), as in CCDs; else it is lost.
        cosmic_rays: mean number per million pixels of an image.
        cosmic_ray_length_pix: mean length of their tracks (exponential).
        cosmic_ray_electrons: median charge they leave per pixel of path (log-normal, 0.5 dex).
        satellite_trails: mean number of straight streaks in a field, each in one image.
        trail_level: range of their peaks, sigma.
        trail_width_arcsec: full width at half maximum across.
        dead_columns: mean number per thousand columns.
        hot_pixels: mean number per million pixels.
        hot_electrons: mean charge of a hot pixel (exponential).
        chip_pix: (height, width) of the detectors; None: one covers the field.
        gap_pix: width of the gaps between them, where there are no data.
        depth_steps: number of straight borders in each band, beyond which ...
        depth_step_share: ... only this share (range) of the exposures was taken.
        psf_mismatch: largest relative error of the PSF widths that headers and mosaic.yaml state, e.g. 0.05.
        misalignment_pix: largest shift of a band along each axis, which its WCS does not know of.
        masked: what the MASK extension marks, of no_data, defect (dead column, hot pixel), cosmic_ray, saturated,
            trail.
        unmasked_share: share of the single defects that was not noticed and is not marked.
    """

    resampling: str = "none"
    resampling_sigma_pix: float = 0.7
    resampling_reference: str | None = None
    sky_gradient: Range = (0.0, 0.0)
    sky_residual: float = 0.0
    sky_residual_arcsec: float = 60.0
    halo_share: Range = (0.0, 0.0)
    halo_radius_arcsec: float = 5.0
    ghost_share: Range = (0.0, 0.0)
    ghost_radius_arcsec: float = 20.0
    wisps: int = 0
    wisp_level: Range = (0.5, 2.0)
    spikes: int = 0
    spike_angle_deg: float = 0.0
    spike_share: float = 0.01
    saturation: bool = False
    bleed_trails: bool = False
    cosmic_rays: float = 0.0
    cosmic_ray_length_pix: float = 10.0
    cosmic_ray_electrons: float = 1000.0
    satellite_trails: float = 0.0
    trail_level: Range = (1.0, 10.0)
    trail_width_arcsec: float = 2.0
    dead_columns: float = 0.0
    hot_pixels: float = 0.0
    hot_electrons: float = 5000.0
    chip_pix: tuple[int, int] | None = None
    gap_pix: int = 50
    depth_steps: int = 0
    depth_step_share: Range = (0.25, 0.75)
    psf_mismatch: float = 0.0
    misalignment_pix: float = 0.0
    masked: Sequence[str] = tuple(MASK_BITS)
    unmasked_share: float = 0.0

    def __post_init__(self):
        check_ranges(self, "sky.effects", _RANGES)
        check_numbers(self, "sky.effects", _NUMBERS)
        check_choice(self, "sky.effects", "resampling", KERNELS)
        if self.bleed_trails and not self.saturation:
            raise InputError("sky.effects.bleed_trails is True; pixels bleed only with saturation=True")
        if self.chip_pix is not None:
            sides = whole_pair("sky.effects", "chip_pix", self.chip_pix)
            if min(sides) < 16:
                raise InputError(f"sky.effects.chip_pix is {list(sides)}; give a height and a width of at least 16")
            object.__setattr__(self, "chip_pix", sides)
        if isinstance(self.masked, str):
            raise InputError(f"sky.effects.masked is {self.masked!r}; it must be a list, such as [{self.masked!r}]")
        for word in self.masked:
            if word not in MASK_BITS:
                raise InputError(f"sky.effects.masked holds {word!r}; it may hold {', '.join(MASK_BITS)}")
        object.__setattr__(self, "masked", tuple(self.masked))

    def check_bands(self, names: Sequence[str]) -> None:
        """Raise InputError if a band that is named is not among the field's."""
        if self.resampling_reference not in (None, *names):
            raise InputError(
                f"sky.effects.resampling_reference is {self.resampling_reference!r}; the bands are {', '.join(names)}"
            )

    @property
    def masked_bits(self) -> int:
        """The bits of what the MASK extension marks."""
        return sum(bit for word, bit in MASK_BITS.items() if word in self.masked)


_RANGES = {
    "sky_gradient": (-1000, 1000),
    "halo_share": (-1, 1),
    "ghost_share": (0, 1),
    "wisp_level": (0, 1000),
    "trail_level": (0, 10_000),
    "depth_step_share": (0.01, 1),
}
_NUMBERS = {
    "resampling_sigma_pix": (0.2, 10),
    "sky_residual": (0, 100),
    "sky_residual_arcsec": (0.1, 36_000),
    "halo_radius_arcsec": (0.01, 600),
    "ghost_radius_arcsec": (0.1, 3600),
    "wisps": (0, 100),
    "spikes": (0, 24),
    "spike_angle_deg": (-360, 360),
    "spike_share": (0, 0.5),
    "cosmic_rays": (0, 1e5),
    "cosmic_ray_length_pix": (0, 1000),
    "cosmic_ray_electrons": (1, 1e6),
    "satellite_trails": (0, 100),
    "trail_width_arcsec": (0.01, 600),
    "dead_columns": (0, 500),
    "hot_pixels": (0, 1e5),
    "hot_electrons": (1, 1e7),
    "gap_pix": (1, 10_000),
    "depth_steps": (0, 10),
    "psf_mismatch": (0, 0.5),
    "misalignment_pix": (0, 2),
    "unmasked_share": (0, 1),
}


@dataclass(frozen=True)
class FieldEffects:
    """What one field draws once: it is the same in all exposures of a band.

    Attributes:
        stated_psf: (B,) factor on the PSF widths that the files state.
        shift_pix: (B, 2) y, x by which a band's light is displaced.
        kernels: B resampling kernels (along y, along x), or None where the noise is white.
        chip_phase: y, x: pixels by which the pattern of detectors begins before the field.
        depth_lines: for each band, tuples (angle, distance, share): where (x, y) / max(H, W), from the field's middle,
            reaches further than `distance` in the direction `angle`, only `share` of the exposures was taken.
    """

    stated_psf: np.ndarray
    shift_pix: np.ndarray
    kernels: tuple[tuple[np.ndarray, np.ndarray] | None, ...]
    chip_phase: tuple[int, int]
    depth_lines: tuple[tuple[tuple[float, float, float], ...], ...]


def draw_field_effects(effects: Effects, conditions: Conditions, rng: np.random.Generator) -> FieldEffects:
    """Draw what a field's images have in common."""
    names = [band.name for band in conditions.bands]
    effects.check_bands(names)
    count = len(names)
    stated = 1 + rng.uniform(-1, 1, count) * effects.psf_mismatch
    shift = rng.uniform(-1, 1, (count, 2)) * effects.misalignment_pix
    fractions = rng.uniform(0, 1, (count, 2))
    kernels = tuple(
        None
        if effects.resampling == "none" or name == effects.resampling_reference
        else resampling_kernel(effects.resampling, tuple(fraction), effects.resampling_sigma_pix)
        for name, fraction in zip(names, fractions, strict=True)
    )
    phase = rng.uniform(0, 1, 2)
    period = np.add(effects.chip_pix or (1, 1), effects.gap_pix)
    lines = tuple(
        tuple(
            (rng.uniform(0, 2 * math.pi), rng.uniform(-0.35, 0.35), rng.uniform(*effects.depth_step_share))
            for _ in range(effects.depth_steps)
        )
        for _ in names
    )
    return FieldEffects(stated, shift, kernels, tuple(int(step) for step in phase * period), lines)


def coverage_map(shape: tuple[int, int], lines: Sequence[tuple[float, float, float]]) -> np.ndarray | None:
    """(H, W) float32 share of a band's exposures that saw each pixel; None where there is no depth step."""
    if not lines:
        return None
    side = max(shape)
    y = ((np.arange(shape[0]) - (shape[0] - 1) / 2) / side)[:, None]
    x = (np.arange(shape[1]) - (shape[1] - 1) / 2) / side
    share = np.ones(shape, dtype=np.float32)
    for angle, distance, part in lines:
        share[x * math.cos(angle) + y * math.sin(angle) > distance] *= np.float32(part)
    return share


def gap_mask(shape: tuple[int, int], chip_pix: tuple[int, int], gap_pix: int, phase: tuple[int, int]) -> np.ndarray:
    """(H, W) bool, True between the detectors; `phase` (y, x) pixels of the pattern lie before the field."""
    beyond = [
        (np.arange(side) + start) % (chip + gap_pix) >= chip
        for side, chip, start in zip(shape, chip_pix, phase, strict=True)
    ]
    return beyond[0][:, None] | beyond[1]
