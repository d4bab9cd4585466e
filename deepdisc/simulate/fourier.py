"""What the renderer multiplies in Fourier space: the frequencies of a grid, profiles, and PSFs with the pixel.

N = number of objects, B = bands, n = side of a periodic grid of pixels, s = its oversampling, M = s n. Lengths are in
pixels, k in radians per pixel.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from deepdisc.errors import require_extra
from deepdisc.simulate import sersic
from deepdisc.simulate.conditions import Conditions
from deepdisc.simulate.shapes import Shapes

SIZES = (24, 32, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024, 1280)  # sides of grids
KEPT = 0.97  # share of the PSF's light that the grids of profiles with much light far out must hold
LARGEST_FOR_PSF = 64  # a grid this large is large enough for them
SMALLEST_PICTURE = 128  # of a PSF that is drawn, pixels
LOST = 1e-5  # share of its light that may lie outside of a picture which is taken for a larger one as well


class Grid:
    """The frequencies of a periodic grid of n x n pixels, oversampled s times: M = s n along y, M // 2 + 1 along x."""

    def __init__(self, n: int, s: int, device: torch.device):
        self.n, self.s = n, s
        self.ky = 2 * math.pi * torch.fft.fftfreq(n * s, 1 / s, device=device)
        self.kx = 2 * math.pi * torch.fft.rfftfreq(n * s, 1 / s, device=device)

    def squares(self, matrix: Tensor) -> Tensor:
        """(N, M, M // 2 + 1): |M^T k|^2 for (N, 2, 2) maps."""
        first, second = (
            matrix[:, 0, i, None, None] * self.kx + matrix[:, 1, i, None, None] * self.ky[:, None] for i in (0, 1)
        )
        return first.square_().add_(second.square_())

    def phases(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(..., M // 2 + 1) and (..., M) complex64: exp(-i kx x), exp(-i ky y)."""
        return tuple(torch.polar(torch.ones_like(a), a) for a in (-x[..., None] * self.kx, -y[..., None] * self.ky))

    def shifts(self, x: Tensor, y: Tensor) -> Tensor:
        """(N, M, M // 2 + 1) complex64: exp(-i k x)."""
        along_x, along_y = self.phases(x, y)
        return along_y[..., :, None] * along_x[..., None, :]

    def gaussian(self, variance: float) -> Tensor:
        """(M, M // 2 + 1): the transform of a round Gaussian."""
        return torch.exp(-0.5 * variance * self.kx**2) * torch.exp(-0.5 * variance * self.ky**2)[:, None]

    def coarse(self, spectrum: Tensor) -> Tensor:
        """(..., n, n // 2 + 1): those of (..., M, M // 2 + 1) frequencies that a grid without oversampling has."""
        half = self.n // 2
        return torch.cat([spectrum[..., :half, : half + 1], spectrum[..., -half:, : half + 1]], dim=-2)

    def to_pixels(self, spectrum: Tensor) -> Tensor:
        """(..., n, n): the picture at the pixels' centres of (..., M, M // 2 + 1) transforms."""
        n = self.n
        if self.s == 2:
            rows = spectrum[..., :n, :] + spectrum[..., n:, :]
            # Frequencies kx - 2 pi: of the real picture's transform, the conjugate at 2 pi - kx, -ky.
            mirrored = torch.roll(rows[..., n - n // 2 :].flip((-2, -1)), 1, dims=-2).conj()
            spectrum = rows[..., : n // 2 + 1] + mirrored
        return torch.fft.irfft2(spectrum, s=(n, n))


class Tables:
    """The transforms of round profiles by Sersic index, one after the other."""

    def __init__(self, device: torch.device):
        self._device = device
        self._number: dict[float, int] = {}
        self._values = torch.empty(0, device=device)

    def find(self, n: np.ndarray) -> tuple[Tensor, Tensor]:
        """Where the tables of (N,) indices (NaN: any) begin, (N,) int64, and all tables."""
        keys = np.round(np.nan_to_num(n, nan=1.0), 3)
        for key in np.unique(keys):
            if float(key) not in self._number:
                self._number[float(key)] = len(self._number)
                values = torch.from_numpy(sersic.transform(float(key))).to(self._device)
                self._values = torch.cat([self._values, values])
        start = np.array([self._number[float(key)] * sersic.K_STEPS for key in keys], dtype=np.int64)
        return torch.from_numpy(start).to(self._device), self._values


class Optics:
    """The transforms of PSF and pixel in every band, from pictures that GalSim draws, kept by grid.

    Attributes:
        aliases: (B,) light of a point that a grid without oversampling puts into wrong pixels, over its light in the
            right ones (root of the sums of squares).
        variance: of the Gaussian that is like PSF and pixel, mean of the bands, pixels^2.
    """

    def __init__(self, conditions: Conditions, device: torch.device):
        self._galsim = require_extra("galsim", "sim")
        self._conditions, self._device = conditions, device
        self._scale = conditions.instrument.pixel_scale_arcsec
        self._profiles: dict[int, list] = {}
        self._kept: dict[tuple, Tensor] = {}
        self._pictures: dict[tuple[int, int, int, int], np.ndarray] = {}
        fine, every = Grid(32, 2, device), tuple(range(len(conditions.bands)))
        power = self._transform(fine, every, 0, 0.0, 0.0).abs().square()
        outside = (fine.kx > math.pi) | (fine.ky.abs() > math.pi)[:, None]
        share = (power * outside).sum(dim=(1, 2)) / power.sum(dim=(1, 2))
        self.aliases = share.sqrt().cpu().numpy()
        # A Gaussian's logarithm is quadratic: its variance is read off at low frequencies.
        low = 0.25
        near = [abs(one.kValue(low, 0)) for one in self._seen(0, 0.0, 0.0)]
        self.variance = float(np.mean([-2 * math.log(value) / low**2 for value in near]))

    def serve(self, conditions: Conditions) -> bool:
        """Whether the PSFs under other conditions are the same, in fields of the same shape."""
        mine = self._conditions
        return (
            conditions.instrument == mine.instrument
            and conditions.grid.shape == mine.grid.shape
            and conditions.moffat_beta == mine.moffat_beta
            and np.array_equal(conditions.psf_width, mine.psf_width)
            and np.array_equal(conditions.psf_variation, mine.psf_variation)
        )

    def smallest(self) -> int:
        """The smallest side of a grid that holds the share KEPT of every band's light in the field's first corner."""
        bands = tuple(range(len(self._conditions.bands)))
        for n in SIZES[: SIZES.index(LARGEST_FOR_PSF)]:
            total = self._transform(Grid(n, 1, self._device), bands, 0, 0.0, 0.0)[:, 0, 0].real
            if float(total.min()) >= KEPT:
                return n
        return LARGEST_FOR_PSF

    def _seen(self, cell: int, x: float, y: float) -> list:
        """The bands' PSFs with the pixel in the cell that holds x, y."""
        if cell not in self._profiles:
            galsim, count = self._galsim, len(self._conditions.bands)
            keywords = {"gsparams": galsim.GSParams(maximum_fft_size=32_768, maxk_threshold=1e-5)}
            psfs = [self._conditions.psf(band, x, y, **keywords).dilate(1 / self._scale) for band in range(count)]
            self._profiles[cell] = [galsim.Convolve([psf, galsim.Pixel(1.0)], **keywords) for psf in psfs]
        return self._profiles[cell]

    def transforms(self, grid: Grid, bands: tuple[int, ...], shapes: Shapes) -> Tensor:
        """(N or 1, number of bands, M, M // 2 + 1) complex64 in the objects' cells."""
        numbers, first, place = np.unique(shapes.cell, return_index=True, return_inverse=True)
        every = [
            self._transform(grid, bands, int(cell), shapes.x[i], shapes.y[i])
            for cell, i in zip(numbers, first, strict=True)
        ]
        if len(every) == 1:
            return every[0][None]
        return torch.stack(every)[torch.from_numpy(place).to(self._device)]

    def _transform(self, grid: Grid, bands: tuple[int, ...], cell: int, x: float, y: float) -> Tensor:
        """(number of bands, M, M // 2 + 1): of the PSFs, cut at the grid's border so that their wings do not come back,
        and at GalSim's highest frequency, beyond which a measured PSF is what its interpolation makes of noise.
        """
        key = (grid.n, grid.s, bands, cell)
        if key not in self._kept:
            profiles, half = [self._seen(cell, x, y)[band] for band in bands], grid.n * grid.s // 2
            pictures = np.stack([self._draw(grid, band, cell, x, y) for band in bands])
            middle = pictures.shape[-1] // 2
            cut = slice(middle - half, middle + half)
            pictures = np.fft.ifftshift(pictures[:, cut, cut], axes=(-2, -1))
            transform = torch.fft.rfft2(torch.from_numpy(pictures).to(self._device))
            highest = torch.tensor([profile.maxk for profile in profiles], device=self._device)[:, None, None]
            self._kept[key] = transform * ((grid.kx <= highest) & (grid.ky.abs()[:, None] <= highest))
        return self._kept[key]

    def _draw(self, grid: Grid, band: int, cell: int, x: float, y: float) -> np.ndarray:
        """(odd, odd) float32 picture, at least as large as the grid; drawn once for grids up to a power of 2."""
        side = max(SMALLEST_PICTURE, 2 ** (grid.n - 1).bit_length())
        key = (side, grid.s, band, cell)
        smaller = self._pictures.get((side // 2, grid.s, band, cell))
        finer = self._pictures.get((side, 2, band, cell))
        if key not in self._pictures and finer is not None:
            self._pictures[key] = 4 * finer[::2, ::2]
        if key not in self._pictures and smaller is not None and abs(smaller.sum() - 1) < LOST:
            self._pictures[key] = np.pad(smaller, side * grid.s // 4)
        if key not in self._pictures:
            picture = np.empty((side * grid.s + 1, side * grid.s + 1), dtype=np.float32)
            self._seen(cell, x, y)[band].drawImage(self._galsim.ImageF(picture, scale=1 / grid.s), method="no_pixel")
            self._pictures[key] = picture
        return self._pictures[key]
