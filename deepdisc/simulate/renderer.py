"""Drawing all objects of a field at once with torch, on a processor or a GPU: what `painter` draws, many times faster.

N = objects of a batch, B = bands, C = parts of an object (disc, bulge, knots), n = side of the periodic grid a batch is
drawn on, s = its oversampling, M = s n. Lengths are in pixels, k in radians per pixel.

A part's Fourier transform (`sersic.transform`, interpolated, at M^T k: M is the linear map of size, shape and lensing;
knots are sums of phases) times the transform of PSF and pixel is that of the picture. Two things are taken care of:

- *Aliases.* A picture sampled at pixels has the transform summed over k + 2 pi m. Where the PSF is so sharp that this
  matters, s = 2 and the sum is taken over the finer grid before the transform back.
- *Light from beyond the grid*, which is periodic: a profile's wide Gaussians (`sersic.gaussians`), seen through a
  Gaussian of the PSF's width, are drawn in real space, and their periodic sum is taken off in Fourier space. What wraps
  around then is the little by which the PSF differs from a Gaussian. (After Lang 2020, arXiv 2012.15797, who splits
  profiles so; here the split is a correction only.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from deepdisc.errors import require_extra
from deepdisc.simulate import sersic
from deepdisc.simulate.conditions import Conditions
from deepdisc.simulate.painter import Painter
from deepdisc.simulate.shapes import Shapes, knot_positions

SIZES = (24, 32, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024, 1280)
PER_HALF, PER_HLR = 2.5, 7.0  # a grid's smallest side, in half sides of the stamp and half-light radii (major axis)
STEEP = (
    1.5  # profiles of a larger index have so much light far out that the grid must hold nearly all of the PSF's: ...
)
KEPT = 0.97  # ... this share
NEGLIGIBLE_WIDE = 1e-3  # share of an object's light that may come back from beyond the grid; else this is corrected ...
FAINT_WIDE = 3e-3  # ... for those of its Gaussians of whose light more than this comes back
ALIASES = 0.05  # oversampled where aliases of a point would exceed this share of its noise
SMALLEST_PICTURE = 128  # of a PSF that is drawn, pixels
LOST = 1e-5  # share of its light that may lie outside of a picture which is taken for a larger one as well
BATCH = {"cpu": 2**21, "cuda": 2**26}  # complex numbers at a time


@dataclass
class Batch:
    """Objects drawn on grids of one size.

    Attributes:
        rows: (N,) rows of the table of objects.
        light: (N, B, side, side) nJy.
        y0, x0: (N,) int64, the field's pixels where the stamps begin, may be negative.
    """

    rows: np.ndarray
    light: Tensor
    y0: Tensor
    x0: Tensor

    def pixels(self, shape: tuple[int, int]) -> Tensor:
        """(N, side, side) int64: number of each pixel in a field of (height, width); height * width outside of it."""
        side = torch.arange(self.light.shape[-1], device=self.light.device)
        y, x = self.y0[:, None] + side, self.x0[:, None] + side
        y_in, x_in = (y >= 0) & (y < shape[0]), (x >= 0) & (x < shape[1])
        number = y[:, :, None] * shape[1] + x[:, None, :]
        return torch.where(y_in[:, :, None] & x_in[:, None, :], number, shape[0] * shape[1])


class Canvas:
    """A field that batches are added to."""

    def __init__(self, bands: int, shape: tuple[int, int], device: torch.device):
        self._shape = shape
        self._pixels = torch.zeros(bands, shape[0] * shape[1] + 1, device=device)  # the last one is outside

    def add(self, batch: Batch, pixels: Tensor) -> None:
        """Add a batch whose `pixels` these are."""
        self._pixels.index_add_(1, pixels.reshape(-1), batch.light.transpose(0, 1).reshape(len(self._pixels), -1))

    def light(self) -> Tensor:
        """(B, H, W) float32, nJy."""
        return self._pixels[:, :-1].reshape(len(self._pixels), *self._shape)


class Renderer:
    """Draws the objects of one field.

    Args:
        conditions: of the field.
        device: of the drawing.
        real_galaxies: see `Painter`, which draws the objects that are pictures of real galaxies.
    """

    def __init__(self, conditions: Conditions, device: str | torch.device = "cpu", real_galaxies: str | None = None):
        self._conditions, self._device = conditions, torch.device(device)
        self._real_galaxies = real_galaxies
        self._optics = Optics(conditions, self._device)
        self._tables: dict[float, int] = {}
        self._table = torch.empty(0, sersic.K_STEPS, device=self._device)

    @property
    def device(self) -> torch.device:
        """Where it draws."""
        return self._device

    def for_conditions(self, conditions: Conditions) -> Renderer:
        """A renderer of another field, with what this one keeps of PSFs if they are the same."""
        other = Renderer.__new__(Renderer)
        other.__dict__.update(self.__dict__)
        other._conditions = conditions
        if not self._optics.serve(conditions):
            other._optics = Optics(conditions, self._device)
        return other

    def render(self, objects: pd.DataFrame) -> Tensor:
        """(B, H, W) float32 light of all objects, nJy."""
        canvas = self.canvas()
        for batch in self.batches(Shapes.of(objects, self._conditions)):
            canvas.add(batch, batch.pixels(self._conditions.grid.shape))
        return canvas.light()

    def canvas(self) -> Canvas:
        """An empty field."""
        return Canvas(len(self._conditions.bands), self._conditions.grid.shape, self._device)

    def batches(self, shapes: Shapes) -> Iterator[Batch]:
        """The objects that reach into the field, in batches of equal grids."""
        rows = np.flatnonzero(shapes.reach_into(self._conditions.grid.shape))
        real = shapes.stamp[rows] >= 0
        yield from self._painted(shapes, rows[real])
        rows = rows[~real]
        size, sampling = self._grids(shapes, rows)
        bulge = (shapes.bulge_share[rows] > 0).any(axis=1)
        knots = shapes.knot_share[rows] > 0
        kinds, kind_of = np.unique(np.stack([size, sampling, bulge, knots]), axis=1, return_inverse=True)
        for number, (n, s, has_bulge, has_knots) in enumerate(kinds.T):
            same = rows[kind_of == number]
            most = max(1, BATCH[self._device.type] // (len(self._conditions.bands) * (s * n) * (s * n // 2 + 1)))
            for start in range(0, len(same), most):
                chosen = same[start : start + most]
                yield self._batch(shapes.take(chosen), chosen, int(n), int(s), bool(has_bulge), bool(has_knots))

    def _grids(self, shapes: Shapes, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(len(rows),) sides and oversamplings of the objects' grids."""
        part = [np.linalg.norm(np.nan_to_num(getattr(shapes, name)[rows]), ord=2, axis=(1, 2)) for name in _MAPS]
        bulge = shapes.bulge_share[rows]
        galaxy = shapes.is_galaxy[rows]
        major = np.maximum(
            np.where(galaxy & (bulge < 1).any(axis=1), part[0], 0), np.where((bulge > 0).any(axis=1), part[1], 0)
        )
        steep = galaxy & np.where((bulge > 0.1).any(axis=1), shapes.bulge_n[rows] > STEEP, shapes.disk_n[rows] > STEEP)
        needed = np.max(
            [PER_HALF * shapes.half[rows] + 1, PER_HLR * major, np.where(steep, self._optics.smallest(), 0)], axis=0
        )
        size = np.array(SIZES)[np.minimum(np.searchsorted(SIZES, needed), len(SIZES) - 1)]
        sharp = shapes.snr_estimate[rows] * self._optics.aliases > ALIASES
        return size, np.where(sharp, 2, 1)

    def _painted(self, shapes: Shapes, rows: np.ndarray) -> Iterator[Batch]:
        """Objects that are pictures of real galaxies, drawn by GalSim."""
        if len(rows) == 0:
            return
        painter = Painter(self._conditions, self._real_galaxies)
        for row in rows:
            stamp = painter.paint(shapes, int(row))
            corner = (torch.tensor([value], device=self._device) for value in (stamp.y0, stamp.x0))
            yield Batch(np.array([row]), torch.from_numpy(stamp.light[None]).to(self._device), *corner)

    # ----------------------------------------------------------------------------------------------------- one batch
    def _batch(self, shapes: Shapes, rows: np.ndarray, n: int, s: int, has_bulge: bool, has_knots: bool) -> Batch:
        half = int(shapes.half.max())
        grid = Grid(n, s, self._device)
        x, y = np.floor(shapes.x + 0.5), np.floor(shapes.y + 0.5)
        phase = grid.shifts(self._tensor(half + shapes.x - x), self._tensor(half + shapes.y - y))
        disk = 1 - shapes.bulge_share
        parts = [self._profile(shapes, "disk", grid) * phase]
        share = [disk * (1 - shapes.knot_share[:, None])]
        if has_bulge:
            parts.append(self._profile(shapes, "bulge", grid) * phase)
            share.append(shapes.bulge_share)
        if has_knots:
            parts.append(self._knots(shapes, grid) * phase)
            share.append(disk * shapes.knot_share[:, None])
        flux = self._tensor(np.stack(share, axis=-1) * shapes.flux[..., None])  # (N, B, C)
        flat = torch.view_as_real(torch.stack(parts, dim=1)).flatten(2)
        optics = self._optics.transforms(grid, shapes, torch.from_numpy(shapes.cell).to(self._device))
        side, light = 2 * half + 1, []
        # Grids so large that one object exceeds the batch take the bands in turn.
        for bands in torch.arange(flux.shape[1]).split(max(1, BATCH[self._device.type] // flat[:, 0].numel())):
            here = slice(int(bands[0]), int(bands[-1]) + 1)
            seen = torch.view_as_complex((flux[:, here] @ flat).unflatten(-1, (n * s, n * s // 2 + 1, 2)))
            light.append(grid.to_pixels(seen.mul_(optics[:, here]))[..., :side, :side])
        light = torch.cat(light, dim=1)
        for part, name in enumerate(("disk", "bulge")[: 1 + has_bulge]):
            self._take_off_wrapped(light, flux[..., part], shapes, name, n)
        y0, x0 = (torch.from_numpy((corner - half).astype(np.int64)).to(self._device) for corner in (y, x))
        return Batch(rows, light, y0, x0)

    def _profile(self, shapes: Shapes, part: str, grid: Grid) -> Tensor:
        """(N, M, M // 2 + 1) float32 transforms of a part; 1 for points."""
        number = torch.from_numpy(self._indices(np.where(shapes.is_galaxy, getattr(shapes, f"{part}_n"), 1.0)))
        square = grid.squares(self._tensor(self._maps(shapes, part)))
        place = square.clamp_(min=1e-12).log_().mul_(0.5 / sersic.LN_K_STEP).sub_(sersic.LN_K_FIRST / sersic.LN_K_STEP)
        place = place.clamp_(0, sersic.K_STEPS - 1.001)
        step = place.floor()
        between = place - step
        index = step.to(torch.int64).add_((number * sersic.K_STEPS).to(self._device)[:, None, None])
        table = self._table.view(-1)
        low, high = table[index], table[index.add_(1)]
        return torch.lerp(low, high, between)

    def _indices(self, n: np.ndarray) -> np.ndarray:
        """(N,) rows of the table of transforms."""
        keys = np.round(np.nan_to_num(n, nan=1.0), 3)
        for key in np.unique(keys):
            if float(key) not in self._tables:
                self._tables[float(key)] = len(self._tables)
                row = torch.from_numpy(sersic.transform(float(key))).to(self._device)
                self._table = torch.cat([self._table, row[None]])
        return np.array([self._tables[float(key)] for key in keys], dtype=np.int64)

    def _maps(self, shapes: Shapes, part: str) -> np.ndarray:
        return np.nan_to_num(np.where(shapes.is_galaxy[:, None, None], getattr(shapes, f"{part}_map"), 0.0))

    def _knots(self, shapes: Shapes, grid: Grid) -> Tensor:
        """(N, M, M // 2 + 1) complex64: the mean of exp(-i k x) over an object's knots."""
        place = np.zeros((len(shapes), max(1, int(shapes.knots.max())), 2))
        weight = np.zeros(place.shape[:2])
        for row, number in enumerate(shapes.knots):
            if number > 0:
                unit = knot_positions(int(shapes.seed[row]), int(number), float(shapes.disk_n[row]))
                place[row, :number] = unit @ shapes.disk_map[row].T
                weight[row, :number] = 1 / number
        along_x, along_y = grid.phases(self._tensor(place[..., 0]), self._tensor(place[..., 1]))
        return (along_y * self._tensor(weight)[..., None]).transpose(1, 2) @ along_x

    def _take_off_wrapped(self, light: Tensor, flux: Tensor, shapes: Shapes, part: str, n: int) -> None:
        """Replace the light of a part's wide Gaussians that came back from beyond the grid by what is there, in place.

        Args:
            light: (N, B, side, side).
            flux: (N, B) of the part.
            shapes: of the N objects.
            part: "disk" or "bulge".
            n: side of the grid.
        """
        half, matrix = light.shape[-1] // 2, self._maps(shapes, part)
        weight, sigma = self._wide(shapes, part, np.linalg.norm(matrix, ord=2, axis=(1, 2)), n - half)
        chosen = np.flatnonzero(weight.any(axis=1))
        if len(chosen) == 0:
            return
        weight, variance = self._tensor(weight[chosen]), sigma**2
        matrix = self._tensor(matrix[chosen])
        x, y = (self._tensor((one - np.floor(one + 0.5))[chosen]) for one in (shapes.x, shapes.y))
        coarse, blur = Grid(n, 1, self._device), self._optics.variance
        # Each Gaussian's variance is twice that of the one before: its transform is the square of that one's.
        transform = torch.exp(coarse.squares(matrix).mul_(-0.5 * float(variance[0])))
        spectrum = torch.zeros_like(transform)
        there = torch.zeros(len(chosen), 2 * half + 1, 2 * half + 1, device=self._device)
        for number, one in enumerate(variance):
            spectrum.addcmul_(transform, weight[:, number, None, None])
            transform.square_()
            there += _gaussian_pictures(matrix, weight[:, number], float(one), blur, x, y, half)
        spectrum = spectrum * coarse.gaussian(blur) * coarse.shifts(half + x, half + y)
        wrapped = coarse.to_pixels(spectrum)[..., : 2 * half + 1, : 2 * half + 1]
        rows = torch.from_numpy(chosen).to(self._device)
        light.index_add_(0, rows, flux[rows][..., None, None] * (there - wrapped)[:, None])

    def _wide(self, shapes: Shapes, part: str, major: np.ndarray, distance: int) -> tuple[np.ndarray, np.ndarray]:
        """Weights (N, J) and standard deviations (J,) of the Gaussians that shine from one period into the next.

        Args:
            shapes: of the N objects.
            part: "disk" or "bulge".
            major: (N,) half-light radius along the major axis.
            distance: from the middle of one period to the next one's stamp.
        """
        n_of = np.round(np.nan_to_num(getattr(shapes, f"{part}_n"), nan=1.0), 3)
        mixtures = {value: sersic.gaussians(float(value)) for value in np.unique(n_of)}
        weight, sigma = np.stack([mixtures[value][0] for value in n_of]), next(iter(mixtures.values()))[1]
        share = shapes.bulge_share if part == "bulge" else 1 - shapes.bulge_share
        with np.errstate(divide="ignore"):
            coming = np.exp(-0.5 * (distance / (major[:, None] * sigma)) ** 2)
        wrapped = (weight * coming).sum(axis=1) * share.max(axis=1)
        used = (coming > FAINT_WIDE) & (wrapped > NEGLIGIBLE_WIDE)[:, None]
        # From the narrowest one on without a gap, for the transforms follow from each other.
        return np.where(used, weight, 0.0)[:, used.any(axis=0).argmax() :], sigma[used.any(axis=0).argmax() :]

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(self._device)


_MAPS = ("disk_map", "bulge_map")


def _gaussian_pictures(
    matrix: Tensor, weight: Tensor, variance: float, blur: float, x: Tensor, y: Tensor, half: int
) -> Tensor:
    """(N, 2 half + 1, 2 half + 1): elliptical Gaussians.

    Args:
        matrix: (N, 2, 2) maps to the picture.
        weight: (N,) their light.
        variance: before the map.
        blur: variance of the round Gaussian they are convolved with.
        x: (N,) centre, relative to the middle of the picture.
        y: the same.
        half: half side of the picture.
    """
    shape = matrix @ matrix.transpose(1, 2) * variance  # (N, 2, 2)
    xx, xy, yy = shape[:, 0, 0] + blur, shape[:, 0, 1], shape[:, 1, 1] + blur
    determinant = xx * yy - xy * xy
    side = torch.arange(-half, half + 1, device=matrix.device)
    dx, dy = (side - x[:, None])[:, None, :], (side - y[:, None])[:, :, None]
    xx, xy, yy = (-0.5 * (one / determinant)[:, None, None] for one in (xx, xy, yy))
    exponent = (yy * dx - 2 * xy * dy) * dx + xx * dy * dy
    return exponent.exp_().mul_((weight / (2 * math.pi * determinant.sqrt()))[:, None, None])


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

    def to_pixels(self, spectrum: Tensor) -> Tensor:
        """(..., n, n): the picture at the pixels' centres of (..., M, M // 2 + 1) transforms."""
        n = self.n
        if self.s == 2:
            rows = spectrum[..., :n, :] + spectrum[..., n:, :]
            # Frequencies kx - 2 pi: of the real picture's transform, the conjugate at 2 pi - kx, -ky.
            mirrored = torch.roll(rows[..., n - n // 2 :].flip((-2, -1)), 1, dims=-2).conj()
            spectrum = rows[..., : n // 2 + 1] + mirrored
        return torch.fft.irfft2(spectrum, s=(n, n))


class Optics:
    """The transforms of PSF and pixel in every band, from pictures that GalSim draws, kept by grid.

    Attributes:
        aliases: light of a point that a grid without oversampling puts into wrong pixels, over its light in the right
            ones (root of the sums of squares), in the band where this is largest.
        variance: of the Gaussian that is like PSF and pixel, mean of the bands, pixels^2.
    """

    def __init__(self, conditions: Conditions, device: torch.device):
        self._galsim = require_extra("galsim", "sim")
        self._conditions, self._device = conditions, device
        self._scale = conditions.instrument.pixel_scale_arcsec
        self._profiles: dict[int, list] = {}
        self._kept: dict[tuple[int, int, int], Tensor] = {}
        self._pictures: dict[tuple[int, int, int], np.ndarray] = {}
        fine = Grid(32, 2, device)
        power = self._transform(fine, 0, 0.0, 0.0).abs().square()
        outside = (fine.kx > math.pi) | (fine.ky.abs() > math.pi)[:, None]
        share = (power * outside).sum(dim=(1, 2)) / power.sum(dim=(1, 2))
        self.aliases = float(share.max().sqrt())
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
        for n in SIZES:
            if n >= 64 or float(self._transform(Grid(n, 1, self._device), 0, 0.0, 0.0)[:, 0, 0].real.min()) >= KEPT:
                return n

    def _seen(self, cell: int, x: float, y: float) -> list:
        """The bands' PSFs with the pixel in the cell that holds x, y."""
        if cell not in self._profiles:
            galsim, count = self._galsim, len(self._conditions.bands)
            keywords = {"gsparams": galsim.GSParams(maximum_fft_size=32_768, maxk_threshold=1e-5)}
            psfs = [self._conditions.psf(band, x, y, **keywords).dilate(1 / self._scale) for band in range(count)]
            self._profiles[cell] = [galsim.Convolve([psf, galsim.Pixel(1.0)], **keywords) for psf in psfs]
        return self._profiles[cell]

    def transforms(self, grid: Grid, shapes: Shapes, cells: Tensor) -> Tensor:
        """(N or 1, B, M, M // 2 + 1) complex64 for the objects' cells."""
        numbers, first = np.unique(shapes.cell, return_index=True)
        every = [self._transform(grid, int(c), shapes.x[i], shapes.y[i]) for c, i in zip(numbers, first, strict=True)]
        if len(every) == 1:
            return every[0][None]
        place = torch.searchsorted(torch.from_numpy(numbers).to(self._device), cells)
        return torch.stack(every)[place]

    def _transform(self, grid: Grid, cell: int, x: float, y: float) -> Tensor:
        """(B, M, M // 2 + 1): of the PSFs, cut at the grid's border so that their wings do not come back, and at
        GalSim's highest frequency, beyond which a measured PSF is what its interpolation makes of noise.
        """
        key = (grid.n, grid.s, cell)
        if key not in self._kept:
            profiles, half = self._seen(cell, x, y), grid.n * grid.s // 2
            pictures = self._draw(profiles, grid, cell)
            middle = pictures.shape[-1] // 2
            cut = slice(middle - half, middle + half)
            pictures = np.fft.ifftshift(pictures[:, cut, cut], axes=(-2, -1))
            transform = torch.fft.rfft2(torch.from_numpy(pictures).to(self._device))
            highest = torch.tensor([profile.maxk for profile in profiles], device=self._device)[:, None, None]
            self._kept[key] = transform * ((grid.kx <= highest) & (grid.ky.abs()[:, None] <= highest))
        return self._kept[key]

    def _draw(self, profiles: list, grid: Grid, cell: int) -> np.ndarray:
        """(B, odd, odd) float32 pictures, at least as large as the grid; drawn once for grids up to a power of 2."""
        side = max(SMALLEST_PICTURE, 2 ** (grid.n - 1).bit_length())
        key = (side, grid.s, cell)
        smaller = self._pictures.get((side // 2, grid.s, cell))
        if key not in self._pictures and smaller is not None and abs(smaller.sum(axis=(1, 2)) - 1).max() < LOST:
            self._pictures[key] = np.pad(smaller, ((0, 0), *[(side * grid.s // 4,) * 2] * 2))
        if key not in self._pictures:
            pictures = np.empty((len(profiles), side * grid.s + 1, side * grid.s + 1), dtype=np.float32)
            for profile, picture in zip(profiles, pictures, strict=True):
                profile.drawImage(self._galsim.ImageF(picture, scale=1 / grid.s), method="no_pixel")
            self._pictures[key] = pictures
        return self._pictures[key]
