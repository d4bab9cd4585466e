"""What a synthetic sky is made of: the keys of `sky` in a sky config, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deepdisc.errors import InputError
from deepdisc.simulate.checks import Range, check_choice, check_kind, check_numbers, check_ranges, pair, whole_pair
from deepdisc.simulate.effects import Effects
from deepdisc.simulate.exposures import Exposures
from deepdisc.simulate.lensing import Lensing


@dataclass(frozen=True)
class Sky:
    """A set of fields of one instrument. Ranges are (low, high); each field draws its own value uniformly.

    Attributes:
        instrument: name of a shipped instrument, or the path of a YAML file.
        bands: bands to draw, in this order; None for all of the instrument.
        fields: number of fields.
        shape: (height, width) of a field, pixels.
        center: ICRS (RA, Dec) of the first field's centre, degrees; the others lie beside it without overlap.
        population: what galaxies and stars there are: "wide" (bright, z < 2.3), "deep" (to F160W = 32, z < 12), or
            the path of a Parquet file that tools/make_population.py made.
        templates: folder of the spectral templates of a population that was made with others than the package's.
        population_part: "train", "test" (galaxies that "train" never holds) or "all".
        depth_offset: range, mag, added to the instrument's 5-sigma depths, the same in all bands.
        depth_jitter: each band adds another uniform offset within +- this, mag.
        seeing_factor: range, multiplies the instrument's PSF widths, the same in all bands.
        seeing_jitter: each band's PSF width is multiplied by another uniform factor within 1 +- this.
        moffat_beta: range of the Moffat profile's exponent, for instruments with such PSFs; a small one has broad
            wings. None: the instrument's.
        psf_width_rms: relative change of the PSF's width over a field, rms, smooth and different in each band.
        psf_ellipticity_rms: the same for its ellipticity: rms of each component of the shear that makes it.
        psf_cells: cells across a field's longer side in which the PSF is taken to be constant; in small fields fewer,
            so that none is smaller than 48 pixels.
        ebv: range of the Milky Way reddening E(B-V) of a field, mag.
        ebv_rms: its relative variation within a field; 0: the same everywhere.
        galaxy_density: range, multiplies the population's number of galaxies per area.
        star_density: the same for stars.
        positions: "clustered" (see below), or "catalogue": a window of the real sky that the population was measured
            on, turned and mirrored; galaxies fainter than that catalogue are placed as for "clustered".
        clustered_fraction: share of the galaxies that gather around common centres (Thomas process), the others are
            placed uniformly.
        cluster_members: mean number of galaxies around one such centre.
        cluster_radius_arcsec: standard deviation, per axis, of their distances from it.
        pair_fraction: share of the detectable galaxies that form close pairs; one of each two is moved to the other.
        pair_separation_fwhm: range of the distance in such a pair, in units of the mean PSF width.
        knot_fraction: range, share of a disc's light in star-forming knots; scaled by how blue the galaxy is.
        real_galaxies: catalogue file of a `galsim.RealGalaxyCatalog`, whose pictures, scaled in size and flux, stand
            for the galaxies that are large enough; None: discs and bulges.
        background_only_variance: share of the fields whose VARIANCE plane leaves out the objects' photon noise, as the
            weight maps of many surveys do.
        label_snr: fainter objects (total signal-to-noise) are drawn but flagged FAINT and not in the segmentation.
        draw_snr: objects estimated to be fainter than this are left out altogether.
        isophote: outline of an object: where its own light exceeds this signal-to-noise per pixel ...
        peak_fraction: ... or this share of its own peak, if that is lower.
        workers: processes that make fields side by side; the files do not depend on it.
        lensing: shear and convergence of the galaxies; None: none.
        effects: what spoils the images besides noise; None: nothing.
        exposures: several exposures in place of one image per band; None: one image.
    """

    instrument: str = "sdss"
    bands: Sequence[str] | None = None
    fields: int = 1
    shape: tuple[int, int] = (1024, 1024)
    center: tuple[float, float] = (150.0, 2.0)
    population: str = "wide"
    templates: str | None = None
    population_part: str = "all"
    depth_offset: Range = (0.0, 0.0)
    depth_jitter: float = 0.0
    seeing_factor: Range = (1.0, 1.0)
    seeing_jitter: float = 0.0
    moffat_beta: Range | None = None
    psf_width_rms: float = 0.0
    psf_ellipticity_rms: float = 0.0
    psf_cells: int = 8
    ebv: Range = (0.0, 0.0)
    ebv_rms: float = 0.0
    galaxy_density: Range = (1.0, 1.0)
    star_density: Range = (1.0, 1.0)
    positions: str = "clustered"
    clustered_fraction: float = 0.0
    cluster_members: float = 8.0
    cluster_radius_arcsec: float = 15.0
    pair_fraction: float = 0.0
    pair_separation_fwhm: Range = (0.5, 3.0)
    knot_fraction: Range = (0.0, 0.0)
    real_galaxies: str | None = None
    background_only_variance: float = 0.0
    label_snr: float = 6.0
    draw_snr: float = 0.5
    isophote: float = 1.2
    peak_fraction: float = 0.2
    workers: int = 1
    lensing: Lensing | None = None
    effects: Effects | None = None
    exposures: Exposures | None = None

    def __post_init__(self):
        check_ranges(self, "sky", _RANGES)
        check_numbers(self, "sky", _NUMBERS)
        check_choice(self, "sky", "positions", ("clustered", "catalogue"))
        for name, kind in (("lensing", Lensing), ("effects", Effects), ("exposures", Exposures)):
            check_kind(self, "sky", name, kind)
        shape = whole_pair("sky", "shape", self.shape)
        if min(shape) < 16:
            raise InputError(f"sky.shape is {list(shape)}; a field has at least 16 x 16 pixels")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "center", pair("sky", "center", self.center))
        if abs(self.center[1]) > 80:
            raise InputError(f"sky.center is {list(self.center)}; the declination must be within -80 to 80 degrees")
        if isinstance(self.bands, str):
            raise InputError(f"sky.bands is {self.bands!r}; it must be a list, such as [{self.bands!r}]")
        if self.bands is not None and (not len(self.bands) or len(set(self.bands)) < len(self.bands)):
            raise InputError(f"sky.bands is {list(self.bands)}; give each band once, at least one")


_RANGES = {
    "depth_offset": (-5, 5),
    "seeing_factor": (0.1, 10),
    "moffat_beta": (1.5, 20),
    "ebv": (0, 5),
    "knot_fraction": (0, 0.9),
    "galaxy_density": (0, 100),
    "star_density": (0, 100),
    "pair_separation_fwhm": (0, 100),
}
_NUMBERS = {
    "fields": (1, 100_000),
    "depth_jitter": (0, 2),
    "seeing_jitter": (0, 0.5),
    "clustered_fraction": (0, 1),
    "cluster_members": (1, 10_000),
    "cluster_radius_arcsec": (0, math.inf),
    "pair_fraction": (0, 1),
    "background_only_variance": (0, 1),
    "label_snr": (0, math.inf),
    "draw_snr": (0, math.inf),
    "isophote": (0.05, 100),
    "peak_fraction": (0.01, 1),
    "psf_width_rms": (0, 0.2),
    "psf_ellipticity_rms": (0, 0.2),
    "psf_cells": (1, 256),
    "ebv_rms": (0, 1),
    "workers": (1, 1024),
}
