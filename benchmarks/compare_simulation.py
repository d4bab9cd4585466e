"""Drawing a field: GalSim's chromatic API, our painter and our torch renderer, on the same objects in one process.

    python benchmarks/compare_simulation.py [--skies sdss nircam] [--sides 512 1024 2048] [--agreement] [--output DIR]

The chromatic API is what a user would write: disc and bulge with a spectrum each, sheared, convolved with the band's
PSF, `drawImage(bandpass)` of a stamp per band. It draws a random sample of the field's objects (--sample) on stamps of
the size that ours have; we draw all of them, and times faster is by the time per object. Times include what a field
costs once: PSFs, tables, sizes of stamps. One core.

Differences are those of a picture of the sample alone, with the fluxes and bulge shares that its spectra have: largest
ones of pixels in units of their noise (sky and photons), and of the summed light. They are measured from the chromatic
API at a finer accuracy than GalSim's defaults, with which it is timed: those cut a transform off where it is down to
0.1 % (maxk_threshold), which leaves ripples around bright stars that are no light. How far the timed picture is from
the finer one has a column of its own.
With --agreement a second table holds the largest deviations of single galaxies from GalSim, see
`deepdisc.simulate.agreement`.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path

import galsim
import numpy as np
import pandas as pd
import torch

from deepdisc.simulate import Sky
from deepdisc.simulate.agreement import deviations, worst
from deepdisc.simulate.conditions import Conditions, draw_conditions
from deepdisc.simulate.fields import Drawn, draw_field
from deepdisc.simulate.filters import load_filter
from deepdisc.simulate.instruments import Instrument
from deepdisc.simulate.objects import estimate_snr
from deepdisc.simulate.population import GALAXY
from deepdisc.simulate.renderer import Renderer
from deepdisc.simulate.scene import build_scene
from deepdisc.simulate.shapes import Shapes, lensing_maps
from deepdisc.simulate.spectra import load_templates

SKIES = {
    "sdss": {"instrument": "sdss", "population": "wide", "depth_offset": (1.0, 1.0)},
    "nircam": {"instrument": "nircam", "population": "deep"},
    "csst": {"instrument": "csst", "population": "wide"},
}
SHEAR = {"g1": 0.02, "g2": -0.01, "kappa": 0.0}
SPECTRUM_ERROR = 1e-3  # to which the spectra are thinned, relative
FINE = galsim.GSParams(folding_threshold=1e-3, maxk_threshold=1e-5, kvalue_accuracy=1e-7, maximum_fft_size=32_768)
INDICES, RATIOS, SIZES_PIX = (0.5, 1.0, 2.5, 4.0, 6.0), (0.1, 0.4, 1.0), (0.2, 1.0, 5.0)


class Chromatic:
    """A field's objects in GalSim's chromatic API."""

    def __init__(self, field: Drawn):
        self.conditions = field.conditions
        self.bandpasses = [self._bandpass(load_filter(band.filter)) for band in self.conditions.bands]
        templates = [self._spectrum(*values) for values in load_templates().values()]
        blueness = [one.atRedshift(0)(200.0) / one.atRedshift(0)(550.0) for one in templates]
        order = np.argsort(blueness)
        self.red, self.blue = templates[order[0]], templates[order[-1]]
        # What 1 nJy gives in a band: fluxes in nJy are photons over this.
        flat = galsim.SED(galsim.LookupTable([50.0, 6000.0], [1.0, 1.0], interpolant="linear"), "nm", "fnu")
        self.per_njy = [flat.calculateFlux(bandpass) for bandpass in self.bandpasses]

    @staticmethod
    def _bandpass(curve) -> galsim.Bandpass:
        table = galsim.LookupTable(curve.wavelength_angstrom / 10, curve.throughput, interpolant="linear")
        return galsim.Bandpass(table, wave_type="nm").thin(SPECTRUM_ERROR)

    @staticmethod
    def _spectrum(wavelength_angstrom: np.ndarray, f_nu: np.ndarray) -> galsim.SED:
        covered = np.append(wavelength_angstrom, 1e6), np.append(f_nu, f_nu[-1])
        covered = np.insert(covered[0], 0, 10.0), np.insert(covered[1], 0, 0.0)
        table = galsim.LookupTable(covered[0] / 10, covered[1], interpolant="linear")
        return galsim.SED(table, wave_type="nm", flux_type="fnu").thin(SPECTRUM_ERROR)

    def parts(self, row) -> dict[str, tuple[galsim.GSObject, galsim.SED]]:
        """Profile and spectrum of disc and bulge, or of the star."""
        number = len(self.bandpasses) // 2
        band = self.conditions.bands[number].name
        total, share = getattr(row, f"flux_{band}"), getattr(row, f"bulge_share_{band}")
        if row.class_id != GALAXY:
            return {"star": (galsim.DeltaFunction(), self._scaled(self.red, 0.0, total, number))}
        light = {"disk": (1 - share) * total, "bulge": share * total}
        spectra = {"disk": self.blue, "bulge": self.red}
        return {
            part: (self._profile(row, part), self._scaled(spectra[part], row.redshift, light[part], number))
            for part in light
            if light[part] > 0.005 * total
        }

    def _scaled(self, spectrum: galsim.SED, redshift: float, njy: float, number: int) -> galsim.SED:
        return spectrum.atRedshift(redshift).withFlux(njy * self.per_njy[number], self.bandpasses[number])

    def _profile(self, row, part: str) -> galsim.GSObject:
        n, hlr = getattr(row, f"{part}_n"), getattr(row, f"{part}_hlr_arcsec")
        kinds = {1.0: galsim.Exponential, 4.0: galsim.DeVaucouleurs}
        profile = kinds[n](half_light_radius=hlr) if n in kinds else galsim.Sersic(n, half_light_radius=hlr)
        return profile.shear(q=getattr(row, f"{part}_axis_ratio"), beta=row.angle_rad * galsim.radians)

    def relight(self, objects: pd.DataFrame) -> pd.DataFrame:
        """The objects with the fluxes and bulge shares of these spectra, without knots, and with a constant shear."""
        flux, share = np.zeros((2, len(objects), len(self.bandpasses)))
        for number, row in enumerate(objects.itertuples()):
            for part, (_, spectrum) in self.parts(row).items():
                njy = np.array([spectrum.calculateFlux(one) for one in self.bandpasses]) / self.per_njy
                flux[number] += njy
                share[number] += njy if part == "bulge" else 0
        share /= np.maximum(flux, 1e-300)
        columns = {}
        for number, band in enumerate(self.conditions.bands):
            columns |= {f"flux_{band.name}": flux[:, number], f"bulge_share_{band.name}": share[:, number]}
        objects = objects.assign(**columns, **SHEAR, knots=0, knot_share=0.0)
        return objects.assign(estimated_snr=estimate_snr(objects, self.conditions))

    def draw(self, objects: pd.DataFrame, shapes: Shapes, gsparams: galsim.GSParams | None = None) -> np.ndarray:
        """(B, H, W) float32 nJy; `gsparams` in place of GalSim's defaults."""
        shape, scale = self.conditions.grid.shape, self.conditions.instrument.pixel_scale_arcsec
        field = np.zeros((len(self.bandpasses), *shape), dtype=np.float32)
        psfs = [self.conditions.psf(band) for band in range(len(self.bandpasses))]
        x, y = objects.x.to_numpy(), objects.y.to_numpy()
        g1, g2 = self.conditions.grid.shear_to_pixel(x, y, objects.g1.to_numpy(), objects.g2.to_numpy())
        images = [galsim.ImageF(plane, xmin=0, ymin=0, scale=scale) for plane in field]
        for number, row in enumerate(objects.itertuples()):
            parts = [profile * spectrum for profile, spectrum in self.parts(row).values()]
            source = galsim.Add(parts) if len(parts) > 1 else parts[0]
            if row.class_id == GALAXY:
                magnification = float(np.linalg.det(lensing_maps(g1[number], g2[number], np.zeros(1))[0]))
                source = source.lens(g1[number], g2[number], magnification) / magnification
            half, center = int(shapes.half[number]), galsim.PositionD(row.x, row.y)
            middle = galsim.PositionI(int(np.floor(row.x + 0.5)), int(np.floor(row.y + 0.5)))
            bounds = galsim.BoundsI(middle.x - half, middle.x + half, middle.y - half, middle.y + half)
            for image, psf, bandpass, one in zip(images, psfs, self.bandpasses, self.per_njy, strict=True):
                overlap = bounds & image.bounds
                if overlap.isDefined():
                    stamp = galsim.ImageF(bounds, scale=scale)
                    seen = galsim.Convolve([source, psf], gsparams=gsparams)
                    seen.drawImage(bandpass, image=stamp, center=center)
                    image[overlap] += stamp[overlap] / one
        return field


