"""From a mosaic to a catalogue: overlapping tiles, a detector, seams merged once, everything written as it comes.

Memory does not grow with the area of the mosaic: one row of tiles' detections (never their pixels) is held at most.
"""

from __future__ import annotations

import contextlib
import math
import platform
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import track

from deepdisc import __version__
from deepdisc.data.tiling import Tile, grid
from deepdisc.errors import InputError
from deepdisc.inference.merge import SeamMerger
from deepdisc.inference.outputs import OutputFolder, ResultWriter, write_fits_copy, write_report
from deepdisc.inference.tabulate import column_names, tabulate
from deepdisc.psf import unknown_psf
from deepdisc.structures import Instances

if TYPE_CHECKING:
    from deepdisc.data.mosaic import Mosaic

TILES_AHEAD = 2
VERSIONED = ("torch", "torchvision", "numpy", "astropy", "fitsio", "pandas", "pyarrow")

Pixels = dict[str, torch.Tensor]
Model = Callable[[list[Pixels]], list[dict[str, Instances]]]


@dataclass(frozen=True)
class Prediction:
    """What a prediction gave.

    Attributes:
        catalog: path of catalog.parquet; the other files lie beside it.
        count: number of objects.
        unreadable: one entry per tile that could not be read: its extent in mosaic pixels and the reason.
    """

    catalog: Path
    count: int
    unreadable: list[dict[str, Any]]


@dataclass
class LoadedTile:
    """A tile's pixels as the detector takes them; None where nothing could be read or everything is masked."""

    tile: Tile
    pixels: Pixels | None
    problem: str | None = None


