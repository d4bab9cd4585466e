"""Transforms that act on image, noise, mask, outlines, boxes and shear together.

Legend: C bands, N objects; everything is NumPy, in the pixels of the sample; boxes are `x0, y0, x1, y1` pixel edges.
Spin-2 labels (shear, ellipticity) are (N, 2) components along the pixel axes x, y.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from deepdisc.catalog import FLAGS
from deepdisc.psf import unknown_psf


@dataclass
class Sample:
    """A piece of sky with its truth.

    Attributes:
        image: (C, h, w) float32, nJy; 0 where masked.
        variance: (C, h, w) float32, nJy^2.
        mask: (C, h, w) bool, True = no valid data.
        segmentation: (h, w) int32, 0 = background, otherwise an object's id.
        ids: (N,) int64, ids of the objects whose labels follow.
        boxes: (N, 4) float32.
        labels: name -> (N, ...) array that no transform changes, except that what a crop cuts is flagged EDGE.
        spin2: name -> (N, 2) array that turns with the picture.
        psf: (C, P, P) float32, see `deepdisc.psf`; unknown unless given.
    """

    image: np.ndarray
    variance: np.ndarray
    mask: np.ndarray
    segmentation: np.ndarray
    ids: np.ndarray
    boxes: np.ndarray
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    spin2: dict[str, np.ndarray] = field(default_factory=dict)
    psf: np.ndarray | None = None

    def __post_init__(self):
        if self.psf is None:
            self.psf = unknown_psf(len(self.image))

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.segmentation.shape

    def pick(self, keep: np.ndarray) -> Sample:
        """The same pixels with only the objects of an index or bool array."""
        return replace(
            self,
            ids=self.ids[keep],
            boxes=self.boxes[keep],
            labels={name: value[keep] for name, value in self.labels.items()},
            spin2={name: value[keep] for name, value in self.spin2.items()},
        )

    def _pixels(self, function, *others: str) -> dict[str, np.ndarray]:
        names = ("image", "variance", "mask", "segmentation", *others)
        return {name: function(getattr(self, name)) for name in names}


def crop(sample: Sample, y0: int, x0: int, y1: int, x1: int) -> Sample:
    """Cut the window rows y0..y1, columns x0..x1 (within the sample); boxes are shifted and cut at its border.

    Objects stay in the list even when nothing of them is left: who drops them needs their areas (see `dataset`).
    """
    whole = sample.boxes - np.array([x0, y0, x0, y0], dtype=np.float32)
    size = np.array([x1 - x0, y1 - y0] * 2, dtype=np.float32)
    boxes, labels = whole.clip(0, size), dict(sample.labels)
    if "flags" in labels:
        labels["flags"] = labels["flags"] | np.where((boxes != whole).any(axis=1), FLAGS["EDGE"].value, 0)
    return replace(sample, boxes=boxes, labels=labels, **sample._pixels(lambda value: value[..., y0:y1, x0:x1]))


def mirror(sample: Sample) -> Sample:
    """Mirror along x (columns reversed): x -> width - x. Of a spin-2 label the second component changes sign."""
    width = sample.shape[1]
    x0, y0, x1, y1 = sample.boxes.T
    return replace(
        sample,
        boxes=np.stack((width - x1, y0, width - x0, y1), axis=1),
        spin2={name: value * np.array([1, -1], value.dtype) for name, value in sample.spin2.items()},
        **sample._pixels(lambda value: value[..., ::-1], "psf"),
    )


def quarter_turns(sample: Sample, turns: int) -> Sample:
    """Rotate by `turns` quarters: (x, y) -> (y, width - x) each. Spin-2 labels change sign with every quarter."""
    for _ in range(turns % 4):
        width = sample.shape[1]
        x0, y0, x1, y1 = sample.boxes.T
        sample = replace(
            sample,
            boxes=np.stack((y0, width - x1, y1, width - x0), axis=1),
            spin2={name: -value for name, value in sample.spin2.items()},
            **sample._pixels(lambda value: np.rot90(value, axes=(-2, -1)), "psf"),
        )
    return sample


def add_noise(sample: Sample, factor: float, rng: np.random.Generator) -> Sample:
    """Make the sample as noisy as a shallower exposure: noise `factor` >= 1 times larger, variance factor^2 larger.

    The noise that is added is white and Gaussian; the label "snr", where there is one, is divided by the factor.
    """
    extra = np.sqrt(sample.variance * np.float32(factor**2 - 1))
    noise = rng.standard_normal(sample.image.shape, dtype=np.float32) * extra
    labels = dict(sample.labels)
    if "snr" in labels:
        labels["snr"] = labels["snr"] / factor
    return replace(
        sample,
        image=np.where(sample.mask, sample.image, sample.image + noise),
        variance=sample.variance * np.float32(factor**2),
        labels=labels,
    )
