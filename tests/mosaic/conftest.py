"""Small mosaics shared by the tests of this folder."""

import numpy as np
import pytest
from fits_files import write


@pytest.fixture
def rng():
    return np.random.default_rng(20240611)


@pytest.fixture
def pair(tmp_path, rng):
    """Two bands, 90 x 70 pixels, with a WCS, and their pixels: (files, {band: array})."""
    pixels = {band: rng.normal(0, level, (90, 70)).astype(np.float32) for band, level in (("g", 1.0), ("r", 3.0))}
    return {band: write(tmp_path / f"{band}.fits", values) for band, values in pixels.items()}, pixels
