"""How far the renderer is from GalSim: light, size, shape and pixels of single galaxies without noise.

What is compared is the stamp that the renderer makes; GalSim draws it with finer parameters than its defaults. Sizes
and ellipticities are adaptive moments (Hirata & Seljak 2003, MNRAS 343, 459), as GalSim measures them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from deepdisc.errors import require_extra
from deepdisc.simulate.conditions import Conditions
from deepdisc.simulate.population import GALAXY
from deepdisc.simulate.renderer import Renderer
from deepdisc.simulate.shapes import Shapes

ANGLE_RAD = 0.5
FRACTION = (0.3, 0.1)  # of a pixel, by which a galaxy's centre lies beside that of a pixel


def deviations(
    conditions: Conditions,
    n: Sequence[float],
    axis_ratio: Sequence[float],
    hlr_pix: Sequence[float],
    snr: float,
    device: str = "cpu",
) -> pd.DataFrame:
    """Compare every combination of index, axis ratio and size, in every band.

    Args:
        conditions: PSFs and noise; the field's size does not matter.
        n: Sersic indices.
        axis_ratio: axis ratios.
        hlr_pix: circularised half-light radii, pixels.
        snr: about that of each galaxy in each band; decides how large the stamps are.
        device: of the renderer.

    Returns:
        One row per galaxy and band: band, n, axis_ratio, hlr_pix, snr, side (pixels), and the differences flux and size
        (relative), ellipticity (absolute; both NaN where the moments of GalSim's own picture do not converge), pixel
        (largest, in units of that pixel's noise, photons included).
    """
    cases = pd.DataFrame(itertools.product(n, axis_ratio, hlr_pix), columns=["n", "axis_ratio", "hlr_pix"])
    objects = _objects(conditions, cases, snr)
    rows = []
    for batch in Renderer(conditions, device).batches(Shapes.of(objects, conditions)):
        for number, row in enumerate(batch.rows):
            light = batch.light[number].double().cpu().numpy()
            rows += _compare(conditions, objects.iloc[row], cases.iloc[row], light)
    return pd.DataFrame(rows).assign(snr=snr)


def worst(table: pd.DataFrame) -> pd.DataFrame:
    """The largest absolute value of each difference, per band, in the order of the bands."""
    names = ["flux", "size", "ellipticity", "pixel"]
    return table[names].abs().groupby(table.band, sort=False).max()


def _objects(conditions: Conditions, cases: pd.DataFrame, snr: float) -> pd.DataFrame:
    """The galaxies, all in the middle of the field."""
    scale, count = conditions.instrument.pixel_scale_arcsec, len(conditions.bands)
    height, width = conditions.grid.shape
    objects = pd.DataFrame(
        {
            "class_id": GALAXY,
            "x": width // 2 + FRACTION[0],
            "y": height // 2 + FRACTION[1],
            "angle_rad": ANGLE_RAD,
            "disk_hlr_arcsec": cases.hlr_pix * scale,
            "disk_n": cases.n,
            "disk_axis_ratio": cases.axis_ratio,
            **dict.fromkeys(("bulge_hlr_arcsec", "bulge_n", "bulge_axis_ratio"), np.nan),
            "population_row": 0,
            "estimated_snr": snr * math.sqrt(count),
        }
    )
    for number, band in enumerate(conditions.bands):
        # A Gaussian's noise-equivalent area, with sigma = FWHM / 2.355 of the PSF and hlr / 1.177 of the galaxy.
        sigma2 = (conditions.psf_fwhm_arcsec[number] / scale / 2.355) ** 2 + (cases.hlr_pix / 1.177) ** 2
        objects[f"flux_{band.name}"] = snr * conditions.sky_sigma_njy()[number] * np.sqrt(4 * math.pi * sigma2)
        objects[f"bulge_share_{band.name}"] = 0.0
    return objects


def _compare(conditions: Conditions, galaxy: pd.Series, case: pd.Series, light: np.ndarray) -> list[dict]:
    galsim, side = require_extra("galsim", "sim"), light.shape[-1]
    scale, gain = conditions.instrument.pixel_scale_arcsec, conditions.electrons_per_njy()
    keywords = {"gsparams": galsim.GSParams(maximum_fft_size=20_000, maxk_threshold=1e-4)}
    profile = galsim.Sersic(case.n, half_light_radius=galaxy.disk_hlr_arcsec, **keywords)
    profile = profile.shear(q=case.axis_ratio, beta=ANGLE_RAD * galsim.radians)
    rows = []
    for number, band in enumerate(conditions.bands):
        flux, sigma = galaxy[f"flux_{band.name}"], conditions.sky_sigma_njy()[number]
        seen = galsim.Convolve([profile, conditions.psf(number, **keywords)], **keywords).withFlux(flux)
        image = seen.drawImage(nx=side, ny=side, scale=scale, offset=FRACTION, dtype=np.float64).array
        noise = np.sqrt(sigma**2 + np.maximum(image, 0) / gain[number])
        guess = conditions.psf_fwhm_arcsec[number] / scale + case.hlr_pix
        ours, theirs = (_moments(picture, guess) for picture in (light[number], image))
        rows.append(
            {
                "band": band.name,
                **case,
                "side": side,
                "flux": light[number].sum() / image.sum() - 1,
                "size": ours[0] / theirs[0] - 1,
                "ellipticity": math.hypot(ours[1] - theirs[1], ours[2] - theirs[2]),
                "pixel": np.abs((light[number] - image) / noise).max(),
            }
        )
    return rows


def _moments(picture: np.ndarray, guess: float) -> tuple[float, float, float]:
    """Size, e1 and e2; NaN where they do not converge."""
    hsm = require_extra("galsim", "sim").hsm
    parameters = hsm.HSMParams(max_mom2_iter=2000)
    image = require_extra("galsim", "sim").Image(np.ascontiguousarray(picture / picture.sum()), scale=1.0)
    found = hsm.FindAdaptiveMom(image, guess_sig=guess, strict=False, hsmparams=parameters)
    if found.error_message:
        return math.nan, math.nan, math.nan
    return found.moments_sigma, found.observed_shape.e1, found.observed_shape.e2
