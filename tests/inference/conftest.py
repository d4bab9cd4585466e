"""A mosaic in memory, and a detector that knows the truth of it."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from astropy.wcs import WCS

from deepdisc.mixture import Mixture
from deepdisc.psf import moffat_psf
from deepdisc.sky import PixelGrid
from deepdisc.structures import Instances, RegionMasks

NOISE = 1.0
NO_INFORMATION = 1e30  # variance of the bands that only carry coordinates


@dataclass
class Pixels:
    """What `Mosaic.read` returns."""

    image: np.ndarray
    variance: np.ndarray
    mask: np.ndarray
    saturated: np.ndarray


class MemoryMosaic:
    """The interface of `Mosaic` on arrays: one band of flux, and two whose pixels hold their own x and y.

    From the last two a stub detector learns which part of the mosaic it is given.
    """

    bands = ("r", "x", "y")

    def __init__(self, flux, mask=None, wcs=None, damaged=None):
        height, width = flux.shape
        y, x = np.mgrid[:height, :width]
        self.image = np.stack((flux, x, y)).astype(np.float32)
        self.mask = np.zeros(self.image.shape, bool) if mask is None else np.broadcast_to(mask, self.image.shape).copy()
        self.grid = PixelGrid(flux.shape, 0.2, wcs)
        self.damaged = damaged
        self.pixel_scale_arcsec = 0.2
        self.metadata = {"name": "memory"}
        self.reads = 0

    @property
    def shape(self):
        return self.grid.shape

    def select(self, bands):
        assert tuple(bands) == self.bands
        return self

    def measure_sky(self):
        return self

    def ebv_at(self, *extent):
        return np.float32(0.05)

    def psf_at(self, *extent):
        return np.stack([moffat_psf(3.0)] * 3)

    def read(self, y0, x0, y1, x1):
        self.reads += 1
        if self.damaged is not None and x0 <= self.damaged[1] < x1 and y0 <= self.damaged[0] < y1:
            raise OSError("damaged block")
        rows, columns = np.arange(y0, y1), np.arange(x0, x1)
        outside_y, outside_x = (rows < 0) | (rows >= self.shape[0]), (columns < 0) | (columns >= self.shape[1])
        picked = np.ix_(range(3), rows.clip(0, self.shape[0] - 1), columns.clip(0, self.shape[1] - 1))
        mask = self.mask[picked] | outside_y[:, None] | outside_x
        variance = np.full(mask.shape, NOISE**2, np.float32)
        variance[1:] = NO_INFORMATION
        return Pixels(np.where(mask, 0, self.image[picked]), np.where(mask, 1, variance), mask, np.zeros_like(mask))


@dataclass
class Truth:
    """Objects with integer boxes (N, 4), elliptical outlines inside them, distinct scores."""

    boxes: np.ndarray
    scores: np.ndarray
    outlines: list

    @classmethod
    def of(cls, boxes):
        boxes = np.array(boxes, dtype=int).reshape(-1, 4)
        outlines = []
        for x0, y0, x1, y1 in boxes.tolist():
            y, x = np.mgrid[: y1 - y0, : x1 - x0]
            u, v = (2 * x + 1) / (x1 - x0) - 1, (2 * y + 1) / (y1 - y0) - 1
            outlines.append(u**2 + v**2 <= 1)
        return cls(boxes, np.linspace(0.99, 0.5, max(len(boxes), 1))[: len(boxes)], outlines)

    def segmentation(self, shape):
        """Labels 1 + number, the higher score on top."""
        labels = np.zeros(shape, int)
        for i in reversed(range(len(self.boxes))):
            x0, y0, x1, y1 = self.boxes[i]
            labels[y0:y1, x0:x1][self.outlines[i]] = i + 1
        return labels

    def detector(self, mixture_components=2):
        """A model that returns these objects, clipped to the tile."""

        def model(inputs):
            return [{"instances": self.in_tile(item, mixture_components)} for item in inputs]

        return model

    def in_tile(self, item, components):
        height, width = item["image"].shape[1:]
        boxes, masks = torch.zeros((0, 4)), RegionMasks.empty((height, width))
        seen = np.zeros(0, dtype=int)
        valid = np.argwhere(~item["mask"][1].numpy())
        if len(valid) and len(self.boxes):
            row, column = valid[0]
            origin = item["image"][1:, row, column].numpy().astype(int) - [column, row]
            moved = self.boxes - np.concatenate((origin, origin))
            clipped = np.stack([moved[:, i].clip(0, (width, height)[i % 2]) for i in range(4)], axis=1)
            seen = np.flatnonzero((clipped[:, 2:] > clipped[:, :2]).all(1))
            boxes = torch.tensor(clipped[seen]).float()
            masks = RegionMasks(
                torch.tensor(clipped[seen]),
                [torch.tensor(self.outlines[i][clipped[i, 1] - moved[i, 1] : clipped[i, 3] - moved[i, 1],
                                               clipped[i, 0] - moved[i, 0] : clipped[i, 2] - moved[i, 0]])
                 for i in seen],
                (height, width),
            )  # fmt: skip
        number = torch.tensor(seen).float()[:, None]
        pdf = Mixture(
            torch.zeros(len(seen), components), 0.1 * number + torch.arange(components), number * 0 + 0.1, 0.0
        )
        return Instances(
            (height, width),
            pred_boxes=boxes,
            scores=torch.tensor(self.scores[seen]).float(),
            pred_classes=torch.tensor(seen % 2),
            pred_masks=masks,
            pred_redshift=pdf,
        )


@pytest.fixture
def memory_mosaic():
    """The class, to be called with pixels."""
    return MemoryMosaic


@pytest.fixture
def truth_of_boxes():
    """`Truth.of`, to be called with boxes."""
    return Truth.of


@pytest.fixture
def sky_wcs():
    """A rotated, mirrored tangential WCS of 0.2 arcsec pixels."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crpix = [51.0, 41.0]
    wcs.wcs.crval = [150.0, 2.0]
    angle, scale = np.radians(30), 0.2 / 3600
    wcs.wcs.cd = scale * np.array([[-np.cos(angle), np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return wcs
