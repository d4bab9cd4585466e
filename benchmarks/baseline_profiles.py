"""The limit of linear photometry: fluxes weighted with each object's true profile and the true noise.

Needs the extra `sim`: the field is drawn again from its recipe.yaml, without noise.

Legend: N objects, B bands, (s, s) pixels of a stamp; light and fluxes in nJy.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from deepdisc.errors import InputError, first_line, require_extra
from deepdisc.simulate import Effects, Exposures, Lensing, Sky
from deepdisc.simulate.fields import Drawn, draw_field
from deepdisc.simulate.observe import displaced
from deepdisc.simulate.psf_stamps import believed_psfs
from deepdisc.simulate.renderer import Renderer
from deepdisc.simulate.shapes import Shapes
from deepdisc.simulate.writing import describe

_PARTS = {"lensing": Lensing, "effects": Effects, "exposures": Exposures}
_UNEVEN = ("sky_gradient", "sky_residual", "wisps", "halo_share", "ghost_share")
_PSF_SIDE = 101  # pixels; holds 98 % and more of the light of the widest PSFs


def read_recipe(path: Path) -> dict:
    """The recipe.yaml of a simulated sky.

    Raises:
        InputError: there is none, or it is not one that `deepdisc simulate` wrote.
    """
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(
            f"{path}: cannot be read ({first_line(error)}); give a folder of `deepdisc simulate`"
        ) from error
    if not isinstance(recipe, dict) or not recipe.get("fields") or "sky" not in recipe.get("provenance", {}):
        raise InputError(f"{path}: is no recipe of `deepdisc simulate`; give the folder of a simulated sky")
    return recipe


def has_uneven_sky(recipe: dict) -> bool:
    """Whether the sky's images have a background that was not subtracted."""
    effects = recipe["provenance"]["sky"]["effects"] or {}
    return any(np.any(effects[name]) for name in _UNEVEN if name in effects)


def redraw(recipe: dict, number: int) -> Drawn:
    """Field `number` of a recipe as it was before it was painted.

    Raises:
        InputError: the sky has several exposures, or another version of the program made it.
    """
    settings = dict(recipe["provenance"]["sky"])
    for name, kind in _PARTS.items():
        settings[name] = None if settings.get(name) is None else kind(**settings[name])
    if settings["exposures"] is not None:
        raise InputError("the sky has several exposures per band; the true noise is known for one image per band")
    drawn = draw_field(Sky(**settings), number, int(recipe["provenance"]["seed"]))
    if describe(drawn.conditions) != recipe["fields"][number]["conditions"]:
        raise InputError(
            f"field {number} cannot be drawn again: another version of the program made it; simulate it anew"
        )
    return drawn


def optimal_fluxes(drawn: Drawn, truth: pd.DataFrame, image: np.ndarray, masked: np.ndarray) -> pd.DataFrame:
    """Fluxes with the best linear weights there are for an object alone: its true light m over the true variance.

    `w = [sum m / sum (m^2 / V)] m / V`, V = b + m with b the background's variance: Cabayol et al. 2021 (Horne
    1986, PASP 98, 609, eq. 8), in nJy: V = sigma^2 + m / gain. Unbiased for isolated objects, and of the least variance
    among linear estimates where the pixels' noise is independent. Profile, position, PSF, misalignment of the bands and
    noise are the simulation's own, at full depth everywhere; neighbours are not modelled.

    Args:
        drawn: the field.
        truth: (N) its true catalogue.
        image: (B, H, W).
        masked: (B, H, W) bool.

    Returns:
        `flux_<band>` and `fluxerr_<band>` (N); NaN where no pixel is valid.
    """
    conditions, shape = drawn.conditions, image.shape[1:]
    names = [band.name for band in conditions.bands]
    sky, gain = (part[:, None, None] for part in (conditions.sky_sigma_njy() ** 2, conditions.electrons_per_njy()))
    # One more pixel, without weight: where the renderer puts all that is outside.
    pixels, good = (
        np.pad(part.reshape(len(names), -1), ((0, 0), (0, 1))) for part in (np.where(masked, 0, image), ~masked)
    )
    found = np.full((2, len(truth), len(names)), np.nan)
    for batch in Renderer(conditions, real_galaxies=drawn.sky.real_galaxies).batches(Shapes.of(truth, conditions)):
        places = batch.pixels(shape).numpy()
        for row, light, place in zip(batch.rows, batch.light.double().numpy(), places, strict=True):
            light = _shifted(light, drawn)
            weight = np.where(good[:, place], light / (sky + np.maximum(light, 0) / gain), 0)
            signal, norm = ((weight * part).sum((1, 2)) for part in (pixels[:, place], light))
            with np.errstate(divide="ignore", invalid="ignore"):
                found[:, row] = np.where(norm > 0, (signal / norm, 1 / np.sqrt(norm)), np.nan)
    true = np.stack([truth[f"flux_{name}"].to_numpy(float) for name in names], axis=1)
    columns = {}
    for i, name in enumerate(names):
        columns[f"flux_{name}"] = found[0, :, i] * true[:, i]
        columns[f"fluxerr_{name}"] = found[1, :, i] * true[:, i]
    return pd.DataFrame(columns)


def _shifted(light: np.ndarray, drawn: Drawn) -> np.ndarray:
    """(B, s, s) light where the field's bands show it."""
    if drawn.effects is None or not np.any(drawn.effects.shift_pix):
        return light
    return np.stack([displaced(part, shift) for part, shift in zip(light, drawn.effects.shift_pix, strict=True)])


def star_share(drawn: Drawn, radius_pix: float) -> np.ndarray:
    """(B,) share of a star's light within a circle around it, by the PSF that the survey states mid-field."""
    sep = require_extra("sep", "classical")

    height, width = drawn.conditions.grid.shape
    middle = _PSF_SIDE // 2
    shares = []
    for psf in believed_psfs(drawn):
        picture = psf.picture((width - 1) / 2, (height - 1) / 2, _PSF_SIDE).astype(np.float64)
        shares.append(sep.sum_circle(picture, [middle], [middle], radius_pix, subpix=11)[0][0])
    return np.array(shares)
