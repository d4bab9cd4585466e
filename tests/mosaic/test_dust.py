"""E(B-V) from maps of the whole sky, against imitations of the maps whose values are known by formula."""

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from fits_files import wcs_header, write

from deepdisc.data.dust import HealpixMap, SfdMap
from deepdisc.data.mosaic import Mosaic
from deepdisc.data.regrid import regrid
from deepdisc.errors import InputError

SIDE = 512  # the original maps have 4096


def write_sfd(folder, side=SIDE):
    """Both halves of the sky with the values of `expected`, placed by the formulas of appendix C of the paper.

    x = (side / 2) sqrt(1 - n sin b) cos l + (side - 1) / 2, y = -n (side / 2) sqrt(1 - n sin b) sin l + (side - 1) / 2.
    """
    for n, pole in ((1, "ngp"), (-1, "sgp")):
        y, x = (part - (side - 1) / 2 for part in np.mgrid[:side, :side].astype(float))
        radius2 = np.clip((x**2 + y**2) / (side / 2) ** 2, 0, 2)
        sin_b = n * (1 - radius2)
        longitude = np.arctan2(-n * y, x)
        values = 0.1 + 0.05 * np.cos(longitude - 0.7) * np.sqrt(1 - np.clip(sin_b, -1, 1) ** 2) + 0.2 * (n < 0)
        header = fits.Header()
        header["CTYPE1"], header["CTYPE2"] = "GLON-ZEA", "GLAT-ZEA"
        header["CRVAL1"], header["CRVAL2"], header["LONPOLE"] = 0.0, 90.0 * n, 0.0 if n > 0 else 180.0
        header["CRPIX1"] = header["CRPIX2"] = (side + 1) / 2
        # ZEA: radius = 2 sin((90 - |b|) / 2) radians = sqrt(2) sqrt(1 - n sin b); a pixel is that over side / 2.
        step = np.degrees(np.sqrt(2)) / (side / 2)
        header["CD1_1"], header["CD1_2"], header["CD2_1"], header["CD2_2"] = 0.0, step, step, 0.0
        fits.PrimaryHDU(values.astype(np.float32), header).writeto(folder / f"SFD_dust_4096_{pole}.fits")


def expected(ra, dec):
    """0.1 + 0.05 cos(l - 0.7) cos(b), and 0.2 more in the South."""
    sky = SkyCoord(ra, dec, unit="deg").galactic
    return 0.1 + 0.05 * np.cos(sky.l.rad - 0.7) * np.cos(sky.b.rad) + 0.2 * (sky.b.deg < 0)


@pytest.fixture(scope="module")
def directions():
    rng = np.random.default_rng(0)
    ra, dec = rng.uniform(0, 360, 300), np.degrees(np.arcsin(rng.uniform(-1, 1, 300)))
    away = np.abs(SkyCoord(ra, dec, unit="deg").galactic.b.deg) > 1
    return ra[away], dec[away]


def test_sfd_maps_by_the_formulas_of_the_paper(tmp_path, directions):
    write_sfd(tmp_path)
    np.testing.assert_allclose(SfdMap(tmp_path).at(*directions), expected(*directions), atol=5e-4)
    np.testing.assert_allclose(SfdMap(tmp_path, 0.86).at(*directions), 0.86 * expected(*directions), atol=5e-4)


@pytest.mark.parametrize(("system", "order"), [("G", "NESTED"), ("C", "RING")])
def test_healpix_maps(tmp_path, directions, system, order):
    healpix = pytest.importorskip("astropy_healpix")
    nside = 128
    grid = healpix.HEALPix(nside=nside, order=order.lower(), frame="galactic" if system == "G" else "icrs")
    sky = grid.healpix_to_skycoord(np.arange(12 * nside**2)).icrs
    values = expected(sky.ra.deg, sky.dec.deg).astype(np.float32)
    rows = values.reshape(-1, 1024)  # as many maps have it: 1024 pixels in a row of the table
    table = fits.BinTableHDU.from_columns([fits.Column("EBV", "1024E", array=rows)])
    for key, value in (("NSIDE", nside), ("ORDERING", order), ("COORDSYS", system)):
        table.header[key] = value
    table.writeto(tmp_path / "map.fits")
    found = HealpixMap(tmp_path / "map.fits").at(*directions)
    smooth = np.abs(SkyCoord(*directions, unit="deg").galactic.b.deg) > 2
    np.testing.assert_allclose(found[smooth], expected(*directions)[smooth], atol=1e-3)
    del table.header["COORDSYS"]
    table.writeto(tmp_path / "unknown.fits")
    with pytest.raises(InputError, match="COORDSYS is '' .needed: G or C"):
        HealpixMap(tmp_path / "unknown.fits")


def test_a_mosaic_takes_it_from_its_yaml(tmp_path):
    (tmp_path / "dust").mkdir()
    write_sfd(tmp_path / "dust")
    write(tmp_path / "g.fits", np.random.default_rng(0).normal(size=(130, 200)).astype(np.float32), scale_arcsec=60)
    (tmp_path / "mosaic.yaml").write_text("{ebv: {sfd: dust, scale: 0.86}, bands: {g: g.fits}}")
    mosaic = Mosaic.open(tmp_path / "mosaic.yaml")
    cells = mosaic.ebv_at(0, 0, 130, 200)
    assert cells.shape == (3, 4) and mosaic.ebv == "map"
    assert mosaic.ebv_source == f"SFD maps in {tmp_path / 'dust'} times 0.86"
    ra, dec = mosaic.grid.to_sky(99.5, 64.5)
    assert cells[1, 1:3].mean() == pytest.approx(0.86 * expected(ra, dec)[0], abs=1e-3)
    assert np.ptp(cells) > 1e-3
    if pytest.importorskip("reproject"):
        again = Mosaic.open(regrid(tmp_path / "mosaic.yaml", tmp_path / "out"))
        np.testing.assert_allclose(again.ebv_at(0, 0, 130, 200), cells)


def test_what_is_no_map_of_the_sky_is_named(tmp_path):
    with pytest.raises(InputError, match="no SFD dust map at .*SFD_dust_4096_ngp.fits"):
        SfdMap(tmp_path)
    for pole in ("ngp", "sgp"):
        header = wcs_header((8, 8))
        fits.PrimaryHDU(np.zeros((8, 8), np.float32), header).writeto(tmp_path / f"SFD_dust_4096_{pole}.fits")
    with pytest.raises(InputError, match="is no map in Galactic ZEA projection"):
        SfdMap(tmp_path).at(np.array([1.0]), np.array([2.0]))
    write(tmp_path / "g.fits", np.ones((8, 8), np.float32), header=None)
    bands = {"g": {"image": str(tmp_path / "g.fits"), "zero_point": 25}}
    with pytest.raises(InputError, match="a map of the sky needs a mosaic with a WCS"):
        Mosaic.open({"bands": bands, "pixel_scale_arcsec": 1, "ebv": {"sfd": str(tmp_path)}})
    with pytest.raises(InputError, match=r"ebv is .*a map of the sky is \{sfd: FOLDER\} or \{healpix: FILE\}"):
        Mosaic.open({"bands": bands, "ebv": {"planck": "x"}})
    pytest.importorskip("astropy_healpix")
    with pytest.raises(InputError, match="no HEALPix map at"):
        HealpixMap(tmp_path / "none.fits")
    with pytest.raises(InputError, match="holds no table with the keyword NSIDE"):
        HealpixMap(tmp_path / "g.fits")
