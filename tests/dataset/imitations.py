"""Small imitations of what surveys publish: one sky of blobs in their file names, extensions, columns and units."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from deepdisc.photometry import mag_from_njy

NOISE_NJY = 2.0


class Sky:
    """Gaussian blobs on a jittered lattice, so that none is blended; sigma 2 pixels.

    Attributes:
        truth: id (101, ...), x, y, ra, dec, redshift, star, flux_<band> in nJy.
        segmentation: ids where a blob is brighter than the noise.
    """

    def __init__(self, bands, shape=(300, 320), scale_arcsec=0.03, ra=53.16, dec=-27.79, seed=3):
        rng = np.random.default_rng(seed)
        self.bands, self.shape, self.scale_arcsec = list(bands), shape, scale_arcsec
        self.header = fits.Header()
        for key, value in (
            ("CTYPE1", "RA---TAN"), ("CTYPE2", "DEC--TAN"), ("CRVAL1", ra), ("CRVAL2", dec),
            ("CRPIX1", (shape[1] + 1) / 2), ("CRPIX2", (shape[0] + 1) / 2),
            ("CDELT1", -scale_arcsec / 3600), ("CDELT2", scale_arcsec / 3600), ("RADESYS", "ICRS"),
        ):  # fmt: skip
            self.header[key] = value
        y, x = (part.ravel() for part in np.mgrid[15 : shape[0] - 15 : 24, 15 : shape[1] - 15 : 24].astype(float))
        x, y = x + rng.uniform(-3, 3, len(x)), y + rng.uniform(-3, 3, len(y))
        sky = WCS(self.header).pixel_to_world(x, y)
        self.truth = pd.DataFrame({"id": 101 + np.arange(len(x)), "x": x, "y": y, "ra": sky.ra.deg, "dec": sky.dec.deg})
        self.truth["star"] = np.arange(len(x)) % 7 == 0
        self.truth["redshift"] = np.where(self.truth.star, 0.0, rng.uniform(0.1, 4, len(x)))
        self.images, self.segmentation = {}, np.zeros(shape, np.int32)
        yy, xx = np.mgrid[: shape[0], : shape[1]]
        for band in self.bands:
            self.truth[f"flux_{band}"] = rng.uniform(300, 3000, len(x))
            self.images[band] = rng.normal(0, NOISE_NJY, shape)
        for row in self.truth.itertuples():
            profile = np.exp(-((xx - row.x) ** 2 + (yy - row.y) ** 2) / 8) / (8 * np.pi)
            for band in self.bands:
                self.images[band] += getattr(row, f"flux_{band}") * profile
            self.segmentation[profile > 0.002] = row.id

    def image(self, band, factor=1.0):
        """Pixels as float32, nJy times a factor."""
        return (self.images[band] * factor).astype(np.float32)

    def noise(self, factor=1.0, power=1):
        """The noise (power 1) or variance (2) of all pixels."""
        return np.full(self.shape, (NOISE_NJY * factor) ** power, np.float32)


def jades(folder: Path, **names) -> Sky:
    """Mosaics with SCI and ERR in MJy/sr, a catalogue in extensions, the segmentation map, NIRSpec redshifts."""
    sky = Sky("F090W F115W F150W F200W F277W F335M F356W F410M F444W".split())
    stem = folder / "hlsp_jades_jwst_nircam_goods-s-deep"
    mjy_per_sr = 1 / 21.154  # of 1 nJy in 0.03 arcsec
    for band in sky.bands:
        images = [
            fits.ImageHDU(sky.image(band, mjy_per_sr), sky.header, name="SCI"),
            fits.ImageHDU(sky.noise(mjy_per_sr), sky.header, name="ERR"),
        ]
        images[0].header["BUNIT"] = "MJy/sr"
        fits.HDUList([fits.PrimaryHDU(), *images]).writeto(f"{stem}_{band.lower()}_v2.0_drz.fits")
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(sky.segmentation, sky.header)]).writeto(
        f"{stem}_segmentation_v2.0_drz.fits"
    )
    truth = sky.truth
    flag = Table({"ID": truth.id, "RA": truth.ra, "DEC": truth.dec, "FLAG_ST": truth.star.astype(int)})
    flag["FLAG_BN"] = 0
    size = Table({"ID": truth.id, "A": np.full(len(truth), 2.0), "B": np.full(len(truth), 2.0)})
    kron = Table({"ID": truth.id, "RA": truth.ra})
    for band in sky.bands:
        kron[f"{band}_KRON"], kron[f"{band}_KRON_e"] = truth[f"flux_{band}"].to_numpy(), np.full(len(truth), 10.0)
    tables = [fits.BinTableHDU(part, name=name) for part, name in ((flag, "FLAG"), (size, "SIZE"), (kron, "KRON"))]
    fits.HDUList([fits.PrimaryHDU(), *tables]).writeto(f"{stem}_photometry_v2.0_catalog.fits")
    spectra = truth[(~truth.star) & (truth.id % 3 == 0)]
    grades = np.array(list("ABCDE"))[np.arange(len(spectra)) % 5]
    observed = Table({"NIRSpec_ID": spectra.id, "RA_TARG": spectra.ra + 1e-5, "Dec_TARG": spectra.dec})
    observed["z_Spec"], observed["z_Spec_flag"] = spectra.redshift.to_numpy(), grades
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU(observed, name="Obs_info")]).writeto(
        folder / "jades_dr3_prism_public_gs_v1.1.fits"
    )
    sky.spectra = spectra.assign(grade=grades)
    return sky


def _calexp(path: Path, sky: Sky, band: str) -> None:
    """A coadd of the LSST pipeline: image, mask, variance; zero point 27."""
    factor = 10 ** (0.4 * (27 - 31.4))
    mask = np.zeros(sky.shape, np.int32)
    mask[:, :4] = 1 << 8  # no data
    mask[100:200] |= 1 << 5  # detected: nothing bad
    images = [sky.image(band, factor), mask, sky.noise(factor, power=2)]
    names = ("IMAGE", "MASK", "VARIANCE")
    hdus = [fits.ImageHDU(data, sky.header, name=name) for data, name in zip(images, names, strict=True)]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path)


def hsc(folder: Path) -> list[Sky]:
    """Three patches of coadds, a forced catalogue and redshifts of all of them."""
    patches = [Sky("grizy", scale_arcsec=0.168, ra=150.0 + 0.1 * i, dec=2.0, seed=i) for i in range(3)]
    for i, sky in enumerate(patches):
        for band in sky.bands:
            _calexp(folder / f"calexp-HSC-{band.upper()}-9813-{i},4.fits", sky, band)
    truth = pd.concat([sky.truth.assign(id=sky.truth.id + 10000 * i) for i, sky in enumerate(patches)])
    forced = Table({"object_id": truth.id.to_numpy() + 4 * 10**16, "ra": truth.ra, "dec": truth.dec})
    forced["isprimary"], forced["a_i"] = True, 1.633 * 0.02
    forced["i_extendedness_value"] = np.where(truth.star, 0.0, 1.0)
    for band in "grizy":
        forced[f"{band}_cmodel_flux"] = truth[f"flux_{band}"].to_numpy()
        forced[f"{band}_cmodel_fluxerr"] = 10.0
    forced.write(folder / "forced.fits")
    some = truth[~truth.star][::4]
    specz = Table({"specz_name": [f"S{i}" for i in some.id], "specz_ra": some.ra, "specz_dec": some.dec})
    specz["specz_redshift"], specz["specz_flag_homogeneous"] = some.redshift.to_numpy(), True
    specz["specz_flag_homogeneous"][0] = False
    specz.write(folder / "specz.fits")
    return patches


def dc2(folder: Path) -> list[Sky]:
    """Three patches and the truth table of their tract."""
    patches = [Sky("ugrizy", scale_arcsec=0.2, ra=55.0 + 0.1 * i, dec=-30.0, seed=10 + i) for i in range(3)]
    for i, sky in enumerate(patches):
        for band in sky.bands:
            _calexp(folder / f"calexp-{band}-3828-{i},0.fits", sky, band)
    truth = pd.concat([sky.truth.assign(id=sky.truth.id + 10000 * i) for i, sky in enumerate(patches)])
    truth = truth.assign(truth_type=np.where(truth.star, 2, 1)).drop(columns=["x", "y", "star"])
    truth.to_parquet(folder / "truth_tract3828.parquet")
    return patches


def csst(folder: Path) -> Sky:
    """One field in seven bands and the simulator's text catalogue."""
    sky = Sky(["NUV", *"ugrizy"], shape=(400, 420), scale_arcsec=0.074, ra=180.0, dec=30.0)
    for band in sky.bands:
        fits.PrimaryHDU(sky.image(band), sky.header).writeto(folder / f"{band}.fits")
    truth = sky.truth
    table = pd.DataFrame(
        {"obj_ID": truth.id, "ID_chip": 6, "filter": "i", "xImage": truth.x + 1, "yImage": truth.y + 1}
    )
    table = table.assign(ra=truth.ra, dec=truth.dec, ra_orig=truth.ra, dec_orig=truth.dec, z=truth.redshift)
    table = table.assign(mag=mag_from_njy(truth.flux_i), obj_type=np.where(truth.star, "star", "galaxy"))
    lines = ["# " + " ".join(table.columns), table.to_string(header=False, index=False, float_format="%.8f"), ""]
    (folder / "input.cat").write_text("\n".join(lines))
    return sky
