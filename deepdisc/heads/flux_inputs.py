"""What the flux head's networks see: windows in units of their noise, and the numbers of a fit, all without units.

Legend: R objects, C bands, S window side in (binned) pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from deepdisc.heads.template_fit import Fit
from deepdisc.heads.windows import Windows

BOX_PER_SIGMA = 3.6  # an outline at a fifth of the peak of a Gaussian is 3.6 sigma wide
NARROWEST = 0.8  # binned pixels, sigma of the expected light of the smallest boxes
FEWEST_SEEN = 0.1  # a band is measured where this share of the object's expected light falls on valid pixels
PIXEL_MAPS, SHARED_MAPS = 3, 5  # that the profile network sees of each band, and of the object
ROUGH_NUMBERS, SHAPE_NUMBERS = 3, 7  # that the profiles' parameters are made from, beside the maps' summary
BAND_NUMBERS, SHARED_NUMBERS = 13, 5  # that the corrections are made from


class FluxInputs:
    """Windows of one image's objects, prepared.

    Attributes:
        scale: (R, C) nJy, typical noise of a pixel; 1 where the band has no valid pixel.
        pixels: (R, C, S, S) in units of `scale`.
        weight: (R, C, S, S) inverse variances in units of `scale`^-2, 0 where not valid.
        expected: (R, S, S) logarithm of the light that is expected of the box, a Gaussian of peak 1.
        surroundings: (R, S, S) logarithm of a map that is 1 outside of the box and small at its centre.
        measured: (R, C) bool, see `FEWEST_SEEN`.
        rough: (R, C, 2) flux of a Gaussian that fits the box and its error, in units of `scale`.
        center: (R, 2) x, y of the light's centroid relative to the box centre, binned pixels.
        shape: (R, 3) sigma_x, sigma_y (binned pixels) and correlation of the light, all bands together.
        axes: x and y, (R, S) each, of the pixels relative to the box centre, binned pixels.
    """

    def __init__(self, windows: Windows, psf: Tensor | None):
        """Prepare.

        Args:
            windows: pixels.
            psf: (N, C, P, P) of the images, zero where unknown; or None.
        """
        self._windows = windows
        valid = windows.valid.float()
        inverse = valid / torch.where(windows.valid, windows.variance, torch.ones_like(windows.variance))
        mean = inverse.sum((-2, -1)) / valid.sum((-2, -1)).clamp(min=1)
        self.scale = torch.where(mean > 0, mean, torch.ones_like(mean)).rsqrt()
        unit = self.scale[..., None, None]
        self.pixels = windows.flux / unit
        self.weight = valid / _smoothed(windows.variance / unit.square(), valid).clamp(min=1e-6)
        x, y = self.axes = windows.axes()
        size = windows.box.clamp(min=1)
        self._x, self._y = x / size[:, :1], y / size[:, 1:]
        sigma = (size / BOX_PER_SIGMA).clamp(min=NARROWEST)
        self.expected = -0.5 * ((y / sigma[:, 1:]).square()[:, :, None] + (x / sigma[:, :1]).square()[:, None])
        gaussian = self.expected.exp()
        self.surroundings = torch.log1p(-0.98 * gaussian)
        gaussian = (gaussian / gaussian.sum((-2, -1), keepdim=True).clamp(min=1e-12))[:, None]
        self._seen = (gaussian * valid).sum((-2, -1))
        self.measured = self._seen >= FEWEST_SEEN
        norm = (gaussian.square() * self.weight).sum((-2, -1)).clamp(min=1e-10)
        self.rough = torch.stack(((gaussian * self.weight * self.pixels).sum((-2, -1)) / norm, norm.rsqrt()), dim=-1)
        self._psf, self._psf_width = self._place_psf(psf)
        self.center, self.shape = self._moments(x, y, sigma)

    def _place_psf(self, psf: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logarithm of the PSF (R, C, S, S) at the box centre, 0 to 1, and its log-width (R, C); 0 where unknown."""
        shape = self.pixels.shape
        if psf is None or len(self.pixels) == 0:
            return self.pixels.new_zeros(shape), self.pixels.new_zeros(shape[:2])
        here = psf.float()[self._windows.image]
        reach, binning = (here.shape[-1] - 1) / 2, self._windows.binning[:, None]
        x, y = (axis * binning / reach for axis in self._windows.axes())
        grid = torch.stack((x[:, None].expand(-1, shape[-1], -1), y[:, :, None].expand(-1, -1, shape[-1])), dim=-1)
        peak = here.amax((-2, -1), keepdim=True)
        known = peak[..., 0, 0] > 0
        placed = F.grid_sample((here / peak.clamp(min=1e-12)).clamp(min=0), grid, align_corners=True)
        placed = 1 + (placed + 1e-4).log10().clamp(max=0) / 4
        # The width of a Gaussian of the same effective area, 1 / sum(psf^2).
        area = here.square().sum((-2, -1)).clamp(min=1e-12)
        width = torch.where(known, (4 * math.pi * area).log() * -0.5 - binning.log(), torch.zeros_like(area))
        return torch.where(known[..., None, None], placed, torch.zeros_like(placed)), width

    def _moments(self, x: Tensor, y: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Centroid and widths of the stacked bands' light under a Gaussian window; of faint objects those of the box.

        The window's own width is taken off: 1 / M = 1 / M_true + 1 / window (Bernstein & Jarvis 2002, AJ 123, 583, for
        Gaussians); the centroid's step is doubled for the same reason.
        """
        stack = (self.pixels * self.weight).sum(1) / self.weight.square().sum(1).sqrt().clamp(min=1e-6)
        window = (1.2 * sigma.prod(1, keepdim=True).sqrt()).clamp(min=1.5)
        center, reach = torch.zeros_like(sigma), 0.25 * self._windows.box.clamp(min=4)
        for _ in range(4):
            dx, dy = x - center[:, :1], y - center[:, 1:]
            light = (-0.5 * ((dx / window).square()[:, None] + (dy / window).square()[:, :, None])).exp() * stack
            total = light.clamp(min=0).sum((-2, -1)).clamp(min=1e-3)
            step = torch.stack(((light.sum(1) * dx).sum(1), (light.sum(2) * dy).sum(1)), dim=1) / total[:, None]
            center = torch.minimum(torch.maximum(center + 2 * step, -reach), reach)
        second = torch.stack(((light.sum(1) * dx.square()).sum(1), (light.sum(2) * dy.square()).sum(1)), dim=1)
        mixed = ((light * dy[:, :, None]).sum(1) * dx).sum(1) / total
        second = (second / total[:, None]).clamp(min=0.3)
        true = 1 / (1 / second - 1 / window.square()).clamp(min=0.05 / window.square())
        width = torch.minimum(true.sqrt().clamp(min=NARROWEST), 2 * sigma)
        correlation = (mixed * true.prod(1).sqrt() / second.prod(1)).clamp(-0.7, 0.7)
        noise = self.weight.new_tensor(math.pi).sqrt() * window[:, 0] * 2
        trust = (total / noise).square()
        trust = (trust / (trust + 100))[:, None]
        shape = torch.cat((trust * width + (1 - trust) * sigma, trust * correlation[:, None]), dim=1)
        return trust * center, shape

    def maps(self) -> Tensor:
        """(R, PIXEL_MAPS C + SHARED_MAPS, S, S) for the profile network, the bands' first."""
        shape = self.pixels.shape
        own = torch.stack((torch.asinh(self.pixels), self._windows.valid.to(self.pixels), self._psf), dim=2).flatten(
            1, 2
        )
        x, y = self._x[:, None, :].expand(-1, shape[-1], -1), self._y[:, :, None].expand(-1, -1, shape[-1])
        binning = self._windows.binning.log2()[:, None, None].expand_as(x)
        shared = (self.expected.exp(), torch.tanh(x), torch.tanh(y), torch.log1p(x.square() + y.square()), binning / 4)
        return torch.cat((own, torch.stack(shared, dim=1)), dim=1)

    def numbers(self, fit: Fit, light: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """What the corrections are made from.

        Args:
            fit: of the object, its neighbours and the sky, in units of `scale`.
            light: (R, C, S, S) the object's template.
            residual: (R, C, S, S) pixels minus model in units of their noise.

        Returns:
            (R, C, BAND_NUMBERS) and (R, SHARED_NUMBERS).
        """
        flux, sigma = fit.amplitude[..., 0], fit.sigma
        measured = self.measured.float()
        magnitude = torch.asinh(flux / (2 * sigma)) + sigma.log() + self.scale.log()
        depth = fit.sigma_alone.log() + self.scale.log()
        rough = torch.asinh(self.rough[..., 0] / (2 * sigma)) - torch.asinh(flux / (2 * sigma))
        seen = (light * (self.weight > 0)).sum((-2, -1)).clamp(min=1e-3)
        noise = (light / self.weight.clamp(min=1e-6) * (self.weight > 0)).sum((-2, -1)) / seen
        numbers = (
            torch.asinh(flux / sigma) / 3,
            _from_mean(magnitude, measured) / 2,
            _from_mean(depth, measured),
            measured,
            fit.overlap,
            (sigma / fit.sigma_alone).log(),
            torch.asinh(fit.amplitude[..., 1] / sigma) / 3,
            torch.asinh(fit.amplitude[..., 2] / sigma) / 3,
            rough,
            light.square().sum((-2, -1)).clamp(min=1e-10).log() / 4,
            torch.log1p((light * residual.square()).sum((-2, -1)) / seen) / 3,
            noise.clamp(min=1e-6).log() / 3,
            self._psf_width,
        )
        # A band without measurement is one number that says so.
        own = torch.stack(numbers, dim=-1).clamp(-20, 20) * measured[..., None]
        size, binning = self._windows.box.clamp(min=1).log(), self._windows.binning.log2() / 4
        known = (self._psf_width != 0).float().mean(1)
        shared = torch.cat((size, torch.stack((binning, known, measured.mean(1)), dim=1)), dim=1)
        return own, shared

    def rough_numbers(self) -> tuple[Tensor, Tensor]:
        """The same, known before any fit: (R, C, ROUGH_NUMBERS) and (R, SHAPE_NUMBERS)."""
        snr = torch.asinh(self.rough[..., 0] / self.rough[..., 1]) / 3
        own = torch.stack((snr, self._psf_width, self._seen), dim=-1) * self.measured[..., None]
        size = self._windows.box.clamp(min=1)
        widths = self.shape[:, :2].log()
        return own, torch.cat((self.center / size, widths, widths - size.log(), self.shape[:, 2:]), dim=1)


def _smoothed(variance: Tensor, valid: Tensor) -> Tensor:
    """Mean of the variance over 3 x 3 valid pixels, 1 where there is none.

    A survey's variance counts the photons of the very pixel, noise included; weights that follow it would favour
    pixels that are too faint by chance.
    """
    total, count = (F.avg_pool2d(part, 3, 1, 1, divisor_override=1) for part in (variance * valid, valid))
    return torch.where(count > 0, total / count.clamp(min=1), torch.ones_like(total))


def _from_mean(values: Tensor, measured: Tensor) -> Tensor:
    """Differences (R, C) from the mean over an object's measured bands."""
    mean = (values * measured).sum(1, keepdim=True) / measured.sum(1, keepdim=True).clamp(min=1)
    return values - mean