@dataclass
class Clock:
    """Seconds spent per stage; "sky" is measuring the noise where it is not given, "read" waiting for pixels."""

    seconds: dict[str, float] = field(default_factory=dict)

    def time(self, stage: str, function: Callable, *args: Any) -> Any:
        """Call a function and book its duration."""
        start = time.perf_counter()
        try:
            return function(*args)
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def predict(
    mosaic: Mosaic,
    model: Model,
    output: str | Path,
    *,
    bands: Sequence[str],
    class_names: Sequence[str],
    tile: int = 512,
    overlap: int = 128,
    offset: tuple[int, int] = (0, 0),
    batch: int = 1,
    device: torch.device | str = "cpu",
    score_threshold: float | None = None,
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Prediction:
    """Find and measure everything in a mosaic.

    Writes catalog.parquet, catalog.fits, segmentation.fits, regions.reg and run.json into `output`, all at once at the
    end. Objects are numbered from 1 in the order of tile rows; the numbers do not depend on `batch`.

    Args:
        mosaic: the pixels.
        model: takes a list of {"image", "variance", "mask", "saturated" (C, h, w), "ebv", "psf" (C, P, P)} on `device`
            and returns a list of {"instances"}, in the pixels of the tile.
        output: folder.
        bands: the model's bands, in its order.
        class_names: names of the model's classes.
        tile: side of a tile in pixels.
        overlap: pixels shared by neighbouring tiles: at least the size of the largest object.
        offset: (y, x) pixels by which the first tile begins before the mosaic.
        batch: tiles given to the model at once.
        device: where the model lives.
        score_threshold: leave out lower scores; None keeps what the model gives.
        provenance: what else to record in run.json (model name, checksum, command, ...).
        overwrite: replace results in `output`.
        progress: draw a progress bar if standard error is a terminal.

    Raises:
        InputError: the mosaic lacks a band, no tile can be read, the output exists or cannot be written.
    """
    started = time.perf_counter()
    mosaic = mosaic.select(list(bands))
    tiles = grid(mosaic.shape, tile, overlap, offset)
    if batch < 1:
        raise InputError(f"batch={batch}: the model takes at least 1 tile at once")
    with OutputFolder(Path(output), overwrite) as folder, torch.inference_mode():
        run = _Run(mosaic, model, tiles, torch.device(device), score_threshold, folder, list(class_names))
        run.clock.time("sky", mosaic.measure_sky)
        with run:
            run.all_tiles(batch, progress)
        run.clock.time("write", write_fits_copy, folder)
        report = {
            "versions": _versions(),
            "provenance": dict(provenance or {}),
            "mosaic": _describe(mosaic),
            "settings": {
                "bands": list(bands), "class_names": list(class_names), "tile": tile, "overlap": overlap,
                "offset": list(offset), "batch": batch, "device": str(device), "score_threshold": score_threshold,
            },
            "tiles": {"total": len(tiles), "empty": run.empty, "unreadable": len(run.unreadable)},
            "unreadable": run.unreadable,
            "objects": run.count,
            "seconds": {**run.clock.seconds, "total": time.perf_counter() - started},
            "peak_memory_mib": _peak_memory_mib(),
        }  # fmt: skip
        write_report(folder, report)
    return Prediction(folder.path / "catalog.parquet", run.count, run.unreadable)


class _Run:
    """The state of one prediction: tiles go in row by row, finished objects go out to the writers."""

    def __init__(
        self,
        mosaic: Mosaic,
        model: Model,
        tiles: Sequence[Tile],
        device: torch.device,
        score_threshold: float | None,
        folder: OutputFolder,
        class_names: Sequence[str],
    ):
        self.mosaic, self.model, self.tiles, self.device = mosaic, model, tiles, device
        self.score_threshold, self.folder, self.class_names = score_threshold, folder, class_names
        self.clock = Clock()
        self.empty = 0
        self.unreadable: list[dict[str, Any]] = []
        self._merger = SeamMerger(mosaic.shape)
        self._writer: ResultWriter | None = None
        self._stack = contextlib.ExitStack()

    @property
    def count(self) -> int:
        """Objects written so far."""
        return self._writer.count if self._writer else 0

    def __enter__(self) -> _Run:
        self._stack.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.__exit__(*exception)

    def all_tiles(self, batch: int, progress: bool) -> None:
        """Read, detect, merge and write everything."""
        loaded = _timed(read_ahead(self.mosaic, self.tiles), self.clock, "read")
        console = Console(stderr=True)
        hidden = not (progress and console.is_terminal)
        loaded = track(loaded, "tiles", total=len(self.tiles), console=console, disable=hidden)
        for group in _groups(loaded, batch):
            self._detect_in(group)
        if len(self.unreadable) == len(self.tiles):
            raise InputError(f"no part of the mosaic could be read: {self.unreadable[0]['reason']}")
        if self._writer is None:  # nothing was searched, but the empty catalogue has the same columns as any other
            self._open_writer(self._apply_model([_blank(len(self.mosaic.bands), self.tiles[0])])[0])
            self._finish(math.inf)

    def _detect_in(self, group: Sequence[LoadedTile]) -> None:
        pixels = [item.pixels for item in group if item.pixels is not None]
        found = iter(self.clock.time("model", self._apply_model, pixels))
        for item in group:
            if item.pixels is None:
                self._skip(item)
            else:
                instances = next(found)
                if self._writer is None:
                    self._open_writer(instances)
                bands = self.mosaic.bands
                args = (instances, item.tile, item.pixels, self.mosaic.shape, self.score_threshold, bands)
                detections = self.clock.time("measure", tabulate, *args)
                self.clock.time("merge", self._merger.add, detections)
            following = self.tiles[item.tile.index + 1].y0 if item.tile.index + 1 < len(self.tiles) else math.inf
            if following != item.tile.y0 and self._writer is not None:
                self._finish(following)

    def _apply_model(self, pixels: list[Pixels]) -> list[Instances]:
        if not pixels:
            return []
        outputs = self.model([{name: value.to(self.device) for name, value in part.items()} for part in pixels])
        return [output["instances"].to("cpu") for output in outputs]

    def _skip(self, item: LoadedTile) -> None:
        self._merger.add_absent(item.tile)
        if item.problem is None:
            self.empty += 1
        else:
            x0, y0, x1, y1 = item.tile.x0, item.tile.y0, item.tile.x1, item.tile.y1
            self.unreadable.append({"tile": item.tile.index, "box": [x0, y0, x1, y1], "reason": item.problem})

    def _open_writer(self, instances: Instances) -> None:
        metadata = {"bands": list(self.mosaic.bands), "class_names": list(self.class_names), "deepdisc": __version__}
        columns = column_names(instances, self.mosaic.bands)
        writer = ResultWriter(self.folder, columns, self.mosaic.grid, self.class_names, metadata)
        self._writer = self._stack.enter_context(writer)

    def _finish(self, next_y: float) -> None:
        objects = self.clock.time("merge", self._merger.settle, next_y)
        self.clock.time("write", self._writer.add, objects, self._merger.open_reach(), next_y)


def read_ahead(mosaic: Mosaic, tiles: Iterable[Tile], ahead: int = TILES_AHEAD) -> Iterator[LoadedTile]:
    """Read tiles in order, in one background thread that is at most `ahead` tiles in front."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read") as pool:
        waiting: deque = deque()
        try:
            for tile in tiles:
                waiting.append(pool.submit(load_tile, mosaic, tile))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def load_tile(mosaic: Mosaic, tile: Tile) -> LoadedTile:
    """Read one tile; a part of the file that cannot be read is reported, not raised."""
    extent = (tile.y0, tile.x0, tile.y1, tile.x1)
    try:
        cutout = mosaic.read(*extent)
        ebv, psf = mosaic.ebv_at(*extent), mosaic.psf_at(*extent)
    except (OSError, InputError) as error:
        return LoadedTile(tile, None, " ".join(str(error).split()) or type(error).__name__)
    mask = torch.as_tensor(cutout.mask)
    if bool(mask.all()):
        return LoadedTile(tile, None)
    pixels = {"image": torch.as_tensor(cutout.image), "variance": torch.as_tensor(cutout.variance), "mask": mask}
    around = {"ebv": torch.as_tensor(ebv, dtype=torch.float32), "psf": torch.as_tensor(psf)}
    return LoadedTile(tile, pixels | around | {"saturated": torch.as_tensor(cutout.saturated)})


def _blank(num_bands: int, tile: Tile) -> Pixels:
    """The pixels of a tile without data."""
    shape = (num_bands, tile.y1 - tile.y0, tile.x1 - tile.x0)
    mask = torch.ones(shape, dtype=torch.bool)
    around = {"ebv": torch.tensor(0.0), "psf": torch.as_tensor(unknown_psf(num_bands))}
    return {"image": torch.zeros(shape), "variance": torch.ones(shape), "mask": mask, "saturated": ~mask} | around


def _groups(loaded: Iterable[LoadedTile], batch: int) -> Iterator[list[LoadedTile]]:
    """Consecutive tiles of which `batch` have pixels."""
    group: list[LoadedTile] = []
    for item in loaded:
        group.append(item)
        if sum(entry.pixels is not None for entry in group) == batch:
            yield group
            group = []
    if group:
        yield group


def _timed(items: Iterator[LoadedTile], clock: Clock, stage: str) -> Iterator[LoadedTile]:
    while (item := clock.time(stage, next, items, None)) is not None:
        yield item


def _describe(mosaic: Mosaic) -> dict[str, Any]:
    return {
        "bands": list(mosaic.bands),
        "shape": list(mosaic.shape),
        "pixel_scale_arcsec": mosaic.pixel_scale_arcsec,
        "sky_positions": mosaic.grid.wcs is not None,
        "metadata": mosaic.metadata,
    }


def _versions() -> dict[str, str]:
    return {"deepdisc": __version__, "python": platform.python_version()} | {name: version(name) for name in VERSIONED}


def _peak_memory_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # macOS counts bytes, Linux KiB
