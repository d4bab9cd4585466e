"""The population table: what galaxies and stars there are, and how many per square degree."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from deepdisc.errors import InputError

TABLE = Path(__file__).parent / "data" / "population.parquet"
PARTS = ("train", "test", "all")
GALAXY, STAR = 0, 1
CLASS_NAMES = ("galaxy", "star")


@dataclass(frozen=True)
class Population:
    """Rows to draw objects from.

    Attributes:
        rows: the table; the index is the row's number in the whole table, whatever part was chosen.
        density_per_deg2: number of objects of class 0 (galaxies) and 1 (stars) per square degree.
    """

    rows: pd.DataFrame
    density_per_deg2: tuple[float, float]

    @classmethod
    def load(cls, part: str) -> Population:
        """Read one part of the shipped table; its rows stand for the density of the whole.

        Args:
            part: "train" (four rows in five), "test" (the held-out fifth) or "all".

        Raises:
            InputError: another word for `part`.
        """
        if part not in PARTS:
            raise InputError(f"sky.population_part is {part!r}; it must be one of {', '.join(PARTS)}")
        table = pq.read_table(TABLE)
        areas = [float(table.schema.metadata[key]) for key in (b"galaxy_area_deg2", b"star_area_deg2")]
        rows = table.to_pandas()
        density = tuple(
            float((rows.class_id == kind).sum() / area) for kind, area in zip((GALAXY, STAR), areas, strict=True)
        )
        if part != "all":
            rows = rows[rows.held_out == (part == "test")]
        return cls(rows, density)

    def draw(self, kind: int, area_deg2: float, factor: float, rng: np.random.Generator) -> pd.DataFrame:
        """A Poisson number of rows of one class, with replacement.

        Args:
            kind: GALAXY or STAR.
            area_deg2: area to fill, square degrees.
            factor: multiplies the density.
            rng: source of randomness.

        Returns:
            Rows of the table, index = population row (repeated where drawn twice).
        """
        number = rng.poisson(self.density_per_deg2[kind] * area_deg2 * factor)
        candidates = np.flatnonzero(self.rows.class_id.to_numpy() == kind)
        return self.rows.iloc[rng.choice(candidates, size=number)]
