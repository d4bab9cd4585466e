"""Sersic profiles: I ~ exp(-b (r/R)^(1/n)), R the half-light radius (Sersic 1963; Graham & Driver 2005, PASA 22, 118).

Lengths are in units of R unless a map to the picture is given; the total light is 1.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import scipy.fft
from scipy import optimize, special

# Table of the transform: evenly spaced in ln(k), k in 1/R.
LN_K_STEP = 1 / 128
LN_K_FIRST = -10.0
K_STEPS = 2432  # up to ln k = 9
_FHT_STEPS = 8192  # of the transform, over ln r and ln k from -32 to 32
# Gaussians that add up to a profile have variances R^2 2^j / (2 ln 2), j from NARROWEST on: n = 1/2 is that of j = 0.
NARROWEST, WIDEST = -14, 13


def sersic_b(n: np.ndarray) -> np.ndarray:
    """b that makes R the half-light radius: gamma(2n, b) = Gamma(2n) / 2 (Graham & Driver 2005, eq. 4)."""
    return special.gammaincinv(2 * np.asarray(n, dtype=np.float64), 0.5)


def brightness(r: np.ndarray, n: float) -> np.ndarray:
    """Surface brightness at radius r, light per R^2: b^2n / (2 pi n Gamma(2n)) exp(-b r^(1/n))."""
    b = float(sersic_b(n))
    return np.exp(2 * n * math.log(b) - special.gammaln(2 * n) - b * r ** (1 / n)) / (2 * math.pi * n)


def radius_of_level(light: np.ndarray, n: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(N,) radius along the major axis where profiles of total `light` fall to 1; 0 where they never reach it.

    Args:
        light: (N,) total light.
        n: (N,) indices.
        matrix: (N, 2, 2) linear maps of the round profile with R = 1 to the picture.
    """
    b = sersic_b(n)
    stretch = np.linalg.svd(matrix, compute_uv=False)
    centre = np.log(light / (2 * math.pi * n * stretch.prod(axis=1))) + 2 * n * np.log(b) - special.gammaln(2 * n)
    return stretch[:, 0] * (np.maximum(centre, 0) / b) ** n


def draw_positions(rng: np.random.Generator, number: int, n: float, within: float) -> np.ndarray:
    """(number, 2) x, y of points that lie as the light of a round profile does, up to a radius.

    The light within r is the gamma distribution of shape 2n at t = b r^(1/n).
    """
    b = float(sersic_b(n))
    outermost = special.gammainc(2 * n, b * within ** (1 / n))
    radius = (special.gammaincinv(2 * n, rng.uniform(0, outermost, number)) / b) ** n
    angle = rng.uniform(0, 2 * math.pi, number)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


@functools.lru_cache(maxsize=512)
def transform(n: float) -> np.ndarray:
    """(K_STEPS,) float32 Fourier transform at ln k = LN_K_FIRST + i LN_K_STEP: 2 pi int I(r) J0(kr) r dr.

    By FFTLog (Hamilton 2000, MNRAS 312, 257), as SciPy has it.
    """
    ln_r = (np.arange(_FHT_STEPS) - (_FHT_STEPS - 1) / 2) * LN_K_STEP
    # The transform's points lie half a step beside r's; the offset moves them to multiples of the step.
    values = scipy.fft.fht(np.exp(ln_r) * brightness(np.exp(ln_r), n), LN_K_STEP, mu=0.0, offset=LN_K_STEP / 2)
    ln_k = ln_r + LN_K_STEP / 2
    first = int(round((LN_K_FIRST - ln_k[0]) / LN_K_STEP))
    chosen = slice(first, first + K_STEPS)
    return (2 * math.pi * values[chosen] / np.exp(ln_k[chosen])).astype(np.float32)


@functools.lru_cache(maxsize=512)
def gaussians(n: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights and standard deviations of Gaussians that add up to a profile, (WIDEST - NARROWEST + 1,) each.

    For n >= 1/2 a Sersic profile is a positive mixture of Gaussians (Hogg & Lang 2013, PASP 125, 719, for n = 1 and 4);
    here the weights are fitted to the light within radii, at fixed widths.
    """
    sigma = np.sqrt(2.0 ** np.arange(NARROWEST, WIDEST + 1) / (2 * math.log(2)))
    r = np.geomspace(sigma[0], 6 * sigma[-1], 600)
    outside = special.gammaincc(2 * n, sersic_b(n) * r ** (1 / n))
    model = np.exp(-0.5 * (r[:, None] / sigma) ** 2)
    scale = 1 / np.sqrt(np.maximum(outside, 1e-4))  # the faint wings count as well as the middle
    weights, _ = optimize.nnls(model * scale[:, None], outside * scale, maxiter=5000)
    return weights, sigma
