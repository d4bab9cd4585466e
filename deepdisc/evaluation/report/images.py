"""The field's pixels for the report: a colour picture and one of each band, as JPEG tiles of bounded size."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import cv2
import numpy as np

from deepdisc.bands import rgb_bands
from deepdisc.plots.pictures import asinh_rgb

MOST_PIXELS = 3072  # on a side of a picture; larger windows are averaged down
MOST_WINDOW = 6144  # mosaic pixels on a side of what is shown
BUDGET_BYTES = 13_000_000  # of all JPEG files together
COLOUR = "colour"
_TILE = 1024
_QUALITY = 82
_STRIP = 512


@dataclass(frozen=True)
class Window:
    """A rectangle of the mosaic: its first pixel and its size."""

    x0: int
    y0: int
    width: int
    height: int

    def holds(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Bool (N,): 0-based pixel centres inside."""
        inside = (x > self.x0 - 0.5) & (x < self.x0 + self.width - 0.5)
        return inside & (y > self.y0 - 0.5) & (y < self.y0 + self.height - 0.5)


def read_planes(mosaic, window: Window) -> tuple[np.ndarray, int]:
    """All bands of a window, averaged over squares of pixels where it is larger than `MOST_PIXELS`.

    Args:
        mosaic: see `evaluation.pixels`.
        window: of the mosaic.

    Returns:
        (C, h, w) float32 nJy per pixel, NaN where masked; and the side of a square in pixels of the mosaic.
    """
    size = -(-max(window.width, window.height) // MOST_PIXELS)
    rows = _STRIP // size * size
    strips = []
    for top in range(window.y0, window.y0 + window.height, rows):
        bottom = min(top + rows, window.y0 + window.height)
        cut = mosaic.read(top, window.x0, bottom, window.x0 + window.width)
        plane = np.where(np.asarray(cut.mask), np.nan, np.asarray(cut.image, np.float32))
        strips.append(binned(plane, size))
    return np.concatenate(strips, axis=1), size


def binned(planes: np.ndarray, size: int) -> np.ndarray:
    """Means (C, ceil(h / size), ceil(w / size)) of the valid pixels in squares; NaN where there is none."""
    if size == 1:
        return planes
    _, h, w = planes.shape
    padded = np.pad(planes, ((0, 0), (0, -h % size), (0, -w % size)), constant_values=np.nan)
    squares = padded.reshape(len(planes), padded.shape[1] // size, size, padded.shape[2] // size, size)
    valid = np.isfinite(squares)
    count = valid.sum((2, 4))
    total = np.where(valid, squares, 0).sum((2, 4))
    return np.divide(total, count, out=np.full(total.shape, np.nan, np.float32), where=count > 0)


def pictures(mosaic, window: Window, budget: int = BUDGET_BYTES) -> tuple[list[dict], np.ndarray]:
    """A colour picture and one per band, coarser where they would need more than `budget` bytes.

    Returns:
        For each picture `name`, `label`, `bin` (mosaic pixels per pixel) and `tiles` (`x`, `y` of the upper left corner
        and `width`, `height`, in mosaic pixels; `jpeg`, base64), y upwards; and the colour picture (h, w, 3) in 0..1.
    """
    planes, size = read_planes(mosaic, window)
    bands = list(mosaic.bands)
    chosen = rgb_bands(bands)
    rgb = asinh_rgb(planes[[bands.index(band) for band in chosen]])
    colour = (rgb * 255).astype(np.uint8)
    left = budget
    result = []
    for name, label, step in [(COLOUR, f"{COLOUR}: {', '.join(chosen)}", 1), *((b, f"band {b}", 1) for b in bands)]:
        share = left / (len(bands) + 2 - len(result)) * (2 if name == COLOUR else 1)
        image = colour if name == COLOUR else grey(planes[bands.index(name)])
        tiles = _tiles(image, window, size)
        while sum(len(tile["jpeg"]) for tile in tiles) * 0.75 > share and min(image.shape[:2]) > 64:
            step *= 2
            image = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
            tiles = _tiles(image, window, size * step)
        left -= int(sum(len(tile["jpeg"]) for tile in tiles) * 0.75)
        result.append({"name": name, "label": label, "bin": size * step, "tiles": tiles})
    return result, rgb


def grey(plane: np.ndarray) -> np.ndarray:
    """One band (h, w) as uint8: asinh of the brightness in units of the noise; black where it is masked."""
    valid = plane[np.isfinite(plane)]
    if not len(valid):
        return np.zeros(plane.shape, np.uint8)
    middle = np.median(valid)
    noise = max(1.4826 * float(np.median(np.abs(valid - middle))), 1e-30)
    low, high = np.arcsinh(-0.6), np.arcsinh(max(15.0, float(np.percentile((valid - middle) / noise, 99.7)) / 3))
    light = (np.arcsinh((np.nan_to_num(plane, nan=middle - 99 * noise) - middle) / noise / 3) - low) / (high - low)
    return (255 * np.clip(light, 0, 1)).astype(np.uint8)


def _tiles(image: np.ndarray, window: Window, size: int) -> list[dict]:
    h, w = image.shape[:2]
    tiles = []
    for top in range(0, h, _TILE):
        for left in range(0, w, _TILE):
            part = image[top : top + _TILE, left : left + _TILE]
            flipped = part[::-1, :, ::-1] if part.ndim == 3 else part[::-1]  # rows downwards; blue, green, red
            encoded = cv2.imencode(".jpg", np.ascontiguousarray(flipped), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1]
            place = {"x": window.x0 + left * size, "y": window.y0 + (top + part.shape[0]) * size,
                     "width": part.shape[1] * size, "height": part.shape[0] * size}  # fmt: skip
            tiles.append({**place, "jpeg": base64.b64encode(encoded.tobytes()).decode()})
    return tiles
