"""What a survey would hand out as the PSF of a field's bands: pictures of a star in the field's pixels.

It is the PSF as the survey believes it to be: with `effects.psf_mismatch` wider or narrower than the true one; that of
the mean where a band is the mean of exposures. K = number of cells in which the PSF is constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deepdisc.errors import require_extra
from deepdisc.psf import PSF_SIDE, recorded_psf
from deepdisc.simulate.conditions import Conditions

if TYPE_CHECKING:
    import galsim

    from deepdisc.simulate.fields import Drawn

FILE_SIDE = 51  # of the pictures in files, whose sum says how much of the light is inside


@dataclass(frozen=True)
class Smear:
    """What one exposure does to the PSF of the mean.

    Attributes:
        share: its weight; those of all exposures add up to 1.
        sigma_pix: of the Gaussian by which its PSF is wider than the best.
        shift_pix: y, x: its error of registration.
    """

    share: float
    sigma_pix: float
    shift_pix: tuple[float, float]


@dataclass(frozen=True)
class BelievedPSF:
    """The PSF of one band.

    Attributes:
        conditions: of the field.
        band: its number.
        stretch: factor on the widths.
        smears: of the exposures; none where the band is one image.
    """

    conditions: Conditions
    band: int
    stretch: float = 1.0
    smears: Sequence[Smear] = ()

    def picture(self, x: float, y: float, side: int) -> np.ndarray:
        """(side, side) float32 picture of a star of flux 1 where x, y (0-based pixel centres) are, centred."""
        scale = self.conditions.instrument.pixel_scale_arcsec
        profile = self._smeared(self.conditions.psf(self.band, x, y).dilate(self.stretch / scale))
        return profile.drawImage(nx=side, ny=side, scale=1.0, method="auto", dtype=np.float32).array

    def recorded(self, x: float, y: float) -> np.ndarray:
        """(P, P) float32 picture as it travels with pixels, see `deepdisc.psf`."""
        return recorded_psf(self.picture(x, y, PSF_SIDE), f"PSF of band {self.conditions.bands[self.band].name}")

    def cells(self) -> tuple[np.ndarray, np.ndarray]:
        """(K, side, side) float32 pictures for a file, and (K, 2) x, y of the middles of their cells."""
        positions = self.conditions.psf_cell_centers()
        return np.stack([self.picture(x, y, FILE_SIDE) for x, y in positions.tolist()]), positions

    def _smeared(self, profile: Any) -> galsim.GSObject:
        """The mean over the exposures of a profile in pixels."""
        if not self.smears:
            return profile
        galsim = require_extra("galsim", "sim")
        seen = [
            galsim.Convolve(profile, galsim.Gaussian(sigma=max(one.sigma_pix, 1e-3))).shift(*one.shift_pix[::-1])
            for one in self.smears
        ]
        return galsim.Add([one * smear.share for one, smear in zip(seen, self.smears, strict=True)])


def believed_psfs(field: Drawn) -> list[BelievedPSF]:
    """The PSFs of a field whose bands are one image each."""
    return [BelievedPSF(field.conditions, band, field.stated_psf(band)) for band in range(len(field.conditions.bands))]