def timed(draw: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """What a function returns, and its wall-clock seconds."""
    start = time.perf_counter()
    return draw(), time.perf_counter() - start


def compare(name: str, side: int, sample: int, seed: int) -> list[str]:
    """One row of the table: a field of a sky, drawn three times."""
    sky = Sky(shape=(side, side), **SKIES[name])
    field = draw_field(sky, 0, seed)
    conditions, chromatic = field.conditions, Chromatic(field)
    reaching = Shapes.of(field.objects.assign(**SHEAR), conditions).reach_into(conditions.grid.shape)
    every = field.objects[reaching].reset_index(drop=True)
    few = every.sample(min(sample, len(every)), random_state=seed).reset_index(drop=True)
    few = chromatic.relight(few)
    shapes = Shapes.of(few, conditions)
    theirs, seconds = timed(lambda: chromatic.draw(few, shapes))
    fine = chromatic.draw(few, shapes, FINE)
    sigma, gain = conditions.sky_sigma_njy()[:, None, None], conditions.electrons_per_njy()[:, None, None]
    noise = np.sqrt(sigma**2 + np.maximum(fine, 0) / gain)
    figures = [name, f"{side}", f"{len(every)}", f"{1e3 * seconds / len(few):.1f}", _pixels((theirs - fine) / noise)]
    draws = {
        "painter": lambda objects: build_scene(sky, conditions, objects).light,
        "torch": lambda objects: Renderer(conditions).render(objects).numpy(),
    }
    for draw in draws.values():
        ours = draw(few)
        _, all_of_them = timed(lambda draw=draw: draw(every.assign(**SHEAR)))
        ratio = (seconds / len(few)) / (all_of_them / len(every))
        light = np.abs(ours.sum(axis=(1, 2)) / fine.sum(axis=(1, 2)) - 1).max()
        figures += [
            f"{all_of_them:.2f}",
            f"{1e3 * all_of_them / len(every):.1f}",
            f"**{ratio:.1f}**",
            _pixels((ours - fine) / noise),
            f"{100 * light:.2f} %",
        ]
    return figures


def _pixels(differences: np.ndarray) -> str:
    """The difference that 99.9 % of the pixels stay below, and the largest."""
    return f"{np.quantile(np.abs(differences), 0.999):.3f} / {np.abs(differences).max():.3f}"


PIXELS = "pixels, of the noise: 99.9 % / largest"
FIGURES = f"s per field | ms per object | times faster | {PIXELS} | light"
HEADER = (
    f"| sky | side, pixels | objects | chromatic: ms per object | {PIXELS} | painter: {FIGURES} | torch: {FIGURES} |"
)


def agreement(name: str, bands: list[str] | None) -> list[str]:
    """Rows of the second table: the largest deviations per band, at signal-to-noise 5, 30 and 1000."""
    instrument = SKIES[name]["instrument"]
    conditions: Conditions = draw_conditions(
        Sky(instrument=instrument, bands=bands, shape=(1100, 1100)),
        Instrument.load(instrument, bands),
        0,
        np.random.default_rng(0),
    )
    tables = [deviations(conditions, INDICES, RATIOS, SIZES_PIX, snr) for snr in (5.0, 30.0, 1000.0)]
    table = pd.concat(tables)
    return [
        f"| {name} | {band} | {(table.band == band).sum()} | {100 * row.flux:.2f} % | {100 * row['size']:.2f} % | "
        f"{row.ellipticity:.4f} | {row.pixel:.3f} |"
        for band, row in worst(table).iterrows()
    ]


def main() -> None:
    """Draw, compare, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skies", nargs="+", default=["sdss", "nircam"], choices=sorted(SKIES))
    parser.add_argument("--sides", nargs="+", type=int, default=[512, 1024, 2048])
    parser.add_argument("--sample", type=int, default=150, help="objects that all three draw (default: 150)")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--agreement", action="store_true", help="also the table of single galaxies (many minutes)")
    parser.add_argument("--bands", nargs="+", help="bands of the second table (default: all)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="also write compare_simulation.md there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = [f"One core of {platform.machine()}, GalSim {galsim.__version__}, torch {torch.__version__}.", "", HEADER]
    lines.append("|" + "---|" * HEADER.count(" |"))
    for name in args.skies:
        for side in args.sides:
            lines.append("| " + " | ".join(compare(name, side, args.sample, args.seed)) + " |")
            print(lines[-1], flush=True)
    if args.agreement:
        lines += ["", "| sky | band | galaxies | flux | size | ellipticity | pixels, of the noise |", "|" + "---|" * 7]
        for name in args.skies:
            lines += agreement(name, args.bands)
    text = "\n".join(lines) + "\n"
    print(text)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "compare_simulation.md").write_text(text)


if __name__ == "__main__":
    main()
