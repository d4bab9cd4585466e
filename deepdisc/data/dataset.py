"""The on-disk data set as training samples, and the loaders that serve them in a reproducible order.

Legend: *tile* = one file of the data set; *draw* = running number of a sample since the start of the training. Every
random choice about a sample follows from (seed, draw, tile), so it is the same for any number of worker processes and
after resuming.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import fitsio
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from deepdisc import catalog
from deepdisc.bands import label_columns
from deepdisc.data.labels import check_ranges, listed, turned_to_pixels, values
from deepdisc.data.splits import tile_edges
from deepdisc.data.tile_writer import SCHEMA_VERSION
from deepdisc.data.transforms import Sample, add_noise, crop, mirror, quarter_turns
from deepdisc.data.truth import to_instances
from deepdisc.errors import InputError, first_line, nearest
from deepdisc.files import read_yaml
from deepdisc.structures import Instances

# Columns of the truth that decide which objects are labelled.
_NEEDED = ("class_id", "flags", "area_pix")
_HELPFUL = ("snr", "neighbours")  # and those that are used where the truth has them


def read_description(root: str | Path) -> dict[str, Any]:
    """Read a data set's dataset.yaml.

    Raises:
        InputError: there is no data set at `root`, or one of another schema version.
    """
    path = Path(root) / "dataset.yaml"
    if not path.is_file():
        raise InputError(f"no data set at {root} (no dataset.yaml); make it: deepdisc prepare RECIPE --output {root}")
    description = read_yaml(path, "data set's description")
    version = description.get("schema_version") if isinstance(description, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(f"{path}: schema_version {version}, this program reads {SCHEMA_VERSION}; prepare it anew")
    return description


class TilePixels(NamedTuple):
    """What a tile's file holds.

    Attributes:
        image: (C, h, w) float32 nJy.
        variance: (C, h, w) float32 nJy^2.
        mask: (C, h, w) bool.
        segmentation: (h, w) int32.
        ebv: E(B-V) in even cells (rows, columns).
        psf: (rows, columns, C, P, P) float32, in even cells too.
    """

    image: np.ndarray
    variance: np.ndarray
    mask: np.ndarray
    segmentation: np.ndarray
    ebv: np.ndarray
    psf: np.ndarray


def read_tile(path: str | Path, planes: Sequence[int]) -> TilePixels:
    """Read a tile of a data set.

    Args:
        path: its file.
        planes: numbers of the bands wanted, in this order.

    Raises:
        InputError: the file cannot be read.
    """
    planes = list(planes)
    try:
        with fitsio.FITS(str(path)) as file:
            image, variance, mask = (file[name].read()[planes] for name in ("IMAGE", "VARIANCE", "MASK"))
            segmentation, ebv, psf = (file[name].read() for name in ("SEGMENTATION", "EBV", "PSF"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {first_line(error)}; prepare it anew") from error
    return TilePixels(image, variance, mask.astype(bool), segmentation, ebv, psf[:, :, planes])


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NoiseAugmentation:
    """With `probability`, make a sample as noisy as a shallower exposure.

    Attributes:
        probability: share of the samples that are changed.
        max_factor: the noise grows by a factor between 1 and this, uniform in its logarithm.
        label_snr: objects whose signal-to-noise falls below this lose their label.
    """

    probability: float
    max_factor: float
    label_snr: float

    def __post_init__(self):
        if not (0 <= self.probability <= 1 and self.max_factor >= 1):
            raise InputError(
                f"noise: probability={self.probability} must be 0 to 1, max_factor={self.max_factor} at least 1"
            )


class TileDataset(Dataset):
    """Samples of one split of a data set.

    With `augment`, each sample is a random window of its tile, mirrored and rotated at random; without, the windows
    cover the tiles without overlap, in order.

    Args:
        root: folder written by `prepare`.
        split: "train", "val" or "test".
        bands: names and order; None for all of the data set.
        crop_size: side of the windows in pixels; None for whole tiles.
        augment: random windows, mirroring and quarter turns.
        noise: makes augmented samples noisier; None for never.
        seed: of all random choices.
        labels: label name -> truth column, each becomes `gt_<label>` and `gt_has_<label>`, (N,); several columns, or
            one that holds "{band}" and stands for one column per band in the order of `bands`, make them (N, k).
        spin2: label name -> two truth columns in sky orientation, such as (g1, g2), which are turned to the pixel axes
            (see `deepdisc.sky`); unknown in tiles without a WCS. A label, or pair, of which the truth has no column is
            done without, with a warning, as long as there is another.
        ranges: label name -> (low, high) that its finite values must keep to.
        min_visible: objects with a smaller share of their pixels inside the window are not labelled.
        cache: keep all tiles in memory; before worker processes start, so that they share it.

    Raises:
        InputError: no data set there, an empty split, a band or all labels that it lacks, a label of which it has
            only a part, or one out of its range.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        bands: Sequence[str] | None = None,
        crop_size: int | None = None,
        augment: bool = False,
        noise: NoiseAugmentation | None = None,
        seed: int = 0,
        labels: Mapping[str, str | Sequence[str]] | None = None,
        spin2: Mapping[str, Sequence[str]] | None = None,
        ranges: Mapping[str, tuple[float, float]] | None = None,
        min_visible: float = 0.3,
        cache: bool = False,
    ):
        self.root, self.split, self.seed = Path(root), split, seed
        self.augment, self.noise, self.min_visible = augment, noise, min_visible
        self.description = read_description(root)
        self.bands = list(self.description["bands"] if bands is None else bands)
        self._band_index = [_band_position(self.description, band, root) for band in self.bands]
        self.labels = label_columns({"redshift": "redshift"} if labels is None else labels, self.bands)
        self.spin2 = {name: list(columns) for name, columns in (spin2 or {}).items()}
        if crop_size is not None and crop_size < 16:
            raise InputError(f"crop_size={crop_size} is too small; use at least 16 pixels, or null for whole tiles")
        self.crop_size = crop_size
        self.tiles = self._read_tiles()
        truth = _read_table(self.root / "truth.parquet")
        unknown = self._forget_unknown_labels(truth)
        self._truth = self._read_truth(truth)
        by_tile = dict(zip(self.tiles.tile, self._truth, strict=True))
        stated = {name: limits for name, limits in (ranges or {}).items() if name not in unknown}
        check_ranges(stated, self.labels | self.spin2, by_tile, self.root)
        scale, files = self.description["pixel_scale_arcsec"], [self.root / file for file in self.tiles.file]
        self._spin2 = [
            turned_to_pixels(truth, self.spin2, file, scale) for truth, file in zip(self._truth, files, strict=True)
        ]
        self._windows = None if augment else self._cover()
        self._cache = [self._read(i) for i in range(len(self.tiles))] if cache else None

    def __len__(self) -> int:
        return len(self.tiles) if self._windows is None else len(self._windows)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """One sample as the detector's input.

        Args:
            key: index, or (index, draw); `draw` numbers the random versions of an augmented sample.

        Returns:
            image (C, h, w) float32 nJy, variance (C, h, w) nJy^2, mask (C, h, w) bool, ebv () float32, psf (C, P, P)
            float32 (see `deepdisc.psf`), instances with the `gt_*` fields of `truth.to_instances`, tile (number in the
            data set) and window (y0, x0, y1, x1) in it.
        """
        index, draw = (key, 0) if isinstance(key, int | np.integer) else key
        label_snr = None
        tile, window = (index, None) if self._windows is None else self._windows[index]
        pixels = self._read(tile) if self._cache is None else self._cache[tile]
        if window is not None:
            sample = crop(self._tile(tile, pixels, window), *window)
        else:
            rng = np.random.default_rng([self.seed, draw, tile])
            window = self._random_window(pixels.segmentation.shape, rng)
            sample, label_snr = self._augmented(crop(self._tile(tile, pixels, window), *window), rng)
        instances = to_instances(sample, self.min_visible, label_snr)
        ebv = float(_at_middle(pixels.ebv, pixels.segmentation.shape, window))
        return _as_input(sample, ebv, instances, int(self.tiles.tile.iloc[tile]), window)

    def _augmented(self, sample: Sample, rng: np.random.Generator) -> tuple[Sample, float | None]:
        if rng.random() < 0.5:
            sample = mirror(sample)
        sample = quarter_turns(sample, int(rng.integers(4)))
        if self.noise is None or rng.random() >= self.noise.probability:
            return sample, None
        factor = float(np.exp(rng.uniform(0, np.log(self.noise.max_factor))))
        return add_noise(sample, factor, rng), self.noise.label_snr

    def _random_window(self, shape: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
        height, width = (side if self.crop_size is None else min(side, self.crop_size) for side in shape)
        y0 = int(rng.integers(shape[0] - height + 1))
        x0 = int(rng.integers(shape[1] - width + 1))
        return y0, x0, y0 + height, x0 + width

    def _cover(self) -> list[tuple[int, tuple[int, int, int, int]]]:
        """Windows that partition the tiles."""
        windows = []
        for i, (height, width) in enumerate(zip(self.tiles.height, self.tiles.width, strict=True)):
            size = self.crop_size or max(height, width)
            for y0, y1 in tile_edges(0, int(height), size):
                windows += [(i, (y0, x0, y1, x1)) for x0, x1 in tile_edges(0, int(width), size)]
        return windows

    def _read_tiles(self) -> pd.DataFrame:
        tiles = _read_table(self.root / "split.parquet")
        chosen = tiles[tiles.split == self.split].reset_index(drop=True)
        if chosen.empty:
            raise InputError(f"data set {self.root} has no split {self.split!r}; there are {sorted(set(tiles.split))}")
        return chosen

    def _forget_unknown_labels(self, truth: pd.DataFrame) -> list[str]:
        """Do without the labels of which the truth has no column, unless it has those of none; returns their names."""
        wanted = self.labels | self.spin2
        unknown = [label for label, columns in wanted.items() if not set(listed(columns)) & set(truth)]
        if len(unknown) == len(wanted):
            return []
        for label in unknown:
            logger.warning(
                "data set %s: its truth has no column %s: no object has the label %r, and nothing is learned from it",
                self.root, " or ".join(listed(wanted[label])), label,
            )  # fmt: skip
        self.labels, self.spin2 = (
            {label: columns for label, columns in part.items() if label not in unknown}
            for part in (self.labels, self.spin2)
        )
        return unknown

    def _read_truth(self, truth: pd.DataFrame) -> list[dict[str, np.ndarray]]:
        """Per tile the columns that are needed, as arrays."""
        wanted = {name for names in (*self.labels.values(), *self.spin2.values()) for name in listed(names)}
        needed = {*wanted, "id", *catalog.BOX_COLUMNS, *_NEEDED, *(catalog.POSITION_COLUMNS if self.spin2 else ())}
        for name in sorted(needed):
            if name not in truth:
                close = nearest(name, truth.columns)
                hint = f"; the nearest is {close!r}" if close else ""
                raise InputError(f"data set {self.root}: its truth has no column {name!r}{hint}")
        columns = ["id", *catalog.BOX_COLUMNS, *_NEEDED, *(name for name in _HELPFUL if name in truth), *sorted(wanted)]
        positions = catalog.POSITION_COLUMNS if self.spin2 else ()
        columns = list(dict.fromkeys([*columns, *positions]))
        by_tile = dict(list(truth[["tile", *columns]].groupby("tile")))
        empty = truth[:0]
        return [{name: by_tile.get(tile, empty)[name].to_numpy() for name in columns} for tile in self.tiles.tile]

    def _read(self, index: int) -> TilePixels:
        return read_tile(self.root / self.tiles.file.iloc[index], self._band_index)

    def _tile(self, index: int, pixels: TilePixels, window: tuple[int, int, int, int]) -> Sample:
        """The whole tile, with the PSF in the middle of a window of it."""
        truth = self._truth[index]
        return Sample(
            *(pixels.image, pixels.variance, pixels.mask, pixels.segmentation),
            ids=truth["id"],
            boxes=np.stack([truth[name] for name in catalog.BOX_COLUMNS], axis=1).astype(np.float32),
            labels={name: truth[name] for name in (*_NEEDED, *_HELPFUL) if name in truth}
            | {label: values(truth, names) for label, names in self.labels.items()},
            spin2=self._spin2[index],
            psf=_at_middle(pixels.psf, pixels.segmentation.shape, window),
        )


class SampledDataset(Dataset):
    """Samples that a source draws when they are asked for, as `deepdisc.simulate.stream.SkyStream` does.

    In an endless training (`TrainLoader`) every draw is a sample of its own; otherwise there are `length` of them.

    Args:
        source: has `sample(number)`, which gives the fields of a `Sample` and `ebv`, and `description`.
        length: samples of one pass.
        min_visible: objects with a smaller share of their pixels inside the sample are not labelled.
    """

    def __init__(self, source: Any, length: int, min_visible: float = 0.3):
        if length < 1:
            raise InputError(f"length={length}: a data set has at least one sample")
        self.source, self.length, self.min_visible = source, length, min_visible

    @property
    def root(self) -> str:
        """What messages call it: there is no folder."""
        return f"{self.description.get('name', type(self.source).__name__)!r} (drawn, not stored)"

    @property
    def description(self) -> dict[str, Any]:
        """What dataset.yaml would say: bands, unit, pixel scale, classes."""
        return self.source.description

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """One sample as the detector's input; of (index, draw) the draw is its number."""
        number = key[1] if isinstance(key, tuple) else key
        drawn = dict(self.source.sample(number))
        ebv = drawn.pop("ebv")
        sample = Sample(**drawn)
        return _as_input(sample, ebv, to_instances(sample, self.min_visible), number, (0, 0, *sample.shape))


def _as_input(sample: Sample, ebv: float, instances: Instances, tile: int, window: tuple[int, int, int, int]) -> dict:
    """What the detector takes, and where it comes from."""
    return {
        "image": _tensor(sample.image),
        "variance": _tensor(sample.variance),
        "mask": _tensor(sample.mask),
        "ebv": torch.tensor(ebv),
        "psf": _tensor(sample.psf),
        "instances": instances,
        "tile": tile,
        "window": window,
    }


def _at_middle(cells: np.ndarray, shape: tuple[int, int], window: tuple[int, int, int, int]) -> np.ndarray:
    """Of even cells (rows, columns, ...) that cover a tile of this shape, the one that holds the middle of a window."""
    rows, columns = cells.shape[:2]
    y, x = (window[0] + window[2]) / 2 / shape[0], (window[1] + window[3]) / 2 / shape[1]
    return cells[min(int(y * rows), rows - 1), min(int(x * columns), columns - 1)]


def _tensor(array: np.ndarray) -> Tensor:
    # Mirrored arrays have negative strides, which torch cannot hold.
    return torch.from_numpy(np.ascontiguousarray(array))


def _band_position(description: dict, band: str, root: str | Path) -> int:
    if band not in description["bands"]:
        close = nearest(band, description["bands"])
        hint = f"; the nearest is {close!r}" if close else ""
        raise InputError(f"data set {root} has no band {band!r}, only {', '.join(description['bands'])}{hint}")
    return description["bands"].index(band)


def _read_table(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise InputError(f"data set {path.parent} lacks {path.name}; prepare it anew")
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {first_line(error)}; prepare the data set anew") from error


# -------------------------------------------------------------------------------------------------------- loading
class InfiniteSampler(Sampler):
    """Yields (index, draw) forever: one permutation of the data set after the other.

    A pure function of (seed, position): the position is all that has to be saved. With several processes, process
    `rank` of `world_size` takes every world_size-th draw.
    """

    def __init__(self, size: int, seed: int = 0, rank: int = 0, world_size: int = 1, position: int = 0):
        assert size > 0
        self.size, self.seed, self.rank, self.world_size = size, seed, rank, world_size
        self.position = position

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, order = -1, None
        draw = self.position * self.world_size + self.rank
        while True:
            if draw // self.size != epoch:
                epoch = draw // self.size
                order = np.random.default_rng([self.seed, epoch]).permutation(self.size)
            yield int(order[draw % self.size]), draw
            draw += self.world_size

    def state_dict(self) -> dict[str, int]:
        """The number of samples that all processes together have taken."""
        return {"draws": self.position * self.world_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after that many samples, with any number of processes; takes effect at the next `iter`."""
        self.position = int(state["draws"]) // self.world_size


class TrainLoader:
    """An endless stream of batches (lists of samples) whose position can be saved and restored exactly.

    The position counts the batches that were handed out, not those that workers have prepared in advance.

    Args:
        dataset: the samples.
        batch_size: samples per batch in each process.
        num_workers: processes that load; 0 loads in the training process.
        seed: of the order.
        rank: number of this training process.
        world_size: number of training processes.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        num_workers: int = 0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        _check_batch_size(batch_size)
        self.dataset, self.batch_size, self.num_workers = dataset, batch_size, num_workers
        self.sampler = InfiniteSampler(len(dataset), seed, rank, world_size)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        loader = _data_loader(self.dataset, self.batch_size, self.num_workers, sampler=self.sampler)
        for batch in loader:
            self.sampler.position += self.batch_size
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The sampler's position."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a saved position; takes effect at the next `iter`."""
        self.sampler.load_state_dict(state)


def train_loader(
    dataset: TileDataset, batch_size: int, num_workers: int = 0, seed: int = 0, rank: int = 0, world_size: int = 1
) -> TrainLoader:
    """The loader of a training; `batch_size` is over all processes.

    Raises:
        InputError: the batch does not divide among the processes.
    """
    _check_batch_size(batch_size)
    if batch_size % world_size:
        raise InputError(f"batch_size={batch_size} must be a multiple of the number of processes, {world_size}")
    return TrainLoader(dataset, batch_size // world_size, num_workers, seed, rank, world_size)


def eval_loader(
    dataset: TileDataset, batch_size: int, num_workers: int = 0, rank: int = 0, world_size: int = 1
) -> DataLoader:
    """Every sample of the data set once, in order; each process gets every world_size-th one."""
    _check_batch_size(batch_size)
    indices = range(rank, len(dataset), world_size)
    return _data_loader(dataset, batch_size, num_workers, sampler=list(indices))


def _check_batch_size(batch_size: int) -> None:
    if type(batch_size) is not int or batch_size < 1:
        raise InputError(f"data.batch_size={batch_size} must be an integer of at least 1")


def _data_loader(dataset: Dataset, batch_size: int, num_workers: int, sampler: Any) -> DataLoader:
    cores = os.cpu_count() or 1
    if num_workers < 0 or num_workers > cores:
        raise InputError(f"num_workers={num_workers}: this machine has {cores} cores; choose 0 to {cores}")
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=list,
        worker_init_fn=_one_thread,
        # Its own generator: otherwise starting an iteration would draw from the global one and change the training.
        generator=torch.Generator().manual_seed(0),
    )


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
