"""A field for tests of the report: many objects with fluxes, redshift densities, shears, pixels and outlines."""

from types import SimpleNamespace

import numpy as np
import pandas as pd

from deepdisc.catalog import FLAGS

BANDS = ("g", "r", "i")


class SmallField:
    """A mosaic of three bands: Gaussian blobs in noise of 1 nJy per pixel."""

    bands = list(BANDS)
    pixel_scale_arcsec = 0.2
    metadata = {"bands": {band: {"psf_fwhm_arcsec": 0.8} for band in BANDS}}

    def __init__(self, truth, side, seed=0):
        self.shape = (side, side)
        self.image = np.random.default_rng(seed).normal(0, 1, (3, side, side)).astype(np.float32)
        y, x = np.mgrid[-7:8, -7:8]
        for row in truth.itertuples():
            i, j = round(row.y), round(row.x)
            blob = np.exp(-0.5 * ((x - row.x + j) ** 2 + (y - row.y + i) ** 2) / 1.7**2) / (2 * np.pi * 1.7**2)
            part = (slice(None), slice(max(i - 7, 0), i + 8), slice(max(j - 7, 0), j + 8))
            cut = blob[max(7 - i, 0) :, max(7 - j, 0) :][: side - max(i - 7, 0), : side - max(j - 7, 0)]
            self.image[part] += np.array([row.flux_g, row.flux_r, row.flux_i])[:, None, None] * cut
        self.mask = np.zeros(self.image.shape, bool)
        self.mask[:, :20, :20] = True

    def read(self, y0, x0, y1, x1):
        cut = (slice(None), slice(y0, y1), slice(x0, x1))
        image = np.where(self.mask[cut], 0, self.image[cut])
        return SimpleNamespace(image=image, variance=np.ones_like(image), mask=self.mask[cut])


def make_truth(n=300, side=400, seed=7):
    """`n` objects in `side` x `side` pixels, on a jittered grid; a tenth are stars, a part is FAINT."""
    rng = np.random.default_rng(seed)
    across = int(np.ceil(np.sqrt(n)))
    step = side / across
    y, x = (part.ravel()[:n] * step + step / 2 for part in np.mgrid[:across, :across])
    x, y = (part + rng.uniform(-0.3, 0.3, n) * step for part in (x, y))
    flux = 10 ** rng.uniform(1.7, 3.7, n)
    truth = pd.DataFrame({"id": np.arange(1, n + 1), "x": x, "y": y, "flags": 0, "snr": flux / 6.0})
    truth["ra"], truth["dec"] = 150.0 - x * 0.2 / 3600, 2.0 + y * 0.2 / 3600
    slope = rng.normal(1.0, 0.3, n)
    for band, power in zip(BANDS, (-0.3, 0.0, 0.3), strict=True):
        truth[f"flux_{band}"] = flux * 3.0 ** (power * slope)
        truth[f"mag_{band}"] = 31.4 - 2.5 * np.log10(truth[f"flux_{band}"])
    half = np.round(2 + np.log10(flux))
    truth["x_min"], truth["x_max"] = np.floor(x - half), np.floor(x + half + 1)
    truth["y_min"], truth["y_max"] = np.floor(y - half), np.floor(y + half + 1)
    is_star = np.arange(n) % 10 == 9
    truth["class_id"] = is_star.astype(int)
    truth["class_name"] = np.where(is_star, "star", "galaxy")
    truth["redshift"] = np.where(is_star, np.nan, rng.gamma(3.0, 0.3, n))
    truth["hlr_arcsec"] = rng.uniform(0.3, 1.0, n)
    for name in ("g1", "g2"):
        truth[name] = rng.normal(0, 0.03, n)
    truth.loc[truth["snr"] < 12, "flags"] = FLAGS["FAINT"].value
    return truth


def make_prediction(truth, seed=1, lost=9, scatter=0.03):
    """All but every `lost`-th object and some false ones, with redshift mixtures, fluxes with errors, and shears."""
    rng = np.random.default_rng(seed)
    pred = truth[np.arange(len(truth)) % lost != 0].copy()
    false = pred.iloc[:: max(len(pred) // 12, 1)].copy()
    shift = 0.5 * np.sqrt(truth["x"].max() * truth["y"].max() / len(truth))
    false["id"] += len(truth)
    for column in ("x", "y", "x_min", "x_max", "y_min", "y_max"):
        false[column] += np.round(shift)
    pred = pd.concat((pred, false), ignore_index=True)
    pred[["x", "y"]] += rng.normal(0, 0.2, (len(pred), 2))
    z = pred["redshift"].fillna(0.6).to_numpy()
    sigma = scatter * (1 + z)
    center = np.clip(z + sigma * rng.normal(size=len(z)), 0.0, None)
    pred["z_mode"], pred["z_odds"] = center, rng.uniform(0.3, 1.0, len(z))
    pred["z_weights"] = [[0.9, 0.1]] * len(z)
    pred["z_means"] = list(np.stack((center, center + 0.4), axis=1))
    pred["z_sigmas"] = list(np.stack((sigma, 3 * sigma), axis=1))
    pred["z_lower"] = 0.0
    for band in BANDS:
        error = 6.0 + 0.02 * pred[f"flux_{band}"]
        pred[f"flux_{band}"] += rng.normal(size=len(z)) * error
        pred[f"fluxerr_{band}"] = error
    for name in ("g1", "g2"):
        pred[name] = pred[name] * 0.98 + rng.normal(0, 0.05, len(z))
    pred["score"] = np.linspace(0.99, 0.3, len(pred))
    return pred.drop(columns=["redshift", "snr", *[name for name in pred if name.startswith("mag_")]])


def draw_labels(frame, shape):
    """A segmentation map with an ellipse in each box, label = id."""
    labels = np.zeros(shape, np.int32)
    for row in frame.itertuples():
        y, x = np.mgrid[int(row.y_min) : int(row.y_max), int(row.x_min) : int(row.x_max)]
        height, width = row.y_max - row.y_min, row.x_max - row.x_min
        inside = ((x - row.x_min + 0.5) / width - 0.5) ** 2 + ((y - row.y_min + 0.5) / height - 0.5) ** 2 < 0.25
        inside &= (y >= 0) & (y < shape[0]) & (x >= 0) & (x < shape[1])
        labels[y[inside], x[inside]] = row.id
    return labels
