"""Drawing all objects of a field at once with torch, on a processor or a GPU: what `painter` draws, many times faster.

N = objects of a batch, B = bands, C = parts of an object (disc, bulge, knots), n = side of the periodic grid a batch is
drawn on, s = its oversampling, M = s n (see `fourier`). Lengths are in pixels, k in radians per pixel.

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

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from deepdisc.simulate import sersic
from deepdisc.simulate.conditions import Conditions
from deepdisc.simulate.fourier import SIZES, Grid, Optics, Tables
from deepdisc.simulate.painter import Painter
from deepdisc.simulate.shapes import Shapes, draw_knots

PER_HALF, PER_HLR = 2.5, 7.0  # a grid's smallest side, in half sides of the stamp and half-light radii (major axis)
STEEP = 1.5  # parts of a larger index have so much light far out that the grid must hold nearly all of the PSF's
NEGLIGIBLE_WIDE = 1e-3  # share of an object's light that may come back from beyond the grid; else this is corrected ...
FAINT_WIDE = 3e-3  # ... for those of its Gaussians of whose light more than this comes back
ALIASES = 0.05  # oversampled where aliases of a point would exceed this share of its noise
BATCH = {"cpu": 2**21, "cuda": 2**26}  # complex numbers at a time


@dataclass
class Batch:
    """Objects drawn on grids of one size.

    Attributes:
        rows: (N,) rows of the table of objects.
        light: (N, B, side, side) nJy.
        y0, x0: (N,) int64, the field's pixels where the stamps begin, may be negative.
        half: (N,) half sides of the objects' own stamps, at most those of the batch.
    """

    rows: np.ndarray
    light: Tensor
    y0: Tensor
    x0: Tensor
    half: Tensor

    def pixels(self, shape: tuple[int, int]) -> Tensor:
        """(N, side, side) int64: number of each pixel in a field of (height, width); height * width outside of it and
        of the object's own stamp, for its picture must not depend on what else is in the batch.
        """
        side = torch.arange(self.light.shape[-1], device=self.light.device)
        y, x = self.y0[:, None] + side, self.x0[:, None] + side
        own = (side - len(side) // 2).abs() <= self.half[:, None]
        y_in, x_in = (own & (at >= 0) & (at < length) for at, length in zip((y, x), shape, strict=True))
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
        self._tables = Tables(self._device)

    @property
    def device(self) -> torch.device:
        """Where it draws."""
        return self._device

    def for_conditions(self, conditions: Conditions) -> Renderer:
        """A renderer of another field, with what this one keeps of PSFs if they are the same."""
        other = copy.copy(self)
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
        bulge = (shapes.bulge_share[rows] > 0).any(axis=1)
        knots = shapes.knot_share[rows] > 0
        plan = np.stack([self._sizes(shapes, rows), self._sharp(shapes, rows), bulge, knots])
        kinds, kind_of = np.unique(plan, axis=1, return_inverse=True)
        for number, (n, sharp, has_bulge, has_knots) in enumerate(kinds.T):
            same, bands = rows[kind_of == number], len(self._conditions.bands)
            most = max(1, 2 * BATCH[self._device.type] // (n * n * (bands + 3 * sharp)))
            for start in range(0, len(same), most):
                chosen = same[start : start + most]
                yield self._batch(shapes.take(chosen), chosen, int(n), int(sharp), bool(has_bulge), bool(has_knots))

    def _sharp(self, shapes: Shapes, rows: np.ndarray) -> np.ndarray:
        """(len(rows),) number of bands that are oversampled: none, the third with the sharpest PSFs, or all."""
        needed = (shapes.estimated_snr[rows, None] * self._optics.aliases > ALIASES).sum(axis=1)
        count = len(self._optics.aliases)
        levels = np.array([0, math.ceil(count / 3), count])
        return levels[np.searchsorted(levels, needed)]

    def _sizes(self, shapes: Shapes, rows: np.ndarray) -> np.ndarray:
        """(len(rows),) sides of the objects' grids."""
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
        return np.array(SIZES)[np.minimum(np.searchsorted(SIZES, needed), len(SIZES) - 1)]

    def _painted(self, shapes: Shapes, rows: np.ndarray) -> Iterator[Batch]:
        """Objects that are pictures of real galaxies, drawn by GalSim."""
        if len(rows) == 0:
            return
        painter = Painter(self._conditions, self._real_galaxies)
        for row in rows:
            stamp = painter.paint(shapes, int(row))
            place = (torch.tensor([value], device=self._device) for value in (stamp.y0, stamp.x0, shapes.half[row]))
            yield Batch(np.array([row]), torch.from_numpy(stamp.light[None]).to(self._device), *place)

    # ----------------------------------------------------------------------------------------------------- one batch
    def _batch(self, shapes: Shapes, rows: np.ndarray, n: int, sharp: int, has_bulge: bool, has_knots: bool) -> Batch:
        half = int(shapes.half.max())
        grid = Grid(n, 2 if sharp else 1, self._device)
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
        light = self._observe(torch.stack(parts, dim=1), flux, grid, sharp, shapes)[..., : 2 * half + 1, : 2 * half + 1]
        for part, name in enumerate(("disk", "bulge")[: 1 + has_bulge]):
            self._take_off_wrapped(light, flux[..., part], shapes, name, n)
        place = (torch.from_numpy(one.astype(np.int64)).to(self._device) for one in (y - half, x - half, shapes.half))
        return Batch(rows, light, *place)

    def _observe(self, parts: Tensor, flux: Tensor, grid: Grid, sharp: int, shapes: Shapes) -> Tensor:
        """(N, B, n, n) light of the parts through the bands' PSFs.

        Args:
            parts: (N, C, M, M // 2 + 1) complex64 transforms.
            flux: (N, B, C) nJy.
            grid: of the transforms.
            sharp: number of bands that are drawn on it; the others on one without oversampling.
            shapes: of the N objects.
        """
        order = np.argsort(-self._optics.aliases, kind="stable")
        plan = [(grid, parts, order[:sharp]), (Grid(grid.n, 1, self._device), None, order[sharp:])]
        light = torch.empty(*flux.shape[:2], grid.n, grid.n, device=self._device)
        for one, spectrum, bands in plan:
            if len(bands) == 0:
                continue
            if spectrum is None:
                spectrum = grid.coarse(parts) if grid.s == 2 else parts
            flat = torch.view_as_real(spectrum).flatten(2)
            # Grids so large that one object exceeds the batch take the bands in turn.
            most = max(1, BATCH[self._device.type] // flat[:, 0].numel())
            for start in range(0, len(bands), most):
                some = tuple(int(band) for band in bands[start : start + most])
                seen = torch.view_as_complex((flux[:, some] @ flat).unflatten(-1, (*spectrum.shape[2:], 2)))
                light[:, some] = one.to_pixels(seen.mul_(self._optics.transforms(one, some, shapes)))
        return light

    def _profile(self, shapes: Shapes, part: str, grid: Grid) -> Tensor:
        """(N, M, M // 2 + 1) float32 transforms of a part; 1 for points."""
        start, table = self._tables.find(np.where(shapes.is_galaxy, getattr(shapes, f"{part}_n"), 1.0))
        square = grid.squares(self._tensor(self._maps(shapes, part)))
        place = square.clamp_(min=1e-12).log_().mul_(0.5 / sersic.LN_K_STEP).sub_(sersic.LN_K_FIRST / sersic.LN_K_STEP)
        place = place.clamp_(0, sersic.K_STEPS - 1.001)
        step = place.floor()
        between = place - step
        index = step.to(torch.int64).add_(start[:, None, None])
        low, high = table[index], table[index.add_(1)]
        return torch.lerp(low, high, between)

    def _maps(self, shapes: Shapes, part: str) -> np.ndarray:
        return np.nan_to_num(np.where(shapes.is_galaxy[:, None, None], getattr(shapes, f"{part}_map"), 0.0))

    def _knots(self, shapes: Shapes, grid: Grid) -> Tensor:
        """(N, M, M // 2 + 1) complex64: the mean of exp(-i k x) over the light of an object's knots."""
        place = np.zeros((len(shapes), max(1, int(shapes.knots.max())), 2))
        weight = np.zeros(place.shape[:2])
        for row, number in enumerate(shapes.knots):
            if number > 0:
                unit, light = draw_knots(int(shapes.seed[row]), int(number), float(shapes.disk_n[row]))
                place[row, :number] = unit @ shapes.disk_map[row].T
                weight[row, :number] = light
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
