"""Small synthetic fields for the simulator's tests. Without GalSim they all skip."""

from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("galsim", reason='needs the extra "sim"')

from deepdisc.simulate import Sky, simulate  # noqa: E402
from deepdisc.simulate.conditions import Conditions, draw_conditions  # noqa: E402
from deepdisc.simulate.instruments import Instrument  # noqa: E402


@pytest.fixture(scope="session")
def deep_field(tmp_path_factory) -> Path:
    """A sparse field so deep (5 mag below one SDSS exposure) that noise hardly matters; E(B-V) = 0.1."""
    folder = tmp_path_factory.mktemp("deep_field")
    sky = Sky(
        bands=["g", "r"],
        shape=(640, 560),
        depth_offset=(5.0, 5.0),
        ebv=(0.1, 0.1),
        galaxy_density=(0.1, 0.1),
        star_density=(0.5, 0.5),
        label_snr=100.0,
        draw_snr=100.0,
    )
    simulate(sky, folder, seed=3)
    return folder


@pytest.fixture(scope="session")
def ordinary_field(tmp_path_factory) -> Path:
    """A field of the held-out galaxies as detectors see it: five bands, blends, faint objects."""
    folder = tmp_path_factory.mktemp("ordinary_field")
    sky = Sky(shape=(400, 480), depth_offset=(1.0, 1.0), population_part="test", pair_fraction=0.3)
    simulate(sky, folder, seed=5)
    return folder


@pytest.fixture(scope="session")
def conditions() -> Conditions:
    """The published conditions of one SDSS exposure, 96 x 80 pixels, without reddening."""
    import numpy as np

    sky = Sky(shape=(96, 80))
    return draw_conditions(sky, Instrument.load("sdss"), 0, np.random.default_rng(0))


@pytest.fixture(scope="session")
def make_objects():
    """A function that makes a table of objects from rows of columns; what a row leaves out is ordinary."""

    def make(*rows: dict) -> pd.DataFrame:
        ordinary = {
            "class_id": 0,
            "redshift": 0.5,
            "bulge_fraction": 0.0,
            "disk_hlr_arcsec": 0.6,
            "disk_n": 1.0,
            "disk_axis_ratio": 0.7,
            "bulge_hlr_arcsec": 0.4,
            "bulge_n": 4.0,
            "bulge_axis_ratio": 0.8,
            "angle_rad": 0.0,
            "population_row": 0,
            "estimated_snr": 100.0,
            **{f"flux_{band}": 20_000.0 for band in "ugriz"},
            **{f"mag_{band}": 20.65 for band in "ugriz"},
        }
        table = pd.DataFrame([{**ordinary, **row} for row in rows])
        for band in "ugriz":
            if f"bulge_share_{band}" not in table:
                table[f"bulge_share_{band}"] = table.bulge_fraction
        return table

    return make


@pytest.fixture(scope="session")
def simulate_stars(make_objects):
    """A function that simulates, into a folder, fields that hold stars (x, y, magnitude in every band) and no more."""

    def simulate_them(sky: Sky, folder: Path, seed: int, *stars: tuple[float, float, float]) -> None:
        rows = []
        for x, y, mag in stars:
            light = {f"flux_{band}": 10 ** (0.4 * (31.4 - mag)) for band in "ugriz"}
            mags = {f"mag_{band}": mag for band in "ugriz"}
            rows.append(
                {"x": x, "y": y, "class_id": 1, "redshift": float("nan"), "estimated_snr": 1e4, **light, **mags}
            )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("deepdisc.simulate.fields.draw_objects", lambda *_: make_objects(*rows))
            simulate(sky, folder, seed=seed)

    return simulate_them
