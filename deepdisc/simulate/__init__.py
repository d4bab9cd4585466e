"""The synthetic sky: galaxies and stars, instruments and noise -> mosaic and truth. Needs the extra `sim` (GalSim)."""

from deepdisc.simulate.effects import Effects
from deepdisc.simulate.exposures import Exposures
from deepdisc.simulate.fields import simulate
from deepdisc.simulate.lensing import Lensing
from deepdisc.simulate.settings import Sky

__all__ = ["Effects", "Exposures", "Lensing", "Sky", "simulate"]
