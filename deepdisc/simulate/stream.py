"""Training samples that are drawn when they are asked for, without files: sample k is the same sky as field k on disk.

    from deepdisc.simulate import Sky
    from deepdisc.simulate.stream import SkyStream
    stream = SkyStream(Sky(instrument="sdss", shape=(160, 160)), seed=1)
    stream.sample(7)["image"]

A sample is a dict of NumPy arrays, so that this module need not know who learns from it. C = number of bands, N =
number of labelled objects, (h, w) = `sky.shape`:

    image          (C, h, w) float32, nJy, 0 where masked
    variance       (C, h, w) float32, nJy^2
    mask           (C, h, w) bool, True = bad
    segmentation   (h, w) int32, 0 = background, otherwise an object's id
    ids            (N,) int64
    boxes          (N, 4) float32 x0, y0, x1, y1, pixel edges
    labels         name -> (N,): class_id, flags, area_pix, snr, neighbours, and the columns asked for, (N,) or (N, k)
    spin2          name -> (N, 2) components along the pixel axes
    ebv            E(B-V) at the centre
    psf            (C, P, P) float32, what the survey takes for the PSF at the centre; see `deepdisc.psf`
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch.utils.data import IterableDataset, get_worker_info

from deepdisc.bands import label_columns
from deepdisc.catalog import FLAGS
from deepdisc.errors import InputError, nearest
from deepdisc.simulate.fields import Drawn, draw_field, observe_band
from deepdisc.simulate.instruments import Instrument
from deepdisc.simulate.labelling import Rendered, render_labelled
from deepdisc.simulate.observe import PixelFlags
from deepdisc.simulate.population import CLASS_NAMES
from deepdisc.simulate.psf_stamps import believed_psfs
from deepdisc.simulate.renderer import Renderer
from deepdisc.simulate.settings import Sky


class SkyStream(IterableDataset):
    """An endless stream of samples; each follows from (seed, number) alone.

    Iterated, it gives numbers `start`, `start` + 1, ...; of several loading processes each gives its own part of them.

    Args:
        sky: settings; `sky.shape` is that of the samples.
        seed: of all random choices, not negative.
        population_part: in place of that of `sky`: "test" for samples to validate with.
        device: of the drawing; "cuda" only where no loading processes are forked from this one.
        labels: name -> column of the objects (redshift, flux_<band>, disk_hlr_arcsec, ...), or several; one that holds
            "{band}" stands for one per band.
        spin2: name -> two columns in sky orientation, which are turned to the pixel axes: {"shear": ("g1", "g2")}.
        start: first number that an iteration gives.

    Raises:
        InputError: a setting that only files serve.
    """

    def __init__(
        self,
        sky: Sky,
        seed: int = 0,
        population_part: str | None = None,
        device: str = "cpu",
        labels: Mapping[str, str | Sequence[str]] | None = None,
        spin2: Mapping[str, Sequence[str]] | None = None,
        start: int = 0,
    ):
        if sky.exposures is not None:
            raise InputError("sky.exposures: samples without files have one image per band; leave it None")
        if seed < 0:
            raise InputError(f"seed is {seed}; it must not be negative")
        self.sky = sky if population_part is None else dataclasses.replace(sky, population_part=population_part)
        self.seed, self.device, self.start = seed, device, start
        bands = [band.name for band in Instrument.load(sky.instrument, sky.bands).bands]
        self.labels = label_columns({"redshift": "redshift"} if labels is None else labels, bands)
        self.spin2 = dict(spin2 or {})
        self._renderer: Renderer | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_renderer": None}  # GalSim's profiles and GPU tensors stay in their process

    @property
    def description(self) -> dict[str, Any]:
        """What a data set on disk would say of itself in dataset.yaml: bands, unit, pixel scale, classes."""
        instrument = Instrument.load(self.sky.instrument, self.sky.bands)
        return {
            "name": f"synthetic {instrument.name}",
            "bands": [band.name for band in instrument.bands],
            "unit": "nJy",
            "pixel_scale_arcsec": instrument.pixel_scale_arcsec,
            "class_names": list(CLASS_NAMES),
        }

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        number, step = (self.start, 1) if worker is None else (self.start + worker.id, worker.num_workers)
        while True:
            yield self.sample(number)
            number += step

    def sample(self, number: int) -> dict[str, Any]:
        """Sample `number` (not negative), as described at the top.

        Raises:
            InputError: a label's column does not exist.
        """
        field = draw_field(self.sky, number, self.seed)
        conditions = field.conditions
        if self._renderer is None:
            self._renderer = Renderer(conditions, self.device, self.sky.real_galaxies)
        self._renderer = self._renderer.for_conditions(conditions)
        rendered = render_labelled(self.sky, conditions, field.objects, self._renderer)
        image, variance, mask, pixel_flags = _observed(field, rendered)
        objects = field.objects.iloc[rendered.rows].assign(id=np.arange(1, len(rendered.rows) + 1))
        flags = pixel_flags.flags(objects) | FLAGS["EDGE"].value * rendered.edge
        height, width = conditions.grid.shape
        return {
            "image": image,
            "variance": variance,
            "mask": mask,
            "segmentation": rendered.segmentation,
            "ids": objects.id.to_numpy(np.int64),
            "boxes": rendered.boxes,
            "labels": {
                "class_id": objects.class_id.to_numpy(np.int16),
                "flags": flags.astype(np.int32),
                "area_pix": rendered.area_pix,
                "snr": rendered.snr.astype(np.float32),
                "neighbours": _touching(rendered.segmentation, len(objects)),
                **{name: _columns(objects, wanted).astype(np.float32) for name, wanted in self.labels.items()},
            },
            "spin2": {name: self._turned(field, objects, pair) for name, pair in self.spin2.items()},
            "ebv": float(conditions.ebv_at(np.array([(width - 1) / 2]), np.array([(height - 1) / 2]))[0]),
            "psf": np.stack(
                [believed.recorded((width - 1) / 2, (height - 1) / 2) for believed in believed_psfs(field)]
            ),
        }

    def _turned(self, field: Drawn, objects: pd.DataFrame, pair: tuple[str, str]) -> np.ndarray:
        """(N, 2) components along the pixel axes of a quantity in sky orientation."""
        components = (_column(objects, name) for name in pair)
        x, y = objects.x.to_numpy(), objects.y.to_numpy()
        return np.stack(field.conditions.grid.shear_to_pixel(x, y, *components), axis=1).astype(np.float32)


def _column(objects: pd.DataFrame, name: str) -> np.ndarray:
    if name not in objects:
        close = nearest(name, objects.columns)
        hint = f"; the nearest is {close!r}" if close else ""
        raise InputError(f"simulated objects have no column {name!r}{hint}")
    return objects[name].to_numpy(np.float64)


def _columns(objects: pd.DataFrame, names: str | Sequence[str]) -> np.ndarray:
    """(N,) values of a column, (N, k) of several."""
    if isinstance(names, str):
        return _column(objects, names)
    return np.stack([_column(objects, name) for name in names], axis=1)


def _touching(segmentation: np.ndarray, count: int) -> np.ndarray:
    """(count,) int32: with how many others the pixels of each object 1..count are in touch, corners included."""
    pairs = [np.zeros((0, 2), np.int64)]
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        here = segmentation[: len(segmentation) - dy, max(-dx, 0) : segmentation.shape[1] - max(dx, 0)]
        there = segmentation[dy:, max(dx, 0) : segmentation.shape[1] + min(dx, 0)]
        met = (here != there) & (here > 0) & (there > 0)
        pairs.append(np.sort(np.stack([here[met], there[met]], axis=1), axis=1))
    both = np.unique(np.concatenate(pairs), axis=0)
    return np.bincount(both.ravel(), minlength=count + 1)[1:].astype(np.int32)


def _observed(field: Drawn, rendered: Rendered) -> tuple[np.ndarray, np.ndarray, np.ndarray, PixelFlags]:
    """Image, variance and mask, (C, h, w) each, and the flags of the masked pixels."""
    image = rendered.light.cpu().numpy()
    variance, mask = np.empty_like(image), np.zeros(image.shape, dtype=bool)
    flags = PixelFlags(rendered.segmentation)
    for band in range(len(image)):
        one = observe_band(field, band, image[band])
        image[band], variance[band] = one.image, one.variance
        if one.mask is not None:
            flags.add(one.mask, field.sky.effects.masked_bits)
            mask[band] = (one.mask & field.sky.effects.masked_bits) > 0
    mask |= ~np.isfinite(image) | ~np.isfinite(variance)
    image[mask] = 0
    sky_variance = (field.conditions.sky_sigma_njy() ** 2).astype(np.float32)
    return image, np.where(np.isfinite(variance), variance, sky_variance[:, None, None]), mask, flags
