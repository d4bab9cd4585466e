"""The results of a prediction on disk: written under a temporary name, moved into place when all is complete."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from deepdisc.catalog import ParquetStream, parquet_to_fits
from deepdisc.errors import InputError
from deepdisc.files import write_failure, write_json
from deepdisc.inference.merge import Merged
from deepdisc.inference.regions import RegionWriter
from deepdisc.inference.segmentation import SegmentationWriter, neighbours, touching
from deepdisc.inference.tabulate import rows
from deepdisc.sky import PixelGrid

# run.json comes last: where it is, all the others are complete.
FILES = ("catalog.parquet", "catalog.fits", "segmentation.fits", "regions.reg", "run.json")


class OutputFolder:
    """A folder that receives its files all at once, or not at all.

    Args:
        path: the folder; made if need be. Other files in it are left alone.
        overwrite: replace results that are there already.

    Raises:
        InputError: results are there already, or the place cannot be written.
    """

    def __init__(self, path: Path, overwrite: bool = False):
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"output {self.path} is a file; give a folder")
        present = [name for name in FILES if (self.path / name).exists()]
        if present and not overwrite:
            found = ", ".join(present)
            raise InputError(f"output {self.path} holds {found} already; choose another folder, or overwrite it")

    def __enter__(self) -> OutputFolder:
        with self.writing():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._made = not self.path.exists()
            self.path.mkdir(exist_ok=True)
            self.temporary = self.path / f".{secrets.token_hex(4)}.partial"
            self.temporary.mkdir()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                with self.writing():
                    for name in FILES:
                        os.replace(self.temporary / name, self.path / name)
        finally:
            shutil.rmtree(self.temporary)
            if self._made and not any(self.path.iterdir()):
                self.path.rmdir()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turn failures to write into the user's error, under the name the user knows."""
        try:
            yield
        except OSError as error:
            raise write_failure(self.path, error) from error
        except InputError as error:
            if isinstance(error.__cause__, OSError):
                raise write_failure(self.path, error.__cause__) from error
            raise


class ResultWriter:
    """Numbers finished objects and writes them to catalogue, label map and regions, in the same order everywhere.

    An object waits until nothing that is still to come can touch it, because BLENDED needs its neighbours.

    Args:
        folder: where to write.
        columns: of the catalogue.
        grid: the mosaic's pixels on the sky.
        class_names: of the model's classes.
        metadata: goes into the catalogue's header.
    """

    def __init__(
        self, folder: OutputFolder, columns: Sequence[str], grid: PixelGrid, class_names: Sequence[str], metadata: dict
    ):
        self.folder = folder
        self.columns = list(columns)
        self.grid = grid
        self.class_names = class_names
        self.metadata = metadata
        self.count = 0
        self._waiting: list[Merged] = []

    def __enter__(self) -> ResultWriter:
        with self.folder.writing(), contextlib.ExitStack() as stack:
            place = self.folder.temporary
            self._catalog = stack.enter_context(ParquetStream(place / "catalog.parquet", self.columns, self.metadata))
            self._segmentation = stack.enter_context(SegmentationWriter(place / "segmentation.fits", self.grid))
            self._regions = stack.enter_context(RegionWriter(place / "regions.reg", self.grid))
            self._open = stack.pop_all()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        with self.folder.writing():
            self._open.__exit__(kind, error, trace)

    def add(self, objects: Sequence[Merged], open_reach: np.ndarray, next_y: int) -> None:
        """Take finished objects; write what has become certain.

        Args:
            objects: finished objects.
            open_reach: (M, 4) int, pixels that objects not yet finished may cover.
            next_y: no object that is still unknown reaches above this row.
        """
        self._mark_blended(objects)
        self._waiting += objects
        reach = np.array([item.reach for item in self._waiting], dtype=np.int64).reshape(-1, 4)
        ready = reach[:, 3] + 1 <= next_y
        ready[neighbours(reach, open_reach)[:, 0]] = False
        finished = [item for item, is_ready in zip(self._waiting, ready, strict=True) if is_ready]
        self._waiting = [item for item, is_ready in zip(self._waiting, ready, strict=True) if not is_ready]
        certain = np.concatenate((reach[~ready, 1], open_reach[:, 1], [min(next_y, self.grid.shape[0])])).min()
        with self.folder.writing():
            self._write(finished, int(certain))

    def _write(self, objects: list[Merged], certain_y: int) -> None:
        if objects:
            first = self.count + 1
            table = rows(objects, first, self.columns, self.grid, self.class_names)
            self._catalog.append(table)
            self._segmentation.add(objects, first)
            self._regions.add(objects, table)
            self.count += len(objects)
        self._segmentation.write_to(certain_y)

    def _mark_blended(self, new: Sequence[Merged]) -> None:
        known = [*self._waiting, *new]
        reach = np.array([item.reach for item in known], dtype=np.int64).reshape(-1, 4)
        for i, j in neighbours(reach[len(self._waiting) :], reach).tolist():
            a, b = new[i], known[j]
            if a is not b and not (a.blended and b.blended) and touching(a, b):
                a.blended = b.blended = True


def write_fits_copy(folder: OutputFolder) -> None:
    """Copy the finished catalogue to FITS."""
    with folder.writing():
        parquet_to_fits(folder.temporary / "catalog.parquet", folder.temporary / "catalog.fits")


def write_report(folder: OutputFolder, report: dict) -> None:
    """Write what ran, on what, how long."""
    with folder.writing():
        write_json(folder.temporary / "run.json", report)
