"""Figures: colour pictures of fields and tiles with outlines, panels of histograms and curves, redshifts, ...

Every function takes arrays and returns a `matplotlib.figure.Figure`; nothing touches pyplot's global state, so that
they work in servers and threads. `png`, `svg` and `pdf` turn figures into files.
"""

from deepdisc.plots.panels import Panel, Series, panels, sky_map
from deepdisc.plots.pictures import asinh_rgb, label_borders, picture, stamps, tile
from deepdisc.plots.scores import purity_against_completeness, redshifts
from deepdisc.plots.style import BLUE, GREEN, GREY, INK, ORANGE, RED, SERIES, SIDES, pdf, png, svg

__all__ = [
    "BLUE", "GREEN", "GREY", "INK", "ORANGE", "RED", "SERIES", "SIDES", "Panel", "Series", "asinh_rgb",
    "label_borders", "panels", "pdf", "picture", "png", "purity_against_completeness", "redshifts",
    "sky_map", "stamps", "svg", "tile",
]  # fmt: skip
