"""Instruments as data: pixel scale and, per band, depth, PSF, sky and reddening (data/instruments/*.yaml)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from deepdisc.errors import InputError, first_line, nearest
from deepdisc.files import read_yaml

FOLDER = Path(__file__).parent / "data" / "instruments"


@dataclass(frozen=True)
class Band:
    """One band of an instrument.

    Attributes:
        name: the band's name in the mosaic.
        population: column of the population table with its magnitudes.
        depth_5sigma: AB magnitude of a point source of signal-to-noise 5, measured with the PSF as weight.
        psf_fwhm_arcsec: full width at half maximum of the Moffat profile, before the pixel.
        sky_mag_arcsec2: surface brightness of the sky, AB mag per square arcsec.
        reddening: extinction A_b / E(B-V).
    """

    name: str
    population: str
    depth_5sigma: float
    psf_fwhm_arcsec: float
    sky_mag_arcsec2: float
    reddening: float


@dataclass(frozen=True)
class Instrument:
    """A pixel scale (arcsec) and the bands, in the order asked for."""

    name: str
    pixel_scale_arcsec: float
    bands: tuple[Band, ...]

    @classmethod
    def load(cls, source: str, bands: Sequence[str] | None = None) -> Instrument:
        """Read a shipped instrument by name, or a YAML file of the same form by path.

        Args:
            source: "sdss", "stripe82", ... or a path that ends in .yaml.
            bands: names of the bands wanted, in this order; None for all.

        Raises:
            InputError: no such instrument or band, or the file lacks a number.
        """
        path = _path_of(source)
        description = read_yaml(path, "instrument")
        try:
            scale = float(description["pixel_scale_arcsec"])
            every = {name: _band(name, values) for name, values in description["bands"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            wanted = ", ".join(field.name for field in fields(Band)[1:])
            raise InputError(
                f"{path}: not an instrument ({first_line(error)}); it needs pixel_scale_arcsec and, for every band, "
                f"{wanted}"
            ) from error
        chosen = list(every) if bands is None else list(bands)
        for name in chosen:
            if name not in every:
                raise InputError(f"instrument {source!r} has no band {name!r}; it has {', '.join(every)}")
        return cls(str(description.get("name", path.stem)), scale, tuple(every[name] for name in chosen))


def _path_of(source: str) -> Path:
    shipped = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
    path = shipped.get(source, Path(source))
    if not path.is_file():
        guess = nearest(source, shipped)
        hint = f"; did you mean {guess!r}?" if guess else ""
        raise InputError(
            f"no instrument {source!r}: give one of {', '.join(shipped)}, or the path of a .yaml file{hint}"
        )
    return path


def _band(name: str, values: dict) -> Band:
    numbers = {field.name: float(values[field.name]) for field in fields(Band)[2:]}
    return Band(name=str(name), population=str(values["population"]), **numbers)
